"""Load at a given rate, and what each message waited: from the moment at which it was due, not from when it left.

A generator that waits for each reply sends nothing while the system stalls, and the worst latencies are missing from
its result: *coordinated omission* (Gil Tene, "How NOT to Measure Latency", 2013). Here the times at which messages are
due are fixed beforehand, and one that leaves late has been waiting since then.
"""

import asyncio
import contextlib
import math
import random
import selectors
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.measure.load import numbered_shares, run_children
from mesh_lab.measure.load_jobs import NumberedJob, Parent, Result
from mesh_lab.patterns.jetstream_api import PublishReply
from mesh_lab.patterns.jetstream_wait import wait_interest

if TYPE_CHECKING:
    import pandas as pd
    from hdrh.histogram import HdrHistogram

Until = Literal["reply", "ack", "received"]
Arrivals = Literal["steady", "random"]
Since = Literal["due", "sent"]
LONGEST_US = 600 * 1_000_000
# What became of a message, a byte each.
UNANSWERED, ANSWERED, REFUSED, NOBODY = range(4)
OUTCOMES = {UNANSWERED: "unanswered", ANSWERED: "answered", REFUSED: "refused", NOBODY: "nobody there"}
PAYLOAD_BYTES = 128
LATE_BY_S = 60.0
START_S = 0.02  # from the parent's signal to the first message
LATE_MS = 5.0  # a generator that is later than this measures its own delays


