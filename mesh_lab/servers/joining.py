"""Whether the servers of a mesh have all their connections to each other: routes in a region, gateways between."""

import asyncio

from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.polling import ask, cluster_members, until


async def wait_until_joined(mesh: Mesh, *, within: float) -> None:
    """Return when every server of a region has its gateway to each other region.

    Args:
        mesh: Mesh whose servers were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: A gateway is missing; the message says whose.
        ServerExitedError: A server ended.
    """
    layout = mesh.layout
    servers = {name: server for name, server in mesh.servers.items() if name not in layout.leaves}
    questions = {name: server.monitor.gatewayz for name, server in servers.items() if server.monitor is not None}
    seen = ""

    async def joined() -> bool:
        nonlocal seen
        await asyncio.gather(*(asyncio.to_thread(server.check_alive) for server in servers.values()))
        for name, answer in (await ask(questions)).items():
            there = set(layout.regions) - {layout.region_of(name)}
            if missing := there - set(answer.get("outbound_gateways") or ()):
                seen = f"server {name!r} has no gateway to {', '.join(sorted(missing))}; see mesh.logs({name!r})"
                return False
        return True

    if len(layout.regions) > 1:
        await until(joined, within=within, problem=lambda: f"mesh not ready after {within:.1f} s: {seen}")


async def wait_until_routed(mesh: Mesh, *, within: float) -> None:
    """Return when the running servers of each region have all their routes to each other.

    Two servers share several: a pool, over which the accounts are dealt out, and one of the system account, which is
    the one that Raft needs. With that alone a cluster elects its leader and calls itself healthy, and a new stream is
    not heard of next door. Servers that dial each other at the same moment may both hang up, and try again after a
    second. (nats-server 2.15.1: in 4 of 37 meshes, for up to 0.9 s; reConnectToRoute in server/route.go)

    Args:
        mesh: Mesh whose servers were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: A route is missing; the message says whose.
    """
    members = {name: mesh.servers[name] for name in cluster_members(mesh)}
    # In threads: of a container, this asks the engine.
    states = await asyncio.gather(*(asyncio.to_thread(getattr, server, "state") for server in members.values()))
    running = [name for name, state in zip(members, states, strict=True) if state == "running"]
    monitors = {name: monitor for name in running if (monitor := mesh.servers[name].monitor) is not None}
    pairs = [(one, peer) for one in running for peer in mesh.layout.near(one, None)[1:] if peer in running]
    seen = ""

    async def routed() -> bool:
        nonlocal seen
        settings = await ask({name: monitor.varz for name, monitor in monitors.items()})
        found = await ask({name: monitor.routez for name, monitor in monitors.items()})
        for name, peer in pairs:
            pool = settings[name].get("cluster", {}).get("pool_size")
            there = [route for route in found[name].get("routes") or () if route.get("remote_name") == peer]
            pooled = sum("account" not in route for route in there)
            if pool is None or pooled < pool or len(there) == pooled:
                seen = (
                    f"server {name!r} has {pooled} routes to {peer!r} of a pool of {pool}, {len(there) - pooled} others"
                )
                return False
        return True

    if pairs:
        await until(routed, within=within, problem=lambda: f"mesh not ready after {within:.1f} s: {seen}")
