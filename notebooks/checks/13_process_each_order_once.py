"""The checks of notebook 13: paying once, a circuit breaker, undoing steps in reverse order."""

import asyncio
import contextlib
import datetime
import inspect
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Literal

from nats.js import JetStreamContext
from nats.js.api import Header
from nats.js.errors import BadRequestError

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import Order, decode, encode
from mesh_lab.patterns import cancel_and_join, eventually, flush_through, retry, wait_routable

# 13.1

WINDOW_S = 0.2
ARRIVES_S = 2.0
FIRST = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: "0"}


class _Bank:
    """Notes the key of each charge, or raises while it is away."""

    def __init__(self, away: Exception | None = None) -> None:
        self.away = away
        self.keys: list[object] = []

    async def charge(self, key: object) -> None:
        if self.away is not None:
            raise self.away
        self.keys.append(key)
        await asyncio.sleep(0)


def _orders() -> Iterator[Order]:
    """Yield orders that have more than their number in common."""
    for n in itertools.count(77_708):
        yield Order(f"{n:06}", ("us", "eu", "asia")[n // 4 % 3], 1, datetime.date(1997, 1, 1), 1, 999)


@exercise(
    "13.1",
    title="pay once",
    answer="async function",
    expects="one charge and one event for each order, whenever and however often it is called",
    hint='A header says "only if the subject holds nothing yet": Nats-Expected-Last-Subject-Sequence, with "0". The '
    "refusal that means it was done before has err_code 10071; after 10164 ask again; other refusals are errors.",
    within=30.0,
)
async def pays_once(trial: Trial, answer: Any) -> str:
    """Call it with a bank that is away, again, late, at once, beside others, and with a stream that refuses."""
    own = await trial.own_mesh()
    client = await trial.client(on=own)
    js = await trial.stream(client, "PAID", subjects=["orders.*.*.paid"], duplicate_window=WINDOW_S)
    paying, orders = _Paying(trial, js, answer), _orders()
    for away in (ConnectionError("the bank is away"), TimeoutError("no answer"), LookupError("no such card")):
        await paying.while_the_bank_is_away(next(orders), away)
    await paying.again_and_again(next(orders))
    await paying.at_once(*itertools.islice(orders, 4))
    await paying.beside_another_worker(next(orders), own)
    await paying.when_the_stream_refuses(next(orders))
    paying.expect_a_key_for_each()
    await _pay_while_one_is_being_stored(trial, answer, next(orders))
    return "the effect knows its key, the stream its condition; so any of it may be repeated"


class _Paying:
    """A stream of paid events, and the banks that charged its orders."""

    def __init__(self, trial: Trial, js: JetStreamContext, answer: Any) -> None:
        self._trial, self._js, self._answer = trial, js, answer
        self._banks: dict[Order, _Bank] = {}
        self._decoded: list[Order] = []

    async def while_the_bank_is_away(self, order: Order, away: Exception) -> None:
        case = f"the bank raised {type(away).__name__}"
        try:
            await self._pay(order, case, bank=_Bank(away))
        except type(away):
            if await self._subjects():
                raise NotYet(f"{case}, and paid was published", "no event") from None
        else:
            raise NotYet(f"{case}, and pay returned as if all were well", "that it raises")

    async def again_and_again(self, order: Order) -> None:
        await self._pay_one(order, "called once")
        await self._pay_one(order, "called again at once")
        await asyncio.sleep(2 * WINDOW_S)  # pacing: until the stream has forgotten ids
        await self._pay_one(order, "called again, late")

    async def at_once(self, *orders: Order) -> None:
        case = "called three times at once"
        await asyncio.gather(*(self._pay(order, case) for order in orders for _ in range(3)))
        for order in orders:
            await self._expect_one(order, case)

    async def beside_another_worker(self, order: Order, own: Mesh) -> None:
        """Let another worker publish the event just before what this one sends reaches the server."""

        async def publish(subject: str) -> None:
            if subject == order.subject("paid"):
                with contextlib.suppress(BadRequestError):  # it did so before
                    await self._js.publish(subject, encode(order), headers=FIRST)

        late = await self._trial.rivalled(publish, on=own)
        case = "another worker published the event just before"
        await self._pay(order, case, js=late.jetstream(timeout=3.0))
        await self._expect_one(order, case)

    async def when_the_stream_refuses(self, order: Order) -> None:
        """Let the event be refused after the charge, for its size, and accepted later."""
        config = (await self._js.stream_info("PAID")).config
        await self._js.update_stream(config, max_msg_size=1)
        case = "the stream refused the event"
        try:
            await self._pay(order, case)
        except NotYet:
            raise
        except Exception:  # noqa: BLE001 - any error is right
            await self._js.update_stream(config, max_msg_size=-1)
        else:
            raise NotYet(f"{case}, and pay returned as if all were well", "that it raises")
        await self._pay_one(order, "called again after the stream had refused the event")

    def expect_a_key_for_each(self) -> None:
        """Expect that no two orders were charged under one key."""
        keys = [key for bank in self._banks.values() for key in {str(key) for key in bank.keys}]
        if len(keys) != len(set(keys)):
            raise NotYet(
                "two orders were charged under one key, so the bank charges one of them", "a key for each order"
            )

    async def _pay_one(self, order: Order, case: str) -> None:
        await self._pay(order, case)
        await self._expect_one(order, case)

    async def _pay(
        self, order: Order, case: str, *, bank: _Bank | None = None, js: JetStreamContext | None = None
    ) -> None:
        """Let it pay an order, as a worker does that has just decoded it."""
        self._trial.case = case
        bank = bank or self._banks.setdefault(order, _Bank())
        self._decoded.append(again := decode(encode(order)))
        call = self._answer(js or self._js, again, bank.charge)
        await self._trial.returns(call, f"{case}, and pay did not return", "that it does", within=5.0)

    async def _expect_one(self, order: Order, case: str) -> None:
        """Expect one key for an order, one event of it, and none but of the orders that were paid."""
        keys = self._banks[order].keys
        if not keys:
            raise NotYet(f"{case}, and the customer was not charged", "one charge")
        if len({str(key) for key in keys}) > 1:
            raise NotYet(f"{case}, it charged under different keys for one order", "one key, and so one charge")
        self._trial.kind(keys[0], (str, int), "a key that is text")
        with contextlib.suppress(TimeoutError):  # what was sent and not waited for gets there, now or a moment later
            await eventually(partial(self._holds, order), within=ARRIVES_S)
        state = (await retry(lambda: self._js.stream_info("PAID"))).state
        if state.last_seq != state.messages:
            raise NotYet(f"{case}, events were stored and removed again", "that each is stored once, and stays")
        subjects = await self._subjects()
        if (stored := subjects.pop(order.subject("paid"), 0)) != 1:
            events = "event" if stored == 1 else "events"
            raise NotYet(f"{case}, the stream holds {stored} paid {events} of the order", "one")
        if more := sorted(set(subjects) - {one.subject("paid") for one in self._banks}):
            raise NotYet(f"{case}, the stream holds an event on {more[0]}", f"{order.subject('paid')} alone")

    async def _holds(self, order: Order) -> bool:
        return order.subject("paid") in await self._subjects()

    async def _subjects(self) -> dict[str, int]:
        return (await retry(lambda: self._js.stream_info("PAID", subjects_filter=">"))).state.subjects or {}


async def _pay_while_one_is_being_stored(trial: Trial, answer: Any, order: Order) -> None:
    """Let it pay while another worker's event waits for the stream's replicas, which are frozen for a while."""
    own = await trial.own_mesh(servers=3)
    made = await trial.stream(await trial.client(on=own), "PAID", subjects=["orders.*.*.paid"], num_replicas=3)
    cluster = (await made.stream_info("PAID")).cluster
    leader = (cluster and cluster.leader) or "n1"
    client = await trial.client(on=own, to=leader)
    js = client.jetstream(timeout=5.0)
    await wait_routable(client, "PAID")
    followers = [name for name in own.servers if name != leader]
    await asyncio.gather(*map(own.pause, followers))
    storing = asyncio.ensure_future(js.publish(order.subject("paid"), encode(order), headers=FIRST))
    paying = None
    trial.case = case = "another worker's event was being stored, in three replicas"
    try:
        await flush_through(client)  # it is there, and waits
        paying = asyncio.ensure_future(answer(js, order, _Bank().charge))
        await asyncio.wait({paying}, timeout=0.5)
        early = paying.done() and paying.exception() is None
    finally:
        await asyncio.gather(*map(own.resume, followers))
        await asyncio.wait({one for one in (storing, paying) if one}, timeout=5.0)
        await cancel_and_join(*(one for one in (storing, paying) if one))
    if paying.cancelled():
        raise NotYet(f"{case}, and pay did not return", "that it does")
    paying.result()
    if early:
        raise NotYet(f"{case}, and pay returned before that had ended", "that it asks again")
    if (stored := (await made.stream_info("PAID")).state.messages) != 1:
        raise NotYet(f"{case}, and the stream holds {stored} paid events of the order", "one")


# 13.2

Moment = tuple[float, Literal["may call", "failed", "well"], bool, str]


def _story(failures: int, rest: float, began: float) -> list[Moment]:
    """Return what happens to a breaker, from a time on.

    For each call of its two functions: when, which one or with what result, what may_call() has to return, and what is
    wrong if it returns the opposite. All times are exact in binary, so that a rest is over to the bit.
    """
    story: list[Moment] = []
    now = began

    def fail(many: int, wrong: str) -> None:
        nonlocal now
        for _ in range(many):
            story.append((now, "may call", True, wrong))
            now += rest / 8
            story.append((now, "failed", False, ""))

    def refuse(at: float, wrong: str) -> None:
        story.append((at, "may call", False, wrong))

    opens = f"{failures} failure{'s' * (failures > 1)} in a row"
    story.append((now, "may call", True, "a new breaker refused a call"))
    story.append((now + rest / 8, "well", False, ""))
    now += rest / 4
    fail(failures - 1, f"fewer than {opens} opened it")
    story.append((now, "may call", True, f"fewer than {opens} opened it"))
    story.append((now, "well", False, ""))
    fail(failures - 1, "failures were counted across a success")
    now += 3 * rest  # failures in a row, however far apart
    fail(1, "failures were counted across a success")
    refuse(now, f"{opens} did not open it")
    refuse(now + rest / 2, "it let a call through before its rest was over")
    refuse(now + rest * 127 / 128, "it let a call through before its rest was over")
    now += rest
    story.append((now, "may call", True, "it let no call through after its rest, or a refused one began it anew"))
    refuse(now, "it let a second call through while the first was tried")
    refuse(now + rest, "it let a second call through while the first was tried")
    refuse(now + 3 * rest, "it let a second call through while the first was tried")
    now += 4 * rest
    story.append((now, "failed", False, ""))
    for again in ("second", "third"):
        refuse(now, "it did not rest again when the trial failed")
        refuse(now + rest * 127 / 128, f"its {again} rest did not begin at the failure of the trial")
        now += 2 * rest if again == "third" else rest
        story.append((now, "may call", True, f"it let no call through after its {again} rest"))
        refuse(now, f"it let a second call through after its {again} rest")
        now += rest / 2
        story.append((now, "failed" if again == "second" else "well", False, ""))
    fail(failures - 1, "a good trial did not close it")
    story.append((now, "may call", True, f"after it closed, fewer than {opens} opened it"))
    story.append((now, "failed", False, ""))
    refuse(now + rest / 2, f"after it closed, {opens} did not open it")
    return story


@exercise(
    "13.2",
    title="a breaker of your own",
    answer="function",
    expects="two functions that together are a circuit breaker",
    hint="Three things to remember, as nonlocal variables: failures in a row, when the last one was, and whether a "
    "trial is under way.",
)
async def breaks_and_closes(trial: Trial, answer: Any) -> str:
    """Play stories of calls against breakers of several settings, with times of the stories' own."""
    for failures, rest, began in ((3, 5.0, 0.0), (1, 0.5, 86_400.0), (2, 64.0, 0.0), (10, 2.0, 1_024.0)):
        name, (may_call, ended) = f"make_breaker({failures}, {rest})", _breaker(answer, failures, rest)
        trial.case = f"of {name}"
        for now, call, expected, wrong in _story(failures, rest, began):
            if call != "may call":
                ended(now, call == "well")
            elif bool(_plain(may_call(now))) != expected:
                raise NotYet(f"at {now:.1f} s, {wrong}", f"{expected} of {name}")
        may_call, ended = _breaker(answer, failures, rest)
        for done in range(failures + 1):
            if bool(_plain(may_call(began))) != (done < failures):
                if not done:  # the first one that was made let a call through
                    raise NotYet("two breakers share what they remember", "that each has its own")
                seen = f"after {done} failures of a new breaker, may_call returned {done == failures}"
                raise NotYet(seen, f"{done < failures} of {name}")
            if done < failures:
                ended(began, False)
    trial.case = "two breakers were made"
    shared = NotYet("two breakers share what they remember", "that each has its own")
    first, first_ended = _breaker(answer, 2, 1.0)
    for _ in range(2):
        first(0.0)
        first_ended(0.0, False)
    second, second_ended = _breaker(answer, 2, 1.0)
    if not second(0.0) or first(0.5):
        raise shared
    second_ended(0.5, True)
    if first(0.5):
        raise shared
    return "a service that is down is asked once in a while, and told so at once in between"


def _breaker(
    answer: Any, failures: int, rest: float
) -> tuple[Callable[[float], object], Callable[[float, bool], object]]:
    pair = answer(failures, rest)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(callable, pair)):
        raise NotYet(f"{'None' if pair is None else type(pair).__name__} was returned", "two functions")
    may_call, ended = pair
    return may_call, ended


def _plain(returned: object) -> object:
    if inspect.iscoroutine(returned):
        returned.close()
        raise NotYet("may_call is an async function", "a plain one")
    return returned


# 13.3

Step = Callable[[], Awaitable[None]]
TRIES = 5
STEPS = ("reserve", "charge", "pack", "ship", "tell")
STEP_S = 0.01  # long enough that steps beside each other are seen
LONGEST_PAUSE_S = 0.5
SHORTEST_PAUSE_S = 0.001  # less is a turn of the event loop
GROWS = 1.03  # what a clock adds to a pause that does not grow is less


class _Refused(Exception):
    """What a step raises."""


class _Shop:
    """Notes which steps were done and undone, and when each undo was tried; some steps and some tries to undo fail."""

    def __init__(self, fails: Exception | None = None, at: str = "ship", **undo_fails: int) -> None:
        self.fails, self.at = fails, at
        self.undo_fails = undo_fails
        self.noted: list[str] = []
        self.tried: dict[str, list[float]] = {}

    def step(self, name: str) -> tuple[Step, Step]:
        async def do() -> None:
            self.noted.append(name)
            await asyncio.sleep(STEP_S)  # work
            if name == self.at and self.fails is not None:
                raise self.fails
            self.noted.append(f"{name} done")

        async def undo() -> None:
            tries = self.tried.setdefault(name, [])
            tries.append(time.monotonic())
            if len(tries) <= self.undo_fails.get(name, 0):
                raise (TimeoutError("no answer"), _Refused("not now"), ValueError(name))[len(tries) % 3]
            self.noted.append(f"undo {name}")
            await asyncio.sleep(STEP_S)  # work
            self.noted.append(f"undo {name} done")

        return do, undo

    async def run(self, trial: Trial, answer: Any, *names: str) -> BaseException | None:
        """Return what the answer raised when it was given these steps."""
        call = answer([self.step(name) for name in names])
        try:
            await trial.returns(call, f"{self.case}, and run did not return", "that it does", within=12.0)
        except NotYet:
            raise
        except Exception as err:  # noqa: BLE001 - which error it is, is what the check looks at
            return err
        return None

    @property
    def case(self) -> str:
        """What was to happen, in words."""
        if self.fails is None:
            return "nothing failed"
        fails = ", ".join(f"undoing {name} failed {_times(many)}" for name, many in self.undo_fails.items())
        return f"{self.at} failed{f', {fails}' if fails else ''}"

    def expect(self, error: BaseException | None, *names: str) -> None:
        """Expect what these steps had to lead to."""
        done = names[: names.index(self.at)] if self.fails else names
        undone = [name for name in reversed(done) if self.undo_fails.get(name, 0) < TRIES] if self.fails else []
        expected = [one for name in done for one in (name, f"{name} done")]
        expected += [self.at] * (self.fails is not None)
        expected += [one for name in undone for one in (f"undo {name}", f"undo {name} done")]
        if self.noted != expected:
            raise NotYet(f"{self.case}, and this was done: {_shown(self.noted)}", _shown(expected))
        if error is not self.fails:
            raised = type(error).__name__ if error else "nothing"
            if isinstance(error, BaseExceptionGroup):
                raised = f"{raised} with {', '.join(type(one).__name__ for one in error.exceptions)} in it"
            elif error is not None and type(error) is type(self.fails):
                raised = f"another {raised}"
            raise NotYet(f"{self.case}, and {raised} was raised", "the error of the step" if self.fails else "nothing")
        for name, tries in self.tried.items():
            if len(tries) != (many := min(self.undo_fails.get(name, 0) + 1, TRIES)):
                raise NotYet(f"{self.case}, and undo {name} was tried {_times(len(tries))}", _times(many))


def _times(many: int) -> str:
    return "once" if many == 1 else "for ever" if many == FOR_EVER else f"{many} times"


def _shown(noted: list[str]) -> str:
    """Return what was done, in order; a step is done where the next one begins, unless it is said."""
    ends = [one for one in noted if not one.endswith(" done")]
    overlap = any(f"{one} done" in noted[at + 2 :] for at, one in enumerate(noted) if not one.endswith(" done"))
    return (", ".join(ends) or "nothing") + (", one beside another" if overlap else "")


FOR_EVER = 1_000


@exercise(
    "13.3",
    title="undo in good order",
    answer="async function",
    expects="all steps done, or all that were done undone",
    hint="Collect the undo of each step that is done. In an except clause, call them in reversed order, each in a loop "
    "of five tries with growing pauses, and end with a bare raise.",
    within=30.0,
)
async def undoes_in_order(trial: Trial, answer: Any) -> str:
    """Let all go well, then let a step fail, then let undoing fail for a while."""
    for names in (STEPS[:3], STEPS[:1], (), STEPS):
        shop = _Shop()
        trial.case = shop.case
        shop.expect(await shop.run(trial, answer, *names), *names)
    # One after the other while that is quick, then side by side.
    for shop in (_Shop(_Refused("full")), _Shop(TimeoutError("late"), "reserve"), _Shop(ValueError("lost"), "tell")):
        shop.expect(await shop.run(trial, answer, *STEPS), *STEPS)
    shops = [
        _Shop(_Refused("full"), pack=4),
        _Shop(ConnectionError("gone"), charge=1),
        _Shop(ValueError("lost"), "tell", charge=FOR_EVER),
        _Shop(_Refused("empty"), "pack", charge=4, reserve=4),
        _Shop(_Refused("full"), pack=FOR_EVER, reserve=FOR_EVER),
    ]
    errors = await asyncio.gather(*(shop.run(trial, answer, *STEPS) for shop in shops))
    for shop, error in zip(shops, errors, strict=True):
        shop.expect(error, *STEPS)
    _expect_growing_pauses([tries for shop in shops for tries in shop.tried.values() if len(tries) == TRIES])
    return "what cannot be finished is undone, from its end, and whoever asked learns of it"


def _expect_growing_pauses(tries: list[list[float]]) -> None:
    """Look at the shortest of several first, second … pauses: the machine makes some of them longer."""
    pauses = [min(pause) for pause in zip(*([b - a for a, b in itertools.pairwise(one)] for one in tries), strict=True)]
    if min(pauses) < SHORTEST_PAUSE_S:
        raise NotYet("an undo was tried again without a pause", "growing pauses")
    if max(pauses) > LONGEST_PAUSE_S + 0.05:
        raise NotYet(f"an undo was tried again after a pause of more than {LONGEST_PAUSE_S} s", "shorter pauses")
    if any(after < GROWS * before for before, after in itertools.pairwise(pauses)):
        raise NotYet("the pauses between the tries to undo did not grow", "growing pauses")
