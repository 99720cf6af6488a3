"""The main job: all real orders through a real mesh, and the proof that each came through once."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import StreamInfo

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError, WrongTotalsError
from mesh_lab.measure.measurement import Measurement
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.event_store import WORKERS, create_event_store, open_event_store
from mesh_lab.orders.job.services import Job, remove_services, start_services
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM, Event, Totals, check_totals, next_events, totals_of
from mesh_lab.orders.read_model import Summary, ask_read_model
from mesh_lab.patterns.jetstream_api import is_transient, stream_names
from mesh_lab.patterns.wait import retry
from mesh_lab.servers.borrowed import in_use, use
from mesh_lab.servers.mesh import Mesh

ASK_EVERY_S = 0.1
REPLICAS = 3
PASSING = {"mesh-lab": "a run of the main job, which removes this stream when it ends"}
"""Labels of a stream that goes with its run; of a run that was killed, the next one removes it."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OrderRun:
    """Totals, rates and faults of a run."""

    totals: Totals
    """What the read model counted, and the check confirmed."""
    stages: tuple[Measurement, ...]
    faults: tuple[str, ...]
    """What was killed and restarted on the way."""
    replicas: int
    """Copies of the stream."""


async def run_orders(
    mesh: Mesh,
    *,
    workers: int = 2,
    first: int | None = None,
    file: Path | None = None,
    kill_one: bool = False,
    keep: bool = True,
    progress: Callable[[Summary], None] | None = None,
    within: float = 120.0,
) -> OrderRun:
    """Send orders through the mesh with a publisher, workers and a read model, each a process or container of its own.

    Args:
        mesh: Where to run it. No stream there may take orders, but one that a killed run with ``keep=False`` left: it
            is removed.
        workers: Number of workers in the one group.
        first: Number of orders; ``None`` for all.
        file: Orders in the data set's format instead of the data set.
        kill_one: Kill the server that leads the stream when half of the orders are placed, and restart it.
        keep: Leave the stream where it is; ``False`` removes it, for a mesh that outlives the run.
        progress: Called with the read model's summary, about ten times a second.
        within: Seconds until every order must be through.

    Raises:
        OrderFormatError: A row of ``file`` is malformed.
        UnsupportedByBackendError: ``kill_one``, and there are no three servers that may be killed.
        WrongTotalsError: An order was lost, doubled or changed; the message shows the difference. Or somebody else's
            are there: then nothing was stored.
        ProcessEndedError: A service ended with an error, or (:class:`~mesh_lab.errors.EngineRefusedError`) its image
            could not be built or its container not started.
        NotReadyError: Not every order was through in time.
    """
    expected, expected_events = _expectation(file, first)
    if kill_one and ("kill" not in mesh.traits.gives or len(mesh.servers) < REPLICAS):
        raise UnsupportedByBackendError(
            f"{len(mesh.servers)} {mesh.traits.label}, expected {REPLICAS} that may be killed; leave kill_one out"
        )
    client = await mesh.connect(name="order-run")
    await _make_way(mesh, client, keep=keep)
    faults: list[str] = []
    killing: asyncio.Task[None] | None = None
    # Beside the stream's leader, every message and every acknowledgement saves a hop between servers.
    replicas = REPLICAS if len(mesh.servers) >= REPLICAS else 1
    labels = None if keep else PASSING
    await retry(lambda: create_event_store(client.jetstream(), replicas=replicas, metadata=labels))
    leader = _leader(await open_event_store(client))
    running = start_services(mesh, Job(workers, replicas, first, file), near=leader if leader in mesh.servers else None)
    async with _stream_of_the_run(client, keep=keep), running as services:
        started = time.monotonic()
        while True:
            services.check()
            summary = await _unless_transient(ask_read_model(client, within=1.0))
            if summary is not None:
                if progress is not None:
                    progress(summary)
                if kill_one and killing is None and summary.totals.orders >= expected.orders // 2:
                    killing = asyncio.create_task(_kill_leader(mesh, client, faults))
                through = sum(summary.events.values()) >= sum(expected_events.values()) and services.published
                if through and await _group_is_done(client):
                    break
            if time.monotonic() - started > within:
                if summary is not None:
                    check_totals(summary.totals, expected)
                raise NotReadyError(
                    f"not every order was through after {within} s; seen {summary and summary.events}, "
                    f"expected {expected_events}, each acknowledged to the group of workers"
                )
            await asyncio.sleep(ASK_EVERY_S)
        elapsed_s = time.monotonic() - started
        if killing is not None:
            await killing
        faults += [f"{name} killed" for name in services.killed_workers]
        reports = await services.finish()
        await _check(client, summary, expected, expected_events)
    placed_s = next(float(str(report["elapsed_s"])) for report in reports if report["service"] == "publisher")
    total_events = sum(expected_events.values())
    stages = (
        Measurement("orders placed", "acknowledged", expected.orders, (placed_s,)),
        Measurement("orders through all their events", "processed", expected.orders, (elapsed_s,)),
        Measurement("events stored on every replica and read", "processed", total_events, (elapsed_s,)),
    )
    return OrderRun(summary.totals, stages, tuple(faults), replicas)


