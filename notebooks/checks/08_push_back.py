"""The checks of notebook 08: refusing when full, a token bucket, and a publisher that retries when Retry-After says."""

import asyncio
import inspect
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.nuid import NUID

from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.patterns import ERROR, ERROR_CODE, RETRY_AFTER, cancel_and_join, flush_through

STALL_S = 0.2  # a pause of the machine by which what comes at once comes late

# 8.1

FAILURES = (RuntimeError("the till is broken"), KeyError("000001"), TimeoutError("the bank is slow"))


@exercise(
    "8.1",
    title="refuse politely when full",
    answer="async function",
    expects="the subscription of a service that refuses what is too much",
    hint="A callback that waits for the work holds up the next request. Start a task for each, keep them in a set, and "
    "let each task leave the set when it is done. nc.publish(msg.reply, headers=…) sends a refusal.",
    within=40.0,
)
async def refuses_when_full(trial: Trial, answer: Any) -> str:
    """Fill two services, send requests too many, let work end one by one, let it fail, and fill them again."""
    client, asker = await trial.client(), await trial.client()
    desks = [_Desk(trial, client, asker, "check71.eu", 3), _Desk(trial, client, asker, "check71.us", 5)]
    try:
        for desk in desks:
            serving = await answer(client, desk.subject, desk.work, desk.most)
            trial.kind(serving, Subscription, "the subscription")
            trial.own(serving)
            await desk.open()
        await flush_through(client)
        for desk in desks:  # the second one while the first is full
            await _fills(desk, "")
            await _refuses(desk)
        for desk in desks:
            await _frees_a_place(desk)
            await _fails(desk)
            await _fills(desk, "after work had raised several times, ")
            await _refuses(desk)
            await desk.finish_all()
            await _is_asked_in_one_go(desk)
    finally:
        for desk in desks:
            desk.let_go()
    return "a refusal costs a fraction of the work, so a service that is full can still say so"


