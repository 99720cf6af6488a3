"""The main job at a terminal: a progress bar while it runs, a table of rates when it ends."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from mesh_lab.measure.go_twin import GoTwin
from mesh_lab.measure.measurement import Measurement
from mesh_lab.measure.processor_time import processor_seconds
from mesh_lab.orders.dataset import EVERYTHING, data_set, read_orders
from mesh_lab.orders.job.run import REPLICAS, run_orders
from mesh_lab.orders.job.world import run_world
from mesh_lab.orders.order import STREAM, Event, Totals, check_totals, dollars, totals_of
from mesh_lab.orders.read_model import Summary
from mesh_lab.orders.saga import LIVES
from mesh_lab.orders.saga_audit import EndTotals
from mesh_lab.security import ROOM, Authority, Keyring, Operator, announce
from mesh_lab.servers.backend import Backend, traits_of
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import chosen_backend, start_mesh

SHOWN_EVENTS: tuple[Event, ...] = ("placed", "paid", "shipped")
GO_ROUNDS, WORLD_ORDERS = 5, 10_000
PROCESSES = {
    f"{REPLICAS} servers": ("servers",),
    "publisher": ("publisher",),
    "workers": ("worker",),
    "reader": ("read-model", "reader"),
}
"""Who works in the main job, and what their processes are called."""


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
    saga: bool = False,
    kill_one: bool = False,
    secure: bool = False,
    backend: Backend | None = None,
) -> int:
    """Run the main job on three servers of a backend, show it, and return the exit code.

    With ``secure``, every connection talks TLS, and each process is a user of its own, with the rights of its role
    alone, in an account of the orders. The credentials end with the mesh.

    Arguments and errors are those of :func:`mesh_lab.orders.job.run.run_orders` and :func:`mesh_lab.start_mesh`.
    Containers and external servers stay as they are, without the run's stream.
    """
    console = Console()
    count = EVERYTHING.orders if file is None and first is None else sum(1 for _ in read_orders(file, first=first))
    started = time.monotonic()
    chosen = backend or chosen_backend()
    asked = 3 if traits_of(chosen).configurable else 1  # or as many as there are
    operator, tls = (Operator(), Authority()) if secure else (None, None)
    async with await start_mesh(servers=asked, backend=chosen, operator=operator, tls=tls) as mesh:
        keyring = await open_account(mesh, operator) if operator else None
        ready_s = time.monotonic() - started
        columns = (TextColumn("{task.description:>8}"), BarColumn(bar_width=None), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as bars:
            shown = LIVES["shipped"] if saga else SHOWN_EVENTS
            tasks = {event: bars.add_task(event, total=count) for event in shown}

            def show(summary: Summary) -> None:
                for event, task in tasks.items():
                    bars.update(task, completed=summary.events.get(event, 0))

            keep = mesh.traits.temporary  # it goes with the mesh; elsewhere it would be in the way of the next run
            run = await run_orders(
                mesh,
                workers=workers,
                first=first,
                file=file,
                saga=saga,
                kill_one=kill_one,
                keep=keep,
                progress=show,
                file_of=keyring.file if keyring else None,
            )
    numbers = [Column(name, justify="right") for name in ("messages", "seconds", "a second")]
    title = f"servers: {len(mesh.servers)}, ready in {ready_s:.2f} s; a file stream, replicas: {run.replicas}"
    title += f"; {'payment, stock, shipping: each' if saga else 'workers:'} {workers}"
    table = Table("what", "timed until", *numbers, title=title)
    for stage in run.stages:
        counts = (f"{stage.messages:,}", f"{stage.median_s:.2f}", f"{stage.rate_per_s:,.0f}")
        table.add_row(stage.name, stage.kind, *counts)
    console.print(table)
    if keyring:
        console.print(
            f"secure: TLS on every connection; one account, {len(keyring.users)} users, each with its role's rights"
        )
    for fault in run.faults:
        console.print(f"fault: {fault}")
    what = f"{run.totals}, each order once"
    if saga:
        console.print(_table_of(run.ends))
        what = _sum_of(run.ends)
    console.print(f"[bold green]exact[/]: {what}; {time.monotonic() - started:.1f} s in all")
    return 0


async def open_account(mesh: Mesh, operator: Operator, **limits: int) -> Keyring:
    """Return the keyring of a new account for the orders, which every server of a mesh knows by then.

    Args:
        mesh: A mesh with that operator.
        operator: Signs the account.
        limits: As for :meth:`Operator.account`, on top of those of :data:`mesh_lab.security.roles.ROOM`.
    """
    account = operator.account("ORDERS", **{**ROOM, **limits})
    async with await mesh.connect(name="account", system=True) as system:
        await announce(system, account, servers=len(mesh.servers))
    return Keyring(account, mesh.directory / "credentials")


def _sum_of(ends: Sequence[EndTotals]) -> str:
    cents = sum(end.cents for end in ends)
    return f"{sum(end.orders for end in ends):,} orders, {dollars(cents)}, each in one end"


def _table_of(ends: Sequence[EndTotals]) -> Table:
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("orders", "worth", *EndTotals._fields[3:])]
    # Narrow, so that all of the data set's dollars and cents stand in 80 columns.
    table = Table("end", *numbers, title="what the orders came to, in dollars", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, orders, *money, reserved, released in ends:
        amounts = (dollars(cents).removeprefix("$") for cents in money)
        table.add_row(name, f"{orders:,}", *amounts, f"{reserved:,}", f"{released:,}")
    return table


async def run_whole_world(*, seed: int, first: int | None) -> int:
    """Run :func:`mesh_lab.orders.job.world.run_world`, show what each part did, and return the exit code."""
    console, started = Console(), time.monotonic()
    console.print(f"seed: {seed}")

    def tell(line: str) -> None:
        console.print(f"{time.monotonic() - started:5.1f} s  {line}")

    world = await run_world(seed=seed, first=first or WORLD_ORDERS, tell=tell)
    table = Table("part", "where", "what it did", title="the whole mesh at once")
    for row in world.parts:
        table.add_row(*row)
    console.print(table)
    console.print(_table_of(world.ends))
    console.print(f"[bold green]exact[/]: {_sum_of(world.ends)}; {time.monotonic() - started:.1f} s in all")
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
    used_s: dict[str, list[dict[str, float]]] = {"Python": [], "Go": []}
    async with await start_mesh(servers=REPLICAS, backend="local") as mesh:
        client = await mesh.connect(name="rounds")
        for turn in range(rounds):
            for language, seconds in list(elapsed_s.items())[:: -1 if turn % 2 else 1]:  # each goes first in its turn
                console.print(f"round {turn + 1} of {rounds}: {language}")
                async with processor_seconds() as used:
                    if language == "Python":
                        seconds.append((await run_orders(mesh, workers=workers, first=first)).stages[1].median_s)
                    else:
                        where, mark = mesh.connect_options(), mesh.owner
                        job = partial(twin.run, "orders", *flags, options=where, owner=mark, result=GoRun)
                        found = await asyncio.to_thread(job)
                used_s[language].append(used)
                if language == "Python":
                    await client.jetstream(timeout=5.0).delete_stream(STREAM)
                    continue
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
    numbers = (Column(name, justify="right") for name in used_s)
    table = Table("processor time, microseconds an order", *numbers)
    for who, names in PROCESSES.items():
        medians = (statistics.median(sum(map(run.__getitem__, names)) for run in runs) for runs in used_s.values())
        table.add_row(who, *(f"{seconds / expected.orders * 1e6:,.0f}" for seconds in medians))
    console.print(table)
    console.print(f"[bold green]exact[/] each time: {expected}")
    return 0
