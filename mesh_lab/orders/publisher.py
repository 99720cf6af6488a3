"""The publisher: places orders, each durably and once."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

from nats.aio.client import Client

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.fast_lane import FastLane, Message
from mesh_lab.orders.order import Order, decode, encode
from mesh_lab.patterns.jetstream_api import Ack
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

if TYPE_CHECKING:  # it needs a library that services without traces do without
    from opentelemetry.trace import Span

    from mesh_lab.orders.tracing import OrderTracer

CHUNK, WINDOW = 4_000, 2_000  # orders taken at a time, and acknowledgements that may be outstanding


async def place_orders(
    client: Client,
    orders: Iterable[Order],
    *,
    on_stored: Callable[[int, int], object] = lambda _stored, _twice: None,
    tracer: "OrderTracer | None" = None,
) -> int:
    """Publish the ``placed`` event of each order and return how many are stored.

    What was placed before, within the stream's ``duplicate_window``, is acknowledged and not stored again. Such orders
    come in rows, as where a publisher is run again, and fast ingest does not tell them: so the first order of each
    chunk is stored singly, and where it was placed before, the chunk's other orders as well.

    Args:
        client: A connected nats-py client.
        orders: What to place.
        on_stored: Called with how many more orders are stored, and how many of them were told to be there already.
        tracer: Follows the orders, each from here on.

    Raises:
        OrderFormatError: An order is none that readers would take, as by a blank in its id; those before it are stored.
        PublishRefusedError: The stream refused an order, or nobody took it within the retry budget.
        UnknownOutcomeError: No reply came for an order within the retry budget.
        nats.errors.ConnectionClosedError: The client was closed; what was not acknowledged may be stored.
    """
    coming, lane, total = iter(orders), FastLane(client), 0
    refused: OrderFormatError | None = None
    async with WindowedPublisher(client, window=WINDOW) as window:

        async def place_singly(messages: list[Message], *, tell: bool = True) -> None:
            def note(ack: Ack) -> None:
                on_stored(1, tell and ack.duplicate)

            for subject, payload, headers in messages:
                await window.publish(subject, payload, msg_id=headers["Nats-Msg-Id"], headers=headers, on_stored=note)
            await window.flush()

        while refused is None:
            chunk, spans = list[Message](), list["Span"]()
            try:
                chunk.extend(map(_placed, islice(coming, CHUNK)))
            except OrderFormatError as err:
                refused = err
            if not chunk:
                break
            for subject, _, headers in chunk if tracer else ():
                if tracer and (span := tracer.place(subject)):
                    spans.append(span)
                    headers.update(tracer.headers(span))
            duplicates = window.duplicates
            await place_singly(chunk[:1])
            rest, tell = chunk[1:], True
            if window.duplicates == duplicates and lane.takes(rest):
                try:
                    await lane.store(rest)
                finally:
                    on_stored(lane.stored, 0)
                rest, tell = rest[lane.stored :], False  # those may be there from this attempt
            await place_singly(rest, tell=tell)
            for span in spans:
                span.end()
            total += len(chunk)
    if refused is not None:
        raise refused
    return total


def _placed(order: Order) -> Message:
    """Return the event; an ``Order`` checks nothing itself, and one bad subject would stay in the stream for ever."""
    try:
        payload = encode(order)
    except ValueError as err:  # a number or a character that JSON cannot write
        raise OrderFormatError(f"not an order: {err}; seen id {order.id!r}") from err
    decode(payload)
    return order.subject("placed"), payload, {"Nats-Msg-Id": order.msg_id("placed")}
