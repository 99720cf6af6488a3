"""Checks of notebook 15: what is not finished, what it is worth, and a service that joins the others."""

import asyncio
import contextlib
import datetime
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from nats.aio.client import Client, RawCredentials

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import SAGA, STREAM, Event, Order, encode, open_event_store
from mesh_lab.patterns import wait_routable
from mesh_lab.patterns.wait import cancel_and_join
from mesh_lab.security import Operator
from mesh_lab.security.roles import takes

Life = tuple[str, int, tuple[Event, ...]]
"""An order's region, its cents, and its events in the order in which they are stored."""
STORED_AT_ONCE = 5_000  # a stream refuses what comes while 10,000 messages wait to be stored


async def _empty_store(trial: Trial) -> tuple[Mesh, Client]:
    """Return a server whose event store is empty, and a client of it."""
    own = await trial.own_mesh()
    client = await trial.client(on=own)
    await open_event_store(client)
    await wait_routable(client, STREAM)
    return own, client


def _events(lives: dict[str, Life]) -> Iterator[tuple[str, bytes]]:
    """Yield subject and payload of each event, step by step across all orders, as they happen."""
    for step in range(max(len(events) for _, _, events in lives.values())):
        for order_id, (region, cents, events) in lives.items():
            if step < len(events):
                order = Order(order_id, region, 1, datetime.date(1997, 1, 1), 1, cents)
                yield order.subject(events[step]), encode(order)


def _published(subject: str, text: bytes, reply: str) -> bytes:
    return f"PUB {subject} {reply}{len(text)}\r\n".encode() + text + b"\r\n"


async def _store(own: Mesh, events: Iterable[tuple[str, bytes]]) -> None:
    """Store events, and return when the last of them is acknowledged; by hand, since there are many."""
    [server], who, events = own.servers.values(), own.connect_options(), iter(events)
    reader, writer = await asyncio.open_connection(server.host, server.port)
    await reader.readline()  # INFO
    login = {"user": who["user"], "pass": who["password"], "name": "check 14", "verbose": False}
    writer.write(f"CONNECT {json.dumps(login)}\r\nSUB acknowledged 1\r\n".encode())
    while some := list(itertools.islice(events, STORED_AT_ONCE)):
        replies = [*[""] * (len(some) - 1), "acknowledged "]
        lines = zip(some, replies, strict=True)
        writer.write(b"".join(_published(*event, reply) for event, reply in lines))
        while not (await reader.readline()).startswith(b"MSG"):
            pass
    writer.close()
    await writer.wait_closed()


# 15.1

LIVES: dict[str, Life] = {
    "000001": ("eu", 1_000, ("placed", "paid", "paid", "shipped")),
    "000002": ("eu", 200, ("placed", "paid")),
    "000003": ("us", 30, ("placed",)),
    "000004": ("us", 4_000, ("placed", "declined")),
    "000005": ("us", 500, ("placed", "paid", "reserved")),
    "000006": ("eu", 60_000, ("placed", "paid", "cancelled")),
    "000007": ("us", 7_000_000, ("placed", "cancelled")),
    "000008": ("us", 80, ("placed", "paid", "reserved", "shipped")),
    "000009": ("asia", 90, ("placed", "declined")),
    "000010": ("asia", 90, ("placed", "placed", "shipped")),
    "000011": ("asia", 90, ("placed", "placed", "paid")),
    "000012": ("eu", 90, ("shipped", "placed")),
    "000013": ("us", 90, ("paid", "reserved")),
    "9": ("nordic", 90, ("placed",)),
    "10": ("nordic", 90, ("placed", "shipped", "shipped")),
    "Z_a-7": ("nordic", 90, ("placed", "reserved")),
}
UNFINISHED = {"000002", "000003", "000005", "000011", "9", "Z_a-7"}
PAGE = 100_000  # subjects in one answer of the server, in alphabetical order
MORE = 20
ANSWERED_WITHIN_S = 20.0


