"""Checks of notebook 02. Each works below a subject of its own, so that no service of the lesson answers instead."""

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from itertools import starmap
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.patterns import cancel_and_join, eventually, flush_through

CODE, REASON = "Nats-Service-Error-Code", "Nats-Service-Error"
# A shelf, titles that are not on it, and the headers of the questions; what one shelf holds, the other may lack.
SHELVES: tuple[tuple[dict[str, int], tuple[str, ...], dict[str, str] | None], ...] = (
    ({"ok-computer": 12, "homogenic": 3, "urban-hymns": 0}, ("kind-of-blue",), None),
    (
        {"björk: vespertine": 10, "9": 9, "ok-computer": 0, "kind-of-blue": 1_000},
        ("homogenic", "OK-Computer", "ok", "björk", "10"),
        {"Trace": "7"},
    ),
)


@exercise(
    "2.1",
    title="refuse politely",
    answer="async function",
    expects=f"a reply to every question: the copies as text, or the headers {CODE} and {REASON}",
    hint="msg.respond(data) takes no headers. Everything that it does is to publish to msg.reply; nc.publish can do "
    "that too, and has a parameter for headers. Mind the title with 0 copies: it is on the shelf.",
)
async def refuses_politely(trial: Trial, answer: Any) -> str:
    """Ask for each title of two shelves, and for some that they lack: one by one, twice each, then all at once."""
    shop, nc = await trial.client(), await trial.client(name="warehouse")
    for contents, unknown, headers in SHELVES:
        shelf = dict(contents)
        ask = partial(_expect_reply, trial, shop, nc, answer, shelf, headers)
        for title in [*contents, *unknown] * 2:
            await ask(title, contents.get(title))
        async with asyncio.TaskGroup() as at_once:
            for title in [*contents, *unknown]:
                at_once.create_task(ask(title, contents.get(title), " among others"))
        if shelf != contents:
            raise NotYet("the answer changed the shelf", "questions only: nothing is sold")
    return (
        "an asker who knows the convention needs no documentation of yours; "
        "msg.respond() would have sent the question's own headers back"
    )


async def _expect_reply(
    trial: Trial,
    shop: Client,
    nc: Client,
    answer: Any,
    shelf: dict[str, int],
    question: dict[str, str] | None,
    title: str,
    copies: int | None,
    among: str = "",
) -> None:
    """Ask about a title, and raise NotYet unless the reply says its copies, or refuses where there is no such title."""
    reply = await _ask(trial, shop, nc, answer, shelf, title, question, among)
    headers: Mapping[str, str] = reply.headers or {}
    about = f"{title}{among}"
    if copies is not None:
        if {CODE, REASON} & set(headers):
            raise NotYet(f"{about} was refused", f"{copies} copies: it is on the shelf")
        if reply.data != str(copies).encode():
            raise NotYet(f"the reply {reply.data!r} for {about}", f"{str(copies).encode()!r}")
        return
    if CODE not in headers:
        raise NotYet(f"a reply {reply.data!r} without the header {CODE} for {about}", f"{CODE}: 404")
    if headers[CODE] != "404":
        raise NotYet(f"{CODE}: {headers[CODE]} for {about}", f"{CODE}: 404")
    if not headers.get(REASON, "").strip():
        raise NotYet(f"a refusal without the header {REASON}", "one that a person can read")
    if reply.data:
        raise NotYet(f"a refusal with the payload {reply.data!r}", "an empty payload: the headers say it all")


async def _ask(
    trial: Trial,
    shop: Client,
    nc: Client,
    answer: Any,
    shelf: dict[str, int],
    title: str,
    headers: dict[str, str] | None,
    among: str,
) -> Msg:
    """Return the one reply to a request; what the answer raises is raised here, not lost in a callback."""
    returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_question(msg: Msg) -> None:
        try:
            await answer(nc, msg, shelf)
        except Exception as err:  # noqa: BLE001 - raised again where the verdict is made
            if not returned.done():
                returned.set_exception(err)
        else:
            if not returned.done():
                returned.set_result(None)

    subject, inbox = await trial.serve(nc, on_question), shop.new_inbox()
    replies = trial.own(await shop.subscribe(inbox))
    await shop.publish(subject, title.encode(), reply=inbox, headers=headers)
    about = f"a question about {title}{among}"
    trial.case = f"asked about {title}"
    await trial.returns(returned, f"answer() was still at work {LONG_S:g} s after {about}", "a reply at once")
    await flush_through(nc)
    await trial.soon(lambda: replies.pending_msgs, f"no reply to {about}", "one")
    if len(arrived := await trial.arrived(shop, replies)) > 1:
        raise NotYet(f"{len(arrived)} replies to {about}", "one")
    return arrived[0]


