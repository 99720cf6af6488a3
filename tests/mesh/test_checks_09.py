"""The exercises of notebook 09: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json

import nats.errors
import pytest
from exercise_cells import ExerciseCells, accepted, refused, refused_side_by_side
from nats.js.errors import APIError

from mesh_lab.errors import PublishRefusedError
from mesh_lab.patterns import WindowedPublisher

CELLS = ExerciseCells("09_batch_and_compress", asyncio=asyncio, json=json, WindowedPublisher=WindowedPublisher)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests(
    twice=("9.2",)
)


# 9.1


def patience_s(messages):
    """Return how long an answer is waited for: one of three never comes, and a machine under load answers late."""
    return 3.0 if len(messages) < 10 else 20.0


def windowed(
    *, failed="refused", unknown="unknown", stored="stored", msg_id_of=lambda msg_id, subject: msg_id, more=()
):
    """Publish by the windowed publisher, with words of one's own."""

    async def publish_all(nc, messages):
        told = dict(more)

        def note(msg_id, word):
            if word:
                told[msg_id] = word

        async with WindowedPublisher(nc, ack_timeout=0.5, retry_for=patience_s(messages)) as publisher:
            for msg_id, subject, payload in messages:
                await publisher.publish(
                    subject,
                    payload,
                    msg_id=msg_id_of(msg_id, subject),
                    on_stored=lambda ack, msg_id=msg_id: note(msg_id, stored),
                    on_failed=lambda err, msg_id=msg_id: note(
                        msg_id, failed if isinstance(err, PublishRefusedError) else unknown
                    ),
                )
        return told

    return publish_all


async def lets_the_first_refusal_end_it(nc, messages):
    told = {}
    async with WindowedPublisher(nc) as publisher:
        for msg_id, subject, payload in messages:
            await publisher.publish(subject, payload, msg_id=msg_id)
            told[msg_id] = "stored"
    return told


async def stops_when_one_is_refused(nc, messages):
    told = {}
    async with WindowedPublisher(nc) as publisher:
        for msg_id, subject, payload in messages:
            if "refused" in told.values():
                break
            await publisher.publish(
                subject,
                payload,
                msg_id=msg_id,
                on_stored=lambda ack, msg_id=msg_id: told.update({msg_id: "stored"}),
                on_failed=lambda err, msg_id=msg_id: told.update({msg_id: "refused"}),
            )
    return {msg_id: told.get(msg_id, "refused") for msg_id, _, _ in messages}


def gathered(*, at_a_time=500, ids=True, duplicate="stored", silent="unknown", stops=False):
    """Publish by js.publish, a number at a time."""

    async def publish_all(nc, messages):
        js, told = nc.jetstream(timeout=patience_s(messages)), {}

        async def publish(msg_id, subject, payload):
            try:
                ack = await js.publish(subject, payload, headers={"Nats-Msg-Id": msg_id} if ids else None)
                told[msg_id] = duplicate if ack.duplicate else "stored"
            except APIError:
                told[msg_id] = "refused"
            except nats.errors.TimeoutError:
                told[msg_id] = silent

        for start in range(0, len(messages), at_a_time):
            await asyncio.gather(*(publish(*message) for message in messages[start : start + at_a_time]))
            if stops and "refused" in told.values():
                break
        return told

    return publish_all


async def asks_for_no_answer(nc, messages):
    for msg_id, subject, payload in messages:
        await nc.publish(subject, payload, headers={"Nats-Msg-Id": msg_id})
    await nc.flush()
    return {msg_id: "stored" if len(payload) <= 64 else "refused" for msg_id, _, payload in messages}


def knows_the_limit(most):
    async def publish_all(nc, messages):
        told = await windowed()(nc, messages)
        return {
            msg_id: told[msg_id] if told[msg_id] == "unknown" else "stored" if len(payload) <= most else "refused"
            for msg_id, _, payload in messages
        }

    return publish_all


