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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mesh_lab.bench.nats_cli import COMMANDS, NatsCliResult, find_nats_cli, run_nats_cli
from mesh_lab.bench.suite import CASES, BenchCase, CaseResult, StreamSetup, run_suite
from mesh_lab.measure.measurement import NOISY_SPREAD, rounded
from mesh_lab.measure.reference import Machine, this_machine
from mesh_lab.servers.start import start_mesh

SCHEMA = 1
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


class BenchReport(msgspec.Struct, frozen=True):
    """The whole run; ``schema`` is the version of this format, ``peers`` is empty without ``--peer``."""

    schema: int
    machine: Machine
    results: list[BenchResult]
    peers: list[NatsCliResult]


def run_bench(*, quick: bool, as_json: bool, peer: bool, ladders: Sequence[str] = ()) -> int:
    """Run the benchmark on servers of its own, print the report (progress to standard error), and return the exit code.

    Args:
        quick: Only the cases that matter most, on file streams, two rounds: under a minute.
        as_json: JSON instead of tables.
        peer: Whether to run the ``nats`` tool's benchmark as well, for comparison.
        ladders: Which ladders to run; none means all.

    Raises:
        NoNatsCliError: ``peer`` was asked for, and the tool is not installed.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        ProcessEndedError: A child ended without a result.
    """
    path = find_nats_cli() if peer else None
    cases = [case for case in CASES if (case.quick or not quick) and (not ladders or case.ladder in ladders)]
    _write(asyncio.run(_run(cases, quick=quick, path=path)), json=as_json)
    return 0


async def _run(cases: Sequence[BenchCase], *, quick: bool, path: str | None) -> BenchReport:
    # No warm-up when quick: it would take a third of the minute.
    setups, rounds, warmup = (SETUPS[:2], 2, 0) if quick else (SETUPS, 5, 1)
    runs = len(cases) * len(setups) * (rounds + warmup) + (2 * len(COMMANDS) if path else 0)
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
            results = await run_suite(meshes, cases, setups, rounds=rounds, warmup=warmup, progress=step)
            peers: list[NatsCliResult] = []
            if path is not None:
                for replicas, mesh in meshes.items():
                    peers += await asyncio.to_thread(run_nats_cli, path, mesh, replicas=replicas, progress=step)
    return report_of(results, peers)


def report_of(results: Sequence[CaseResult], peers: Sequence[NatsCliResult] = ()) -> BenchReport:
    """Return the report of a run."""
    machine = this_machine(result.measurement for result in results)
    return BenchReport(SCHEMA, machine, [_result(result) for result in results], list(peers))


def _result(result: CaseResult) -> BenchResult:
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
    )


def as_json(report: BenchReport | dict[str, Any]) -> str:
    """Return a report, or its schema, as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def print_schema() -> int:
    """Print the JSON Schema of the report and return the exit code."""
    sys.stdout.write(as_json(msgspec.json.schema(BenchReport)) + "\n")
    return 0


def _write(report: BenchReport, *, json: bool) -> None:
    """Print a report: JSON, or a table for each ladder, a bar behind each rate."""
    if json:
        sys.stdout.write(as_json(report) + "\n")
        return
    console = Console()
    for ladder in dict.fromkeys(result.ladder for result in report.results):
        console.print(_table(ladder, [result for result in report.results if result.ladder == ladder], report.peers))
    on = report.machine
    versions = f"nats-server {on.nats_server}, nats-py {on.nats_py}, Python {on.python}"
    console.print(f"{on.cpus} cores, {on.memory_gib:g} GiB, {on.system}; {versions}")
    if any(result.spread >= NOISY_SPREAD for result in report.results):
        console.print("Runs that lie 10 % or more apart are rough numbers: compare only what differs by more.")


def _table(ladder: str, results: Sequence[BenchResult], peers: Sequence[NatsCliResult]) -> Table:
    table = Table(title=f"{ladder}: {results[0].unit} {results[0].kind} a second, median", title_justify="left")
    table.add_column("how", no_wrap=True)
    for column in ("stream", "a second", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    rows: list[tuple[str, BenchResult | NatsCliResult, str]] = [(one.rung, one, f"{one.spread:.0%}") for one in results]
    rows += [(one.name, one, "") for one in peers if one.ladder == ladder]
    longest = max(one.rate_per_s for _, one, _ in rows)
    for name, one, spread in rows:
        bar = Bar(longest, 0, one.rate_per_s, width=BAR_CHARACTERS)
        table.add_row(name, f"R{one.replicas} {one.storage}", rounded(one.rate_per_s), spread, bar)
    return table
