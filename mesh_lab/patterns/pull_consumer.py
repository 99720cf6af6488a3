"""Take messages from a JetStream consumer without a pause between batches.

With ``fetch``, the line is idle between two batches. The consumer here keeps a bounded number of messages requested
while earlier ones are worked on. Requests are lost when a server dies: when two of the heartbeats that the server
promises while a request stands (ADR-37) are missed, it is made again.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Self

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import DEFAULT_PREFIX, AckPolicy, ConsumerConfig, DeliverPolicy

from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.wait import retry

REQUEST_EXPIRES_NS = 30_000_000_000
HEARTBEAT_S, RETRY_S, HAND_BACK_S = 0.5, 0.1, 0.25
_handing_back: set["asyncio.Task[None]"] = set()  # asyncio itself holds only weak references to tasks


class Position(msgspec.Struct, frozen=True):
    """A message's numbers in its stream and on its consumer, its deliveries so far, and how many wait behind it."""

    stream_seq: int
    consumer_seq: int
    delivered: int
    pending: int


def position(msg: Msg) -> Position:
    """Return a message's place in its stream and on its consumer, from its reply subject (ADR-15).

    Raises:
        ValueError: The message was not delivered by a consumer.
    """
    tokens = msg.reply.split(".")
    if len(tokens) < 9 or tokens[1] != "ACK":
        raise ValueError(f"reply subject {msg.reply!r} is not one of a JetStream consumer")
    at = 4 if len(tokens) == 9 else 6  # the second version of the subject has domain and account hash, too
    return Position(int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at]), int(tokens[at + 4]))


