"""The command ``mesh-lab bench``."""

import asyncio
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mesh_lab.bench.cases import CASES, BenchCase
from mesh_lab.bench.nats_cli import COMMANDS, NatsCliResult, find_nats_cli, run_nats_cli
from mesh_lab.bench.report import json_schema, report_of, write
from mesh_lab.bench.suite import PAYLOAD_BYTES, CaseResult, StreamSetup, run_suite
from mesh_lab.servers.start import start_mesh

ROUNDS, QUICK_ROUNDS = 5, 2
WARMUP, QUICK_WARMUP = 1, 0  # a round to warm up would take a third of the minute
SETUPS = (StreamSetup(1, "file"), StreamSetup(3, "file"), StreamSetup(1, "memory"), StreamSetup(3, "memory"))
QUICK_SETUPS = SETUPS[:2]


def run_bench(*, quick: bool, as_json: bool, peer: bool, ladders: Sequence[str] = ()) -> int:
    """Run the benchmark on servers of its own, print the report, and return the exit code.

    Progress goes to standard error, so that standard output holds the report alone.

    Args:
        quick: Only the cases that matter most, on file streams, two rounds: under a minute.
        as_json: JSON instead of tables.
        peer: The ``nats`` tool's benchmark beside it.
        ladders: Which ladders to run; none means all.

    Raises:
        NoNatsCliError: ``peer`` was asked for, and the tool is not installed.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        ProcessEndedError: A child ended without a result.
    """
    path = find_nats_cli() if peer else None
    cases = [case for case in CASES if (case.quick or not quick) and (not ladders or case.ladder in ladders)]
    setups = QUICK_SETUPS if quick else SETUPS
    rounds, warmup = (QUICK_ROUNDS, QUICK_WARMUP) if quick else (ROUNDS, WARMUP)
    results, peers = asyncio.run(_run(cases, setups, rounds, warmup, path))
    write(report_of(results, peers), json=as_json)
    return 0


async def _run(
    cases: Sequence[BenchCase], setups: Sequence[StreamSetup], rounds: int, warmup: int, path: str | None
) -> tuple[list[CaseResult], list[NatsCliResult]]:
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
                    peers += await asyncio.to_thread(
                        run_nats_cli, path, mesh, replicas=replicas, payload_bytes=PAYLOAD_BYTES, progress=step
                    )
    return results, peers


def print_schema() -> int:
    """Print the JSON Schema of the report and return the exit code."""
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
    return 0