async def waits_for_ever(nc, messages):
    inbox, told = nc.new_inbox(), {}
    answers = await nc.subscribe(f"{inbox}.*")
    for number, (msg_id, subject, payload) in enumerate(messages):
        await nc.publish(subject, payload, reply=f"{inbox}.{number}", headers={"Nats-Msg-Id": msg_id})
    for _ in messages:
        answer = await answers.next_msg(timeout=2)
        number = int(answer.subject.rpartition(".")[2])
        told[messages[number][0]] = "refused" if "error" in json.loads(answer.data) else "stored"
    await answers.unsubscribe()
    return told


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (windowed(failed="stored"), "id-3 was called 'stored'; expected 'refused', as the server said"),
        (windowed(stored="refused"), "id-0 was called 'refused'; expected 'stored', as the server said"),
        (windowed(failed=""), "nothing was said of id-3"),
        (windowed(stored=""), "nothing was said of id-0"),
        (windowed(unknown="refused"), "b was called 'refused'; expected 'unknown', since no answer came"),
        (windowed(unknown=""), "nothing was said of "),
        (windowed(stored="Stored"), "id-0 was called 'Stored'; expected 'stored'"),
        (windowed(more={"id-none": "stored"}), "there are words for ids that no message has"),
        (windowed(msg_id_of=lambda msg_id, subject: subject), "a message was sent under another Nats-Msg-Id"),
        (windowed(msg_id_of=lambda msg_id, subject: f"{msg_id}-1"), "a message was sent under another Nats-Msg-Id"),
        (knows_the_limit(100), "id-11 was called 'stored'; expected 'refused'"),
        (lets_the_first_refusal_end_it, "it raised PublishRefusedError"),
        (stops_when_one_is_refused, "some messages that the stream takes are not in it; expected one that is refused"),
        (gathered(at_a_time=1, stops=True), "some messages that the stream takes are not in it"),
        (gathered(ids=False), "a message was sent without Nats-Msg-Id"),
        (gathered(duplicate="refused"), "id-5 was called 'refused'; expected 'stored'"),
        (gathered(silent="stored"), "b was called 'stored'; expected 'unknown', since no answer came"),
        (gathered(at_a_time=1), "each message waited for the answer to the one before"),
        (asks_for_no_answer, "the messages were sent without a subject for the reply; expected an answer for each"),
        (waits_for_ever, "it raised TimeoutError: nats: timeout"),
    ],
    ids=[
        *("all stored", "none stored", "only the stored", "only the refused", "unanswered is refused"),
        *("nothing of the unanswered", "a capital", "one word more", "subjects as ids", "other ids", "knows the limit"),
        *("raises", "stops", "one by one, and stops", "no ids", "twice is refused", "unanswered is stored"),
        *("one by one", "fire and forget", "an answer to all"),
    ],
)
async def test_an_end_that_is_not_known_is_noticed(mesh, answer, said):
    assert said in await refused("9.1", answer)


async def by_one_inbox(nc, messages):
    inbox, told = nc.new_inbox(), {msg_id: "unknown" for msg_id, _, _ in messages}
    all_there, waiting = asyncio.Event(), set(range(len(messages)))

    async def note(answer):
        number = int(answer.subject.rpartition(".")[2])
        told[messages[number][0]] = "refused" if "error" in json.loads(answer.data) else "stored"
        waiting.discard(number)
        if not waiting:
            all_there.set()

    answers = await nc.subscribe(f"{inbox}.*", cb=note)
    for number, (msg_id, subject, payload) in enumerate(messages):
        await nc.publish(subject, payload, reply=f"{inbox}.{number}", headers={"Nats-Msg-Id": msg_id})
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_there.wait(), 1.5)
    await answers.unsubscribe()
    return told


@pytest.mark.parametrize("answer", [windowed(), gathered(at_a_time=100), by_one_inbox])
async def test_an_end_that_is_known_in_another_way_is_accepted(mesh, answer):
    await accepted("9.1", answer)


# 9.2


def by_headers(
    *,
    first=1,
    commit=lambda number, count: number == count,
    id_of=lambda own, number: own,
    told=None,
    more=lambda more: more,
    change=lambda messages: messages,
    sequence=str,
):
    """A batch that differs from the solution in one way."""

    async def store(nc, messages):
        own, answer = nc.new_inbox()[-12:], None
        messages = change(messages)
        for number, (subject, payload, given) in enumerate(messages, start=first):
            headers = {**more(given), "Nats-Batch-Id": id_of(own, number), "Nats-Batch-Sequence": sequence(number)}
            if commit(number, first + len(messages) - 1):
                headers["Nats-Batch-Commit"] = "1"
            if number == first + len(messages) - 1:
                answer = await nc.request(subject, payload, timeout=1.0, headers=headers)
            else:
                await nc.publish(subject, payload, headers=headers)
        if told is not None:
            return told(answer)
        return bool(answer.data) and "error" not in json.loads(answer.data)

    return store


