"""What the children of a benchmark do. Each rung of the ladder is one of these jobs, or one from each half.

Publishers stop their clock when the last message is acknowledged, consumers when the last one is acknowledged to the
server or, where nothing is acknowledged, applied.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing

from nats.aio.client import Client
from nats.js.api import PubAck

from mesh_lab.errors import LoadFailedError
from mesh_lab.measure.load_jobs import Parent, Report, Task, say
from mesh_lab.orders.bulk import OrderBatch
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, send_batches
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import decode, encode
from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

STREAM, CONSUMER = "BENCH", "bench"
ASYNC_PENDING = 4_000


def _numbered(task: Task) -> Iterator[tuple[str, bytes]]:
    """Yield subject and payload of each message: a subject for each, and zeros, so that no rung gains by its data."""
    payload = bytes(task.payload_bytes)
    return ((f"bench.{n}", payload) for n in range(task.count))


# Publishers


async def publish_one_by_one(client: Client, parent: Parent) -> Report:
    """``js.publish`` and wait, message after message."""
    js = client.jetstream(timeout=10.0)
    began = await _begin(parent)
    for subject, payload in _numbered(parent.task):
        await js.publish(subject, payload)
    return _report(began)


async def publish_async(client: Client, parent: Parent) -> Report:
    """nats-py's own ``js.publish_async``, 4,000 outstanding, as its documentation shows it."""
    js = client.jetstream(timeout=10.0, publish_async_max_pending=ASYNC_PENDING)
    began = await _begin(parent)
    acks = [await js.publish_async(subject, payload) for subject, payload in _numbered(parent.task)]
    await js.publish_async_completed()
    _check_all(isinstance(ack.result(), PubAck) for ack in acks)
    return _report(began)


async def publish_async_bounded(client: Client, parent: Parent) -> Report:
    """The same with a limit on the wait for a free slot, without which an acknowledgement that never comes hangs it."""
    js = client.jetstream(timeout=10.0, publish_async_max_pending=ASYNC_PENDING)
    began = await _begin(parent)
    acks = [await js.publish_async(subject, payload, wait_stall=10.0) for subject, payload in _numbered(parent.task)]
    await asyncio.wait_for(js.publish_async_completed(), 10.0)
    _check_all(isinstance(ack.result(), PubAck) for ack in acks)
    return _report(began)


async def publish_windowed(client: Client, parent: Parent) -> Report:
    """A window of outstanding acknowledgements on an inbox of its own, and an id for each message."""
    async with WindowedPublisher(client, window=parent.task.window) as publisher:
        began = await _begin(parent)
        for n, (subject, payload) in enumerate(_numbered(parent.task)):
            await publisher.publish(subject, payload, msg_id=str(n))
        await publisher.flush()
        return _report(began)


async def publish_atomically(client: Client, parent: Parent) -> Report:
    """Atomic batches of ``window`` messages."""
    began, messages = await _begin(parent), list[BatchMessage]()
    for subject, payload in _numbered(parent.task):
        messages.append(BatchMessage(subject, payload))
        if len(messages) == parent.task.window:
            await publish_together(client, messages)
            messages.clear()
    if messages:
        await publish_together(client, messages)
    return _report(began)


async def publish_fast(client: Client, parent: Parent) -> Report:
    """Fast ingest in gap mode ``fail``."""
    began = await _begin(parent)
    await ingest(client, _numbered(parent.task))
    return _report(began)


# Consumers of what is stored already


async def fetch_and_ack_each(client: Client, parent: Parent) -> Report:
    """nats-py's ``fetch(500)``, and an acknowledgement for each message."""
    group = await client.jetstream().pull_subscribe_bind(consumer=CONSUMER, stream=STREAM)
    began, received = await _begin(parent), 0
    while received < parent.task.count:
        messages = await group.fetch(500, timeout=10.0)
        for msg in messages:
            await msg.ack()
        received += len(messages)
    await client.flush()
    return _report(began, received)


async def consume_and_ack_each(client: Client, parent: Parent) -> Report:
    """The continuous consumer, and an acknowledgement for each message."""
    return await _consume(client, parent, ack_all=False)


async def consume_and_ack_all(client: Client, parent: Parent) -> Report:
    """The continuous consumer, and one acknowledgement for all that a batch holds."""
    return await _consume(client, parent, ack_all=True)


