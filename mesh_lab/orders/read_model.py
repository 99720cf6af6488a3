"""The read model: the totals of all order events, built from the stream alone and kept ready for requests."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import OrderFormatError, StreamReplacedError
from mesh_lab.orders.order import STREAM, Event, Totals, decode, event_of
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import unless_closed

SUBJECT = "read_model.summary"
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
    """Counts order events, each once."""

    def __init__(self) -> None:
        self._seen: dict[Event, set[str]] = {}
        self._customers: set[int] = set()
        self._cds = self._cents = self._doubled = self._rejected = self._last_seq = 0

    def apply(self, batch: Sequence[Msg]) -> None:
        """Count events, at least one, in the stream's order; one that was counted before only counts as doubled.

        The stream keeps for ever what anybody stores on its subjects, so a message that is no event of an order is
        passed over: the first one with a warning, each of them as ``rejected``.
        """
        for msg in batch:
            try:
                event, order = event_of(msg.subject), decode(msg.data)
            except OrderFormatError as err:
                if not self._rejected:
                    _log.warning("message %d on %s is passed over: %s", msg.metadata.sequence.stream, msg.subject, err)
                self._rejected += 1
                continue
            seen = self._seen.setdefault(event, set())
            if order.id in seen:
                self._doubled += 1
                continue
            seen.add(order.id)
            if event == "placed":
                self._customers.add(order.customer)
            elif event == "paid":
                self._cents += order.cents
            elif event == "shipped":
                self._cds += order.cds
        self._last_seq = batch[-1].metadata.sequence.stream

    def summary(self) -> Summary:
        """Return the state as of now."""
        events = {event: len(ids) for event, ids in self._seen.items()}
        totals = Totals(events.get("placed", 0), len(self._customers), self._cds, self._cents)
        return Summary(self._last_seq, totals, events, self._doubled, self._rejected)


async def serve_read_model(client: Client) -> None:
    """Build the read model from the stream's beginning, keep it up to date and reply to requests, until cancelled.

    When the stream is deleted and made again before that is noticed, the model begins again, too.

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
                async for batch in read_in_order(client, STREAM):
                    model.apply(batch)
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
