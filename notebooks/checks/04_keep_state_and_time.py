"""The checks of notebook 04: a stock that is never sold twice, a lease, a reminder that can wait."""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import wait_routable

API_TIMEOUT_S = 12.0  # on a busy machine an election can hold up a request for seconds
HUNG_S = 8.0

# 4.1

SHOP = "CHECK-4-1"
RIVALS = [str(50 - sold) for sold in range(1, 13)]
# Before, what rivals write between reading and writing, copies to sell; what is returned, and what is left.
SALES: dict[str, tuple[str | None, list[str], int, bool, str | None]] = {
    "one copy of five": ("5", [], 1, True, "4"),
    "all three of three": ("3", [], 3, True, "0"),
    "two copies of one": ("1", [], 2, False, "1"),
    "a copy of a title that is sold out": ("0", [], 1, False, "0"),
    "a copy of a title that the shop never had": (None, [], 1, False, None),
    "a copy of a title that was deleted": ("DEL", [], 1, False, None),
    "the last copy, which another till sells meanwhile": ("1", ["0"], 1, False, "0"),
    "two copies of one, when three more are delivered meanwhile": ("2", ["5"], 2, True, "3"),
    f"a copy, when others are faster {len(RIVALS)} times": ("50", RIVALS, 1, True, "37"),
    "a copy of a title that is deleted meanwhile": ("4", ["DEL"], 1, False, None),
}


@exercise(
    "4.1",
    title="sell what there is",
    answer="async function",
    expects="True with the copies taken off, or False with nothing changed",
    hint="Read, decide, update with last=entry.revision. Which error says that somebody was faster, and which one that "
    "there is no such title? After a refusal your decision is out of date.",
    within=60.0,
)
async def sells_what_there_is(trial: Trial, answer: Any) -> str:
    """Let rivals write before whatever the answer stores, and read the stock afterwards."""
    client = await trial.client()
    js = await trial.absent(client, f"KV_{SHOP}", api_timeout=API_TIMEOUT_S)
    shop = await js.create_key_value(bucket=SHOP)
    await wait_routable(client, f"KV_{SHOP}")
    for number, (what, (before, rivals, copies, wanted, left)) in enumerate(SALES.items()):
        title = f"title-{number}"
        if before is not None:
            await shop.put(title, b"7" if before == "DEL" else before.encode())
        if before == "DEL":
            await shop.delete(title)
        trial.case = f"it was to sell {what}"
        to_come, keys = list(rivals), (await js.stream_info(f"KV_{SHOP}")).state.messages

        async def rival(subject: str, title: str = title, to_come: list[str] = to_come) -> None:
            if to_come and subject == f"$KV.{SHOP}.{title}":
                value = to_come.pop(0)
                await (shop.delete(title) if value == "DEL" else shop.put(title, value.encode()))

        late = (await trial.rivalled(rival)).jetstream(timeout=API_TIMEOUT_S)
        hung = f"sell() was still at work {HUNG_S:g} s after it was to sell {what}"
        call = answer(await late.key_value(SHOP), title, copies)
        returned = await trial.returns(call, hung, "True or False", within=HUNG_S)
        if (seen := await _value(js, title)) != left:
            raise NotYet(f"after {what}, the stock says {seen or 'nothing'}", left or "nothing")
        trial.equal(returned, wanted, f"for {what}, ")
        if (await js.stream_info(f"KV_{SHOP}")).state.messages != keys:
            raise NotYet(f"after {what}, the stock has a key more", "the keys that it had")
    return "nobody waited for a lock: whoever was slower read again"


async def _value(js: JetStreamContext, title: str) -> str | None:
    try:
        message = await js.get_last_msg(f"KV_{SHOP}", f"$KV.{SHOP}.{title}")
    except NotFoundError:
        return None
    return None if message.headers and "KV-Operation" in message.headers else (message.data or b"").decode()


# 4.2

LEASES = "CHECK-4-2"
TTL_S = 1
LEASE_CASES = {
    # What is there by now, and whether the lease may be renewed.
    "a lease that is still its own": ("mine", True),
    "a lease that another holder has meanwhile": ("another's", False),
    "a lease that its holder has renewed since": ("mine, newer", False),
    "a lease that has run out": ("gone", False),
    "a lease that was given back": ("deleted", False),
}


