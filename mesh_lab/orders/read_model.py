"""The read model: what all order events add up to, kept ready for questions.

It is built from the stream alone, so it can be thrown away and built again at any time.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.orders.order import STREAM, Event, Order, decode, event_of
from mesh_lab.orders.totals import Totals
from mesh_lab.patterns.pull_consumer import position, read_in_order

QUESTIONS = "read_model.summary"
"""Ask here by request/reply."""


class Summary(msgspec.Struct, frozen=True):
    """Everything the read model knows, at one point of the stream."""

    last_seq: int
    """Number of the last event that is counted."""
    totals: Totals
    """Orders and customers as placed, CDs as shipped, cents as paid."""
    events: dict[Event, int]
    """Orders by event: how many were placed, how many paid …"""
    doubled: int
    """Events that the stream holds a second time; counted once in everything above."""


class ReadModel:
    """Counts order events, each once."""

    def __init__(self) -> None:
        self._seen: dict[Event, set[str]] = {}
        self._customers: set[int] = set()
        self._cds = self._cents = self._doubled = self._last_seq = 0

    def apply(self, batch: Sequence[Msg]) -> None:
        """Count events; an event that was counted before only counts as doubled.

        Args:
            batch: At least one message, in the stream's order.

        Raises:
            OrderFormatError: A message is not an event of an order.
        """
        for msg in batch:
            self._apply(event_of(msg.subject), decode(msg.data))
        self._last_seq = position(batch[-1]).stream_seq

    def _apply(self, event: Event, order: Order) -> None:
        seen = self._seen.setdefault(event, set())
        if order.id in seen:
            self._doubled += 1
            return
        seen.add(order.id)
        if event == "placed":
            self._customers.add(order.customer)
        elif event == "paid":
            self._cents += order.cents
        elif event == "shipped":
            self._cds += order.cds

    def summary(self) -> Summary:
        """Return what is known now."""
        return Summary(
            last_seq=self._last_seq,
            totals=Totals(
                orders=len(self._seen.get("placed", ())),
                customers=len(self._customers),
                cds=self._cds,
                cents=self._cents,
            ),
            events={event: len(ids) for event, ids in self._seen.items()},
            doubled=self._doubled,
        )


async def serve_read_model(client: Client, *, progress: Callable[[Summary], None] | None = None) -> None:
    """Build the read model from the stream's beginning, keep it up to date and answer questions, until cancelled.

    Args:
        client: A connected nats-py client.
        progress: Called with the summary after each batch.

    Raises:
        OrderFormatError: The stream holds something that is no event of an order.
        nats.js.errors.NotFoundError: There is no stream of order events.
    """
    model = ReadModel()

    async def answer(msg: Msg) -> None:
        await msg.respond(msgspec.json.encode(model.summary()))

    questions = await client.subscribe(QUESTIONS, cb=answer)
    try:
        async for batch in read_in_order(client, STREAM):
            model.apply(batch)
            if progress is not None:
                progress(model.summary())
            await asyncio.sleep(0)  # a full stream must not keep questions waiting
    finally:
        await questions.unsubscribe()


async def ask_read_model(client: Client, *, within: float = 2.0) -> Summary:
    """Return the summary of whichever read model answers first.

    Args:
        client: A connected nats-py client.
        within: Seconds to wait.

    Raises:
        nats.errors.NoRespondersError: No read model runs.
        nats.errors.TimeoutError: None answered in time.
    """
    answer = await client.request(QUESTIONS, timeout=within)
    return msgspec.json.decode(answer.data, type=Summary)
