"""The exercises of notebook 06: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json
import sys

import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.api import ExternalStream, Placement, StreamConfig, StreamSource
from nats.js.errors import NotFoundError

from mesh_lab.notebook.exercises import check
from mesh_lab.orders import encode, read_orders
from mesh_lab.patterns import retry, wait_routable

CELLS = ExerciseCells(
    "06_grow_the_mesh",
    asyncio=asyncio,
    Placement=Placement,
    StreamSource=StreamSource,
    ExternalStream=ExternalStream,
)
HOME = StreamSource(name="ORDERS-EU")


def edge(**options):
    return StreamSource(name="RETURNS", external=ExternalStream(api="$JS.store-berlin.API"), **options)


STORE = edge()
ALL = {"name": "ALL-RETURNS", "sources": [STORE], "num_replicas": 3}

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests(
    "regions", twice=("6.1", "6.3")
)


@pytest.fixture(scope="module")
def followed(_shared_regions):
    """Keep the lesson's stream for the tries of a file: without it, a check makes one for each."""

    async def make_and_fill():
        async with await _shared_regions.connect(region="eu") as client:
            js = client.jetstream(timeout=10.0)
            home = Placement(cluster="eu")
            await js.add_stream(name="ORDERS-EU", subjects=["orders.eu.*.placed"], num_replicas=3, placement=home)
            await wait_routable(client, "ORDERS-EU")
            for order in read_orders(first=12):
                if order.region == "eu":
                    await js.publish(order.subject("placed"), encode(order), timeout=10.0)

    asyncio.run(make_and_fill())
    yield
    asyncio.run(remove(_shared_regions, "ORDERS-EU"))


def making(**settings):
    async def make(js):
        await js.add_stream(**settings)

    return make


US = Placement(cluster="us")
BACKUP = {"name": "BACKUP", "mirror": HOME, "num_replicas": 3, "placement": US}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "BACKUP", "mirror": HOME, "num_replicas": 3}, "BACKUP lives in eu; expected us"),
        ({"name": "BACKUP", "mirror": HOME, "placement": US}, "BACKUP has 1 copy; expected 3"),
        ({"name": "BACKUP", "sources": [HOME], "num_replicas": 3, "placement": US}, "BACKUP has sources; expected"),
        ({"name": "BACKUP", "subjects": ["backup"], "num_replicas": 3, "placement": US}, "BACKUP has no mirror"),
        (
            {"name": "BACKUP", "mirror": StreamSource(name="ORDERS-US"), "num_replicas": 3, "placement": US},
            "BACKUP has a mirror of ORDERS-US; expected a mirror of ORDERS-EU",
        ),
        (
            BACKUP | {"mirror": StreamSource(name="ORDERS-EU", opt_start_seq=2)},
            "BACKUP leaves out what was stored before a start; expected all of it",
        ),
        (
            BACKUP | {"mirror": StreamSource(name="ORDERS-EU", filter_subject="orders.eu.000001.placed")},
            "BACKUP takes only orders.eu.000001.placed; expected all of it, without a filter",
        ),
        (BACKUP | {"max_msgs": 10}, "BACKUP has max_msgs 10; expected no limit"),
        (BACKUP | {"max_age": 3_600}, "BACKUP has max_age 3600; expected no limit"),
        (BACKUP | {"max_bytes": 10_000_000}, "BACKUP has max_bytes 1e+07; expected no limit"),
        (BACKUP | {"max_msgs_per_subject": 1}, "BACKUP has max_msgs_per_subject 1; expected no limit"),
        (BACKUP | {"name": "BACKUP-EU"}, "no stream BACKUP on the servers"),
    ],
)
async def test_a_backup_in_the_wrong_place_or_of_the_wrong_kind_is_refused(regions, followed, settings, said):
    try:
        assert said in await refused("6.1", making(**settings))
    finally:
        await remove(regions, "BACKUP-EU")


async def remove(mesh, stream):
    async with await mesh.connect() as client:
        with contextlib.suppress(NotFoundError):
            await client.jetstream().delete_stream(stream)


async def test_other_ways_to_place_a_backup_are_right(regions, followed):
    async def by_configuration(js):
        await js.add_stream(StreamConfig(**BACKUP, storage="memory"))

    async def by_request(js):
        placed = {"mirror": {"name": "ORDERS-EU"}, "num_replicas": 3, "placement": {"cluster": "us"}}
        config = {"name": "BACKUP", "retention": "limits", "storage": "file", **placed}
        reply = await js._nc.request("$JS.API.STREAM.CREATE.BACKUP", json.dumps(config).encode(), timeout=10)
        assert "error" not in json.loads(reply.data), reply.data

    for answer in (by_configuration, by_request):
        verdict = await check("6.1", answer)
        assert verdict.state == "correct", verdict


async def test_a_backup_that_was_never_made_is_refused(regions, followed):
    async def forget(js):
        await js.account_info()

    assert "no stream BACKUP" in await refused("6.1", forget)


