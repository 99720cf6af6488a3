"""Checks of notebook 14: what is not finished, and what it is worth."""

import datetime
from typing import Any

from nats.aio.client import Client

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import STREAM, Event, Order, encode, open_event_store
from mesh_lab.patterns import wait_routable

LIVES: dict[str, tuple[str, int, tuple[Event, ...]]] = {
    "000001": ("eu", 1_000, ("placed", "paid", "paid", "shipped")),
    "000002": ("eu", 200, ("placed", "paid")),
    "000003": ("us", 30, ("placed",)),
    "000004": ("us", 4_000, ("placed", "declined")),
    "000005": ("us", 500, ("placed", "paid", "reserved")),
    "000006": ("eu", 60_000, ("placed", "paid", "cancelled")),
    "000007": ("us", 7_000_000, ("placed", "cancelled")),
    "000008": ("us", 80, ("placed", "paid", "reserved", "shipped")),
    "000009": ("asia", 90, ("placed", "declined")),
}
UNFINISHED = {"000002", "000003", "000005"}
WORTH = {"eu": 1_200, "us": 580, "asia": 0}


async def _empty_store(trial: Trial) -> Client:
    """Return a client of a server whose event store is empty."""
    client = await trial.own_client()
    await open_event_store(client)
    await wait_routable(client, STREAM)
    return client


async def _store_lives(client: Client) -> None:
    """Store the lives, event by event across all orders, as they happen."""
    js, longest = client.jetstream(timeout=3.0), max(len(events) for _, _, events in LIVES.values())
    for step in range(longest):
        for order_id, (region, cents, events) in LIVES.items():
            if step < len(events):
                order = Order(order_id, region, 1, datetime.date(1997, 1, 1), 1, cents)
                await js.publish(order.subject(events[step]), encode(order))


@exercise(
    "14.1",
    title="what is not finished?",
    answer="async function",
    expects="the ids of the orders that nothing has ended",
    hint="stream_info('ORDERS', subjects_filter='orders.>') returns each subject with its number of messages, in "
    "state.subjects; a subject says region, id and event.",
    within=30.0,
)
async def knows_the_unfinished(trial: Trial, answer: Any) -> str:
    """Ask it about an empty store, and about one with nine orders."""
    client = await _empty_store(trial)
    if (found := await answer(client)) != set():
        raise NotYet(f"the store is empty, and {found!r} was returned", "an empty set")
    await _store_lives(client)
    found = await answer(client)
    trial.kind(found, set, "a set of ids")
    if missing := sorted(UNFINISHED - found):
        raise NotYet(f"{missing[0]} is missing: {', '.join(LIVES[missing[0]][2])}", "every order without an end")
    if more := sorted(map(str, found - UNFINISHED)):
        life = ", ".join(LIVES[more[0]][2]) if more[0] in LIVES else "no order of the store"
        raise NotYet(f"{more[0]} is in it: {life}", "no order that was ended")
    return "the subjects alone can tell it"


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
    """Ask it about a store with nine orders, twice."""
    client = await _empty_store(trial)
    await _store_lives(client)
    for again in ("", "asked again, "):
        found = await answer(client)
        if not isinstance(found, dict):
            raise NotYet(f"{again}{type(found).__name__} was returned", "a dictionary")
        for region, cents in WORTH.items():
            if found.get(region) != cents:
                raise NotYet(f"{again}{region} has {found.get(region)!r} cents", f"{cents:,}")
        if more := sorted(map(str, set(found) - set(WORTH))):
            raise NotYet(f"{again}a region {more[0]!r} was returned", "eu, us and asia")
    return "any question about the past can be asked today, since no event was thrown away"
