"""Checks of notebook 02, ``share_work_in_queue_groups``.

Each works below a subject of its own, so that no service of the lesson answers in the reader's place.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.notebook.checks import cheapest_offer  # noqa: F401  # registers 2.3
from mesh_lab.notebook.checks.common import LONG_S, SOON_S, connect, nobody_on, own_subject, returns_within
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import eventually
from mesh_lab.servers.mesh import Mesh

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
async def refuses_politely(mesh: Mesh, answer: Any) -> Verdict:
    """Ask for each title of a shelf, and for one that is not on it."""
    async with await connect(mesh, "check 2.1") as nc:
        for title, copies in SHELF.items():
            replies = await _ask(nc, answer, title)
            if wrong := _not_one(replies, title):
                return wrong
            if replies[0].headers and CODE in replies[0].headers:
                return not_yet(f"{title} was refused", f"{copies} copies: it is on the shelf")
            if replies[0].data != str(copies).encode():
                return not_yet(f"the reply {replies[0].data!r} for {title}", f"{str(copies).encode()!r}")
        replies = await _ask(nc, answer, UNKNOWN)
        if wrong := _not_one(replies, UNKNOWN):
            return wrong
        return _refusal(replies[0])


def _not_one(replies: list[Msg], title: str) -> Verdict | None:
    if len(replies) == 1:
        return None
    return not_yet(f"{len(replies) or 'no'} {'replies' if replies else 'reply'} to a question about {title}", "one")


def _refusal(reply: Msg) -> Verdict:
    headers: Mapping[str, str] = reply.headers or {}
    if CODE not in headers:
        return not_yet(f"a reply {reply.data!r} without the header {CODE} for {UNKNOWN}", f"{CODE}: 404")
    if headers[CODE] != "404":
        return not_yet(f"{CODE}: {headers[CODE]} for {UNKNOWN}", f"{CODE}: 404")
    if not headers.get(REASON, "").strip():
        return not_yet(f"a refusal without the header {REASON}", "one that a person can read")
    if reply.data:
        return not_yet(f"a refusal with the payload {reply.data!r}", "an empty payload: the headers say it all")
    return correct(
        "an asker who knows the convention needs no documentation of yours; "
        "msg.respond() would have sent the question's own headers back"
    )


async def _ask(nc: Client, answer: Any, title: str) -> list[Msg]:
    """Return every reply to one question; what the answer raises is raised here, not lost in a callback."""
    returned: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_question(msg: Msg) -> None:
        try:
            await answer(nc, msg, dict(SHELF))
        except Exception as err:  # noqa: BLE001 - raised again where the verdict is made
            returned.set_exception(err)
        else:
            returned.set_result(None)

    subject, inbox = own_subject(nc), nc.new_inbox()
    questions = await nc.subscribe(subject, cb=on_question)
    replies = await nc.subscribe(inbox)
    try:
        await nc.publish(subject, title.encode(), reply=inbox)
        await returned
        try:
            first = await replies.next_msg(timeout=SOON_S)
        except nats.errors.TimeoutError:
            return []
        await nc.flush()
        return [first, *[await replies.next_msg() for _ in range(replies.pending_msgs)]]
    finally:
        await questions.unsubscribe()
        await replies.unsubscribe()


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
async def takes_a_worker_away(mesh: Mesh, answer: Any) -> Verdict:
    """Let a worker leave with orders in its buffer and more on their way to it."""
    async with await connect(mesh, "check 2.2") as shop, await connect(mesh, "worker-2") as nc:
        subject, packed = own_subject(nc), list[bytes]()
        sub = await nc.subscribe(subject, queue="workers")

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
            hangs = not await returns_within(LONG_S, answer(sub, working))
            in_time, ended = len(packed), working.done() and not working.cancelled()
            gone = hangs or await nobody_on(shop, subject)
        finally:
            working.cancel()
            await asyncio.wait({working})
    if hangs:
        return not_yet(
            f"leave() was still waiting {LONG_S:g} s later", "an end of the subscription first, then one of the loop"
        )
    if not gone:
        return not_yet("the server still deals orders to worker-2 when leave() has returned", "it out of the group")
    return _left_with(in_time, ended)


def _left_with(packed: int, ended: bool) -> Verdict:
    if packed == DUE - 1:
        return not_yet("worker-2 was still packing the last order when leave() returned", f"all {DUE} packed by then")
    if packed == IN_BUFFER and ended:
        return not_yet(f"the {ON_THE_WAY} orders on their way to worker-2 were packed by nobody", f"all {DUE} packed")
    if packed < DUE:
        return not_yet("worker-2 left with orders in its buffer", f"all {DUE} packed when leave() returns")
    if not ended:
        return not_yet("the loop of worker-2 was running or cancelled when leave() returned", "its own end")
    return correct(
        "drain() sees what the loop takes, not what it does with it; a callback's work it would have waited for, too"
    )


async def _publish(nc: Client, subject: str, numbers: range) -> None:
    for number in numbers:
        await nc.publish(subject, b"%d" % number)
