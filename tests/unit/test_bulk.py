"""Batches keep their orders to the cent in every encoding, and a bad order costs only itself."""

import datetime
from contextlib import suppress

import msgspec
import pytest

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.bulk import OrderBatch, decode_batch, encode_batch, headers_of
from mesh_lab.orders.bulk_lane import BulkCount, batched
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import encode, totals_of

ORDERS = [order for order in read_orders(first=60) if order.region == "eu"]
ENCODINGS = ("json", "msgpack", "columns")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compression", ["", "zstd"])
def test_a_batch_comes_back_as_it_went(encoding: str, compression: str) -> None:
    batch = OrderBatch.of(ORDERS)
    payload = encode_batch(batch, encoding, compression)
    decoded, rejected = decode_batch(payload, headers_of(encoding, compression))
    assert (decoded, rejected) == (batch, [])
    assert list(decoded.orders()) == ORDERS


def test_batches_of_all_orders_add_up_to_the_data_set() -> None:
    count = BulkCount()
    sizes = []
    for batch in batched(read_orders(), size=256):
        count.add(decode_batch(encode_batch(batch), headers_of("columns")).batch)
        sizes.append(len(batch))
    assert count.totals == EVERYTHING
    assert count.doubled == 0
    assert sorted(sizes)[2:] == [256] * (len(sizes) - 2)


def test_an_order_that_comes_twice_counts_once_wherever_it_stands() -> None:
    count, batch = BulkCount(), OrderBatch.of(ORDERS)
    for again in (batch, batch, OrderBatch.of([ORDERS[0]])):
        count.add(again)
    assert (count.totals, count.doubled) == (totals_of(ORDERS), len(ORDERS) + 1)
    twice_in_one = BulkCount()
    twice_in_one.add(OrderBatch.of([*ORDERS, ORDERS[0], ORDERS[0]]))
    assert (twice_in_one.totals, twice_in_one.doubled) == (totals_of(ORDERS), 2)


def test_orders_under_new_ids_are_new_orders() -> None:
    count, batch = BulkCount(), OrderBatch.of(ORDERS)
    for repeat in range(3):
        count.add(batch.renamed(f"{repeat}-"))
    assert count.totals.orders == 3 * len(ORDERS)
    assert count.totals.customers == totals_of(ORDERS).customers


def _rows(encoding: str, rows: list) -> bytes:
    if encoding == "json":
        return msgspec.json.encode([msgspec.Raw(row) if isinstance(row, bytes) else row for row in rows])
    return msgspec.msgpack.encode([msgspec.json.decode(r) if isinstance(r, bytes) else r for r in rows])


BAD = [
    ({"id": "x.y"}, "matching regex"),
    ({"cents": -1}, ">= 0"),
    ({"cds": "three"}, "int"),
    ({"cds": 2**31}, "<= 2147483647"),
    ({"region": "us"}, "region 'us' in a batch of 'eu'"),
    ({"discount": 5}, "unknown field"),
]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize(("change", "reason"), BAD, ids=str)
def test_a_bad_order_among_rows_costs_only_itself(encoding: str, change: dict, reason: str) -> None:
    rows: list = [msgspec.json.decode(encode(order)) for order in ORDERS]
    rows[3] = {**rows[3], **change}
    batch, rejected = decode_batch(_rows(encoding, rows), headers_of(encoding))
    assert list(batch.orders()) == ORDERS[:3] + ORDERS[4:]
    [bad] = rejected
    assert bad.place == 3
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("column", "value"),
    [("ids", "x.y"), ("ids", "a\nb"), ("ids", ""), ("ids", "x" * 33), ("ids", 7), ("customers", 0), ("days", 0),
     ("days", datetime.date.max.toordinal() + 1), ("cds", 0), ("cds", True), ("cents", -1), ("cents", 1.5),
     ("customers", 2**31), ("cds", 2**31), ("cents", 10**12 + 1)],
)  # fmt: skip
def test_a_bad_value_in_a_column_costs_only_its_order(column: str, value: object) -> None:
    fields = msgspec.to_builtins(OrderBatch.of(ORDERS))
    fields[column][5] = value
    batch, rejected = decode_batch(msgspec.msgpack.encode(fields), headers_of("columns"))
    assert list(batch.orders()) == ORDERS[:5] + ORDERS[6:]
    assert [bad.place for bad in rejected] == [5]
    assert repr(value)[:20] in rejected[0].seen


