"""The main job at a terminal: a progress bar while it runs, a table of rates when it ends."""

import asyncio
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from mesh_lab.measure.go_twin import GoTwin
from mesh_lab.measure.measurement import Measurement
from mesh_lab.orders.dataset import EVERYTHING, data_set, read_orders
from mesh_lab.orders.job.run import REPLICAS, run_orders
from mesh_lab.orders.order import STREAM, Event, Totals, check_totals, totals_of
from mesh_lab.orders.read_model import Summary
from mesh_lab.servers.backend import Backend, traits_of
from mesh_lab.servers.start import chosen_backend, start_mesh

SHOWN_EVENTS: tuple[Event, ...] = ("placed", "paid", "shipped")
GO_ROUNDS = 5


class GoRun(msgspec.Struct, frozen=True):
    """What the main job in Go reports: its time from the start of its processes, and the totals of each event."""

    began_ns: int
    ended_ns: int
    events: dict[Event, Totals]


async def run_with_progress(
    *,
    workers: int,
    first: int | None = None,
    file: Path | None = None,
    kill_one: bool = False,
    backend: Backend | None = None,
) -> int:
    """Run the main job on three servers of a backend, show it, and return the exit code.

    Arguments and errors are those of :func:`mesh_lab.orders.job.run.run_orders` and :func:`mesh_lab.start_mesh`.
    Containers and external servers stay as they are, without the run's stream.
    """
    console = Console()
    count = EVERYTHING.orders if file is None and first is None else sum(1 for _ in read_orders(file, first=first))
    started = time.monotonic()
    chosen = backend or chosen_backend()
    asked = 3 if traits_of(chosen).configurable else 1  # or as many as there are
    async with await start_mesh(servers=asked, backend=chosen) as mesh:
        ready_s = time.monotonic() - started
        columns = (TextColumn("{task.description:>8}"), BarColumn(bar_width=None), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
            tasks = {event: bars.add_task(event, total=count) for event in SHOWN_EVENTS}

            def show(summary: Summary) -> None:
                for event, task in tasks.items():
                    bars.update(task, completed=summary.events.get(event, 0))

            keep = mesh.traits.temporary  # it goes with the mesh; elsewhere it would be in the way of the next run
            run = await run_orders(
                mesh, workers=workers, first=first, file=file, kill_one=kill_one, keep=keep, progress=show
            )
    numbers = [Column(name, justify="right") for name in ("messages", "seconds", "a second")]
    title = f"servers: {len(mesh.servers)}, ready in {ready_s:.2f} s; a file stream, replicas: {run.replicas}"
    title += f"; workers: {workers}"
    table = Table("what", "timed until", *numbers, title=title)
    for stage in run.stages:
        counts = (f"{stage.messages:,}", f"{stage.median_s:.2f}", f"{stage.rate_per_s:,.0f}")
        table.add_row(stage.name, stage.kind, *counts)
    console.print(table)
    for fault in run.faults:
        console.print(f"fault: {fault}")
    console.print(f"[bold green]exact[/]: {run.totals}, each order once; {time.monotonic() - started:.1f} s in all")
    return 0


async def run_beside_go(*, workers: int, first: int | None = None, rounds: int = GO_ROUNDS) -> int:
    """Run the main job in Python and in Go in turn, on three servers of its own, show both, and return the exit code.

    Raises:
        NoGoError: There is no Go here, or the twin cannot be built with it.
        WrongTotalsError: An order was lost, doubled or changed.
        ProcessEndedError: A service, or the twin, ended with an error.
    """
    console = Console()
    twin = await asyncio.to_thread(GoTwin.build, data_set())
    flags = (f"-count={first or 0}", f"-replicas={REPLICAS}", f"-workers={workers}")
    expected = totals_of(read_orders(first=first))
    elapsed_s: dict[str, list[float]] = {"Python": [], "Go": []}
    async with await start_mesh(servers=REPLICAS, backend="local") as mesh:
        client = await mesh.connect(name="rounds")
        for turn in range(rounds):
            for language, seconds in list(elapsed_s.items())[:: -1 if turn % 2 else 1]:  # each goes first in its turn
                console.print(f"round {turn + 1} of {rounds}: {language}")
                if language == "Python":
                    seconds.append((await run_orders(mesh, workers=workers, first=first)).stages[1].median_s)
                    await client.jetstream(timeout=5.0).delete_stream(STREAM)
                    continue
                where, mark = mesh.connect_options(), mesh.owner
                found = await asyncio.to_thread(twin.run, "orders", *flags, options=where, owner=mark, result=GoRun)
                for event in SHOWN_EVENTS:
                    check_totals(found.events[event], expected)
                seconds.append((found.ended_ns - found.began_ns) / 1e9)
    python, go = (Measurement(name, "processed", expected.orders, tuple(runs)) for name, runs in elapsed_s.items())
    numbers = (Column(name, justify="right") for name in ("seconds", "orders a second", "spread"))
    table = Table("the main job in", *numbers)
    for one, versions in ((python, f"nats-py {python.client_version}"), (go, twin.versions)):
        table.add_row(f"{one.name} ({versions})", f"{one.median_s:.2f}", f"{one.rate_per_s:,.0f}", f"{one.spread:.0%}")
    console.print(table)
    console.print(f"Python / Go: {python.rate_per_s / go.rate_per_s:.2f}")
    console.print(f"[bold green]exact[/] each time: {expected}")
    return 0
