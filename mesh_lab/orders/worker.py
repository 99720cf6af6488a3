"""The worker: turns each placed order into the events that follow.

Workers share one consumer, so each order goes to one of them, which acknowledges it only when all of its events are
stored. If it dies before, another worker stores the same events under the same ids: the stream drops those it has, for
as long as its ``duplicate_window``. After that an event may be stored a second time; the read model counts it once.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import OrderFormatError, PublishRefusedError
from mesh_lab.orders.event_store import WORKERS
from mesh_lab.orders.order import STREAM, Event, Order, decode, encode, next_events
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.jetstream_api import TOO_LARGE, Ack
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.redelivery import expect_retries
from mesh_lab.patterns.windowed_publisher import Failure, WindowedPublisher

HOLD_EVERY_S = 1.25  # a quarter of the group's ack_wait
PREFETCH, WINDOW = 500, 2_000  # orders requested ahead of the work, and events that may be outstanding
REPORT_CHARACTERS, PLAIN_BYTES = 1_000, 1_000  # a real order has about 100
REJECTED = "rejected.orders"
"""Subject of reports about messages that are no orders; the stream keeps the message itself."""


# A message, its order, and the events that are to be stored one after the other, or why one is not.
_Step = tuple[Msg, Order, tuple[Event, ...] | Failure]


class Worker:
    """One worker of the group, which counts orders ``processed``, all events stored, and messages ``rejected``."""

    def __init__(self, client: Client) -> None:
        self.processed = self.rejected = 0
        self._client = client
        self._in_hand: set[str] = set()  # reply subjects of orders whose events are not all stored
        self._hold_every_s = HOLD_EVERY_S
        self._steps: asyncio.Queue[_Step] = asyncio.Queue()
        self._idle = asyncio.Event()

    async def run(self, *, stop: asyncio.Event | None = None) -> None:
        """Work until stopped; then finish the orders in hand.

        Args:
            stop: Set it to stop gracefully. Without it, cancel the task: orders in hand go to other workers.

        Raises:
            PublishRefusedError: The stream refused an event, other than one of a message that is too large itself.
            UnknownOutcomeError: No reply came for an event within the retry budget.
            UnsuitableConsumerError: The group's consumer is no pull consumer with explicit acknowledgement.
            nats.js.errors.NotFoundError: The group's consumer is not there, or was deleted.
            nats.errors.ConnectionClosedError: The client was closed.
        """
        try:
            async with WindowedPublisher(self._client, window=WINDOW) as publisher, asyncio.TaskGroup() as tasks:
                steps = tasks.create_task(self._take_steps(publisher))
                intake = tasks.create_task(self._take_orders())
                holding = tasks.create_task(self._hold())
                if stop is None:
                    return
                await stop.wait()
                intake.cancel()
                await self._until_fewer_than(1)
                steps.cancel()
                holding.cancel()
        except BaseExceptionGroup as group:
            if self._client.is_closed:
                raise nats.errors.ConnectionClosedError from group
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None

    async def _take_orders(self) -> None:
        check = partial(expect_retries, f"consumer {WORKERS!r} of stream {STREAM!r}", 0)
        async with PullConsumer(self._client, STREAM, WORKERS, prefetch=PREFETCH, check=check) as consumer:
            if consumer.settings is not None:
                self._hold_every_s = min(HOLD_EVERY_S, consumer.settings.shortest_wait_s / 4)
            async for batch in consumer.batches():
                for msg in batch:
                    await self._take(msg)
                # Order after order, but never more in hand than the window lets out.
                await self._until_fewer_than(WINDOW)

    async def _hold(self) -> None:
        """Keep the server from giving others what is in hand for long, as while the stream is slow."""
        before: set[str] = set()
        while True:
            await asyncio.sleep(self._hold_every_s)
            for reply in before & self._in_hand:
                await publish_if_connected(self._client, reply, b"+WPI")
            before = set(self._in_hand)

    async def _until_fewer_than(self, open_orders: int) -> None:
        while len(self._in_hand) >= open_orders:
            self._idle.clear()
            await self._idle.wait()

    async def _take(self, msg: Msg) -> None:
        try:
            order = decode(msg.data)
        except OrderFormatError as err:
            await self._reject(msg, err)
            return
        self._in_hand.add(msg.reply)
        self._steps.put_nowait((msg, order, next_events(order)))

    async def _reject(self, msg: Msg, why: Exception) -> None:
        """Report a message that comes to nothing: redelivered, it would be no order either."""
        report = f"{msg.subject}: {why}"[:REPORT_CHARACTERS].encode("utf-8", "backslashreplace")
        if await publish_if_connected(self._client, REJECTED, report):  # or else it comes again, after ack_wait
            await publish_if_connected(self._client, msg.reply, b"+TERM")
            self.rejected += 1

    async def _take_steps(self, publisher: WindowedPublisher) -> None:
        """Store the events of each order one after the other, those of different orders side by side."""
        while True:
            msg, order, events = await self._steps.get()
            if isinstance(events, Exception):
                if getattr(events, "err_code", 0) not in TOO_LARGE:
                    raise events
                await self._reject(msg, events)
            elif events:
                # An event carries the whole order; of one that somebody padded, without the padding.
                payload = msg.data if len(msg.data) <= PLAIN_BYTES else encode(order)
                subject, msg_id = order.subject(events[0]), order.msg_id(events[0])
                on_stored, on_failed = self._next_step(msg, order, events[1:])
                try:
                    await publisher.publish(subject, payload, msg_id=msg_id, on_stored=on_stored, on_failed=on_failed)
                    continue
                except PublishRefusedError as err:
                    await self._reject(msg, err)
            else:
                await publish_if_connected(self._client, msg.reply, b"+ACK")  # one that gets lost comes again
                self.processed += 1
            self._in_hand.discard(msg.reply)
            self._idle.set()

    def _next_step(
        self, msg: Msg, order: Order, events: tuple[Event, ...]
    ) -> tuple[Callable[[Ack], None], Callable[[Failure], None]]:
        put = self._steps.put_nowait
        return (lambda _ack: put((msg, order, events))), (lambda why: put((msg, order, why)))