# 2.2

IN_BUFFER, ON_THE_WAY = 20, 10
DUE = IN_BUFFER + ON_THE_WAY


class _Run(NamedTuple):
    """How many orders are in the worker's buffer when it is to leave, how many on their way, and how long two take."""

    in_buffer: int
    on_the_way: int
    last_s: float
    first_s: float = 0.004

    @property
    def due(self) -> int:
        return self.in_buffer + self.on_the_way


# No guess at how long the work takes fits all of them. The first order keeps the worker busy until all are there.
RUNS = (
    _Run(IN_BUFFER, ON_THE_WAY, 0.15),
    _Run(0, 0, 0.0),
    _Run(2, 1, LONG_S + 0.2, first_s=0.1),
    _Run(2, 3, 0.004, first_s=0.4),
)


@exercise(
    "2.2",
    title="take a worker away",
    answer="async function",
    expects=f"all {DUE} orders packed when leave() returns, and the worker out of the group",
    hint="Two things have to end, and in this order: the subscription, then the loop. drain() is done when the loop "
    "has taken the last order, which is not when it has packed it. A task can be awaited.",
)
async def takes_a_worker_away(trial: Trial, answer: Any) -> str:
    """Let workers leave: with orders in the buffer and on their way, with none, with one that takes long."""
    for run in RUNS:
        await _expect_good_leave(trial, answer, run)
    return "drain() sees what the loop takes, not what it does with it; a callback's work it would have waited for, too"


async def _expect_good_leave(trial: Trial, answer: Any, run: _Run) -> None:
    shop, nc = await trial.client(), await trial.client(name="worker-2")
    subject, packed = trial.subject(), list[bytes]()
    sub = trial.own(await nc.subscribe(subject, queue="workers"))

    async def pack_orders() -> None:
        async for msg in sub.messages:
            # work
            await asyncio.sleep(run.last_s if len(packed) == run.due - 1 else 0.004 if packed else run.first_s)
            packed.append(msg.data)

    working = asyncio.create_task(pack_orders())
    try:
        await _publish(nc, subject, range(run.in_buffer))
        await flush_through(nc)
        await eventually(lambda: sub.delivered == run.in_buffer, within=LONG_S)
        # Not flushed: the server gets these before anything that leave() tells it, and deals them to the worker.
        await _publish(nc, subject, range(run.in_buffer, run.due))
        work_s = run.last_s + run.first_s
        late = (
            f"leave() was still waiting {LONG_S:g} s later"
            if run.due
            else "leave() was still waiting for an idle worker"
        )
        end = "an end of the subscription first, then one of the loop"
        await trial.returns(answer(sub, working), late, end, within=LONG_S + (work_s if work_s > LONG_S else 0.0))
        in_time, ended = len(packed), working.done() and not working.cancelled()
        seen = "the server still deals orders to worker-2 when leave() has returned"
        await trial.soon(partial(_nobody_listens, shop, subject), seen, "it out of the group")
    finally:
        await cancel_and_join(working)
    if run.due and in_time == run.due - 1:
        seen = "worker-2 was still packing the last order when leave() returned"
        raise NotYet(seen, f"all {run.due} packed by then")
    if run.on_the_way and in_time == run.in_buffer and ended:
        seen = f"the {run.on_the_way} orders on their way to worker-2 were packed by nobody"
        raise NotYet(seen, f"all {run.due} packed")
    if in_time < run.due:
        raise NotYet("worker-2 left with orders in its buffer", f"all {run.due} packed when leave() returns")
    if not ended:
        raise NotYet("the loop of worker-2 was running or cancelled when leave() returned", "its own end")


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


class _Offer(NamedTuple):
    """When an offer comes, in seconds after the question; from whom; for how many cents; and what else it says."""

    after: float
    carrier: str
    cents: int
    more: Mapping[str, Any] = {}

    def wire(self) -> dict[str, Any]:
        return {"carrier": self.carrier, "cents": self.cents, **self.more}


class _Auction(NamedTuple):
    """What a question finds: in words, the offers, how many were expected within how long, and the cheapest in time."""

    when: str
    offers: tuple[_Offer, ...]
    expected: int
    within: float
    cheapest: str | None