async def publishes_one_by_one(nc, messages):
    try:
        for subject, payload, headers in messages:
            await nc.jetstream().publish(subject, payload, headers=headers)
    except APIError:
        return False
    return True


async def looks_before_it_publishes(nc, messages):
    if any("99" in headers.values() for _, _, headers in messages):
        return False
    return await publishes_one_by_one(nc, messages)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (publishes_one_by_one, "message 1 of three messages was stored by itself"),
        (looks_before_it_publishes, "message 1 of three messages was stored by itself"),
        (by_headers(first=0), "messages were stored of three messages; expected 3"),
        (by_headers(commit=lambda number, count: False), "messages were stored of three messages"),
        (by_headers(commit=lambda number, count: number == 1), "messages were stored of three messages; expected 3"),
        (by_headers(commit=lambda number, count: number == 3), "0 messages were stored of a condition that holds"),
        (by_headers(id_of=lambda own, number: f"{own}{number}"), "messages were stored of three messages; expected 3"),
        (by_headers(id_of=lambda own, number: "batch"), "two batches were sent under the same Nats-Batch-Id"),
        (by_headers(told=lambda answer: True), "that does not hold, True was returned; expected False"),
        (by_headers(told=lambda answer: False), "for three messages, False was returned; expected True"),
        (by_headers(told=lambda answer: None), "for three messages, None was returned; expected True"),
        (by_headers(told=lambda answer: answer), "for three messages, Msg was returned; expected True"),
        (by_headers(more=lambda more: {}), "with a condition in the second that does not hold, 3 of 3 messages were"),
        (
            by_headers(more=lambda more: {name: value for name, value in more.items() if name.startswith("Nats")}),
            "message 2 of a condition that holds is stored without its header Colour",
        ),
        (by_headers(sequence=lambda number: str(number)[-1]), "messages were stored of twelve messages; expected 12"),
        (by_headers(change=sorted), "message 1 of three messages is stored with another subject"),
        (by_headers(change=lambda messages: messages[::-1]), "of three messages is stored with another subject"),
        (
            by_headers(
                change=lambda messages: [(subject, payload or b"-", more) for subject, payload, more in messages]
            ),
            "message 12 of twelve messages is stored with another subject or payload",
        ),
        (by_headers(change=lambda messages: messages[:9]), "9 messages were stored of twelve messages"),
    ],
    ids=[
        *("one by one", "looks first", "from 0", "no commit", "commit first", "commit third", "an id each", "one id"),
        *("True", "False", "None", "the answer", "no headers", "its own headers", "one digit", "sorted", "backwards"),
        *("never empty", "nine"),
    ],
)
async def test_a_batch_that_is_none_is_noticed(mesh, answer, said):
    assert said in await refused("9.2", answer)


async def asks_with_each(nc, messages):
    batch = f"batch-{id(messages)}-{nc.new_inbox()}"[-40:]
    for number, (subject, payload, more) in enumerate(messages, start=1):
        headers = more | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": f"{number}"}
        headers |= {"Nats-Batch-Commit": "1"} if number == len(messages) else {}
        answer = await nc.request(subject, payload, headers=headers, timeout=5)
        if b'"error"' in answer.data:
            return False
    return json.loads(answer.data)["count"] == len(messages)


@pytest.mark.parametrize("answer", [by_headers(told=lambda answer: json.loads(answer.data)["seq"] > 0), asks_with_each])
async def test_a_batch_that_is_sent_in_another_way_is_accepted(mesh, answer):
    await accepted("9.2", answer)


# 9.3


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


def timed(
    *,
    size_of=lambda size: size,
    patience_of=lambda patience: patience,
    falsy=False,
    ends_empty=False,
    ticks=False,
    goes_on=False,
    kind=list,
    same=False,
):
    """Lists that differ from the solution's in one way."""

    async def fill(queue, size, patience):
        loop, ended, filled = asyncio.get_running_loop(), False, []
        started = loop.time()
        while not ended:
            filled = filled if same else []
            filled.clear()
            until = None
            if ticks:
                until = started + (int((loop.time() - started) / patience) + 1) * patience
            try:
                async with asyncio.timeout_at(until) as limit:
                    while len(filled) < size_of(size):
                        order = await queue.get()
                        if (not order and order != 0) if falsy else order is None:
                            ended = not goes_on
                            break
                        if not filled and limit.when() is None:
                            limit.reschedule(loop.time() + patience_of(patience))
                        filled.append(order)
            except TimeoutError:
                pass
            if filled:
                yield filled if same else kind(filled)
        if ends_empty:
            yield []

    return fill


