"""Schedules of faults: drawn from a seed, injected into a mesh one after the other, and always recovered from."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns.wait import eventually, retry, run_shielded
from mesh_lab.servers.mesh import Mesh

Kind = Literal["kill", "stop", "pause", "cut", "reset", "kill all"]
"""``kill``: SIGKILL. ``stop``: SIGTERM. ``pause``: SIGSTOP. ``cut``: nothing gets through between one
server and the others. ``reset``: its connections to the others break and are refused. ``kill all``: SIGKILL to all."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LINKED: frozenset[Kind] = frozenset({"cut", "reset"})
"""Kinds that need a mesh with links."""
Target = Literal["leader", "follower", "all"]
FIRST_AT_S = 1.0  # the writers get going, so that the first fault hits something
LASTS_S, PAUSE_S = (0.5, 3.0), (1.0, 4.0)  # around an election, of a second or two: some faults end before it
READY_WITHIN_S, LEADER_WITHIN_S = 60.0, 30.0


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of a schedule."""

    at_s: float
    """Seconds after the beginning; later, if the fault before it was not over by then."""
    kind: Kind
    target: Target
    """``leader`` of the stream at that time, ``follower``: the first other server by name, or all."""
    lasts_s: float


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that was injected and recovered from."""

    planned: PlannedFault
    server: str
    began_s: float
    ended_s: float
    """When recovery was done; a server that was down is healthy by then."""

    def __str__(self) -> str:
        return f"{self.began_s:.1f} s: {self.planned.kind} {self.server} ({self.planned.target})"


def draw_schedule(seed: int, *, seconds: float, kinds: Sequence[Kind] = KINDS) -> list[PlannedFault]:
    """Return the faults of a run: the same seed and length, the same faults.

    Args:
        seed: Any whole number.
        seconds: Length of the run; no fault begins in its last second.
        kinds: Kinds to draw from, each as likely as the others.

    Raises:
        ValueError: ``kinds`` is empty, or names an unknown kind.
    """
    if not kinds or (unknown := set(kinds) - set(KINDS)):
        raise ValueError(f"kinds {sorted(unknown) if kinds else []}, expected some of {', '.join(KINDS)}")
    chance = random.Random(seed)  # to be repeated, not to be secret
    schedule, at_s = [], FIRST_AT_S
    while at_s < seconds - 1.0:
        kind = chance.choice(kinds)
        target: Target = "all" if kind == "kill all" else chance.choice(("leader", "leader", "follower"))
        lasts_s = chance.uniform(*LASTS_S)
        schedule.append(PlannedFault(round(at_s, 2), kind, target, round(lasts_s, 2)))
        at_s += lasts_s + chance.uniform(*PAUSE_S)
    return schedule


async def inject(
    mesh: Mesh,
    stream: str,
    schedule: Sequence[PlannedFault],
    *,
    now: Callable[[], float],
    on_fault: Callable[[str], None] | None = None,
) -> list[InjectedFault]:
    """Inject faults into a mesh and recover from them, one at a time, and return what was hit.

    Args:
        mesh: Local servers. Even after an error or a cancellation, servers run and links carry again.
        stream: Stream whose leader and followers are the targets.
        schedule: What to inject.
        now: Clock of the run, in seconds.
        on_fault: Called with a line about each fault, just before it is injected.

    Raises:
        UnsupportedByBackendError: The mesh has no links to cut, or no servers to kill.
        NotReadyError: A server did not recover in time, or the stream has no leader, or no follower.
        TimeoutError: No reply came about which server leads the stream.
    """
    faults = []
    async with await mesh.connect(name="chaos") as client:
        for planned in schedule:
            await asyncio.sleep(max(planned.at_s - now(), 0.0))
            server = await _target(client, stream, planned.target, sorted(mesh.servers))
            began_s = now()
            if on_fault is not None:
                on_fault(str(InjectedFault(planned, server, began_s, began_s)))
            try:
                await run_shielded(_inject(mesh, planned.kind, server))
                await asyncio.sleep(planned.lasts_s)
            finally:
                await run_shielded(_recover(mesh, planned.kind, server))
            faults.append(InjectedFault(planned, server, began_s, now()))
    return faults


async def _target(client: Client, stream: str, target: Target, servers: Sequence[str]) -> str:
    if target == "all":
        return "all"

    async def leader_named() -> str | None:
        info = await retry(lambda: client.jetstream(timeout=1.0).stream_info(stream))
        return info.cluster.leader if info.cluster is not None else None

    # While servers elect, the old leader may still be named, and a moment later none.
    leader = str(await eventually(leader_named, within=LEADER_WITHIN_S, every=0.2))
    if len(servers) < 2:
        raise NotReadyError(f"stream {stream} has no followers; expected one on three servers")
    return leader if target == "leader" else next(name for name in servers if name != leader)


async def _inject(mesh: Mesh, kind: Kind, server: str) -> None:
    match kind:
        case "kill":
            await mesh.kill(server)
        case "stop":
            await asyncio.to_thread(mesh.servers[server].stop)
        case "pause":
            await mesh.pause(server)
        case "cut" | "reset":
            for other in set(mesh.servers) - {server}:
                await mesh.cut(server, other, mode="silent" if kind == "cut" else "reset")
        case "kill all":
            await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))


async def _recover(mesh: Mesh, kind: Kind, server: str) -> None:
    match kind:
        case "kill" | "stop":
            await mesh.restart(server, within=READY_WITHIN_S)
        case "pause":
            if mesh.servers[server].state == "paused":
                await mesh.resume(server)
        case "cut" | "reset":
            if mesh.links is not None:
                await mesh.heal()
        case "kill all":
            await start_all(mesh)


async def start_all(mesh: Mesh) -> None:
    """Start all servers that do not run, together: one alone would wait for a majority for ever.

    Raises:
        NotReadyError: They were not ready in time.
        ServerExitedError: One ended at its start.
    """
    for server in mesh.servers.values():
        if server.state not in ("running", "paused"):
            await asyncio.to_thread(server.start)
    await mesh.ready(within=READY_WITHIN_S)
