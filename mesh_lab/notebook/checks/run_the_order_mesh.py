"""The checks of notebook 14: what is not finished, and what it is worth."""

import datetime
from typing import Any

from nats.js import JetStreamContext

from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.orders import Event, Order, encode, open_event_store
from mesh_lab.patterns import wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

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


async def _store(js: JetStreamContext) -> None:
    """Store the lives, event by event across all orders, as they happen in truth."""
    longest = max(len(events) for _, _, events in LIVES.values())
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
async def knows_the_unfinished(mesh: Mesh, answer: Any) -> Verdict:
    """Ask it about a store with eight orders, and about an empty one."""
    async with await start_mesh(backend="local") as own:
        client = await own.connect(name="check 14.1")
        await open_event_store(client)
        await wait_routable(client, "ORDERS")
        if (found := await answer(client)) != set():
            return not_yet(f"the store is empty, and {found!r} was returned", "an empty set")
        await _store(client.jetstream(timeout=3.0))
        found = await answer(client)
        if not isinstance(found, set):
            return not_yet(f"{type(found).__name__} was returned", "a set of ids")
        if missing := sorted(UNFINISHED - found):
            return not_yet(f"{missing[0]} is missing: {', '.join(LIVES[missing[0]][2])}", "every order without an end")
        if more := sorted(map(str, found - UNFINISHED)):
            life = ", ".join(LIVES[more[0]][2]) if more[0] in LIVES else "no order of the store"
            return not_yet(f"{more[0]} is in it: {life}", "no order that was ended")
    return correct("the subjects alone can tell it")


@exercise(
    "14.2",
    title="what is it worth?",
    answer="async function",
    expects="cents of each region's orders that were paid and not cancelled",
    hint="js.subscribe(subject, ordered_consumer=True) replays a stream from its beginning; stream_info says how many "
    "messages there are. An order that was paid may be cancelled later.",
    within=30.0,
)
async def knows_the_worth(mesh: Mesh, answer: Any) -> Verdict:
    """Ask it about a store with eight orders, twice."""
    async with await start_mesh(backend="local") as own:
        client = await own.connect(name="check 14.2")
        await open_event_store(client)
        await wait_routable(client, "ORDERS")
        await _store(client.jetstream(timeout=3.0))
        for again in ("", "asked again, "):
            found = await answer(client)
            if not isinstance(found, dict):
                return not_yet(f"{again}{type(found).__name__} was returned", "a dictionary")
            for region, cents in WORTH.items():
                if found.get(region) != cents:
                    return not_yet(f"{again}{region} has {found.get(region)!r} cents", f"{cents:,}")
            if more := sorted(map(str, set(found) - set(WORTH))):
                return not_yet(f"{again}a region {more[0]!r} was returned", "eu, us and asia")
    return correct("any question about the past can be asked today, since no event was thrown away")
