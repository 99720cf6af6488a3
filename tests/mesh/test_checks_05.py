"""The exercises of notebook 05: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib

import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.api import ExternalStream, Placement, StreamSource
from nats.js.errors import NotFoundError

CELLS = ExerciseCells(
    "05_grow_the_mesh",
    asyncio=asyncio,
    Placement=Placement,
    StreamSource=StreamSource,
    ExternalStream=ExternalStream,
)
HOME = StreamSource(name="ORDERS-EU")
STORE = StreamSource(name="RETURNS", external=ExternalStream(api="$JS.store-berlin.API"))

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests("regions")


def making(**settings):
    async def make(js):
        await js.add_stream(**settings)

    return make


US = Placement(cluster="us")


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
    ],
    ids=["at home", "one copy", "sources", "no mirror", "another stream"],
)
async def test_a_backup_in_the_wrong_place_or_of_the_wrong_kind_is_refused(regions, settings, said):
    verdict = await refused("5.1", making(**settings))
    assert said in verdict


async def test_a_backup_that_was_never_made_is_refused(regions):
    async def forget(js):
        await js.account_info()

    assert "no stream BACKUP" in await refused("5.1", forget)


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
    ],
    ids=["the slowest", "one way", "the fastest of five", "the mean", "nothing"],
)
async def test_a_wrong_prediction_is_refused(regions, answer, said):
    verdict = await refused("5.2", answer)
    assert said in verdict


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"name": "ALL-RETURNS", "sources": [StreamSource(name="RETURNS")], "num_replicas": 3},
            "sources a stream RETURNS of the regions",
        ),
        (
            {
                "name": "ALL-RETURNS",
                "sources": [StreamSource(name="RETURNS", external=ExternalStream(api="$JS.store-hamburg.API"))],
                "num_replicas": 3,
            },
            "sources $JS.store-hamburg.API",
        ),
        ({"name": "ALL-RETURNS", "sources": [STORE]}, "ALL-RETURNS has 1 copy; expected 3"),
        ({"name": "ALL-RETURNS", "subjects": ["returns.*"], "num_replicas": 3}, "sources no stream RETURNS"),
        ({"name": "OTHER", "subjects": ["nothing"]}, "no stream ALL-RETURNS"),
    ],
    ids=["no domain", "another domain", "one copy", "listens itself", "another name"],
)
async def test_a_collection_that_misses_something_is_refused(regions, settings, said):
    try:
        assert said in await refused("5.3", making(**settings))
    finally:
        if settings["name"] == "OTHER":
            client = await regions.connect()
            with contextlib.suppress(NotFoundError):
                await client.jetstream().delete_stream("OTHER")
