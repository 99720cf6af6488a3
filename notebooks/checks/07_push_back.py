"""The checks of notebook 07: refusing when full, a token bucket, and a publisher that retries when Retry-After says."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import ERROR, ERROR_CODE, RETRY_AFTER

ANSWER_WITHIN_S = 3.0

# 7.1

MOST = 3


@exercise(
    "7.1",
    title="refuse politely when full",
    answer="async function",
    expects="the subscription of a service that refuses what is too much",
    hint="A callback that waits for the work holds up the next request. Start a task for each, keep them in a set, and "
    "let each task leave the set when it is done. nc.publish(msg.reply, headers=…) sends a refusal.",
    within=40.0,
)
async def refuses_when_full(trial: Trial, answer: Any) -> str:
    """Fill the service, send one request too many, let it finish, let its work fail, and fill it again."""
    desk = _Desk(trial, await trial.client())
    serving = await answer(desk.client, "check71", desk.work, MOST)
    trial.kind(serving, Subscription, "the subscription")
    trial.own(serving)
    try:
        await _fills_and_refuses(desk)
        await _fails(desk)
        await _fills_and_refuses(desk)
        await _is_asked_in_one_go(desk)
    finally:
        desk.gate.set()
    return "a refusal costs a fraction of the work, so a service that is full can still say so"


class _Desk:
    """Work that goes on until the gate is opened, and the replies to its requests."""

    def __init__(self, trial: Trial, client: Client) -> None:
        self.trial = trial
        self.client = client
        self.gate = asyncio.Event()
        self.began: list[bytes] = []
        self.answers: dict[bytes, Msg] = {}

    async def work(self, msg: Msg) -> bytes:
        self.began.append(msg.data)
        if msg.data == b"broken":
            raise RuntimeError("the till is broken")
        await self.gate.wait()
        return b"done " + msg.data

    async def ask(self, *names: bytes) -> None:
        for name in names:
            inbox = self.client.new_inbox()

            async def note(msg: Msg, name: bytes = name) -> None:
                self.answers[name] = msg

            self.trial.own(await self.client.subscribe(inbox, cb=note))
            await self.client.publish("check71", name, reply=inbox)
        await self.client.flush()

    async def answered(self, names: Sequence[bytes], seen: str | Callable[[], str], expected: str) -> None:
        every = lambda: all(name in self.answers for name in names)  # noqa: E731
        await self.trial.soon(every, seen, expected, within=ANSWER_WITHIN_S)

    def shut(self) -> None:
        """Begin anew, with work that goes on."""
        self.gate.clear()
        self.began.clear()
        self.answers.clear()


async def _fills_and_refuses(desk: _Desk) -> None:
    desk.shut()
    first, late = [b"a", b"b", b"c"], [b"d", b"e"]
    await desk.ask(*first)
    await desk.trial.soon(
        lambda: len(desk.began) >= MOST,
        lambda: f"{len(desk.began)} of {MOST} requests were worked on at the same time",
        f"all {MOST}",
        within=ANSWER_WITHIN_S,
    )
    await desk.ask(*late)

    def unanswered() -> str:
        what = "was worked on as well" if len(desk.began) > MOST else "got no answer while the others were in hand"
        return f"a request too many {what}"

    await desk.answered(late, unanswered, "an answer with code 503, at once")
    if wrong := _not_refused(desk.answers[late[0]], "503"):
        raise NotYet(f"a request too many: {wrong}", "an empty answer with code 503, and words")
    desk.gate.set()
    await desk.answered(first, "a request that was taken on got no answer", "the bytes that work returned")
    for name in first:
        if desk.answers[name].data != b"done " + name or (desk.answers[name].headers or {}).get(ERROR_CODE):
            raise NotYet(f"{name!r} was answered with {desk.answers[name].data!r}", f"{b'done ' + name!r}")


async def _is_asked_in_one_go(desk: _Desk) -> None:
    """Ask for more than fits, before any of the work can have begun: who counts only then lets all in."""
    desk.shut()
    names = [b"f", b"g", b"h", b"i", b"j"]
    await desk.ask(*names)
    await desk.trial.soon(
        lambda: len(desk.answers) == len(names) - MOST,
        lambda: f"{len(names)} requests came together, and {len(desk.began)} were worked on",
        f"{MOST}, and the others refused",
        within=ANSWER_WITHIN_S,
    )
    desk.gate.set()
    await desk.answered(names, "a request of several got no answer", "one for each")


async def _fails(desk: _Desk) -> None:
    for _ in range(MOST):  # as often as would fill it, if a failure kept its place
        desk.answers.clear()
        await desk.ask(b"broken")
        await desk.answered([b"broken"], "work raised, and the request got no answer", "one with code 500")
        if wrong := _not_refused(desk.answers[b"broken"], "500"):
            raise NotYet(f"work raised: {wrong}", "an empty answer with code 500, and words")


def _not_refused(msg: Msg, code: str) -> str:
    """Return in words what is wrong with a refusal; empty if nothing is."""
    headers = msg.headers or {}
    if (seen := headers.get(ERROR_CODE)) != code:
        return f"code {seen}" if seen else f"the answer {msg.data!r} without a code"
    if not headers.get(ERROR):
        return f"code {code} without {ERROR}"
    return f"a payload of {len(msg.data)} bytes" if msg.data else ""


# 7.2

# Times that binary numbers hold exactly: a bucket without a tolerance is right, too.
# What the bucket is, and then calls at a time with what they should return.
BUCKETS: tuple[tuple[float, int, tuple[tuple[float, bool], ...]], ...] = (
    (8, 1, ((100.0, True), (100.0, False), (100.0625, False), (100.125, True), (100.1875, False))),
    (2, 3, ((5.0, True), (5.0, True), (5.0, True), (5.0, False), (5.5, True), (5.5, False))),
    (1, 2, ((0.0, True), (0.0, True), (60.0, True), (60.0, True), (60.0, False))),
    (4, 1, ((0.0, True), (0.125, False), (0.1875, False), (0.25, True), (0.3125, False))),
    (0.5, 1, ((7.0, True), (8.0, False), (9.0, True))),
)


@exercise(
    "7.2",
    title="a token bucket of your own",
    answer="function",
    expects="a function take(now) that says whether a message may pass",
    hint="Remember how many tokens there are and when you last added some. At each call add rate times the seconds "
    "since then, at most up to burst; fractions of a token count. A refused message takes nothing.",
)
async def keeps_a_bucket(trial: Trial, answer: Any) -> str:
    """Call buckets at given times, two of them in turn."""
    for rate, burst, calls in BUCKETS:
        take = _bucket(answer, rate, burst)
        other = _bucket(answer, rate, burst)
        if take is None or other is None:
            raise NotYet("make_bucket returned nothing that can be called", "a function take(now)")
        other(calls[0][0])  # a second bucket must not share the first one's tokens
        for number, (now, wanted) in enumerate(calls, start=1):
            if (said := take(now)) is not wanted:
                since = now - calls[0][0]
                raise NotYet(
                    f"rate {rate}, burst {burst}: call {number}, {since:g} s after the first, returned {said!r}",
                    f"{wanted}",
                )
    return "two numbers, no queue and no clock of its own: that is all it takes to keep a rate"


def _bucket(answer: Any, rate: float, burst: int) -> Callable[[float], object] | None:
    take = answer(rate, burst)
    return take if callable(take) else None


# 7.3


@exercise(
    "7.3",
    title="ask again, but not at once",
    answer="async function",
    expects="the answer's payload, or None",
    hint="answer.headers may be None. A refusal has Nats-Service-Error-Code; only 429 and 503 are worth another try. "
    "Compute once until when you may try, and compare before you wait.",
    within=40.0,
)
async def asks_again(trial: Trial, answer: Any) -> str:
    """Refuse a number of times, with a time to wait for, and look at when it was asked again."""
    client = await trial.client()
    asked: list[float] = []
    script: list[dict[str, str] | None] = []

    async def desk(msg: Msg) -> None:
        asked.append(time.monotonic())
        headers = script[min(len(asked), len(script)) - 1]
        await client.publish(msg.reply, b"" if headers else b"accepted " + msg.data, headers=headers)

    await trial.serve(client, desk, "check73")
    for what, headers, within, wanted, pauses in _CASES:
        asked.clear()
        script[:] = headers
        try:
            said = await answer(client, "check73", b"an order", within)
        except nats.errors.Error as err:
            raise NotYet(f"{what}: {type(err).__name__} was raised", f"{wanted!r}") from err
        trial.equal(said, wanted, f"{what}: ")
        if wrong := _pauses(asked, pauses):
            raise NotYet(f"{what}: {wrong}", _in_words(pauses))
    return "a desk that says when to come back, and a shop that listens, get through an overload together"


def _refused(code: str, again: str | None = None) -> dict[str, str]:
    headers = {ERROR_CODE: code, ERROR: "not now"}
    return {**headers, RETRY_AFTER: again} if again else headers


# What happens, the desk's answers, how long the requester may try, what it should return, and its pauses.
_CASES: tuple[tuple[str, list[dict[str, str] | None], float, bytes | None, list[float]], ...] = (
    ("welcome at once", [None], 5.0, b"accepted an order", []),
    (
        "refused twice",
        [_refused("503", "0.300"), _refused("429", "1.200"), None],
        5.0,
        b"accepted an order",
        [0.3, 1.2],
    ),
    ("refused with 400", [_refused("400"), None], 5.0, None, []),
    ("told to come back too late", [_refused("503", "30.000"), None], 1.0, None, []),
    ("refused again and again", [_refused("503", "1.000")], 2.9, None, [1.0, 1.0]),
)


def _pauses(asked: list[float], wanted: list[float]) -> str:
    """Return in words what is wrong with the times of the requests; empty if nothing is."""
    if len(asked) != len(wanted) + 1:
        return f"asked {len(asked)} times" if len(asked) > 1 else "asked once"
    pauses = [after - before for before, after in pairwise(asked)]
    for pause, least in zip(pauses, wanted, strict=True):
        if pause < 0.9 * least:
            return f"asked again before {least:g} s were over"
        if pause > least + 2.0:
            return f"asked again long after {least:g} s were over"
    return ""


def _in_words(pauses: list[float]) -> str:
    return f"asked again after {' and '.join(f'{pause:g} s' for pause in pauses)}" if pauses else "asked once"
