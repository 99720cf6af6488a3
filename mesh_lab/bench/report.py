"""The report of a benchmark: tables with bars for people, JSON with a stable schema for machines.

The schema is the one of :class:`BenchReport`; ``mesh-lab bench --schema`` prints it as JSON Schema. A field is never
renamed or given another unit; what comes new gets a new ``schema`` number.
"""

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from rich.bar import Bar
from rich.console import Console, Group
from rich.table import Table

from mesh_lab.bench.nats_cli import NatsCliResult
from mesh_lab.bench.suite import CaseResult
from mesh_lab.measure.measurement import NOISY_SPREAD, rounded
from mesh_lab.measure.reference import Machine, this_machine

SCHEMA = 1
BAR_CHARACTERS = 24


class BenchResult(msgspec.Struct, frozen=True):
    """All runs of one case on one kind of stream."""

    ladder: str
    """``publish``, ``consume`` or ``end to end``."""
    rung: str
    """What was done."""
    kind: str
    """What stopped the clock: ``acknowledged`` (stored) or ``processed`` (a worker's effect)."""
    unit: str
    """What ``rate_per_s`` counts: ``messages`` or ``orders``."""
    replicas: int
    """Copies of the stream."""
    storage: str
    """``file`` or ``memory``."""
    count: int
    """Messages or orders in each run."""
    stored_messages: int
    """Messages in the stream after each run; fewer than orders in the bulk lane."""
    payload_bytes: int
    """Size of each payload; 0 where real orders have their own."""
    elapsed_s: list[float]
    """Seconds of each run, in the order in which they were made."""
    rate_per_s: float
    """``count`` for each second of the median run."""
    spread: float
    """Distance from the fastest run to the slowest, as a share of the median."""


class BenchReport(msgspec.Struct, frozen=True):
    """The whole run."""

    schema: int
    """Version of this format."""
    machine: Machine
    """What it ran on."""
    results: list[BenchResult]
    """In the order of the ladder."""
    peers: list[NatsCliResult]
    """The same machine and servers under another client; empty without ``--peer``."""


def report_of(results: Sequence[CaseResult], peers: Sequence[NatsCliResult] = ()) -> BenchReport:
    """Return the report of a run."""
    versions = sorted({result.measurement.server_version for result in results})
    return BenchReport(
        schema=SCHEMA,
        machine=this_machine(
            python=platform.python_version(), nats_server=", ".join(versions), nats_py=version("nats-py")
        ),
        results=[_result(result) for result in results],
        peers=list(peers),
    )


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


def as_json(report: BenchReport) -> str:
    """Return a report as JSON, indented."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of :func:`as_json`."""
    return msgspec.json.schema(BenchReport)


def show(report: BenchReport, console: Console) -> None:
    """Print a table for each ladder, a bar behind each rate."""
    parts: list[Any] = []
    for ladder in dict.fromkeys(result.ladder for result in report.results):
        parts.append(_table(ladder, [result for result in report.results if result.ladder == ladder], report.peers))
    machine = report.machine
    parts.append(
        f"{machine.cpus} cores, {machine.memory_gib:g} GiB, {machine.system}; nats-server {machine.nats_server}, "
        f"nats-py {machine.nats_py}, Python {machine.python}"
    )
    if any(result.spread >= NOISY_SPREAD for result in report.results):
        parts.append("Runs that lie 10 % or more apart are rough numbers: compare only what differs by more.")
    console.print(Group(*parts))


def _table(ladder: str, results: Sequence[BenchResult], cli: Sequence[NatsCliResult]) -> Table:
    table = Table(title=f"{ladder}: {results[0].unit} {results[0].kind} a second, median", title_justify="left")
    table.add_column("how", no_wrap=True)
    for column in ("stream", "a second", "spread"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    rows: list[tuple[str, BenchResult | NatsCliResult, str]] = [(one.rung, one, f"{one.spread:.0%}") for one in results]
    rows += [(one.name, one, "") for one in cli if one.ladder == ladder]
    longest = max(one.rate_per_s for _, one, _ in rows)
    for name, one, spread in rows:
        bar = Bar(longest, 0, one.rate_per_s, width=BAR_CHARACTERS)
        table.add_row(name, f"R{one.replicas} {one.storage}", rounded(one.rate_per_s), spread, bar)
    return table


def write(report: BenchReport, *, json: bool) -> None:
    """Write a report to standard output: JSON, or tables."""
    if json:
        sys.stdout.write(as_json(report) + "\n")
    else:
        show(report, Console())
