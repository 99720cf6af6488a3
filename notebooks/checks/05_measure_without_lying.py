"""Checks of notebook 05, ``measure_without_lying``: what a benchmark counts, since when, and whose time is missing."""

import asyncio
import math
import reprlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from mesh_lab.measure import paced_load
from mesh_lab.notebook.exercises import NotYet, Trial, exercise

# 5.1

CODE = "Nats-Service-Error-Code"


class _Load(NamedTuple):
    """How many orders; which of a few are refused, again and again, and how; and how long the work takes."""

    orders: int
    refuses: tuple[bool, ...]
    code: str
    refusal: bytes
    processed: bytes
    first_s: float
    last_s: float
    work_s: float

    def is_refused(self, number: int) -> bool:
        return self.refuses[number % len(self.refuses)]

    @property
    def processes(self) -> int:
        return sum(not self.is_refused(number) for number in range(self.orders))


# Each with a share and a rate of its own, and no rate is the milliseconds for an order. The longest takes 0.33 s, less
# than nc.request waits for by default.
LOADS = (
    _Load(60, (False, True, True, True, True), "503", b"no such CD", b"", first_s=0.05, last_s=0.05, work_s=0.0),
    _Load(20, (False, True), "422", b"", b"", first_s=0.12, last_s=0.12, work_s=0.005),
    _Load(9, (False, False, True), "404", b"", b"done", first_s=0.02, last_s=0.02, work_s=0.01),
)
TRIES, APART = 5, 1.1  # rates that differ by less than a tenth are alike
TRIES_FOR_TIME, NEAR = 3, 1.25  # an answer that the machine held up has another clock than the worker
FAR = 1.5  # no clock explains a rate that is so far from its own
_RIGHT: tuple[str, ...] = ()
_REFUSED = ("refused orders count as processed", f"only answers without the header {CODE}")
_PART = (
    "the rate is above what the worker did",
    "a clock from the first publish to the last answer, also a refusal",
)


@exercise(
    "5.1",
    title="mend a benchmark that lies",
    answer="async function",
    expects="orders processed in a second, as a number",
    hint="Publish each order with a reply subject of your own, and count what comes back there. The clock stops with "
    f"the last answer. An answer with the header {CODE} is an answer, and no processed order.",
)
async def counts_what_is_processed(trial: Trial, answer: Any) -> str:
    """Let a worker take long for the first and the last order and refuse every second one; compare with its clock.

    Each wrong clock has a rate of its own, which the worker's times tell, also when the machine stood still meanwhile.
    Where that makes two of these rates alike, the orders are sent again; the last time, the nearest clock counts.
    """
    for load in LOADS:
        await _expect_rate(trial, answer, load)
    return "what a worker confirms is processed; all that the publisher can see alone is its own buffer"


async def _expect_rate(trial: Trial, answer: Any, load: _Load) -> None:
    for at in range(TRIES):
        rate, worked, took = await _rate_and_clock(trial, answer, load)
        began, first, *_, last_processed, last = worked
        clocks = {1.0: _RIGHT, load.orders / load.processes: _REFUSED, (last - began) / (last - first): _PART}
        clocks[(last - began) / (last_processed - began)] = _PART
        apart = all(other / one > APART for one, other in pairwise(sorted(clocks)) if clocks[one] != clocks[other])
        if apart and (took < NEAR * (last - began) or at + 1 >= TRIES_FOR_TIME):
            break
    times = rate / (load.processes / (last - began))
    if times > 1.5 * max(clocks):
        raise NotYet("the rate is many times what the worker can do", "the clock to stop with the last answer")
    if times < 0.5:  # the machine may pause for a moment; a wrong clock is further off
        raise NotYet("the rate is far below what the worker did", "a clock that runs from first publish to last answer")
    nearest = min(clocks, key=lambda one: abs(math.log(times / one)))
    if wrong := clocks[nearest]:
        if abs(math.log(times / nearest)) > math.log(FAR):
            wrong = "the rate is above what the worker did", "the orders processed, for each second of this run"
        raise NotYet(*wrong)


async def _rate_and_clock(trial: Trial, answer: Any, load: _Load) -> tuple[float, list[float], float]:
    """Return the answer's rate, when the worker began and was done with each order, and the answer's own time."""
    worked: list[float] = []
    payloads = [b"order %d" % (n + 8) for n in range(load.orders)]
    got: list[bytes] = []

    async def work(msg: Msg) -> None:
        if not worked:
            worked.append(time.perf_counter())
        got.append(msg.data)
        number = len(got)
        await asyncio.sleep({1: load.first_s, load.orders: load.last_s}.get(number, load.work_s))  # work
        worked.append(time.perf_counter())
        if msg.reply:
            refusal = {CODE: load.code, "Nats-Service-Error": "no such CD"}
            refused = load.is_refused(number - 1)
            data = load.refusal if refused else load.processed
            await worker.publish(msg.reply, data, headers=refusal if refused else None)

    nc, worker = await trial.client(), await trial.client(name="worker")
    subject, began = await trial.serve(worker, work), time.perf_counter()
    rate = await answer(nc, subject, list(payloads))
    took = time.perf_counter() - began
    came = len(worked) - 1 if worked else 0
    trial.kind(rate, (int, float), "a number of orders a second")
    if not rate > 0:
        raise NotYet("a rate below 0" if rate < 0 else f"{rate:g} orders a second", "a rate above 0")
    if came < load.orders:
        raise NotYet("it returned before the worker had done its last order", "a clock that stops with the last answer")
    if sorted(got) != sorted(payloads):
        raise NotYet(f"the worker got {came} orders for {load.orders} payloads, or others", "each payload, once")
    return rate, worked, took


