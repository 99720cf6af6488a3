"""What a set of orders adds up to, and the check that every run of the mesh ends with."""

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
        """Show the sums as a person writes them."""
        return (
            f"{self.orders:,} orders, {self.customers:,} customers, {self.cds:,} CDs, "
            f"${self.cents // 100:,}.{self.cents % 100:02d}"
        )


def totals_of(orders: Iterable[Order]) -> Totals:
    """Return what orders add up to, each taken as it comes."""
    listed = list(orders)
    return Totals(
        orders=len(listed),
        customers=len({order.customer for order in listed}),
        cds=sum(order.cds for order in listed),
        cents=sum(order.cents for order in listed),
    )


def check_totals(seen: Totals, expected: Totals) -> None:
    """Return when both are the same.

    Raises:
        WrongTotalsError: They differ; the message lists each difference.
    """
    differences = [
        f"{name}: seen {getattr(seen, name):,}, expected {getattr(expected, name):,} "
        f"({getattr(seen, name) - getattr(expected, name):+,})"
        for name in Totals.__struct_fields__
        if getattr(seen, name) != getattr(expected, name)
    ]
    if differences:
        raise WrongTotalsError("wrong totals: " + "; ".join(differences))
