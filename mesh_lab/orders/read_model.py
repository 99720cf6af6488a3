"""The read model: the totals of all order events, built from the stream alone and kept ready for requests."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import OrderFormatError, StreamReplacedError
from mesh_lab.orders.order import EVENTS, STREAM, Event, Order, Totals, decode, event_of
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import unless_closed

if TYPE_CHECKING:  # it needs a library that services without traces do without
    from mesh_lab.orders.tracing import OrderTracer

SUBJECT = "read_model.summary"
_BIT = {event: 1 << number for number, event in enumerate(EVENTS)}
_log = logging.getLogger(__name__)


class Summary(msgspec.Struct, frozen=True):
    """The state of the read model at one point of the stream."""

    last_seq: int
    totals: Totals
    """Orders and customers as placed, CDs as shipped, cents as paid."""
    events: dict[Event, int]
    """Orders by event: how many were placed, how many paid …"""
    doubled: int
    """Events that the stream holds a second time; counted once in everything above."""
    rejected: int = 0
    """Messages that are no events of orders; counted in nothing above."""


class ReadModel:
    """Counts order events, each once; for that, it remembers each order's id.

    Of the 20 µs of processor time that an event takes here, 16 are nats-py's, 5 of them for the header (py-spy).
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}  # by order: the bits of its events
        self._events: dict[Event, int] = {}
        self._customers: set[int] = set()
        self._cds = self._cents = self._doubled = self._rejected = self._last_seq = 0

    def apply(self, batch: Sequence[Msg]) -> None:
        """Count events, at least one, in the stream's order; one that was counted before only counts as doubled.

        The stream keeps for ever what anybody stores on its subjects, so a message that is no event of an order is
        passed over: the first one with a warning, each of them as ``rejected``.
        """
        order: Order
        data: bytes | None = None
        seen = self._seen
        for msg in batch:
            try:
                event = event_of(msg.subject)
                if msg.data != data:  # an order's events carry the same, and often follow one another
                    order, data = decode(msg.data), msg.data
            except OrderFormatError as err:
                if not self._rejected:
                    _log.warning("message %d on %s is passed over: %s", msg.metadata.sequence.stream, msg.subject, err)
                self._rejected += 1
                continue
            bits = seen.get(order.id, 0)
            if bits & _BIT[event]:
                self._doubled += 1
                continue
            seen[order.id] = bits | _BIT[event]
            self._events[event] = self._events.get(event, 0) + 1
            if event == "placed":
                self._customers.add(order.customer)
            elif event == "paid":
                self._cents += order.cents
            elif event == "shipped":
                self._cds += order.cds
        self._last_seq = batch[-1].metadata.sequence.stream

    def summary(self) -> Summary:
        """Return the state as of now."""
        totals = Totals(self._events.get("placed", 0), len(self._customers), self._cds, self._cents)
        return Summary(self._last_seq, totals, dict(self._events), self._doubled, self._rejected)


async def serve_read_model(client: Client, *, consumer: str | None = None, tracer: "OrderTracer | None" = None) -> None:
    """Build the read model from the stream's beginning, keep it up to date and reply to requests, until cancelled.

    When the stream is deleted and made again before that is noticed, the model begins again, too.

    Args:
        client: A connected nats-py client.
        consumer: As ``name`` of :func:`~mesh_lab.patterns.pull_consumer.read_in_order`.
        tracer: Notes when each event that is followed was counted.

    Raises:
        nats.js.errors.NotFoundError: There is no stream of order events, or it was deleted.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    model = ReadModel()

    async def reply(msg: Msg) -> None:
        if msg.reply:
            await publish_if_connected(client, msg.reply, msgspec.json.encode(model.summary()))

    requests = await client.subscribe(SUBJECT, cb=reply)
    try:
        while True:
            try:
                async with aclosing(read_in_order(client, STREAM, name=consumer)) as batches:
                    async for batch in batches:
                        spans = [span for msg in batch if (span := tracer.follow("count", msg))] if tracer else []
                        model.apply(batch)
                        for span in spans:
                            span.end()
                        await asyncio.sleep(0)  # a full stream must not keep requests waiting
            except StreamReplacedError as err:
                _log.warning("%s; the read model begins again", err)
                model = ReadModel()
    finally:
        await requests.unsubscribe()


async def ask_read_model(client: Client, *, within: float = 2.0) -> Summary:
    """Return the summary of the read model that replies first; wait for up to ``within`` seconds.

    Raises:
        nats.errors.NoRespondersError: No read model runs.
        nats.errors.TimeoutError: None replied in time.
        nats.errors.ConnectionClosedError: The client was closed.
        OrderFormatError: Something else replied.
    """
    reply = await unless_closed(client, client.request(SUBJECT, timeout=within))
    try:
        return msgspec.json.decode(reply.data, type=Summary)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        seen = f"{reply.data[:80]!r} on {SUBJECT!r}, expected a summary"
        raise OrderFormatError(f"{seen}: another service replies there, or a read model of another version") from err
