"""When servers are ready: probes that ask the servers themselves, since a line in a log is no proof.

A *probe* looks at the servers once and returns what is missing, or ``""``; it raises ServerExitedError when a server
ended. :func:`wait_for` runs probes one after the other, each until nothing is missing, under one deadline for all.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.connection import close
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.layout import Layout

POLL_S = 0.02
API_REPLIES = "_R_."  # so begins the subject on which a server waits for answers of another account, and of JetStream
NOWHERE = "mesh-lab-readiness"
NO_PLACE = ("peer offline", "miscellaneous issue")  # it has not heard enough of a server, or nothing


class Deadline:
    """A moment by which several things must be done, ``within`` seconds after it was set."""

    def __init__(self, within: float) -> None:
        self.within, self._end = within, time.monotonic() + within

    @property
    def left(self) -> float:
        """Seconds until then, 0 when it has passed."""
        return max(self._end - time.monotonic(), 0.0)


@dataclass(frozen=True, slots=True)
class View:
    """What a probe looks at."""

    servers: Mapping[str, MeshServer]
    layout: Layout
    connect: Callable[..., Awaitable[Client]]
    """:meth:`mesh_lab.servers.mesh.Mesh.connect`, with ``name`` and ``to``."""

    @property
    def monitors(self) -> dict[str, Monitor]:
        """The monitoring of each server that has some."""
        return {name: server.monitor for name, server in self.servers.items() if server.monitor is not None}

    @property
    def members(self) -> dict[str, Monitor]:
        """The monitoring of the servers that share a meta leader: all but leaf nodes."""
        return {name: monitor for name, monitor in self.monitors.items() if name not in self.layout.leaves}


Probe = Callable[[View], Awaitable[str]]


async def wait_for(view: View, probes: Sequence[Probe], deadline: Deadline) -> None:
    """Return when each probe, in this order, has found nothing missing; raises what :func:`until` raises."""
    for probe in probes:
        await until(partial(probe, view), deadline)


async def until(probe: Callable[[], Awaitable[str]], deadline: Deadline, *, every: float = POLL_S) -> None:
    """Return when a probe, which is tried each ``every`` seconds, has found nothing missing; cut off one that hangs.

    Raises:
        NotReadyError: It was too late; the message says what was missing, and after how long.
        ServerExitedError: A server ended.
    """
    missing = "the servers have not replied"

    async def nothing_missing() -> bool:
        nonlocal missing
        missing = await probe()
        return not missing

    try:
        await eventually(nothing_missing, within=deadline.left, every=every)
    except NotReadyError:
        message = f"mesh not ready after {deadline.within:g} s: {missing}"
        raise NotReadyError(message, waited_s=deadline.within, missing=missing) from None


async def wait_until_ready(view: View, deadline: Deadline) -> None:
    """Return when the mesh can take a stream with a replica on every server of a region, and is joined throughout.

    ``/healthz`` on all servers is not enough: right after it, the meta leader may not yet count every peer,
    and a stream of three replicas is refused. Raises what :func:`until` raises.
    """
    # Through each server, so that each has sent the others the subject on which it waits for replies.
    through = [partial(api_replies, server=name) for name in view.layout.servers if name not in view.layout.leaves]
    first = (healthy, gateways_stand, one_meta_leader, leaf_nodes_connected)
    await wait_for(view, [*first, *through, reply_subjects_known, routed, placeable], deadline)


async def healthy(view: View) -> str:
    """Return the servers that do not answer ``/healthz`` with 200, JetStream included."""
    await _check_alive(view.servers.values())
    servers = [view.servers[name] for name in view.monitors]
    replies = await asyncio.gather(*(asyncio.to_thread(server.health) for server in servers))
    return "; ".join(
        f"server {server.name!r} last answered /healthz with {reply}; see mesh.logs({server.name!r})"
        for server, reply in zip(servers, replies, strict=True)
        if reply != "200 ok"
    )


async def gateways_stand(view: View) -> str:
    """Return the server of a region that has no gateway to another region."""
    if len(view.layout.regions) < 2:
        return ""
    await _check_alive(view.servers[name] for name in view.members)
    for name, reply in (await ask(view.members, "/gatewayz")).items():
        there = set(view.layout.regions) - {view.layout.region_of(name)}
        if missing := there - set(reply.get("outbound_gateways") or ()):
            return f"server {name!r} has no gateway to {', '.join(sorted(missing))}; see mesh.logs({name!r})"
    return ""


async def one_meta_leader(view: View) -> str:
    """Return why the servers do not name one meta leader that counts every peer as current, or ``""``."""
    members = view.members
    if len(members) < 2:
        return ""
    # Only the leader knows how far its peers are: on the others, `current` is always false for the rest.
    replies = await ask(members, "/jsz")
    views = {name: reply.get("meta_cluster", {}) for name, reply in replies.items()}
    # After a cut there may be two: the one that was cut off has not heard yet that another one was elected.
    leaders = {seen.get("leader") or "" for seen in views.values()}
    led = views.get(next(iter(leaders)))
    if len(leaders) > 1 or led is None:
        return f"the servers name {' and '.join(sorted(leader or 'nobody' for leader in leaders))} as meta leader"
    # Each server has its own list of peers, and any of them may be asked to place a stream.
    missed = {r["name"] for seen in views.values() for r in seen.get("replicas", []) if r.get("offline")}
    if missed:
        return f"{', '.join(sorted(missed))} not heard of everywhere"
    current = sum(1 for r in led.get("replicas", []) if r["current"])
    return "" if current == len(members) - 1 else f"the meta leader counts {current} current peers"


async def leaf_nodes_connected(view: View) -> str:
    """Return the leaf node that is not connected to its region, with each account that it joins there."""
    leaves = {name: view.monitors[name] for name in view.layout.leaves}
    settings = await ask(leaves, "/varz")
    for name, reply in (await ask(leaves, "/leafz")).items():
        if len(reply.get("leafs") or ()) < max(1, len(settings[name].get("leaf", {}).get("remotes") or ())):
            return f"leaf node {name!r} is not connected to {view.layout.leaves[name]!r}"
    return ""


async def api_replies(view: View, *, server: str) -> str:
    """Return why JetStream's API does not reply through a server, or from there in the domain of a leaf node."""
    region = view.layout.region_of(server)
    leaves = [leaf for leaf, there in view.layout.leaves.items() if there == region]
    errors: list[Exception] = []

    async def note(error: Exception) -> None:
        errors.append(error)

    try:
        async with connected(view, to=server, error_cb=note) as client:
            there = client.connected_url and client.connected_url.port == view.servers[server].port
            if server in view.monitors and not there:
                return f"server {server!r} let nobody in, and a neighbour did: {errors!r}"
            for domain in (None, *leaves):
                await client.jetstream(timeout=0.5, domain=domain).account_info()
    except (OSError, nats.errors.Error) as err:
        return f"JetStream's API, asked through {server!r}: {err!r}"
    return ""


