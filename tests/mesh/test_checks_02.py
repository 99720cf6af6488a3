"""The exercises of notebook 02: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import json

import nats.errors
import pytest
from exercise_cells import ExerciseCells, refused

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


@pytest.mark.parametrize(
    ("answer", "said"),
    [
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


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (unsubscribes, "worker-2 left with orders in its buffer; expected all 30 packed"),
        (unsubscribes_and_waits, "the 10 orders on their way to worker-2 were packed by nobody"),
        (drains, "worker-2 was still packing the last order when leave() returned"),
        (drains_and_cancels, "worker-2 was still packing the last order when leave() returned"),
        (drains_in_the_background, "worker-2 left with orders in its buffer"),
        (waits_for_an_empty_buffer, "the server still deals orders to worker-2"),
        (waits_for_the_loop, "leave() was still waiting 1.5 s later; expected an end of the subscription first"),
        (cancels_first, "leave() was still waiting 1.5 s later"),
        (loses_patience, "it raised TimeoutError"),
    ],
)
async def test_a_worker_that_leaves_badly_is_told_what_was_lost(mesh, answer, said):
    assert said in await refused("2.2", answer)


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
    try:
        if (await replies.next_msg(timeout=within)).headers:
            return None
    except nats.errors.TimeoutError:
        pass
    await replies.unsubscribe()
    return cheapest_of(await gather(nc, subject, question, expected, within))


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


@pytest.mark.parametrize(
    ("answer", "said"),
    [
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
    ],
)
async def test_a_search_for_the_cheapest_offer_is_told_what_it_missed(mesh, answer, said):
    assert said in await refused("2.3", answer)


async def test_an_answer_that_asks_in_vain_is_shown_what_it_raised(mesh):
    async def falls_back_on_request(nc, subject, question, expected, within):
        offers = await gather(nc, subject, question, expected, within)
        return cheapest_of(offers) or json.loads((await nc.request(subject, question)).data)

    assert f"it raised {nats.errors.NoRespondersError.__name__}" in await refused("2.3", falls_back_on_request)
