"""Orders are read, encoded and counted to the cent, and what is no order is refused with its place."""

import hashlib
import lzma
from importlib import resources
from pathlib import Path

import msgspec
import pytest

from mesh_lab.errors import OrderFormatError, WrongTotalsError
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import (
    EVENTS,
    PAYMENT_LIMIT_CENTS,
    Order,
    Totals,
    check_totals,
    decode,
    encode,
    event_of,
    next_events,
    totals_of,
)
from mesh_lab.orders.publisher import _placed

HEADER = " customer_id  date number_of_cds  dollar_value\n"


@pytest.fixture(scope="module")
def orders() -> list[Order]:
    return list(read_orders())


def test_the_real_orders_add_up_to_what_their_authors_published(orders: list[Order]) -> None:
    assert totals_of(orders) == EVERYTHING
    assert str(EVERYTHING) == "69,659 orders, 23,570 customers, 167,881 CDs, $2,500,315.63"
    assert len({order.id for order in orders}) == 69_659


def test_the_file_is_the_original_byte_for_byte() -> None:
    packed = resources.files("mesh_lab.orders") / "data" / "cdnow_master.txt.xz"
    source = (resources.files("mesh_lab.orders") / "data" / "SOURCE.md").read_text()
    assert hashlib.sha256(lzma.decompress(packed.read_bytes())).hexdigest() in source


def test_all_orders_of_a_customer_are_in_one_region(orders: list[Order]) -> None:
    regions: dict[int, set[str]] = {}
    for order in orders:
        regions.setdefault(order.customer, set()).add(order.region)
    assert {len(found) for found in regions.values()} == {1}
    assert set.union(*regions.values()) == {"eu", "us"}


def test_an_order_survives_the_wire() -> None:
    for order in read_orders(first=100):
        assert decode(encode(order)) == order


def test_every_real_order_is_paid_and_shipped_and_a_giant_one_declined() -> None:
    order = next(read_orders())
    assert {next_events(o) for o in read_orders(first=1_000)} == {("paid", "shipped")}
    giant = Order(order.id, order.region, order.customer, order.day, order.cds, PAYMENT_LIMIT_CENTS + 1)
    assert next_events(giant) == ("declined",)


@pytest.mark.parametrize("event", EVENTS)
def test_a_subject_names_its_event(event) -> None:
    order = next(read_orders())
    assert order.subject(event) == f"orders.eu.000001.{event}"
    assert event_of(order.subject(event)) == event


