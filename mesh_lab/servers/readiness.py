"""When servers are ready in truth, and not by the word of a log line."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import nats.errors

from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.joining import wait_until_joined, wait_until_routed
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.placing import wait_until_placeable
from mesh_lab.servers.polling import ask, cluster_members, until

API_REPLIES = "_R_."
"""How the subject begins on which a server waits for answers to what its clients ask of another account, JetStream's
API included."""


async def wait_until_healthy(servers: Sequence[MeshServer], *, within: float) -> None:
    """Return when every server answers ``/healthz`` with 200, JetStream included.

    Args:
        servers: Servers that were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: One was not; the message says what each last answered.
        ServerExitedError: One ended; the message carries its last log lines.
    """
    monitored = [(server, server.monitor) for server in servers if server.monitor is not None]
    seen = {server.name: "nothing yet" for server, _ in monitored}

    async def healthy() -> bool:
        # In threads: of a container, this asks the engine.
        await asyncio.gather(*(asyncio.to_thread(server.check_alive) for server, _ in monitored))
        answers = await asyncio.gather(*(asyncio.to_thread(monitor.health) for _, monitor in monitored))
        seen.update({server.name: answer.seen for (server, _), answer in zip(monitored, answers, strict=True)})
        return all(answer.ok for answer in answers)

    await until(
        healthy,
        within=within,
        problem=lambda: "; ".join(
            f"server {name!r} not ready after {within} s (last /healthz: {answer}); see mesh.logs({name!r})"
            for name, answer in seen.items()
            if answer != "200 ok"
        ),
    )


async def wait_until_ready(mesh: Mesh, *, within: float) -> None:
    """Return when the mesh can take a stream with a replica on every server of a region, and is joined throughout.

    ``/healthz`` on all servers is not enough: right after it, the meta leader may not yet count every peer,
    and a stream of three replicas is refused. So all servers must name one meta leader and it every peer as current,
    every server must have its gateway to each other region, each leaf node its connection, and JetStream must have
    answered through each server and, from its region, in each leaf node's domain; each server must know where its
    peers wait for such answers; all routes must be there; and the meta leader must know of each peer how much room it
    has.

    Args:
        mesh: Mesh whose servers were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: It was not; the message says what was missing.
        ServerExitedError: A server ended.
    """
    started = time.monotonic()

    def left() -> float:
        return within - (time.monotonic() - started)

    layout = mesh.layout
    await wait_until_healthy(list(mesh.servers.values()), within=within)
    await wait_until_joined(mesh, within=left())
    monitors = {name: server.monitor for name, server in mesh.servers.items() if server.monitor is not None}
    clustered = cluster_members(mesh)
    seen = ""

    def problem() -> str:
        return f"mesh not ready after {within} s ({seen}); see mesh.logs({layout.servers[0]!r})"

    async def whole() -> bool:
        nonlocal seen
        # Only the leader knows how far its peers are: on the others, `current` is always false for the rest.
        answers = await ask({name: monitors[name].jsz for name in clustered})
        views = {name: answer.get("meta_cluster", {}) for name, answer in answers.items()}
        # After a cut there may be two: the one that was cut off has not heard yet that another one was elected.
        leaders = {view.get("leader") or "" for view in views.values()}
        led = views.get(next(iter(leaders)))
        if len(leaders) > 1 or led is None:
            seen = f"the servers name {' and '.join(sorted(leader or 'nobody' for leader in leaders))} as meta leader"
            return False
        # Each server has its own idea of who is there, and any of them may be asked to place a stream.
        missed = {r["name"] for view in views.values() for r in view.get("replicas", []) if r.get("offline")}
        if missed:
            seen = f"{', '.join(sorted(missed))} not heard of everywhere"
            return False
        current = sum(1 for r in led.get("replicas", []) if r["current"])
        seen = f"the meta leader counts {current} current peers"
        return current == len(clustered) - 1

    async def connected() -> bool:
        nonlocal seen
        for name, answer in (await ask({name: monitors[name].leafz for name in layout.leaves})).items():
            if not answer.get("leafs"):
                seen = f"leaf node {name!r} is not connected to {layout.leaves[name]!r}"
                return False
        return True

    async def asked_through(name: str) -> bool:
        nonlocal seen
        client = await mesh.connect(name="readiness", to=name)
        try:
            there = client.connected_url is not None and client.connected_url.port == mesh.servers[name].port
            if name in monitors and not there:
                seen = f"server {name!r} let nobody in, and a neighbour did"
                return False
            for domain in (None, *(leaf for leaf, region in layout.leaves.items() if layout.region_of(name) == region)):
                await client.jetstream(timeout=0.5, domain=domain).account_info()
        except (TimeoutError, nats.errors.Error) as err:
            seen = f"JetStream's API, asked through {name!r}: {err!r}"
            return False
        finally:
            await client.close()
        return True

    async def heard() -> bool:
        nonlocal seen
        # A server hears the API's answers on a subject that it makes up at the first request through it, and tells
        # the others of. Who makes a stream is asked by way of the leader: it may have the stream, and its answer
        # dropped, before it has heard of the subject. (nats-server 2.15.1, two busy cores: in 8 of 480 meshes.)
        known = await ask({name: partial(monitors[name].routez, "subs=1") for name in clustered})
        for name, answer in known.items():
            waiting = _reply_subjects(answer)
            peers = [peer for peer in layout.regions[str(layout.region_of(name))] if peer != name]
            if deaf := [peer for peer in peers if not waiting.get(peer)]:
                seen = f"{name} has not heard where {', '.join(deaf)} waits for JetStream's answers"
                return False
        return True

    if len(clustered) > 1:
        await until(whole, within=left(), problem=problem)
    await until(connected, within=left(), problem=problem)
    # Through each server, so that each has told the others where it waits for answers.
    for name in (name for name in layout.servers if name not in layout.leaves):
        await until(partial(asked_through, name), within=left(), problem=problem)
    await until(heard, within=left(), problem=problem)
    await wait_until_routed(mesh, within=left())
    await wait_until_placeable(mesh, within=left())


def _reply_subjects(routes: dict[str, Any]) -> dict[str, set[str]]:
    """Return, for each peer in a server's ``/routez?subs=1``, on which subjects it is known to wait for the API."""
    found: dict[str, set[str]] = {}
    for route in routes.get("routes") or ():
        waiting = {subject for subject in route.get("subscriptions_list") or () if subject.startswith(API_REPLIES)}
        found.setdefault(route.get("remote_name", ""), set()).update(waiting)
    return found