class _Desk:
    """Work that goes on until it is told to finish, and the replies to its requests."""

    def __init__(self, trial: Trial, client: Client, asker: Client, subject: str, most: int) -> None:
        self.trial, self.client, self.subject, self.most = trial, client, subject, most
        self.began: list[str] = []
        self.replies: dict[str, list[Msg]] = {}
        self.failure: Exception | None = None
        self._asker, self._inbox = asker, asker.new_inbox()
        self._gates: dict[str, asyncio.Event] = {}
        self._results: dict[str, bytes] = {}
        self._asked, self._in_hand, self._most_in_hand, self._given = 0, 0, 0, ""

    async def open(self) -> None:
        async def note(msg: Msg) -> None:
            self.replies.setdefault(msg.subject.rpartition(".")[2], []).append(msg)

        self.trial.own(await self._asker.subscribe(f"{self._inbox}.*", cb=note))

    async def work(self, msg: Msg) -> bytes:
        if not isinstance(msg, Msg):
            self._given = type(msg).__name__
        name = msg.data.decode()
        self.began.append(name)
        if self.failure is not None:
            raise self.failure
        self._in_hand += 1
        self._most_in_hand = max(self._most_in_hand, self._in_hand)
        try:
            await self._gates[name].wait()
        finally:
            self._in_hand -= 1
        return self._results[name]

    async def ask(self, requests: int) -> list[str]:
        """Send requests, and return their names when the service's client has received them."""
        names = [f"{self._asked + number}" for number in range(requests)]
        for name in names:
            self._gates[name] = asyncio.Event()
            # Nobody can know it beforehand; some of it is empty, as work may have nothing to say.
            self._results[name] = b"" if self._asked % 4 == 3 else bytes(NUID().next())
            self._asked += 1
            await self._asker.publish(self.subject, name.encode(), reply=f"{self._inbox}.{name}")
        await flush_through(self._asker)
        await flush_through(self.client)
        return names

    async def at_once(self, condition: Callable[[], Any], seen: Callable[[], str], expected: str) -> None:
        with MachineClock() as clock:
            try:
                await self.trial.soon(condition, seen, expected)
            except NotYet:
                if clock.longest_pause_s < STALL_S:
                    raise
            else:
                return
        await self.trial.soon(condition, seen, expected, within=LONG_S)

    async def begun(self, names: Sequence[str], situation: str) -> None:
        """Return when work on all of these goes on; say what happens to them otherwise."""

        def all_begun() -> bool:
            return set(names) <= set(self.began) or bool(self._given)

        def seen() -> str:
            begun = [name for name in names if name in self.began]
            for place, name in enumerate(names, start=1):
                for msg in self.replies.get(name, ()):
                    headers = msg.headers or {}
                    if "Status" in headers:  # the server's own answer
                        return f"{situation}nobody is subscribed to {self.subject}"
                    code = headers.get(ERROR_CODE)
                    what = f"refused with {code}" if code else "answered without work"
                    return f"{situation}request {place} of {len(names)} was {what}"
            if not begun:
                return f"{situation}no request reached work"
            return f"{situation}{len(begun)} of {len(names)} requests were worked on at the same time"

        expected = f"work on {f'all {len(names)}' if len(names) > 1 else 'it'}, since up to {self.most} may be in hand"
        try:
            await self.trial.soon(all_begun, seen, expected, within=LONG_S)
        except NotYet as err:
            if complaints := await self.trial.complaints(self.client):
                raise NotYet(f"{seen()}, and the callback raised {complaints[0]}", expected) from err
            raise
        if self._given:
            raise NotYet(f"work was called with {self._given}", "the request itself, a Msg")

    async def refused(self, names: Sequence[str], what: str, code: str) -> None:
        """Return when these were refused with a code, each once, and none of them worked on."""

        def seen() -> str:
            worked_on = code == "503" and set(names) & set(self.began)
            return f"{what} {'was worked on as well' if worked_on else 'got no answer'}"

        every = lambda: all(name in self.replies for name in names)  # noqa: E731
        await self.at_once(every, seen, f"an answer with code {code}{', at once' * (code == '503')}")
        for name in names:
            msg = self.replies[name][0]
            headers = msg.headers or {}
            wanted = f"an empty answer with code {code}, and words"
            if (found := headers.get(ERROR_CODE)) != code:
                raise NotYet(f"{what}: {f'code {found}' if found else 'an answer without a code'}", wanted)
            if not headers.get(ERROR, "").strip():
                raise NotYet(f"{what}: code {code} without {ERROR}", wanted)
            if msg.data:
                raise NotYet(f"{what}: a payload of {len(msg.data)} bytes", wanted)

    async def finish(self, *names: str) -> None:
        """Let work on these end, and look at their answers."""
        for name in names:
            self._gates[name].set()
        every = lambda: all(name in self.replies for name in names)  # noqa: E731
        seen = "work was done, and the request got no answer"
        await self.trial.soon(every, seen, "the bytes that work returned", within=LONG_S)
        for name in names:
            if (code := (self.replies[name][0].headers or {}).get(ERROR_CODE)) is not None:
                raise NotYet(f"work was done, and the answer has code {code}", "the bytes that work returned")
            if self.replies[name][0].data != self._results[name]:
                what = "nothing" if not self._results[name] else "some bytes"
                raise NotYet(f"work returned {what}, and the answer is another", "the bytes that work returned")

    async def finish_all(self) -> None:
        """Let all work end, and look at what each request got."""
        await self.finish(*self.working())
        await flush_through(self.client)
        await flush_through(self._asker)
        if self._most_in_hand > self.most:
            raise NotYet(f"{self._most_in_hand} requests were worked on at the same time", f"at most {self.most}")
        if len(set(self.began)) < len(self.began):
            raise NotYet("a request was worked on twice", "each once")
        if any(len(msgs) > 1 for msgs in self.replies.values()):
            raise NotYet("a request got two answers", "one for each")
        self.began.clear()
        self.replies.clear()

    def working(self) -> list[str]:
        return [name for name in self.began if not self._gates[name].is_set()]

    def let_go(self) -> None:
        for gate in self._gates.values():
            gate.set()


async def _fills(desk: _Desk, situation: str) -> None:
    await desk.begun(await desk.ask(desk.most), situation)


async def _refuses(desk: _Desk) -> None:
    late = await desk.ask(2)
    await desk.refused(late, "a request too many", "503")


