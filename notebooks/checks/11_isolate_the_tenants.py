"""Checks of notebook 11: one service between two accounts, a student's limits, a seat that ends by itself."""

import asyncio
import json
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
from mesh_lab.security import Account, Operator, User, decode_token

LATE_S = 1.5


class _RefusedAccountError(Exception):
    """The server refused an account's token."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the server refused the account {name!r}: {why}")


async def _announce(own: Mesh, *accounts: Account) -> None:
    """Give the server accounts."""
    async with await own.connect(system=True) as admin:
        for account in accounts:
            reply = await admin.request("$SYS.REQ.CLAIMS.UPDATE", account.token().encode(), timeout=5)
            if error := json.loads(reply.data).get("error"):
                raise _RefusedAccountError(account.name, str(error.get("description", error)).partition(" - ")[0])


async def _join(trial: Trial, own: Mesh, user: User, **options: Any) -> Client:
    return await trial.enter(own, user_credentials=RawCredentials(user.credentials), **options)


# 11.1


@exercise(
    "11.1",
    title="a counter for refunds",
    answer="function",
    expects="one service of the bank's that the shop can ask, and nothing else",
    hint='Two dictionaries as in the lesson, both of "type": "service". The export names "cards.refund", the '
    'import the bank as its "account" and "refunds.ask" as its "local_subject".',
    within=30.0,
)
async def opens_one_counter(trial: Trial, answer: Any) -> str:
    """Let the shop ask, and listen for anything else that passes between bank, shop and a stranger."""
    operator = Operator("check 11.1")
    bank, shop, stranger = (operator.account(name) for name in ("bank of Zürich", "shop-10", "stranger"))
    answer(bank, shop)
    service = {"type": "service", "account": bank.public}
    stranger.imports = [{**service, "name": subject, "subject": subject} for subject in OTHER_SUBJECTS]
    _expect_lists_of_dicts(bank, shop)
    own = await trial.own_mesh(operator=operator)
    try:
        await _announce(own, bank, shop, stranger)
    except _RefusedAccountError as err:
        raise NotYet(_what_is_wrong(bank, shop) or str(err), "two accounts that it understands") from err
    desk, till = await _join(trial, own, bank.user("desk")), await _join(trial, own, shop.user("till"))
    await _expect_a_refund(trial, desk, till, _what_is_wrong(bank, shop))
    await _expect_nothing_else(trial, desk, till)
    await _expect_no_charge(trial, desk, await _join(trial, own, stranger.user("till")))
    _expect_one_door(bank, shop)
    return "who exports decides what may be asked, who imports under which name"


REFUND, ASK = "cards.refund", "refunds.ask"
OTHER_SUBJECTS = ("cards.charge", "cards.refund.other", "notices.closed", "refunds.other")


def _expect_lists_of_dicts(bank: Account, shop: Account) -> None:
    for name, lists in (("bank", (bank.exports, bank.imports)), ("shop", (shop.exports, shop.imports))):
        for found in lists:
            if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
                raise NotYet(f"the {name}'s exports and imports are no lists of dictionaries", "two such lists")


def _what_is_wrong(bank: Account, shop: Account) -> str:
    """Return in words why the shop's request cannot reach the bank; empty if the tokens look right."""
    if not bank.exports:
        return "the shop exports to the bank" if shop.exports else "the bank exports nothing"
    export: dict[str, Any] = bank.exports[0]
    if export.get("type") != "service":
        return f"the bank's export is of type {export.get('type')!r}, which cannot be asked"
    if export.get("token_req"):
        return "the bank's export is private (token_req), and the shop has no token"
    if export.get("subject") not in (REFUND, "cards.*", "cards.>", "*.refund", "*.*", ">"):
        return f"the bank exports {export.get('subject')!r}"
    if not shop.imports:
        return "the shop imports nothing"
    door: dict[str, Any] = shop.imports[0]
    if door.get("account") != bank.public:
        return "the shop's import names another account than the bank"
    if door.get("type") != "service":
        return f"the shop's import is of type {door.get('type')!r}, and the bank's export a service"
    if door.get("subject") != REFUND:
        return f"the shop imports {door.get('subject')!r} of the bank's"
    if "local_subject" in door and door["local_subject"] != ASK:
        return f"the shop imports it as {door['local_subject']!r}"
    if "local_subject" not in door and "to" not in door:
        return "the shop imports it under the bank's own name"
    return ""


