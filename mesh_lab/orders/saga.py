"""The order's whole life: payment, stock and shipping, each a service that answers events with events.

Nobody directs them (*choreography*): payment answers what was placed, stock what was paid, shipping what was reserved.
What cannot go on is cancelled, and each service that did something for the order undoes it. What a service does outside
of the event store, as a charge at the bank, is an *effect*: a message in a stream of its own.

Effect and event agree, whoever is killed, because each is stored once for ever, and in this order: the effect, the
event, the acknowledgement. Each demands to be the first message of its subject (``Nats-Expected-Last-Subject-Sequence:
0``), which names the order: the stream itself refuses a second charge, also long after its ``duplicate_window``. When a
service dies between two of the three, another one gets the order, finds what is there and adds what is missing. For a
moment there may be a charge without its ``paid``, never the reverse. An outbox would need a relay, and the same key.

Each order comes to one end because a service decides the same way each time that it is asked about an order. Here
:func:`fate` decides; a bank gives the same answer to the same idempotency key.
"""

from collections.abc import Sequence
from typing import Literal, get_args
from zlib import crc32

from mesh_lab.orders.event_store import Deployment
from mesh_lab.orders.order import ALL_SUBJECTS, PAYMENT_LIMIT_CENTS, STREAM, Event, Order, event_on
from mesh_lab.orders.worker import Duty, Step

Effect = Literal["charge", "refund", "reserve", "release"]
Fate = Literal["shipped", "declined", "no stock", "no carrier"]
EFFECTS_STREAM, EFFECTS = "EFFECTS", get_args(Effect)
LIVES: dict[Fate, tuple[Event, ...]] = {
    "shipped": ("placed", "paid", "reserved", "shipped"),
    "declined": ("placed", "declined"),
    "no stock": ("placed", "paid", "cancelled"),
    "no carrier": ("placed", "paid", "reserved", "cancelled"),
}
"""The events of an order's life by its fate; the last one is its end."""
DECLINED, NO_STOCK, NO_CARRIER = 3, 2, 1  # orders in a hundred
FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}
SAGA = Deployment(
    {STREAM: ALL_SUBJECTS, EFFECTS_STREAM: "effects.*.*"},
    {
        "payment": ("orders.*.*.placed", "orders.*.*.cancelled"),
        "stock": ("orders.*.*.paid", "orders.*.*.cancelled"),
        "shipping": ("orders.*.*.reserved",),
    },
)
"""The group of each service has its name, and brings what it answers."""


def fate(order: Order) -> Fate:
    """Return what becomes of an order: always the same, and for six in a hundred a failure."""
    draw = crc32(order.id.encode()) % 100
    if draw < DECLINED or order.cents > PAYMENT_LIMIT_CENTS:
        return "declined"
    if draw < DECLINED + NO_STOCK:
        return "no stock"
    return "no carrier" if draw < DECLINED + NO_STOCK + NO_CARRIER else "shipped"


def _payment(event: Event, order: Order) -> tuple[Sequence[Effect], Sequence[Event]]:
    if event == "cancelled":
        return ["refund"], []
    return ([], ["declined"]) if fate(order) == "declined" else (["charge"], ["paid"])


def _stock(event: Event, order: Order) -> tuple[Sequence[Effect], Sequence[Event]]:
    if event == "cancelled":
        return ([], []) if fate(order) == "no stock" else (["release"], [])
    return ([], ["cancelled"]) if fate(order) == "no stock" else (["reserve"], ["reserved"])


def _shipping(_event: Event, order: Order) -> tuple[Sequence[Effect], Sequence[Event]]:
    return [], ["cancelled" if fate(order) == "no carrier" else "shipped"]


_ANSWERS = {"payment": _payment, "stock": _stock, "shipping": _shipping}


def _duty(service: str) -> Duty:
    def follow(subject: str, order: Order) -> Sequence[Sequence[Step]]:
        # With its order, or one order's message would undo another order.
        effects, events = _ANSWERS[service](event_on(subject, order), order)
        return (
            [Step(f"effects.{e}.{order.id}", {"Nats-Msg-Id": f"{order.id}.{e}", **FIRST}) for e in effects],
            [Step(order.subject(e), {"Nats-Msg-Id": order.msg_id(e), **FIRST}) for e in events],
        )

    return Duty(service, follow)


DUTIES = {service: _duty(service) for service in SAGA.groups}
