"""Checks of notebook 14: what is not finished, and what it is worth."""

import asyncio
import datetime
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from nats.aio.client import Client

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import STREAM, Event, Order, encode, open_event_store
from mesh_lab.patterns import wait_routable

Life = tuple[str, int, tuple[Event, ...]]
"""An order's region, its cents, and its events in the order in which they are stored."""
STORED_AT_ONCE = 5_000  # a stream refuses what comes while 10,000 messages wait to be stored


async def _empty_store(trial: Trial) -> tuple[Mesh, Client]:
    """Return a server whose event store is empty, and a client of it."""
    own = await trial.own_mesh()
    client = await trial.client(on=own)
    await open_event_store(client)
    await wait_routable(client, STREAM)
    return own, client


def _events(lives: dict[str, Life]) -> Iterator[tuple[str, bytes]]:
    """Yield subject and payload of each event, step by step across all orders, as they happen."""
    for step in range(max(len(events) for _, _, events in lives.values())):
        for order_id, (region, cents, events) in lives.items():
            if step < len(events):
                order = Order(order_id, region, 1, datetime.date(1997, 1, 1), 1, cents)
                yield order.subject(events[step]), encode(order)


def _published(subject: str, text: bytes, reply: str) -> bytes:
    return f"PUB {subject} {reply}{len(text)}\r\n".encode() + text + b"\r\n"


async def _store(own: Mesh, events: Iterable[tuple[str, bytes]]) -> None:
    """Store events, and return when the last of them is acknowledged; by hand, since there are many."""
    [server], who, events = own.servers.values(), own.connect_options(), iter(events)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    await reader.readline()  # INFO
    login = {"user": who["user"], "pass": who["password"], "name": "check 14", "verbose": False}
    writer.write(f"CONNECT {json.dumps(login)}\r\nSUB acknowledged 1\r\n".encode())
    while some := list(itertools.islice(events, STORED_AT_ONCE)):
        replies = [*[""] * (len(some) - 1), "acknowledged "]
        lines = zip(some, replies, strict=True)
        writer.write(b"".join(_published(*event, reply) for event, reply in lines))
        while not (await reader.readline()).startswith(b"MSG"):
            pass
    writer.close()
    await writer.wait_closed()


# 14.1

LIVES: dict[str, Life] = {
    "000001": ("eu", 1_000, ("placed", "paid", "paid", "shipped")),
    "000002": ("eu", 200, ("placed", "paid")),
    "000003": ("us", 30, ("placed",)),
    "000004": ("us", 4_000, ("placed", "declined")),
    "000005": ("us", 500, ("placed", "paid", "reserved")),
    "000006": ("eu", 60_000, ("placed", "paid", "cancelled")),
    "000007": ("us", 7_000_000, ("placed", "cancelled")),
    "000008": ("us", 80, ("placed", "paid", "reserved", "shipped")),
    "000009": ("asia", 90, ("placed", "declined")),
    "000010": ("asia", 90, ("placed", "placed", "shipped")),
    "000011": ("asia", 90, ("placed", "placed", "paid")),
    "000012": ("eu", 90, ("shipped", "placed")),
    "000013": ("us", 90, ("paid", "reserved")),
    "9": ("nordic", 90, ("placed",)),
    "10": ("nordic", 90, ("placed", "shipped", "shipped")),
    "Z_a-7": ("nordic", 90, ("placed", "reserved")),
}
UNFINISHED = {"000002", "000003", "000005", "000011", "9", "Z_a-7"}
PAGE = 100_000  # subjects in one answer of the server, in alphabetical order
MORE = 20
ANSWERED_WITHIN_S = 20.0


@exercise(
    "14.1",
    title="what is not finished?",
    answer="async function",
    expects="the ids of the orders that nothing has ended",
    hint="stream_info('ORDERS', subjects_filter='orders.>') returns each subject with its number of messages, in "
    "state.subjects; a subject says region, id and event. For what comes after the first 100,000, ask "
    '$JS.API.STREAM.INFO.ORDERS with an "offset" beside "subjects_filter".',
    within=60.0,
)
async def knows_the_unfinished(trial: Trial, answer: Any) -> str:
    """Ask it about an empty store, about one with some orders, and about one with more than a page of them."""
    own, client = await _empty_store(trial)
    trial.case = "the store is empty"
    if (found := await answer(client)) != set():
        raise NotYet(f"{trial.case}, and {found!r} was returned", "an empty set")
    await _store(own, _events(LIVES))
    trial.case = "the store has 16 orders"
    for again in ("", "asked again, "):
        _expect_unfinished(trial, await answer(client), LIVES, UNFINISHED, again)
    # Behind all others in the alphabet; one order has an event on the first page, and its end on the second.
    many: dict[str, Life] = {f"{n}": ("zeta", 90, ("placed",)) for n in range(PAGE, 2 * PAGE + MORE)}
    subjects = len({subject for subject, _ in _events(LIVES)})
    ended = [list(many)[PAGE - 1 - subjects], f"{2 * PAGE + MORE - 2}"]
    many |= dict.fromkeys(ended, ("zeta", 90, ("placed", "shipped")))
    await _store(own, _events(many))
    trial.case = f"the store has more than {PAGE:,} orders"
    seen, expected = f"{trial.case}, and after {ANSWERED_WITHIN_S:.0f} s nothing was returned", "less time"
    found = await trial.returns(answer(client), seen, expected, within=ANSWERED_WITHIN_S)
    _expect_unfinished(trial, found, LIVES | many, UNFINISHED | (set(many) - set(ended)), f"{trial.case}, and ")
    return "the subjects alone can tell it"