@pytest.mark.parametrize("subject", ["orders.eu.1", "orders.eu.1.sold", "bulk.eu.1.paid", "orders.eu.1.x.paid", ""])
def test_a_subject_of_another_shape_is_refused(subject: str) -> None:
    with pytest.raises(OrderFormatError, match=r"expected orders\.<region>\.<order id>\.<event>"):
        event_of(subject)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("00004 19970101 2", r"3 columns, expected 4"),
        ("00004 19970101 2 29.33 x", r"5 columns, expected 4"),
        ("", r"0 columns, expected 4"),
        ("zwei 19970101 2 29.33", r"customer id 'zwei', expected a number above 0"),
        ("00000 19970101 2 29.33", r"customer id '00000'"),
        ("00004 19970231 2 29.33", r"date '19970231', expected a day of the calendar"),
        ("00004 1997-01-01 2 29.33", r"date '1997-01-01', expected YYYYMMDD"),
        ("00004 19970101 0 29.33", r"number of CDs '0', expected a number above 0"),
        ("00004 19970101 -2 29.33", r"number of CDs '-2'"),
        ("00004 19970101 2 29.3", r"dollar value '29.3', expected dollars and cents"),
        ("00004 19970101 2 -29.33", r"dollar value '-29.33'"),
        ("00004 19970101 2 29", r"dollar value '29'"),
        ("00004 19970101 2 nan", r"dollar value 'nan'"),
        ("2147483648 19970101 2 29.33", r"<= 2147483647 - at `\$.customer`"),
        ("00004 19970101 2147483648 29.33", r"<= 2147483647 - at `\$.cds`"),
        ("00004 19970101 2 10000000000.01", r"<= 1000000000000 - at `\$.cents`"),
        pytest.param(f"00004 19970101 {'9' * 4_300} 29.33", r"at `\$.cds`", id="4,300 digits"),
        pytest.param(f"00004 19970101 {'9' * 5_001} 29.33", "has 5001 digits", id="5,001 digits"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line_number(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "orders.txt"
    path.write_text(f"{HEADER}00001 19970101 1 11.77\n{row}\n")
    with pytest.raises(OrderFormatError, match=rf"^orders.txt line 3: .*{reason}"):
        list(read_orders(path))


def test_orders_of_different_files_have_different_ids_and_those_of_one_file_the_same_again(tmp_path: Path) -> None:
    monday, tuesday, copy = (tmp_path / name for name in ("monday", "tuesday", "copy"))
    for path, customers in ((monday, "12"), (tuesday, "13"), (copy, "12")):
        path.write_text(
            "customer_id date number_of_cds dollar_value\n" + "".join(f"{n} 19970101 1 1.00\n" for n in customers)
        )
    ids = {path: [order.id for order in read_orders(path)] for path in (monday, tuesday, copy)}
    assert ids[monday] == ids[copy]
    everything = [*ids[monday], *ids[tuesday], *(order.id for order in read_orders(first=2))]
    assert len(set(everything)) == 6
    for order in read_orders(monday):
        assert decode(encode(order)) == order


@pytest.mark.parametrize("text", ["00001 19970101 1 11.77\n", "", "\n"])
def test_a_file_without_its_header_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "headless.txt"
    path.write_text(text)
    with pytest.raises(OrderFormatError, match=r"headless.txt line 1: .*expected the header"):
        list(read_orders(path))


def test_a_number_of_orders_below_0_is_refused() -> None:
    assert list(read_orders(first=0)) == []
    with pytest.raises(ValueError, match="first=-69650, expected 0 or more"):
        list(read_orders(first=-69_650))


@pytest.mark.parametrize(
    ("field", "most"),
    [("customer", 2**31 - 1), ("cds", 2**31 - 1), ("cents", 10**12)],
    ids=["customer", "cds", "cents"],
)
def test_the_largest_numbers_are_read_and_larger_ones_are_refused(field: str, most: int) -> None:
    payload = encode(msgspec.structs.replace(next(read_orders()), **{field: most}))
    assert getattr(decode(payload), field) == most
    for larger in (b"%d" % (most + 1), b"9" * 100, b"9" * 4_300, b"9" * 5_001):
        with pytest.raises(OrderFormatError, match=rf"not an order: .*\$\.{field}"):
            decode(payload.replace(b":%d" % most, b":" + larger))


def test_an_order_that_json_cannot_write_is_not_placed() -> None:
    order = next(read_orders())
    for wrong in ({"cds": 10**5_000}, {"id": "\ud800"}):
        with pytest.raises(OrderFormatError, match="not an order: .*seen id"):
            _placed(msgspec.structs.replace(order, **wrong))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"id":"\xff"}', "invalid start byte"),
        (b'{"id":"1"}', "missing required field `region`"),
        (b'{"id":"a.b","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":1}', r"matching regex.*\$\.id"),
        (b'{"id":"*","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":1}', r"\$\.id"),
        (b'{"id":"1\\n","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":1}', r"\$\.id"),
        (b'{"id":"1","region":">","customer":1,"day":"1997-01-01","cds":1,"cents":1}', r"\$\.region"),
        (b'{"id":"1","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":1.5}', r"\$\.cents"),
        (b'{"id":"1","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":-1}', r"\$\.cents"),
        (b'{"id":"1","region":"eu","customer":1,"day":"1997-01-01","cds":1,"cents":1,"x":1}', "unknown field `x`"),
    ],
)
def test_a_payload_that_is_no_order_is_refused_with_the_field(payload: bytes, reason: str) -> None:
    with pytest.raises(OrderFormatError, match=f"not an order: .*{reason}"):
        decode(payload)


def test_wrong_totals_are_shown_as_a_difference() -> None:
    seen = Totals(EVERYTHING.orders - 1, EVERYTHING.customers, EVERYTHING.cds + 2, EVERYTHING.cents)
    expected = r"orders: seen 69,658, expected 69,659 \(-1\); cds: seen 167,883, expected 167,881 \(\+2\)"
    with pytest.raises(WrongTotalsError, match=expected) as wrong:
        check_totals(seen, EVERYTHING)
    assert wrong.value.differences == {"orders": -1, "cds": 2}
    check_totals(EVERYTHING, EVERYTHING)