async def _frees_a_place(desk: _Desk) -> None:
    """Let one of several end: there is one place then, and a request that came before that is refused all the same."""
    late = await desk.ask(1)
    await desk.finish(desk.working()[0])
    await desk.refused(late, "a request that came just before a place was free", "503")
    await flush_through(desk.client)
    if len(desk.began) > desk.most:
        raise NotYet("a request that was refused was worked on later", "only those that were taken on")
    await desk.begun(await desk.ask(1), "after one of the requests in hand was answered, ")
    await _refuses(desk)
    await desk.finish_all()


async def _fails(desk: _Desk) -> None:
    for times in range(desk.most + 1):  # once more than would fill it, if a failure kept its place
        desk.failure = FAILURES[times % len(FAILURES)]
        names = await desk.ask(1)
        await desk.begun(names, f"after work had raised {times} time{'s' * (times > 1)}, " if times else "")
        await desk.refused(names, f"work raised {type(desk.failure).__name__}, and the request", "500")
        desk.began.clear()  # it has ended
    desk.failure = None
    desk.replies.clear()


async def _is_asked_in_one_go(desk: _Desk) -> None:
    """Ask for more than fits, before any of the work can have begun: who counts only then lets all in."""
    names = await desk.ask(desk.most + 2)

    def seen() -> str:
        return f"{len(names)} requests came together, and {len(desk.began)} were worked on"

    wanted = f"{desk.most}, and the others refused"
    await desk.at_once(lambda: len(desk.replies) == 2 and len(desk.began) == desk.most, seen, wanted)
    await desk.refused([name for name in names if name not in desk.began], "a request too many of several", "503")
    await desk.finish_all()


# 8.2

# Times that binary numbers hold exactly: a bucket without a tolerance is right, too.
# What the bucket is, and then calls at a time with what they should return.
BUCKETS: tuple[tuple[float, int, tuple[tuple[float, bool], ...]], ...] = (
    (8, 1, ((100.0, True), (100.0, False), (100.0625, False), (100.125, True), (100.1875, False))),
    (2, 3, ((5.0, True), (5.0, True), (5.0, True), (5.0, False), (5.5, True), (5.5, False))),
    (1, 2, ((0.0, True), (0.0, True), (60.0, True), (60.0, True), (60.0, False))),
    (4, 1, ((0.0, True), (0.125, False), (0.1875, False), (0.25, True), (0.3125, False))),
    (0.5, 1, ((7.0, True), (8.0, False), (9.0, True))),
    (
        1,
        1,
        ((0.0, True), (1.5, True), (2.0, False), (2.5, True)),
    ),  # what is beyond the burst is not kept, fractions too
    (9, 10, ((3.0, True),) * 10 + ((3.0, False), (3.5, True), (3.5, True), (3.5, True), (3.5, True), (3.5, False))),
)
MANY_CALLS: tuple[tuple[float, int], ...] = ((3, 10), (10, 9), (0.3, 2), (7, 1), (1_000, 100))
CALLS, EXACT = 200, 1e-6


@exercise(
    "8.2",
    title="a token bucket of your own",
    answer="function",
    expects="a function take(now) that says whether a message may pass",
    hint="Remember how many tokens there are and when you last added some. At each call add rate times the seconds "
    "since then, at most up to burst; fractions of a token count. A refused message takes nothing.",
)
async def keeps_a_bucket(trial: Trial, answer: Any) -> str:
    """Call buckets at given times, then at many times, each of them beside another one."""
    others = [(rate, burst, _by_the_book(rate, burst, f"{rate} {burst}")) for rate, burst in MANY_CALLS]
    for rate, burst, calls in (*BUCKETS, *others):
        take, other = _bucket(answer, rate, burst), _bucket(answer, rate, burst)
        for number, (now, wanted) in enumerate(calls, start=1):
            if number % 2:
                _said(other, now)  # a second bucket must not share the first one's tokens
            if (said := _said(take, now)) is not wanted:
                since = f"{now - calls[0][0]:g} s after the first"
                seen = f"rate {rate}, burst {burst}: call {number}, {since}, returned {said!r}"
                raise NotYet(seen, f"{wanted}")
    return "two numbers, no queue and no clock of its own: that is all it takes to keep a rate"