def _expectation(file: Path | None, first: int | None) -> tuple[Totals, dict[Event, int]]:
    """Return what must come out: the totals, and how many orders come to each event."""
    if file is None and first is None:  # known, and a second saved
        return EVERYTHING, dict.fromkeys(("placed", "paid", "shipped"), EVERYTHING.orders)
    orders = list(read_orders(file, first=first))
    follow = [(order, ("placed", *next_events(order))) for order in orders]
    totals = msgspec.structs.replace(
        totals_of(orders),  # a declined order is not paid, and nothing is shipped
        cds=sum(order.cds for order, events in follow if "shipped" in events),
        cents=sum(order.cents for order, events in follow if "paid" in events),
    )
    return totals, dict(Counter(event for _, events in follow for event in events))


async def _make_way(mesh: Mesh, client: Client, *, keep: bool) -> None:
    """Return when nothing is in the way of the run, which has stored nothing yet."""
    if not keep:  # on servers that outlive it, where somebody else may be at work
        if await in_use(client):
            raise WrongTotalsError("a lesson or another run works in this account, and its orders would mix with these")
        await use(client)
    js, names = client.jetstream(), []
    with contextlib.suppress(nats.js.errors.NotFoundError):
        left = (await js.stream_info(STREAM)).config.metadata or {}
        names = [STREAM]
        if not keep and PASSING.items() <= left.items():
            await asyncio.to_thread(remove_services, mesh)
            names = [] if await js.delete_stream(STREAM) else names
    if names := sorted({*names, *await stream_names(client, ALL_SUBJECTS)}):
        raise WrongTotalsError(
            f"orders of others would mix with the run's: {', '.join(names)} takes their name or subjects; "
            "use another account or mesh, or remove it with `mesh-lab clear`"
        )


@contextlib.asynccontextmanager
async def _stream_of_the_run(client: Client, *, keep: bool) -> AsyncIterator[None]:
    """Remove the stream when the run is over, unless it is to be kept; failing to must not hide the run's outcome."""
    try:
        yield
    finally:
        if not keep:
            with contextlib.suppress(TimeoutError, nats.errors.Error):
                await client.jetstream(timeout=5.0).delete_stream(STREAM)


async def _unless_transient(request: Awaitable[T]) -> T | None:
    """Return what a request returns, or ``None`` while a service starts, a server is away or a leader is elected."""
    try:
        return await request
    except Exception as err:
        if not is_transient(err):
            raise
        return None


async def _group_is_done(client: Client) -> bool:
    """Return whether no order waits for a worker, or for redelivery after a lost acknowledgement."""
    group = await _unless_transient(client.jetstream(timeout=1.0).consumer_info(STREAM, WORKERS))
    return group is not None and not group.num_pending and not group.num_ack_pending


def _leader(info: StreamInfo) -> str | None:
    return info.cluster.leader if info.cluster is not None else None


async def _kill_leader(mesh: Mesh, client: Client, faults: list[str]) -> None:
    leader = _leader(await retry(lambda: client.jetstream(timeout=2.0).stream_info(STREAM)))
    if leader is None:
        raise NotReadyError(f"stream {STREAM} names no leader to kill; a mesh of three servers has one")
    await mesh.kill(leader)
    faults.append(f"{leader} killed")
    await mesh.restart(leader)
    faults.append(f"{leader} restarted")


async def _check(client: Client, summary: Summary, expected: Totals, expected_events: dict[Event, int]) -> None:
    """Compare what came out with what went in: by the read model, and by the stream's and the group's own counts."""
    check_totals(summary.totals, expected)
    js = client.jetstream(timeout=2.0)
    stored = (await retry(lambda: js.stream_info(STREAM))).state
    group = await retry(lambda: js.consumer_info(STREAM, WORKERS))
    total = sum(expected_events.values())
    facts = {
        "events by kind": (dict(summary.events), expected_events),
        "events counted twice": (summary.doubled, 0),
        "messages in the stream": (stored.messages, total),
        "orders not yet taken": (group.num_pending, 0),
        "orders taken and not acknowledged": (group.num_ack_pending, 0),
    }
    wrong = [f"{what}: seen {seen}, expected {want}" for what, (seen, want) in facts.items() if seen != want]
    if wrong:
        raise WrongTotalsError("wrong counts: " + "; ".join(wrong))
