"""The checks of notebook 10: one door between two accounts, a student's limits, a seat that ends by itself."""

import asyncio
import time
from collections.abc import Awaitable
from functools import partial
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.checks.tenants import LIMITS, REACH, announce, close, join, reaches
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import eventually, flush_through
from mesh_lab.security import Account, Operator, User
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

SEAT_S = 3.0
LATE_S = 1.5


# 10.1


@exercise(
    "10.1",
    title="a counter for refunds",
    answer="function",
    expects="one service of the bank's that the shop can ask, and nothing else",
    hint='Two dictionaries as in the lesson, both of "type": "service". The export names "cards.refund", the '
    'import the bank as its "account" and "refunds.ask" as its "local_subject".',
    within=30.0,
)
async def opens_one_counter(mesh: Mesh, answer: Any) -> Verdict:
    """Let the shop ask, and listen for anything else that passes between bank, shop and a stranger."""
    operator = Operator("check 10.1")
    bank, shop, stranger = (operator.account(name) for name in ("bank", "shop", "stranger"))
    answer(bank, shop)
    stranger.imports = [{"name": "charge", "type": "service", "account": bank.public, "subject": "cards.charge"}]
    async with await start_mesh(backend="local", operator=operator) as own:
        if refused := await announce(own, bank, shop, stranger):
            return not_yet(f"the server refused the account {refused!r}", "two accounts that it understands")
        desk, till = await join(own, bank.user("desk")), await join(own, shop.user("till"))
        other = await join(own, stranger.user("till"))
        try:
            return (
                await _counter_is_shut(desk, till)
                or await _more_is_open(desk, till)
                or await _stranger_is_served(desk, other)
                or correct("who exports decides what may be asked, who imports under which name")
            )
        finally:
            await close(desk, till, other)


async def _counter_is_shut(desk: Client, till: Client) -> Verdict | None:
    async def refund(msg: Msg) -> None:
        await msg.respond(b"refunded " + msg.data)

    await desk.subscribe("cards.refund", cb=refund)
    await flush_through(desk)
    try:
        answer = await till.request("refunds.ask", b"9.99", timeout=2)
    except (nats.errors.NoRespondersError, TimeoutError):
        return not_yet("the shop asked refunds.ask, and nobody answered", "an answer of the bank's cards.refund")
    return None if answer.data == b"refunded 9.99" else not_yet("another answer came", "that of cards.refund")


async def _more_is_open(desk: Client, till: Client) -> Verdict | None:
    """Every subject here is tried in both directions, since a door can be too wide on either side."""
    at_bank, at_shop = await desk.subscribe(">"), await till.subscribe(">")
    await asyncio.gather(flush_through(desk), flush_through(till))
    for subject in ("cards.charge", "cards.refund", "notices.closed", "refunds.ask.all"):
        await desk.publish(subject, b"from the bank")
    for subject in ("cards.charge", "cards.refund", "refunds.other", "refunds.ask.all", "orders.eu.000001.placed"):
        await till.publish(subject, b"from the shop")
    await asyncio.gather(flush_through(desk), flush_through(till))
    for ear, who, other in ((at_bank, "bank", b"from the shop"), (at_shop, "shop", b"from the bank")):
        while ear.pending_msgs:
            msg = await ear.next_msg(timeout=1)
            if msg.data == other:
                return not_yet(f"the {who} also heard {msg.subject}", "refunds.ask, and nothing else")
    return None


async def _stranger_is_served(desk: Client, other: Client) -> Verdict | None:
    async def charge(msg: Msg) -> None:
        await msg.respond(b"charged")

    await desk.subscribe("cards.charge", cb=charge)
    await flush_through(desk)
    try:
        await other.request("cards.charge", b"", timeout=1)
    except (nats.errors.NoRespondersError, TimeoutError):
        return None
    return not_yet("a stranger who imported cards.charge was answered", "an export of cards.refund alone")


# 10.2


