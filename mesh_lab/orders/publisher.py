"""The publisher: places orders, each durably and once."""

from collections.abc import Callable, Iterable

from nats.aio.client import Client

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import Order, decode, encode
from mesh_lab.patterns.jetstream_api import Ack
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

WINDOW = 2_000  # acknowledgements that may be outstanding


async def place_orders(
    client: Client, orders: Iterable[Order], *, on_stored: Callable[[Ack], None] | None = None
) -> int:
    """Publish the ``placed`` event of each order and return how many are stored.

    What was placed before, within the stream's ``duplicate_window``, is acknowledged and not stored again.

    Args:
        client: A connected nats-py client.
        orders: What to place.
        on_stored: Called with the acknowledgement of each order.

    Raises:
        OrderFormatError: An order is none that readers would take, as by a blank in its id; those before it are stored.
        PublishRefusedError: The stream refused an order, or nobody took it within the retry budget.
        UnknownOutcomeError: No reply came for an order within the retry budget.
        nats.errors.ConnectionClosedError: The client was closed; what was not acknowledged may be stored.
    """
    async with WindowedPublisher(client, window=WINDOW) as publisher:
        for order in orders:
            try:
                decode(payload := encode(order))  # an ``Order`` checks nothing itself, and one bad subject would stay
            except OrderFormatError:
                await publisher.flush()
                raise
            subject, msg_id = order.subject("placed"), order.msg_id("placed")
            await publisher.publish(subject, payload, msg_id=msg_id, on_stored=on_stored)
        await publisher.flush()
        return publisher.stored
