"""The exercises of notebook 08: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import time

import pytest
from exercise_cells import ExerciseCells, accepted, refused

CELLS = ExerciseCells("08_push_back", asyncio=asyncio, time=time)
CODE, WORDS = "Nats-Service-Error-Code", "Nats-Service-Error"

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


class Service:
    """A right answer; those below differ from it in one way."""

    code, words, payload, catches, extra = "503", "busy", b"", Exception, 0

    def __init__(self):
        self.in_hand = {}

    def count(self, subject):
        return len(self.of(subject))

    def of(self, subject):
        return self.in_hand.setdefault(subject, set())

    async def refuse(self, msg, code):
        await self.nc.publish(msg.reply, self.payload, headers={CODE: code, WORDS: self.words} if code else None)

    async def fail(self, msg, err):
        await self.refuse(msg, "500")

    async def do(self, msg, work):
        return await work(msg)

    async def respond(self, msg, done):
        await msg.respond(done)

    def begin(self, msg, subject):
        self.of(subject).add(msg.reply)

    def end(self, msg, subject, *, failed):
        self.of(subject).discard(msg.reply)

    async def answer(self, msg, subject, work):
        failed = True
        try:
            await self.respond(msg, await self.do(msg, work))
            failed = False
        except self.catches as err:
            await self.fail(msg, err)
        finally:
            self.end(msg, subject, failed=failed)

    async def too_many(self, msg, subject, work, most):
        await self.refuse(msg, self.code)

    async def take(self, msg, subject, work):
        self.tasks.add(asyncio.create_task(self.answer(msg, subject, work)))

    async def subscribe(self, nc, subject, admit):
        return await nc.subscribe(subject, cb=admit)

    async def __call__(self, nc, subject, work, most):
        self.nc, self.tasks = nc, getattr(self, "tasks", set())

        async def admit(msg):
            if self.count(subject) >= most + self.extra:
                await self.too_many(msg, subject, work, most)
            else:
                self.begin(msg, subject)
                await self.take(msg, subject, work)

        return await self.subscribe(nc, subject, admit)


def service(**changes):
    """Return an answer with some attributes or methods replaced; a plain function gets the service first."""
    kind = type("Changed", (Service,), changes)

    async def serve(nc, subject, work, most):
        return await one(nc, subject, work, most)

    one = kind()
    return serve


async def one_by_one(self, msg, subject, work):
    await self.answer(msg, subject, work)


async def begins_late(self, msg, work):
    self.in_hand.setdefault(msg.subject, set()).add(msg.reply)
    return await work(msg)


async def waits_a_little(self, msg, subject, work, most):
    for _ in range(20):
        await asyncio.sleep(0.01)  # pacing: perhaps there is a place soon
        if self.count(subject) < most:
            self.begin(msg, subject)
            return await self.take(msg, subject, work)
    await self.refuse(msg, "503")


async def waits_before_it_refuses(self, msg, subject, work, most):
    await asyncio.sleep(1.0)  # work: think it over
    await self.refuse(msg, "503")


async def refuses_and_works_on_it(self, msg, subject, work, most):
    await self.refuse(msg, "503")
    await self.take(msg, subject, work)


async def once_more(self, msg, subject, work, most):
    await self.refuse(msg, "503")
    await self.refuse(msg, "503")


async def works_on_the_data(self, msg, work):
    return await work(msg.data)


async def makes_it_up(self, msg, work):
    return b"done " + msg.data


async def empty_is_refused(self, msg, done):
    if done:
        await msg.respond(done)
    else:
        await self.refuse(msg, "500")


async def shows_the_error(self, msg, err):
    await self.nc.publish(msg.reply, repr(err).encode(), headers={CODE: "500", WORDS: repr(err)})


async def gives_a_code_alone(self, msg, err):
    await self.nc.publish(msg.reply, headers={CODE: "500"})


async def without_a_return(self, nc, subject, admit):
    await nc.subscribe(subject, cb=admit)


async def twice(self, nc, subject, admit):
    await nc.subscribe(f"{subject}.more", cb=admit)
    return await nc.subscribe(subject, cb=admit)


async def elsewhere(self, nc, subject, admit):
    return await nc.subscribe("check71", cb=admit)


async def raises_at_once(self, msg, subject, work):
    raise LookupError("no such desk")


async def at_most_three(nc, subject, work, most):
    return await service()(nc, subject, work, 3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (service(extra=100), "a request too many was worked on as well; expected an answer with code 503"),
        (service(extra=-1), "request 3 of 3 was refused with 503; expected work on all 3, since up to 3 may be in"),
        (service(take=one_by_one), "1 of 3 requests were worked on at the same time"),
        (at_most_three, "request 4 of 5 was refused with 503; expected work on all 5"),
        (
            service(count=lambda self, subject: sum(map(len, self.in_hand.values()))),
            "request 3 of 5 was refused with 503",
        ),
        (service(code="429"), "a request too many: code 429"),
        (service(code=None), "a request too many: an answer without a code"),
        (service(words=""), "code 503 without Nats-Service-Error"),
        (service(payload=b"busy"), "a payload of 4 bytes"),
        (service(too_many=waits_a_little), "not yet: a request "),
        (
            service(too_many=waits_before_it_refuses),
            "a request too many got no answer; expected",
        ),
        (service(too_many=refuses_and_works_on_it), "was worked on later"),
        (service(too_many=once_more), "a request got two answers; expected one for each"),
        (service(end=lambda *_, failed: None), "after one of the requests in hand was answered, request 1 of 1 was"),
        (
            service(end=lambda self, msg, subject, *, failed: failed or self.of(subject).discard(msg.reply)),
            "after work had raised 3 times, request 1 of 1 was refused with 503",
        ),
        (
            service(catches=()),
            "work raised RuntimeError, and the request got no answer; expected an answer",
        ),
        (service(catches=RuntimeError), "work raised KeyError, and the request got no answer"),
        (service(fail=shows_the_error), "work raised RuntimeError, and the request: a payload of 34 bytes"),
        (service(fail=gives_a_code_alone), "and the request: code 500 without Nats-Service-Error"),
        (service(subscribe=without_a_return), "None was returned; expected the subscription"),
        (service(subscribe=twice), "it left a subscription to check71"),
        (service(subscribe=elsewhere), "nobody is subscribed to check71.eu; expected work on all 3"),
        (service(take=raises_at_once), "no request reached work, and the callback raised no such desk"),
        (service(begin=lambda *_: None, do=begins_late), "requests came together, and 5 were worked on; expected 3"),
        (service(do=works_on_the_data), "work was called with bytes; expected the request itself, a Msg"),
        (service(do=makes_it_up), "request 1 of 3 was answered without work"),
        (service(respond=empty_is_refused), "work was done, and the answer has code 500"),
    ],
    ids=[
        *(
            "no limit",
            "one less",
            "one by one",
            "at most three",
            "one count for all",
            "429",
        ),
        *(
            "no code",
            "no words",
            "a payload",
            "waits for a place",
            "waits, then refuses",
            "works on it all the same",
        ),
        *(
            "twice",
            "never free",
            "a failure keeps its place",
            "silent",
            "one kind of error",
            "shows the error",
        ),
        *(
            "a code alone",
            "no subscription",
            "one more subscription",
            "another subject",
            "raises",
            "counts what has begun",
        ),
        *(
            "the data",
            "makes it up",
            "empty is refused",
        ),
    ],
)
async def test_a_service_that_refuses_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("8.1", answer)


async def with_a_semaphore(nc, subject, work, most):
    places, tasks = asyncio.Semaphore(most), set()

    async def answer(msg):
        headers, done = None, b""
        try:
            done = await work(msg)
        except Exception as err:  # noqa: BLE001 (whatever it is)
            headers = {WORDS: f"{type(err).__name__}: {err}", CODE: "500"}
        places.release()
        await nc.publish(msg.reply, done, headers=headers)

    async def admit(msg):
        if places.locked():
            await nc.publish(msg.reply, headers={WORDS: "come back later", CODE: "503"})
        else:
            await places.acquire()
            tasks.add(asyncio.create_task(answer(msg)))

    return await nc.subscribe(subject, queue="desk", cb=admit)


async def with_a_task_for_each(nc, subject, work, most):
    tasks, in_hand = set(), 0

    async def handle(msg):
        nonlocal in_hand
        if in_hand == most:
            return await nc.publish(msg.reply, headers={CODE: "503", WORDS: "full"})
        in_hand += 1
        try:
            await msg.respond(await work(msg))
        except Exception:  # noqa: BLE001 (whatever it is)
            await nc.publish(msg.reply, headers={CODE: "500", WORDS: "it did not work"})
        finally:
            in_hand -= 1

    async def admit(msg):
        task = asyncio.create_task(handle(msg))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return await nc.subscribe(subject, cb=admit)


async def with_a_loop(nc, subject, work, most):
    sub, one = await nc.subscribe(subject), Service()
    one.nc, one.tasks = nc, set()

    async def read():
        async for msg in sub.messages:
            if one.count(subject) >= most:
                await one.refuse(msg, "503")
            else:
                one.begin(msg, subject)
                await one.take(msg, subject, work)

    one.reading = asyncio.create_task(read())
    return sub


@pytest.mark.parametrize("answer", [service(), with_a_semaphore, with_a_task_for_each, with_a_loop])
async def test_a_service_that_counts_in_another_way_is_accepted(mesh, answer):
    await accepted("8.1", answer)


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


def awaited(take):
    async def later(now):
        return take(now)

    return later


def keeps_fractions_beyond_the_burst(rate, burst):
    tokens, filled = burst, None

    def take(now):
        nonlocal tokens, filled
        filled = now if filled is None else filled
        whole = int(rate * (now - filled) + 1e-9)
        tokens, filled = min(burst, tokens + whole), filled + whole / rate
        if tokens < 1:
            return False
        tokens -= 1
        return True

    return take


def loses_the_wait_of_a_refusal(rate, burst):
    tokens, filled = burst, 0.0

    def take(now):
        nonlocal tokens, filled
        held, filled = min(burst, tokens + rate * (now - filled)), now
        if held < 1:
            return False
        tokens = held - 1
        return True

    return take


def counts_before_it_pays(rate, burst):
    tokens, filled = burst, 0.0

    def take(now):
        nonlocal tokens, filled
        tokens, filled = min(burst, tokens + rate * (now - filled)), now
        if tokens < 0:
            return False
        tokens -= 1
        return True

    return take


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
        (bucket(always=1), "int was returned; expected True or False"),
        (lambda rate, burst: bucket()(rate, 1), "rate 2, burst 3: call 2, 0 s after the first, returned False"),
        (lambda rate, burst: bucket()(round(rate), burst), "returned False; expected True"),
        (keeps_fractions_beyond_the_burst, "rate 1, burst 1: call 3, 2 s after the first, returned True"),
        (loses_the_wait_of_a_refusal, "rate 8, burst 1: call 4, 0.125 s after the first, returned False"),
        (counts_before_it_pays, "burst 1: call 2, 0 s after the first, returned True; expected False"),
        (lambda rate, burst: awaited(bucket()(rate, burst)), "take is an async function; expected a plain function"),
        (window_of_a_second, "returned"),
    ],
    ids=[
        *(
            "empty",
            "no cap",
            "whole tokens",
            "shared",
            "refusals pay",
            "always",
        ),
        *(
            "a number",
            "burst 1",
            "whole rates",
            "fractions beyond",
            "loses the wait",
            "one too many",
        ),
        *(
            "async",
            "window",
        ),
    ],
)
async def test_another_bucket_is_refused(mesh, answer, said):
    assert said in await refused("8.2", answer)


def by_arrival_times(rate, burst):
    due = None

    def take(now):
        nonlocal due
        due = now if due is None else max(due, now)
        if due - now > (burst - 1) / rate + 1e-9:
            return False
        due += 1 / rate
        return True

    return take


class Bucket:
    def __init__(self, rate, burst):
        self.rate, self.burst, self.used, self.at = rate, burst, 0.0, float("-inf")

    def __call__(self, now):
        used = max(0.0, self.used - self.rate * (now - self.at))
        if passes := used <= self.burst - 1 + 1e-9:
            self.used, self.at = used + 1, now
        return passes


@pytest.mark.parametrize("answer", [bucket(), by_arrival_times, lambda rate, burst: Bucket(rate, burst)])
async def test_a_bucket_made_otherwise_is_accepted(mesh, answer):
    await accepted("8.2", answer)


def asking(
    *,
    codes=("429", "503"),
    pause=lambda said: float(said or 0.1),
    limit=lambda until, wait: time.monotonic() + wait > until,
    tries=100,
    refused=lambda answer: (answer.headers or {}).get(CODE),
    result=lambda data: data,
    again=lambda payload: payload,
    late=None,
    sleep=asyncio.sleep,
    timeout=2,
):
    """A publisher that differs from the solution in one way."""

    async def place(nc, subject, payload, within):
        until = time.monotonic() + within
        for _ in range(tries):
            answer = await nc.request(subject, payload, timeout=timeout)
            payload = again(payload)
            code = refused(answer)
            if not code:
                return result(answer.data)
            wait = pause((answer.headers or {}).get("Retry-After"))
            if code not in codes:
                return None
            if limit(until, wait):
                return await late(until) if late else None
            waiting = sleep(wait)  # pacing: as the desk asked for
            if waiting is not None:
                await waiting
        return None

    return place


async def until_the_deadline(until):
    await asyncio.sleep(until - time.monotonic())  # pacing: there might be time


def by_the_sum_of_pauses():
    async def place(nc, subject, payload, within):
        waited = 0.0

        def too_late(until, wait):
            nonlocal waited
            waited += wait
            return waited > within

        return await asking(limit=too_late)(nc, subject, payload, within)

    return place


def with_one_deadline_for_all():
    deadlines = []

    async def place(nc, subject, payload, within):
        deadlines.append(time.monotonic() + within)
        return await asking(limit=lambda until, wait: time.monotonic() + wait > deadlines[-1])(
            nc, subject, payload, within
        )

    return place


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (asking(refused=lambda answer: None), "refused twice: b'' was returned; expected b'accepted an order'"),
        (asking(tries=1), "refused twice: None was returned; expected b'accepted an order'"),
        (asking(pause=lambda said: 0.0), "refused twice: asked again before 0.3 s were over"),
        (asking(pause=lambda said: 0.5 * float(said or 1)), "refused twice: asked again before 0.3 s were over"),
        (asking(pause=lambda said: 2 * float(said or 1)), "not yet: refused "),
        (asking(pause=lambda said: -(-float(said or 1) // 1)), "refused twice: asked again long after 0.3 s were over"),
        (asking(codes=("503",)), "refused twice: None was returned"),
        (asking(codes=("400", "429", "503")), "refused with 400: b'accepted an order' was returned; expected None"),
        (asking(codes=("500", "429", "503")), "refused with 500, which says when, too: b'accepted an order' was"),
        (asking(codes=("404", "429", "503")), "refused with 503, then with 404: b'accepted an order' was returned"),
        (asking(late=until_the_deadline), "told to come back too late: nothing was returned for 1 s"),
        (
            asking(pause=lambda said: min(float(said or 1), 0.8)),
            "told to come back too late: b'accepted an order' was returned",
        ),
        (by_the_sum_of_pauses(), "refused by a slow desk: asked once more than that"),
        (with_one_deadline_for_all(), "refused again and again: asked once more than that"),
        (asking(refused=lambda answer: not answer.data and answer.headers[CODE]), "refused in a payload: b'busy' was"),
        (asking(result=lambda data: data or None), "accepted in no words: None was returned; expected b''"),
        (
            asking(result=bytes.decode),
            "welcome at once: 'accepted an order' was returned; expected b'accepted an order'",
        ),
        (asking(again=lambda payload: b""), "refused twice: b'' was returned; expected b'accepted an order'"),
        (asking(sleep=time.sleep), "while one call waited, nothing else in the program went on"),
        (asking(timeout=0.2), "refused by a slow desk: TimeoutError was raised; expected None"),
    ],
    ids=[
        *(
            "does not look",
            "once",
            "at once",
            "half as long",
            "twice as long",
            "whole seconds",
        ),
        *(
            "only 503",
            "also 400",
            "also 500",
            "also 404",
            "waits to the end",
            "0.8 s at most",
        ),
        *(
            "sum of pauses",
            "one deadline",
            "looks at the payload",
            "None for empty",
            "text",
            "nothing the second time",
        ),
        *(
            "time.sleep",
            "a short timeout",
        ),
    ],
)
async def test_a_publisher_that_asks_otherwise_is_refused(mesh, answer, said):
    assert said in await refused("8.3", answer)


async def with_a_timeout(nc, subject, payload, within):
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    try:
        async with asyncio.timeout_at(until):
            answer = await nc.request(subject, payload, timeout=within)
            match (answer.headers or {}).get(CODE):
                case None:
                    return answer.data
                case "429" | "503":
                    wait = float(answer.headers["Retry-After"])
                case _:
                    return None
            if loop.time() + wait >= until:
                return None
            await asyncio.sleep(wait)  # pacing: as the desk asked for
    except TimeoutError:
        return None
    return await with_a_timeout(nc, subject, payload, until - loop.time())


async def with_an_inbox(nc, subject, payload, within):
    until, inbox = time.monotonic() + within, nc.new_inbox()
    sub = await nc.subscribe(inbox)
    try:
        while True:
            await nc.publish(subject, payload, reply=inbox)
            answer = await sub.next_msg(timeout=until - time.monotonic())
            if not answer.headers or CODE not in answer.headers:
                return answer.data
            code, wait = int(answer.headers[CODE]), float(answer.headers.get("Retry-After", "0"))
            if code not in {429, 503} or time.monotonic() + wait > until:
                return None
            await asyncio.sleep(wait + 0.05)  # pacing: as the desk asked for, and a little more
    finally:
        await sub.unsubscribe()


@pytest.mark.parametrize("answer", [asking(), with_a_timeout, with_an_inbox])
async def test_a_publisher_that_waits_in_another_way_is_accepted(mesh, answer):
    await accepted("8.3", answer)
