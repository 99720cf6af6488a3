"""The publisher: places orders, each durably and once."""

from collections.abc import Callable, Iterable

from nats.aio.client import Client

from mesh_lab.orders.order import Order, encode
from mesh_lab.patterns.windowed_publisher import WindowedPublisher


async def place_orders(
    client: Client, orders: Iterable[Order], *, window: int = 2_000, progress: Callable[[int], None] | None = None
) -> int:
    """Publish the ``placed`` event of each order and return how many are stored.

    An order that was placed before, by this publisher or an earlier run of it within the stream's
    ``duplicate_window``, is acknowledged as a duplicate and not stored again.

    Args:
        client: A connected nats-py client.
        orders: What to place.
        window: Acknowledgements that may be outstanding.
        progress: Called with the number of orders stored since its last call.

    Raises:
        PublishRefusedError: The stream refused an order.
        UnknownOutcomeError: No answer came for an order within the retry budget.
    """
    told = 0
    async with WindowedPublisher(client, window=window) as publisher:

        def tell() -> None:
            nonlocal told
            if progress is not None and publisher.stored > told:
                progress(publisher.stored - told)
                told = publisher.stored

        for number, order in enumerate(orders):
            await publisher.publish(order.subject("placed"), encode(order), msg_id=order.msg_id("placed"))
            if number % window == 0:
                tell()
        await publisher.flush()
        tell()
        return publisher.stored
