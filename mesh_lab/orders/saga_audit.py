"""The audit of a saga: each order came to one end, and what was done for a cancelled one was undone."""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Literal, NamedTuple, get_args

from nats.aio.client import Client

from mesh_lab.errors import OrderFormatError, WrongTotalsError
from mesh_lab.orders.order import EVENTS, STREAM, Order, decode, event_on
from mesh_lab.orders.saga import EFFECTS, LIVES, SAGA, fate
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry

End = Literal["shipped", "cancelled", "declined"]
ENDS: tuple[End, ...] = get_args(End)
SHOWN = 3


class EndTotals(NamedTuple):
    """The orders that came to one end, and what was done for them; money in US cents."""

    end: End
    orders: int
    cents: int
    charged: int
    refunded: int
    reserved: int
    """Orders for which goods were put aside."""
    released: int


def expected_ends(orders: Iterable[Order]) -> tuple[EndTotals, ...]:
    """Return what orders have to come to, by end, as :func:`~mesh_lab.orders.saga.fate` says."""
    placed = {order.id: order for order in orders}
    kinds: dict[str, set[str]] = {kind: set() for kind in EVENTS}
    for order in placed.values():
        for event in LIVES[fate(order)]:
            kinds[event].add(order.id)
    kinds |= {"charge": kinds["paid"], "refund": kinds["paid"] & kinds["cancelled"]}
    kinds |= {"reserve": kinds["reserved"], "release": kinds["reserved"] & kinds["cancelled"]}
    return _by_end(placed, kinds)


async def audit_saga(client: Client, *, consumer: str | None = None) -> tuple[EndTotals, ...]:
    """Read all events and effects and return what the orders came to, by end.

    Args:
        client: A connected nats-py client.
        consumer: As ``name`` of :func:`~mesh_lab.patterns.pull_consumer.read_in_order`.

    Raises:
        WrongTotalsError: An order has no end or two, an event or an effect was stored twice, or effects and events do
            not agree; the message names some of the orders.
        nats.js.errors.NotFoundError: There is no stream of that name.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    found: dict[str, dict[str, Order]] = {kind: {} for kind in (*EVENTS, *EFFECTS)}
    twice, placed = set[str](), found["placed"]
    for stream in SAGA.streams:
        async for kind, order in _orders_in(client, stream, consumer):
            if found[kind].setdefault(order.id, order) is not order:
                twice.add(order.id)
    kinds = {kind: set(orders) for kind, orders in found.items()}
    ends = Counter(id_ for end in ENDS for id_ in kinds[end])
    wrong = {
        "stored twice": twice,
        "in no end": placed.keys() - ends.keys(),
        "in two ends": {id_ for id_, number in ends.items() if number > 1},
        "never placed": set[str]().union(*kinds.values()) - placed.keys(),
        "changed": {id_ for orders in found.values() for id_, one in orders.items() if one != placed.get(id_, one)},
        "charged and not paid, or paid and not charged": kinds["charge"] ^ kinds["paid"],
        "put aside and not reserved, or reserved and not put aside": kinds["reserve"] ^ kinds["reserved"],
        "not refunded, or for no reason": kinds["refund"] ^ (kinds["charge"] & kinds["cancelled"]),
        "not released, or for no reason": kinds["release"] ^ (kinds["reserve"] & kinds["cancelled"]),
    }
    if wrong := {what: ids for what, ids in wrong.items() if ids}:
        words = [f"{what}: {len(ids):,}, as {', '.join(sorted(ids)[:SHOWN])}" for what, ids in wrong.items()]
        raise WrongTotalsError(f"wrong orders: {'; '.join(words)}", differences={k: len(v) for k, v in wrong.items()})
    return _by_end(placed, kinds)


def _by_end(placed: dict[str, Order], kinds: dict[str, set[str]]) -> tuple[EndTotals, ...]:
    rows = []
    for end in ENDS:
        ids = kinds[end]
        orders, charged, refunded = (sum(placed[i].cents for i in ids & kinds[k]) for k in (end, "charge", "refund"))
        reserved, released = (len(ids & kinds[kind]) for kind in ("reserve", "release"))
        rows.append(EndTotals(end, len(ids), orders, charged, refunded, reserved, released))
    return tuple(rows)


async def _orders_in(client: Client, stream: str, consumer: str | None) -> AsyncIterator[tuple[str, Order]]:
    """Yield each order that a stream holds by now, with its event or effect; not what is no order."""
    js = client.jetstream(timeout=3.0)
    last = (await retry(partial(js.stream_info, stream))).state.last_seq
    if not last:
        return
    async with aclosing(read_in_order(client, stream, name=consumer)) as batches:
        async for batch in batches:
            for msg in batch:
                with contextlib.suppress(OrderFormatError):
                    order = decode(msg.data)
                    if stream == STREAM:
                        yield event_on(msg.subject, order), order
                    elif (kind := msg.subject.split(".")[1]) in EFFECTS and msg.subject.endswith(f".{order.id}"):
                        yield kind, order
            if batch[-1].metadata.sequence.stream >= last:
                return
