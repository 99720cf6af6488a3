"""An order, the events of its life and the subjects they travel on, and the totals of many orders."""

import datetime
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import msgspec

from mesh_lab.errors import OrderFormatError, WrongTotalsError

Event = Literal["placed", "paid", "declined", "reserved", "shipped", "cancelled"]
EVENTS: tuple[Event, ...] = get_args(Event)
_EVENT_BY_NAME: dict[str, Event] = {event: event for event in EVENTS}
STREAM = "ORDERS"
ALL_SUBJECTS = "orders.*.*.*"
REASON_CHARACTERS = 300
PAYMENT_LIMIT_CENTS = 500_000
"""The payment provider of this course declines more: about four times the largest real order."""

# Part of a subject: a dot would add a level, `*` and `>` make it a wildcard; and `$` would let a line break in.
Token = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]
# Bounded: Python writes no number of more than 4,300 digits, so the sum of two such would silence the read model.
Number = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Cents = Annotated[int, msgspec.Meta(ge=0, le=10**12)]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One purchase, as it travels in every event of its life."""

    id: Token
    """Unique among all orders; a token of its subjects."""
    region: Token
    """Where the order was placed: ``"eu"`` or ``"us"`` for the real ones."""
    customer: Number
    day: datetime.date
    cds: Number
    cents: Cents
    """Value in US cents; money is never a float."""

    def subject(self, event: Event) -> str:
        """Return the subject of one event of this order: ``orders.<region>.<id>.<event>``."""
        return f"orders.{self.region}.{self.id}.{event}"

    def msg_id(self, event: Event) -> str:
        """Return the ``Nats-Msg-Id`` by which the server recognises a repeated event of this order."""
        return f"{self.id}.{event}"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Order)


def encode(order: Order) -> bytes:
    """Return an order as JSON."""
    return _encoder.encode(order)


def decode(payload: bytes) -> Order:
    """Return the order in a message's payload.

    Raises:
        OrderFormatError: The payload is not an order; the message says which field is wrong.
    """
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        # The reason may hold as much of the payload as somebody likes, for example the name of an unknown field.
        raise OrderFormatError(f"not an order: {str(err)[:REASON_CHARACTERS]}; seen {payload[:120]!r}") from err


def event_of(subject: str) -> Event:
    """Return the event that a subject ``orders.<region>.<id>.<event>`` names.

    Raises:
        OrderFormatError: It is another subject.
    """
    tokens = subject.split(".")
    if len(tokens) == 4 and tokens[0] == "orders" and (event := _EVENT_BY_NAME.get(tokens[3])):
        return event
    expected = f"orders.<region>.<order id>.<event>, event one of {', '.join(EVENTS)}"
    raise OrderFormatError(f"subject {subject!r}, expected {expected}")


def event_on(subject: str, order: Order) -> Event:
    """Return the event of an order whose subject this is.

    Raises:
        OrderFormatError: It is another subject, also where it names another order.
    """
    if subject != (right := order.subject(event := event_of(subject))):
        raise OrderFormatError(f"an order on subject {subject!r}, expected on {right!r}, which its id and region name")
    return event


def next_events(order: Order) -> tuple[Event, ...]:
    """Return the events that follow when an order was placed and nothing goes wrong on the way."""
    return ("paid", "shipped") if order.cents <= PAYMENT_LIMIT_CENTS else ("declined",)


class Totals(msgspec.Struct, frozen=True):
    """Different orders, different customers, CDs, and the value in US cents."""

    orders: int = 0
    customers: int = 0
    cds: int = 0
    cents: int = 0

    def __str__(self) -> str:
        return f"{self.orders:,} orders, {self.customers:,} customers, {self.cds:,} CDs, {dollars(self.cents)}"


def dollars(cents: int) -> str:
    """Return an amount as it is written: ``$2,500,315.63``."""
    return f"${cents // 100:,}.{cents % 100:02d}"


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