# 5.2

RATE_PER_S, SECONDS, SLOW_AT, STALL_S = 100, 0.6, 20, 0.25
CLOSE_S = 0.0001
# When each question left, what its answer took, how many a second were meant, and how long each customer waited.
BY_HAND: tuple[tuple[list[float], list[float], float, list[float]], ...] = (
    ([0.3, 0.6, 0.7], [0.25, 0.05, 0.02], 10, [0.55, 0.55, 0.52]),
    ([0.0, 0.5, 1.0], [0.1, 0.2, 0.3], 2, [0.1, 0.2, 0.3]),
    ([0.0, 1.0, 3.0, 3.5], [1.0, 2.0, 0.5, 0.25], 2.5, [1.0, 2.6, 2.7, 2.55]),
    ([9.0], [10.0], 7, [19.0]),
    ([], [], 50, []),
)


@exercise(
    "5.2",
    title="give the waiting back",
    answer="function",
    expects="a list with a latency for each question, in seconds since it was due",
    hint="Question n was due n / rate_per_s seconds after the start. When was it answered? Subtract.",
)
async def gives_the_waiting_back(trial: Trial, answer: Any) -> str:
    """Hand over a record whose first question left late, then one of a real closed loop that met a stall."""
    for sent_s, latency_s, per_s, expected in BY_HAND:
        trial.case = f"it got a record of {len(sent_s)} questions"
        returned = answer(list(sent_s), list(latency_s), per_s)
        late = [one - sent_s[0] for one in expected]
        if _is_seconds(returned) and len(returned) == len(late) and late != expected and _close(returned, late):
            raise NotYet(f"0 is where the first question left, which was {sent_s[0]:g} s late", _DUE)
        _expect(returned, expected, latency_s)
        for n, (one, right) in enumerate(zip(returned, expected, strict=True)):
            if not _close([one], [right]):
                asked = f"question {n}, due at {n / per_s:g} s, left at {sent_s[n]:g} s and took {latency_s[n]:g} s"
                raise NotYet(f"{one:g} s was returned where {asked}", f"{right:g} s")

    async def reply(msg: Msg) -> None:
        if int(msg.data) == SLOW_AT:
            await asyncio.sleep(STALL_S)  # work
        await msg.respond(b"1177")

    run = await paced_load(
        {**trial.mesh.connect_options(to=next(iter(trial.mesh.servers))), "dont_randomize": True},
        subject=await trial.serve(await trial.client(), reply),
        rate_per_s=RATE_PER_S,
        seconds=SECONDS,
        payloads=[b"%d" % n for n in range(round(RATE_PER_S * SECONDS))],
        closed=True,
    )
    sent, latencies = ([ns / 1e9 for ns in run.sent_ns], [ms / 1e3 for ms in run.latencies_ms(since="sent")])
    due = [ms / 1e3 for ms in run.latencies_ms()]
    returned = answer(list(sent), list(latencies), RATE_PER_S)
    _expect(returned, due, latencies)
    if not _close(returned, due):
        raise NotYet("the record of a real loop that met a stall was mended otherwise than those made by hand", _DUE)
    return (
        "where a record lacks its send times, HdrHistogram's record_corrected_value(latency, interval) makes up the "
        "missing answers; that is a guess, and yours is a fact"
    )


_DUE = "question n due at n / rate_per_s, counted from 0"


def _is_seconds(returned: Any) -> bool:
    return isinstance(returned, list | tuple) and all(isinstance(one, int | float) for one in returned)


def _expect(returned: Any, expected: Sequence[float], unmended: Sequence[float]) -> None:
    if not _is_seconds(returned):
        what = "None" if returned is None else f"a {type(returned).__name__}"
        raise NotYet(f"{what} was returned", "a list of seconds")
    if len(returned) != len(expected):
        more = "more" if len(returned) > len(expected) else "fewer"
        raise NotYet(f"{more} latencies than questions", "one for each, in their order")
    if _close(returned, expected):
        return
    if _close(returned, unmended):
        raise NotYet("the latencies are those since the questions were sent", "those since they were due")
    if _close([one / 1_000 for one in returned], expected):
        raise NotYet("the latencies are in milliseconds", "seconds, as they came")


def _close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(one - other) < CLOSE_S for one, other in zip(some, others, strict=True))


# 5.3

ASKED = 200
Row = tuple[float, float, float | None, str]
"""When a question was due, when it left, how long after it was due its end came, all in seconds; and how it ended."""


