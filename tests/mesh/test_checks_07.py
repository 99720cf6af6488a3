"""The exercises of notebook 07: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import time

import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("07_push_back", asyncio=asyncio, time=time)
CODE, WORDS = "Nats-Service-Error-Code", "Nats-Service-Error"

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def serving(
    *,
    at_most=True,
    tasks=True,
    code="503",
    words="busy",
    frees=True,
    catches=True,
    payload=b"",
    returns=True,
    late=False,
):
    """A service that differs from the solution in one way."""

    async def serve(nc, subject, work, most):
        in_hand = []

        async def refuse(msg, code):
            await nc.publish(msg.reply, payload, headers={CODE: code, WORDS: words} if code else None)

        async def answer(msg):
            if late:
                in_hand.append(msg)
            try:
                await msg.respond(await work(msg))
            except RuntimeError:
                if catches:
                    await refuse(msg, "500")
            finally:
                if frees:
                    in_hand.remove(msg)

        async def admit(msg):
            if at_most and len(in_hand) >= most:
                await refuse(msg, code)
                return
            if not late:
                in_hand.append(msg)
            if tasks:
                serve.tasks.append(asyncio.create_task(answer(msg)))
            else:
                await answer(msg)

        serve.tasks = []
        sub = await nc.subscribe(subject, cb=admit)
        return sub if returns else None

    return serve


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (serving(at_most=False), "a request too many was worked on as well"),
        (serving(tasks=False), "1 of 3 requests were worked on at the same time"),
        (serving(code="429"), "a request too many: code 429"),
        (serving(code=None), "without a code"),
        (serving(words=""), "code 503 without Nats-Service-Error"),
        (serving(payload=b"busy"), "a payload of 4 bytes"),
        (serving(frees=False), "work raised: code 503"),
        (serving(catches=False), "work raised, and the request got no answer"),
        (serving(returns=False), "None was returned; expected the subscription"),
        (serving(late=True), "5 requests came together, and 5 were worked on; expected 3, and the others refused"),
    ],
    ids=[
        "no limit",
        "one by one",
        "429",
        "no code",
        "no words",
        "a payload",
        "never free",
        "silent",
        "no subscription",
        "counts what has begun",
    ],
)
async def test_a_service_that_refuses_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("7.1", answer)


def bucket(*, starts_full=True, caps=True, fractions=True, shared=False, pays=False, always=None):
    memory = {}

    def make(rate, burst):
        state = memory if shared else {}

        def take(now):
            if always is not None:
                return always
            tokens, filled = state.get("tokens", burst if starts_full else 0), state.get("filled", now)
            tokens += rate * (now - filled) if fractions else int(rate * (now - filled))
            tokens = min(burst, tokens) if caps else tokens
            state["filled"] = now
            enough = tokens >= 1 - 1e-9
            state["tokens"] = tokens - 1 if enough or pays else tokens
            return enough

        return take

    return make


def window_of_a_second(rate, burst):
    sent = []

    def take(now):
        sent[:] = [at for at in sent if now - at < 1]
        if len(sent) >= rate:
            return False
        sent.append(now)
        return True

    return take


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (bucket(starts_full=False), "rate 8, burst 1: call 1, 0 s after the first, returned False; expected True"),
        (bucket(caps=False), "rate 1, burst 2: call 5, 60 s after the first, returned True; expected False"),
        (bucket(fractions=False), "returned False; expected True"),
        (bucket(shared=True), "rate 8, burst 1: call 1"),
        (bucket(pays=True), "returned False; expected True"),
        (bucket(always=True), "call 2, 0 s after the first, returned True; expected False"),
        (bucket(always=1), "returned 1; expected True"),
        (window_of_a_second, "returned"),
        (lambda rate, burst: rate, "returned nothing that can be called"),
    ],
    ids=["empty", "no cap", "whole tokens", "shared", "refusals pay", "always", "a number", "window", "no function"],
)
async def test_another_bucket_is_refused(mesh, answer, said):
    assert said in await refused("7.2", answer)


def asking(*, codes=("429", "503"), pause=None, limit=True, tries=100, looks=True):
    async def place(nc, subject, payload, within):
        until = time.monotonic() + within
        for _ in range(tries):
            answer = await nc.request(subject, payload, timeout=2)
            code = (answer.headers or {}).get(CODE) if looks else None
            if code is None:
                return answer.data
            wait = float(answer.headers.get("Retry-After", 0.1)) if pause is None else pause
            if code not in codes or (limit and time.monotonic() + wait > until):
                return None
            await asyncio.sleep(min(wait, 1.5))  # pacing: as the desk asked for
        return None

    return place


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (asking(looks=False), "refused twice: b'' was returned; expected b'accepted an order'"),
        (asking(tries=1), "refused twice: None was returned; expected b'accepted an order'"),
        (asking(pause=0.0), "refused twice: asked again before 0.3 s were over"),
        (asking(pause=0.3), "refused twice: asked again before 1.2 s were over"),
        (asking(codes=("503",)), "refused twice: None was returned"),
        (asking(codes=("400", "429", "503")), "refused with 400: b'accepted an order' was returned; expected None"),
        (asking(limit=False), "told to come back too late: b'accepted an order' was returned; expected None"),
        (asking(limit=False, tries=5, codes=("429", "503")), "told to come back too late"),
    ],
    ids=["does not look", "once", "at once", "always 0.3 s", "only 503", "also 400", "no limit", "five times"],
)
async def test_a_publisher_that_asks_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("7.3", answer)