async def _consume(client: Client, parent: Parent, *, ack_all: bool) -> Report:
    received = 0
    async with (
        PullConsumer(client, STREAM, CONSUMER, prefetch=parent.task.window) as consumer,
        aclosing(consumer.batches()) as batches,
    ):
        began = await _begin(parent)
        async for batch in batches:
            for msg in batch[-1:] if ack_all else batch:
                await msg.ack()
            received += len(batch)
            if received >= parent.task.count:
                break
        await client.flush()
        return _report(began, received)


async def read_all(client: Client, parent: Parent) -> Report:
    """A reader in order, which keeps its place itself and acknowledges nothing."""
    began, received = await _begin(parent), 0
    async with aclosing(read_in_order(client, STREAM, prefetch=parent.task.window)) as batches:
        async for batch in batches:
            received += len(batch)
            if received >= parent.task.count:
                break
    return _report(began, received)


# Both ends: real orders from one process through a stream to another, which decodes and counts each of them


async def place_singly(client: Client, parent: Parent) -> Report:
    """One order a message, by the windowed publisher."""
    orders = list(read_orders(first=parent.task.count))
    async with WindowedPublisher(client, window=parent.task.window) as publisher:
        began = await _begin(parent)
        for order in orders:
            await publisher.publish(f"bench.{order.id}", encode(order), msg_id=order.id)
        await publisher.flush()
        return _report(began)


async def place_fast(client: Client, parent: Parent) -> Report:
    """One order a message, by fast ingest."""
    orders = list(read_orders(first=parent.task.count))
    began = await _begin(parent)
    await ingest(client, ((f"bench.{order.id}", encode(order)) for order in orders))
    return _report(began)


async def work_singly(client: Client, parent: Parent) -> Report:
    """Decode each order and acknowledge it, as it comes."""
    return await _work(client, parent, ack_all=False)


async def work_singly_ack_all(client: Client, parent: Parent) -> Report:
    """Decode each order, and acknowledge all of a batch with its last."""
    return await _work(client, parent, ack_all=True)


async def _work(client: Client, parent: Parent, *, ack_all: bool) -> Report:
    count = BulkCount()
    async with (
        PullConsumer(client, STREAM, CONSUMER, prefetch=parent.task.window) as consumer,
        aclosing(consumer.batches()) as batches,
    ):
        say(b'{"ready":true}')
        async for messages in batches:
            for msg in messages:
                order = decode(msg.data)
                count.add_one(order.id, order.customer, order.cds, order.cents)
            for msg in messages[-1:] if ack_all else messages:
                await msg.ack()
            if count.totals.orders >= parent.task.count:
                break
        await client.flush()
        ended = time.perf_counter_ns()
        await parent.told()
    return _totals(count, ended)


async def place_in_bulk(client: Client, parent: Parent) -> Report:
    """Many orders a message, all real orders ``first`` times, under new ids each time."""
    batches = list(batched(read_orders(), size=parent.task.window))

    def load() -> Iterator[OrderBatch]:
        for repeat in range(parent.task.first):
            for batch in batches:
                yield batch.renamed(f"{repeat}-")

    began = await _begin(parent)
    await send_batches(client, load(), compression="zstd" if parent.task.queue == "zstd" else "")
    return _report(began)


async def count_in_bulk(client: Client, parent: Parent) -> Report:
    """Decode every batch and count each of its orders."""
    count = BulkCount()
    say(b'{"ready":true}')
    await count_bulk(client, count, until=parent.task.count)
    ended = time.perf_counter_ns()
    await parent.told()
    return _totals(count, ended)


# What they share


async def _begin(parent: Parent) -> int:
    await parent.ready()
    parent.stage = "the last message"
    return time.perf_counter_ns()


def _report(began: int, received: int = 0) -> Report:
    return Report(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


def _totals(count: BulkCount, ended: int) -> Report:
    totals = count.totals
    return Report(
        ended_ns=ended,
        received=totals.orders + count.doubled,
        duplicates=count.doubled,
        totals={name: getattr(totals, name) for name in totals.__struct_fields__},
    )


def _check_all(good: Iterator[bool]) -> None:
    if not all(good):
        raise LoadFailedError("a message was not acknowledged")
