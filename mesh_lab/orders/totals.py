"""The totals of a set of orders, and the check that every run of the mesh ends with."""

from collections.abc import Iterable

import msgspec

from mesh_lab.errors import WrongTotalsError
from mesh_lab.orders.order import Order


class Totals(msgspec.Struct, frozen=True):
    """Counts and sums over orders."""

    orders: int = 0
    """Number of different orders."""
    customers: int = 0
    """Number of different customers."""
    cds: int = 0
    """Number of CDs."""
    cents: int = 0
    """Value in US cents."""

    def __str__(self) -> str:
        """Return the sums with separators and units."""
        return (
            f"{self.orders:,} orders, {self.customers:,} customers, {self.cds:,} CDs, "
            f"${self.cents // 100:,}.{self.cents % 100:02d}"
        )


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
    pairs = {name: (getattr(seen, name), getattr(expected, name)) for name in Totals.__struct_fields__}
    differences = {name: one - other for name, (one, other) in pairs.items() if one != other}
    if differences:
        words = [f"{n}: seen {pairs[n][0]:,}, expected {pairs[n][1]:,} ({by:+,})" for n, by in differences.items()]
        raise WrongTotalsError("wrong totals: " + "; ".join(words), differences=differences)