def _rows(ends: Sequence[tuple[int, float | None, str]], *, late: float = 0.0, since: float = 0.0) -> list[Row]:
    """Return so many rows of each kind: number, latency since due, outcome; each left so much after it was due."""
    flat = [(latency, outcome) for count, latency, outcome in ends for _ in range(count)]
    dues = [since + n / 100 for n in range(len(flat))]
    return [(due, due + late, latency, outcome) for due, (latency, outcome) in zip(dues, flat, strict=True)]


# What happened, whether the promise is kept, and what a wrong answer overlooked.
CASES: list[tuple[list[Row], bool, str, str]] = [
    (_rows([(ASKED, 0.012, "answered")]), True, "all answered after 12 ms", ""),
    (_rows([(ASKED, 0.030, "answered")]), False, "all answered after 30 ms", ""),
    (
        _rows([(195, 0.001, "answered"), (5, 0.2, "answered")]),
        False,
        "5 of 200 answered after 200 ms, and a mean of 6 ms",
        ": a mean and a median say nothing about 1 in 100",
    ),
    (
        _rows([(198, 0.015, "answered"), (2, 5.0, "answered")]),
        True,
        "2 of 200 answered after 5 s, the rest after 15 ms",
        ": 198 of 200 are 99 %, and the promise allows for the others (pandas' quantile(0.99) lies between the two)",
    ),
    (
        _rows([(195, 0.010, "answered"), (5, None, "unanswered")]),
        False,
        "5 of 200 never answered, the rest after 10 ms",
        ": who got no answer got none within 20 ms",
    ),
    (
        _rows([(195, 0.010, "answered"), (5, 0.001, "refused")]),
        False,
        "5 of 200 refused after 1 ms, the rest answered after 10 ms",
        ": a refusal in time is no answer in time",
    ),
    (
        _rows([(195, 0.010, "answered"), (5, 0.0003, "nobody there")]),
        False,
        "5 of 200 found nobody there, the rest answered after 10 ms",
        ": who is told at once that nobody is there has no answer either",
    ),
    (
        _rows([(ASKED, 0.030, "answered")], late=0.025),
        False,
        "all answered 5 ms after they left, which was 25 ms after they were due",
        ": the customer waits since due",
    ),
    (_rows([(ASKED, 0.0195, "answered")]), True, "all answered after 19.5 ms", ""),
    (_rows([(ASKED, 0.0201, "answered")]), False, "all answered after 20.1 ms", ""),
    (
        _rows([(3, 0.5, "answered"), (197, 0.001, "answered")]),
        False,
        "3 of 200 answered after 500 ms, the rest after 1 ms",
        ": 197 of 200 are 98.5 %",
    ),
    (
        _rows([(990, 0.010, "answered"), (10, None, "unanswered")]),
        True,
        "10 of 1,000 never answered, the rest after 10 ms",
        ": 990 of 1,000 are 99 %",
    ),
    (
        _rows([(11, None, "unanswered"), (989, 0.010, "answered")]),
        False,
        "11 of 1,000 never answered, the rest after 10 ms",
        ": 989 of 1,000 are 98.9 %",
    ),
    (
        _rows([(25, 0.010, "answered"), (1, 0.040, "answered"), (24, 0.010, "answered")]),
        False,
        "1 of 50 answered after 40 ms, the rest after 10 ms",
        ": 49 of 50 are 98 %",
    ),
    (_rows([(1, 0.019, "answered")]), True, "the only one answered after 19 ms", ""),
    (
        _rows([(ASKED, 0.010, "answered")], since=60.0),
        True,
        "all answered after 10 ms, a minute after the start",
        ": a run may begin at any time",
    ),
    (_rows([(ASKED, 0.001, "refused")]), False, "all refused after 1 ms", ": a refusal in time is no answer in time"),
]


@exercise(
    "5.3",
    title="keep the promise or not",
    answer="function",
    expects="True or False for a table of one run",
    hint="Count the rows that were answered within 20 ms of due_s, and divide by the number of all rows. There is no "
    "need for a percentile.",
)
async def keeps_the_promise(trial: Trial, answer: Any) -> str:
    """Hand over tables as PacedRun.frame() makes them, in which the promise is kept or broken for one reason each."""
    import pandas as pd

    for rows, kept, what, why in CASES:
        table = pd.DataFrame(
            {
                "due_s": [due for due, _, _, _ in rows],
                "sent_s": [sent for _, sent, _, _ in rows],
                "done_s": [float("nan") if latency is None else due + latency for due, _, latency, _ in rows],
                "outcome": [outcome for _, _, _, outcome in rows],
            }
        )
        table = table.sample(frac=1.0, random_state=4)  # rows in no order, and an index that is none
        trial.case = f"the table of a run with {what}"
        said = answer(table)
        if type(said).__name__ not in ("bool", "bool_"):
            shown = f"{said:g}" if isinstance(said, float) else reprlib.repr(said)
            raise NotYet(f"{shown} was returned for one table", "True or False")
        if bool(said) is not kept:
            raise NotYet(f"{bool(said)} for {what}", f"{kept}{why}")
    return "the share within a limit counts everybody who asked; a percentile of the answered leaves some out"
