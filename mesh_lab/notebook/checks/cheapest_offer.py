"""Exercise 2.3 of notebook 02: the cheapest offer by a deadline."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.notebook.checks.common import LONG_S, connect, nobody_on, own_subject, returns_within, subscriptions
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.servers.mesh import Mesh

WITHIN_S = 0.4
Offers = list[tuple[float, str, int]]
"""When each offer comes, in seconds after the question; from whom; and for how many cents."""

EVERYBODY: Offers = [(0, "north", 480), (0, "east", 450), (0, "south", 470), (0.05, "west", 420)]
# South comes soon enough to keep a wait of 0.4 s for each offer going, until west is there, too late.
SOME_LATE: Offers = [(0, "north", 480), (0, "east", 450), (0.25, "south", 470), (0.48, "west", 300)]
ALL_LATE: Offers = [(0.6, "west", 300)]


@dataclass(frozen=True, slots=True)
class _Auction:
    """How a search for the cheapest offer went."""

    offer: Any
    left_behind: bool
    """Whether an inbox was still subscribed afterwards."""


@exercise(
    "2.3",
    title="take the cheapest offer",
    answer="async function",
    expects="the cheapest offer, or None, by the deadline at the latest",
    hint="ask_all has the skeleton. Mind three things: the deadline is one for all offers together, not one for each; "
    "where nobody listens the server answers, with a message that is no offer; and an inbox that is no longer needed "
    "is unsubscribed.",
)
async def takes_the_cheapest(mesh: Mesh, answer: Any) -> Verdict:
    """Let four carriers answer, then three in time and one late, then nobody."""
    async with await connect(mesh, "check 2.3") as nc:
        auction = await _hold_auction(nc, answer, EVERYBODY, within=60.0, patience=LONG_S)
        if auction is None:
            return not_yet("it went on waiting when all 4 carriers had answered", "an end with the fourth offer")
        if wrong := _other_than(auction, "west", 420, "when all 4 answered, the cheapest last"):
            return wrong

        auction = await _hold_auction(nc, answer, SOME_LATE, within=WITHIN_S, patience=WITHIN_S + LONG_S)
        if auction is None:
            return not_yet(f"it was still waiting {LONG_S:g} s after its deadline", "what has come by the deadline")
        if isinstance(auction.offer, Mapping) and auction.offer.get("carrier") == "west":
            return not_yet("it took an offer that came after the deadline", "one deadline for all, from the beginning")
        if wrong := _other_than(auction, "east", 450, "when one of 4 was late"):
            return wrong

        before = await subscriptions(mesh, nc)
        auction = await _hold_auction(nc, answer, [], within=WITHIN_S, patience=WITHIN_S + LONG_S)
        if auction is None or auction.offer is not None:
            seen = "it waited for ever" if auction is None else f"{auction.offer!r}"
            return not_yet(f"{seen} where no carrier listens", "None")
        if await subscriptions(mesh, nc) > before:  # nobody saw its inbox there
            return not_yet("its inbox was still subscribed where no carrier listens", "unsubscribe() in any case")

        auction = await _hold_auction(nc, answer, ALL_LATE, within=WITHIN_S, patience=WITHIN_S + LONG_S)
        if auction is None or auction.offer is not None:
            seen = "it waited for ever" if auction is None else f"{auction.offer!r}"
            return not_yet(f"{seen} where every carrier was late", "None")
    return correct(
        "the count ends the wait early, the deadline ends it always, "
        "and a 503 is the server's word that it need not begin"
    )


def _other_than(auction: _Auction, carrier: str, cents: int, when: str) -> Verdict | None:
    expected = {"carrier": carrier, "cents": cents}
    if auction.offer != expected:
        return not_yet(f"{auction.offer!r} {when}", f"{expected!r}")
    if auction.left_behind:
        return not_yet(f"its inbox was still subscribed {when}", "unsubscribe() before it returns")
    return None


async def _hold_auction(nc: Client, answer: Any, offers: Offers, *, within: float, patience: float) -> _Auction | None:
    """Let the answer look for the cheapest of these offers; ``None`` if it is not back when patience ends."""
    subject, inboxes, tasks = own_subject(nc), list[str](), set[asyncio.Task[None]]()

    async def reply(msg: Msg, after: float, carrier: str, cents: int) -> None:
        await asyncio.sleep(after)  # work
        await nc.publish(msg.reply, json.dumps({"carrier": carrier, "cents": cents}).encode())

    async def on_question(msg: Msg) -> None:
        inboxes.append(msg.reply)
        # One subscriber speaks for all carriers, so that their answers come in this order.
        tasks.update(asyncio.create_task(reply(msg, *offer)) for offer in offers)

    found: list[Any] = []

    async def look() -> None:
        found.append(await answer(nc, subject, b"order 000002", 4, within))

    carriers = [await nc.subscribe(subject, cb=on_question)] if offers else []
    try:
        if not await returns_within(patience, look()):
            return None
    finally:
        for task in tasks:
            task.cancel()
        for carrier in carriers:
            await carrier.unsubscribe()
    left_behind = [inbox for inbox in inboxes if inbox and not await nobody_on(nc, inbox)]
    return _Auction(found[0], bool(left_behind))