@exercise(
    "4.2",
    title="renew a lease",
    answer="async function",
    expects="the new revision, or None when the lease is lost",
    hint="js.publish takes headers and msg_ttl, and returns what the new revision is. A refusal with err_code 10071 or "
    "10164 means that the lease is lost.",
    within=60.0,
)
async def renews_a_lease(trial: Trial, answer: Any) -> str:
    """Read from the stream what the answer stored: whose the lease is, on which revision, and how long it lasts."""
    client = await trial.client()
    js = await trial.absent(client, f"KV_{LEASES}", api_timeout=API_TIMEOUT_S)
    leases = await js.create_key_value(bucket=LEASES)
    await wait_routable(client, f"KV_{LEASES}")
    for number, (what, (there, may)) in enumerate(LEASE_CASES.items()):
        trial.case = f"it was to renew {what}"
        key, holder, seconds = f"room-{number}", f"clerk-{number}".encode(), 30 if number else TTL_S
        revision = await leases.create(key, holder, msg_ttl=60)
        if there == "another's":
            await leases.put(key, b"somebody else")
        elif there == "mine, newer":
            await leases.update(key, holder, last=revision)
        elif there == "gone":
            await js.purge_stream(f"KV_{LEASES}", subject=f"$KV.{LEASES}.{key}")
        elif there == "deleted":
            await leases.delete(key, last=revision)
        before = (await js.stream_info(f"KV_{LEASES}")).state.last_seq
        hung = f"renew() was still at work {HUNG_S:g} s after it was called"
        call = answer(js, LEASES, key, holder, revision, seconds)
        returned = await trial.returns(call, hung, "a revision or None", within=HUNG_S)
        stored = (await js.stream_info(f"KV_{LEASES}")).state.last_seq - before
        if not may:
            if stored:
                raise NotYet(f"for {what}, something was stored", "no change to what is no longer its own")
            trial.equal(returned, None, f"for {what}, ")
            continue
        await _renewed(js, key, holder, seconds, stored)
        trial.equal(returned, before + 1, f"for {what}, ")
        await trial.soon(
            partial(_is_gone, js, key),
            f"the lease was still there when it was renewed for {seconds} s and those were over",
            "its end",
            within=seconds + 3.0,
        )
    trial.case = "there was no such bucket"
    try:
        returned = await trial.returns(answer(js, "CHECK-4-2-NONE", "room", b"clerk", 1, 2), "it hung", "an error")
    except Exception:  # noqa: BLE001  # whatever it is, the caller learns of it
        return "the caller knows the difference between a lost lease and a lost server"
    raise NotYet(f"without a bucket, {returned!r} was returned", "the error, for the caller")


async def _renewed(js: JetStreamContext, key: str, holder: bytes, seconds: int, stored: int) -> None:
    if stored != 1:
        raise NotYet(f"{stored} messages were stored for one renewal", "1: a lease that is deleted first is free")
    message = await js.get_last_msg(f"KV_{LEASES}", f"$KV.{LEASES}.{key}")
    headers = message.headers or {}
    if message.data != holder or "KV-Operation" in headers:
        raise NotYet(f"the lease holds {message.data!r}", f"{holder!r}")
    ttl = headers.get("Nats-TTL", "none").removesuffix("s")
    if ttl != str(seconds):
        raise NotYet(f"the renewed lease has the TTL {ttl}", f"{seconds}: else it never ends, or at another time")


async def _is_gone(js: JetStreamContext, key: str) -> bool:
    try:
        await js.get_last_msg(f"KV_{LEASES}", f"$KV.{LEASES}.{key}")
    except NotFoundError:
        return True
    return False


# 4.3

REMINDERS = "REMINDERS"
SOON_S, LATER_S = 0.5, 2.0
LATE_S = 2.0  # for a server on a busy machine


