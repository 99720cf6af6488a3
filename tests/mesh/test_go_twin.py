"""The order mesh in Go on real servers: the same messages as ours, and every total exact."""

import asyncio
import dataclasses
import re
from collections.abc import Iterator

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.bench.command import report_of
from mesh_lab.bench.suite import END_TO_END, GO, BenchCase, StreamSetup, run_once, run_suite
from mesh_lab.errors import NoGoError, ProcessEndedError
from mesh_lab.measure.go_twin import GoTwin
from mesh_lab.orders.dataset import data_set, read_orders
from mesh_lab.orders.job.report import SHOWN_EVENTS, GoRun, run_beside_go
from mesh_lab.orders.order import encode, totals_of
from mesh_lab.patterns import eventually
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.servers.mesh import Mesh

pytestmark = pytest.mark.needs("go")
HERE = StreamSetup(3, "file")
ORDERS = 300


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoTwin]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESH_LAB_HOME", str(tmp_path_factory.mktemp("home")))
        try:
            yield GoTwin.build(data_set())
        except NoGoError as err:
            pytest.skip(str(err))


def _main_job(twin: GoTwin, mesh: Mesh, *flags: str) -> GoRun:
    return twin.run("orders", "-replicas=3", *flags, options=mesh.connect_options(), owner=mesh.owner, result=GoRun)


async def test_the_main_job_in_go_sends_what_ours_sends_and_counts_it_exactly(
    twin: GoTwin, mesh: Mesh, client: Client
) -> None:
    seen: dict[str, tuple[str, bytes]] = {}

    async def note(msg: Msg) -> None:
        seen[msg.subject] = ((msg.headers or {})["Nats-Msg-Id"], msg.data)

    await client.subscribe("orders.>", cb=note)
    await client.flush()
    run = await asyncio.to_thread(_main_job, twin, mesh, f"-count={ORDERS}")
    orders = list(read_orders(first=ORDERS))
    sent = {order.subject(event): (order.msg_id(event), encode(order)) for order in orders for event in SHOWN_EVENTS}
    await eventually(lambda: len(seen) == len(sent), within=5.0)
    assert seen == sent
    assert run.events == dict.fromkeys(SHOWN_EVENTS, totals_of(orders))
    assert run.ended_ns > run.began_ns
    assert "ORDERS" not in await stream_names(client)


async def test_a_stream_that_is_in_the_way_is_an_error_that_names_it(twin: GoTwin, mesh: Mesh, client: Client) -> None:
    await client.jetstream().add_stream(name="ORDERS", subjects=["orders.*.*.*"], max_msgs=5)
    try:
        with pytest.raises(ProcessEndedError, match="ended with code 1: orders: .*stream name already in use"):
            await asyncio.to_thread(_main_job, twin, mesh, "-count=5")
    finally:
        await client.jetstream().delete_stream("ORDERS")


@pytest.mark.parametrize("case", GO, ids=lambda case: case.name)
async def test_every_rung_in_go_runs_and_stores_or_counts_all_of_it(mesh: Mesh, twin: GoTwin, case: BenchCase) -> None:
    run, _ = await run_once(mesh, dataclasses.replace(case, messages=1_500), HERE, twin)
    assert run.elapsed_s > 0
    assert run.server_version.startswith("2.")


async def test_a_rung_is_compared_with_the_same_task_in_go(mesh: Mesh, twin: GoTwin) -> None:
    cases = [dataclasses.replace(case, messages=500) for case in (END_TO_END[0], GO[3])]
    results = await run_suite({3: mesh}, cases, [HERE], rounds=1, warmup=0, twin=twin)
    ours, go = report_of(results, go=twin.versions).results
    assert ours.times_go == pytest.approx(ours.rate_per_s / go.rate_per_s)
    assert go.times_go == 1.0


async def test_the_main_job_in_both_languages_prints_their_ratio(
    twin: GoTwin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_beside_go(workers=1, first=ORDERS, rounds=1) == 0
    printed = capsys.readouterr().out
    assert f"Go ({twin.versions})" in printed
    assert "exact each time: 300 orders" in printed
    assert "Python / Go: " in printed
    used = [
        line.split("│")[1:4] for line in printed.splitlines() if re.search("servers|publisher|workers|reader", line)
    ]
    assert [who.strip() for who, _, _ in used] == ["3 servers", "publisher", "workers", "reader"]
    python, go = ([float(row[column].replace(",", "")) for row in used] for column in (1, 2))
    assert min(*python, go[0]) > 0  # of Go's processes, so few orders take less than can be seen
