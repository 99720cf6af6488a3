"""A chaos run: writers write, faults come and go, and in the end every acknowledged order has to be stored."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import nats.errors

from mesh_lab.chaos.disks import READY_WITHIN_S, Disk, freeze, lose_power, own_disks, start_all
from mesh_lab.chaos.history import Audit, History, audit
from mesh_lab.chaos.injection import KILLED, inject
from mesh_lab.chaos.schedule import KINDS, LINKED, ON_DISKS, OUTAGE_S, InjectedFault, Kind, PlannedFault, draw_schedule
from mesh_lab.chaos.services import ACK_WAIT_S, DyingService, Name, services_of
from mesh_lab.chaos.stored import Stored, read_replica, read_stream
from mesh_lab.chaos.writers import Writers
from mesh_lab.errors import NotReadyError, ServerExitedError, UnsupportedByBackendError
from mesh_lab.orders.event_store import create_worker_group, open_event_store
from mesh_lab.orders.order import STREAM
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, run_shielded
from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

REPLICAS = 3
PACE_S = 0.001  # of each writer, so that servers and services get a turn
_NOT_BACK = (NotReadyError, ServerExitedError, TimeoutError, nats.errors.Error)
"""What tells that servers did not recover, and is an outcome of a run."""
CAUGHT_UP_WITHIN_S, SETTLED_AFTER_S = 30.0, 5.0


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """What became of a run's orders."""

    history: History
    faults: tuple[InjectedFault, ...]
    caught_up: bool
    """Whether all servers came to hold the same messages, all acknowledged ones among them."""
    audit: Audit
    not_back: str = ""
    """What was still missing when the servers were given up, and their disks read; ``""`` if they recovered."""
    on_disk: Mapping[str, int] = field(default_factory=dict)
    """How many messages each server has on its disk."""

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which no writer got an acknowledgement."""
        return max((gap.length_s for gap in self.history.gaps()), default=0.0)

    def check(self) -> None:
        """Return if a fault was injected, all servers agree, and the promise was kept.

        Raises:
            NotReadyError: The servers did not recover or come to agree, or no fault was injected: it proves nothing.
            InvariantBrokenError: An order was lost, doubled or reversed.
        """
        self.audit.check()
        if self.not_back:
            raise NotReadyError(f"the servers did not recover, although no order is lost on the disks: {self.not_back}")
        if not self.faults or not self.caught_up or not self.audit.acknowledged:
            raise NotReadyError(
                f"{len(self.faults)} faults, {self.audit.acknowledged:,} orders acknowledged, caught up: "
                f"{self.caught_up}; expected at least 1 of each, and True: such a run proves nothing"
            )


@contextlib.asynccontextmanager
async def new_servers(kinds: Sequence[Kind]) -> AsyncIterator[tuple[Mesh, dict[str, Disk]]]:
    """Yield three servers with links, and their disks where these kinds of faults need some.

    For a power cut, the servers sync what they acknowledge: then nothing may be lost. It raises as ``start_mesh`` and
    :func:`~mesh_lab.chaos.disks.own_disks` do.
    """
    setting = "sync_interval: always" if "power cut" in kinds else ""
    async with await start_mesh(servers=REPLICAS, backend="local", links=True, jetstream_config=setting) as mesh:
        if set(ON_DISKS) & set(kinds):
            async with own_disks(mesh) as disks:
                yield mesh, disks
        else:
            yield mesh, {}


async def chaos_run(
    mesh: Mesh,
    *,
    seed: int,
    seconds: float,
    kinds: Sequence[Kind] | None = None,
    outage: float = OUTAGE_S,
    disks: Mapping[str, Disk] | None = None,
    on_start: Callable[[Writers], object] = lambda _: None,
    on_fault: Callable[[InjectedFault], object] = lambda _: None,
    restart: bool = True,
) -> ChaosRun:
    """Return what became of the orders of some writers while faults came and went.

    Args:
        mesh: Three local servers, which the run may break; a stream ``ORDERS`` that is there has to be empty.
        seed: Seed of the faults.
        seconds: For how long new faults begin; recovery and reading come on top.
        kinds: Kinds of faults; ``None`` means all that the mesh allows, save power cuts, after which nothing that was
            acknowledged may be lost: that takes servers that always sync.
        outage: Seconds that a loss of quorum lasts, up to half of the run.
        disks: The servers' own disks, from :func:`~mesh_lab.chaos.disks.own_disks`.
        on_start: Called with the writers when they begin.
        on_fault: Called with each fault that begins.
        restart: Whether the servers run again after their disks were read.

    Raises:
        UnsupportedByBackendError: The servers are not three local ones, or the mesh cannot do what a fault needs.
        ValueError: The stream is not empty, or a kind of fault is unknown.
        StoreError: A server's files are not as nats-server 2.15 writes them.
        ProcessEndedError: A worker or a publisher ended otherwise than it was told to.
    """
    _check_mesh(mesh)
    if kinds is None:
        kinds = [kind for kind in KINDS if mesh.links is not None or kind not in LINKED]
        kinds += ["full disk"] if disks else []
    schedule = draw_schedule(seed, seconds=seconds, kinds=kinds, outage=outage)
    async with await mesh.connect(name="chaos") as client:
        if messages := (await open_event_store(client, replicas=REPLICAS)).state.messages:
            raise ValueError(f"stream {STREAM} holds {messages:,} messages, expected none: their ids would come again")
        await create_worker_group(client.jetstream(timeout=10.0), ack_wait=ACK_WAIT_S)
        await wait_routable(client, STREAM)
    faults, not_back = list[InjectedFault](), ""

    def note(fault: InjectedFault) -> None:
        faults.append(fault)
        on_fault(fault)

    async with services_of(mesh, [name for kind, name in KILLED.items() if kind in kinds]) as services:
        async with Writers(mesh, pace=PACE_S) as working:
            on_start(working)
            hitting = inject(
                mesh, STREAM, schedule, now=lambda: working.now_s, on_fault=note, disks=disks, services=services
            )
            try:
                faults = await hitting
                await asyncio.sleep(max(seconds - working.now_s, 0.0))
                await mesh.ready(within=READY_WITHIN_S)
            except _NOT_BACK as err:
                not_back = str(err)
        effects = await _finish(services, working, recovered=not not_back)
    return await audit_after_faults(mesh, working.history, faults, not_back=not_back, effects=effects, restart=restart)


async def power_cut(*, sync_interval: str | None = None, seconds: float = 8.0) -> ChaosRun:
    """Write orders to three servers, cut the power of all, and return what is left when they are back, or on the disks.

    It models the system's memory, not what a disk itself may hold back: the servers are frozen, their disks' images
    copied, everything is killed, and the copies take the images' place.

    Three servers that forget alike may wait for each other for ever (nats-server 2.15.1, ``processSnapshot`` in
    server/jetstream_cluster.go): each has synced a snapshot that knows of messages which were not synced, and puts its
    election off until a leader sends them. ``sync_interval: always`` prevents it; notebook 14 shows the way back.

    Args:
        sync_interval: How long what is acknowledged may stay in memory alone: ``"1s"``, or ``"always"`` for not at
            all. ``None``: nats-server's own default, two minutes.
        seconds: From the first order to the cut.

    Raises:
        NoPowerCutError: This machine does not allow it; the message says what is missing.
        NotReadyError: The servers were not ready before the cut.
    """
    setting = "" if sync_interval is None else f"sync_interval: {sync_interval}"
    async with await start_mesh(servers=3, backend="local", jetstream_config=setting) as mesh, own_disks(mesh) as disks:
        client = await mesh.connect(name="power-cut")
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        async with Writers(mesh, number=8) as working:
            await asyncio.sleep(seconds)
            began_s = working.now_s
            await freeze(mesh, disks)
            history = await working.stop(wait=False)
        await lose_power(mesh, disks)
        fault = InjectedFault(PlannedFault(seconds, "power cut", "all", 0.0), "all", began_s, working.now_s)
        return await audit_after_faults(mesh, history, [fault], restart=False)


async def _finish(
    services: Mapping[Name, DyingService], working: Writers, *, recovered: bool
) -> Mapping[str, int] | None:
    """Let services do what is left, add the publisher's orders to the history, and return the worker's effects."""
    if publisher := services.get("publisher"):
        if recovered:
            await publisher.finish()
        publisher.close()
        for attempt in publisher.attempts(began=working.began):
            working.history.add(attempt)
    if not recovered or not (worker := services.get("worker")):
        return None
    await worker.finish(working.history.acknowledged)
    return worker.effects()


async def audit_after_faults(
    mesh: Mesh,
    history: History,
    faults: Sequence[InjectedFault],
    *,
    not_back: str = "",
    effects: Mapping[str, int] | None = None,
    restart: bool = True,
) -> ChaosRun:
    """Wait until the healed servers hold the same, read it through a client and from their disks, and compare.

    Servers that do not recover are stopped, and what the fullest disk holds counts as stored. It raises as
    :func:`chaos_run` does, whose second half this is.
    """
    complete, stored = False, None
    if not not_back:
        try:
            await start_all(mesh)
            complete = await caught_up(mesh, history)
            async with await mesh.connect(name="chaos-audit") as client:
                stored = await read_stream(client, STREAM)
        except _NOT_BACK as err:
            not_back = str(err)
    torn = any(fault.planned.kind == "power cut" for fault in faults)
    replicas = await read_replicas(mesh, STREAM, torn=torn, restart=restart and not not_back)
    if stored is None:
        stored = max(replicas.values(), key=len)
    found = await asyncio.to_thread(audit, history, stored, replicas, effects)
    on_disk = {name: len(messages) for name, messages in replicas.items()}
    return ChaosRun(history, tuple(faults), complete, found, not_back, on_disk)


async def read_replicas(
    mesh: Mesh, stream: str, *, torn: bool = False, restart: bool = True
) -> dict[str, list[Stored]]:
    """Stop three local servers, return what each has of a stream on its disk, and start them again.

    Args:
        mesh: Three local servers.
        stream: A stream with a copy on each, neither compressed nor encrypted.
        torn: As for :func:`~mesh_lab.chaos.stored.read_replica`.
        restart: Whether the servers are started again.

    Raises:
        UnsupportedByBackendError: The servers are not three local ones.
        StoreError: A file is not as nats-server 2.15 writes it.
        NotReadyError: The servers were not ready again in time.
    """
    _check_mesh(mesh)
    try:
        await run_shielded(_stop_all(mesh))
        reading = {name: partial(read_replica, mesh.directory / name, stream, torn=torn) for name in mesh.servers}
        return {name: await asyncio.to_thread(read) for name, read in reading.items()}
    finally:
        if restart:
            await run_shielded(start_all(mesh))


async def _stop_all(mesh: Mesh) -> None:
    await asyncio.gather(*(asyncio.to_thread(server.stop) for server in mesh.servers.values()))


def _check_mesh(mesh: Mesh) -> None:
    if not mesh.traits.temporary or len(mesh.servers) != REPLICAS:
        expected = "3 local ones, each with every order on its disk; use start_mesh(servers=3, backend='local')"
        raise UnsupportedByBackendError(f"{len(mesh.servers)} servers of backend {mesh.backend!r}, expected {expected}")


async def caught_up(mesh: Mesh, history: History) -> bool:
    """Wait until every local server holds the same of the stream, and return whether that is all that was acknowledged.

    A state that falls short and has not changed for 5 s counts as final.
    """
    last_seq = max((attempt.seq for attempt in history.acknowledged.values()), default=0)
    state, since = [(0, 0)], time.monotonic()

    def settled() -> bool:
        nonlocal state, since
        try:
            states = sorted({_state(server) for server in mesh.servers.values()})
        except (OSError, ValueError):  # one is too busy to answer, or not back yet
            return False
        if states != state:
            state, since = states, time.monotonic()
        return len(state) == 1 and (state[0][1] >= last_seq or time.monotonic() - since > SETTLED_AFTER_S)

    try:
        await eventually(lambda: asyncio.to_thread(settled), within=CAUGHT_UP_WITHIN_S, every=0.1)
    except NotReadyError:
        return False
    return state[0][1] >= last_seq


def _state(server: MeshServer) -> tuple[int, int]:
    """Return the stream's number of messages and last sequence number on one server; zeros if it has no copy."""
    if server.monitor is None:
        raise UnsupportedByBackendError(f"server {server.name!r} has no monitoring port; use backend='local' here")
    accounts = server.monitor.jsz("accounts=1&streams=1").get("account_details", [])
    streams = [stream for account in accounts for stream in account.get("stream_detail", [])]
    state = next((stream["state"] for stream in streams if stream["name"] == STREAM), None)
    return (state["messages"], state["last_seq"]) if state else (0, 0)
