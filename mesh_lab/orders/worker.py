"""The worker: turns each event of an order that its group brings into the messages that follow.

Workers share one consumer, so each event goes to one of them, which acknowledges it only when all that follows is
stored. If it dies before, another worker stores the same messages under the same ids: the stream drops those it has,
for as long as its ``duplicate_window``. After that a message may be stored a second time, unless it asks to be the
first of its subject, as those of the saga do; the read model counts an event once.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import OrderFormatError, PublishRefusedError
from mesh_lab.orders.event_store import WORKERS
from mesh_lab.orders.fast_lane import FastLane
from mesh_lab.orders.order import STREAM, Order, decode, encode, next_events
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.jetstream_api import STORED_BEFORE, TOO_LARGE, UNDER_WAY
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.redelivery import expect_retries
from mesh_lab.patterns.wait import cancel_and_join
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

if TYPE_CHECKING:  # it needs a library that services without traces do without
    from opentelemetry.trace import Span

    from mesh_lab.orders.tracing import OrderTracer

HOLD_EVERY_S = 1.25  # a quarter of the group's ack_wait
PREFETCH, WINDOW = 1_000, 2_000  # events requested ahead of the work, and followers that may be outstanding
REPORT_CHARACTERS, PLAIN_BYTES = 1_000, 1_000  # a real order has about 100
REJECTED = "rejected.orders"
"""Subject of reports about messages that are no orders; the stream keeps the message itself."""


class Step(NamedTuple):
    """A message that follows from an event, and carries the same order."""

    subject: str
    headers: dict[str, str]
    """With its ``Nats-Msg-Id``."""


class Duty(NamedTuple):
    """What a worker does: which consumer brings it events, and what follows from each."""

    group: str
    follow: Callable[[str, Order], Sequence[Sequence[Step]]]
    """Returns for an event's subject and its order what follows, in stages, each in one stream: the second is begun
    when the first is stored. It raises OrderFormatError for what is no event."""


def _follow(_subject: str, order: Order) -> Sequence[Sequence[Step]]:
    return ([Step(order.subject(e), {"Nats-Msg-Id": order.msg_id(e)}) for e in next_events(order)],)


WORKER = Duty(WORKERS, _follow)
"""Does all at once: what was placed is paid and shipped, or declined."""

_Work = list[tuple[Msg, bytes, Sequence[Step]]]
"""Of each event in hand: what its followers carry, and those of one stage."""


class Worker:
    """One worker of a group, which counts events ``processed``, all that follows stored, and messages ``rejected``."""

    def __init__(self, client: Client, duty: Duty = WORKER, *, tracer: "OrderTracer | None" = None) -> None:
        self.processed = self.rejected = 0
        self._client, self._duty, self._tracer = client, duty, tracer
        self._in_hand: dict[str, Msg] = {}  # by reply subject: events of which not all that follows is stored
        self._lane = FastLane(client)

    async def run(self, *, stop: asyncio.Event | None = None) -> None:
        """Work until stopped; then finish the events in hand.

        Args:
            stop: Set it to stop gracefully. Without it, cancel the task: events in hand go to other workers.

        Raises:
            PublishRefusedError: The stream refused an event, other than one of a message that is too large itself.
            UnknownOutcomeError: No reply came for an event within the retry budget.
            UnsuitableConsumerError: The group's consumer is no pull consumer with explicit acknowledgement.
            nats.js.errors.NotFoundError: The group's consumer is not there, or was deleted.
            nats.errors.ConnectionClosedError: The client was closed.
        """
        group = self._duty.group
        check = partial(expect_retries, f"consumer {group!r} of stream {STREAM!r}", 0)
        consumer = PullConsumer(self._client, STREAM, group, prefetch=PREFETCH, check=check)
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
            for reply in before & self._in_hand.keys():
                await publish_if_connected(self._client, reply, b"+WPI")
            before = set(self._in_hand)

    async def _process(self, batch: list[Msg], window: WindowedPublisher) -> None:
        """Store what follows from a batch of events, and only then acknowledge it."""
        self._in_hand, stages, spans = {}, list[_Work](), list["Span"]()
        for msg in batch:
            try:
                order = decode(msg.data)
                following = self._duty.follow(msg.subject, order)
            except OrderFormatError as err:
                await self._reject(msg, err)
                continue
            self._in_hand[msg.reply] = msg
            if self._tracer and (span := self._tracer.follow("process", msg)):
                spans.append(span)
                joins = self._tracer.headers(span)
                following = [[Step(subject, headers | joins) for subject, headers in steps] for steps in following]
            stages += [[] for _ in following[len(stages) :]]
            payload = _payload(msg, order)
            for stage, steps in zip(stages, following, strict=False):
                stage.append((msg, payload, steps))
        for stage in stages:
            work = [item for item in stage if item[0].reply in self._in_hand]
            messages = [(subject, payload, headers) for _, payload, steps in work for subject, headers in steps]
            if not (self._lane.takes(messages) and await self._lane.store(messages)):
                await self._store_one_by_one(work, window)
        for reply in self._in_hand:
            await publish_if_connected(self._client, reply, b"+ACK")  # one that gets lost comes again
        for span in spans:
            span.end()
        self.processed += len(self._in_hand)
        self._in_hand = {}

    async def _reject(self, msg: Msg, why: Exception) -> None:
        """Report a message that comes to nothing: redelivered, it would be no order either."""
        self._in_hand.pop(msg.reply, None)
        report = f"{msg.subject}: {why}"[:REPORT_CHARACTERS].encode("utf-8", "backslashreplace")
        if await publish_if_connected(self._client, REJECTED, report):  # or else it comes again, after ack_wait
            await publish_if_connected(self._client, msg.reply, b"+TERM")
            self.rejected += 1

    async def _store_one_by_one(self, work: _Work, window: WindowedPublisher) -> None:
        """Store what follows from each event one by one, side by side for different events; reject what cannot be."""
        for number in range(max((len(steps) for _, _, steps in work), default=0)):
            refused: dict[str, Exception] = {}
            for msg, payload, steps in work:
                if number < len(steps) and msg.reply in self._in_hand:
                    subject, headers = steps[number]
                    failed = partial(refused.__setitem__, msg.reply)
                    msg_id = headers["Nats-Msg-Id"]
                    try:
                        await window.publish(subject, payload, msg_id=msg_id, headers=headers, on_failed=failed)
                    except PublishRefusedError as err:  # it is not sent
                        await self._reject(msg, err)
            await window.flush()
            for reply, why in refused.items():
                code = getattr(why, "err_code", 0)
                if code in TOO_LARGE:
                    await self._reject(self._in_hand[reply], why)
                elif code == UNDER_WAY:
                    del self._in_hand[reply]  # it comes again
                elif code != STORED_BEFORE:
                    raise nats.errors.ConnectionClosedError if self._client.is_closed else why


def _payload(msg: Msg, order: Order) -> bytes:
    """Return what a follower carries: the whole order; of one that somebody padded, without the padding."""
    return msg.data if len(msg.data) <= PLAIN_BYTES else encode(order)
