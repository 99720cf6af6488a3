"""Checks of notebook 04, ``measure_without_lying``: what a benchmark counts, since when, and whose time is missing."""

import asyncio
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nats.aio.msg import Msg

from mesh_lab.measure import paced_load
from mesh_lab.notebook.exercises import NotYet, Trial, exercise

# 4.1

ORDERS, WORK_S, AT_THE_ENDS_S = 20, 0.005, 0.12  # 0.33 s in all: less than nc.request waits for by default
CODE = "Nats-Service-Error-Code"
REFUSAL = {CODE: "422", "Nats-Service-Error": "no such CD"}
TRIES, APART = 5, 1.1  # rates that differ by less than a tenth are alike
_RIGHT = ()
_REFUSED = ("refused orders count as processed", f"only answers without the header {CODE}")
_PART = (
    "the rate is above what the worker did",
    "a clock from the first publish to the last answer, also a refusal",
)


@exercise(
    "4.1",
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
    for _ in range(TRIES):
        rate, worked = await _rate_and_clock(trial, answer)
        began, first, *_, last_processed, last = worked
        clocks = {1.0: _RIGHT, 2.0: _REFUSED, (last - began) / (last - first): _PART}
        clocks[(last - began) / (last_processed - began)] = _PART
        if all(other / one > APART for one, other in pairwise(sorted(clocks)) if clocks[one] != clocks[other]):
            break
    times = rate / (ORDERS / 2 / (last - began))
    if times > 1.5 * max(clocks):
        raise NotYet("the rate is many times what the worker can do", "the clock to stop with the last answer")
    if times < 0.5:  # the machine may pause for a moment; a wrong clock is further off
        raise NotYet("the rate is far below what the worker did", "a clock that runs from first publish to last answer")
    if wrong := clocks[min(clocks, key=lambda one: abs(math.log(times / one)))]:
        raise NotYet(*wrong)
    return "what a worker confirms is processed; all that the publisher can see alone is its own buffer"


async def _rate_and_clock(trial: Trial, answer: Any) -> tuple[float, list[float]]:
    """Return the answer's rate, and when the worker began and was done with each order."""
    worked: list[float] = []

    async def work(msg: Msg) -> None:
        if not worked:
            worked.append(time.perf_counter())
        await asyncio.sleep(AT_THE_ENDS_S if int(msg.data) in (0, ORDERS - 1) else WORK_S)  # work
        worked.append(time.perf_counter())
        refused = int(msg.data) % 2
        if msg.reply:
            await worker.publish(msg.reply, headers=REFUSAL if refused else None)

    nc, worker = await trial.client(), await trial.client(name="worker")
    rate = await answer(nc, await trial.serve(worker, work), [b"%d" % n for n in range(ORDERS)])
    came = len(worked) - 1 if worked else 0
    trial.kind(rate, (int, float), "a number of orders a second")
    if rate <= 0:
        raise NotYet(f"{rate:g} orders a second", "a rate above 0")
    if came < ORDERS:
        raise NotYet("it returned before the worker had done its last order", "a clock that stops with the last answer")
    return rate, worked


# 4.2

RATE_PER_S, SECONDS, SLOW_AT, STALL_S = 100, 0.6, 20, 0.25
CLOSE_S = 0.001
BY_HAND = ([0.3, 0.6, 0.7], [0.25, 0.05, 0.02], 10, [0.55, 0.55, 0.52])


@exercise(
    "4.2",
    title="give the waiting back",
    answer="function",
    expects="a list with a latency for each question, in seconds since it was due",
    hint="Question n was due n / rate_per_s seconds after the start. When was it answered? Subtract.",
)
async def gives_the_waiting_back(trial: Trial, answer: Any) -> str:
    """Hand over a record whose first question left late, then one of a real closed loop that met a stall."""
    *record, expected = BY_HAND
    returned = answer(*map(_copied, record))
    late = [one - BY_HAND[0][0] for one in expected]
    if _is_seconds(returned) and len(returned) == len(late) and _close(returned, late):
        raise NotYet("0 is where the first question left, which was 0.3 s late", _DUE)
    _expect(returned, expected, BY_HAND[1])

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
    _expect(answer(list(sent), list(latencies), RATE_PER_S), due, latencies)
    return (
        "where a record lacks its send times, HdrHistogram's record_corrected_value(latency, interval) makes up the "
        "missing answers; that is a guess, and yours is a fact"
    )


_DUE = "question n due at n / rate_per_s, counted from 0"


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _is_seconds(returned: Any) -> bool:
    return isinstance(returned, Sequence) and all(isinstance(one, int | float) for one in returned)


def _expect(returned: Any, expected: Sequence[float], unmended: Sequence[float]) -> None:
    if not _is_seconds(returned):
        raise NotYet(f"a {type(returned).__name__} was returned", "a list of seconds")
    if len(returned) != len(expected):
        more = "more" if len(returned) > len(expected) else "fewer"
        raise NotYet(f"{more} latencies than questions", "one for each, in their order")
    if _close(returned, expected):
        return
    if _close(returned, unmended):
        raise NotYet("the latencies are those since the questions were sent", "those since they were due")
    if _close([one / 1_000 for one in returned], expected):
        raise NotYet("the latencies are in milliseconds", "seconds, as they came")
    if min(returned) < -CLOSE_S:
        raise NotYet("an answer came before its question was due", _DUE)
    raise NotYet("some latencies differ from those since the questions were due", _DUE)


def _close(some: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(one - other) < CLOSE_S for one, other in zip(some, others, strict=True))


# 4.3

ASKED = 200
Row = tuple[float, float, float | None, str]
"""When a question was due, when it left, how long after it was due its end came, all in seconds; and how it ended."""


def _rows(ends: Sequence[tuple[int, float | None, str]], *, late: float = 0.0) -> list[Row]:
    """Return so many rows of each kind: number, latency since due, outcome; each left so much after it was due."""
    flat = [(latency, outcome) for count, latency, outcome in ends for _ in range(count)]
    return [(n / 100, n / 100 + late, latency, outcome) for n, (latency, outcome) in enumerate(flat)]


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
]


@exercise(
    "4.3",
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
        said = answer(table)
        if said not in (True, False):
            raise NotYet(f"{said!r} was returned for one table", "True or False")
        if bool(said) is not kept:
            raise NotYet(f"{bool(said)} for {what}", f"{kept}{why}")
    return "the share within a limit counts everybody who asked; a percentile of the answered leaves some out"