@exercise(
    "10.2",
    title="an account for a student",
    answer="function",
    expects="an account with five limits",
    hint="operator.account(name, conn=…): the others are called subs, payload, streams and disk_storage.",
    within=40.0,
)
async def limits_a_student(mesh: Mesh, answer: Any) -> Verdict:
    """Go up to each limit, and one further."""
    operator = Operator("check 10.2")
    account = answer(operator, "student")
    if not isinstance(account, Account):
        return not_yet(f"{type(account).__name__} was returned", "an account of the operator")
    async with await start_mesh(backend="local", operator=operator) as own:
        if await announce(own, account):
            return not_yet("the server refused the account", "one that the operator signed")
        for what, reach in REACH.items():
            for amount, allowed in ((LIMITS[what], True), (LIMITS[what] + 1, False)):
                if await reaches(own, account, reach, amount) != allowed:
                    seen = f"{amount:,} {what} are {'refused' if allowed else 'allowed'}"
                    return not_yet(seen, f"{LIMITS[what]:,}, and not one more")
    return correct("what a tenant may use is written in a token, and every server holds to it")


# 10.3


@exercise(
    "10.3",
    title="a seat in a workshop",
    answer="function",
    expects="a user who may do a little, for a while",
    hint="account.user(name, publish=[…], subscribe=[…], lives_for=…). Answers come to subjects below _INBOX_<name>.",
    within=30.0,
)
async def gives_a_seat(mesh: Mesh, answer: Any) -> Verdict:
    """Let the user do what a participant does, and what none should, and wait until the seat ends."""
    operator = Operator("check 10.3")
    account = operator.account("workshop")
    async with await start_mesh(backend="local", operator=operator) as own:
        await announce(own, account)
        user = answer(account, "ada", SEAT_S)
        if not isinstance(user, User):
            return not_yet(f"{type(user).__name__} was returned", "a user of the account")
        began, complaints = time.monotonic(), list[str]()
        client = await join(own, user, complaints, inbox_prefix="_INBOX_ada")
        teacher = await join(own, account.user("teacher"))
        try:
            return (
                await _cannot_take_part(client, teacher, complaints)
                or await _can_disturb(client, complaints)
                or await _stays(own, client, user, began)
                or correct("nobody has to take the seat away: it ends by itself")
            )
        finally:
            await close(client, teacher)


async def _cannot_take_part(client: Client, teacher: Client, complaints: list[str]) -> Verdict | None:
    async def help_out(msg: Msg) -> None:
        await msg.respond(b"try again")

    await teacher.subscribe("work.ada.help", cb=help_out)
    await flush_through(teacher)
    await client.subscribe("work.>")
    await client.publish("work.ada.done", b"")
    await flush_through(client)
    if complaints:
        return not_yet(f"a participant was refused: {complaints[0]}", "work.ada.> to publish, work.> to hear")
    try:
        await client.request("work.ada.help", b"", timeout=1)
    except (nats.errors.Error, TimeoutError):
        return not_yet("a participant asked, and could not hear the answer", "that inboxes can be heard")
    return None


async def _can_disturb(client: Client, complaints: list[str]) -> Verdict | None:
    to_publish = {
        "work.bob.done": "publish as somebody else",
        "work.done": "publish beside its own place",
        "$JS.API.STREAM.DELETE.WORK": "delete a stream",
    }
    for subject, what in to_publish.items():
        if await _may(client, complaints, client.publish(subject, b"")):
            return not_yet(f"a participant may {what}: {subject}", "that it is refused")
    for subject in (">", "exams.>", "_INBOX.>", "_INBOX_bob.>"):
        if await _may(client, complaints, client.subscribe(subject)):
            return not_yet(f"a participant may hear {subject}", "that it is refused")
    return None


async def _may(client: Client, complaints: list[str], attempt: Awaitable[object]) -> bool:
    complaints.clear()
    await attempt
    await flush_through(client)
    return not complaints


async def _stays(own: Mesh, client: Client, user: User, began: float) -> Verdict | None:
    # The server rounds to seconds.
    try:
        await eventually(lambda: client.is_closed, within=SEAT_S + LATE_S - (time.monotonic() - began))
    except NotReadyError:
        return not_yet("the participant was not disconnected in time", f"a seat for {SEAT_S:.0f} s")
    try:
        await eventually(partial(_is_refused, own, user), within=LATE_S)
    except NotReadyError:
        return not_yet("the participant came in again", "that the token has ended")
    return None


async def _is_refused(own: Mesh, user: User) -> bool:
    try:
        await close(await join(own, user))
    except nats.errors.Error:
        return True
    return False