@exercise(
    "4.3",
    title="give an order more time",
    answer="async function",
    expects="True with the reminder moved, or False with nothing stored",
    hint="get_last_msg finds the schedule with its headers and its sequence. A publish to the same subject takes its "
    "place. Which header makes it refuse if the schedule is no longer there?",
    within=60.0,
)
async def gives_more_time(trial: Trial, answer: Any) -> str:
    """Postpone reminders that wait, were cancelled or were sent; read what the stream holds in the end, and when."""
    client = await trial.client()
    settings: dict[str, Any] = {"subjects": ["remind.*", "unpaid.*", "dunned.*"], "allow_msg_schedules": True}
    js = await trial.stream(client, REMINDERS, api_timeout=API_TIMEOUT_S, **settings)
    await _schedule(js, "sent", 0.0, target="unpaid.sent")
    await trial.soon(lambda: _holds(js, "unpaid.sent"), "no reminder came", "one at once", within=10.0)
    for order, what, wanted in (
        ("none", "an order without a reminder", False),
        ("sent", "an order whose reminder was sent", False),
    ):
        await _postpone(trial, js, js, answer, order, what, wanted)

    for order, what, wanted in (("paid", "an order that is paid while you look", False),):
        await _schedule(js, order, 30.0, target=f"unpaid.{order}")

        async def rival(subject: str, order: str = order) -> None:
            if subject == f"remind.{order}":
                await js.purge_stream(REMINDERS, subject=f"remind.{order}")

        late = (await trial.rivalled(rival)).jetstream(timeout=API_TIMEOUT_S)
        await _postpone(trial, js, late, answer, order, what, wanted)

    await _schedule(js, "000007", SOON_S, target="dunned.000007", payload=b"please pay 1177 cents")
    await _schedule(js, "000008", SOON_S, target="unpaid.000008")
    await _postpone(trial, js, js, answer, "000007", "an order whose reminder waits", True)
    called = time.time()
    await trial.soon(lambda: _holds(js, "unpaid.000008"), "the reminder of another order did not come", "it", within=10)
    what = f"the reminder that was moved by {LATER_S:g} s did not come at dunned.000007"
    await trial.soon(lambda: _holds(js, "dunned.000007"), what, "it, at the target it had", within=LATER_S + LATE_S)
    message = await js.get_last_msg(REMINDERS, "dunned.000007")
    if message.data != b"please pay 1177 cents":
        raise NotYet(f"the reminder says {message.data!r}", "the payload that it had")
    came = message.time.timestamp() if message.time else time.time()
    if came < called + LATER_S - SOON_S:
        raise NotYet("the reminder came at its old time", f"{LATER_S:g} s from the call")
    other = await js.get_last_msg(REMINDERS, "unpaid.000008")
    if other.time and came - other.time.timestamp() < SOON_S:
        raise NotYet("the reminder of another order was moved as well", "it, at its own time")
    subjects = (await js.stream_info(REMINDERS, subjects_filter=">")).state.subjects or {}
    if subjects != (due := {"dunned.000007": 1, "unpaid.000008": 1, "unpaid.sent": 1}):
        raise NotYet(f"the stream holds {dict(sorted(subjects.items()))} in the end", str(due))
    return "the schedule's own sequence is the fence: what was cancelled or sent does not come back"


async def _postpone(
    trial: Trial, js: JetStreamContext, given: JetStreamContext, answer: Any, order: str, what: str, wanted: bool
) -> None:
    trial.case = f"it got {what}"
    hung = f"postpone() was still at work {HUNG_S:g} s after it got {what}"
    returned = await trial.returns(answer(given, order, LATER_S), hung, "True or False", within=HUNG_S)
    if not wanted and await _holds(js, f"remind.{order}"):
        raise NotYet(f"{what} has a reminder waiting now", "none")
    trial.equal(returned, wanted, f"for {what}, ")


async def _schedule(
    js: JetStreamContext, order: str, seconds: float, *, target: str, payload: bytes = b"please pay"
) -> None:
    due = datetime.now(UTC) + timedelta(seconds=seconds)
    headers = {"Nats-Schedule": f"@at {due.isoformat()}", "Nats-Schedule-Target": target}
    await js.publish(f"remind.{order}", payload, headers=headers)


async def _holds(js: JetStreamContext, subject: str) -> bool:
    try:
        await js.get_last_msg(REMINDERS, subject)
    except NotFoundError:
        return False
    return True
