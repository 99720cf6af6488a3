"""A chaos run: writers write, faults come and go, and in the end every acknowledged order has to be stored."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh_lab.chaos.history import Audit, History, audit
from mesh_lab.chaos.schedule import KINDS, LINKED, InjectedFault, Kind, draw_schedule, inject, start_all
from mesh_lab.chaos.stored import Stored, read_replica, read_stream
from mesh_lab.chaos.writers import Writers
from mesh_lab.errors import NotReadyError, UnsupportedByBackendError
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.order import STREAM
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, run_shielded
from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.mesh import Mesh

REPLICAS = 3
CAUGHT_UP_WITHIN_S, SETTLED_AFTER_S = 30.0, 5.0


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """What became of a run's orders."""

    history: History
    faults: tuple[InjectedFault, ...]
    caught_up: bool
    """Whether all servers came to hold the same messages, all acknowledged ones among them."""
    audit: Audit

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which no writer got an acknowledgement."""
        return max((gap.length_s for gap in self.history.gaps()), default=0.0)

    def check(self) -> None:
        """Return if a fault was injected, all servers agree, and the promise was kept.

        Raises:
            NotReadyError: The servers did not come to agree, or no fault was injected: the run proves nothing.
            InvariantBrokenError: An order was lost, doubled or reversed.
        """
        self.audit.check()
        if not self.faults or not self.caught_up or not self.audit.acknowledged:
            raise NotReadyError(
                f"{len(self.faults)} faults, {self.audit.acknowledged:,} orders acknowledged, caught up: "
                f"{self.caught_up}; expected at least 1 of each, and True: such a run proves nothing"
            )


async def chaos_run(
    mesh: Mesh,
    *,
    seed: int,
    seconds: float,
    kinds: Sequence[Kind] | None = None,
    on_fault: Callable[[str], None] | None = None,
) -> ChaosRun:
    """Return what became of the orders of some writers while faults came and went.

    Args:
        mesh: Three local servers, which the run may break; a stream ``ORDERS`` that is there has to be empty.
        seed: Seed of the faults.
        seconds: For how long new faults begin; recovery and reading come on top.
        kinds: Kinds of faults; ``None`` means all that the mesh allows: without links, all but ``cut`` and ``reset``.
        on_fault: Called with a line about each fault.

    Raises:
        UnsupportedByBackendError: The servers are not three local ones, or the mesh cannot do what a fault needs.
        ValueError: The stream is not empty, or a kind of fault is unknown.
        NotReadyError: The servers did not recover in time.
        StoreError: A server's files are not as nats-server 2.15 writes them.
        TimeoutError: The stream could not be read in the end.
    """
    _check_mesh(mesh)
    if kinds is None:
        kinds = [kind for kind in KINDS if mesh.links is not None or kind not in LINKED]
    schedule = draw_schedule(seed, seconds=seconds, kinds=kinds)
    async with await mesh.connect(name="chaos") as client:
        if messages := (await open_event_store(client, replicas=REPLICAS)).state.messages:
            raise ValueError(f"stream {STREAM} holds {messages:,} messages, expected none: their ids would come again")
        await wait_routable(client, STREAM)
    async with Writers(mesh) as working:
        faults = await inject(mesh, STREAM, schedule, now=lambda: working.now_s, on_fault=on_fault)
        await asyncio.sleep(max(seconds - working.now_s, 0.0))
    await mesh.ready()
    return await audit_after_faults(mesh, working.history, faults)


async def audit_after_faults(mesh: Mesh, history: History, faults: Sequence[InjectedFault]) -> ChaosRun:
    """Wait until the healed servers hold the same, read it through a client and from their disks, and compare.

    It raises as :func:`chaos_run` does, whose second half this is.
    """
    complete = await caught_up(mesh, history)
    async with await mesh.connect(name="chaos-audit") as client:
        stored = await read_stream(client, STREAM)
    replicas = await read_replicas(mesh, STREAM)
    return ChaosRun(history, tuple(faults), complete, await asyncio.to_thread(audit, history, stored, replicas))


async def read_replicas(mesh: Mesh, stream: str) -> dict[str, list[Stored]]:
    """Stop three local servers, return what each has of a stream on its disk, and start them again.

    The stream has a copy on each, neither compressed nor encrypted.

    Raises:
        UnsupportedByBackendError: The servers are not three local ones.
        StoreError: A file is not as nats-server 2.15 writes it.
        NotReadyError: The servers were not ready again in time.
    """
    _check_mesh(mesh)
    try:
        await run_shielded(_stop_all(mesh))
        return {name: await asyncio.to_thread(read_replica, mesh.directory / name, stream) for name in mesh.servers}
    finally:
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