def _bucket(answer: Any, rate: float, burst: int) -> Callable[[float], object]:
    take: Callable[[float], object] = answer(rate, burst)
    if not callable(take):
        raise NotYet("make_bucket returned nothing that can be called", "a function take(now)")
    return take


def _said(take: Callable[[float], object], now: float) -> object:
    said = take(now)
    if inspect.iscoroutine(said):
        said.close()
        raise NotYet("take is an async function", "a plain function take(now)")
    Trial.kind(said, bool, "True or False")
    return said


def _by_the_book(rate: float, burst: int, seed: str) -> tuple[tuple[float, bool], ...]:
    """Return times and what a bucket says at each, without those at which the sum of floats decides."""
    chance, now, tokens, filled = random.Random(seed), 1_000.0, float(burst), 1_000.0
    calls: list[tuple[float, bool]] = []
    while len(calls) < CALLS:
        now += chance.choice((0.0, 0.0, 0.2, 0.7, 1.1, burst + 0.5)) / rate * chance.random()
        held = min(burst, tokens + rate * (now - filled))
        if held == burst or abs(held - 1) > EXACT:
            tokens, filled = held - (held >= 1), now
            calls.append((now, held >= 1))
    return tuple(calls)


# 8.3

LATE_S = 0.4  # later than Retry-After, it is another time
TRIES = 2
SLOW_S = 1.0  # what should come at once, and does not


class _Refusal(NamedTuple):
    code: str
    again: str = ""
    payload: bytes = b""


class _Case(NamedTuple):
    what: str
    """The situation, in words."""
    answers: list[_Refusal | None]
    """The desk's, one after the other; the last of them again and again."""
    within: float
    wanted: bytes | None
    pauses: tuple[float, ...] = ()
    payload: bytes = b"an order"
    thinks: float = 0.0
    """Seconds until the desk answers."""


ACCEPTED = b"accepted an order"
ZOE = "an order of Zoë's".encode()
CASES = (
    _Case("welcome at once", [None], 5.0, ACCEPTED),
    _Case("refused twice", [_Refusal("503", "0.300"), _Refusal("429", "0.600"), None], 5.0, ACCEPTED, (0.3, 0.6)),
    _Case("refused with 400", [_Refusal("400"), None], 5.0, None),
    _Case("refused with 500, which says when, too", [_Refusal("500", "0.200"), None], 5.0, None),
    _Case("refused with 503, then with 404", [_Refusal("503", "0.200"), _Refusal("404"), None], 5.0, None, (0.2,)),
    _Case("told to come back too late", [_Refusal("503", "30.000"), None], 4.0, None),
    _Case("told to come back in 10 s, of 9", [_Refusal("429", "10"), None], 9.0, None),
    _Case("refused again and again", [_Refusal("503", "0.400")], 1.19, None, (0.4, 0.4)),
    _Case("refused by a slow desk", [_Refusal("503", "0.400")], 1.15, None, (0.4,), thinks=0.25),
    _Case("refused for 1 s", [_Refusal("429", "1"), None], 4.0, b"accepted " + ZOE, (1.0,), ZOE),
    _Case("refused in a payload", [_Refusal("503", "0.1", b"busy"), None], 4.0, ACCEPTED, (0.1,)),
    _Case("accepted in no words", [_Refusal("503", "0.2"), None], 4.0, b"", (0.2,), b""),
)


@exercise(
    "8.3",
    title="ask again, but not at once",
    answer="async function",
    expects="the answer's payload, or None",
    hint="answer.headers may be None. A refusal has Nats-Service-Error-Code; only 429 and 503 are worth another try. "
    "Compute once until when you may try, and compare before you wait.",
    within=40.0,
)
async def asks_again(trial: Trial, answer: Any) -> str:
    """Refuse in several ways, first one and then all at the same time, and look at when it was asked again."""
    client, desk = await trial.client(), await trial.client()
    for attempt in range(TRIES):
        with MachineClock() as clock:
            try:
                await _try_all(trial, client, desk, answer, clock)
            except NotYet as verdict:
                # A machine that is busy delays a loop also where the clock's thread gets its turn.
                perhaps_the_machine = clock.longest_pause_s >= STALL_S or isinstance(verdict, _StoodStill)
                if not perhaps_the_machine or attempt == TRIES - 1:
                    raise
                continue
        break
    return "a desk that says when to come back, and a shop that listens, get through an overload together"


