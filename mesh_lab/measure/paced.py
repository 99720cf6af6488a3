"""Load at a given rate, and what each message waited: from the moment at which it was due, not from when it left.

A generator that waits for an answer before it asks again slows down with the system that it measures: while the
system stands still, it asks nothing, and the bad moments are missing from the result. That is *coordinated
omission* (Gil Tene, "How NOT to Measure Latency", 2013). Here the times at which messages are due are fixed
beforehand. A message that leaves late because its predecessors are stuck has been waiting since then.

The child keeps time with ``select``, which counts in microseconds; the event loops of asyncio and uvloop sleep in
whole milliseconds.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mesh_lab.measure.load import portable, publisher_tasks
from mesh_lab.measure.load_children import run_children
from mesh_lab.measure.paced_jobs import ANSWERED, NOBODY, REFUSED, UNANSWERED

if TYPE_CHECKING:
    import pandas as pd
    from hdrh.histogram import HdrHistogram

Since = Literal["due", "sent"]
LONGEST_US = 600 * 1_000_000
OUTCOMES = {UNANSWERED: "unanswered", ANSWERED: "answered", REFUSED: "refused", NOBODY: "nobody there"}


@dataclass(frozen=True, slots=True, repr=False)
class PacedRun:
    """Each message of a run: when it was due, when it left, how and when it ended. Times are in nanoseconds."""

    offered_per_s: float
    """The rate that was asked for."""
    due_ns: Sequence[int]
    """When each message was due, after the first one."""
    sent_ns: Sequence[int]
    """When it left, on the same clock."""
    done_ns: Sequence[int]
    """When its answer came; 0 for none."""
    outcome: bytes
    """How it ended, a byte each; :meth:`frame` has it in words."""
    server_version: str = ""
    """Version of the server at the other end."""

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
        """Messages that nobody took, or to which no answer came in time."""
        return self.messages - self.answered - self.refused

    @property
    def answered_per_s(self) -> float:
        """Messages answered, for each second from the first that was due to the last answer."""
        last = max((done for done, how in zip(self.done_ns, self.outcome, strict=True) if how == ANSWERED), default=0)
        return self.answered / max(last / 1e9, self.messages / self.offered_per_s)

    def latencies_ms(self, *, since: Since = "due") -> list[float]:
        """Return how long each answered message took, in the order in which they were due.

        Args:
            since: ``"due"`` counts from when the message was due, as its sender feels it; ``"sent"`` only from when
                it left, which hides what it waited for before.
        """
        began = self.due_ns if since == "due" else self.sent_ns
        return [
            (done - start) / 1e6
            for start, done, how in zip(began, self.done_ns, self.outcome, strict=True)
            if how == ANSWERED
        ]

    def histogram(self, *, since: Since = "due") -> "HdrHistogram":
        """Return the latencies in microseconds as an HDR histogram, three digits exact, from 1 µs to 10 minutes."""
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(1, LONGEST_US, 3)
        for latency in self.latencies_ms(since=since):
            histogram.record_value(min(max(round(latency * 1_000), 1), LONGEST_US))
        return histogram

    def percentile_ms(self, percent: float, *, since: Since = "due") -> float:
        """Return the latency that so many percent of the answered messages did not exceed; 100 is the longest.

        Raises:
            ValueError: No message was answered, or ``percent`` is not above 0 and up to 100.
        """
        if not self.answered or not 0 < percent <= 100:
            raise ValueError(f"percent={percent} of {self.answered} answered messages, expected 0 to 100 of 1 or more")
        return float(self.histogram(since=since).get_value_at_percentile(percent)) / 1_000

    def timeline(self, *, every: float = 0.1, since: Since = "due") -> dict[float, float]:
        """Return the longest latency in milliseconds of those due in each slice of time, by its start in seconds."""
        began = self.due_ns if since == "due" else self.sent_ns
        slices: dict[float, float] = {}
        for start, done, how in zip(began, self.done_ns, self.outcome, strict=True):
            if how == ANSWERED:
                at = round(start / 1e9 // every * every, 6)
                slices[at] = max(slices.get(at, 0.0), (done - start) / 1e6)
        return slices

    def frame(self) -> "pd.DataFrame":
        """Return a row for each message: ``due_s``, ``sent_s``, ``done_s`` (NaN for none) and ``outcome`` in words."""
        import pandas as pd

        columns = {"due_s": self.due_ns, "sent_s": self.sent_ns, "done_s": self.done_ns}
        table = pd.DataFrame({name: pd.Series(list(ns), dtype=float) / 1e9 for name, ns in columns.items()})
        table["outcome"] = [OUTCOMES[how] for how in self.outcome]
        table.loc[table["outcome"] == OUTCOMES[UNANSWERED], "done_s"] = float("nan")
        return table

    def __repr__(self) -> str:
        """Say everything in one line."""
        rate = f"{self.messages:,} messages at {self.offered_per_s:,.0f}/s"
        counts = f"answered {self.answered:,}, refused {self.refused:,}, lost {self.lost:,}"
        if not self.answered:
            return f"{rate}: {counts}"
        p50, p99, longest = (self.percentile_ms(percent) for percent in (50, 99, 100))
        return f"{rate}: {counts}; p50 {p50:,.3g} ms, p99 {p99:,.3g} ms, longest {longest:,.3g} ms since due"


async def paced_load(
    options: Mapping[str, Any],
    *,
    subject: str,
    rate_per_s: float,
    seconds: float,
    until: Literal["reply", "ack", "received"] = "reply",
    closed: bool = False,
    arrivals: Literal["steady", "random"] = "steady",
    seed: int = 1,
    payloads: Sequence[bytes] | None = None,
    payload_bytes: int = 128,
    patience: float = 2.0,
    within: float = 60.0,
) -> PacedRun:
    """Send messages at a rate that nothing slows down, and return what became of each.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; a token ``{n}`` becomes the message's number.
        rate_per_s: Messages a second; one process manages some 10,000 on the machines of the course.
        seconds: How long messages are due.
        until: What ends a message: ``"reply"`` to a request, ``"ack"`` of a stream, ``"received"`` by a subscriber.
        closed: Wait for each answer before the next message leaves, however long ago that was due: the closed loop.
        arrivals: ``"steady"`` gaps, or ``"random"`` ones as of senders who know nothing of each other (Poisson).
        seed: Chooses the random gaps; the same seed gives the same ones.
        payloads: What to send, in turn; ``None`` sends numbers. ``"received"`` needs the numbers.
        payload_bytes: Size of each payload without ``payloads``, 8 or more.
        patience: Seconds after which a message without an answer counts as lost.
        within: Seconds beyond ``seconds`` and ``patience`` until the child must be done.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        LoadFailedError: The child ended without a result; the message carries its traceback.
    """
    messages = int(rate_per_s * seconds)
    if rate_per_s <= 0 or messages < 1 or patience <= 0:
        raise ValueError(
            f"rate_per_s={rate_per_s}, seconds={seconds}, patience={patience}: expected all above 0, and a message"
        )
    if payloads is not None and (until == "received" or not payloads):
        raise ValueError(f"{len(payloads)} payloads until {until!r}: expected 1 or more, and not until 'received'")
    limit = seconds + patience + within
    [task] = publisher_tasks(
        "paced", portable(options), subject, messages, payload_bytes, 1, limit, controls=[], window=1
    )
    paced = msgspec.structs.replace(
        task,
        rate_per_s=float(rate_per_s),
        until=until,
        closed=closed,
        random_arrivals=arrivals == "random",
        seed=seed,
        payloads=list(payloads or []),
        patience=patience,
    )
    [[report], _] = await run_children([paced], within=limit)
    due, sent, done = (array("q", part) for part in (report.due_ns, report.sent_ns, report.done_ns))
    start = due[0]
    return PacedRun(
        offered_per_s=rate_per_s,
        due_ns=[at - start for at in due],
        sent_ns=[at - start for at in sent],
        done_ns=[at - start if at else 0 for at in done],
        outcome=report.outcome,
        server_version=report.server_version,
    )
