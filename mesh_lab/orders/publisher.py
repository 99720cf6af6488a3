"""The publisher: places orders, each durably and once."""

from collections.abc import Callable, Iterable

from nats.aio.client import Client

from mesh_lab.orders.order import Order, encode
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

WINDOW = 2_000  # acknowledgements that may be outstanding


async def place_orders(
    client: Client, orders: Iterable[Order], *, progress: Callable[[int], None] | None = None
) -> int:
    """Publish the ``placed`` event of each order and return how many are stored.

    What was placed before, within the stream's ``duplicate_window``, is acknowledged and not stored again.

    Args:
        client: A connected nats-py client.
        orders: What to place.
        progress: Called with the number of orders stored since its last call.

    Raises:
        PublishRefusedError: The stream refused an order.
        UnknownOutcomeError: No reply came for an order within the retry budget.
    """
    reported = 0
    async with WindowedPublisher(client, window=WINDOW) as publisher:
        for number, order in enumerate(orders):
            await publisher.publish(order.subject("placed"), encode(order), msg_id=order.msg_id("placed"))
            if progress is not None and number % WINDOW == 0:
                progress(publisher.stored - reported)
                reported = publisher.stored
        await publisher.flush()
        if progress is not None:
            progress(publisher.stored - reported)
        return publisher.stored
