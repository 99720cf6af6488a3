"""The exercises of notebook 15: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json
from collections import Counter

import pytest
from exercise_cells import ExerciseCells, accepted, refused, refused_side_by_side
from nats.js.errors import APIError

from mesh_lab.orders import decode

CELLS = ExerciseCells("15_run_the_order_mesh", imports=("mesh_lab.orders",), json=json, suppress=contextlib.suppress)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


async def events_of(client, *, most=None):
    """Return region, id, event and cents of all that the store holds, in its order."""
    js = client.jetstream()
    pending, found = (await js.stream_info("ORDERS")).state.messages, []
    reading = await js.subscribe("orders.>", ordered_consumer=True)
    for _ in range(min(pending, most or pending)):
        msg = await reading.next_msg(timeout=5)
        found.append((*msg.subject.split(".")[1:], decode(msg.data).cents))
    await reading.unsubscribe()
    return found


def finding(
    *, ends=("shipped", "declined", "cancelled"), begins=("placed",), kind=set, as_id=str, region=None, most=None
):
    async def unfinished(client):
        events = [one for one in await events_of(client, most=most) if region in (None, one[0])]
        ended = {order for _, order, event, _ in events if event in ends}
        return kind({as_id(order) for _, order, event, _ in events if event in begins} - {as_id(id_) for id_ in ended})

    return unfinished


async def by_the_last_event(client):
    last = {order: event for _, order, event, _ in await events_of(client)}
    return {order for order, event in last.items() if event not in ("shipped", "declined", "cancelled")}


async def by_counting(client):
    left = Counter()
    for _, order, event, _ in await events_of(client):
        left[order] += (event == "placed") - (event in ("shipped", "declined", "cancelled"))
    return {order for order, many in left.items() if many > 0}


async def subjects_of(client, filtered="orders.>", *, pages=1_000):
    offset, total = 0, 1
    while offset < total and pages > 0:
        ask = json.dumps({"subjects_filter": filtered, "offset": offset}).encode()
        told = json.loads((await client.request("$JS.API.STREAM.INFO.ORDERS", ask, timeout=5)).data)
        page = list(told["state"].get("subjects") or {})
        offset, total, pages = offset + len(page), told.get("total", 0), pages - 1
        yield page


def by_subjects(*, pages=1_000, each_page=False):
    async def unfinished(client):
        found, events = set(), []
        async for page in subjects_of(client, pages=pages):
            events += [subject.split(".")[2:] for subject in page]
            if each_page:
                found |= open_ones(events)
                events = []
        return found if each_page else open_ones(events)

    return unfinished


def open_ones(events):
    ended = {order for order, event in events if event in ("shipped", "declined", "cancelled")}
    return {order for order, event in events if event == "placed"} - ended


async def by_one_answer_for_each_event(client):
    found = {}
    for event in ("placed", "shipped", "declined", "cancelled"):
        state = (await client.jetstream().stream_info("ORDERS", subjects_filter=f"orders.*.*.{event}")).state
        found[event] = {subject.split(".")[2] for subject in state.subjects or {}}
    return found["placed"] - found["shipped"] - found["declined"] - found["cancelled"]


remembered: list[set[str]] = []


async def remembers(client):
    if not remembered:
        remembered.append(await finding()(client))
    return remembered[0]


async def consumes(client):
    js = client.jetstream()
    pulled, events = await js.pull_subscribe("orders.>", durable="reader", stream="ORDERS"), []
    with contextlib.suppress(TimeoutError):
        while True:
            for msg in await pulled.fetch(100, timeout=1.0):
                events.append(msg.subject.split(".")[2:])
                await msg.ack_sync()
    await pulled.unsubscribe()
    return open_ones(events)


async def one_batch(client):
    pulled, events = await client.jetstream().pull_subscribe("orders.>", stream="ORDERS"), []
    with contextlib.suppress(TimeoutError):
        events = [msg.subject.split(".")[2:] for msg in await pulled.fetch(20, timeout=0.5)]
    await pulled.unsubscribe()
    return open_ones(events)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(ends=("shipped",)), "'000004' is in it: placed, declined"),
        (finding(ends=("shipped", "declined")), "'000006' is in it: placed, paid, cancelled"),
        (finding(ends=("shipped", "declined", "cancelled", "reserved")), "000005 is missing"),
        (finding(ends=("shipped", "declined", "cancelled", "paid")), "000002 is missing"),
        (finding(begins=("paid",)), "000003 is missing: placed"),
        (finding(begins=("placed", "paid", "reserved")), "'000013' is in it: paid, reserved"),
        (finding(kind=sorted), "the store is empty, and [] was returned"),
        (finding(kind=lambda found: {f"orders.{id_}" for id_ in found}), "000002 is missing"),
        (finding(as_id=int), "it raised ValueError: invalid literal for int()"),
        (finding(as_id=lambda id_: id_.zfill(6)), "9 is missing: placed"),
        (finding(as_id=lambda id_: int(id_) if id_.isdigit() else id_), "000002 is missing"),
        (finding(region="eu"), "000003 is missing: placed"),
        (finding(most=3), "is missing"),
        (by_the_last_event, "'000012' is in it: shipped, placed"),
        (by_counting, "'000010' is in it: placed, placed, shipped"),
        (remembers, "is missing"),
        (consumes, "asked again, 000002 is missing"),
        (one_batch, "'000001' is in it: placed, paid, paid, shipped"),
        (by_one_answer_for_each_event, "the store has more than 100,000 orders, and 199985 is missing: placed"),
        (by_subjects(pages=1), "the store has more than 100,000 orders, and"),
        (by_subjects(each_page=True), "the store has more than 100,000 orders, and '199964' is in it: placed, shipped"),
    ],
    ids=[
        "only shipped", "without cancelled", "reserved ends", "paid ends", "only paid", "never placed", "a list",
        "subjects", "numbers", "six digits", "some numbers", "one region", "the first three", "the last event",
        "counted", "remembers", "consumes", "one batch", "one answer for each event", "the first page",
        "page by page",
    ],
)  # fmt: skip
async def test_other_orders_than_the_unfinished_are_refused(mesh, own_meshes_kept, answer, said):
    remembered.clear()
    assert said in await refused("15.1", answer)


async def by_pages_of_each_event(client):
    found = {event: set() for event in ("placed", "shipped", "declined", "cancelled")}
    for event, orders in found.items():
        async for page in subjects_of(client, f"orders.*.*.{event}"):
            orders.update(subject.split(".")[2] for subject in page)
    return frozenset(found.pop("placed").difference(*found.values()))


async def test_another_way_to_find_the_unfinished_is_accepted(mesh, own_meshes_kept):
    await accepted("15.1", by_pages_of_each_event)


def worth(
    *, events=("paid",), ends=("cancelled",), key=str, once=True, kind=dict, every=True, most=None, start=None, adds=1
):
    async def worth_of(client):
        stored = await events_of(client, most=most)
        gone = {order for _, order, event, _ in stored if event in ends}
        found, seen = dict(start or {}), set()
        for region, order, event, cents in stored:
            if every:
                found.setdefault(key(region), 0)
            if event in events and order not in gone and not (once and order in seen):
                seen.add(order)
                found[key(region)] = found.get(key(region), 0) + cents * adds
        return kind(found)

    return worth_of


async def as_they_come(client):
    """A cancellation takes away what was paid, as often as it comes."""
    found = {}
    for region, _, event, cents in await events_of(client):
        found[region] = found.get(region, 0) + {"paid": cents, "cancelled": -cents}.get(event, 0)
    return found


async def until_cancelled(client):
    """A cancellation counts only when it comes after the payment."""
    paid, found = {}, {}
    for region, order, event, cents in await events_of(client):
        found.setdefault(region, 0)
        if event == "paid":
            paid[region, order] = cents
        if event == "cancelled":
            paid.pop((region, order), None)
    for (region, _), cents in paid.items():
        found[region] += cents
    return found


known: dict[str, int] = {}


async def adds_to_a_global(client):
    for region, cents in (await worth()(client)).items():
        known[region] = known.get(region, 0) + cents
    return dict(known)


async def asks_once(client):
    if not known:
        known.update(await worth()(client))
    return dict(known)


async def leaves_its_reader(client):
    await client.jetstream().subscribe("orders.>", ordered_consumer=True)
    return await worth()(client)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (worth(events=("placed",)), "us has 4610 cents"),
        (worth(ends=()), "eu has 70200 cents"),
        (worth(ends=("cancelled", "declined")), "nordic has 0 cents; expected 5,000,000,000"),
        (worth(events=("shipped",)), "eu has 1000 cents"),
        (worth(events=("paid", "shipped"), once=False), "eu has 3200 cents"),
        (worth(once=False), "eu has 2200 cents"),
        (worth(every=False), "region asia is missing; expected 0 cents"),
        (worth(key=lambda region: "all"), "region eu is missing; expected 1,200 cents"),
        (worth(key=lambda region: region.partition("-")[0]), "region sur-2 is missing"),
        (worth(key=str.upper), "region eu is missing"),
        (worth(start={"eu": 0, "us": 0}), "the store is empty, and a region 'eu' was returned; expected none"),
        (worth(adds=0.01), "eu has 12.0 cents; expected 1,200"),
        (worth(most=1_000), "orders were stored since it was asked, and"),
        (worth(kind=sorted), "the store is empty, and list was returned; expected a dictionary"),
        (worth(kind=lambda found: found or None), "the store is empty, and None was returned"),
        (worth(kind=lambda found: {region: str(cents) for region, cents in found.items()}), "eu has '1200' cents"),
        (as_they_come, "eu has"),
        (until_cancelled, "sur-2 has 700 cents; expected 0"),
        (adds_to_a_global, "asked again, eu has 2400 cents; expected 1,200"),
        (asks_once, "orders were stored since it was asked, and eu has 1200 cents; expected 1,000"),
        (leaves_its_reader, "it left an inbox subscribed"),
    ],
    ids=[
        "placed", "cancelled too", "without declined", "shipped", "twice", "an event twice", "a region without",
        "one sum", "regions cut off", "capitals", "the lesson's regions", "dollars", "the first thousand", "a list",
        "none", "text", "as they come", "until cancelled", "a global", "asks once", "leaves its reader",
    ],
)  # fmt: skip
async def test_another_worth_is_refused(mesh, own_meshes_kept, answer, said):
    known.clear()
    assert said in await refused("15.2", answer)


async def in_batches(client):
    js, paid, cancelled, found = client.jetstream(), {}, set(), {}
    pulled = await js.pull_subscribe("orders.>", stream="ORDERS")
    left = (await js.stream_info("ORDERS")).state.messages
    while left:
        for msg in await pulled.fetch(min(left, 500), timeout=5):
            left -= 1
            order, event = decode(msg.data), msg.subject.split(".")[3]
            found.setdefault(order.region, 0)
            if event == "paid":
                paid[order.id] = order
            if event == "cancelled":
                cancelled.add(order.id)
            await msg.ack()
    await pulled.unsubscribe()
    for order in paid.values():
        found[order.region] += 0 if order.id in cancelled else order.cents
    return found


@pytest.mark.parametrize("answer", [worth(), in_batches], ids=["reads all", "in batches"])
async def test_another_way_to_know_the_worth_is_accepted(mesh, own_meshes_kept, answer):
    await accepted("15.2", answer)


ONCE = {"Nats-Expected-Last-Subject-Sequence": "0"}


def invoicing(
    *, headers=ONCE, msg_id=False, subject="effects.invoice.{}", payload=None, ack="after", ends=False, batch=10,
    pulls=None, skips=(), stored_says=(10071,),
):  # fmt: skip
    async def invoice(client):
        js = client.jetstream(timeout=2)
        events = await (pulls(js) if pulls else js.pull_subscribe_bind(consumer="invoices", stream="ORDERS"))
        while True:
            try:
                msgs = await events.fetch(batch, timeout=0.5)
            except TimeoutError:
                if ends:
                    return "done"
                continue
            for msg in msgs:
                order = msg.subject.split(".")[2]
                if order in skips:
                    await msg.ack()
                    continue
                if ack == "before":
                    await msg.ack()
                    await client.flush()
                more = {"Nats-Msg-Id": f"{order}.invoice"} if msg_id else {}
                to, data = subject.format(order), msg.data if payload is None else payload
                try:
                    await js.publish(to, data, headers={**(headers or {}), **more} or None)
                except APIError as err:
                    if err.err_code not in stored_says:
                        continue
                if ack == "after":
                    await msg.ack()

    return invoice


def own_consumer(js):
    return js.pull_subscribe("orders.*.*.shipped", durable="mine", stream="ORDERS")


async def test_another_invoice_is_refused(mesh):
    wrong = {
        invoicing(ack="before"): "has no invoice; expected one, whoever was killed",
        invoicing(headers=None): "invoices; expected one, whoever was killed",
        invoicing(headers=None, msg_id=True): "invoices; expected one, whoever was killed",
        invoicing(payload=b"an invoice"): "the invoice of order 000001 holds something else; expected what the event",
        invoicing(
            ack="never"
        ): "a service is killed just before it sends an acknowledgement: in 12 s it has not sent 3",
        invoicing(
            subject="effects.bill.{}"
        ): 'the server refuses: nats: permissions violation for publish to "effects.bill.',
        invoicing(subject="effects.invoice.x{}"): "order 000001 has no invoice",
        invoicing(ends=True): "the service ended, with 'done'; expected one that goes on until it is cancelled",
        invoicing(pulls=own_consumer): 'the server refuses: nats: permissions violation for publish to "$js.api.',
        invoicing(skips=("Z_a-7",)): "order Z_a-7 has no invoice",
        invoicing(
            stored_says=(10071, 10054)
        ): "an event is acknowledged whose invoice EFFECTS refused; expected an ack for what is stored alone",
    }
    verdicts = await refused_side_by_side("15.3", *wrong)
    assert [
        verdict for verdict, said in zip(verdicts, wrong.values(), strict=True) if said.lower() not in verdict.lower()
    ] == []


async def many_at_once(client):
    js = client.jetstream(timeout=2)
    events = await js.pull_subscribe_bind(consumer="invoices", stream="ORDERS")

    async def store(msg):
        order = decode(msg.data)
        try:
            await js.publish(f"effects.invoice.{order.id}", msg.data, headers=ONCE)
        except APIError as err:
            if err.err_code != 10071:
                return await msg.nak(delay=0.2)
        await msg.ack()

    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*(store(msg) for msg in await events.fetch(100, timeout=0.5)))


async def test_an_invoice_may_be_stored_beside_others(mesh):
    await accepted("15.3", many_at_once)
