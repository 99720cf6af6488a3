"""The command ``mesh-lab bench``, and its report: tables with bars for people, JSON with a stable schema for machines.

The schema is that of :class:`BenchReport`; ``mesh-lab bench --schema`` prints it as JSON Schema. A field is never
renamed or given another unit; a new field comes with a new ``schema`` number.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mesh_lab.bench.scale import ScalePoint, run_scale
from mesh_lab.bench.suite import CASES, GO, BenchCase, CaseResult, StreamSetup, run_suite
from mesh_lab.measure.go_twin import GoTwin
from mesh_lab.measure.measurement import NOISY_SPREAD, Measurement, rounded
from mesh_lab.measure.reference import Machine, this_machine
from mesh_lab.orders.dataset import data_set
from mesh_lab.servers.binary import find_server, version_text
from mesh_lab.servers.start import start_mesh

SCHEMA = 3
BAR_CHARACTERS = 24
SETUPS = (StreamSetup(1, "file"), StreamSetup(3, "file"), StreamSetup(1, "memory"), StreamSetup(3, "memory"))


class BenchResult(msgspec.Struct, frozen=True):
    """All runs of one case on one kind of stream.

    Attributes:
        ladder: ``publish``, ``consume`` or ``end to end``.
        rung: Name of the case, for example ``windowed publisher``.
        kind: What stopped the clock: ``acknowledged`` (stored) or ``processed`` (a worker's effect).
        unit: What ``count`` and ``rate_per_s`` count: ``messages`` or ``orders``.
        replicas: Copies of the stream.
        storage: ``file`` or ``memory``.
        stored_messages: Messages in the stream after each run; fewer than orders in the bulk lane.
        payload_bytes: Size of each payload; 0 where real orders have their own.
        elapsed_s: Seconds of each run, in the order in which they were made.
        rate_per_s: ``count`` divided by the seconds of the median run.
        spread: Difference between the slowest run and the fastest, as a share of the median.
        times_go: ``rate_per_s``, divided by that of the same task in Go in this run; ``null`` where there is none.
    """

    ladder: str
    rung: str
    kind: str
    unit: str
    replicas: int
    storage: str
    count: int
    stored_messages: int
    payload_bytes: int
    elapsed_s: list[float]
    rate_per_s: float
    spread: float
    times_go: float | None


class BenchReport(msgspec.Struct, frozen=True):
    """The whole run; ``schema`` is the version of this format, ``go`` what ``--go`` was run with, or empty.

    ``scale`` has what ``--scale`` measures; ``results`` is empty then.
    """

    schema: int
    machine: Machine
    results: list[BenchResult]
    go: str
    scale: list[ScalePoint] = []


def run_bench(*, quick: bool, as_json: bool, go: bool, ladders: Sequence[str] = ()) -> int:
    """Run the benchmark on servers of its own, print the report (progress to standard error), and return the exit code.

    Args:
        quick: Only the cases that matter most, on file streams, two rounds: under a minute.
        as_json: JSON instead of tables.
        go: Whether to run the same in Go as well, in the same rounds.
        ladders: Which ladders to run; none means all.

    Raises:
        NoGoError: ``go`` was asked for, and there is no Go here, or it cannot build what it should.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        ProcessEndedError: A child ended without a result.
    """
    twin = GoTwin.build(data_set()) if go else None
    all_cases = (*CASES, *(GO if go else ()))
    cases = [case for case in all_cases if (case.quick or not quick) and (not ladders or case.ladder in ladders)]
    print_report(asyncio.run(_run(cases, quick=quick, twin=twin)), json=as_json)
    return 0


def show_scale(*, quick: bool, as_json: bool) -> int:
    """Measure how rates change with size, and what more servers cost, print it, and return the exit code.

    Args:
        quick: One round instead of three.
        as_json: JSON instead of tables.

    Raises as :func:`mesh_lab.bench.scale.run_scale`.
    """
    with Progress(TimeElapsedColumn(), TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("starting servers", total=None)
        points = asyncio.run(
            run_scale(rounds=1 if quick else 3, progress=lambda name: bars.update(task, description=name))
        )
    version = version_text(find_server().version)
    on = this_machine([Measurement("scale", "ready", 1, (1.0,), server_version=version)])  # for its versions
    print_report(BenchReport(SCHEMA, on, [], "", points), json=as_json)
    return 0


async def _run(cases: Sequence[BenchCase], *, quick: bool, twin: GoTwin | None) -> BenchReport:
    # No warm-up when quick: it would take a third of the minute.
    setups, rounds, warmup = (SETUPS[:2], 2, 0) if quick else (SETUPS, 5, 1)
    runs = len(cases) * len(setups) * (rounds + warmup)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting servers", total=runs)

        def step(name: str) -> None:
            bars.update(task, advance=1, description=name)

        # Local, whatever the environment names: each run removes its streams, which on other servers may be others'.
        async with (
            await start_mesh(servers=1, backend="local") as single,
            await start_mesh(servers=3, backend="local") as cluster,
        ):
            meshes = {1: single, 3: cluster}
            results = await run_suite(meshes, cases, setups, rounds=rounds, warmup=warmup, twin=twin, progress=step)
    return report_of(results, go=twin.versions if twin else "")


def report_of(results: Sequence[CaseResult], *, go: str = "") -> BenchReport:
    """Return the report of a run."""
    machine = this_machine(result.measurement for result in results)
    in_go = {(one.case.task, one.setup): one.measurement.rate_per_s for one in results if one.case.go}
    return BenchReport(SCHEMA, machine, [_result(one, in_go.get((one.case.task, one.setup))) for one in results], go)


def _result(result: CaseResult, go_rate_per_s: float | None) -> BenchResult:
    measurement = result.measurement
    return BenchResult(
        ladder=result.case.ladder,
        rung=result.case.name,
        kind=measurement.kind,
        unit="orders" if result.case.ladder == "end to end" else "messages",
        replicas=result.setup.replicas,
        storage=result.setup.storage,
        count=measurement.messages,
        stored_messages=result.stored,
        payload_bytes=measurement.payload_bytes,
        elapsed_s=list(measurement.elapsed_s),
        rate_per_s=measurement.rate_per_s,
        spread=measurement.spread,
        times_go=measurement.rate_per_s / go_rate_per_s if go_rate_per_s else None,
    )


def as_json(report: BenchReport | dict[str, Any]) -> str:
    """Return a report, or its schema, as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def print_schema() -> int:
    """Print the JSON Schema of the report and return the exit code."""
    sys.stdout.write(as_json(msgspec.json.schema(BenchReport)) + "\n")
    return 0


def print_report(report: BenchReport, *, json: bool = False) -> None:
    """Print a report: JSON, or a table for each ladder, a bar behind each rate."""
    if json:
        sys.stdout.write(as_json(report) + "\n")
        return
    console = Console()
    for ladder in dict.fromkeys(result.ladder for result in report.results):
        console.print(_table(ladder, [result for result in report.results if result.ladder == ladder]))
    for axis, what in dict.fromkeys((point.axis, point.what) for point in report.scale):
        console.print(_scale_table(axis, what, [one for one in report.scale if (one.axis, one.what) == (axis, what)]))
    on = report.machine
    versions = f"nats-server {on.nats_server}, nats-py {on.nats_py}, Python {on.python}{report.go and f', {report.go}'}"
    console.print(f"{on.cpus} cores, {on.memory_gib:g} GiB, {on.system}; {versions}")
    if any(result.spread >= NOISY_SPREAD for result in report.results):
        console.print("Runs that lie 10 % or more apart are rough numbers: compare only what differs by more.")


def _table(ladder: str, results: Sequence[BenchResult]) -> Table:
    title = f"{ladder}: {results[0].unit} {results[0].kind} a second, median"
    # Without frames every column of the longest ladder is whole in 80 characters.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("how", no_wrap=True)
    columns = ("stream", "a second", "spread", *(["x Go"] if any(one.times_go for one in results) else []))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    longest = max(one.rate_per_s for one in results)
    for one in results:
        cells = [f"R{one.replicas} {one.storage}", rounded(one.rate_per_s), f"{one.spread:.0%}"]
        cells.append(f"{one.times_go:.2f}" if one.times_go else "")
        bar = Bar(longest, 0, one.rate_per_s, width=BAR_CHARACTERS)
        table.add_row(one.rung, *cells[: len(columns)], bar)
    return table


def _scale_table(axis: str, what: str, points: Sequence[ScalePoint]) -> Table:
    table = Table(axis, what, "", title=f"{what} by {axis}, median", title_justify="left")
    longest = max(one.median for one in points)
    for one in points:
        figure = f"{one.median:,.0f}" if one.median >= 100 else f"{one.median:.3g}"
        table.add_row(f"{one.size:,}", figure, Bar(longest, 0, one.median, width=BAR_CHARACTERS))
    return table
