"""The real orders: 69,659 purchases at a music store; see ``data/SOURCE.md``."""

import datetime
import lzma
from collections.abc import Iterator
from hashlib import blake2b
from importlib import resources
from pathlib import Path

import msgspec

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import Order, Totals

REGIONS = ("eu", "us")
COLUMNS = "customer id, date as YYYYMMDD, number of CDs, dollar value"
SHOWN_CHARACTERS = 120  # characters of a line that is none

EVERYTHING = Totals(orders=69_659, customers=23_570, cds=167_881, cents=250_031_563)


def data_set() -> bytes:
    """Return the data set as its text."""
    return lzma.decompress((resources.files("mesh_lab.orders") / "data" / "cdnow_master.txt.xz").read_bytes())


def read_orders(path: Path | None = None, *, first: int | None = None) -> Iterator[Order]:
    """Yield the orders of the data set in the order of its rows.

    The data set names no regions: odd customers shop in ``eu``, even ones in ``us``. An order's id is the number of its
    row, ``"000001"`` to ``"069659"``. In the ids of another file's orders, a digest of its text comes first, so
    that each file has ids of its own, and the same ones when it is read again.

    Args:
        path: A file in the same format instead of the one that comes with the package.
        first: Number of orders to yield; ``None`` for all.

    Raises:
        OrderFormatError: The header is missing or a row is malformed; the message gives its line number.
        ValueError: ``first`` is below 0.
    """
    if first is not None and first < 0:
        raise ValueError(f"first={first}, expected 0 or more")
    text = path.read_bytes() if path else data_set()
    source = path.name if path else "cdnow_master.txt"
    lines = text.decode("ascii", "replace").splitlines()
    header = lines[0] if lines else ""
    if header.split()[:1] != ["customer_id"]:
        seen = header.strip()[:SHOWN_CHARACTERS]
        raise OrderFormatError(f"{source} line 1: {seen!r}, expected the header with {COLUMNS}")
    prefix = f"{blake2b(text, digest_size=6).hexdigest()}-" if path else ""
    for row, line in enumerate(lines[1:][:first], start=1):
        try:
            yield _order(f"{prefix}{row:06d}", line.split())
        except ValueError as err:
            raise OrderFormatError(f"{source} line {row + 1}: {err}; seen {line.strip()[:SHOWN_CHARACTERS]!r}") from err


def _order(id_: str, fields: list[str]) -> Order:
    if len(fields) != 4:
        raise ValueError(f"{len(fields)} columns, expected 4 ({COLUMNS})")
    customer, day, cds, value = fields
    dollars, point, cents = value.partition(".")
    if not (customer.isdigit() and int(customer) > 0):
        raise ValueError(f"customer id {customer!r}, expected a number above 0")
    if not (day.isdigit() and len(day) == 8):
        raise ValueError(f"date {day!r}, expected YYYYMMDD")
    if not (cds.isdigit() and int(cds) > 0):
        raise ValueError(f"number of CDs {cds!r}, expected a number above 0")
    if not (dollars.isdigit() and point and cents.isdigit() and len(cents) == 2):
        raise ValueError(f"dollar value {value!r}, expected dollars and cents such as 11.77")
    try:
        placed = datetime.date.fromisoformat(day)
    except ValueError as err:
        raise ValueError(f"date {day!r}, expected a day of the calendar as YYYYMMDD") from err
    numbers = {"customer": int(customer), "cds": int(cds), "cents": int(dollars) * 100 + int(cents)}
    order = {"id": id_, "region": REGIONS[(int(customer) + 1) % 2], "day": placed, **numbers}
    return msgspec.convert(order, Order)  # unlike Order itself, it refuses a number that is too large
