"""The main job at a terminal: a progress bar while it runs, a table of rates when it ends."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.job.run import run_orders
from mesh_lab.orders.order import Event
from mesh_lab.orders.read_model import Summary
from mesh_lab.servers.backend import Backend, traits_of
from mesh_lab.servers.start import chosen_backend, start_mesh

SHOWN_EVENTS: tuple[Event, ...] = ("placed", "paid", "shipped")


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