def _expect_one_door(bank: Account, shop: Account) -> None:
    """Look for what was signed beside the counter, whoever may use it."""
    if len(bank.exports) > 1 or bank.exports[0]["subject"] != REFUND:
        other = next(one["subject"] for one in bank.exports[::-1] if one["subject"] != REFUND or len(bank.exports) > 1)
        raise NotYet(f"the bank also exports {other!r}, to whoever imports it", f"an export of {REFUND} alone")
    if shop.exports or bank.imports:
        raise NotYet("something can also pass from the shop to the bank", "one service that the shop can ask")
    if len(shop.imports) > 1:
        raise NotYet(f"the shop has {len(shop.imports)} imports", f"{ASK} alone")


async def _expect_a_refund(trial: Trial, desk: Client, till: Client, wrong: str) -> None:
    async def refund(msg: Msg) -> None:
        await msg.respond(b"refunded " + msg.data)

    await trial.serve(desk, refund, REFUND)
    for amount in (b"9.99", b"10"):
        try:
            reply = await till.request(ASK, amount, timeout=2)
        except (nats.errors.NoRespondersError, TimeoutError) as err:
            seen = f"the shop asked {ASK}, and nobody answered{': ' * bool(wrong)}{wrong}"
            raise NotYet(seen, f"an answer of the bank's {REFUND}") from err
        if reply.data != b"refunded " + amount:
            raise NotYet("another answer came", f"that of {REFUND}")


async def _expect_nothing_else(trial: Trial, desk: Client, till: Client) -> None:
    """Try every subject in both directions, since an export or an import can be too wide."""
    at_bank, at_shop = trial.own(await desk.subscribe(">")), trial.own(await till.subscribe(">"))
    await asyncio.gather(flush_through(desk), flush_through(till))
    for subject in (*OTHER_SUBJECTS, REFUND, "refunds.ask.all", "accounts.1"):
        await desk.publish(subject, b"from the bank")
    for subject in (*OTHER_SUBJECTS, REFUND, "refunds.ask.all", "orders.eu.000001.placed"):
        await till.publish(subject, b"from the shop")
    await asyncio.gather(flush_through(desk), flush_through(till))
    for name, arrived, foreign in (
        ("bank", await trial.arrived(desk, at_bank), b"from the shop"),
        ("shop", await trial.arrived(till, at_shop), b"from the bank"),
    ):
        if subjects := [msg.subject for msg in arrived if msg.data == foreign]:
            raise NotYet(f"the {name} also heard {subjects[0]}", f"{ASK}, and nothing else")


async def _expect_no_charge(trial: Trial, desk: Client, stranger: Client) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"charged")

    for subject in OTHER_SUBJECTS:
        await trial.serve(desk, answer, subject)
    for subject in OTHER_SUBJECTS:
        try:
            await stranger.request(subject, b"", timeout=0.5)
        except (nats.errors.NoRespondersError, TimeoutError):
            continue
        raise NotYet(f"a stranger who imported {subject} was answered", f"an export of {REFUND} alone")


