"""Faults of a schedule injected into a mesh one after the other, and always recovered from."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from nats.aio.client import Client

from mesh_lab.chaos.disks import READY_WITHIN_S, Disk, freeze, lose_power, start_all
from mesh_lab.chaos.schedule import ON_DISKS, InjectedFault, Kind, PlannedFault
from mesh_lab.chaos.services import DyingService, Name
from mesh_lab.errors import UnsupportedByBackendError
from mesh_lab.patterns.wait import eventually, retry, run_shielded
from mesh_lab.servers.mesh import Mesh

KILLED: dict[Kind, Name] = {"kill worker": "worker", "kill publisher": "publisher"}
LEADER_WITHIN_S = 30.0
SLOWED_BY_S = 0.1
FULL_WITHIN_S = 30.0


async def inject(
    mesh: Mesh,
    stream: str,
    schedule: Sequence[PlannedFault],
    *,
    now: Callable[[], float],
    on_fault: Callable[[InjectedFault], object] = lambda _: None,
    disks: Mapping[str, Disk] | None = None,
    services: Mapping[Name, DyingService] | None = None,
) -> list[InjectedFault]:
    """Inject faults into a mesh and recover from them, one at a time, and return what was hit.

    Args:
        mesh: Local servers. Even after an error or a cancellation, servers run and links carry again.
        stream: Stream whose leader and followers are the targets.
        schedule: What to inject.
        now: Clock of the run, in seconds.
        on_fault: Called with each fault, just before it is injected.
        disks: The servers' disks by their names, where they have their own.
        services: What can be killed beside servers: a ``worker``, a ``publisher``.

    Raises:
        UnsupportedByBackendError: The mesh has no links to cut, no disks to fill, or no servers or services to kill.
        NotReadyError: A server did not recover in time, or the stream has no leader.
        TimeoutError: No reply came about which server leads the stream.
    """
    disks, services = disks or {}, services or {}
    for kind in {planned.kind for planned in schedule}:
        if kind in ON_DISKS and not disks:
            raise UnsupportedByBackendError(f"{kind!r} takes servers with disks of their own; use own_disks(mesh)")
        if kind in KILLED and KILLED[kind] not in services:
            raise UnsupportedByBackendError(f"{kind!r} takes a {KILLED[kind]}; give inject() one in services=")
    faults, hurting = [], _Hurting(mesh, stream, disks, services)
    async with await mesh.connect(name="chaos") as client:
        for planned in schedule:
            await asyncio.sleep(max(planned.at_s - now(), 0.0))
            target = await hurting.target_of(client, planned)
            began_s = now()
            on_fault(InjectedFault(planned, target, began_s, began_s))
            try:
                await run_shielded(hurting.inject(client, planned, target))
                await asyncio.sleep(planned.lasts_s)
            finally:
                await run_shielded(hurting.recover(planned, target))
            faults.append(InjectedFault(planned, target, began_s, now()))
    return faults


class _Hurting:
    """What each kind of fault does, and what undoes it."""

    def __init__(
        self, mesh: Mesh, stream: str, disks: Mapping[str, Disk], services: Mapping[Name, DyingService]
    ) -> None:
        self._mesh, self._stream, self._disks, self._services = mesh, stream, disks, services

    async def target_of(self, client: Client, planned: PlannedFault) -> str:
        if planned.kind in KILLED:
            return KILLED[planned.kind]
        if planned.target == "all":
            return "all"

        async def leader_named() -> str | None:
            info = await retry(lambda: client.jetstream(timeout=1.0).stream_info(self._stream))
            return info.cluster.leader if info.cluster is not None else None

        # While servers elect, the old leader may still be named, and a moment later none.
        leader = str(await eventually(leader_named, within=LEADER_WITHIN_S, every=0.2))
        servers = sorted(self._mesh.servers)
        return leader if planned.target == "leader" else next(name for name in servers if name != leader)

    async def inject(self, client: Client, planned: PlannedFault, target: str) -> None:
        mesh, others = self._mesh, [name for name in self._mesh.servers if name != target]
        match planned.kind:
            case "kill":
                await mesh.kill(target)
            case "stop":
                await asyncio.to_thread(mesh.servers[target].stop)
            case "step down":
                # Without a reply, it was asked all the same, or there is no leader just now.
                subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{self._stream}"
                await retry(lambda: client.request(subject, timeout=1.0), within=LEADER_WITHIN_S)
            case "pause":
                await mesh.pause(target)
            case "cut" | "reset":
                for other in others:
                    await mesh.cut(target, other, mode="silent" if planned.kind == "cut" else "reset")
            case "slow":
                for other in others:
                    await mesh.slow(target, other, latency=SLOWED_BY_S)
            case "no quorum":
                await asyncio.gather(*(mesh.kill(name) for name in (target, others[0])))
            case "kill all":
                await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))
            case "kill worker" | "kill publisher":
                await self._services[KILLED[planned.kind]].die(planned.target)
            case "full disk":
                await asyncio.to_thread(self._disks[target].fill)
                monitor = mesh.servers[target].monitor
                if monitor is not None:  # it hits when the server has to write, a moment later
                    await eventually(lambda: asyncio.to_thread(lambda: not monitor.health().ok), within=FULL_WITHIN_S)
            case "power cut":
                await freeze(mesh, self._disks)
                await lose_power(mesh, self._disks)

    async def recover(self, planned: PlannedFault, target: str) -> None:
        mesh = self._mesh
        match planned.kind:
            case "kill" | "stop":
                await mesh.restart(target, within=READY_WITHIN_S)
            case "pause":
                if mesh.servers[target].state == "paused":
                    await mesh.resume(target)
            case "cut" | "reset" | "slow":
                if mesh.links is not None:
                    await mesh.heal()
            case "no quorum" | "kill all" | "power cut":
                for name, server in mesh.servers.items():
                    if server.state == "paused":  # a cut that was broken off half-way
                        await mesh.kill(name)
                await start_all(mesh)
            case "kill worker" | "kill publisher":
                await self._services[KILLED[planned.kind]].start()
            case "full disk":
                await asyncio.to_thread(self._disks[target].drain)
                # JetStream has left this server, and comes back only with a restart.
                await mesh.restart(target, within=READY_WITHIN_S)
