"""What the check of an exercise is given: clients, servers and streams that are gone when the trial has ended."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from nats.nuid import NUID

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import cancel_and_join, eventually, retry
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import forget, start_mesh

T = TypeVar("T")
SOON_S = 0.5  # for what comes at once, or never
LONG_S = 1.5  # an answer that is not back by then does not come back
CLOCK_S = 0.02  # how often it looks for a stall of the machine
API_TIMEOUT_S = 3.0  # short: a request that meets an election is never answered, and retry() makes it again


class NotYet(Exception):
    """The verdict on a wrong answer: what was seen, and what was expected instead."""

    def __init__(self, seen: str, expected: str) -> None:
        super().__init__(f"{seen}; expected {expected}")


class MachineClock:
    """Measures for how long the machine stalled, so that a check need not blame the answer; a context manager.

    A thread sleeps, and notes how late it wakes: code of a reader that blocks the event loop does not delay it.

    Attributes:
        longest_pause_s: The longest time so far by which it woke too late.
    """

    def __init__(self) -> None:
        self.longest_pause_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="machine clock", daemon=True)

    def __enter__(self) -> Self:
        self._before = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._over.wait(CLOCK_S)  # a pause may end together with what was watched: it counts too
            now = time.monotonic()
            self.longest_pause_s = max(self.longest_pause_s, now - self._before - CLOCK_S)
            self._before = now


class Trial:
    """One try of an answer on the open mesh.

    Attributes:
        mesh: The mesh that the lesson started last.
        number: The exercise's.
        case: The situation in which the answer is tried now, in words; a verdict on what it raises begins with it.
    """

    def __init__(self, number: str, mesh: Mesh) -> None:
        self.number = number
        self.mesh = mesh
        self.case = ""
        self.clients: dict[Client, Mesh] = {}
        self._complaints: dict[Client, list[str]] = {}
        self._own = AsyncExitStack()
        self._given = AsyncExitStack()

    async def client(
        self, *, on: Mesh | None = None, to: str | None = None, region: str | None = None, **options: Any
    ) -> Client:
        """Return a client that is closed when the trial has ended.

        Args:
            on: A mesh of the check's own; ``None`` for the lesson's.
            to: Server to dial first. Without it and a region it is the first server, so that interest needs no time
                to travel between the clients of a trial.
            region: Region to connect to.
            options: Further arguments of :meth:`Mesh.connect <mesh_lab.servers.mesh.Mesh.connect>`.
        """
        mesh = on or self.mesh
        options = {"name": f"check {self.number}", "region": region, **options}
        to = to or (None if region else next(iter(mesh.servers)))
        return await self._noted(mesh, partial(mesh.connect, to=to, **options))

    async def rivalled(
        self, rival: Callable[[str], Awaitable[object]], *, on: Mesh | None = None, **options: Any
    ) -> Client:
        """Return a client of the first server that is always a moment too late.

        Args:
            rival: Called with the subject of each message that the client sends, requests included; only when it has
                returned does the message reach the server. If it raises ConnectionError, the client is cut off.
            on: A mesh of the check's own; ``None`` for the lesson's.
            options: Arguments of ``nats.connect`` in place of the mesh's own, such as its user.
        """
        mesh = on or self.mesh
        options = {**mesh.connect_options(to=next(iter(mesh.servers))), **options}
        host = urlsplit(options["servers"][0])

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from_server, to_server = await asyncio.open_connection(host.hostname, host.port)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await asyncio.gather(_pass_on(from_server, writer), _pass_on(reader, to_server, rival))

        relaying = await asyncio.start_server(relay, "127.0.0.1", 0)
        self._given.callback(relaying.close)
        url = f"nats://127.0.0.1:{relaying.sockets[0].getsockname()[1]}"
        options |= {"servers": [url], "name": f"check {self.number}"}
        return await self._noted(mesh, partial(nats.connect, allow_reconnect=False, **options))

    async def enter(self, mesh: Mesh, **options: Any) -> Client:
        """Return a client that dialled once, by arguments of ``nats.connect``; closed when the trial has ended.

        Raises:
            nats.errors.Error: The server does not let it in.
        """
        return await self._noted(mesh, partial(nats.connect, mesh.urls, allow_reconnect=False, **options))

    async def complaints(self, client: Client) -> list[str]:
        """Return what a client's server complained of since the last call, all that was sent before it included."""
        await flush_through(client)
        noted = self._complaints[client]
        new, noted[:] = noted[:], []
        return new

    async def _noted(self, mesh: Mesh, connect: Callable[..., Awaitable[Client]]) -> Client:
        complaints: list[str] = []

        async def note(error: Exception) -> None:
            complaints.append(str(error))

        client = await connect(error_cb=note)
        self._given.push_async_callback(client.close)
        self.clients[client], self._complaints[client] = mesh, complaints
        return client

    def own(self, subscription: T) -> T:
        """Return a subscription that the check itself made, and end it before anything is counted as left behind."""

        async def end() -> None:
            with suppress(nats.errors.Error):  # it has ended, or its connection has
                await subscription.unsubscribe()  # type: ignore[attr-defined]  # nats-py's kinds share no class

        self._own.push_async_callback(end)
        return subscription

    async def serve(
        self, client: Client, callback: Callable[[Msg], Coroutine[Any, Any, None]], subject: str | None = None
    ) -> str:
        """Answer a subject, or one that nobody else uses, until the trial has ended, and return it."""
        subject = subject or self.subject()
        self.own(await client.subscribe(subject, cb=callback))
        await flush_through(client)
        return subject

    def subject(self) -> str:
        """Return a subject that nobody else uses."""
        return f"check.{NUID().next().decode()}"

    async def arrived(self, client: Client, subscription: Subscription) -> list[Msg]:
        """Return the messages that a subscription of a client holds when the server has read all that was sent."""
        await flush_through(client)
        return [await subscription.next_msg() for _ in range(subscription.pending_msgs)]

    async def own_mesh(self, **settings: Any) -> Mesh:
        """Return a mesh of the check's own, of one server unless the arguments of ``start_mesh`` say otherwise."""
        mesh = await start_mesh(**{"backend": "local", **settings})
        forget(mesh)  # the reader's cells go on with theirs
        self._given.push_async_callback(mesh.close)
        return mesh

    async def absent(self, client: Client, *streams: str, api_timeout: float = API_TIMEOUT_S) -> JetStreamContext:
        """Remove streams that an answer is to make, now and when the trial has ended, and return a JetStream context.

        The name of a key-value bucket's stream begins with ``KV_``; ``api_timeout`` are seconds for each request.
        Where somebody else's stream has the name, on servers that outlive the lesson: UnsupportedByBackendError.
        """
        js = client.jetstream(timeout=api_timeout)
        if self.clients.get(client, self.mesh) is self.mesh:
            for stream in streams:
                made = self.mesh.borrowed.made if self.mesh.borrowed is not None else ()
                if not self.mesh.traits.temporary and stream not in made and stream in await stream_names(client):
                    raise UnsupportedByBackendError(
                        f"exercise {self.number} makes a stream {stream}, and the account holds one that this lesson "
                        "did not make; it stays as it is: use start_mesh(backend='local') here"
                    )
                await _remove(js, stream)
                self._given.push_async_callback(_remove, js, stream)
        return js

    async def stream(
        self, client: Client, name: str, *, api_timeout: float = API_TIMEOUT_S, **config: Any
    ) -> JetStreamContext:
        """Make a stream that is new, routable for the client and gone when the trial has ended; return a context."""
        js = await self.absent(client, name, api_timeout=api_timeout)
        await retry(lambda: js.add_stream(name=name, **config))
        await wait_routable(client, name)
        return js

    @staticmethod
    def kind(value: object, kinds: type | tuple[type, ...], expected: str) -> None:
        """Raise :class:`NotYet` unless a value is of a type; a bool is no number."""
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise NotYet(f"{'None' if value is None else type(value).__name__} was returned", expected)

    @staticmethod
    def equal(returned: object, wanted: object, when: str) -> None:
        """Raise :class:`NotYet` unless what was returned is what was wanted; ``True`` is not ``1``."""
        if returned != wanted or isinstance(returned, bool) is not isinstance(wanted, bool):
            # Other objects show addresses and inboxes, which are others in each run.
            plain = returned is None or isinstance(returned, str | bytes | int | float | list | dict | tuple)
            raise NotYet(f"{when}{repr(returned) if plain else type(returned).__name__} was returned", f"{wanted!r}")

    @staticmethod
    async def soon(
        condition: Callable[[], Any], seen: str | Callable[[], str], expected: str, *, within: float = SOON_S
    ) -> Any:
        """Return the value of a condition as soon as it is true.

        Args:
            condition: A plain or an ``async`` function.
            seen: What is seen instead, or a function that says it at the end.
            expected: What was expected.
            within: Seconds, after which it raises :class:`NotYet`.
        """
        try:
            return await eventually(condition, within=within)
        except NotReadyError as err:
            raise NotYet(seen() if callable(seen) else seen, expected) from err

    @staticmethod
    async def returns(call: Awaitable[T], seen: str, expected: str, *, within: float = LONG_S) -> T:
        """Return what a call returns; raise :class:`NotYet` when it did not return in time."""
        calling = asyncio.ensure_future(call)
        try:
            if not (await asyncio.wait([calling], timeout=within))[0]:
                raise NotYet(seen, expected)
            return calling.result()
        finally:
            await cancel_and_join(calling)

    async def end_own(self) -> None:
        """End the subscriptions of the check's own."""
        await self._own.aclose()

    async def close(self) -> None:
        """Remove the streams, close the clients, end the servers: what was given last goes first."""
        try:
            await self.end_own()
        finally:
            await self._given.aclose()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rival: Callable[[str], Awaitable[object]] | None = None
) -> None:
    """Pass on what comes; with a rival, message by message, each when the rival is done."""
    try:
        while data := await (reader.readline() if rival else reader.read(65_536)):
            if rival and data[:4].upper() in (b"PUB ", b"HPUB"):
                _, subject, *_, size = data.split()
                data += await reader.readexactly(int(size) + len(b"\r\n"))
                await rival(subject.decode())
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def _remove(js: JetStreamContext, stream: str) -> None:
    with suppress(NotFoundError, nats.errors.ConnectionClosedError):
        await retry(partial(js.delete_stream, stream))