@dataclass(frozen=True, slots=True, repr=False)
class PacedRun:
    """Each message of a run: when it was due, when it left, how and when it ended. Times are in nanoseconds.

    Attributes:
        offered_per_s: The rate that was asked for.
        due_ns: When each message was due, after the first one.
        sent_ns: When it left, on the same clock.
        done_ns: When its answer came; 0 for none.
        outcome: How it ended, a byte each; :meth:`frame` has it in words.
        gave_up_ns: When the generator stopped waiting for answers, on the same clock.
        closed: Whether each message waited for the end of the one before.
    """

    offered_per_s: float
    due_ns: Sequence[int]
    sent_ns: Sequence[int]
    done_ns: Sequence[int]
    outcome: bytes
    gave_up_ns: int = 0
    closed: bool = False

    @property
    def messages(self) -> int:
        """Messages that were due."""
        return len(self.outcome)

    @property
    def answered(self) -> int:
        """Messages that were answered, acknowledged or received."""
        return self.outcome.count(ANSWERED)

    @property
    def refused(self) -> int:
        """Messages whose answer was an error."""
        return self.outcome.count(REFUSED)

    @property
    def lost(self) -> int:
        """Messages for which there was no subscriber, or to which no answer came in time."""
        return self.messages - self.answered - self.refused

    def latencies_ms(self, *, since: Since = "due") -> list[float]:
        """Return how long each answered message took, in the order in which they were due.

        Args:
            since: ``"due"``, as its sender feels it, or ``"sent"``, which hides what it waited for before it left.

        Raises:
            ValueError: ``since`` is something else.
        """
        if since not in get_args(Since):
            raise ValueError(f"since={since!r}, expected one of {', '.join(get_args(Since))}")
        began = self.due_ns if since == "due" else self.sent_ns
        messages = zip(began, self.done_ns, self.outcome, strict=True)
        return [(done - start) / 1e6 for start, done, how in messages if how == ANSWERED]

    def histogram(self) -> "HdrHistogram":
        """Return the latencies in microseconds as an HDR histogram, three digits exact, from 1 µs to 10 minutes."""
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(1, LONGEST_US, 3)
        for latency in self.latencies_ms():
            histogram.record_value(min(max(round(latency * 1_000), 1), LONGEST_US))
        return histogram

    def percentile_ms(self, percent: float) -> float:
        """Return the smallest latency since due that ``percent`` % of the answered messages did not exceed.

        Args:
            percent: Above 0 and up to 100, which is the longest. What was refused or lost does not count.

        Raises:
            ValueError: No message was answered, or ``percent`` is out of its range.
        """
        latencies = self.latencies_ms()
        if not latencies or not 0 < percent <= 100:
            raise ValueError(f"percent={percent} of {len(latencies)} answered messages, expected 0 to 100 of 1 or more")
        return _percentile(latencies, percent)

    def share_within(self, limit_ms: float) -> float:
        """Return the share of all messages that were answered within ``limit_ms`` milliseconds since due."""
        return sum(latency <= limit_ms for latency in self.latencies_ms()) / self.messages

    def lateness_ms(self, percent: float = 99) -> float:
        """Return how late messages left: the lateness that ``percent`` % of them did not exceed.

        In an open loop that is the generator's own fault, or that of its connection: too busy, or too high a rate.

        Raises:
            ValueError: ``percent`` is not above 0 and up to 100.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"percent={percent}, expected above 0 and up to 100")
        return _percentile([(sent - due) / 1e6 for due, sent in zip(self.due_ns, self.sent_ns, strict=True)], percent)

    def frame(self) -> "pd.DataFrame":
        """Return a row for each message: ``due_s``, ``sent_s``, ``done_s`` (NaN for none) and ``outcome`` in words."""
        import pandas as pd

        columns = {"due_s": self.due_ns, "sent_s": self.sent_ns, "done_s": self.done_ns}
        table = pd.DataFrame({name: pd.Series(list(ns), dtype=float) / 1e9 for name, ns in columns.items()})
        table["outcome"] = [OUTCOMES[how] for how in self.outcome]
        table.loc[table["outcome"] == OUTCOMES[UNANSWERED], "done_s"] = float("nan")
        return table

    def __repr__(self) -> str:
        line = f"{self.messages:,} messages at {self.offered_per_s:,.0f}/s, {'closed' if self.closed else 'open'} loop"
        line += f": answered {self.answered:,}, refused {self.refused:,}, lost {self.lost:,}"
        if self.answered:
            p50, p99, longest = (self.percentile_ms(percent) for percent in (50, 99, 100))
            line += f"; p50 {p50:,.3g} ms, p99 {p99:,.3g} ms, longest {longest:,.3g} ms since due"
        if not self.closed and (late := self.lateness_ms()) > LATE_MS:
            line += f"; of 100 messages, 1 left {late:,.3g} ms late or more: those latencies are the generator's own"
        return line


async def paced_load(
    options: Mapping[str, Any],
    *,
    subject: str,
    rate_per_s: float,
    seconds: float,
    until: Until = "reply",
    closed: bool = False,
    arrivals: Arrivals = "steady",
    seed: int = 1,
    payloads: Sequence[bytes] | None = None,
    patience: float = 2.0,
) -> PacedRun:
    """Send messages at a rate that nothing slows down, and return what became of each.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; a token ``{n}`` becomes the message's number.
        rate_per_s: Messages a second; a run whose generator was late itself says so.
        seconds: How long messages are due.
        until: What ends a message: ``"reply"`` to a request, ``"ack"`` of a stream, ``"received"`` by a subscriber.
        closed: Wait for each answer before the next message leaves, however long ago that was due: the closed loop.
        arrivals: ``"steady"`` gaps, or ``"random"`` ones as of senders that know nothing of each other (Poisson).
        seed: Chooses the random gaps; the same seed gives the same ones.
        payloads: What to send, in turn; ``None`` sends numbers, in 128 bytes. ``"received"`` needs the numbers.
        patience: Seconds to wait for answers after the last message has left; in a closed loop, after each. What has
            not been answered when the run ends is lost.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        ProcessEndedError: The child ended without a result, a minute after it should have at the latest; the message
            carries its traceback.
    """
    for name, number in {"rate_per_s": rate_per_s, "seconds": seconds, "patience": patience}.items():
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}={number}, expected a positive number")
    if (messages := round(rate_per_s * seconds)) < 1:
        raise ValueError(f"rate_per_s={rate_per_s}, seconds={seconds}: no message is due; expected 1 or more")
    for name, value, known in (("until", until, get_args(Until)), ("arrivals", arrivals, get_args(Arrivals))):
        if value not in known:
            raise ValueError(f"{name}={value!r}, expected one of {', '.join(known)}")
    if payloads is not None and (until == "received" or not payloads):
        raise ValueError(f"{len(payloads)} payloads until {until!r}: expected 1 or more, and not until 'received'")
    limit = seconds + patience + LATE_BY_S
    [share] = numbered_shares(options, subject, messages, PAYLOAD_BYTES, 1, limit)
    job = Paced(
        **share,
        rate_per_s=float(rate_per_s),
        until=until,
        closed=closed,
        random_arrivals=arrivals == "random",
        seed=seed,
        payloads=list(payloads or []),
        patience=float(patience),
    )
    [[result], _] = await run_children([job], within=limit)
    due_ns, sent_ns, done_ns = array("q", job.schedule()), array("q", result.sent_ns), array("q", result.done_ns)
    return PacedRun(rate_per_s, due_ns, sent_ns, done_ns, result.outcome, result.ended_ns - result.began_ns, closed)


def _percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that so many percent of them do not exceed."""
    # Rounded first: 99.9 % of 1,000 is 999.0000000000001 as a float, which is not the 1,000th.
    return sorted(values)[max(0, math.ceil(round(percent * len(values) / 100, 9)) - 1)]


