"""The exercises of notebook 13: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json
import random
import time

import pytest
from exercise_cells import ExerciseCells, accepted, refused
from nats.js.errors import APIError, NotFoundError

from mesh_lab.orders import encode

FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}
CELLS = ExerciseCells(
    "13_process_each_order_once", imports=("nats.js.errors", "mesh_lab.orders"), asyncio=asyncio, FIRST=FIRST
)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def paying(
    *,
    key=lambda order: f"{order.id}.paid",
    headers=lambda order: FIRST,
    order_of=("charge", "publish"),
    done=lambda err: getattr(err, "err_code", 0) == 10071,
    again=lambda err: getattr(err, "err_code", 0) == 10164,
    bank_errors=(),
    subject=lambda order: order.subject("paid"),
    looks="never",
    send=None,
    lock=None,
    known=None,
):
    """A way to pay that differs from the solution in one point."""

    async def is_there(js, order):
        held = (await js.stream_info("PAID", subjects_filter=order.subject("paid"))).state.subjects
        return bool(held)

    async def publish(js, order):
        if known is not None and order.id in known:
            return
        if looks == "before publishing" and await is_there(js, order):
            return
        while True:
            try:
                if send is not None:
                    await send(js, order)
                else:
                    await js.publish(subject(order), encode(order), headers=headers(order))
                break
            except APIError as err:
                if done(err):
                    break
                if not again(err):
                    raise
            await asyncio.sleep(0.05)  # pacing
        if known is not None:
            known.add(order.id)

    async def pay(js, order, charge):
        async with lock if lock is not None else contextlib.nullcontext():
            if looks == "before all" and await is_there(js, order):
                return
            for step in order_of:
                if step == "publish":
                    await publish(js, order)
                else:
                    with contextlib.suppress(*bank_errors):
                        await charge(key(order))

    return pay


async def tidies_up(js, order, charge):
    await paying(headers=lambda order: None)(js, order, charge)
    await js.purge_stream("PAID", subject=order.subject("paid"), keep=1)


async def keeps_the_last(js, order, charge):
    await charge(order.id)
    await js.update_stream((await js.stream_info("PAID")).config, max_msgs_per_subject=1)
    await js.publish(order.subject("paid"), encode(order))


async def fires_and_forgets(js, order, charge):
    await charge(order.id)
    await js._nc.publish(order.subject("paid"), encode(order), headers=FIRST)


async def leaves_it_to_a_task(js, order, charge):
    await charge(order.id)
    paid = asyncio.create_task(paying(order_of=("publish",))(js, order, charge))
    paid.add_done_callback(lambda task: task.cancelled() or task.exception())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (paying(order_of=("publish", "charge")), "the bank raised ConnectionError, and paid was published"),
        (paying(bank_errors=[Exception]), "the bank raised ConnectionError, and pay returned as if all were well"),
        (paying(bank_errors=[TimeoutError]), "the bank raised TimeoutError, and pay returned as if all were well"),
        (paying(bank_errors=[LookupError]), "the bank raised LookupError, and pay returned as if all were well"),
        (paying(order_of=("publish",)), "as if all were well"),
        (paying(order_of=("charge",)), "called once, the stream holds 0 paid events of the order; expected one"),
        (paying(headers=lambda order: {"Nats-Msg-Id": order.id}), "the stream holds 2 paid events of the order"),
        (paying(headers=lambda order: None), "called again at once, the stream holds 2 paid events"),
        (paying(headers=lambda order: {"Nats-Expected-Last-Sequence": "0"}), "the stream holds 0 paid events"),
        (
            paying(headers=lambda order: {"Nats-Expected-Last-Sequence": "0"}, done=lambda err: False),
            "it raised BadRequestError",
        ),
        (paying(headers=lambda order: None, looks="before publishing"), "three times at once, the stream holds"),
        (
            paying(headers=lambda order: None, looks="before publishing", lock=asyncio.Lock()),
            "another worker published the event just before, the stream holds 2 paid events",
        ),
        (paying(headers=lambda order: None, looks="before all"), "the stream holds"),
        (paying(headers=lambda order: None, known=set(), lock=asyncio.Lock()), "another worker published the event"),
        (paying(key=lambda order: "paid"), "two orders were charged under one key"),
        (paying(key=lambda order: order.region), "two orders were charged under one key"),
        (paying(key=lambda order: f"{order.customer}.{order.day}.{order.cents}"), "charged under one key"),
        (paying(key=lambda order: order.id[:5]), "two orders were charged under one key"),
        (paying(key=lambda order: str(random.random())), "called again at once, it charged under different keys"),
        (paying(key=lambda order: id(order)), "it charged under different keys for one order"),
        (paying(key=lambda order: None), "None was returned; expected a key that is text"),
        (paying(done=lambda err: False), "called again at once, and it raised BadRequestError"),
        (paying(done=lambda err: True), "the stream refused the event, and pay returned as if all were well"),
        (paying(again=lambda err: True), "the stream refused the event, and pay did not return"),
        (
            paying(done=lambda err: err.err_code in (10071, 10164)),
            "another worker's event was being stored, in three replicas, and pay returned before that had ended",
        ),
        (paying(again=lambda err: False), "another worker's event was being stored, in three replicas, and it raised"),
        (paying(subject=lambda order: f"orders.eu.{order.id}.paid"), "the stream holds 0 paid events of the order"),
        (paying(subject=lambda order: "orders.eu.1.paid"), "the stream holds 0 paid events of the order"),
        (tidies_up, "called again at once, events were stored and removed again; expected that each is stored once"),
        (keeps_the_last, "called again at once, events were stored and removed again"),
        (fires_and_forgets, "the stream refused the event, and pay returned as if all were well"),
        (leaves_it_to_a_task, "the stream refused the event, and pay returned as if all were well"),
    ],
    ids=[
        "event first", "ignores the bank", "takes no answer for yes", "takes a refused card", "no charge", "no event",
        "an id", "no condition", "the stream's last sequence", "the stream's last sequence, raising", "looks",
        "looks, with a lock", "looks before all", "remembers", "one key for all", "a key for each region",
        "a key for each customer", "a key cut off", "a random key", "the object's number", "no key", "raises",
        "swallows refusals", "tries for ever", "takes busy for done", "raises when busy", "the region eu",
        "one subject", "tidies up", "keeps the last", "fires and forgets", "leaves it to a task",
    ],
)  # fmt: skip
async def test_paying_that_is_not_once_is_refused(mesh, own_meshes_kept, answer, said):
    assert said in await refused("13.1", answer)


async def pays_in_raw(js, order, charge):
    await charge(int(order.id))
    for _ in range(100):
        reply = await js._nc.request(order.subject("paid"), b"", timeout=3, headers=FIRST)
        error = json.loads(reply.data).get("error")
        if error is None or error["err_code"] == 10071:
            return
        if error["err_code"] != 10164:
            raise RuntimeError(error["description"])
        await asyncio.sleep(0.02)  # pacing


async def looks_first_and_has_a_condition(js, order, charge):
    with contextlib.suppress(NotFoundError):
        await js.get_last_msg("PAID", order.subject("paid"))
        await charge(order.id + ":paid")
        return
    await paying(headers=lambda order: {**FIRST, "Nats-Msg-Id": order.id}, key=lambda order: order.id + ":paid")(
        js, order, charge
    )


@pytest.mark.parametrize("answer", [pays_in_raw, looks_first_and_has_a_condition])
async def test_another_way_to_pay_once_is_accepted(mesh, own_meshes_kept, answer):
    await accepted("13.1", answer)


def breaking(*, opens_at=0, resets=True, rests_from_trial=True, one_trial=True, closes=True, rest_factor=1.0):
    """A breaker that differs from the solution in one way."""

    def make_breaker(failures, rest):
        memory = {"row": 0, "at": 0.0, "trying": False}

        def may_call(now):
            if memory["row"] < failures + opens_at:
                return True
            if (one_trial and memory["trying"]) or now - memory["at"] < rest * rest_factor:
                return False
            memory["trying"] = True
            return True

        def ended(now, ok):
            trial, memory["trying"] = memory["trying"], False
            if ok:
                memory["row"] = 0 if resets and (closes or not trial) else memory["row"]
            else:
                memory["row"] += 1
                if rests_from_trial or not trial:
                    memory["at"] = now

        return may_call, ended

    return make_breaker


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda failures, rest: "closed", "str was returned; expected two functions"),
        (lambda failures, rest: (lambda now: True, lambda now, ok: None), "did not open it"),
        (breaking(opens_at=-2), "fewer than 3 failures in a row opened it"),
        (breaking(opens_at=1), "3 failures in a row did not open it"),
        (breaking(resets=False), "failures were counted across a success"),
        (breaking(one_trial=False), "it let a second call through while the first was tried"),
        (breaking(rests_from_trial=False), "it did not rest again when the trial failed"),
        (breaking(closes=False), "a good trial did not close it"),
        (breaking(rest_factor=0.5), "before its rest was over"),
        (breaking(rest_factor=2.0), "it let no call through after its rest"),
    ],
)
async def test_a_breaker_that_breaks_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("13.2", answer)


class OneBreaker:
    """A right one, as a class; each of its points can be wrong."""

    def __init__(self, failures, rest, *, exactly=True, longest_trial=None, ask_extends=False, slides=False, by=None):
        self.failures, self.rest = failures, rest
        self.row, self.at, self.trying = 0, 0.0, None
        self.exactly, self.longest_trial, self.ask_extends, self.slides = exactly, longest_trial, ask_extends, slides
        self.by = by or self.rest

    def may_call(self, now):
        if self.row < self.failures:
            return True
        if self.trying is not None and (self.longest_trial is None or now - self.trying < self.longest_trial):
            return False
        over = now - self.at >= self.by if self.exactly else now - self.at > self.by
        if not over:
            self.at = now if self.ask_extends else self.at
            return False
        self.trying = now
        return True

    def ended(self, now, ok):
        if self.slides and self.row and now - self.at > self.slides and not ok and self.trying is None:
            self.row = 0
        if self.trying is not None and not ok:
            self.by *= 2 if self.slides == "double" else 1
        self.row, self.at, self.trying = (0 if ok else self.row + 1), now, None

    @classmethod
    def made(cls, **wrong):
        def make(failures, rest):
            breaker = cls(failures, rest, **wrong)
            return breaker.may_call, breaker.ended

        return make


def of_the_lesson(failures, rest):
    breaker = OneBreaker(3, 5.0)
    return breaker.may_call, breaker.ended


def forgets_the_first(failures, rest):
    newest[:] = [OneBreaker(failures, rest)]
    return (lambda now: newest[0].may_call(now)), (lambda now, ok: newest[0].ended(now, ok))


newest: list[OneBreaker] = []


def by_the_clock(failures, rest):
    breaker = OneBreaker(failures, rest)
    return (lambda now: breaker.may_call(time.monotonic())), (lambda now, ok: breaker.ended(time.monotonic(), ok))


def asynchronous(failures, rest):
    breaker = OneBreaker(failures, rest)

    async def may_call(now):
        return breaker.may_call(now)

    return may_call, breaker.ended


def trial_then_full_count(failures, rest):
    breaker = OneBreaker(failures, rest)

    def ended(now, ok):
        trying = breaker.trying is not None
        breaker.ended(now, ok)
        if trying and not ok:
            breaker.row = 0

    return breaker.may_call, ended


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OneBreaker.made(exactly=False), "at 24.4 s, it let no call through after its rest"),
        (OneBreaker.made(longest_trial=4.0), "it let a second call through while the first was tried"),
        (OneBreaker.made(longest_trial=12.0), "it let a second call through while the first was tried"),
        (OneBreaker.made(ask_extends=True), "it let no call through after its rest, or a refused one began it anew"),
        (OneBreaker.made(slides=10.0), "3 failures in a row did not open it"),
        (of_the_lesson, "of make_breaker(1, 0.5)"),
        (forgets_the_first, "two breakers share what they remember"),
        (by_the_clock, "it let no call through after its rest"),
        (asynchronous, "may_call is an async function; expected a plain one"),
        (trial_then_full_count, "it did not rest again when the trial failed"),
        (lambda failures, rest: [], "list was returned; expected two functions"),
    ],
    ids=[
        "a moment late", "gives a trial up soon", "gives a trial up late", "asked anew", "forgets slow failures",
        "the lesson's numbers", "the newest only", "the clock", "async", "counts anew", "an empty list",
    ],
)  # fmt: skip
async def test_a_breaker_that_misses_a_clause_is_refused(mesh, answer, said):
    assert said in await refused("13.2", answer)


def by_states(failures, rest):
    state = {"name": "closed", "row": 0, "until": None}

    def may_call(now):
        if state["name"] == "open" and now >= state["until"]:
            state["name"] = "half-open"
            return 1
        return state["name"] == "closed"

    def ended(now, ok):
        state["row"] = 0 if ok else state["row"] + 1
        if ok:
            state["name"] = "closed"
        elif state["name"] == "half-open" or state["row"] >= failures:
            state.update(name="open", until=now + rest)

    return [may_call, ended]


@pytest.mark.parametrize("answer", [OneBreaker.made(), by_states])
async def test_another_breaker_is_accepted(mesh, answer):
    await accepted("13.2", answer)


async def test_breakers_that_share_what_they_remember_are_refused(mesh):
    memory = {"row": 0, "at": 0.0, "trying": False}

    def make_breaker(failures, rest):
        def may_call(now):
            if memory["row"] < failures:
                return True
            if memory["trying"] or now - memory["at"] < rest:
                return False
            memory["trying"] = True
            return True

        def ended(now, ok):
            memory.update(row=0 if ok else memory["row"] + 1, at=now, trying=False)

        return may_call, ended

    assert "two breakers share what they remember" in await refused("13.2", make_breaker)


def running(
    *,
    tries=5,
    pause=lambda at: 0.02 * 2**at,
    order_of=reversed,
    undo=True,
    own=False,
    raised=lambda error: error,
    forgets=False,
    budget=None,
    catches=Exception,
    tolerates=Exception,
    beside=False,
):
    async def put_back(back, left):
        for attempt in range(tries):
            left[0] -= 1
            if left[0] < 0:
                return
            try:
                await back()
                return
            except tolerates:
                if attempt == tries - 1 and forgets:
                    raise
                if attempt < tries - 1:
                    await asyncio.sleep(pause(attempt))  # pacing

    async def run(steps):
        done = []
        try:
            for do, back in steps:
                if own:
                    done.append(back)
                await do()
                if not own:
                    done.append(back)
        except catches as error:
            left = [budget or 1_000]
            if undo and beside:
                await asyncio.gather(*(put_back(back, left) for back in order_of(done)))
            elif undo:
                for back in order_of(done):
                    await put_back(back, left)
            if (again := raised(error)) is error:
                raise
            if again is not None:
                raise again from None

    return run


async def all_at_once(steps):
    await asyncio.gather(*(do() for do, _ in steps))


async def the_last_first(steps):
    for do, _ in reversed(steps):
        await do()


async def goes_on(steps):
    failed, done = None, []
    for do, back in steps:
        try:
            await do()
            done.append(back)
        except Exception as error:  # noqa: BLE001 - wrong on purpose
            failed = failed or error
    if failed:
        for back in reversed(done):
            await back()
        raise failed


async def in_a_group(steps):
    async with asyncio.TaskGroup() as group:
        await group.create_task(running()(steps))


async def undoes_in_the_background(steps):
    done = []
    try:
        for do, back in steps:
            await do()
            done.append(back)
    except Exception:
        undoing = asyncio.create_task(undo_all(done))
        undoing.add_done_callback(lambda task: task.cancelled() or task.exception())
        raise


async def undo_all(done):
    for back in reversed(done):
        await back()


async def needs_a_step(steps):
    await steps[0][0]()
    await running()(steps[1:])


async def knows_three_steps(steps):
    await running()(steps[:3])


seen_by_all: list[object] = []


async def remembers_in_a_global(steps):
    try:
        for do, back in steps:
            await do()
            seen_by_all.append(back)
    except Exception:
        while seen_by_all:
            await seen_by_all.pop()()
        raise


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (running(undo=False), "ship failed, and this was done: reserve, charge, pack, ship; expected reserve"),
        (running(order_of=list), "ship, undo reserve, undo charge, undo pack; expected"),
        (running(own=True), "ship, undo ship, undo pack"),
        (running(tries=1), "undoing pack failed 4 times, and this was done: reserve, charge, pack, ship, undo charge"),
        (running(tries=4), "undoing pack failed 4 times, and this was done"),
        (running(tries=6), "undo charge was tried 6 times; expected 5 times"),
        (running(tries=9, budget=8, pause=lambda at: 0.01 * (at + 1)), "and"),
        (running(forgets=True), "undoing charge failed for ever, and this was done"),
        (running(pause=lambda at: 0), "an undo was tried again without a pause; expected growing pauses"),
        (running(pause=lambda at: 0.05), "the pauses between the tries to undo did not grow"),
        (running(pause=lambda at: 0.2 / 2**at), "the pauses between the tries to undo did not grow"),
        (running(pause=lambda at: (0.1, 0.2, 0.4, 0.6)[at]), "after a pause of more than 0.5 s; expected shorter"),
        (running(raised=lambda error: None), "ship failed, and nothing was raised; expected the error of the step"),
        (running(raised=lambda error: RuntimeError("x")), "RuntimeError was raised; expected the error of the step"),
        (running(raised=lambda error: type(error)(*error.args)), "another _Refused was raised"),
        (running(raised=lambda error: ExceptionGroup("saga", [error])), "ExceptionGroup with _Refused in it was rai"),
        (running(catches=LookupError), "this was done: reserve, charge, pack, ship; expected"),
        (running(tolerates=TimeoutError), "and"),
        (running(beside=True), ", one beside another"),
        (all_at_once, "nothing failed, and this was done: reserve, charge, pack, one beside another"),
        (the_last_first, "this was done: pack, charge, reserve"),
        (goes_on, "ship, tell, undo tell"),
        (in_a_group, "ExceptionGroup with _Refused in it was raised; expected the error of the step"),
        (undoes_in_the_background, "ship failed, and this was done: reserve, charge, pack, ship, undo pack; expected"),
        (needs_a_step, "nothing failed, and IndexError was raised; expected nothing"),
        (knows_three_steps, "nothing failed, and this was done: reserve, charge, pack; expected reserve"),
        (remembers_in_a_global, "and this was done"),
    ],
    ids=[
        "no undo", "not reversed", "undoes what failed", "one try", "four tries", "six tries", "few tries for all",
        "forgets the others", "no pause", "a constant pause", "shrinking pauses",
        "long pauses", "silent", "another error", "a copy of the error", "a group", "catches one kind",
        "tolerates one kind", "undoes all at once", "all at once", "the last first", "goes on", "a task group",
        "in the background", "no empty list", "three steps", "a global",
    ],
)  # fmt: skip
async def test_a_saga_that_does_not_undo_in_order_is_refused(mesh, answer, said):
    assert said in await refused("13.3", answer)


async def recursively(steps):
    if not steps:
        return
    (do, back), *others = steps
    await do()
    try:
        await recursively(others)
    except BaseException:
        for attempt in range(1, 6):
            with contextlib.suppress(Exception):
                await back()
                break
            if attempt < 5:
                await asyncio.sleep(0.04 * attempt)  # pacing
        raise


async def with_an_exit_stack(steps):
    async def put_back(back):
        for pause in (0.01, 0.1, 0.11, 0.45, None):
            try:
                return await back()
            except Exception:  # noqa: BLE001 - any undo may fail
                if pause:
                    await asyncio.sleep(pause)  # pacing

    async with contextlib.AsyncExitStack() as stack:
        for do, back in steps:
            await asyncio.create_task(do())
            stack.push_async_callback(put_back, back)
        stack.pop_all()


@pytest.mark.parametrize("answer", [recursively, with_an_exit_stack, running()])
async def test_another_way_to_undo_in_order_is_accepted(mesh, answer):
    await accepted("13.3", answer)