@exercise(
    "15.1",
    title="what is not finished?",
    answer="async function",
    expects="the ids of the orders that nothing has ended",
    hint="stream_info('ORDERS', subjects_filter='orders.>') returns each subject with its number of messages, in "
    "state.subjects; a subject says region, id and event. For what comes after the first 100,000, ask "
    '$JS.API.STREAM.INFO.ORDERS with an "offset" beside "subjects_filter".',
    within=60.0,
)
async def knows_the_unfinished(trial: Trial, answer: Any) -> str:
    """Ask it about an empty store, about one with some orders, and about one with more than a page of them."""
    own, client = await _empty_store(trial)
    trial.case = "the store is empty"
    if (found := await answer(client)) != set():
        raise NotYet(f"{trial.case}, and {found!r} was returned", "an empty set")
    await _store(own, _events(LIVES))
    trial.case = "the store has 16 orders"
    for again in ("", "asked again, "):
        _expect_unfinished(trial, await answer(client), LIVES, UNFINISHED, again)
    # Behind all others in the alphabet; one order has an event on the first page, and its end on the second.
    many: dict[str, Life] = {f"{n}": ("zeta", 90, ("placed",)) for n in range(PAGE, 2 * PAGE + MORE)}
    subjects = len({subject for subject, _ in _events(LIVES)})
    ended = [list(many)[PAGE - 1 - subjects], f"{2 * PAGE + MORE - 2}"]
    many |= dict.fromkeys(ended, ("zeta", 90, ("placed", "shipped")))
    await _store(own, _events(many))
    trial.case = f"the store has more than {PAGE:,} orders"
    seen, expected = f"{trial.case}, and after {ANSWERED_WITHIN_S:.0f} s nothing was returned", "less time"
    found = await trial.returns(answer(client), seen, expected, within=ANSWERED_WITHIN_S)
    _expect_unfinished(trial, found, LIVES | many, UNFINISHED | (set(many) - set(ended)), f"{trial.case}, and ")
    return "the subjects alone can tell it"


def _expect_unfinished(trial: Trial, found: Any, lives: dict[str, Life], expected: set[str], case: str) -> None:
    trial.kind(found, (set, frozenset), "a set of ids")
    if missing := sorted(expected - found):
        raise NotYet(f"{case}{missing[0]} is missing: {', '.join(lives[missing[0]][2])}", "every order without an end")
    if more := sorted(found - expected, key=str):
        life = ", ".join(lives[more[0]][2]) if more[0] in lives else "no order of the store"
        raise NotYet(f"{case}{more[0]!r} is in it: {life}", "no order that was ended, or was not placed")


# 15.2

PAID: dict[str, Life] = {
    "000001": ("eu", 1_000, ("placed", "paid", "reserved", "paid", "shipped")),
    "000002": ("eu", 200, ("placed", "paid")),
    "000003": ("us", 30, ("placed",)),
    "000004": ("us", 4_000, ("placed", "declined")),
    "000005": ("us", 500, ("placed", "paid", "reserved")),
    "000006": ("eu", 60_000, ("placed", "paid", "paid", "cancelled")),
    "000007": ("us", 7_000_000, ("placed", "cancelled")),
    "000008": ("us", 80, ("placed", "paid", "reserved", "shipped")),
    "000009": ("asia", 90, ("placed", "declined")),
    "000010": ("sur-2", 700, ("placed", "cancelled", "paid")),
    "000011": ("eu", 9_000, ("placed", "paid", "cancelled", "cancelled")),
    "000012": ("nordic", 5_000_000_000, ("placed", "declined", "paid")),
}
WORTH = {"eu": 1_200, "us": 580, "asia": 0, "sur-2": 0, "nordic": 5_000_000_000}
BULK: dict[str, Life] = {f"{n}": ("bulk", 7, ("placed", "paid")) for n in range(1_500)}
LATER: dict[str, Life] = {"000002": ("eu", 200, ("cancelled",)), "000003": ("us", 30, ("paid",))}
WORTH_LATER = {**WORTH, "eu": 1_000, "us": 610, "bulk": 7 * len(BULK)}


