"""Many orders in one message: the batch, its encodings, and the rejection of members that are no orders.

In a batch, hundreds of orders share what a message costs. In exchange, they have no subject and no sequence number of
their own: the bulk lane is for loading and analysis, single orders are for working on them. Encoding and compression
travel in the headers ``Content-Type`` and ``Content-Encoding``, as in HTTP.
"""

import contextlib
import datetime
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

import msgspec

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import Cents, Number, Order, Token
from mesh_lab.patterns.jetstream_api import MALFORMED

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = TypeVar("T")
Encoding = Literal["json", "msgpack", "columns"]
Compression = Literal["", "zstd"]
CONTENT_TYPES: dict[Encoding, str] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "columns": "application/vnd.mesh-lab.columns+msgpack",
}
_ENCODINGS = {content_type: encoding for encoding, content_type in CONTENT_TYPES.items()}
LARGEST_BATCH_BYTES = 64 * 2**20
"""A compressed message that grows beyond this is no batch but an attack or an accident."""

Day = Annotated[int, msgspec.Meta(ge=1, le=datetime.date.max.toordinal())]
_ID_LINES = re.compile(r"[A-Za-z0-9_-]{1,32}(?:\n[A-Za-z0-9_-]{1,32})*")


class OrderBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Orders of one region, a list for each field: the values at one index of all lists are one order."""

    region: Token
    ids: list[str]
    customers: list[Number]
    days: list[Day]
    """Days since the beginning of year 1, as ``date.toordinal()`` counts them."""
    cds: list[Number]
    cents: list[Cents]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, orders: Sequence[Order]) -> Self:
        """Return a batch of orders, at least one, all of the same region.

        Raises:
            ValueError: There are none, or they are of several regions.
        """
        regions = {order.region for order in orders}
        if len(regions) != 1:
            raise ValueError(f"orders of {sorted(regions) or 'no region'} in a batch, expected one region")
        return cls(
            region=regions.pop(),
            ids=[order.id for order in orders],
            customers=[order.customer for order in orders],
            days=[order.day.toordinal() for order in orders],
            cds=[order.cds for order in orders],
            cents=[order.cents for order in orders],
        )

    def orders(self) -> Iterator[Order]:
        """Yield the orders one by one."""
        for row in zip(self.ids, self.customers, self.days, self.cds, self.cents, strict=True):
            yield Order(row[0], self.region, row[1], datetime.date.fromordinal(row[2]), row[3], row[4])

    def renamed(self, prefix: str) -> Self:
        """Return the same orders under new ids, for a load that repeats them."""
        return msgspec.structs.replace(self, ids=[prefix + id_ for id_ in self.ids])


class RejectedOrder(msgspec.Struct, frozen=True):
    """A member of a batch that is no order."""

    place: int
    """Its place in the batch, from 0; -1 for a message that is no batch at all."""
    reason: str
    seen: str
    """Its beginning."""


class Decoded(NamedTuple):
    """The good orders of a message, ``None`` if there are none, and its members that are no orders."""

    batch: OrderBatch | None
    rejected: list[RejectedOrder]


_MODULES: dict[str, ModuleType] = {"json": msgspec.json, "msgpack": msgspec.msgpack, "columns": msgspec.msgpack}
_columns = msgspec.msgpack.Decoder(OrderBatch)
_rows = {name: _MODULES[name].Decoder(list[Order]) for name in ("json", "msgpack")}


def headers_of(encoding: Encoding, compression: Compression = "") -> dict[str, str]:
    """Return the headers that name a message's encoding and compression."""
    headers = {"Content-Type": CONTENT_TYPES[encoding]}
    return {**headers, "Content-Encoding": compression} if compression else headers


def encode_batch(batch: OrderBatch, encoding: Encoding = "columns", compression: Compression = "") -> bytes:
    """Return a batch as the payload of one message.

    Encodings ``"json"`` and ``"msgpack"`` write one order after the other, with the names of its fields; ``"columns"``
    writes each field once, with all of its values behind it.
    """
    payload: bytes = _MODULES[encoding].encode(batch if encoding == "columns" else list(batch.orders()))
    return zstd.compress(payload) if compression else payload


