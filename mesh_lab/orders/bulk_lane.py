"""The bulk lane: orders travel many to a message, on ``bulk.<region>``, and are counted exactly all the same.

Each message has a ``Nats-Msg-Id``, so a batch that is sent twice is stored once; orders are counted by their ids, so a
batch that is read twice counts once. A member that is no order goes to a stream of its own: nothing is dropped
silently.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from hashlib import blake2b

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.bulk import (
    Compression,
    Encoding,
    OrderBatch,
    RejectedOrder,
    decode_batch,
    encode_batch,
    headers_of,
)
from mesh_lab.orders.order import REASON_CHARACTERS, Order, Token, Totals
from mesh_lab.patterns.jetstream_api import Ack
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

STREAM, REJECTED_STREAM = "BULK", "REJECTED"
REJECTED = "rejected.bulk"
BATCH_ORDERS, WINDOW = 256, 128


class RejectionNote(msgspec.Struct, frozen=True):
    """A rejected order in the stream of those, with the stream's number of the message that it came in."""

    stream_seq: int
    order: RejectedOrder


async def create_bulk_lane(js: JetStreamContext, *, replicas: int = 1, storage: StorageType = StorageType.FILE) -> None:
    """Make the stream of batches and that of rejected orders, if they are not there."""
    for name, subject in ((STREAM, "bulk.*"), (REJECTED_STREAM, "rejected.*")):
        await js.add_stream(StreamConfig(name=name, subjects=[subject], storage=storage, num_replicas=replicas))


async def send_batches(
    client: Client,
    batches: Iterable[OrderBatch],
    *,
    encoding: Encoding = "columns",
    compression: Compression = "",
    window: int = WINDOW,
    on_stored: Callable[[Ack, OrderBatch], None] | None = None,
) -> int:
    """Store batches, one message each, and return the number of their orders.

    Args:
        client: A connected nats-py client.
        batches: What to send; a batch's region and ids make its ``Nats-Msg-Id``.
        encoding: As for :func:`mesh_lab.orders.bulk.encode_batch`, like the compression.
        compression: ``"zstd"``, or ``""`` for none.
        window: Batches whose acknowledgement may be outstanding.
        on_stored: Called with the acknowledgement of each batch, which tells a duplicate, and the batch.

    Raises:
        OrderFormatError: A batch's region is no token of a subject; those before it are sent.
        PublishRefusedError: The stream refused a batch, or nobody took it within the retry budget.
        UnknownOutcomeError: No reply came for a batch within the retry budget.
        nats.errors.ConnectionClosedError: The client was closed; what was not acknowledged may be stored.
    """
    headers = headers_of(encoding, compression)
    orders = 0
    async with WindowedPublisher(client, window=window) as publisher:
        for batch in batches:
            try:
                msgspec.convert(batch.region, Token)
            except msgspec.ValidationError as err:
                raise OrderFormatError(f"a batch of region {batch.region!r}: {err}") from err
            ids = blake2b("\n".join(batch.ids).encode(), digest_size=16).hexdigest()
            await publisher.publish(
                f"bulk.{batch.region}",
                encode_batch(batch, encoding, compression),
                msg_id=f"{batch.region}.{ids}",
                headers=headers,
                on_stored=None if on_stored is None else lambda ack, batch=batch: on_stored(ack, batch),  # type: ignore[misc]
            )
            orders += len(batch)
    return orders


def batched(orders: Iterable[Order], size: int = BATCH_ORDERS) -> Iterable[OrderBatch]:
    """Yield orders in batches of one region each, in their order; only a region's last may have fewer than ``size``.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"size={size}, expected 1 or more")
    waiting: dict[str, list[Order]] = {}
    for order in orders:
        group = waiting.setdefault(order.region, [])
        group.append(order)
        if len(group) == size:
            yield OrderBatch.of(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield OrderBatch.of(group)


class BulkCount:
    """Totals of batches, each order once; ``doubled`` counts those that came again, ``rejected`` bad members."""

    def __init__(self) -> None:
        self.doubled = self.rejected = 0
        self._ids: set[str] = set()
        self._customers: set[int] = set()
        self._cds = self._cents = 0

    def add(self, batch: OrderBatch) -> None:
        """Count every order of a batch that was not counted before."""
        before = len(self._ids)
        if self._ids.isdisjoint(batch.ids):
            self._ids.update(batch.ids)
            if len(self._ids) - before == len(batch):  # true of nearly every batch: all of them are new
                self._customers.update(batch.customers)
                self._cds += sum(batch.cds)
                self._cents += sum(batch.cents)
                return
            self._ids.difference_update(batch.ids)  # an id stands twice in this batch: one by one, then
        for row in zip(batch.ids, batch.customers, batch.cds, batch.cents, strict=True):
            self.add_one(*row)

    def add_one(self, id_: str, customer: int, cds: int, cents: int) -> None:
        """Count one order if it was not counted before."""
        if id_ in self._ids:
            self.doubled += 1
            return
        self._ids.add(id_)
        self._customers.add(customer)
        self._cds += cds
        self._cents += cents

    @property
    def totals(self) -> Totals:
        """Counts and sums so far."""
        return Totals(orders=len(self._ids), customers=len(self._customers), cds=self._cds, cents=self._cents)


async def count_bulk(client: Client, count: BulkCount, *, until: int | None = None) -> None:
    """Count the bulk lane's orders from its beginning until cancelled, or until there are ``until``, rejected ones too.

    Raises:
        nats.js.errors.NotFoundError: There is no stream of batches, or it was deleted.
        StreamReplacedError: It was deleted and made again: what ``count`` holds is of the one before.
        PublishRefusedError: The stream of rejected orders refused one.
    """
    reading = aclosing(read_in_order(client, STREAM, prefetch=WINDOW))
    async with WindowedPublisher(client) as rejections, reading as batches:
        async for messages in batches:
            for msg in messages:
                await _count_message(msg, count, rejections)
            await rejections.flush()
            if until is not None and count.totals.orders + count.rejected >= until:
                return
            await asyncio.sleep(0)


async def _count_message(msg: Msg, count: BulkCount, rejections: WindowedPublisher) -> None:
    try:
        batch, rejected = decode_batch(msg.data, msg.headers)
    except OrderFormatError as err:
        batch, rejected = None, [RejectedOrder(-1, str(err), repr(msg.data[:120]))]
    if batch is not None:
        count.add(batch)
    for order in rejected:
        seq = msg.metadata.sequence.stream
        shown = msgspec.structs.replace(order, reason=order.reason[:REASON_CHARACTERS])  # it may quote what came
        note = msgspec.json.encode(RejectionNote(seq, shown))
        # A worker that reads the stream again stores the same note again, under the same id.
        await rejections.publish(REJECTED, note, msg_id=f"{STREAM}.{seq}.{order.place}")
    count.rejected += len(rejected)