@exercise(
    "15.2",
    title="what is it worth?",
    answer="async function",
    expects="cents of each region's orders that were paid and not cancelled",
    hint="js.subscribe(subject, ordered_consumer=True) replays a stream from its beginning; stream_info says how many "
    "messages there are. An order that was paid may be cancelled later.",
    within=30.0,
)
async def knows_the_worth(trial: Trial, answer: Any) -> str:
    """Ask it about an empty store, about one with some orders, twice, and again when there are many more."""
    own, client = await _empty_store(trial)
    trial.case = "the store is empty"
    _expect_worth(await answer(client), {}, f"{trial.case}, and ")
    await _store(own, _events(PAID))
    trial.case = "the store has 12 orders"
    for again in ("", "asked again, "):
        _expect_worth(await answer(client), WORTH, again)
    await _store(own, itertools.chain(_events(BULK), _events(LATER)))
    trial.case = "orders were stored since it was asked"
    _expect_worth(await answer(client), WORTH_LATER, f"{trial.case}, and ")
    return "any question about the past can be asked today, since no event was thrown away"


def _expect_worth(found: Any, expected: dict[str, int], case: str) -> None:
    if not isinstance(found, dict):
        raise NotYet(f"{case}{'None' if found is None else type(found).__name__} was returned", "a dictionary")
    for region, cents in expected.items():
        if region not in found:
            raise NotYet(f"{case}region {region} is missing", f"{cents:,} cents")
        if found[region] != cents or isinstance(found[region], bool):
            raise NotYet(f"{case}{region} has {found[region]!r} cents", f"{cents:,}")
    if more := sorted(map(str, set(found) - set(expected))):
        raise NotYet(f"{case}a region {more[0]!r} was returned", f"{', '.join(expected) or 'none'}")


# 15.3

SHIPPED: dict[str, Life] = {
    **{f"{n:06}": ("eu", 100 * n, ("placed", "paid", "reserved", "shipped")) for n in range(1, 9)},
    "000009": ("us", 90, ("placed", "declined")),
    "000010": ("us", 91, ("placed", "paid", "reserved", "shipped", "shipped")),
    "Z_a-7": ("nordic", 92, ("placed", "paid", "reserved", "shipped")),
}
TO_INVOICE = {order for order, (_, _, events) in SHIPPED.items() if "shipped" in events}
GROUP, INVOICE, ACK = "invoices", "effects.invoice.", "$JS.ACK.ORDERS.invoices."
MAY = (f"{INVOICE}*", *takes(STREAM, GROUP))
LATE = "000008"  # shipped when invoices are refused
LAST = 3  # what a service that is killed was about to send: its third
WORKS_WITHIN_S, WINDOW_S = 12.0, 0.1


