"""The main job: all real orders through a real mesh, and the proof that each came through once."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import StreamInfo

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError, WrongTotalsError
from mesh_lab.measure.measurement import Measurement
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.event_store import PLAIN, Deployment, open_event_store
from mesh_lab.orders.job.services import CredentialsOf, Job, remove_services, start_services
from mesh_lab.orders.order import STREAM, Event, Totals, check_totals, next_events, totals_of
from mesh_lab.orders.read_model import Summary, ask_read_model
from mesh_lab.orders.saga import LIVES, SAGA, fate
from mesh_lab.orders.saga_audit import EndTotals, audit_saga, expected_ends
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
    ends: tuple[EndTotals, ...] = ()
    """What the orders of a saga came to."""


async def run_orders(
    mesh: Mesh,
    *,
    workers: int = 2,
    first: int | None = None,
    file: Path | None = None,
    saga: bool = False,
    kill_one: bool = False,
    keep: bool = True,
    progress: Callable[[Summary], None] | None = None,
    file_of: CredentialsOf | None = None,
    within: float | None = None,
) -> OrderRun:
    """Send orders through the mesh with a publisher, workers and a read model, each a process or container of its own.

    In a saga, payment, stock and shipping take the workers' place, and each order is shipped, cancelled or declined.

    Args:
        mesh: Where to run it. No stream there may take orders, but one that a killed run with ``keep=False`` left: it
            is removed.
        workers: Number of workers in the one group; of a saga's services, in each.
        first: Number of orders; ``None`` for all.
        file: Orders in the data set's format instead of the data set.
        saga: Take each order through its whole life, and audit what became of it.
        kill_one: Kill the server that leads the stream when half of the orders are placed, and restart it; in a saga,
            kill one of its services, too, if it leaves another one behind.
        keep: Leave the stream where it is; ``False`` removes it, for a mesh that outlives the run.
        progress: Called with the read model's summary, about ten times a second.
        file_of: Returns a credentials file for each process, such as :meth:`Keyring.file`; one as ``"deployer"`` makes
            streams and consumers, one as ``"auditor"`` checks the totals. ``None``: all are the mesh's own user.
        within: Seconds until every order must be through; by default 120, and 360 for a saga.

    Raises:
        OrderFormatError: A row of ``file`` is malformed.
        UnsupportedByBackendError: ``kill_one``, and there are no three servers that may be killed.
        nats.js.errors.APIError: The account has no room for the stream; nothing is left behind.
        WrongTotalsError: An order was lost, doubled or changed; the message shows the difference. Or somebody else's
            are there: then nothing was stored.
        ProcessEndedError: A service ended with an error, or (:class:`~mesh_lab.errors.EngineRefusedError`) its image
            could not be built or its container not started.
        NotReadyError: Not every order was through in time.
    """
    expected, expected_events, right_ends = _expectation(file, first, saga=saga)
    deployment, within = SAGA if saga else PLAIN, within or (360.0 if saga else 120.0)
    if kill_one and ("kill" not in mesh.traits.gives or len(mesh.servers) < REPLICAS):
        raise UnsupportedByBackendError(
            f"{len(mesh.servers)} {mesh.traits.label}, expected {REPLICAS} that may be killed; leave kill_one out"
        )
    deployer, client = [await _connect(mesh, role, file_of) for role in ("deployer", "auditor")]
    await _make_way(mesh, deployer, deployment, keep=keep)
    faults: list[str] = []
    killing: asyncio.Task[None] | None = None
    # Beside the stream's leader, every message and every acknowledgement saves a hop between servers.
    replicas = REPLICAS if len(mesh.servers) >= REPLICAS else 1
    labels = None if keep else PASSING
    leader = _leader(await open_event_store(deployer, replicas=replicas, deployment=deployment, metadata=labels))
    near = leader if leader in mesh.servers else None
    running = start_services(mesh, Job(workers, replicas, first, file, saga), near=near, file_of=file_of)
    async with _streams_of_the_run(deployer, deployment, keep=keep), running as services:
        started = time.monotonic()
        while True:
            services.check()
            summary = await _unless_transient(ask_read_model(client, within=1.0))
            if summary is not None:
                if progress is not None:
                    progress(summary)
                if kill_one and killing is None and summary.totals.orders >= expected.orders // 2:
                    for name in services.expendable[: int(saga)]:
                        await services.kill(name)
                    killing = asyncio.create_task(_kill_leader(mesh, client, faults))
                through = sum(summary.events.values()) >= sum(expected_events.values()) and services.published
                if through and all([await group_is_done(client, group) for group in deployment.groups]):
                    break
            if time.monotonic() - started > within:
                if summary is not None:
                    check_totals(summary.totals, expected)
                raise NotReadyError(
                    f"not every order was through after {within} s; seen {summary and summary.events}, "
                    f"expected {expected_events}, each acknowledged to its group"
                )
            await asyncio.sleep(ASK_EVERY_S)
        elapsed_s = time.monotonic() - started
        if killing is not None:
            await killing
        faults += [f"{name} killed" for name in services.killed_workers]
        reports = await services.finish()
        await _check(client, summary, expected, expected_events, deployment)
        ends = await audit_saga(client, consumer="audit" if file_of else None) if saga else ()
        if ends != right_ends:
            raise WrongTotalsError(f"wrong ends: seen {ends}, expected {right_ends}")
    placed_s = next(float(str(report["elapsed_s"])) for report in reports if report["service"] == "publisher")
    total_events = sum(expected_events.values())
    stages = (
        Measurement("orders placed", "acknowledged", expected.orders, (placed_s,)),
        Measurement("orders through all their events", "processed", expected.orders, (elapsed_s,)),
        Measurement("events stored on every replica and read", "processed", total_events, (elapsed_s,)),
    )
    return OrderRun(summary.totals, stages, tuple(faults), replicas, ends)


async def _connect(mesh: Mesh, role: str, file_of: CredentialsOf | None) -> Client:
    user: dict[str, Any] = {"user_credentials": file_of(role, role)} if file_of else {}
    return await mesh.connect(name="order-run", **user)


def _expectation(
    file: Path | None, first: int | None, *, saga: bool
) -> tuple[Totals, dict[Event, int], tuple[EndTotals, ...]]:
    """Return what must come out: the totals, how many orders come to each event, and what those of a saga come to."""
    if file is None and first is None and not saga:  # known, and a second saved
        return EVERYTHING, dict.fromkeys(("placed", "paid", "shipped"), EVERYTHING.orders), ()
    orders = list(read_orders(file, first=first))
    follow = [(order, LIVES[fate(order)] if saga else ("placed", *next_events(order))) for order in orders]
    totals = msgspec.structs.replace(
        totals_of(orders),  # a declined order is not paid, and nothing is shipped
        cds=sum(order.cds for order, events in follow if "shipped" in events),
        cents=sum(order.cents for order, events in follow if "paid" in events),
    )
    ends = expected_ends(orders) if saga else ()
    return totals, dict(Counter(event for _, events in follow for event in events)), ends


async def _make_way(mesh: Mesh, client: Client, deployment: Deployment, *, keep: bool) -> None:
    """Return when nothing is in the way of the run, which has stored nothing yet."""
    if not keep:  # on servers that outlive it, where somebody else may be at work
        if await in_use(client):
            raise WrongTotalsError("a lesson or another run works in this account, and its orders would mix with these")
        await use(client)
    js, names = client.jetstream(), set[str]()
    # Retried: a server may know an account and enable its JetStream a moment later.
    for name, subjects in SAGA.streams.items():  # also what a killed run of the other kind left
        with contextlib.suppress(nats.js.errors.NotFoundError):
            left = (await retry(partial(js.stream_info, name))).config.metadata or {}
            if not keep and PASSING.items() <= left.items():
                await asyncio.to_thread(remove_services, mesh)
                await js.delete_stream(name)
            elif name in deployment.streams:
                names.add(name)
        if name in deployment.streams:
            names.update(await retry(partial(stream_names, client, subjects)))
    if names:
        raise WrongTotalsError(
            f"orders of others would mix with the run's: {', '.join(sorted(names))} takes their name or subjects; "
            "use another account or mesh, or remove it with `mesh-lab clear`"
        )


@contextlib.asynccontextmanager
async def _streams_of_the_run(client: Client, deployment: Deployment, *, keep: bool) -> AsyncIterator[None]:
    """Remove the streams when the run is over, unless they are to be kept; failing to must not hide its outcome."""
    try:
        yield
    finally:
        for name in () if keep else deployment.streams:
            with contextlib.suppress(TimeoutError, nats.errors.Error):
                await client.jetstream(timeout=5.0).delete_stream(name)


async def _unless_transient(request: Awaitable[T]) -> T | None:
    """Return what a request returns, or ``None`` while a service starts, a server is away or a leader is elected."""
    try:
        return await request
    except Exception as err:
        if not is_transient(err):
            raise
        return None


async def group_is_done(client: Client, name: str) -> bool:
    """Return whether no order waits for a worker, or for redelivery after a lost acknowledgement."""
    group = await _unless_transient(client.jetstream(timeout=1.0).consumer_info(STREAM, name))
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


async def _check(
    client: Client, summary: Summary, expected: Totals, expected_events: dict[Event, int], deployment: Deployment
) -> None:
    """Compare what came out with what went in: by the read model, and by the stream's and the groups' own counts."""
    check_totals(summary.totals, expected)
    js = client.jetstream(timeout=2.0)
    stored = (await retry(lambda: js.stream_info(STREAM))).state
    groups = [await retry(partial(js.consumer_info, STREAM, name)) for name in deployment.groups]
    total = sum(expected_events.values())
    facts = {
        "events by kind": (dict(summary.events), expected_events),
        "events counted twice": (summary.doubled, 0),
        "messages in the stream": (stored.messages, total),
        "orders not yet taken": (sum(group.num_pending or 0 for group in groups), 0),
        "orders taken and not acknowledged": (sum(group.num_ack_pending or 0 for group in groups), 0),
    }
    wrong = [f"{what}: seen {seen}, expected {want}" for what, (seen, want) in facts.items() if seen != want]
    if wrong:
        raise WrongTotalsError("wrong counts: " + "; ".join(wrong))