class PacedResult(Result, frozen=True, kw_only=True):
    """When each message was sent and answered (0 if not), 8 bytes of nanoseconds each, and how it ended.

    As everywhere in a run, times count from when the first message was due, which is ``began_ns``.
    """

    sent_ns: bytes
    done_ns: bytes
    outcome: bytes


class Paced(NumberedJob[PacedResult], frozen=True, kw_only=True):
    """What the child does; :func:`paced_load` says what each field means."""

    rate_per_s: float
    until: Until
    closed: bool
    random_arrivals: bool
    seed: int
    payloads: list[bytes]
    patience: float
    survives_reconnect: bool = True

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return one with select, which counts in microseconds; epoll, kqueue and uvloop count in milliseconds."""
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    def schedule(self) -> Iterator[int]:
        """Yield when each message is due, in nanoseconds after the first: evenly, or by chance around the same rate."""
        gap_ns = 1e9 / self.rate_per_s
        chance = random.Random(self.seed)  # repeatable; it need not be secret
        at = 0.0
        for _ in range(self.count):
            yield int(at)
            at += chance.expovariate(1 / gap_ns) if self.random_arrivals else gap_ns

    async def __call__(self, client: Client, parent: Parent) -> PacedResult:
        """Send each message at its time, and note when it was answered."""
        due_ns = array("q", self.schedule())
        sent_ns, done_ns = array("q", bytes(8 * self.count)), array("q", bytes(8 * self.count))
        outcomes, unanswered, change = bytearray(self.count), self.count, asyncio.Event()
        given, inbox = cycle(self.payloads), client.new_inbox()

        def now_ns() -> int:
            return time.perf_counter_ns() - start_ns

        def note(n: int, outcome: int = ANSWERED) -> None:
            nonlocal unanswered
            if outcomes[n] == UNANSWERED:  # only a message's first end counts
                done_ns[n] = now_ns()
                outcomes[n] = outcome
                unanswered -= 1
                change.set()

        async def on_answer(msg: Msg) -> None:
            note(int(msg.subject.rpartition(".")[2]), _outcome(msg, acknowledgement=self.until == "ack"))

        async def wait_while_patient(n: int) -> bool:
            """Wait for the end of any message as long as there is patience for message n; return whether there was."""
            left_s = self.patience - (now_ns() - sent_ns[n]) / 1e9
            change.clear()
            if left_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(change.wait(), left_s)
            return left_s > 0

        if self.until == "received":
            await self.subscribe(client, note)
        else:
            await client.subscribe(f"{inbox}.*", cb=on_answer, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.flush()
        if self.until == "ack":
            await wait_interest(client, self.subject)
        await parent.ready()
        parent.stage = "the answers"
        # From here on nothing is computed for all messages at once: the first ones would be late.
        start_ns = time.perf_counter_ns() + int(START_S * 1e9)
        for n, (subject, numbered) in enumerate(self.messages()):
            if (wait_ns := due_ns[n] - now_ns()) > 0:
                await asyncio.sleep(wait_ns / 1e9)
            elif n % 64 == 0:
                await asyncio.sleep(0)  # late: let the answers in all the same
            payload = next(given, numbered)  # the next of those that were given, if any were
            reply = "" if self.until == "received" else f"{inbox}.{n}"
            sent_ns[n] = now_ns()
            with contextlib.suppress(nats.errors.OutboundBufferLimitError):  # no server: it stays unanswered
                await client.publish(subject, payload, reply=reply)
            while self.closed and outcomes[n] == UNANSWERED and await wait_while_patient(n):
                pass
        while unanswered and await wait_while_patient(self.count - 1):
            pass
        return PacedResult(
            began_ns=start_ns,
            ended_ns=time.perf_counter_ns(),
            sent_ns=sent_ns.tobytes(),
            done_ns=done_ns.tobytes(),
            outcome=bytes(outcomes),
        )


def _outcome(msg: Msg, *, acknowledgement: bool) -> int:
    if msg.headers and msg.headers.get("Status") == "503" and not msg.data:
        return NOBODY
    if acknowledgement:
        return ANSWERED if _stored(msg.data) else REFUSED
    return REFUSED if msg.headers and "Nats-Service-Error-Code" in msg.headers else ANSWERED


def _stored(answer: bytes) -> bool:
    """Return whether an answer is a stream's acknowledgement, and not its refusal or a service's reply."""
    try:
        reply = msgspec.json.decode(answer, type=PublishReply)
    except msgspec.DecodeError:
        return False
    return reply.stream != "" and reply.seq > 0 and reply.error is None
