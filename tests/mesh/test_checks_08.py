"""The exercises of notebook 08: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import json

import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.errors import APIError

from mesh_lab.patterns import WindowedPublisher

CELLS = ExerciseCells("08_batch_and_compress", asyncio=asyncio, json=json, WindowedPublisher=WindowedPublisher)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


# 8.1


async def calls_everything_stored(nc, messages):
    async with WindowedPublisher(nc) as publisher:
        for msg_id, subject, payload in messages:
            await publisher.publish(subject, payload, msg_id=msg_id, on_failed=lambda err: None)
    return {msg_id: "stored" for msg_id, _, _ in messages}


async def lets_the_first_refusal_end_it(nc, messages):
    told = {}
    async with WindowedPublisher(nc) as publisher:
        for msg_id, subject, payload in messages:
            await publisher.publish(subject, payload, msg_id=msg_id)
            told[msg_id] = "stored"
    return told


async def waits_for_each(nc, messages, *, stops=False):
    told = {}
    for msg_id, subject, payload in messages:
        try:
            await nc.jetstream().publish(subject, payload, headers={"Nats-Msg-Id": msg_id})
            told[msg_id] = "stored"
        except APIError:
            told[msg_id] = "refused"
            if stops:
                break
    return told


async def stops_at_a_refusal(nc, messages):
    return await waits_for_each(nc, messages, stops=True)


async def sends_no_ids(nc, messages):
    told = {}
    for msg_id, subject, payload in messages:
        try:
            await nc.jetstream().publish(subject, payload)
            told[msg_id] = "stored"
        except APIError:
            told[msg_id] = "refused"
    return told


async def refuses_what_comes_twice(nc, messages):
    told = {}
    for msg_id, subject, payload in messages:
        try:
            ack = await nc.jetstream().publish(subject, payload, headers={"Nats-Msg-Id": msg_id})
            told[msg_id] = "refused" if ack.duplicate else "stored"
        except APIError:
            told[msg_id] = "refused"
    return told


async def tells_of_the_stored_ones_only(nc, messages):
    told = {}
    async with WindowedPublisher(nc) as publisher:
        for msg_id, subject, payload in messages:
            await publisher.publish(
                subject,
                payload,
                msg_id=msg_id,
                on_stored=lambda ack, msg_id=msg_id: told.update({msg_id: "stored"}),
                on_failed=lambda err: None,
            )
    return told


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (calls_everything_stored, "id-3 was called 'stored'; expected 'refused'"),
        (lets_the_first_refusal_end_it, "it raised PublishRefusedError"),
        (stops_at_a_refusal, "3 messages in the stream; expected 18: one that is refused does not stop"),
        (sends_no_ids, "19 messages in the stream, one of them twice; expected 18"),
        (refuses_what_comes_twice, "id-5 was called 'refused'; expected 'stored'"),
        (tells_of_the_stored_ones_only, "nothing was said of id-3"),
        (waits_for_each, "each message waited for the answer to the one before"),
    ],
)
async def test_an_end_that_is_not_known_is_noticed(mesh, answer, said):
    assert said in await refused("8.1", answer)


# 8.2


def by_headers(*, first: int = 1, commit_at: int | None = -1, same_id: bool = True, told=None):
    async def store(nc, messages):
        batch = nc.new_inbox()[-12:]
        answer = None
        for number, (subject, payload, more) in enumerate(messages, start=first):
            identity = batch if same_id else f"{batch}{number}"
            headers = {**more, "Nats-Batch-Id": identity, "Nats-Batch-Sequence": str(number)}
            last = number == first + len(messages) - 1
            if commit_at is not None and (last if commit_at == -1 else number == commit_at):
                headers["Nats-Batch-Commit"] = "1"
            if last:
                answer = await nc.request(subject, payload, timeout=1.0, headers=headers)
            else:
                await nc.publish(subject, payload, headers=headers)
        if told is not None:
            return told
        return bool(answer.data) and "error" not in json.loads(answer.data)

    return store


async def publishes_one_by_one(nc, messages):
    try:
        for subject, payload, headers in messages:
            await nc.jetstream().publish(subject, payload, headers=headers)
    except APIError:
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (publishes_one_by_one, "message 1 of three messages was stored by itself"),
        (by_headers(first=0), "messages were stored of three messages; expected 3"),
        (by_headers(commit_at=None), "messages were stored of three messages"),
        (by_headers(commit_at=1), "messages were stored of three messages; expected 3"),
        (by_headers(same_id=False), "messages were stored of three messages; expected 3"),
        (by_headers(told=True), "that does not hold, True was returned; expected False"),
        (by_headers(told=False), "for three messages, False was returned; expected True"),
    ],
)
async def test_a_batch_that_is_none_is_noticed(mesh, answer, said):
    assert said in await refused("8.2", answer)


# 8.3


async def waits_until_it_is_full(queue, size, patience):
    filled = []
    while (order := await queue.get()) is not None:
        filled.append(order)
        if len(filled) == size:
            yield filled
            filled = []
    if filled:
        yield filled


async def looks_at_the_clock_when_an_order_comes(queue, size, patience):
    filled, loop = [], asyncio.get_running_loop()
    while (order := await queue.get()) is not None:
        until = until if filled else loop.time() + patience  # noqa: F821 (set with the first order of a batch)
        filled.append(order)
        if len(filled) == size or loop.time() >= until:
            yield filled
            filled = []
    if filled:
        yield filled


async def starts_the_clock_anew(queue, size, patience):
    filled = []
    while True:
        try:
            order = await asyncio.wait_for(queue.get(), patience)
        except TimeoutError:
            if filled:
                yield filled
            filled = []
            continue
        if order is None:
            break
        filled.append(order)
        if len(filled) == size:
            yield filled
            filled = []
    if filled:
        yield filled


async def drops_what_was_begun(queue, size, patience):
    while True:
        filled, until = [await queue.get()], asyncio.get_running_loop().time() + patience
        try:
            async with asyncio.timeout_at(until):
                while len(filled) < size:
                    filled.append(await queue.get())
        except TimeoutError:
            pass
        if None in filled:
            return
        yield filled


async def sends_each_by_itself(queue, size, patience):
    filled = []
    while (order := await queue.get()) is not None:
        filled.append(order)
        if len(filled) == size or queue.empty():
            yield filled
            filled = []


async def ends_with_an_empty_one(queue, size, patience):
    ended = False
    while not ended:
        filled, until = [], asyncio.get_running_loop().time() + patience
        try:
            async with asyncio.timeout_at(until):
                while len(filled) < size and not ended:
                    order = await queue.get()
                    ended = order is None
                    filled += [] if ended else [order]
        except TimeoutError:
            pass
        yield filled
    yield []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (waits_until_it_is_full, "of an order that came alone: nothing in time"),
        (looks_at_the_clock_when_an_order_comes, "of an order that came alone: nothing in time"),
        (starts_the_clock_anew, "the first order's clock does not start anew"),
        (drops_what_was_begun, "at the end came nothing in time; expected [6]"),
        (sends_each_by_itself, "at the end came"),
        (ends_with_an_empty_one, "after the end came []"),
    ],
)
async def test_a_batch_that_leaves_at_the_wrong_time_is_noticed(mesh, answer, said):
    assert said in await refused("8.3", answer)
