"""What the children of a benchmark do: each case is one of these jobs, or one from each half.

Publishers stop their clock when the last message is acknowledged, consumers when the last one is acknowledged to the
server or, where nothing is acknowledged, applied.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Generic, Literal

from nats.aio.client import Client
from nats.js.api import PubAck

from mesh_lab import processes
from mesh_lab.measure.load_jobs import (
    ACK_TIMEOUT_S,
    Job,
    Parent,
    R_co,
    Result,
    Sent,
    begin,
    publish_one_by_one,
    publish_windowed,
)
from mesh_lab.orders.bulk import OrderBatch
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, send_batches
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import decode, encode
from mesh_lab.orders.totals import Totals
from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order

STREAM, CONSUMER = "BENCH", "bench"
ASYNC_PENDING = 4_000


class Consumed(Result, frozen=True, kw_only=True):
    """What a consumer got."""

    received: int
    """Messages, each as often as it came."""


class Counted(Result, frozen=True, kw_only=True):
    """What the orders came to that a worker counted, each once."""

    totals: Totals
    doubled: int
    """Orders that came a further time."""


class BenchJob(Job[R_co], Generic[R_co], frozen=True, kw_only=True):
    """What all jobs of a benchmark share."""

    count: int
    """Messages, or orders where a worker decodes them."""
    window: int = 1
    """Messages outstanding, in a batch or prefetched; orders in a message of the bulk lane."""
    plain_loop: bool = False
    """Run on asyncio's own event loop, as a program does that did nothing about it."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that the job runs on."""
        return asyncio.new_event_loop() if self.plain_loop else processes.new_event_loop()


# Publishers


class Publisher(BenchJob[Sent], frozen=True, kw_only=True):
    """Publish a message to a subject of its own, as often as the job says."""

    payload_bytes: int | None = None
    """Size of each payload; ``None`` for real orders, which have their own."""

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Return subjects and payloads: zeros, so that no case gains by its data, or real orders, read beforehand."""
        if self.payload_bytes is None:
            orders = list(read_orders(first=self.count))
            return ((f"bench.{order.id}", encode(order)) for order in orders)
        payload = bytes(self.payload_bytes)
        return ((f"bench.{n}", payload) for n in range(self.count))


class OneByOne(Publisher, frozen=True, kw_only=True):
    """``js.publish`` and wait, message after message."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        return await publish_one_by_one(client, parent, self.messages())


class Async(Publisher, frozen=True, kw_only=True):
    """nats-py's own ``js.publish_async``, 4,000 outstanding, as its documentation shows it."""

    stall_limit_s: float | None = None
    """Limit on the wait for a free slot; without one, an acknowledgement that never comes hangs it."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        js = client.jetstream(timeout=ACK_TIMEOUT_S, publish_async_max_pending=ASYNC_PENDING)
        began = await begin(parent)
        acks = [await js.publish_async(*message, wait_stall=self.stall_limit_s) for message in self.messages()]
        await asyncio.wait_for(js.publish_async_completed(), self.stall_limit_s)
        if not all(isinstance(ack.result(), PubAck) for ack in acks):
            raise RuntimeError("a message was not acknowledged")
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class Windowed(Publisher, frozen=True, kw_only=True):
    """A window of outstanding acknowledgements on an inbox of its own, and an id for each message."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        messages = ((subject, payload, subject[len("bench.") :]) for subject, payload in self.messages())
        return await publish_windowed(client, parent, messages, window=self.window)