def _expect_unfinished(trial: Trial, found: Any, lives: dict[str, Life], expected: set[str], case: str) -> None:
    trial.kind(found, (set, frozenset), "a set of ids")
    if missing := sorted(expected - found):
        raise NotYet(f"{case}{missing[0]} is missing: {', '.join(lives[missing[0]][2])}", "every order without an end")
    if more := sorted(found - expected, key=str):
        life = ", ".join(lives[more[0]][2]) if more[0] in lives else "no order of the store"
        raise NotYet(f"{case}{more[0]!r} is in it: {life}", "no order that was ended, or was not placed")


# 14.2

PAID: dict[str, Life] = {
    "000001": ("eu", 1_000, ("placed", "paid", "reserved", "paid", "shipped")),
    "000002": ("eu", 200, ("placed", "paid")),
    "000003": ("us", 30, ("placed",)),
    "000004": ("us", 4_000, ("placed", "declined")),
    "000005": ("us", 500, ("placed", "paid", "reserved")),
    "000006": ("eu", 60_000, ("placed", "paid", "paid", "cancelled")),
    "000007": ("us", 7_000_000, ("placed", "cancelled")),
    "000008": ("us", 80, ("placed", "paid", "reserved", "shipped")),
    "000009": ("asia", 90, ("placed", "declined")),
    "000010": ("sur-2", 700, ("placed", "cancelled", "paid")),
    "000011": ("eu", 9_000, ("placed", "paid", "cancelled", "cancelled")),
    "000012": ("nordic", 5_000_000_000, ("placed", "declined", "paid")),
}
WORTH = {"eu": 1_200, "us": 580, "asia": 0, "sur-2": 0, "nordic": 5_000_000_000}
BULK: dict[str, Life] = {f"{n}": ("bulk", 7, ("placed", "paid")) for n in range(1_500)}
LATER: dict[str, Life] = {"000002": ("eu", 200, ("cancelled",)), "000003": ("us", 30, ("paid",))}
WORTH_LATER = {**WORTH, "eu": 1_000, "us": 610, "bulk": 7 * len(BULK)}


@exercise(
    "14.2",
    title="what is it worth?",
    answer="async function",
    expects="cents of each region's orders that were paid and not cancelled",
    hint="js.subscribe(subject, ordered_consumer=True) replays a stream from its beginning; stream_info says how many "
    "messages there are. An order that was paid may be cancelled later.",
    within=30.0,
)
async def knows_the_worth(trial: Trial, answer: Any) -> str:
    """Ask it about an empty store, about one with some orders, twice, and again when there are many more."""
    own, client = await _empty_store(trial)
    trial.case = "the store is empty"
    _expect_worth(await answer(client), {}, f"{trial.case}, and ")
    await _store(own, _events(PAID))
    trial.case = "the store has 12 orders"
    for again in ("", "asked again, "):
        _expect_worth(await answer(client), WORTH, again)
    await _store(own, itertools.chain(_events(BULK), _events(LATER)))
    trial.case = "orders were stored since it was asked"
    _expect_worth(await answer(client), WORTH_LATER, f"{trial.case}, and ")
    return "any question about the past can be asked today, since no event was thrown away"


def _expect_worth(found: Any, expected: dict[str, int], case: str) -> None:
    if not isinstance(found, dict):
        raise NotYet(f"{case}{'None' if found is None else type(found).__name__} was returned", "a dictionary")
    for region, cents in expected.items():
        if region not in found:
            raise NotYet(f"{case}region {region} is missing", f"{cents:,} cents")
        if found[region] != cents or isinstance(found[region], bool):
            raise NotYet(f"{case}{region} has {found[region]!r} cents", f"{cents:,}")
    if more := sorted(map(str, set(found) - set(expected))):
        raise NotYet(f"{case}a region {more[0]!r} was returned", f"{', '.join(expected) or 'none'}")