# 11.2

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
    "11.2",
    title="an account for a student",
    answer="function",
    expects="an account with five limits",
    hint="operator.account(name, conn=…): the others are called subs, payload, streams and disk_storage.",
    within=40.0,
)
async def limits_a_student(trial: Trial, answer: Any) -> str:
    """Look at two students' accounts, then go up to each limit, and one further."""
    operator = Operator("check 11.2")
    accounts = [answer(operator, name) for name in ("Zoë", "student-10")]
    for account, name in zip(accounts, ("Zoë", "student-10"), strict=True):
        trial.kind(account, Account, "an account of the operator")
        if decode_token(account.token())["iss"] != operator.key.public:
            raise NotYet("another operator signed the account", "one of the operator that was given")
        if account.name != name:
            raise NotYet(f"the account for {name!r} is called {account.name!r}", f"{name!r}")
    if accounts[0].public == accounts[1].public:
        raise NotYet("two students got the same account", "one for each")
    own = await trial.own_mesh(operator=operator)
    try:
        await _announce(own, *accounts)
    except _RefusedAccountError as err:
        raise NotYet(str(err), "one that it understands") from err
    account = accounts[1]

    async def join() -> Client:
        return await _join(trial, own, account.user("student"))

    for resource, (limit, use) in LIMITS.items():
        for amount, allowed in ((limit, True), (limit + 1, False)):
            if await _is_allowed(use(join, amount)) != allowed:
                seen = f"{amount:,} {resource} are {'refused' if allowed else 'allowed'}"
                raise NotYet(seen, f"{limit:,}, and not one more")
            await eventually(partial(_has_no_connection, own, account), within=5.0)  # the next one counts from none
    _expect_no_other_limit(operator, account)
    return "what a tenant may use is written in a token, and every server holds to it"


def _expect_no_other_limit(operator: Operator, account: Account) -> None:
    limits, without = (decode_token(one.token())["nats"]["limits"] for one in (account, operator.account("none")))
    named = {"conn", "subs", "payload", "streams", "disk_storage"}
    if other := sorted(name for name in (limits | without).keys() - named if limits.get(name) != without.get(name)):
        raise NotYet(f"{other[0]} is limited, too", "five limits; anything else as it pleases")


async def _is_allowed(using: Awaitable[None]) -> bool:
    try:
        await using
    except (nats.errors.Error, APIError, OSError):
        return False
    return True


def _has_no_connection(own: Mesh, account: Account) -> bool:
    monitors = [server.monitor for server in own.servers.values() if server.monitor is not None]
    return not any(monitor.connz(f"acc={account.public}")["connections"] for monitor in monitors)


# 11.3


@exercise(
    "11.3",
    title="a seat in a workshop",
    answer="function",
    expects="a user who may do a little, for a while",
    hint="account.user(name, publish=[…], subscribe=[…], lives_for=…). Answers come to subjects below _INBOX_<name>.",
    within=30.0,
)
async def gives_a_seat(trial: Trial, answer: Any) -> str:
    """Let users do what a participant does, and what none should, and wait until their seats end."""
    operator = Operator("check 11.3")
    accounts = [operator.account(name) for name in ("workshop", "another")]
    own = await trial.own_mesh(operator=operator)
    await _announce(own, *accounts)
    clients = [await _sit_down(trial, own, answer, *seat) for seat in zip(accounts, SEATS, strict=True)]
    (_, seconds), (client, user, began) = SEATS[0], clients[0]
    # The server rounds to seconds.
    late = "the participant was not disconnected in time", f"a seat for {seconds:g} s"
    within = seconds + LATE_S - (time.monotonic() - began)
    await trial.soon(lambda: client.is_closed, *late, within=within)
    back = "the participant came in again", "that the token has ended"
    await trial.soon(partial(_is_refused, trial, own, user), *back, within=LATE_S)
    if not clients[1][0].is_connected:
        raise NotYet("a participant was disconnected too early", f"a seat for {SEATS[1][1]:g} s")
    return "nobody has to take the seat away: it ends by itself"


TRIED_FOR_S = 60.0  # a seat for what a participant may do, however slow the machine is
SEATS = (("ada", 3.0), ("max-10", 60.0))  # plain letters: nats-py 2.16 reads no answers in an inbox with others


async def _sit_down(
    trial: Trial, own: Mesh, answer: Any, account: Account, seat: tuple[str, float]
) -> tuple[Client, User, float]:
    """Try one seat, and return its client and user, and when it began."""
    name, seconds = seat
    _user_of(trial, answer, account, name, seconds)
    patient = await _enter(trial, own, _user_of(trial, answer, account, name, TRIED_FOR_S), name)
    teacher = await _join(trial, own, account.user("teacher"))
    await _take_part(trial, patient, teacher, name)
    await _try_to_disturb(trial, patient, name)
    began = time.monotonic()
    user = _user_of(trial, answer, account, name, seconds)
    return await _enter(trial, own, user, name), user, began