@exercise(
    "15.3",
    title="send an invoice",
    answer="async function",
    expects="a service that stores one invoice for each order that was shipped",
    hint="js.pull_subscribe_bind(consumer='invoices', stream='ORDERS') takes events of a consumer that stands; fetch() "
    "raises TimeoutError where nothing comes. A publish with the header Nats-Expected-Last-Subject-Sequence: 0 is "
    "refused with nats.js.errors.APIError, err_code 10071, where the subject has a message already. With any other "
    "error, nothing is stored.",
    within=90.0,
)
async def invoices_once(trial: Trial, answer: Any) -> str:
    """Kill it before an invoice, and before an acknowledgement; let an event come again; then refuse an invoice."""
    operator = Operator("check 15.3")
    account = operator.account("ORDERS")
    own = await trial.own_mesh(operator=operator)
    owner = await trial.enter(own, user_credentials=RawCredentials(account.user("owner").credentials))
    js = owner.jetstream()
    await open_event_store(owner, deployment=SAGA)
    effects = (await js.stream_info("EFFECTS")).config
    effects.duplicate_window = WINDOW_S  # "once for ever" is longer than any window
    await js.update_stream(effects)
    await js.add_consumer(
        STREAM, durable_name=GROUP, filter_subject="orders.*.*.shipped", ack_policy="explicit", ack_wait=1
    )
    events = list(_events(SHIPPED))
    [late] = [event for event in events if event[0].endswith(f"{LATE}.shipped")]
    for event in events:
        if event != late:
            await js.publish(*event)
    sent = Counter[str]()

    @contextlib.asynccontextmanager
    async def working(name: str, killed_before: str | None) -> "AsyncIterator[tuple[Client, asyncio.Task[Any]]]":
        sent.clear()

        async def before(subject: str) -> None:
            kind = next((kind for kind in (INVOICE, ACK) if subject.startswith(kind)), "")
            sent[kind] += 1
            if kind == killed_before and sent[kind] >= LAST:
                raise ConnectionResetError

        user = account.user(name, publish=MAY, subscribe=[f"_INBOX_{name}.>"])
        who = {"user_credentials": RawCredentials(user.credentials), "inbox_prefix": f"_INBOX_{name}"}
        client = await trial.rivalled(before, on=own, **who)
        service = asyncio.create_task(answer(client))
        try:
            yield client, service
        finally:
            await cancel_and_join(service)
            with contextlib.suppress(OSError):
                await client.close()

    async def until(what: Any, client: Client, service: "asyncio.Task[Any]", seen: Any, expected: str) -> None:
        async def either() -> bool:
            return service.done() or await what()

        wrong = None
        try:
            await trial.soon(either, seen, expected, within=WORKS_WITHIN_S)
        except NotYet as err:
            wrong = err
        if said := await trial.complaints(client) if client.is_connected else []:
            raise NotYet(f"the server refuses: {said[0]}", f"only what its user may: {', '.join(MAY)}")
        if wrong is not None:
            raise wrong
        if service.done() and not client.is_closed:
            raise NotYet(f"the service ended, with {service.result()!r}", "one that goes on until it is cancelled")

    for name, before, what in (("first", INVOICE, "an invoice"), ("second", ACK, "an acknowledgement")):
        trial.case = f"a service is killed just before it sends {what}"
        seen = f"{trial.case}: in {WORKS_WITHIN_S:g} s it has not sent {LAST} of them"
        async with working(name, before) as (client, service):

            async def killed(client: Client = client) -> bool:
                return client.is_closed

            wanted = f"an invoice for each of {len(TO_INVOICE) - 1} orders, and an ack after it"
            await until(killed, client, service, seen, wanted)

    async def done() -> bool:
        group = await js.consumer_info(STREAM, GROUP)
        return not (group.num_pending or group.num_ack_pending)

    trial.case = "another one goes on"
    async with working("third", None) as (client, service):
        for again in (False, True):
            if again:
                trial.case = "an event comes again"
                await js.publish(*next(event for event in events if event[0].endswith(".shipped")))
            undone = f"{trial.case}, and after {WORKS_WITHIN_S:g} s not every event is acknowledged"
            await until(done, client, service, undone, "all of them, so that none comes again")
        await _expect_invoices(js, dict(events), TO_INVOICE - {LATE})
        trial.case = "EFFECTS refuses an invoice for a while"
        effects.max_msg_size = 1
        await js.update_stream(effects)
        sent.clear()
        await js.publish(*late)

        async def tried_again() -> bool:
            return sent[INVOICE] > 1 or (sent[INVOICE] > 0 and await done())

        seen = f"{trial.case}, and in {WORKS_WITHIN_S:g} s the service has not tried again"
        await until(tried_again, client, service, seen, "that it does: what is not acknowledged comes again")
        if await done():
            raise NotYet("an event is acknowledged whose invoice EFFECTS refused", "an ack for what is stored alone")
        effects.max_msg_size = -1
        await js.update_stream(effects)
        await until(done, client, service, f"{trial.case}, and later not every event is acknowledged", "all of them")
    await _expect_invoices(js, dict(events), TO_INVOICE)
    return "whatever dies, and whatever comes twice: one invoice for each order"


async def _expect_invoices(js: Any, events: dict[str, bytes], orders: set[str]) -> None:
    found = (await js.stream_info("EFFECTS", subjects_filter=f"{INVOICE}>")).state.subjects or {}
    payloads = {subject.split(".")[2]: payload for subject, payload in events.items() if subject.endswith(".shipped")}
    for order in sorted(orders):
        number = found.pop(INVOICE + order, 0)
        if number != 1:
            raise NotYet(f"order {order} has {number or 'no'} invoice{'s' * (number > 1)}", "one, whoever was killed")
        if (await js.get_last_msg("EFFECTS", INVOICE + order)).data != payloads[order]:
            raise NotYet(f"the invoice of order {order} holds something else", "what the event holds")
    if found:
        raise NotYet(f"{min(found)} was stored", f"no invoice but of the {len(orders)} orders that were shipped")
