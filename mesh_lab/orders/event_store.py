"""The event store: one stream that holds every event of every order.

A subject for each order makes it cheap to read one order's events, and to take all orders of a region or all events of
a kind by wildcard.
"""

import contextlib
from typing import NamedTuple

import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, DeliverPolicy, StorageType, StreamInfo

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM, Event, Order, decode, event_of
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry, unless_closed

WORKERS = "workers"
DUPLICATE_WINDOW_S = 120.0


class StoredEvent(NamedTuple):
    """One event of an order's life, and its number in the stream."""

    seq: int
    event: Event
    order: Order


async def create_event_store(
    js: JetStreamContext, *, replicas: int = 1, metadata: dict[str, str] | None = None
) -> StreamInfo:
    """Make the stream of order events if it is not there, and return the server's information about it.

    Args:
        js: JetStream context.
        replicas: Copies: 1 loses orders with its server, 3 survives the loss of one.
        metadata: Labels of the stream.

    Raises:
        nats.js.errors.BadRequestError: A stream of that name has other settings.
    """
    return await js.add_stream(
        name=STREAM,
        subjects=[ALL_SUBJECTS],
        storage=StorageType.FILE,
        num_replicas=replicas,
        metadata=metadata,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_batched=True,  # fast ingest
        # An event is history: no client changes or removes it through the API.
        deny_delete=True,
        deny_purge=True,
    )


async def create_worker_group(js: JetStreamContext, *, ack_wait: float = 5.0, max_ack_pending: int = 20_000) -> None:
    """Make the consumer that all workers share, or give it these settings.

    Args:
        js: JetStream context.
        ack_wait: Seconds after which an order that its worker did not acknowledge goes to another one.
        max_ack_pending: Orders that may be with workers at once; fewer slow the group down, more are redelivered
            when a worker dies.
    """
    await js.add_consumer(
        STREAM,
        durable_name=WORKERS,
        filter_subject="orders.*.*.placed",
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_ack_pending=max_ack_pending,
    )


async def open_event_store(client: Client, *, replicas: int = 1) -> StreamInfo:
    """Make the stream and the workers' group where they are missing, and return information about the stream.

    What is there already stays as it is, also with other settings. Retries while servers come up or elect a leader.

    Args:
        client: A connected nats-py client.
        replicas: Copies, if the stream has to be made.

    Raises:
        nats.errors.TimeoutError: No leader replied in half a minute.
        nats.js.errors.APIError: The servers cannot make the stream as it is asked for.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    js = client.jetstream(timeout=3.0)

    async def open_once() -> StreamInfo:
        try:
            info = await js.stream_info(STREAM)
        except nats.js.errors.NotFoundError:
            info = await create_event_store(js, replicas=replicas)
        try:
            await js.consumer_info(STREAM, WORKERS)
        except nats.js.errors.NotFoundError:
            await create_worker_group(js)
        return info

    return await unless_closed(client, retry(open_once))


async def read_order(client: Client, order_id: str) -> list[StoredEvent]:
    """Return the events of one order so far, oldest first; an unknown order has none.

    Messages on its subjects that are no events are passed over.
    """
    js = client.jetstream()
    subject = f"orders.*.{order_id}.*"
    try:
        last = (await js.get_last_msg(STREAM, subject)).seq
    except nats.js.errors.NotFoundError:
        return []
    events: list[StoredEvent] = []
    async for batch in read_in_order(client, STREAM, subject=subject, prefetch=16):
        for msg in batch:
            with contextlib.suppress(OrderFormatError):
                events.append(StoredEvent(msg.metadata.sequence.stream, event_of(msg.subject), decode(msg.data)))
        if batch[-1].metadata.sequence.stream >= (last or 0):
            break
    return events
