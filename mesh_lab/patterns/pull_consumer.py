"""Take messages from a JetStream consumer without a pause between batches.

With ``fetch``, the line is idle between two batches. The consumer here keeps a bounded number of messages requested
while earlier ones are worked on. Requests are lost when a server dies: when two of the heartbeats that the server
promises while a request stands (ADR-37) are missed, it is made again.
"""

import asyncio
import contextlib
import datetime
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Self, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from mesh_lab.errors import StreamReplacedError
from mesh_lab.patterns.connection import flush, open_inbox, publish_if_connected, uncancelled, unsubscribe
from mesh_lab.patterns.consumer_info import ConsumerSettings, ask_consumer, no_stream
from mesh_lab.patterns.jetstream_api import api_prefix, is_transient
from mesh_lab.patterns.wait import retry

REQUEST_EXPIRES_NS, LONE_REQUEST_EXPIRES_NS, HEARTBEAT_NS = 30_000_000_000, 500_000_000, 500_000_000
HEARTBEAT_S, RETRY_S, HAND_BACK_S = HEARTBEAT_NS / 1e9, 0.1, 0.25
SILENT_S, ASK_EVERY_S, TELL_AFTER_S = 2 * HEARTBEAT_S, 2.0, 5.0
LOOKS, LEAVING_S, FLUSH_WITHIN_S, CATCH_UP_S = 3, 0.02, 5.0, 5.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Outage:
    """An interruption of what a service needs, told in one line when it lasts, and in another when it is over."""

    def __init__(self, name: str) -> None:
        self._name, self._since, self._told = name, math.inf, False

    def goes_on(self, why: str, *, since: float | None = None) -> None:
        """Note that it is not over, and why; 5 s after its beginning that is told."""
        now = time.monotonic()
        self._since = min(self._since, now if since is None else since)
        if not self._told and now - self._since >= TELL_AFTER_S:
            self._told = True
            _log.warning("%s: nothing for %.0f s (%s); it is asked again and again", self._name, now - self._since, why)

    async def retry(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return what a request returns, and repeat it for as long as its error is transient."""

        def transient(err: Exception) -> bool:
            if tolerated := is_transient(err):
                self.goes_on(str(err) or type(err).__name__)
            return tolerated

        return await retry(request, within=math.inf, every=RETRY_S, transient=transient)

    def over(self) -> None:
        """Note that all is well."""
        if self._told:
            _log.warning("%s: back after %.0f s", self._name, time.monotonic() - self._since)
        self._since, self._told = math.inf, False


class PullConsumer:
    """Yields batches of messages from a durable consumer, for as long as it is iterated.

    Use it as an asynchronous context manager. Leaving it hands back what it had not yielded yet, for others to take;
    a message on the wire at that moment is delivered again after the consumer's ``ack_wait``. What it has yielded, and
    what it requested ahead, it does not keep alive: a ``prefetch`` should be done within ``ack_wait``.

    Attributes:
        ahead: As given.
        settings: The consumer's, as the servers told them last; ``None`` before they did, or if the client may not ask.
    """

    settings: ConsumerSettings | None = None

    def __init__(
        self,
        client: Client,
        stream: str,
        consumer: str,
        *,
        prefetch: int = 500,
        ahead: bool = True,
        lost_after: float | None = None,
        domain: str | None = None,
        check: Callable[[ConsumerSettings], object] | None = None,
    ) -> None:
        """Prepare; nothing is requested yet.

        Args:
            client: A connected nats-py client.
            stream: Name of the stream.
            consumer: Name of a pull consumer that exists.
            prefetch: Messages requested ahead of the work. What a slow worker prefetched, its idle neighbours miss.
            ahead: Whether the next ones are requested before the caller is done with those that were yielded. Without
                it, leaving takes up to half a second: the last request ends first, and no message is on the wire.
            lost_after: Seconds without a sign of the consumer after which it counts as deleted. With ``None``, the
                servers are asked about a silent consumer, and it is waited for until a new leader replies.
            domain: JetStream domain of the stream; ``None`` for the client's own.
            check: Called with the consumer's settings whenever they are asked for; what it raises leaves the consumer.

        Raises:
            ValueError: ``prefetch`` is below 1, or ``domain`` is no name.
        """
        if prefetch < 1:
            raise ValueError(f"prefetch={prefetch}, expected 1 or more")
        self._client, self._most, self.ahead, self._lost_after = client, prefetch, ahead, lost_after
        self._prefetch = prefetch
        self._longest_ns = self._expires_ns = REQUEST_EXPIRES_NS if ahead else LONE_REQUEST_EXPIRES_NS
        self._subject = f"{api_prefix(domain)}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._name = f"consumer {consumer!r} of stream {stream!r}"
        self._ask = partial(ask_consumer, client, stream, consumer, domain=domain)
        self._check = check
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._buffer, self._requested = list[Msg](), 0
        self._replied_at = self._alive_at = self._asked_at = time.monotonic()
        self._requested_at = self._pause_until = 0.0
        self._arrived = asyncio.Event()
        self._gone = self._stopped = False
        self._refused: nats.js.errors.APIError | None = None
        self._last_word, self._outage = "no reply", Outage(self._name)

    async def __aenter__(self) -> Self:
        """Ask for the consumer's settings and subscribe.

        Raises:
            nats.js.errors.NotFoundError: There is no such consumer or stream; the message lists those there are.
            UnsuitableConsumerError: It is a push consumer, or one with priority groups.
            nats.errors.ConnectionClosedError: The client was closed.
        """
        for _ in range(LOOKS if self._lost_after is None else 0):
            if self.settings is None:
                await self._look()
        self._inbox, self._subscription = await open_inbox(self._client, self._on_message)
        self._replied_at = self._alive_at = time.monotonic()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._subscription is None or self._client.is_closed:
            return
        # drain() flushes, and a cancelled flush ends nats-py 2.16's reading for good (Client._process_pong).
        await asyncio.shield(uncancelled(self._hand_back(self._subscription)))

    async def _hand_back(self, subscription: Subscription) -> None:
        while not self.ahead and self._requested and not self._buffer and self._client.is_connected:
            if time.monotonic() - self._replied_at > 2 * self._expires_ns / 1e9:
                break  # it went with its server
            await asyncio.sleep(LEAVING_S)
        # What cannot be handed back comes again after ack_wait.
        with contextlib.suppress(nats.errors.Error, RuntimeError):  # the latter is uvloop's for a dead connection
            try:
                # A server that is silent now would let drain()'s own flush time out, which is like cancelling it.
                await flush(self._client, within=FLUSH_WITHIN_S if self._client.is_connected else 0.0)
            except nats.errors.FlushTimeoutError:
                await unsubscribe(subscription)
                return
            # Not unsubscribe(), which forgets what has arrived.
            await subscription.drain()  # type: ignore[no-untyped-call]
            for msg in self._buffer if self._lost_after is None else ():  # a reader's consumer wants no acknowledgement
                # Not at once: until all servers know that we are gone, our own last request would get it again.
                await msg.nak(delay=HAND_BACK_S if self.ahead else None)

    async def batches(self, stop: asyncio.Event | None = None) -> AsyncGenerator[list[Msg], None]:
        """Yield what has arrived, as soon as anything has, until half a second after ``stop`` is set.

        Raises:
            nats.js.errors.NotFoundError: The consumer or its stream was deleted, and is not back within a second.
            nats.js.errors.APIError: The servers refuse the requests, and would again; the message has their words.
            UnsuitableConsumerError: A consumer that is no pull consumer took its place.
            nats.errors.ConnectionClosedError: The client was closed, by the program or because the server refuses it.
        """
        while not self._stopped and not (stop and stop.is_set()):
            if self._client.is_closed:
                raise nats.errors.ConnectionClosedError
            await self._request()
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets an arrival.
                async with asyncio.timeout(max(self._pause_until - time.monotonic(), 0.0) or HEARTBEAT_S):
                    await self._arrived.wait()
            except TimeoutError:
                if time.monotonic() - self._replied_at > SILENT_S:
                    self._requested = 0  # no server has the requests any more: make them again
                if time.monotonic() - self._alive_at > SILENT_S:
                    await self._seek()
                continue
            self._arrived.clear()
            if self._refused is not None:
                raise self._refused
            if self._gone:
                self._gone, self._requested = False, 0
                if self._lost_after is not None:
                    raise nats.js.errors.NotFoundError(code=404, description=f"{self._name} was deleted")
                await self._look()  # perhaps it is there again
            if self._buffer:
                self._outage.over()
                if self.ahead:
                    await self._request()  # the line is busy while the caller works
                batch, self._buffer = self._buffer, []  # after the last wait, or a cancellation would lose it
                self._requested = max(0, self._requested - len(batch))
                yield batch
                self._replied_at = self._alive_at = time.monotonic()  # nobody listened meanwhile

    def stop(self) -> None:
        """End :meth:`batches` when the caller is done with what was yielded."""
        self._stopped = True
        self._arrived.set()

    async def _request(self) -> None:
        room = self._prefetch - self._requested + len(self._buffer) * self.ahead
        if room < max(1, self._prefetch // 2) or time.monotonic() < self._pause_until:
            return
        heartbeat = min(HEARTBEAT_NS, self._expires_ns // 2)
        request = {"batch": room, "expires": self._expires_ns, "idle_heartbeat": heartbeat}
        if await publish_if_connected(self._client, self._subject, msgspec.json.encode(request), reply=self._inbox):
            self._requested += room
            self._replied_at = self._requested_at = time.monotonic()

    async def _look(self) -> None:
        """Ask for the consumer's settings, and fit the requests to them."""
        try:
            settings = await self._ask() if self._client.is_connected else None
        except nats.js.errors.NotFoundError as err:
            if self.settings is None:
                raise
            said = f"{self._name} was deleted ({err.description})"
            raise nats.js.errors.NotFoundError(code=404, err_code=err.err_code, description=said) from err
        if settings is not None:
            self.settings = settings
            if self._check is not None:
                self._check(settings)
            self._prefetch = min(self._most, settings.max_batch or self._most)
            self._expires_ns = min(self._longest_ns, settings.max_expires or self._longest_ns)
        self._asked_at = time.monotonic()

    async def _seek(self) -> None:
        """Find out what became of a consumer of which there is no sign."""
        now = time.monotonic()
        silent_s = now - self._alive_at
        if self._lost_after is not None:
            if self._client.is_connected and silent_s > self._lost_after:
                said = f"{self._name} gave no sign for {silent_s:.1f} s"
                raise nats.js.errors.NotFoundError(code=404, description=said)
            return
        if now - self._asked_at > ASK_EVERY_S:
            await self._look()
        why = self._last_word if self._client.is_connected else "no server is connected"
        if (error := self._client.last_error) is not None:  # such as of a right that was taken away
            why += f"; the connection's last error: {error}"
        self._outage.goes_on(why, since=self._alive_at)

    async def _on_message(self, msg: Msg) -> None:
        headers = msg.headers
        # A stored message may have a header of that name, too, with which nats-py's fetch would fail; it has a reply
        # subject, and a server's status has none.
        if msg.reply or not headers or "Status" not in headers:
            # The path of every message: nothing here that can be done once for many of them.
            self._buffer.append(msg)
            if len(self._buffer) == 1:
                self._arrived.set()
            return
        self._replied_at = time.monotonic()
        status, text = headers["Status"], headers.get("Description", "")
        if status in ("100", "404", "408"):  # a heartbeat, or the end of a request that got less than it asked for
            self._alive_at, self._last_word = self._replied_at, "no reply"
            self._outage.over()
        if status == "100":
            return
        if self._alive_at < self._replied_at:
            self._last_word = f"{status} {text}".strip()
        self._pause_until = RETRY_S + (self._requested_at if status in ("404", "408") else self._replied_at)
        self._arrived.set()
        if status == "409" and "Deleted" in text:
            self._gone = True
        elif status == "400" or text.startswith(("Exceeded MaxRequest", "Consumer is push based")):
            said = f"{self._name}: the server refuses a request for messages: {status} {text}"
            self._refused = nats.js.errors.APIError(code=int(status), description=said)
        else:  # the request expired, or it is its server's or leader's end: what is missing of it will not come
            unmet = headers.get("Nats-Pending-Messages")
            self._requested = max(0, self._requested - int(unmet)) if unmet else 0


async def read_in_order(
    client: Client,
    stream: str,
    *,
    subject: str = ">",
    start: int = 1,
    prefetch: int = 2_000,
    domain: str | None = None,
    made: datetime.datetime | None = None,
    name: str | None = None,
) -> AsyncGenerator[list[Msg], None]:
    """Yield every message of a stream, each once, in the stream's order, and then new ones as they arrive.

    It acknowledges nothing: a consumer that is lost with its server is made again where the reader stood. What is
    purged or deleted before it was read is passed over.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        subject: Which subjects to read.
        start: Number in the stream at which to begin, up to the one that is stored next.
        prefetch: Messages requested ahead of the caller's work.
        domain: JetStream domain of the stream; ``None`` for the client's own.
        made: When the stream was made, its information's ``created``, if the caller knows ``start`` from before.
        name: Name of the reader's consumer, where it has the right to make that one alone; one that is there is
            replaced, so no two readers share a name. ``None`` for a new name each time.

    Raises:
        nats.js.errors.NotFoundError: There is no such stream; the message lists those there are.
        StreamReplacedError: It is not the stream that was read so far, or ends before the reader's place.
        nats.js.errors.APIError: The servers refuse a consumer of that configuration.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    following, js = start, client.jetstream(timeout=2.0, domain=domain)
    outage = Outage(f"stream {stream!r}")
    while True:
        # Held in memory by one server: losing it costs a new one, replicating it would cost every delivery.
        config = ConsumerConfig(
            name=name,
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=following,
            filter_subject=subject,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        )
        try:
            if name is not None:
                with contextlib.suppress(nats.js.errors.NotFoundError):
                    await outage.retry(partial(js.delete_consumer, stream, name))
            info = await outage.retry(partial(js.add_consumer, stream, config))
            made = await _stand_in(js, stream, made, following - 1, outage)
        except nats.js.errors.NotFoundError as err:
            raise await no_stream(client, stream, domain=domain) from err
        outage.over()
        expected = 1
        try:
            async with PullConsumer(
                client, stream, info.name, prefetch=prefetch, lost_after=2.0, domain=domain
            ) as consumer:
                async for batch in consumer.batches():
                    last = batch[-1].metadata.sequence
                    # Deliveries are numbered without gaps, so the last number tells whether all are here.
                    if last.consumer != expected + len(batch) - 1:
                        break  # one was lost on its way: read again from where we stand
                    expected, following = last.consumer + 1, last.stream + 1
                    yield batch
        except nats.js.errors.NotFoundError:
            pass  # the consumer went with its server; if it was the stream, making a new one says so
        finally:
            # Without waiting for a reply: if this gets lost, the server forgets the consumer after a minute.
            with contextlib.suppress(nats.errors.Error):
                await publish_if_connected(client, f"{api_prefix(domain)}.CONSUMER.DELETE.{stream}.{info.name}")
        await asyncio.sleep(RETRY_S)


async def _stand_in(
    js: JetStreamContext, stream: str, made: datetime.datetime | None, place: int, outage: Outage
) -> datetime.datetime | None:
    """Return when a stream was made; raise StreamReplacedError if it is another one, or does not reach a place."""
    deadline = time.monotonic() + CATCH_UP_S  # a new leader may not know of its last messages at once
    while True:
        info = await outage.retry(partial(js.stream_info, stream))
        if made is not None and info.created != made:
            raise StreamReplacedError(
                f"stream {stream!r} was deleted and made again at {info.created}; what was read up to message {place} "
                f"was another one's, made at {made}: read this one from its beginning"
            )
        if info.state.last_seq >= place:
            return info.created
        if time.monotonic() > deadline:
            raise StreamReplacedError(
                f"stream {stream!r} ends with message {info.state.last_seq}, before the reader's place, {place}: it "
                "was made again, restored, or lost messages; read it from its beginning"
            )
        await asyncio.sleep(RETRY_S)
