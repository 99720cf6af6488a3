"""The jobs of a benchmark's children: publish, consume what is stored already, or count orders while they are sent.

Publishers stop their clock when the last message is acknowledged, consumers when the last one is acknowledged to the
server or, where nothing is acknowledged, applied.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from itertools import islice
from typing import Generic, Literal

from nats.aio.client import Client
from nats.js.api import PubAck

from mesh_lab import processes
from mesh_lab.measure import load_jobs
from mesh_lab.measure.load_jobs import Job, Parent, R_co, Received, Result, Sent
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, send_batches
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import Totals, decode, encode
from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order

STREAM, CONSUMER = "BENCH", "bench"
ASYNC_PENDING, LOOK_EVERY_S = 4_000, 0.1


class Counted(Result, frozen=True, kw_only=True):
    """What a worker counted: each order once in ``totals``, and in ``doubled`` how many came again."""

    totals: Totals
    doubled: int


class BenchJob(Job[R_co], Generic[R_co], frozen=True, kw_only=True):
    """A job of ``count`` messages, or orders where a worker decodes them; ``BenchCase`` says what ``window`` means."""

    count: int
    window: int = 1
    plain_loop: bool = False  # asyncio's own, as in a program that chooses no other

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop() if self.plain_loop else processes.new_event_loop()


class Publisher(BenchJob[Sent], frozen=True, kw_only=True):
    """Publish zeros, so that no case gains by its data; or, without ``payload_bytes``, real orders, read beforehand."""

    payload_bytes: int | None = None

    def messages(self) -> Iterator[tuple[str, bytes]]:
        if self.payload_bytes is None:
            orders = list(read_orders(first=self.count))
            return ((f"bench.{order.id}", encode(order)) for order in orders)
        payload = bytes(self.payload_bytes)
        return ((f"bench.{n}", payload) for n in range(self.count))


class OneByOne(Publisher, frozen=True, kw_only=True):
    """Publish with ``js.publish``, each message once the one before is acknowledged."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        return await load_jobs.publish_one_by_one(client, parent, self.messages())


class Async(Publisher, frozen=True, kw_only=True):
    """Publish with nats-py's ``js.publish_async``; without a limit, it hangs if an acknowledgement never comes."""

    stall_limit_s: float | None = None

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        js = client.jetstream(timeout=load_jobs.ACK_TIMEOUT_S, publish_async_max_pending=ASYNC_PENDING)
        began = await parent.begin()
        acks = [await js.publish_async(*message, wait_stall=self.stall_limit_s) for message in self.messages()]
        await asyncio.wait_for(js.publish_async_completed(), self.stall_limit_s)
        if not all(isinstance(ack.result(), PubAck) for ack in acks):
            raise RuntimeError("a message was not acknowledged")
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class Windowed(Publisher, frozen=True, kw_only=True):
    """Publish with a window of outstanding acknowledgements, and an id for each message."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        messages = ((subject, payload, subject[len("bench.") :]) for subject, payload in self.messages())
        return await load_jobs.publish_windowed(client, parent, messages, window=self.window)


class Atomic(Publisher, frozen=True, kw_only=True):
    """Publish atomic batches of ``window`` messages."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        messages, began = self.messages(), await parent.begin()
        while batch := [BatchMessage(*message) for message in islice(messages, self.window)]:
            await publish_together(client, batch)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class FastIngest(Publisher, frozen=True, kw_only=True):
    """Publish with fast ingest in gap mode ``fail``."""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        messages = self.messages()
        began = await parent.begin()
        await ingest(client, messages)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class BulkOrders(BenchJob[Sent], frozen=True, kw_only=True):
    """Publish many orders in each message: all real orders, repeated up to ``count``, under new ids each time."""

    compression: Literal["", "zstd"] = ""

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        batches = list(batched(read_orders(), size=self.window))
        repeats = range(self.count // EVERYTHING.orders)
        began = await parent.begin()
        renamed = (batch.renamed(f"{repeat}-") for repeat in repeats for batch in batches)
        await send_batches(client, renamed, compression=self.compression)
        return Sent(began_ns=began, ended_ns=time.perf_counter_ns())


class FetchAndAckEach(BenchJob[Received], frozen=True, kw_only=True):
    """Consume with nats-py's ``fetch(500)``, and acknowledge each message."""

    async def __call__(self, client: Client, parent: Parent) -> Received:
        group = await client.jetstream().pull_subscribe_bind(consumer=CONSUMER, stream=STREAM)
        began, received = await parent.begin(), 0
        while received < self.count:
            messages = await group.fetch(500, timeout=10.0)
            for msg in messages:
                await msg.ack()
            received += len(messages)
        await client.flush()
        return Received(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


class Consume(BenchJob[Received], frozen=True, kw_only=True):
    """Consume continuously; ``ack_all`` acknowledges a batch by its last message, instead of each message."""

    ack_all: bool = False

    async def __call__(self, client: Client, parent: Parent) -> Received:
        received = 0
        async with (
            PullConsumer(client, STREAM, CONSUMER, prefetch=self.window) as consumer,
            aclosing(consumer.batches()) as batches,
        ):
            began = await parent.begin()
            async for batch in batches:
                for msg in batch[-1:] if self.ack_all else batch:
                    await msg.ack()
                received += len(batch)
                if received >= self.count:
                    break
            await client.flush()
            return Received(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


class Share(BenchJob[Received], frozen=True, kw_only=True):
    """Consume as one of a consumer's workers, with an acknowledgement for each message, until it has nothing left."""

    consumer: str

    async def __call__(self, client: Client, parent: Parent) -> Received:
        js, done = client.jetstream(timeout=load_jobs.ACK_TIMEOUT_S), asyncio.Event()

        async def watch() -> None:
            while not done.is_set():
                await asyncio.sleep(LOOK_EVERY_S)
                group = await js.consumer_info(STREAM, self.consumer)
                if not group.num_pending and not group.num_ack_pending:
                    done.set()

        async with (
            PullConsumer(client, STREAM, self.consumer, prefetch=self.window) as consumer,
            aclosing(consumer.batches(done)) as batches,
        ):
            began, received = await parent.begin(), 0
            ended, watching = began, asyncio.create_task(watch())
            async for batch in batches:
                for msg in batch:
                    await msg.ack()
                received, ended = received + len(batch), time.perf_counter_ns()
            await watching
            return Received(began_ns=began, ended_ns=ended, received=received)


class ReadInOrder(BenchJob[Received], frozen=True, kw_only=True):
    """Read in order, with a reader that tracks its own position and acknowledges nothing."""

    async def __call__(self, client: Client, parent: Parent) -> Received:
        began, received = await parent.begin(), 0
        async with aclosing(read_in_order(client, STREAM, prefetch=self.window)) as batches:
            async for batch in batches:
                received += len(batch)
                if received >= self.count:
                    break
        return Received(began_ns=began, ended_ns=time.perf_counter_ns(), received=received)


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
