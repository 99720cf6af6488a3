"""The exercises of notebook 02: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import json

import nats.errors
import pytest
from exercise_cells import ExerciseCells, refused, refused_side_by_side

from mesh_lab.notebook.exercises import check
from mesh_lab.patterns.wait import eventually

CELLS = ExerciseCells("02_share_work_in_queue_groups", asyncio=asyncio, json=json)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


# 2.1


async def knows_everything(nc, msg, shelf):
    await msg.respond(str(shelf[msg.data.decode()]).encode())


async def takes_none_for_unknown(nc, msg, shelf):
    if copies := shelf.get(msg.data.decode()):
        await msg.respond(str(copies).encode())
    else:
        await nc.publish(msg.reply, headers={"Nats-Service-Error-Code": "404", "Nats-Service-Error": "unknown"})


async def says_it_in_the_payload(nc, msg, shelf):
    await msg.respond(str(shelf.get(msg.data.decode(), "404 no such CD")).encode())


async def says_nothing(nc, msg, shelf):
    if msg.data.decode() in shelf:
        await msg.respond(str(shelf[msg.data.decode()]).encode())


async def replies_twice(nc, msg, shelf):
    await msg.respond(str(shelf.get(msg.data.decode(), 0)).encode())
    await nc.publish(msg.reply, headers={"Nats-Service-Error-Code": "404", "Nats-Service-Error": "unknown"})


async def sends_no_reason(nc, msg, shelf):
    if msg.data.decode() in shelf:
        await msg.respond(str(shelf[msg.data.decode()]).encode())
    else:
        await nc.publish(msg.reply, headers={"Nats-Service-Error-Code": "404"})


async def sends_another_code(nc, msg, shelf):
    if msg.data.decode() in shelf:
        await msg.respond(str(shelf[msg.data.decode()]).encode())
    else:
        await nc.publish(msg.reply, headers={"Nats-Service-Error-Code": "500", "Nats-Service-Error": "unknown"})


async def refuses_with_a_payload(nc, msg, shelf):
    if msg.data.decode() in shelf:
        await msg.respond(str(shelf[msg.data.decode()]).encode())
    else:
        headers = {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "unknown"}
        await nc.publish(msg.reply, b"0", headers=headers)


def refusing(text=str, *, code="404", after=None):
    """Return an answer that is right but for what is named here."""

    async def answer(nc, msg, shelf):
        title = msg.data.decode()
        if title in shelf:
            await nc.publish(msg.reply, text(shelf[title]).encode())
        else:
            await nc.publish(msg.reply, headers={"Nats-Service-Error-Code": code, "Nats-Service-Error": "no such CD"})
        if after is not None:
            after(shelf, title)

    return answer


async def knows_the_shelf_of_the_lesson(nc, msg, shelf):
    await refusing()(nc, msg, {"ok-computer": 12, "homogenic": 3, "urban-hymns": 0})


async def matches_the_beginning(nc, msg, shelf):
    title = next((each for each in shelf if each.startswith(msg.data.decode())), None)
    await refusing()(nc, msg, {msg.data.decode(): shelf[title]} if title else {})


async def ignores_case(nc, msg, shelf):
    title = msg.data.decode()
    known = [each for each in shelf if each.lower() == title.lower()]
    await refusing()(nc, msg, {title: shelf[known[0]]} if known else {})


async def reads_ascii(nc, msg, shelf):
    title = msg.data.decode("ascii", "ignore")
    await refusing()(nc, msg, {msg.data.decode(): shelf[title]} if title in shelf else {})


class Latest:
    msg = None


async def keeps_the_question_in_a_global(nc, msg, shelf):
    Latest.msg = msg
    await asyncio.sleep(0.02)  # work
    await refusing()(nc, Latest.msg, shelf)


async def replies_from_the_question(nc, msg, shelf):
    if msg.data.decode() not in shelf:
        msg.headers.update({"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no such CD"})
    await msg.respond(str(shelf.get(msg.data.decode(), "")).encode())


async def never_returns(nc, msg, shelf):
    await refusing()(nc, msg, shelf)
    await asyncio.Event().wait()


async def replies_to_another(nc, msg, shelf):
    await nc.publish(msg.subject + ".reply", b"12")


async def replaces_the_headers(nc, msg, shelf):
    copies = shelf.get(msg.data.decode())
    refusal = {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "not here"}
    msg.headers = None if copies is not None else refusal
    await msg.respond(b"" if copies is None else b"%d" % copies)


async def replies_in_a_task(nc, msg, shelf):
    async with asyncio.TaskGroup() as group:
        group.create_task(refusing()(nc, msg, shelf))


@pytest.mark.parametrize("answer", [replaces_the_headers, replies_in_a_task, refusing()])
async def test_other_ways_to_refuse_are_right(mesh, answer):
    verdict = await check("2.1", answer)
    assert verdict.state == "correct", verdict


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (knows_the_shelf_of_the_lesson, "björk: vespertine"),
        (refusing(lambda copies: f"{copies} copies"), "the reply b'12 copies' for ok-computer; expected b'12'"),
        (refusing(lambda copies: f"{copies:,}"), "the reply b'1,000' for kind-of-blue; expected b'1000'"),
        (refusing(lambda copies: str(copies or "")), "the reply b'' for urban-hymns; expected b'0'"),
        (refusing(code="4040"), "Nats-Service-Error-Code: 4040 for kind-of-blue; expected"),
        (
            refusing(after=lambda shelf, title: shelf.setdefault(title, 0)),
            "a reply b'0' without the header Nats-Service-Error-Code for kind-of-blue",
        ),
        (refusing(after=lambda shelf, title: shelf.update({title: shelf.get(title, 1) - 1})), "the reply b'11'"),
        (
            refusing(after=lambda shelf, title: shelf.update(sold=0)),
            "the answer changed the shelf; expected questions only",
        ),
        (matches_the_beginning, "a reply b'0' without the header Nats-Service-Error-Code for ok"),
        (ignores_case, "a reply b'0' without the header Nats-Service-Error-Code for OK-Computer"),
        (reads_ascii, "björk: vespertine was refused; expected 10 copies"),
        (keeps_the_question_in_a_global, " among others"),
        (replies_from_the_question, "it raised AttributeError"),
        (
            never_returns,
            "answer() was still at work 1.5 s after a question about ok-computer; expected a reply at once",
        ),
        (replies_to_another, "no reply to a question about ok-computer; expected one"),
        (knows_everything, "it raised KeyError: 'kind-of-blue' (line "),
        (takes_none_for_unknown, "urban-hymns was refused; expected 0 copies"),
        (says_it_in_the_payload, "a reply b'404 no such CD' without the header Nats-Service-Error-Code"),
        (says_nothing, "no reply to a question about kind-of-blue; expected one"),
        (replies_twice, "2 replies to a question about ok-computer; expected one"),
        (sends_no_reason, "a refusal without the header Nats-Service-Error;"),
        (sends_another_code, "Nats-Service-Error-Code: 500 for kind-of-blue; expected"),
        (refuses_with_a_payload, "a refusal with the payload b'0'; expected an empty payload"),
    ],
)
async def test_a_warehouse_that_refuses_badly_is_told_how(mesh, answer, said):
    assert said in await refused("2.1", answer)


# 2.2


async def unsubscribes(sub, working):
    await sub.unsubscribe()


async def unsubscribes_and_waits(sub, working):
    await sub.unsubscribe()
    await working


async def drains(sub, working):
    await sub.drain()


async def drains_and_cancels(sub, working):
    await sub.drain()
    working.cancel()


async def drains_in_the_background(sub, working):
    working.draining = asyncio.create_task(sub.drain())


async def waits_for_an_empty_buffer(sub, working):
    await eventually(lambda: not sub.pending_msgs, within=5.0)
    await asyncio.sleep(0.5)  # work: so long the last order may take, it guesses


async def waits_for_the_loop(sub, working):
    await working


async def cancels_first(sub, working):
    working.cancel()
    await sub.drain()


async def loses_patience(sub, working):
    await sub.drain()
    await asyncio.wait_for(working, 0.01)


def after_a_drain(seconds):
    async def leave(sub, working):
        await sub.drain()
        await asyncio.sleep(seconds)  # work: so long the last order may take, it guesses

    return leave


async def waits_for_an_order_first(sub, working):
    await eventually(lambda: sub.delivered > 0, within=30.0)
    await sub.drain()
    await working


async def cancels_where_nothing_waits(sub, working):
    await sub.drain()
    await asyncio.sleep(0)
    if not sub.pending_msgs:
        working.cancel()
    else:
        await working


async def takes_the_rest_itself(sub, working):
    while sub.pending_msgs:
        await sub.next_msg(timeout=1.0)
    await sub.drain()
    await working


async def gives_up_on_slow_work(sub, working):
    await sub.drain()
    await asyncio.wait({working}, timeout=1.0)


async def polls_until_it_is_done(sub, working):
    await sub.drain()
    while not working.done():
        await asyncio.sleep(0.01)  # pacing


async def waits_with_a_task_group(sub, working):
    async def wait():
        await asyncio.wait({working})

    async with asyncio.TaskGroup() as group:
        group.create_task(wait())
        group.create_task(sub.drain())


@pytest.mark.parametrize("answer", [polls_until_it_is_done, waits_with_a_task_group])
async def test_other_ways_of_leaving_are_right(mesh, answer):
    verdict = await check("2.2", answer)
    assert verdict.state == "correct", verdict


# They mostly wait: a few are tried side by side.
LEAVING_BADLY = [
    (after_a_drain(0.3), "worker-2 was still packing the last order when leave() returned"),
    (after_a_drain(1.0), "worker-2 was still packing the last order when leave() returned"),
    (after_a_drain(1.6), "leave() was still waiting 1.5 s later"),
    (waits_for_an_order_first, "leave() was still waiting for an idle worker; expected an end of the subscription"),
    (cancels_where_nothing_waits, "worker-2 was still packing the last order when leave() returned"),
    (takes_the_rest_itself, "worker-2 left with orders in its buffer"),
    (gives_up_on_slow_work, "worker-2 was still packing the last order when leave() returned"),
    (unsubscribes, "worker-2 left with orders in its buffer; expected all 30 packed"),
    (unsubscribes_and_waits, "the 10 orders on their way to worker-2 were packed by nobody"),
    (drains, "worker-2 was still packing the last order when leave() returned"),
    (drains_and_cancels, "worker-2 was still packing the last order when leave() returned"),
    (drains_in_the_background, "worker-2 left with orders in its buffer"),
    (waits_for_an_empty_buffer, "the server still deals orders to worker-2"),
    (waits_for_the_loop, "leave() was still waiting 1.5 s later; expected an end of the subscription first"),
    (cancels_first, "leave() was still waiting 1.5 s later"),
    (loses_patience, "it raised TimeoutError"),
]


@pytest.mark.parametrize("wrong", [LEAVING_BADLY[at::4] for at in range(4)])
async def test_a_worker_that_leaves_badly_is_told_what_was_lost(mesh, wrong):
    verdicts = await refused_side_by_side("2.2", *(answer for answer, _ in wrong))
    for (_, said), verdict in zip(wrong, verdicts, strict=True):
        assert said in verdict


async def test_any_way_of_leaving_in_good_order_is_right(mesh):
    async def both_at_once(sub, working):
        await asyncio.gather(sub.drain(), working)

    assert (await check("2.2", both_at_once)).state == "correct"


# 2.3


async def asks_the_first(nc, subject, question, expected, within):
    return json.loads((await nc.request(subject, question, timeout=within)).data)


async def gather(nc, subject, question, expected, within, *, each=False, unsubscribe=True, refusals=True):
    """Return the offers; the wrong answers below leave out one thing each."""
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    await nc.publish(subject, question, reply=inbox)
    offers = []
    try:
        async with asyncio.timeout(None if each else within):
            while len(offers) < expected:
                reply = await replies.next_msg(timeout=within if each else None)
                if refusals and reply.headers and reply.headers.get("Status") == "503":
                    break
                offers.append(json.loads(reply.data))
    except TimeoutError:
        pass
    finally:
        if unsubscribe:
            await replies.unsubscribe()
    return offers


def cheapest_of(offers):
    return min(offers, key=lambda offer: offer["cents"], default=None)


async def waits_for_the_deadline(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, 1_000, within))


async def waits_for_everybody(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, 3_600))


async def waits_for_each(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, within, each=True))


async def takes_the_dearest(nc, subject, question, expected, within):
    return max(await gather(nc, subject, question, expected, within), key=lambda offer: offer["cents"])


async def returns_the_price(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, within))["cents"]


async def stays_subscribed(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, within, unsubscribe=False))


async def stays_where_nobody_listens(nc, subject, question, expected, within):
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    await nc.publish(subject, question, reply=inbox)
    offers = []
    try:
        async with asyncio.timeout(within):
            while len(offers) < expected:
                reply = await replies.next_msg(timeout=None)
                if reply.headers:
                    return None
                offers.append(json.loads(reply.data))
    except TimeoutError:
        pass
    await replies.unsubscribe()
    return cheapest_of(offers)


def by(key):
    async def cheapest(nc, subject, question, expected, within):
        return min(await gather(nc, subject, question, expected, within), key=key, default=None)

    return cheapest


async def expects_four(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, 4, within))


async def waits_for_400_ms(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, 0.4))


async def asks_its_own_question(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, b"order 000002", expected, within))


async def asks_twice(nc, subject, question, expected, within):
    await gather(nc, subject, question, expected, within)
    return cheapest_of(await gather(nc, subject, question, expected, within))


async def copies_two_fields(nc, subject, question, expected, within):
    offer = cheapest_of(await gather(nc, subject, question, expected, within))
    return offer and {"carrier": offer["carrier"], "cents": offer["cents"]}


async def forgets_what_is_free(nc, subject, question, expected, within):
    offers = await gather(nc, subject, question, expected, within)
    return min((offer for offer in offers if offer["cents"]), key=lambda offer: offer["cents"], default=None)


async def takes_the_last(nc, subject, question, expected, within):
    return next(iter(reversed(await gather(nc, subject, question, expected, within))), None)


async def keeps_offers_in_a_global(nc, subject, question, expected, within, kept=[]):  # noqa: B006 - its mistake
    kept.clear()
    kept.extend(await gather(nc, subject, question, expected, within))
    await asyncio.sleep(0.05)  # work
    return cheapest_of(kept)


async def gives_up_at_the_first_silence(nc, subject, question, expected, within):
    inbox = nc.new_inbox()
    replies, offers = await nc.subscribe(inbox), []
    await nc.publish(subject, question, reply=inbox)
    try:
        while len(offers) < expected:
            reply = await replies.next_msg(timeout=min(within, 0.2) if offers else within)
            if not reply.data:
                break
            offers.append(json.loads(reply.data))
    except nats.errors.TimeoutError:
        pass
    await replies.unsubscribe()
    return cheapest_of(offers)


async def listens_with_a_callback(nc, subject, question, expected, within):
    offers, enough = [], asyncio.Event()

    async def take(msg):
        if msg.data:
            offers.append(json.loads(msg.data))
        if len(offers) >= expected or not msg.data:
            enough.set()

    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox, cb=take)
    try:
        await nc.publish(subject, question, reply=inbox)
        await asyncio.wait_for(enough.wait(), within)
    except TimeoutError:
        pass
    finally:
        await replies.unsubscribe()
    return cheapest_of(offers)


async def iterates_in_a_task_group(nc, subject, question, expected, within):
    inbox = nc.new_inbox()
    replies, offers = await nc.subscribe(inbox), []

    async def listen():
        async for msg in replies.messages:
            if msg.headers and msg.headers.get("Status") == "503":
                return
            offers.append(json.loads(msg.data))
            if len(offers) == expected:
                return

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        await nc.publish(subject, question, reply=inbox)
        await asyncio.wait({listening}, timeout=within)
        listening.cancel()
    await replies.unsubscribe()
    return cheapest_of(offers)


@pytest.mark.parametrize("answer", [listens_with_a_callback, iterates_in_a_task_group])
async def test_other_ways_to_the_cheapest_offer_are_right(mesh, answer):
    verdict = await check("2.3", answer)
    assert verdict.state == "correct", verdict


async def believes_the_server(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, within, refusals=False))


async def finds_the_least_of_none(nc, subject, question, expected, within):
    try:
        offers = await gather(nc, subject, question, expected, within, refusals=False)
    except json.JSONDecodeError:  # the server's empty word that nobody listens
        return None
    return min(offers, key=lambda offer: offer["cents"])


async def returns_a_list(nc, subject, question, expected, within):
    return cheapest_of(await gather(nc, subject, question, expected, within)) or []


async def raises_at_the_deadline(nc, subject, question, expected, within):
    async with asyncio.timeout(within):
        return cheapest_of(await gather(nc, subject, question, expected, 3_600))


# They mostly wait: a few are tried side by side.
NOT_THE_CHEAPEST = [
    (asks_the_first, "{'carrier': 'north', 'cents': 480} when all 4 answered, the cheapest last"),
    (takes_the_dearest, "{'carrier': 'north', 'cents': 480} when all 4 answered"),
    (returns_the_price, "420 when all 4 answered, the cheapest last; expected {'carrier': 'west', 'cents': 420}"),
    (waits_for_the_deadline, "it went on waiting when all 4 carriers had answered"),
    (waits_for_each, "it took an offer that came after the deadline"),
    (waits_for_everybody, "it took an offer that came after the deadline"),
    (stays_subscribed, "it left an inbox subscribed; expected nothing left behind"),
    (stays_where_nobody_listens, "it left an inbox subscribed; expected nothing left behind"),
    (believes_the_server, "it raised JSONDecodeError"),
    (returns_a_list, "[] where no carrier listens; expected None"),
    (raises_at_the_deadline, "it raised TimeoutError"),
    (finds_the_least_of_none, "it raised ValueError"),
    (
        by(lambda offer: str(offer["cents"])),
        "when 3 answered with 10000, 950 and 1000 cents; expected {'carrier': 'nord'",
    ),
    (by(lambda offer: offer["carrier"]), "'cents': 450} when all 4 answered, the cheapest last; expected"),
    (takes_the_last, "when 3 answered with 10000, 950 and 1000 cents; expected {'carrier': 'nord'"),
    (expects_four, "it went on waiting when all 3 carriers had answered; expected an end with offer 3"),
    (waits_for_400_ms, "when one of 2 came 0.6 s before a deadline of 1.2 s; expected {'carrier': 'west'"),
    (gives_up_at_the_first_silence, "when one of 2 came 0.6 s before a deadline of 1.2 s; expected"),
    (asks_its_own_question, "the carriers were asked ['order 000002'] when all 4 answered"),
    (asks_twice, "the carriers were asked ['order 000004', 'order 000004'] when all 4 answered"),
    (copies_two_fields, "{'carrier': 'nord', 'cents': 950} when 3 answered"),
    (forgets_what_is_free, "{'carrier': 'north', 'cents': 1} when one of 2 took nothing"),
    (keeps_offers_in_a_global, ", with other questions at the same time; expected"),
]


@pytest.mark.parametrize("wrong", [NOT_THE_CHEAPEST[at::4] for at in range(4)])
async def test_a_search_for_the_cheapest_offer_is_told_what_it_missed(mesh, wrong):
    verdicts = await refused_side_by_side("2.3", *(answer for answer, _ in wrong))
    for (_, said), verdict in zip(wrong, verdicts, strict=True):
        assert said in verdict


async def test_an_answer_that_asks_in_vain_is_shown_what_it_raised(mesh):
    async def falls_back_on_request(nc, subject, question, expected, within):
        offers = await gather(nc, subject, question, expected, within)
        return cheapest_of(offers) or json.loads((await nc.request(subject, question)).data)

    assert f"it raised {nats.errors.NoRespondersError.__name__}" in await refused("2.3", falls_back_on_request)
