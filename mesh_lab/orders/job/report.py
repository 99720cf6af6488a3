"""The main job at a terminal: a progress bar while it runs, a table of rates when it ends."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.job.run import OrderRun, run_orders
from mesh_lab.orders.order import Event
from mesh_lab.orders.read_model import Summary
from mesh_lab.servers.backend import Backend
from mesh_lab.servers.start import start_mesh

SHOWN_EVENTS: tuple[Event, ...] = ("placed", "paid", "shipped")


async def run_with_progress(
    *,
    workers: int,
    first: int | None = None,
    file: Path | None = None,
    kill_one: bool = False,
    backend: Backend | None = None,
) -> int:
    """Run the main job on three servers, show it, and return the exit code.

    Args:
        workers: Number of workers, each a process or a container.
        first: Number of orders; ``None`` for all.
        file: Orders in the data set's format instead of the data set.
        kill_one: Kill the stream's leader half-way and restart it.
        backend: Where to run it, as in :func:`mesh_lab.start_mesh`. Containers stay up, without the run's stream.

    Raises:
        MeshLabError: The run failed; see :func:`mesh_lab.orders.job.run.run_orders`.
    """
    console = Console()
    count = EVERYTHING.orders if file is None and first is None else sum(1 for _ in read_orders(file, first=first))
    started = time.monotonic()
    async with await start_mesh(servers=3, backend=backend) as mesh:
        ready_s = time.monotonic() - started
        with Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        ) as bars:
            tasks = {event: bars.add_task(event, total=count) for event in SHOWN_EVENTS}

            def show(summary: Summary) -> None:
                for event, task in tasks.items():
                    bars.update(task, completed=summary.events.get(event, 0))

            keep = mesh.traits.temporary  # it goes with the mesh; elsewhere it would be in the way of the next run
            run = await run_orders(
                mesh, workers=workers, first=first, file=file, kill_one=kill_one, keep=keep, progress=show
            )
    console.print(_table(run, servers=len(mesh.servers), workers=workers, ready_s=ready_s))
    for fault in run.faults:
        console.print(f"fault: {fault}")
    console.print(f"[bold green]exact[/]: {run.totals}, each order once; {time.monotonic() - started:.1f} s in all")
    return 0


def _table(run: OrderRun, *, servers: int, workers: int, ready_s: float) -> Table:
    table = Table(title=f"{servers} servers ready in {ready_s:.2f} s, a file stream of 3 replicas, {workers} workers")
    table.add_column("what")
    table.add_column("timed until")
    for column in ("messages", "seconds", "a second"):
        table.add_column(column, justify="right")
    for stage in run.stages:
        table.add_row(
            stage.name, stage.kind, f"{stage.messages:,}", f"{stage.median_s:.2f}", f"{stage.rate_per_s:,.0f}"
        )
    return table