ALL = tuple(starmap(_Offer, [(0, "north", 480), (0, "east", 450), (0, "south", 470), (0.05, "west", 420)]))
# South comes soon enough to keep a wait of 0.4 s for each offer going, until west is there, too late.
SOME_LATE = tuple(starmap(_Offer, [(0, "north", 480), (0, "east", 450), (0.25, "south", 470), (0.48, "west", 300)]))
# Compared as texts, 1000 is less than 950, and 10000 less than both.
DIGITS = (
    _Offer(0, "éclair", 10_000),
    _Offer(0, "nord", 950, {"days": 2, "via": ["eu", "us"]}),
    _Offer(0.02, "süd", 1_000),
)
FREE = (_Offer(0, "north", 1), _Offer(0, "post", 0))
ENDLESS_S = 60.0
AUCTIONS = (
    _Auction("when all 4 answered, the cheapest last", ALL, 4, ENDLESS_S, "west"),
    _Auction("when 3 answered with 10000, 950 and 1000 cents", DIGITS, 3, ENDLESS_S, "nord"),
    _Auction("when one of 2 took nothing", FREE, 2, ENDLESS_S, "post"),
    _Auction("when the only one answered", ALL[:1], 1, ENDLESS_S, "north"),
    _Auction("when one of 4 was late", SOME_LATE, 4, WITHIN_S, "east"),
    _Auction("when one of 2 came 0.6 s before a deadline of 1.2 s", (ALL[0], _Offer(0.6, "west", 300)), 9, 1.2, "west"),
    _Auction("where no carrier listens", (), 4, WITHIN_S, None),
    _Auction("where every carrier was late", (_Offer(0.6, "west", 300),), 4, WITHIN_S, None),
)


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
    """Let all carriers answer, some in time, then none; one question after another, and then several at once."""
    auction = partial(_hold_auction, trial, await trial.client(), await trial.client(name="carriers"), answer)
    for one in AUCTIONS:
        await auction(one)
    async with asyncio.TaskGroup() as at_once:
        for one in AUCTIONS[:5]:
            at_once.create_task(auction(one, ", with other questions at the same time"))
    return (
        "the count ends the wait early, the deadline ends it always, "
        "and a 503 is the server's word that it need not begin"
    )


async def _hold_auction(
    trial: Trial, nc: Client, carriers: Client, answer: Any, auction: _Auction, besides: str = ""
) -> None:
    """Raise NotYet unless the answer finds the cheapest offer in time, by one question that every carrier gets."""
    tasks, asked = set[asyncio.Task[None]](), list[bytes]()
    question = f"order {auction.expected:06d}{besides}".encode()
    when = auction.when + besides

    async def reply(msg: Msg, offer: _Offer) -> None:
        await asyncio.sleep(offer.after)  # work
        await carriers.publish(msg.reply, json.dumps(offer.wire()).encode())

    async def on_question(msg: Msg) -> None:
        asked.append(msg.data)
        # One subscriber replies for all carriers, so that their replies come in this order.
        tasks.update(asyncio.create_task(reply(msg, offer)) for offer in auction.offers)

    subject = await trial.serve(carriers, on_question) if auction.offers else trial.subject()
    count = f"all {auction.expected} carriers" if auction.expected > 1 else "the only carrier"
    late = f"it went on waiting when {count} had answered{besides}", f"an end with offer {auction.expected}"
    patience = LONG_S
    if auction.within < ENDLESS_S:
        late = f"it was still waiting {LONG_S:g} s after its deadline, {when}", "what has come by the deadline"
        patience += auction.within
    try:
        asking = answer(nc, subject, question, auction.expected, auction.within)
        offer = await trial.returns(asking, *late, within=patience)
    finally:
        await cancel_and_join(*tasks)
    if asked != ([question] if auction.offers else []):
        seen = f"the carriers were asked {[one.decode(errors='replace') for one in asked]} {when}"
        raise NotYet(seen, f"{[question.decode()]}, once")
    in_time = [one for one in auction.offers if one.after < auction.within]
    late_ones = [one.wire() for one in auction.offers if one not in in_time]
    if offer in late_ones:
        raise NotYet(
            f"it took an offer that came after the deadline, {when}", "one deadline for all, from the beginning"
        )
    wanted = next((one.wire() for one in in_time if one.carrier == auction.cheapest), None)
    if offer != wanted:
        raise NotYet(f"{offer!r} {when}", f"{wanted!r}")