async def _try_all(trial: Trial, client: Client, desk: Client, answer: Any, clock: MachineClock) -> None:
    ticker, tries = _Ticker(), list[asyncio.Task[None]]()
    try:
        await _try(trial, client, desk, answer, CASES[0], clock)
        tries += [asyncio.create_task(_try(trial, client, desk, answer, case, clock)) for case in CASES[1:]]
        for one in tries:  # the first one that is wrong decides
            await one
    finally:
        await cancel_and_join(ticker.task, *tries)
        if ticker.longest_gap_s > clock.longest_pause_s + STALL_S:
            seen = "while one call waited, nothing else in the program went on"
            raise _StoodStill(seen, "a wait that lets others go on")


class _StoodStill(NotYet):
    """The event loop stood still for longer than the machine did."""


class _Ticker:
    """Measures the longest time for which the event loop stood still."""

    def __init__(self) -> None:
        self.longest_gap_s = 0.0
        self.task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.01)  # pacing: how finely it measures
            now = time.monotonic()
            self.longest_gap_s, before = max(self.longest_gap_s, now - before), now


async def _try(trial: Trial, client: Client, desk: Client, answer: Any, case: _Case, clock: MachineClock) -> None:
    asked: list[float] = []
    answered: list[float] = []

    async def decide(msg: Msg) -> None:
        asked.append(time.monotonic())
        refusal = case.answers[min(len(asked), len(case.answers)) - 1]
        await asyncio.sleep(case.thinks)  # work: the desk looks into its book
        if refusal is None:
            await msg.respond(b"accepted " + msg.data if msg.data else b"")
        else:
            headers = {ERROR_CODE: refusal.code, ERROR: "not now"}
            headers |= {RETRY_AFTER: refusal.again} if refusal.again else {}
            await desk.publish(msg.reply, refusal.payload, headers=headers)
        answered.append(time.monotonic())

    subject = await trial.serve(desk, decide)
    lasts = sum(case.pauses) + case.thinks * (len(case.pauses) + 1)

    def wrong() -> str:
        return _pauses(asked, answered, case.pauses, clock)

    try:
        call = answer(client, subject, case.payload, case.within)
        late = f"{case.what}: nothing was returned for {SLOW_S:g} s after the desk's last answer"
        said = await trial.returns(
            call, late, f"{case.wanted!r} at once", within=lasts + SLOW_S + clock.longest_pause_s
        )
    except NotYet:
        if asked and len(asked) != len(case.pauses) + 1:
            raise NotYet(f"{case.what}: {wrong()}", _in_words(case.pauses)) from None
        raise
    except nats.errors.Error as err:
        raise NotYet(f"{case.what}: {type(err).__name__} was raised", f"{case.wanted!r}") from err
    trial.equal(said, case.wanted, f"{case.what}: ")
    if seen := wrong():
        raise NotYet(f"{case.what}: {seen}", _in_words(case.pauses))


def _pauses(asked: list[float], answered: list[float], wanted: Sequence[float], clock: MachineClock) -> str:
    """Return in words what is wrong with the times of the requests; empty if nothing is."""
    for before, after, least in zip(answered, asked[1:], wanted, strict=False):
        if after - before < least - 0.01:
            return f"asked again before {least:g} s were over"
        if after - before > least + LATE_S + clock.longest_pause_s:
            return f"asked again long after {least:g} s were over"
    if len(asked) == len(wanted) + 1:
        return ""
    if len(asked) > len(wanted) + 1:
        return "asked once more than that" if wanted else "asked again"
    return f"asked {len(asked)} times" if len(asked) != 1 else "asked once"


def _in_words(pauses: Sequence[float]) -> str:
    return f"asked again after {' and '.join(f'{pause:g} s' for pause in pauses)}" if pauses else "asked once"
