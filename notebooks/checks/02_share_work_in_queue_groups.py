"""Checks of notebook 02. Each works below a subject of its own, so that no service of the lesson answers instead."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.patterns import cancel_and_join, eventually

CODE, REASON = "Nats-Service-Error-Code", "Nats-Service-Error"
SHELF = {"ok-computer": 12, "homogenic": 3, "urban-hymns": 0}
UNKNOWN = "kind-of-blue"


@exercise(
    "2.1",
    title="refuse politely",
    answer="async function",
    expects=f"a reply to every question: the copies as text, or the headers {CODE} and {REASON}",
    hint="msg.respond(data) takes no headers. Everything that it does is to publish to msg.reply; nc.publish can do "
    "that too, and has a parameter for headers. Mind the title with 0 copies: it is on the shelf.",
)
async def refuses_politely(trial: Trial, answer: Any) -> str:
    """Request each title of a shelf, and one that is not on it."""
    nc = await trial.client()
    for title, copies in SHELF.items():
        reply = await _ask(trial, nc, answer, title)
        if reply.headers and CODE in reply.headers:
            raise NotYet(f"{title} was refused", f"{copies} copies: it is on the shelf")
        if reply.data != str(copies).encode():
            raise NotYet(f"the reply {reply.data!r} for {title}", f"{str(copies).encode()!r}")
    refusal = await _ask(trial, nc, answer, UNKNOWN)
    headers: Mapping[str, str] = refusal.headers or {}
    if CODE not in headers:
        raise NotYet(f"a reply {refusal.data!r} without the header {CODE} for {UNKNOWN}", f"{CODE}: 404")
    if headers[CODE] != "404":
        raise NotYet(f"{CODE}: {headers[CODE]} for {UNKNOWN}", f"{CODE}: 404")
    if not headers.get(REASON, "").strip():
        raise NotYet(f"a refusal without the header {REASON}", "one that a person can read")
    if refusal.data:
        raise NotYet(f"a refusal with the payload {refusal.data!r}", "an empty payload: the headers say it all")
    return (
        "an asker who knows the convention needs no documentation of yours; "
        "msg.respond() would have sent the question's own headers back"
    )


async def _ask(trial: Trial, nc: Client, answer: Any, title: str) -> Msg:
    """Return the one reply to a request; what the answer raises is raised here, not lost in a callback."""
    returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_question(msg: Msg) -> None:
        try:
            await answer(nc, msg, dict(SHELF))
        except Exception as err:  # noqa: BLE001 - raised again where the verdict is made
            returned.set_exception(err)
        else:
            returned.set_result(None)

    subject, inbox = await trial.serve(nc, on_question), nc.new_inbox()
    replies = trial.own(await nc.subscribe(inbox))
    await nc.publish(subject, title.encode(), reply=inbox)
    await returned
    await trial.soon(lambda: replies.pending_msgs, f"no reply to a question about {title}", "one")
    if len(arrived := await trial.arrived(nc, replies)) > 1:
        raise NotYet(f"{len(arrived)} replies to a question about {title}", "one")
    return arrived[0]


# 2.2

IN_BUFFER, ON_THE_WAY = 20, 10
DUE = IN_BUFFER + ON_THE_WAY


@exercise(
    "2.2",
    title="take a worker away",
    answer="async function",
    expects=f"all {DUE} orders packed when leave() returns, and the worker out of the group",
    hint="Two things have to end, and in this order: the subscription, then the loop. drain() is done when the loop "
    "has taken the last order, which is not when it has packed it. A task can be awaited.",
)
async def takes_a_worker_away(trial: Trial, answer: Any) -> str:
    """Let a worker leave with orders in its buffer and more on their way to it."""
    shop, nc = await trial.client(), await trial.client(name="worker-2")
    subject, packed = trial.subject(), list[bytes]()
    sub = trial.own(await nc.subscribe(subject, queue="workers"))

    async def pack_orders() -> None:
        async for msg in sub.messages:
            await asyncio.sleep(0.15 if len(packed) == DUE - 1 else 0.004)  # work
            packed.append(msg.data)

    working = asyncio.create_task(pack_orders())
    try:
        await _publish(nc, subject, range(IN_BUFFER))
        await eventually(lambda: sub.delivered == IN_BUFFER, within=LONG_S)
        # Not flushed: the server gets these before anything that leave() tells it, and deals them to the worker.
        await _publish(nc, subject, range(IN_BUFFER, DUE))
        late = f"leave() was still waiting {LONG_S:g} s later"
        await trial.returns(answer(sub, working), late, "an end of the subscription first, then one of the loop")
        in_time, ended = len(packed), working.done() and not working.cancelled()
        seen = "the server still deals orders to worker-2 when leave() has returned"
        await trial.soon(partial(_nobody_listens, shop, subject), seen, "it out of the group")
    finally:
        await cancel_and_join(working)
    if in_time == DUE - 1:
        raise NotYet("worker-2 was still packing the last order when leave() returned", f"all {DUE} packed by then")
    if in_time == IN_BUFFER and ended:
        raise NotYet(f"the {ON_THE_WAY} orders on their way to worker-2 were packed by nobody", f"all {DUE} packed")
    if in_time < DUE:
        raise NotYet("worker-2 left with orders in its buffer", f"all {DUE} packed when leave() returns")
    if not ended:
        raise NotYet("the loop of worker-2 was running or cancelled when leave() returned", "its own end")
    return "drain() sees what the loop takes, not what it does with it; a callback's work it would have waited for, too"


async def _publish(nc: Client, subject: str, numbers: range) -> None:
    for number in numbers:
        await nc.publish(subject, b"%d" % number)


async def _nobody_listens(client: Client, subject: str) -> bool:
    try:
        await client.request(subject, b"late", timeout=0.2)
    except nats.errors.NoRespondersError:
        return True
    except nats.errors.TimeoutError:
        return False
    return False


# 2.3

WITHIN_S = 0.4
Offers = list[tuple[float, str, int]]
"""When each offer comes, in seconds after the question; from whom; and for how many cents."""

EVERYBODY: Offers = [(0, "north", 480), (0, "east", 450), (0, "south", 470), (0.05, "west", 420)]
# South comes soon enough to keep a wait of 0.4 s for each offer going, until west is there, too late.
SOME_LATE: Offers = [(0, "north", 480), (0, "east", 450), (0.25, "south", 470), (0.48, "west", 300)]
ALL_LATE: Offers = [(0.6, "west", 300)]


@exercise(
    "2.3",
    title="take the cheapest offer",
    answer="async function",
    expects="the cheapest offer, or None, by the deadline at the latest",
    hint="ask_all has the skeleton. Mind three things: the deadline is one for all offers together, not one for each; "
    "where nobody listens the server answers, with a message that is no offer; and an inbox that is no longer needed "
    "is unsubscribed.",
)
async def takes_the_cheapest(trial: Trial, answer: Any) -> str:
    """Let four carriers answer, then three in time and one late, then nobody."""
    auction = partial(_hold_auction, trial, await trial.client(), answer)
    late = "it went on waiting when all 4 carriers had answered", "an end with the fourth offer"
    offer = await auction(EVERYBODY, late, within=60.0, patience=LONG_S)
    _expect(offer, "west", 420, "when all 4 answered, the cheapest last")

    late = f"it was still waiting {LONG_S:g} s after its deadline", "what has come by the deadline"
    offer = await auction(SOME_LATE, late)
    if isinstance(offer, Mapping) and offer.get("carrier") == "west":
        raise NotYet("it took an offer that came after the deadline", "one deadline for all, from the beginning")
    _expect(offer, "east", 450, "when one of 4 was late")

    for offers, where in ([], "where no carrier listens"), (ALL_LATE, "where every carrier was late"):
        offer = await auction(offers, (f"it waited for ever {where}", "None"))
        if offer is not None:
            raise NotYet(f"{offer!r} {where}", "None")
    return (
        "the count ends the wait early, the deadline ends it always, "
        "and a 503 is the server's word that it need not begin"
    )


def _expect(offer: object, carrier: str, cents: int, when: str) -> None:
    expected = {"carrier": carrier, "cents": cents}
    if offer != expected:
        raise NotYet(f"{offer!r} {when}", f"{expected!r}")


async def _hold_auction(
    trial: Trial,
    nc: Client,
    answer: Any,
    offers: Offers,
    late: tuple[str, str],
    *,
    within: float = WITHIN_S,
    patience: float = WITHIN_S + LONG_S,
) -> Any:
    """Return what the answer finds the cheapest of these offers; it is late if it is not back when patience ends."""
    tasks = set[asyncio.Task[None]]()

    async def reply(msg: Msg, after: float, carrier: str, cents: int) -> None:
        await asyncio.sleep(after)  # work
        await nc.publish(msg.reply, json.dumps({"carrier": carrier, "cents": cents}).encode())

    async def on_question(msg: Msg) -> None:
        # One subscriber replies for all carriers, so that their replies come in this order.
        tasks.update(asyncio.create_task(reply(msg, *offer)) for offer in offers)

    subject = await trial.serve(nc, on_question) if offers else trial.subject()
    try:
        return await trial.returns(answer(nc, subject, b"order 000002", 4, within), *late, within=patience)
    finally:
        await cancel_and_join(*tasks)
