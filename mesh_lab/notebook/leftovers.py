"""Find what an answer left behind: tasks, subscriptions, connections, streams.

A task carries the context in which it began. A connection is one of this process, by a name that no more of its
connections had before: the lesson's own clients may lose their server in a trial and come back. A stream or a durable
consumer was not on any server before; other consumers end by themselves. Servers without monitoring are left out.
"""

import asyncio
import os
import socket
import stat
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import psutil
from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.trial import NotYet
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.mesh import Mesh

Tasks = WeakSet["asyncio.Task[Any]"]
ENDING_WITHIN_S = 1.0  # what is seen is often just ending
MOST_CONNECTIONS = 10_000  # connz lists 1,024 unless told otherwise

_noting: ContextVar[Tasks | None] = ContextVar("_noting", default=None)


@contextmanager
def tasks_noted() -> Iterator[Tasks]:
    """Yield a set that collects each task started in the block, or by a task that was."""
    loop, began = asyncio.get_running_loop(), WeakSet[asyncio.Task[Any]]()
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        task: Any = before(loop, work, **options) if before else asyncio.Task(work, loop=loop, **options)
        if _noting.get() is began:
            began.add(task)
        return task

    mark = _noting.set(began)
    loop.set_task_factory(make)
    try:
        yield began
    finally:
        loop.set_task_factory(before)
        _noting.reset(mark)


class _Server(NamedTuple):
    """What one server knows of this process and of JetStream."""

    connections: Counter[str]
    """Number of this process's connections under each name."""
    streams: set[str]
    """Streams and durable consumers, in words."""


class Watch:
    """What is on a mesh before a trial; what a right answer has added to it since is :class:`NotYet`."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._before: Mapping[str, _Server] = {}

    async def begin(self) -> None:
        """Note what is there."""
        self._before = await _servers(self._mesh)

    async def look_inside(self, clients: Mapping[Client, Mesh], began: Tasks, files: Collection[str]) -> None:
        """Look while the trial's clients are open: their subscriptions, and tasks that run the answer's own code."""
        own = [task for task in began if _file(task) in files]
        try:
            await _expect_none(partial(_running, own))
        finally:
            for task in own:
                task.cancel()
        for client, mesh in clients.items():
            if client.is_connected:
                # Once and not in the loop, whose deadline would cancel it: nats-py then takes the PONG for an error.
                await flush_through(client)
                await _expect_none(partial(_subscriptions, client, mesh))

    async def look_around(self, began: Tasks) -> None:
        """Look when the trial's clients, servers and streams are gone: connections, streams, and all its tasks."""
        await _expect_none(self._added)
        await _expect_none(partial(_running, list(began)))

    async def _added(self) -> list[str]:
        """Return the connections and streams that were not there before, on servers that answered then too."""
        now = {name: server for name, server in (await _servers(self._mesh)).items() if name in self._before}
        connections = sum((server.connections for server in now.values()), Counter[str]())
        connections -= sum((self._before[name].connections for name in now), Counter[str]())
        streams = set[str]().union(*(server.streams for server in now.values()))
        streams -= set[str]().union(*(server.streams for server in self._before.values()))
        return [f"a connection named {name!r}" if name else "a connection" for name in connections] + list(streams)


async def _expect_none(find: Callable[[], Awaitable[list[str]]]) -> None:
    found: list[str] = []

    async def none() -> bool:
        found[:] = await find()
        return not found

    try:
        await eventually(none, within=ENDING_WITHIN_S)
    except NotReadyError as err:
        if found:  # empty where the servers did not answer in time: what cannot be seen is not held against an answer
            raise NotYet(f"it left {min(found)}", "nothing left behind") from err


async def _running(tasks: "Collection[asyncio.Task[Any]]") -> list[str]:
    return [f"a task running, {getattr(task.get_coro(), '__name__', 'one')}()" for task in tasks if not task.done()]


def _file(task: "asyncio.Task[Any]") -> str:
    code = getattr(task.get_coro(), "cr_code", None)
    return code.co_filename if code else ""


async def _subscriptions(client: Client, mesh: Mesh) -> list[str]:
    """Return a client's subscriptions but for nats-py's own inboxes, ``_INBOX.….*``, to which replies come."""
    # A callback of nats-py's own tells them from those of an answer (both attributes have a test in tests/upstream).
    callbacks = {sub.subject: str(getattr(sub._cb, "__module__", "")) for sub in client._subs.values()}
    own = {subject for subject, module in callbacks.items() if module.startswith("nats.") and subject.endswith(".*")}
    at, servers = client.connected_url, list(mesh.servers.values())
    connected = [one for one in servers if at is not None and one.port == at.port]
    for server in connected or servers[:1]:  # or behind a relay
        if server.monitor is not None:
            found = await asyncio.to_thread(server.monitor.connz, f"cid={client.client_id}&subs=1")
            subjects = [subject for one in found["connections"] for subject in one.get("subscriptions_list") or []]
            return [_named(one) for one in subjects if one not in own]
    return []


def _named(subject: str) -> str:
    known = {"_INBOX": "an inbox subscribed", "check": "a subscription to the check's subject"}
    return known.get(subject.partition(".")[0], f"a subscription to {subject}")


def _ports() -> set[int]:
    """Return the local ports of this process's TCP sockets."""
    if sys.platform != "linux":
        return {one.laddr.port for one in psutil.Process().net_connections("tcp") if one.laddr}
    # psutil would read all sockets of the machine, which takes as long as the rest of a check where there are many.
    ports = set[int]()
    for file in os.scandir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            if stat.S_ISSOCK(file.stat().st_mode):
                with socket.socket(fileno=os.dup(int(file.name))) as one:
                    if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                        ports.add(one.getsockname()[1])
    return ports


async def _servers(mesh: Mesh) -> dict[str, _Server]:
    monitors = {name: server.monitor for name, server in mesh.servers.items() if server.monitor is not None}
    ports = _ports() if monitors else set()
    looks = [asyncio.to_thread(_read, monitor, ports) for monitor in monitors.values()]
    seen = zip(monitors, await asyncio.gather(*looks), strict=True)
    return {name: server for name, server in seen if server is not None}


def _read(monitor: Monitor, ports: Collection[int]) -> _Server | None:
    """Return what a server reports; ``None`` if it does not answer."""
    try:
        connections = monitor.connz(f"limit={MOST_CONNECTIONS}")["connections"]
        accounts = monitor.jsz("accounts=1&streams=1&consumers=1&config=1").get("account_details") or []
    except (OSError, ValueError):
        return None
    server = _Server(Counter(one.get("name", "") for one in connections if one["port"] in ports), set())
    for stream in (stream for account in accounts for stream in account.get("stream_detail") or []):
        server.streams.add(f"the stream {stream['name']}")
        for consumer in stream.get("consumer_detail") or []:
            if consumer.get("config", {}).get("durable_name"):
                server.streams.add(f"the consumer {consumer['name']} of the stream {stream['name']}")
    return server