def test_a_batch_of_nothing_but_bad_orders_has_no_batch() -> None:
    fields = {**msgspec.to_builtins(OrderBatch.of(ORDERS)), "region": "e.u"}
    batch, rejected = decode_batch(msgspec.msgpack.encode(fields), headers_of("columns"))
    assert batch is None
    assert len(rejected) == len(ORDERS)


COLUMNS = msgspec.to_builtins(OrderBatch.of(ORDERS))


@pytest.mark.parametrize(
    ("payload", "headers", "said"),
    [
        (b"{}", {}, "Content-Type '', expected one of application/json"),
        (b"{}", {"Content-Type": "text/plain"}, "Content-Type 'text/plain'"),
        (b"[{", headers_of("json"), "not a batch: Input data was truncated"),
        (b"{}", headers_of("json"), "expected a list of orders"),
        (b"\xc1", headers_of("columns"), "not a batch"),
        (msgspec.msgpack.encode([1]), headers_of("columns"), "expected the fields region, ids"),
        (msgspec.msgpack.encode({**COLUMNS, "cds": [1]}), headers_of("columns"), "columns of lengths .*'cds': 1"),
        (msgspec.msgpack.encode({**COLUMNS, "cds": 1}), headers_of("columns"), "columns of lengths .*'cds': None"),
        (b"plain", headers_of("json", "zstd"), "not zstd"),
        (b"[]", {**headers_of("json"), "Content-Encoding": "br"}, "Content-Encoding 'br', expected zstd"),
        (encode_batch(OrderBatch.of(ORDERS), "json", "zstd")[:-4], headers_of("json", "zstd"), "cut off"),
        (encode_batch(OrderBatch.of(ORDERS), "json", "zstd") * 2, headers_of("json", "zstd"), "bytes behind its end"),
        (b"[" * 100_000, headers_of("json"), "not a batch"),
        (b"\x91" * 100_000, headers_of("msgpack"), "not a batch"),
        (b"\x91" * 100_000, headers_of("columns"), "not a batch"),
    ],
)
def test_a_message_that_is_no_batch_is_refused_with_what_was_seen(payload: bytes, headers: dict, said: str) -> None:
    with pytest.raises(OrderFormatError, match=said):
        decode_batch(payload, headers)


def test_an_empty_batch_has_no_orders_and_no_complaints() -> None:
    assert decode_batch(b"[]", headers_of("json")) == (None, [])
    empty = {name: [] for name in COLUMNS if name != "region"} | {"region": "eu"}
    assert decode_batch(msgspec.msgpack.encode(empty), headers_of("columns")) == (None, [])


def test_a_small_message_does_not_unpack_into_a_large_one(monkeypatch) -> None:
    monkeypatch.setattr("mesh_lab.orders.bulk.LARGEST_BATCH_BYTES", 1_000)
    with pytest.raises(OrderFormatError, match="more than 1,000 bytes"):
        decode_batch(encode_batch(OrderBatch.of(ORDERS), "json", "zstd"), headers_of("json", "zstd"))


def test_a_batch_has_one_region_and_a_size() -> None:
    with pytest.raises(ValueError, match=r"orders of \['eu', 'us'\] in a batch"):
        OrderBatch.of(list(read_orders(first=2)))
    with pytest.raises(ValueError, match="no region"):
        OrderBatch.of([])
    with pytest.raises(ValueError, match="size=0, expected 1 or more"):
        list(batched(ORDERS, size=0))


def test_any_bytes_are_a_batch_or_an_error_of_ours() -> None:
    sound = encode_batch(OrderBatch.of(ORDERS[:3]), "columns")
    for place in range(len(sound)):
        for value in (0x00, 0x7F, 0x80, 0xC0, 0xFF):
            with suppress(OrderFormatError):
                decode_batch(sound[:place] + bytes([value]) + sound[place + 1 :], headers_of("columns"))
