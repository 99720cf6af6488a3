"""The worker: turns each placed order into the events that follow.

Workers share one consumer, so each order goes to one of them, which acknowledges it only when all of its events are
stored. If it dies before, another worker stores the same events under the same ids: the stream drops those it has, for
as long as its ``duplicate_window``. After that an event may be stored a second time; the read model counts it once.
"""

import asyncio
import time
from contextlib import aclosing
from functools import partial

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import MeshLabError, OrderFormatError, PublishRefusedError
from mesh_lab.orders.event_store import WORKERS
from mesh_lab.orders.order import STREAM, Event, Order, decode, encode, next_events
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.fast_ingest import FastIngest
from mesh_lab.patterns.jetstream_api import TOO_LARGE
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.redelivery import expect_retries
from mesh_lab.patterns.wait import cancel_and_join
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

HOLD_EVERY_S = 1.25  # a quarter of the group's ack_wait
PREFETCH, WINDOW = 1_000, 2_000  # orders requested ahead of the work, and events that may be outstanding
# Fast ingest takes two round trips, a window one for each event; what it could not do now, it cannot in a moment.
FEW_ORDERS, PATIENCE_S, SLOW_S = 8, 5.0, 5.0
REPORT_CHARACTERS, PLAIN_BYTES = 1_000, 1_000  # a real order has about 100
REJECTED = "rejected.orders"
"""Subject of reports about messages that are no orders; the stream keeps the message itself."""

_Events = list[tuple[Msg, Order, tuple[Event, ...]]]


class Worker:
    """One worker of the group, which counts orders ``processed``, all events stored, and messages ``rejected``."""

    def __init__(self, client: Client) -> None:
        self.processed = self.rejected = 0
        self._client = client
        self._in_hand: set[str] = set()  # reply subjects of orders whose events are not all stored
        self._fast_from = 0.0

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
        check = partial(expect_retries, f"consumer {WORKERS!r} of stream {STREAM!r}", 0)
        consumer = PullConsumer(self._client, STREAM, WORKERS, prefetch=PREFETCH, check=check)
        async with consumer, WindowedPublisher(self._client, window=WINDOW) as window:
            wait_s = consumer.settings.shortest_wait_s if consumer.settings else 4 * HOLD_EVERY_S
            holding = asyncio.create_task(self._hold(min(HOLD_EVERY_S, wait_s / 4)))
            try:
                async with aclosing(consumer.batches(stop)) as batches:
                    async for batch in batches:
                        await self._process(batch, window)
            finally:
                await cancel_and_join(holding)

    async def _hold(self, every_s: float) -> None:
        """Keep the server from giving others what is in hand for long, as while the stream is slow."""
        before: set[str] = set()
        while True:
            await asyncio.sleep(every_s)
            for reply in before & self._in_hand:
                await publish_if_connected(self._client, reply, b"+WPI")
            before = set(self._in_hand)

    async def _process(self, batch: list[Msg], window: WindowedPublisher) -> None:
        """Store the events of a batch of orders, and only then acknowledge it."""
        work: _Events = []
        for msg in batch:
            try:
                order = decode(msg.data)
            except OrderFormatError as err:
                await self._reject(msg, err)
            else:
                work.append((msg, order, next_events(order)))
        self._in_hand = {msg.reply for msg, _, _ in work}
        if len(work) < FEW_ORDERS or time.monotonic() < self._fast_from or not await self._ingest(work):
            work = await self._store_one_by_one(work, window)
        for msg, _, _ in work:
            await publish_if_connected(self._client, msg.reply, b"+ACK")  # one that gets lost comes again
        self.processed += len(work)
        self._in_hand = set()

    async def _reject(self, msg: Msg, why: Exception) -> None:
        """Report a message that comes to nothing: redelivered, it would be no order either."""
        report = f"{msg.subject}: {why}"[:REPORT_CHARACTERS].encode("utf-8", "backslashreplace")
        if await publish_if_connected(self._client, REJECTED, report):  # or else it comes again, after ack_wait
            await publish_if_connected(self._client, msg.reply, b"+TERM")
            self.rejected += 1

    async def _ingest(self, work: _Events) -> bool:
        """Return whether all events are stored, in their order, by fast ingest: one acknowledgement for many.

        It takes 0.6 times a window's processor time here (psutil, one run each); the rest is mostly nats-py's.
        """
        try:
            async with FastIngest(self._client, patience=PATIENCE_S) as ingest:
                for msg, order, events in work:
                    payload = _payload(msg, order)
                    for event in events:
                        headers = {"Nats-Msg-Id": order.msg_id(event)}
                        await ingest.publish(order.subject(event), payload, headers=headers)
        except MeshLabError:  # whatever became of it: one by one, under the same ids, each event's outcome is known
            self._fast_from = time.monotonic() + SLOW_S
            return False
        return True

    async def _store_one_by_one(self, work: _Events, window: WindowedPublisher) -> _Events:
        """Store each order's events one by one, those of different orders side by side; return what is not rejected."""
        for step in range(max((len(events) for _, _, events in work), default=0)):
            refused: dict[str, Exception] = {}
            for msg, order, events in work:
                if step < len(events):
                    subject, msg_id = order.subject(events[step]), order.msg_id(events[step])
                    failed = partial(refused.__setitem__, msg.reply)
                    try:
                        await window.publish(subject, _payload(msg, order), msg_id=msg_id, on_failed=failed)
                    except PublishRefusedError as err:  # it is not sent
                        await self._reject(msg, err)
                        work = [one for one in work if one[0] is not msg]
            await window.flush()
            for msg, _, _ in [one for one in work if one[0].reply in refused]:
                if getattr(why := refused[msg.reply], "err_code", 0) not in TOO_LARGE:
                    raise nats.errors.ConnectionClosedError if self._client.is_closed else why
                await self._reject(msg, why)
            work = [one for one in work if one[0].reply not in refused]
        return work


def _payload(msg: Msg, order: Order) -> bytes:
    """Return what an event carries: the whole order; of one that somebody padded, without the padding."""
    return msg.data if len(msg.data) <= PLAIN_BYTES else encode(order)
