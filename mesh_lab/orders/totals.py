"""The totals of a set of orders, and the check that every run of the mesh ends with."""

from collections.abc import Iterable

import msgspec

from mesh_lab.errors import WrongTotalsError
from mesh_lab.orders.order import Order


class Totals(msgspec.Struct, frozen=True):
    """Different orders, different customers, CDs, and the value in US cents."""

    orders: int = 0
    customers: int = 0
    cds: int = 0
    cents: int = 0

    def __str__(self) -> str:
        """Return the sums with separators and units."""
        dollars = f"${self.cents // 100:,}.{self.cents % 100:02d}"
        return f"{self.orders:,} orders, {self.customers:,} customers, {self.cds:,} CDs, {dollars}"


def totals_of(orders: Iterable[Order]) -> Totals:
    """Return the totals of orders, repeated ones counted each time."""
    listed = list(orders)
    return Totals(
        orders=len(listed),
        customers=len({order.customer for order in listed}),
        cds=sum(order.cds for order in listed),
        cents=sum(order.cents for order in listed),
    )


def check_totals(seen: Totals, expected: Totals) -> None:
    """Compare two totals, and return when they are the same.

    Raises:
        WrongTotalsError: They differ; the message lists each difference.
    """
    one, other = msgspec.structs.asdict(seen), msgspec.structs.asdict(expected)
    differences = {name: one[name] - other[name] for name in one if one[name] != other[name]}
    if differences:
        words = [f"{n}: seen {one[n]:,}, expected {other[n]:,} ({by:+,})" for n, by in differences.items()]
        raise WrongTotalsError("wrong totals: " + "; ".join(words), differences=differences)