class PullConsumer:
    """Yields batches of messages from a durable consumer, for as long as it is iterated.

    Use it as an asynchronous context manager. Leaving it hands back what it had not yielded yet, for others to take;
    a message on the wire at that moment is delivered again after the consumer's ``ack_wait``.
    """

    def __init__(
        self, client: Client, stream: str, consumer: str, *, prefetch: int = 500, lost_after: float | None = None
    ) -> None:
        """Prepare; nothing is requested yet.

        Args:
            client: A connected nats-py client.
            stream: Name of the stream.
            consumer: Name of a pull consumer that exists.
            prefetch: Messages requested ahead of the work. What a slow worker prefetched, its idle neighbours miss.
            lost_after: Seconds without a sign of the consumer after which it counts as deleted; ``None`` waits for as
                long as it takes until a replicated consumer's new leader replies.

        Raises:
            ValueError: ``prefetch`` is below 1.
        """
        if prefetch < 1:
            raise ValueError(f"prefetch={prefetch}, expected 1 or more")
        self._client, self._prefetch, self._lost_after = client, prefetch, lost_after
        self._subject = f"{DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._name = f"consumer {consumer!r} of stream {stream!r}"
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._buffer, self._requested = list[Msg](), 0
        self._replied_at = self._alive_at = time.monotonic()
        self._arrived = asyncio.Event()
        self._gone: str | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._client.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._subscription is None or self._client.is_closed:
            return
        # A task of its own, which goes on when this one is cancelled: drain() flushes, and a cancelled flush ends
        # nats-py 2.16's reading for good when its PONG comes (Client._process_pong).
        handing_back = asyncio.create_task(self._hand_back(self._subscription))
        _handing_back.add(handing_back)
        handing_back.add_done_callback(_handing_back.discard)
        await asyncio.shield(handing_back)

    async def _hand_back(self, subscription: Subscription) -> None:
        # Not unsubscribe(), which forgets what has arrived. What cannot be handed back comes again after ack_wait.
        with contextlib.suppress(nats.errors.Error):
            await subscription.drain()  # type: ignore[no-untyped-call]
            for msg in self._buffer:
                # Not at once: until all servers know that we are gone, our own last request would get it again.
                await msg.nak(delay=HAND_BACK_S)

    async def batches(self) -> AsyncGenerator[list[Msg], None]:
        """Yield what has arrived, as soon as anything has.

        Raises:
            nats.js.errors.NotFoundError: The consumer or its stream was deleted.
            nats.errors.ConnectionClosedError: The client was closed, by the program or because the server refuses it.
        """
        while True:
            if self._client.is_closed:
                raise nats.errors.ConnectionClosedError
            await self._request()
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets an arrival.
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._arrived.wait()
            except TimeoutError:
                if time.monotonic() - self._replied_at > 2 * HEARTBEAT_S:
                    self._requested = 0  # no server has the requests any more: make them again
                    self._check_signs_of_life()
                continue
            self._arrived.clear()
            if self._gone is not None:
                raise nats.js.errors.NotFoundError(description=self._gone)
            batch, self._buffer = self._buffer, []
            if batch:
                self._replied_at = self._alive_at = time.monotonic()
                self._requested = max(0, self._requested - len(batch))
                await self._request()  # the line is busy while the caller works
                yield batch

    async def _request(self) -> None:
        room = self._prefetch - self._requested
        if room < max(1, self._prefetch // 2):
            return
        request = {"batch": room, "expires": REQUEST_EXPIRES_NS, "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        if await publish_if_connected(self._client, self._subject, msgspec.json.encode(request), reply=self._inbox):
            self._requested += room
            self._replied_at = time.monotonic()

    def _check_signs_of_life(self) -> None:
        silent_s = time.monotonic() - self._alive_at
        if self._lost_after is not None and self._client.is_connected and silent_s > self._lost_after:
            self._gone = f"{self._name} gave no sign for {silent_s:.1f} s"
            self._arrived.set()

    async def _on_message(self, msg: Msg) -> None:
        headers = msg.headers
        # A stored message may have a header of that name, too; it has a reply subject, and a server's status has none.
        if msg.reply or not headers or "Status" not in headers:
            # The path of every message: nothing here that can be done once for many of them.
            self._buffer.append(msg)
            if len(self._buffer) == 1:
                self._arrived.set()
            return
        self._replied_at = time.monotonic()
        status, text = headers["Status"], headers.get("Description", "")
        if status == "100":  # heartbeat
            self._alive_at = self._replied_at
            return
        if status == "409" and "Deleted" in text:
            self._gone = f"{self._name} was deleted"
        elif status == "503":  # the consumer has no leader at this moment
            await asyncio.sleep(RETRY_S)
            self._requested = 0
            self._check_signs_of_life()
        else:  # the request expired, or its server or leader went away: what is missing of it will not come
            unmet = headers.get("Nats-Pending-Messages")
            self._requested = max(0, self._requested - int(unmet)) if unmet else 0
        self._arrived.set()


async def read_in_order(
    client: Client, stream: str, *, subject: str = ">", start: int = 1, prefetch: int = 2_000
) -> AsyncGenerator[list[Msg], None]:
    """Yield every message of a stream, each once, in the stream's order, and then new ones as they arrive.

    It acknowledges nothing: a consumer that is lost with its server is made again where the reader stood.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        subject: Which subjects to read.
        start: Number in the stream at which to begin.
        prefetch: Messages requested ahead of the caller's work.

    Raises:
        nats.js.errors.NotFoundError: There is no such stream.
        nats.js.errors.APIError: The servers refuse a consumer of that configuration.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    following, js = start, client.jetstream(timeout=2.0)
    while True:
        # Held in memory by one server: losing it costs a new one, replicating it would cost every delivery.
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=following,
            filter_subject=subject,
            inactive_threshold=60.0,
            mem_storage=True,
            num_replicas=1,
        )
        info = await retry(partial(js.add_consumer, stream, config), within=math.inf, every=RETRY_S)
        expected = 1
        try:
            async with PullConsumer(client, stream, info.name, prefetch=prefetch, lost_after=2.0) as consumer:
                async for batch in consumer.batches():
                    last = position(batch[-1])
                    # Deliveries are numbered without gaps, so the last number tells whether all are here.
                    if last.consumer_seq != expected + len(batch) - 1:
                        break  # one was lost on its way: read again from where we stand
                    expected, following = last.consumer_seq + 1, last.stream_seq + 1
                    yield batch
        except nats.js.errors.NotFoundError:
            pass  # the consumer went with its server; if it was the stream, making a new one says so
        finally:
            # Without waiting for a reply: if this gets lost, the server forgets the consumer after a minute.
            with contextlib.suppress(nats.errors.Error, RuntimeError):  # the latter is uvloop's for a dead connection
                await client.publish(f"{DEFAULT_PREFIX}.CONSUMER.DELETE.{stream}.{info.name}")
        await asyncio.sleep(RETRY_S)