class Atomic(Publisher, frozen=True, kw_only=True):
    """Atomic batches."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        began, messages = await begin(parent), list[BatchMessage]()
        for subject, payload in self.messages():
            messages.append(BatchMessage(subject, payload))
            if len(messages) == self.window:
                await publish_together(client, messages)
                messages.clear()
        if messages:
            await publish_together(client, messages)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class FastIngest(Publisher, frozen=True, kw_only=True):
    """Fast ingest in gap mode ``fail``."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        messages = self.messages()
        began = await begin(parent)
        await ingest(client, messages)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class BulkOrders(BenchJob[Sent], frozen=True, kw_only=True):
    """Many orders a message: all real orders as often as ``count`` holds them, under new ids each time."""

    compression: Literal["", "zstd"] = ""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        batches = list(batched(read_orders(), size=self.window))

        def load() -> Iterator[OrderBatch]:
            for repeat in range(self.count // EVERYTHING.orders):
                for batch in batches:
                    yield batch.renamed(f"{repeat}-")

        began = await begin(parent)
        await send_batches(client, load(), compression=self.compression)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


# Consumers of what is stored already


class FetchAndAckEach(BenchJob[Consumed], frozen=True, kw_only=True):
    """nats-py's ``fetch(500)``, and an acknowledgement for each message."""

    async def __call__(self, client: Client, parent: Parent) -> Consumed:
        group = await client.jetstream().pull_subscribe_bind(consumer=CONSUMER, stream=STREAM)
        began, received = await begin(parent), 0
        while received < self.count:
            messages = await group.fetch(500, timeout=10.0)
            for msg in messages:
                await msg.ack()
            received += len(messages)
        await client.flush()
        return Consumed(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


class Consume(BenchJob[Consumed], frozen=True, kw_only=True):
    """The continuous consumer."""

    ack_all: bool = False
    """One acknowledgement for all that a batch holds, instead of one for each message."""

    async def __call__(self, client: Client, parent: Parent) -> Consumed:
        received = 0
        async with (
            PullConsumer(client, STREAM, CONSUMER, prefetch=self.window) as consumer,
            aclosing(consumer.batches()) as batches,
        ):
            began = await begin(parent)
            async for batch in batches:
                for msg in batch[-1:] if self.ack_all else batch:
                    await msg.ack()
                received += len(batch)
                if received >= self.count:
                    break
            await client.flush()
            return Consumed(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


class ReadInOrder(BenchJob[Consumed], frozen=True, kw_only=True):
    """A reader in order, which keeps its place itself and acknowledges nothing."""

    async def __call__(self, client: Client, parent: Parent) -> Consumed:
        began, received = await begin(parent), 0
        async with aclosing(read_in_order(client, STREAM, prefetch=self.window)) as batches:
            async for batch in batches:
                received += len(batch)
                if received >= self.count:
                    break
        return Consumed(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


# Workers, which decode and count each order while a publisher sends them


class Work(BenchJob[Counted], frozen=True, kw_only=True):
    """Decode each order and acknowledge it, or all of a batch with its last."""

    ack_all: bool = False

    async def __call__(self, client: Client, parent: Parent) -> Counted:
        count = BulkCount()
        async with (
            PullConsumer(client, STREAM, CONSUMER, prefetch=self.window) as consumer,
            aclosing(consumer.batches()) as batches,
        ):
            parent.report_ready()
            async for messages in batches:
                for msg in messages:
                    order = decode(msg.data)
                    count.add_one(order.id, order.customer, order.cds, order.cents)
                for msg in messages[-1:] if self.ack_all else messages:
                    await msg.ack()
                if count.totals.orders >= self.count:
                    break
            await client.flush()
            return await _counted(count, parent)


class BulkWork(BenchJob[Counted], frozen=True, kw_only=True):
    """Decode every batch and count each of its orders."""

    async def __call__(self, client: Client, parent: Parent) -> Counted:
        count = BulkCount()
        parent.report_ready()
        await count_bulk(client, count, until=self.count)
        return await _counted(count, parent)


async def _counted(count: BulkCount, parent: Parent) -> Counted:
    ended = time.perf_counter_ns()
    await parent.wait_for_go()  # the publisher is done as well
    return Counted(ended_ns=ended, totals=count.totals, doubled=count.doubled)