@contextlib.asynccontextmanager
async def connected(view: View, *, to: str | None = None, **options: Any) -> AsyncIterator[Client]:
    """Connect for as long as the context lasts; its end depends on no server."""
    client = await view.connect(name="readiness", to=to, **options)
    try:
        yield client
    finally:
        await close(client)


async def reply_subjects_known(view: View) -> str:
    """Return the server that does not know where a peer waits for replies of JetStream's API.

    A server hears the API's answers on a subject that it makes up at the first request through it. The leader may make
    a stream, and drop its reply, before it has heard of that subject. (nats-server 2.15.1: in 8 of 480 meshes.)
    """
    for name, reply in (await ask(view.members, "/routez?subs=1")).items():
        waiting = {
            route.get("remote_name", "")
            for route in reply.get("routes") or ()
            if any(subject.startswith(API_REPLIES) for subject in route.get("subscriptions_list") or ())
        }
        if deaf := [peer for peer in view.layout.near(name)[1:] if peer not in waiting]:
            return f"{name} has not heard where {', '.join(deaf)} waits for JetStream's answers"
    return ""


async def routed(view: View) -> str:
    """Return the running server that has not all its routes to a running server of its region.

    Two servers share a pool of routes for the accounts, and one of the system account, which is all that Raft needs:
    with that alone a cluster calls itself healthy, and a new stream is not heard of next door. (nats-server 2.15.1: in
    4 of 37 meshes, for up to 0.9 s; reConnectToRoute in server/route.go)
    """
    members = view.members
    states = await asyncio.gather(*(asyncio.to_thread(view.servers[name].observe) for name in members))
    running = {name: members[name] for name, state in zip(members, states, strict=True) if state == "running"}
    pairs = [(one, peer) for one in running for peer in view.layout.near(one)[1:] if peer in running]
    if not pairs:
        return ""
    settings, found = await ask(running, "/varz"), await ask(running, "/routez")
    for name, peer in pairs:
        pool = settings[name].get("cluster", {}).get("pool_size")
        there = [route for route in found[name].get("routes") or () if route.get("remote_name") == peer]
        pooled = sum("account" not in route for route in there)
        if pool is None or pooled < pool or len(there) == pooled:
            others = len(there) - pooled
            return f"server {name!r} has {pooled} routes to {peer!r} of a pool of {pool}, {others} others"
    return ""


async def placeable(view: View) -> str:
    """Return why a stream may not be placed on every server of a cluster; ``""`` also where there is none.

    A peer of which the leader knows the name, and not yet what it holds, is current in ``/jsz``, and no place for a
    stream, for up to a quarter of a second. Only a request to place a stream reveals it. This one is for a place that
    no server has, so that nothing is made, and the refusal gives all reasons.
    (nats-server 2.15.1, processNewServer in server/events.go, selectPeerGroup in server/jetstream_cluster.go)
    """
    if len(view.members) < 2:  # a server without peers would make the stream
        return ""
    wish = {"name": NOWHERE, "subjects": [NOWHERE], "placement": {"tags": [NOWHERE]}}
    try:
        async with connected(view) as client:
            reply = await client.request(f"$JS.API.STREAM.CREATE.{NOWHERE}", json.dumps(wish).encode(), timeout=0.5)
    except (OSError, nats.errors.Error) as err:
        return f"JetStream's API: {err!r}"
    refusal = str(json.loads(reply.data).get("error", {}).get("description", ""))
    return f"no place for streams: {refusal}" if any(reason in refusal for reason in NO_PLACE) else ""


async def ask(monitors: Mapping[str, Monitor], path: str) -> dict[str, dict[str, Any]]:
    """Return what each server's monitoring replies at a path, nothing where no reply came."""
    calls = (asyncio.to_thread(monitor.read, path) for monitor in monitors.values())
    replies = await asyncio.gather(*calls, return_exceptions=True)
    seen = ({} if isinstance(reply, BaseException) else reply[1] for reply in replies)
    return dict(zip(monitors, seen, strict=True))


async def _check_alive(servers: Iterable[MeshServer]) -> None:
    # In threads: of a container, this asks the engine.
    await asyncio.gather(*(asyncio.to_thread(server.check_alive) for server in servers))
