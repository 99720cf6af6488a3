"""Checks of notebook 10: one service between two accounts, a student's limits, a seat that ends by itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js.errors import APIError

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import eventually, flush_through, retry
from mesh_lab.security import Account, Operator, User

SEAT_S = 3.0
LATE_S = 1.5


async def _announce(own: Mesh, *accounts: Account) -> str:
    """Give the server accounts, and return the name of the first that it refuses, or nothing."""
    async with await own.connect(system=True) as admin:
        for account in accounts:
            reply = await admin.request("$SYS.REQ.CLAIMS.UPDATE", account.token().encode(), timeout=5)
            if b'"error"' in reply.data:
                return account.name
    return ""


async def _join(trial: Trial, own: Mesh, user: User, **options: Any) -> Client:
    return await trial.enter(own, user_credentials=RawCredentials(user.credentials), **options)


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
async def opens_one_counter(trial: Trial, answer: Any) -> str:
    """Let the shop ask, and listen for anything else that passes between bank, shop and a stranger."""
    operator = Operator("check 10.1")
    bank, shop, stranger = (operator.account(name) for name in ("bank", "shop", "stranger"))
    answer(bank, shop)
    stranger.imports = [{"name": "charge", "type": "service", "account": bank.public, "subject": "cards.charge"}]
    own = await trial.own_mesh(operator=operator)
    if refused := await _announce(own, bank, shop, stranger):
        raise NotYet(f"the server refused the account {refused!r}", "two accounts that it understands")
    desk, till = await _join(trial, own, bank.user("desk")), await _join(trial, own, shop.user("till"))
    await _expect_a_refund(trial, desk, till)
    await _expect_nothing_else(trial, desk, till)
    await _expect_no_charge(trial, desk, await _join(trial, own, stranger.user("till")))
    return "who exports decides what may be asked, who imports under which name"


async def _expect_a_refund(trial: Trial, desk: Client, till: Client) -> None:
    async def refund(msg: Msg) -> None:
        await msg.respond(b"refunded " + msg.data)

    await trial.serve(desk, refund, "cards.refund")
    try:
        reply = await till.request("refunds.ask", b"9.99", timeout=2)
    except (nats.errors.NoRespondersError, TimeoutError) as err:
        raise NotYet("the shop asked refunds.ask, and nobody answered", "an answer of the bank's cards.refund") from err
    if reply.data != b"refunded 9.99":
        raise NotYet("another answer came", "that of cards.refund")


async def _expect_nothing_else(trial: Trial, desk: Client, till: Client) -> None:
    """Try every subject in both directions, since an export or an import can be too wide."""
    at_bank, at_shop = trial.own(await desk.subscribe(">")), trial.own(await till.subscribe(">"))
    await asyncio.gather(flush_through(desk), flush_through(till))
    for subject in ("cards.charge", "cards.refund", "notices.closed", "refunds.ask.all"):
        await desk.publish(subject, b"from the bank")
    for subject in ("cards.charge", "cards.refund", "refunds.other", "refunds.ask.all", "orders.eu.000001.placed"):
        await till.publish(subject, b"from the shop")
    await asyncio.gather(flush_through(desk), flush_through(till))
    for name, arrived, foreign in (
        ("bank", await trial.arrived(desk, at_bank), b"from the shop"),
        ("shop", await trial.arrived(till, at_shop), b"from the bank"),
    ):
        if subjects := [msg.subject for msg in arrived if msg.data == foreign]:
            raise NotYet(f"the {name} also heard {subjects[0]}", "refunds.ask, and nothing else")


async def _expect_no_charge(trial: Trial, desk: Client, stranger: Client) -> None:
    async def charge(msg: Msg) -> None:
        await msg.respond(b"charged")

    await trial.serve(desk, charge, "cards.charge")
    try:
        await stranger.request("cards.charge", b"", timeout=1)
    except (nats.errors.NoRespondersError, TimeoutError):
        return
    raise NotYet("a stranger who imported cards.charge was answered", "an export of cards.refund alone")


# 10.2

Join = Callable[[], Awaitable[Client]]
Use = Callable[[Join, int], Awaitable[None]]
"""Uses so much of something, by clients that join() returns; raises where the server refuses it."""


async def _use_connections(join: Join, amount: int) -> None:
    joined: list[Client] = []
    try:
        for _ in range(amount):
            joined.append(await join())
    finally:
        for client in joined:
            await client.close()


async def _use_subscriptions(join: Join, amount: int) -> None:
    async with await join() as client:
        for number in range(amount):
            await client.subscribe(f"orders.{number}")
        await _flush_thrice(client)


async def _use_payload(join: Join, amount: int) -> None:
    async with await join() as client:
        await client.publish("orders", bytes(amount))
        await _flush_thrice(client)


async def _flush_thrice(client: Client) -> None:
    """Return when the connection outlived what was sent; a server that refuses it hangs up, and nats-py closes then."""
    for _ in range(3):
        await client.flush(timeout=2)


async def _use_streams(join: Join, amount: int) -> None:
    await _store(join, {f"S{number}": 1_000 for number in range(amount)})


async def _use_disk(join: Join, amount: int) -> None:
    await _store(join, {"BIG": amount})


async def _store(join: Join, sizes: dict[str, int]) -> None:
    """Make streams of these sizes, and delete them again."""
    async with await join() as client:
        js, made = client.jetstream(timeout=3.0), list[str]()
        try:
            for name, size in sizes.items():
                await retry(partial(js.add_stream, name=name, subjects=[name], max_bytes=size))
                made.append(name)
        finally:
            for name in made:
                await js.delete_stream(name)


LIMITS: dict[str, tuple[int, Use]] = {
    "connections": (3, _use_connections),
    "subscriptions": (20, _use_subscriptions),
    "bytes in a message": (65_536, _use_payload),
    "streams": (2, _use_streams),
    "bytes on disk": (5_000_000, _use_disk),
}


@exercise(
    "10.2",
    title="an account for a student",
    answer="function",
    expects="an account with five limits",
    hint="operator.account(name, conn=…): the others are called subs, payload, streams and disk_storage.",
    within=40.0,
)
async def limits_a_student(trial: Trial, answer: Any) -> str:
    """Go up to each limit, and one further."""
    operator = Operator("check 10.2")
    account = answer(operator, "student")
    trial.kind(account, Account, "an account of the operator")
    own = await trial.own_mesh(operator=operator)
    if await _announce(own, account):
        raise NotYet("the server refused the account", "one that the operator signed")

    async def join() -> Client:
        return await _join(trial, own, account.user("student"))

    for resource, (limit, use) in LIMITS.items():
        for amount, allowed in ((limit, True), (limit + 1, False)):
            if await _is_allowed(use(join, amount)) != allowed:
                seen = f"{amount:,} {resource} are {'refused' if allowed else 'allowed'}"
                raise NotYet(seen, f"{limit:,}, and not one more")
            await eventually(partial(_has_no_connection, own, account), within=5.0)  # the next one counts from none
    return "what a tenant may use is written in a token, and every server holds to it"


async def _is_allowed(using: Awaitable[None]) -> bool:
    try:
        await using
    except (nats.errors.Error, APIError, OSError):
        return False
    return True


def _has_no_connection(own: Mesh, account: Account) -> bool:
    monitors = [server.monitor for server in own.servers.values() if server.monitor is not None]
    return not any(monitor.connz(f"acc={account.public}")["connections"] for monitor in monitors)


# 10.3


@exercise(
    "10.3",
    title="a seat in a workshop",
    answer="function",
    expects="a user who may do a little, for a while",
    hint="account.user(name, publish=[…], subscribe=[…], lives_for=…). Answers come to subjects below _INBOX_<name>.",
    within=30.0,
)
async def gives_a_seat(trial: Trial, answer: Any) -> str:
    """Let the user do what a participant does, and what none should, and wait until the seat ends."""
    operator = Operator("check 10.3")
    account = operator.account("workshop")
    own = await trial.own_mesh(operator=operator)
    await _announce(own, account)
    user = answer(account, "ada", SEAT_S)
    trial.kind(user, User, "a user of the account")
    began = time.monotonic()
    client = await _join(trial, own, user, inbox_prefix="_INBOX_ada")
    await _take_part(trial, client, await _join(trial, own, account.user("teacher")))
    await _try_to_disturb(trial, client)
    # The server rounds to seconds.
    left_s = SEAT_S + LATE_S - (time.monotonic() - began)
    late = "the participant was not disconnected in time", f"a seat for {SEAT_S:.0f} s"
    await trial.soon(lambda: client.is_closed, *late, within=left_s)
    back = "the participant came in again", "that the token has ended"
    await trial.soon(partial(_is_refused, trial, own, user), *back, within=LATE_S)
    return "nobody has to take the seat away: it ends by itself"


async def _take_part(trial: Trial, client: Client, teacher: Client) -> None:
    async def help_out(msg: Msg) -> None:
        await msg.respond(b"try again")

    await trial.serve(teacher, help_out, "work.ada.help")
    await client.subscribe("work.>")
    await client.publish("work.ada.done", b"")
    if complaints := await trial.complaints(client):
        raise NotYet(f"a participant was refused: {complaints[0]}", "work.ada.> to publish, work.> to hear")
    try:
        await client.request("work.ada.help", b"", timeout=1)
    except (nats.errors.Error, TimeoutError) as err:
        raise NotYet("a participant asked, and could not hear the answer", "that inboxes can be heard") from err


async def _try_to_disturb(trial: Trial, client: Client) -> None:
    await trial.complaints(client)  # those before are no refusals of what follows
    for subject, deed in {
        "work.bob.done": "publish as somebody else",
        "work.done": "publish beside its own place",
        "$JS.API.STREAM.DELETE.WORK": "delete a stream",
    }.items():
        await client.publish(subject, b"")
        if not await trial.complaints(client):
            raise NotYet(f"a participant may {deed}: {subject}", "that it is refused")
    for subject in (">", "exams.>", "_INBOX.>", "_INBOX_bob.>"):
        await client.subscribe(subject)
        if not await trial.complaints(client):
            raise NotYet(f"a participant may hear {subject}", "that it is refused")


async def _is_refused(trial: Trial, own: Mesh, user: User) -> bool:
    try:
        await (await _join(trial, own, user)).close()
    except nats.errors.Error:
        return True
    return False