def needed(followers, *, key=None, more=0):
    """Return the latency of the follower that completes a majority."""
    sorted_ms = sorted(followers, key=key)
    return sorted_ms[min((len(followers) + 1) // 2 - 1 + more, len(followers) - 1)] if followers else 0


async def test_other_ways_to_predict_the_wait_are_right(regions):
    def by_waiting(to_leader_ms, followers_ms):
        acked = [0, *sorted(followers_ms)]  # the leader has it at once
        return float(2 * to_leader_ms + 2 * acked[len(acked) // 2])

    verdict = await check("6.2", by_waiting)
    assert verdict.state == "correct", verdict


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda to_leader, followers: 2 * (to_leader + max(followers, default=0)), "80 was returned; expected 20"),
        (lambda to_leader, followers: to_leader + min(followers, default=0), "5 was returned; expected 10"),
        (lambda to_leader, followers: 2 * (to_leader + min(followers, default=0)), "10 was returned; expected 20"),
        (
            lambda to_leader, followers: 2 * (to_leader + (sum(followers) / len(followers) if followers else 0)),
            "50.0 was returned; expected 20",
        ),
        (lambda to_leader, followers: "soon", "'soon' was returned"),
        (
            lambda to_leader, followers: {},
            "for 1 replica, followers at [] ms, leader at 0 ms, {} was returned; expected 0",
        ),
        (lambda to_leader, followers: float("nan"), "nan was returned; expected 0"),
        (lambda to_leader, followers: to_leader + 2 * needed(followers), "5 was returned; expected 10"),
        (lambda to_leader, followers: 2 * to_leader + needed(followers), "10 was returned; expected 20"),
        (lambda to_leader, followers: 2 * max(to_leader, needed(followers)), "60 was returned; expected 80"),
        (lambda to_leader, followers: round(2 * (to_leader + needed(followers))), "4 was returned; expected 3.5"),
        (lambda to_leader, followers: 2 * (to_leader + needed(followers, key=str)), "was returned; expected"),
        (lambda to_leader, followers: 2 * (to_leader + needed(sorted(set(followers)))), "was returned; expected 12"),
        (lambda to_leader, followers: 2 * (to_leader + needed(followers, more=1)), "80 was returned; expected 20"),
        (
            lambda to_leader, followers: 2 * (to_leader + sorted(followers)[len(followers) // 2 - 1]),
            "it raised IndexError",
        ),
    ],
)
async def test_a_wrong_prediction_is_refused(regions, answer, said):
    verdict = await refused("6.2", answer)
    assert said in verdict


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"name": "ALL-RETURNS", "sources": [StreamSource(name="RETURNS")], "num_replicas": 3},
            "follows a stream RETURNS of the regions; expected RETURNS by the API of the store's domain",
        ),
        (
            {
                "name": "ALL-RETURNS",
                "sources": [StreamSource(name="RETURNS", external=ExternalStream(api="$JS.store-hamburg.API"))],
                "num_replicas": 3,
            },
            "follows $JS.store-hamburg.API; expected RETURNS by the API",
        ),
        ({"name": "ALL-RETURNS", "sources": [STORE]}, "ALL-RETURNS has 1 copy; expected 3"),
        ({"name": "ALL-RETURNS", "subjects": ["returns.*"], "num_replicas": 3}, "follows no stream RETURNS"),
        (ALL | {"subjects": ["returns.*"]}, "ALL-RETURNS listens to returns.* itself, too; expected what the store"),
        (ALL | {"max_msgs": 100}, "ALL-RETURNS has max_msgs 100; expected no limit"),
        (ALL | {"max_age": 60}, "ALL-RETURNS has max_age 60; expected no limit"),
        (ALL | {"sources": [edge(opt_start_seq=2)]}, "ALL-RETURNS leaves out what was stored before a start"),
        (ALL | {"sources": [edge(filter_subject="returns.1")]}, "ALL-RETURNS takes only returns.1; expected all"),
        (ALL | {"sources": [edge(), StreamSource(name="ORDERS-EU")]}, "ALL-RETURNS has 2 sources; expected one"),
        (
            {"name": "ALL-RETURNS", "mirror": StreamSource(name="RETURNS"), "num_replicas": 3},
            "follows a stream RETURNS of",
        ),
        ({"name": "OTHER", "subjects": ["nothing"]}, "no stream ALL-RETURNS"),
    ],
)
async def test_a_collection_that_misses_something_is_refused(regions, settings, said):
    try:
        assert said in await refused("6.3", making(**settings))
    finally:
        await remove(regions, "OTHER")


async def test_an_answer_that_waits_for_ever_is_told_so_before_the_check_ends(regions, monkeypatch):
    async def waits(js):
        await asyncio.Event().wait()

    await check("6.2", lambda to_leader, followers: "soon")  # loads the checks
    monkeypatch.setattr(sys.modules["mesh_lab_checks.06_grow_the_mesh"], "MAKES_WITHIN_S", 0.5)
    for number in ("6.1", "6.3"):
        verdict = await refused(number, waits)
        assert "it was still at work 0.5 s after it was called; expected a stream, and an end" in verdict


async def test_a_collection_that_is_copied_once_is_refused(regions):
    async def copies(js):
        await js.add_stream(name="ALL-RETURNS", subjects=["copied.*"], num_replicas=3)
        for number in range(6):
            await retry(lambda number=number: js.publish(f"copied.{number}", b"a CD"))

    assert "ALL-RETURNS follows no stream RETURNS; expected RETURNS by the API" in await refused("6.3", copies)


async def test_a_mirror_of_the_stores_stream_collects_as_well(regions):
    async def mirrors(js):
        await js.add_stream(name="ALL-RETURNS", mirror=STORE, num_replicas=3)

    async def with_a_filter_for_all(js):
        await js.add_stream(StreamConfig(**ALL | {"sources": [edge(filter_subject="returns.>")]}))

    for answer in (mirrors, with_a_filter_for_all):
        verdict = await check("6.3", answer)
        assert verdict.state == "correct", verdict