def decode_batch(payload: bytes, headers: Mapping[str, str] | None) -> Decoded:
    """Return the orders of a message with headers as :func:`headers_of` makes them, and its members that are none.

    Raises:
        OrderFormatError: The message as a whole is no batch; the message says why.
    """
    content_type = (headers or {}).get("Content-Type", "")
    if (encoding := _ENCODINGS.get(content_type)) is None:
        raise OrderFormatError(f"Content-Type {content_type!r}, expected one of {', '.join(_ENCODINGS)}")
    if compression := (headers or {}).get("Content-Encoding", ""):
        payload = _decompressed(payload, compression)
    with contextlib.suppress(*MALFORMED):
        if encoding == "columns":
            if _is_sound(batch := _columns.decode(payload)):
                return Decoded(batch, [])
        else:
            orders = _rows[encoding].decode(payload)
            if len({order.region for order in orders}) == 1:
                return Decoded(OrderBatch.of(orders), [])
    # At least one order is bad, or all of it: one by one, then.
    return _sift_columns(payload) if encoding == "columns" else _sift_rows(payload, encoding)


def _decompressed(payload: bytes, compression: str) -> bytes:
    if compression != "zstd":
        raise OrderFormatError(f"Content-Encoding {compression!r}, expected zstd or none")
    try:
        decompressor = zstd.ZstdDecompressor()
        plain = decompressor.decompress(payload, max_length=LARGEST_BATCH_BYTES)
    except zstd.ZstdError as err:
        raise OrderFormatError(f"not zstd: {err}; seen {payload[:60]!r}") from err
    if not decompressor.eof:
        raise OrderFormatError(f"a zstd message that is cut off, or unpacks to more than {LARGEST_BATCH_BYTES:,} bytes")
    if decompressor.unused_data:
        raise OrderFormatError(f"a zstd message with {len(decompressor.unused_data):,} bytes behind its end")
    return plain


def _is_sound(batch: OrderBatch) -> bool:
    lengths = {len(batch.ids), len(batch.customers), len(batch.days), len(batch.cds), len(batch.cents)}
    lines = "\n".join(batch.ids)
    # All ids in one match; an id with a line end in it would pass for two.
    return len(lengths) == 1 and lines.count("\n") == len(batch) - 1 and _ID_LINES.fullmatch(lines) is not None


def _sift_rows(payload: bytes, encoding: Encoding) -> Decoded:
    module = _MODULES[encoding]
    try:
        parts = module.decode(payload, type=list[msgspec.Raw])
    except MALFORMED as err:
        raise OrderFormatError(f"not a batch: {err}, expected a list of orders; seen {payload[:60]!r}") from err
    return _sift([bytes(part) for part in parts], lambda part: module.decode(part, type=Order))


def _sift_columns(payload: bytes) -> Decoded:
    try:
        fields = msgspec.msgpack.decode(payload)
    except MALFORMED as err:
        raise OrderFormatError(f"not a batch: {err}; seen {payload[:60]!r}") from err
    names = OrderBatch.__struct_fields__
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise OrderFormatError(f"not a batch of columns: expected the fields {', '.join(names)}")
    region = fields.pop("region")
    lengths = {name: len(column) if isinstance(column, list) else None for name, column in fields.items()}
    if None in lengths.values() or len(set(lengths.values())) != 1:
        raise OrderFormatError(f"columns of lengths {lengths}, expected lists of the same length")

    def order_of(row: tuple[Any, ...]) -> Order:
        id_, customer, day, cds, cents = row
        date = datetime.date.fromordinal(msgspec.convert(day, Day))
        values = {"id": id_, "region": region, "customer": customer, "day": date, "cds": cds, "cents": cents}
        return msgspec.convert(values, Order)

    return _sift(list(zip(*(fields[name] for name in names[1:]), strict=True)), order_of)


def _sift(members: Sequence[T], order_of: Callable[[T], Order]) -> Decoded:
    """Check each member of a batch by itself."""
    good, rejected = list[Order](), list[RejectedOrder]()
    for place, member in enumerate(members):
        try:
            order = order_of(member)
            if good and order.region != good[0].region:
                raise msgspec.ValidationError(f"region {order.region!r} in a batch of {good[0].region!r}")
            good.append(order)
        except MALFORMED as err:
            rejected.append(RejectedOrder(place, str(err), repr(member)[:120]))
    return Decoded(OrderBatch.of(good) if good else None, rejected)
