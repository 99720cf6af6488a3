"""An order, the events of its life, and the subjects they travel on."""

import datetime
from typing import Annotated, Literal, get_args

import msgspec

from mesh_lab.errors import OrderFormatError

Event = Literal["placed", "paid", "declined", "reserved", "shipped", "cancelled"]
EVENTS: tuple[Event, ...] = get_args(Event)
_EVENT_BY_NAME: dict[str, Event] = {event: event for event in EVENTS}
STREAM = "ORDERS"
ALL_SUBJECTS = "orders.*.*.*"
PAYMENT_LIMIT_CENTS = 500_000
"""The payment provider of this course declines more: about four times the largest real order."""

# Part of a subject: a dot would add a level, `*` and `>` make it a wildcard; and `$` would let a line break in.
Token = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}\Z")]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One purchase, as it travels in every event of its life."""

    id: Token
    """Unique among all orders; a token of its subjects."""
    region: Token
    """Where the order was placed: ``"eu"`` or ``"us"`` for the real ones."""
    customer: Annotated[int, msgspec.Meta(ge=1)]
    day: datetime.date
    cds: Annotated[int, msgspec.Meta(ge=1)]
    cents: Annotated[int, msgspec.Meta(ge=0)]
    """Value in US cents; money is never a float."""

    def subject(self, event: Event) -> str:
        """Return the subject of one event of this order: ``orders.<region>.<id>.<event>``."""
        return f"orders.{self.region}.{self.id}.{event}"

    def msg_id(self, event: Event) -> str:
        """Return the ``Nats-Msg-Id`` under which the server knows a repeated event of this order."""
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
        raise OrderFormatError(f"not an order: {err}; seen {payload[:120]!r}") from err


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


def next_events(order: Order) -> tuple[Event, ...]:
    """Return the events that follow when an order was placed and nothing goes wrong on the way."""
    return ("paid", "shipped") if order.cents <= PAYMENT_LIMIT_CENTS else ("declined",)
