"""The saga's decisions: what becomes of an order, what each service answers, and what the whole data set comes to."""

from collections import Counter

import msgspec
import pytest

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import PAYMENT_LIMIT_CENTS, Order, dollars
from mesh_lab.orders.saga import DUTIES, FIRST, LIVES, SAGA, fate
from mesh_lab.orders.saga_audit import EndTotals, expected_ends
from mesh_lab.patterns.consumer_info import matches


@pytest.fixture(scope="module")
def orders() -> list[Order]:
    return list(read_orders())


def test_the_whole_data_set_comes_to_these_ends(orders: list[Order]) -> None:
    assert Counter(map(fate, orders)) == {"shipped": 65_395, "declined": 2_079, "no stock": 1_446, "no carrier": 739}
    ends = expected_ends(orders)
    assert ends == (
        EndTotals("shipped", 65_395, 234_714_906, 234_714_906, 0, 65_395, 0),
        EndTotals("cancelled", 2_185, 8_009_570, 8_009_570, 8_009_570, 739, 739),
        EndTotals("declined", 2_079, 7_307_087, 0, 0, 0, 0),
    )
    assert sum(end.orders for end in ends) == EVERYTHING.orders
    assert dollars(sum(end.cents for end in ends)) == "$2,500,315.63"


def test_what_the_bank_would_not_lend_to_anybody_is_declined(orders: list[Order]) -> None:
    good = next(order for order in orders if fate(order) == "shipped")
    assert fate(msgspec.structs.replace(good, cents=PAYMENT_LIMIT_CENTS)) == "shipped"
    assert fate(msgspec.structs.replace(good, cents=PAYMENT_LIMIT_CENTS + 1)) == "declined"


def _life(order: Order) -> tuple[list[str], list[str]]:
    """Return the events and effects of an order, by asking each service about each event that its group brings it."""
    events, effects, new = [order.subject("placed")], list[str](), [order.subject("placed")]
    while new:
        subject = new.pop(0)
        for service, subjects in SAGA.groups.items():
            if any(matches(subject, pattern) for pattern in subjects):
                done, follow = DUTIES[service].follow(subject, order)
                effects += [step.subject for step in done]
                events += [step.subject for step in follow]
                new += [step.subject for step in follow]
                for step in (*done, *follow):
                    assert FIRST.items() < step.headers.items()
    return events, effects


@pytest.mark.parametrize(
    ("end", "effects"),
    [
        ("shipped", ["charge", "reserve"]),
        ("declined", []),
        ("no stock", ["charge", "refund"]),
        ("no carrier", ["charge", "reserve", "refund", "release"]),
    ],
)
def test_the_services_together_lead_an_order_to_its_fate_and_undo_what_they_did(
    orders: list[Order], end: str, effects: list[str]
) -> None:
    for order in [order for order in orders if fate(order) == end][:50]:
        events, done = _life(order)
        assert events == [order.subject(event) for event in LIVES[end]]
        assert done == [f"effects.{effect}.{order.id}" for effect in effects]


@pytest.mark.parametrize("service", DUTIES)
def test_no_service_answers_one_orders_message_on_anothers_subject(orders: list[Order], service: str) -> None:
    one, other, *_ = orders
    with pytest.raises(OrderFormatError, match=rf"an order on subject '{other.subject('cancelled')}', expected on"):
        DUTIES[service].follow(other.subject("cancelled"), one)