async def gives_what_it_has(queue, size, patience):
    """Let an empty list leave when no first order came in all the time."""
    first = True
    async for filled in timed()(queue, size, patience):
        if first and filled == [0] and patience == 0.2:
            yield []
        first = False
        yield filled


async def empties_the_queue(queue, size, patience):
    ended = False
    while not ended:
        filled = [await queue.get()]
        if filled == [None]:
            return
        if len(filled) < size and queue.empty():
            await asyncio.sleep(patience)  # pacing: others may come
        while not queue.empty() and not ended:
            ended = (order := queue.get_nowait()) is None
            filled += [] if ended else [order]
        yield filled


# They mostly wait: a few are tried side by side.
AT_THE_WRONG_TIME = [
    (
        waits_until_it_is_full,
        "of an order that came alone, nothing in time left; expected [0] 0.4 s",
    ),
    (looks_at_the_clock_when_an_order_comes, "of an order that came alone, nothing in time left"),
    (starts_the_clock_anew, "of orders that came one by one, nothing in time left; expected [0, 1, 2] 0.4 s after"),
    (drops_what_was_begun, "of seven orders at once, the end left; expected [6] at the end"),
    (sends_each_by_itself, "of seven orders at once, [6] left too early; expected [6] at the end"),
    (
        empties_the_queue,
        "of seven orders at once, [0, 1, 2, 3, 4, 5, 6] left; expected",
    ),
    (timed(ends_empty=True), "of seven orders at once, after all others [] left; expected the end"),
    (gives_what_it_has, "when nothing had come for a while, an empty list left; expected [0] at the end"),
    (timed(ticks=True), "of an order that came alone, [0] left too early"),
    (timed(falsy=True), "of orders that are empty, [0] left"),
    (timed(goes_on=True), "of seven orders at once, after all others nothing in time left; expected the end"),
    (timed(kind=tuple), "of seven orders at once, (0, 1, 2) left; expected [0, 1, 2]"),
    (timed(kind=sorted), "it raised TypeError"),
    (timed(kind=lambda orders: orders[::-1]), "of seven orders at once, [2, 1, 0] left"),
    (timed(size_of=lambda size: size + 1), "of seven orders at once, [0, 1, 2, 3] left"),
    (timed(size_of=lambda size: 3), "of orders that came one by one, [0, 1, 2] left too early"),
    (timed(patience_of=lambda patience: 0.4), "of an order that may wait longer, [0] left too early"),
    (timed(patience_of=lambda patience: patience * 2), "of an order that came alone, nothing in time left"),
    (timed(patience_of=lambda patience: patience / 2), "of an order that came alone, [0] left too early"),
    (timed(patience_of=lambda patience: 0.0), "left too early"),
]


@pytest.mark.parametrize("wrong", [AT_THE_WRONG_TIME[at::4] for at in range(4)])
async def test_a_batch_that_leaves_at_the_wrong_time_is_noticed(mesh, wrong):
    verdicts = await refused_side_by_side("9.3", *(answer for answer, _ in wrong))
    for (_, said), verdict in zip(wrong, verdicts, strict=True):
        assert said in verdict


async def with_a_task_for_the_next(queue, size, patience):
    loop, getting = asyncio.get_running_loop(), asyncio.create_task(queue.get())
    filled, until = [], None
    try:
        while True:
            done, _ = await asyncio.wait([getting], timeout=until and max(0, until - loop.time()))
            if done and (order := getting.result()) is None:
                break
            if done:
                until = until or loop.time() + patience
                filled.append(order)
                getting = asyncio.create_task(queue.get())
            if not done or len(filled) == size:
                yield filled
                filled, until = [], None
        if filled:
            yield filled
    finally:
        getting.cancel()


@pytest.mark.parametrize("answer", [timed(), with_a_task_for_the_next])
async def test_a_batch_that_waits_in_another_way_is_accepted(mesh, answer):
    await accepted("9.3", answer)
