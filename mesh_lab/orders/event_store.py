"""The event store: one stream that holds every event of every order.

A subject for each order makes it cheap to read one order's events, and to take all orders of a region or all events of
a kind by wildcard.
"""

import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, DeliverPolicy, StorageType, StreamInfo

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM, Event, Order, decode, event_of
from mesh_lab.patterns.connection import is_forbidden
from mesh_lab.patterns.jetstream_api import api_prefix
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry, unless_closed

T = TypeVar("T")
WORKERS, PLACED = "workers", ("orders.*.*.placed",)
DUPLICATE_WINDOW_S = 120.0


class StoredEvent(NamedTuple):
    """One event of an order's life, and its number in the stream."""

    seq: int
    event: Event
    order: Order


class Deployment(NamedTuple):
    """What services need before they start, and make where it is missing."""

    streams: Mapping[str, str]
    """Streams by name, with the subjects of each; that of order events first."""
    groups: Mapping[str, Sequence[str]]
    """Consumers that the replicas of a service share, by name, with the subjects that each brings."""


EVENTS = Deployment({STREAM: ALL_SUBJECTS}, {})
PLAIN = Deployment({STREAM: ALL_SUBJECTS}, {WORKERS: PLACED})


async def create_event_store(
    js: JetStreamContext,
    *,
    replicas: int = 1,
    metadata: dict[str, str] | None = None,
    name: str = STREAM,
    subjects: str = ALL_SUBJECTS,
) -> StreamInfo:
    """Make the stream of order events if it is not there, and return the server's information about it.

    Args:
        js: JetStream context.
        replicas: Copies: 1 loses orders with its server, 3 survives the loss of one.
        metadata: Labels of the stream.
        name: Name of another stream with the same settings.
        subjects: Its subjects, as a wildcard.

    Raises:
        nats.js.errors.BadRequestError: A stream of that name has other settings.
    """
    return await js.add_stream(
        name=name,
        subjects=[subjects],
        storage=StorageType.FILE,
        num_replicas=replicas,
        metadata=metadata,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_batched=True,  # fast ingest
        # An event is history: no client changes or removes it through the API.
        deny_delete=True,
        deny_purge=True,
    )


async def create_worker_group(
    js: JetStreamContext,
    name: str = WORKERS,
    subjects: Sequence[str] = PLACED,
    *,
    ack_wait: float = 5.0,
    max_ack_pending: int = 20_000,
) -> None:
    """Make the consumer that all workers share, or that of another service, or give it these settings.

    Args:
        js: JetStream context.
        name: Name of the consumer.
        subjects: Which events it brings.
        ack_wait: Seconds after which an order that its worker did not acknowledge goes to another one.
        max_ack_pending: Orders that may be with workers at once; fewer slow the group down, more are redelivered
            when a worker dies.
    """
    one = len(subjects) == 1
    await js.add_consumer(
        STREAM,
        durable_name=name,
        filter_subject=subjects[0] if one else None,
        filter_subjects=None if one else list(subjects),
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        max_ack_pending=max_ack_pending,
    )


async def open_event_store(
    client: Client, *, replicas: int = 1, deployment: Deployment = PLAIN, metadata: dict[str, str] | None = None
) -> StreamInfo:
    """Make streams and groups where they are missing, and return information about the stream of order events.

    What is there already stays as it is, also with other settings. Retries while servers come up or elect a leader.

    Args:
        client: A connected nats-py client.
        replicas: Copies, if a stream has to be made.
        deployment: Which streams and groups.
        metadata: Labels of streams that have to be made.

    Raises:
        nats.js.errors.NotFoundError: Something is missing, and this client's user has no right to make it.
        nats.errors.TimeoutError: No leader replied in half a minute.
        nats.js.errors.APIError: The servers cannot make the stream as it is asked for.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    js = client.jetstream(timeout=3.0)

    async def open_once() -> StreamInfo:
        found = []
        for name, taken in deployment.streams.items():
            try:
                found.append(await js.stream_info(name))
            except nats.js.errors.NotFoundError:
                new = create_event_store(js, replicas=replicas, metadata=metadata, name=name, subjects=taken)
                found.append(await _made(f"stream {name!r}", new))
        for name, subjects in deployment.groups.items():
            try:
                await js.consumer_info(STREAM, name)
            except nats.js.errors.NotFoundError:
                await _made(f"consumer {name!r}", create_worker_group(js, name, subjects))
        return found[0]

    async def _made(what: str, making: Awaitable[T]) -> T:
        try:
            return await making
        except nats.errors.TimeoutError as err:
            if not is_forbidden(client.last_error, api_prefix(None)):  # to which the servers reply nothing else
                raise
            said = f"{what} is missing, and this user may not make it; make it first, as who deploys the services"
            raise nats.js.errors.NotFoundError(code=404, description=said) from err

    return await unless_closed(client, retry(open_once))


async def read_order(client: Client, order_id: str) -> list[StoredEvent]:
    """Return the events of one order so far, oldest first; an unknown order has none."""
    return await read_events(client, f"orders.*.{order_id}.*", prefetch=16)


async def read_events(client: Client, subject: str = ALL_SUBJECTS, *, prefetch: int = 2_000) -> list[StoredEvent]:
    """Return all events so far on some of the store's subjects, oldest first; messages that are no events are left out.

    Raises:
        nats.errors.Error: What ``js.get_last_msg`` and ``read_in_order`` raise.
    """
    js = client.jetstream()
    try:
        last = (await js.get_last_msg(STREAM, subject)).seq
    except nats.js.errors.NotFoundError:
        return []
    events: list[StoredEvent] = []
    async with aclosing(read_in_order(client, STREAM, subject=subject, prefetch=prefetch)) as batches:
        async for batch in batches:
            for msg in batch:
                with contextlib.suppress(OrderFormatError):
                    events.append(StoredEvent(msg.metadata.sequence.stream, event_of(msg.subject), decode(msg.data)))
            if batch[-1].metadata.sequence.stream >= (last or 0):
                break
    return events
