"""The exercises of notebook 12: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import random

import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.errors import APIError, BadRequestError, NotFoundError

from mesh_lab.orders import encode

FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}
CELLS = ExerciseCells(
    "12_process_each_order_once", imports=("nats.js.errors", "mesh_lab.orders"), asyncio=asyncio, FIRST=FIRST
)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def paying(
    *,
    key="order",
    headers="first",
    swallow=None,
    charge_first=True,
    publishes=True,
    charges=True,
    brave=False,
    looks=False,
):
    async def pay(js, order, charge):
        made = {"order": f"{order.id}.paid", "constant": "paid", "random": str(random.random()), "none": None}[key]
        condition = {
            "first": {"Nats-Expected-Last-Subject-Sequence": "0"},
            "id": {"Nats-Msg-Id": f"{order.id}.paid"},
            "none": None,
        }[headers]

        async def publish():
            try:
                await js.publish(order.subject("paid"), encode(order), headers=condition)
            except BadRequestError as err:
                if swallow not in ("bad requests", "all") and err.err_code != 10071:
                    raise
                if swallow == "nothing":
                    raise
            except APIError:
                if swallow != "all":
                    raise

        if not charge_first:
            await publish()
        if charges:
            with contextlib.suppress(*([ConnectionError] if brave else [])):
                await charge(made)
        if looks:
            with contextlib.suppress(NotFoundError):
                await js.get_last_msg("PAID", order.subject("paid"))
                return
        if charge_first and publishes:
            await publish()

    return pay


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (paying(charge_first=False), "the bank was away, and paid was published"),
        (paying(brave=True), "the bank was away, and pay returned as if all were well"),
        (paying(charges=False), "as if all were well"),
        (paying(publishes=False), "it stored 0 paid events"),
        (paying(headers="id"), "called again, it stored a second paid event"),
        (paying(headers="none"), "called three times at once, it stored"),
        (paying(headers="none", looks=True), "called three times at once, it stored"),
        (paying(swallow="bad requests"), "the stream was sealed and refused the event"),
        (paying(key="constant"), "two orders were charged under one key"),
        (paying(swallow="nothing"), "wrong last sequence"),
        (paying(swallow="all"), "the stream was sealed and refused the event"),
        (paying(key="random"), "different keys for one order"),
        (paying(key="none"), "different keys for one order"),
    ],
    ids=[
        "event first",
        "ignores the bank",
        "no charge",
        "no event",
        "an id",
        "no condition",
        "looks before",
        "swallows refusals",
        "one key for all",
        "raises",
        "swallows all",
        "random key",
        "no key",
    ],
)
async def test_paying_that_is_not_once_is_refused(mesh, answer, said):
    assert said in await refused("12.1", answer)


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
        (breaking(opens_at=-2), "one failure of three opened it"),
        (breaking(opens_at=1), "three failures in a row did not open it"),
        (breaking(resets=False), "failures were counted across a success"),
        (breaking(one_trial=False), "it let a second call through while the first was tried"),
        (breaking(rests_from_trial=False), "it did not rest again when the trial failed"),
        (breaking(closes=False), "after it closed, fewer than three failures opened it"),
        (breaking(rest_factor=0.5), "before its rest was over"),
        (breaking(rest_factor=2.0), "it let no call through after its rest"),
    ],
)
async def test_a_breaker_that_breaks_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("12.2", answer)


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

    assert "two breakers share what they remember" in await refused("12.2", make_breaker)


def running(*, reverse=True, undo=True, retries=5, raises="same", own=False, stops=True):
    async def run(steps):
        done = []
        try:
            for do, back in steps:
                if own:
                    done.append(back)
                await do()
                if not own:
                    done.append(back)
        except Exception:
            for back in (reversed(done) if reverse else done) if undo else []:
                for attempt in range(retries):
                    try:
                        await back()
                        break
                    except Exception:
                        if attempt == retries - 1 and stops:
                            raise
            if raises == "same":
                raise
            if raises == "another":
                raise RuntimeError("the saga failed") from None

    return run


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (running(undo=False), "this was done: reserve, charge; expected"),
        (running(reverse=False), "reserve, charge, undo reserve, undo charge"),
        (running(own=True), "undo ship"),
        (running(retries=1), "undoing failed 4 times"),
        (running(retries=1, stops=False), "undoing failed 4 times"),
        (running(), "undoing failed 5 times"),
        (running(raises="nothing"), "nothing was raised; expected the error of the step"),
        (running(raises="another"), "RuntimeError was raised; expected the error of the step"),
    ],
    ids=[
        "no undo",
        "not reversed",
        "undoes what failed",
        "one try",
        "gives up",
        "forgets the others",
        "silent",
        "another error",
    ],
)
async def test_a_saga_that_does_not_undo_in_order_is_refused(mesh, answer, said):
    assert said in await refused("12.3", answer)


async def test_steps_all_at_once_are_refused(mesh):
    async def run(steps):
        for do, _ in reversed(steps):
            await do()

    assert "this was done: ship, charge, reserve" in await refused("12.3", run)
