"""The benchmark measures what it says, counts what it measured, and refuses a figure whose count is off."""

import dataclasses
import json
import os
import subprocess
import sys

import msgspec
import pytest

from mesh_lab.bench import scale
from mesh_lab.bench.command import BenchReport, as_json, report_of
from mesh_lab.bench.jobs import Counted
from mesh_lab.bench.suite import (
    CASES,
    CONSUME,
    END_TO_END,
    PUBLISH,
    BenchCase,
    StreamSetup,
    check_counts,
    messages_of,
    run_once,
    run_suite,
)
from mesh_lab.errors import WrongTotalsError
from mesh_lab.measure.load_jobs import Received
from mesh_lab.orders.dataset import EVERYTHING
from mesh_lab.servers.mesh import Mesh

HERE = StreamSetup(3, "file")
WINDOWED = next(case for case in PUBLISH if case.name == "windowed publisher")


def _small(case: BenchCase) -> BenchCase:
    return dataclasses.replace(case, messages=1_500)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_rung_runs_and_stores_or_counts_all_of_it(mesh: Mesh, case: BenchCase) -> None:
    run, stored = await run_once(mesh, _small(case), HERE)
    assert run.elapsed_s > 0
    assert run.server_version.startswith("2.")
    if case.bulk:
        assert messages_of(_small(case), HERE) == EVERYTHING.orders
        assert EVERYTHING.orders / case.window <= stored < EVERYTHING.orders / case.window + 3
    else:
        assert stored == messages_of(_small(case), HERE)


async def test_a_climb_has_its_runs_without_the_first_and_the_report_has_the_schema(mesh: Mesh) -> None:
    cases = [_small(PUBLISH[-1]), _small(END_TO_END[0])]
    started: list[str] = []
    results = await run_suite({3: mesh}, cases, [HERE], rounds=2, seed=1, progress=started.append)
    assert len(started) == 6
    assert [result.measurement.runs for result in results] == [2, 2]
    report = report_of(results)
    read = msgspec.json.decode(as_json(report), type=BenchReport)
    assert read == report
    first, last = json.loads(as_json(report))["results"]
    assert set(first) == set(msgspec.json.schema(BenchReport)["$defs"]["BenchResult"]["properties"])
    assert (first["unit"], last["unit"]) == ("messages", "orders")
    assert (first["replicas"], first["storage"], first["kind"]) == (3, "file", "acknowledged")
    assert first["stored_messages"] == first["count"] == 600
    assert first["rate_per_s"] == pytest.approx(600 / (sum(first["elapsed_s"]) / 2))


async def test_no_rounds_are_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="rounds=0, warmup=1: expected rounds >= 1"):
        await run_suite({3: mesh}, [PUBLISH[0]], [HERE], rounds=0)


async def test_a_stream_that_does_not_hold_everything_is_an_error_and_no_figure(mesh: Mesh) -> None:
    forgetful = dataclasses.replace(WINDOWED, messages=500, stream={"max_msgs": 10})
    with pytest.raises(WrongTotalsError, match="windowed publisher: the stream holds 10 messages, expected 200"):
        await run_once(mesh, forgetful, HERE)


@pytest.mark.parametrize(
    ("totals", "doubled", "message"),
    [
        (msgspec.structs.replace(EVERYTHING, orders=EVERYTHING.orders - 1), 0, "counted 69,658 orders"),
        (msgspec.structs.replace(EVERYTHING, orders=EVERYTHING.orders - 1), 1, "1 of them twice"),
        (msgspec.structs.replace(EVERYTHING, cents=EVERYTHING.cents + 1), 0, r"cents: .*\(\+1\)"),
    ],
)
def test_a_worker_that_counted_something_else_is_an_error(totals, doubled, message) -> None:
    with pytest.raises(WrongTotalsError, match=message):
        check_counts(END_TO_END[0], EVERYTHING.orders, Counted(totals=totals, doubled=doubled))
    check_counts(END_TO_END[0], EVERYTHING.orders, Counted(totals=EVERYTHING, doubled=0))


def test_a_consumer_that_received_more_or_less_is_an_error() -> None:
    for received in (9, 11):
        with pytest.raises(WrongTotalsError, match=f"{received} messages received, expected 10"):
            check_counts(CONSUME[0], 10, Received(received=received))
    check_counts(CONSUME[0], 10, Received(received=10))


def _command(*arguments: str, program: tuple[str, ...] = ("-m", "mesh_lab.cli"), **more):
    command = [sys.executable, *program, "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


# The command as it is, but for the orders of the single lanes, on which two cores would be at work for half a minute.
FEWER = """
import dataclasses, sys
from mesh_lab.bench import command
from mesh_lab.cli import main
command.CASES = [case if case.bulk else dataclasses.replace(case, messages=8_000) for case in command.CASES]
sys.exit(main())
"""


def test_the_command_prints_json_and_nothing_else_on_standard_output() -> None:
    # It removes streams, so its servers are its own also where the environment names others.
    others = {**os.environ, "MESH_LAB_URL": "nats://127.0.0.1:9"}
    done = _command("--quick", "--json", "--ladder", "end to end", program=("-c", FEWER), env=others)
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=BenchReport)
    assert report.schema == 3
    assert {(r.replicas, r.storage) for r in report.results} == {(1, "file"), (3, "file")}
    rates = {(r.rung, r.replicas): r.rate_per_s for r in report.results}
    singly, bulk = "single lane, windowed, an ack each", "bulk lane, 256 orders a message"
    # Measured in turn, and far above the bound: neighbours do not matter, and a wrong order of magnitude fails.
    assert rates[bulk, 3] > 8 * rates[singly, 3]
    assert (report.go, {r.times_go for r in report.results}) == ("", {None})


async def test_growth_is_measured_along_each_axis_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MESSAGES", 1_000)
    sizes = dict.fromkeys(scale.SIZES, (2,)) | {"payload bytes": (16,), "servers": (6,)}
    started: list[str] = []
    points = await scale.run_scale(rounds=1, sizes=sizes, progress=started.append)
    assert sorted(started) == ["partitions: 2", "payload bytes: 16", "servers: 6", "streams: 2", "workers: 2"]
    assert [(point.axis, point.size) for point in points] == [
        *(("workers", 2), ("partitions", 2), ("streams", 2), ("payload bytes", 16)),
        *[("servers", 6)] * 3,
    ]
    assert all(point.median == point.runs[0] > 0 for point in points)
    memory_mib = next(point.median for point in points if "memory" in point.what)
    assert 30 < memory_mib < 1_000


def test_the_schema_names_every_field_without_running_anything() -> None:
    schema = json.loads(_command("--schema").stdout)
    assert {"schema", "machine", "results", "go", "scale"} == set(schema["$defs"]["BenchReport"]["properties"])
    assert schema["$defs"]["BenchResult"]["properties"]["rate_per_s"] == {"type": "number"}