def _user_of(trial: Trial, answer: Any, account: Account, name: str, seconds: float) -> User:
    user: User = answer(account, name, seconds)
    trial.kind(user, User, "a user of the account")
    left_s = decode_token(user.credentials.splitlines()[1]).get("exp", 0) - time.time()
    if abs(left_s - seconds) > LATE_S:
        when = "never ends" if left_s < -seconds else f"ends too {'late' if left_s > seconds else 'early'}"
        raise NotYet(f"the token for {seconds:g} s {when}", f"one that ends after {seconds:g} s")
    return user


async def _enter(trial: Trial, own: Mesh, user: User, name: str) -> Client:
    try:
        return await _join(trial, own, user, inbox_prefix=f"_INBOX_{name}")
    except nats.errors.Error as err:
        raise NotYet(f"{name} was refused at the door: {err}", "a user whom the account signed") from err


async def _take_part(trial: Trial, client: Client, teacher: Client, name: str) -> None:
    async def help_out(msg: Msg) -> None:
        await msg.respond(b"try again")

    await trial.serve(teacher, help_out, f"work.{name}.help")
    for subject in ("work.1", "work.bob.done", "work.*.*.*.*"):
        await (await client.subscribe(subject)).unsubscribe()
    heard = trial.own(await client.subscribe("work.>"))
    for subject in (f"work.{name}.done", f"work.{name}.exercise.10.3"):
        await client.publish(subject, b"")
        if complaints := await trial.complaints(client):
            raise NotYet(f"a participant was refused: {complaints[0]}", f"work.{name}.> to publish, work.> to hear")
    for subject in ("work.bob.done", "work.all", "work.bob.exercise.9.1"):
        await teacher.publish(subject, b"said")
    await flush_through(teacher)
    said = [msg for msg in await trial.arrived(client, heard) if msg.data == b"said"]
    if len(said) < 3:
        raise NotYet("a participant did not hear everything below work.", "work.> to hear")
    try:
        await client.request(f"work.{name}.help", b"", timeout=1)
    except (nats.errors.Error, TimeoutError) as err:
        raise NotYet("a participant asked, and could not hear the answer", "that inboxes can be heard") from err


async def _try_to_disturb(trial: Trial, client: Client, name: str) -> None:
    await trial.complaints(client)  # those before are no refusals of what follows
    for subject, deed in {
        "work.bob.done": "publish as somebody else",
        f"work.{name}2.done": "publish as somebody else",
        f"work.{name}": "publish beside its own place",
        "work.done": "publish beside its own place",
        f"exams.{name}.done": "publish beside its own place",
        "_INBOX_teacher.1": "answer for others",
        f"_INBOX_{name}.1": "publish answers to itself",
        "$JS.API.INFO": "ask JetStream",
        "$JS.API.STREAM.LIST": "list the streams",
        "$JS.API.STREAM.CREATE.WORK": "make a stream",
        "$JS.API.STREAM.DELETE.WORK": "delete a stream",
        "$JS.API.CONSUMER.CREATE.WORK": "make a consumer",
        "$JS.ACK.WORK.c.1.1.1.1.0": "acknowledge",
        "$KV.scores.ada": "write into a bucket",
    }.items():
        await client.publish(subject, b"")
        if not await trial.complaints(client):
            raise NotYet(f"a participant may {deed}: {subject}", "that it is refused")
    for subject in (">", "exams.>", "work", "_INBOX.>", "_INBOX_bob.>", f"_INBOX_{name}2.>", "$JS.EVENT.>"):
        extra = await client.subscribe(subject)
        if not await trial.complaints(client):
            raise NotYet(f"a participant may hear {subject}", "that it is refused")
        await extra.unsubscribe()


async def _is_refused(trial: Trial, own: Mesh, user: User) -> bool:
    try:
        await (await _join(trial, own, user)).close()
    except nats.errors.Error:
        return True
    return False
