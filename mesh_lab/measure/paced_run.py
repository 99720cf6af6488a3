"""What came of a load at a given rate: each message's times and its end, and the numbers that can be read from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mesh_lab.measure.paced_jobs import ANSWERED, NOBODY, REFUSED, UNANSWERED

if TYPE_CHECKING:
    import pandas as pd
    from hdrh.histogram import HdrHistogram

Since = Literal["due", "sent"]
LONGEST_US = 600 * 1_000_000
OUTCOMES = {UNANSWERED: "unanswered", ANSWERED: "answered", REFUSED: "refused", NOBODY: "nobody there"}
# A generator that is later than this has latencies of its own to tell.
LATE_MS = 5.0


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
    gave_up_ns: int = 0
    """When nobody waited any longer for answers, on the same clock."""
    closed: bool = False
    """Whether each message waited for the end of the one before."""
    server_version: str = ""
    """Version of the server at the other end."""

    def __post_init__(self) -> None:
        sizes = {len(self.due_ns), len(self.sent_ns), len(self.done_ns), len(self.outcome)}
        if len(sizes) > 1 or 0 in sizes or not set(self.outcome) <= set(OUTCOMES):
            raise ValueError(f"columns of {sorted(sizes)} messages, expected the same number in each, 1 or more")

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
        return self.answered / max(last / 1e9, self.due_ns[-1] / 1e9 + 1 / self.offered_per_s)

    def latencies_ms(self, *, since: Since = "due") -> list[float]:
        """Return how long each answered message took, in the order in which they were due.

        Args:
            since: ``"due"`` counts from when the message was due, as its sender feels it; ``"sent"`` only from when
                it left, which hides what it waited for before.

        Raises:
            ValueError: ``since`` is something else.
        """
        return [
            (done - start) / 1e6
            for start, done, how in zip(self._began(since), self.done_ns, self.outcome, strict=True)
            if how == ANSWERED
        ]

    def histogram(self, *, since: Since = "due") -> "HdrHistogram":
        """Return the latencies in microseconds as an HDR histogram, three digits exact, from 1 µs to 10 minutes.

        Histograms of several runs can be added; their percentiles cannot.
        """
        from hdrh.histogram import HdrHistogram

        histogram = HdrHistogram(1, LONGEST_US, 3)
        for latency in self.latencies_ms(since=since):
            histogram.record_value(min(max(round(latency * 1_000), 1), LONGEST_US))
        return histogram

    def percentile_ms(self, percent: float, *, since: Since = "due") -> float:
        """Return the smallest latency that so many percent of the answered messages did not exceed.

        What was refused or lost has no latency and does not count here: read it beside :attr:`refused` and
        :attr:`lost`, or ask :meth:`share_within`.

        Args:
            percent: Above 0 and up to 100, which is the longest.
            since: As in :meth:`latencies_ms`.

        Raises:
            ValueError: No message was answered, or ``percent`` is out of its range.
        """
        latencies = sorted(self.latencies_ms(since=since))
        if not latencies or not 0 < percent <= 100:
            raise ValueError(f"percent={percent} of {len(latencies)} answered messages, expected 0 to 100 of 1 or more")
        return latencies[_rank(percent, len(latencies))]

    def share_within(self, limit_ms: float, *, since: Since = "due") -> float:
        """Return the share of all messages that were answered in time; what was refused or lost was not.

        Args:
            limit_ms: Latency that still counts as in time.
            since: As in :meth:`latencies_ms`.
        """
        return sum(latency <= limit_ms for latency in self.latencies_ms(since=since)) / self.messages

    def lateness_ms(self, percent: float = 99) -> float:
        """Return how late messages left: the lateness that so many percent of them did not exceed.

        In an open loop this is the generator's own fault, or that of the connection it writes to; it is part of
        every latency since due. A machine that is too busy, or a rate that is too high, shows here first.

        Args:
            percent: Above 0 and up to 100, which is the latest.

        Raises:
            ValueError: ``percent`` is out of its range.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"percent={percent}, expected above 0 and up to 100")
        late = sorted((sent - due) / 1e6 for due, sent in zip(self.due_ns, self.sent_ns, strict=True))
        return late[_rank(percent, len(late))]

    def timeline(self, *, every: float = 0.1, since: Since = "due") -> dict[float, float]:
        """Return the longest latency in milliseconds of those due in each slice of time, by its start in seconds.

        A message that was never answered counts with the time that was waited for it, so that the worst moments
        are not missing. Refused ones, and those that nobody took, do not count.

        Args:
            every: Width of a slice in seconds.
            since: ``"sent"`` counts latencies, and chooses slices, from when the messages left.

        Raises:
            ValueError: ``every`` is not positive.
        """
        if not every > 0:
            raise ValueError(f"every={every}, expected a positive number of seconds")
        width = max(1, round(every * 1e9))  # whole numbers: 0.3 // 0.1 is 2
        slices: dict[float, float] = {}
        for start, done, how in zip(self._began(since), self.done_ns, self.outcome, strict=True):
            if how in (ANSWERED, UNANSWERED):
                at = start // width * width / 1e9
                waited = (done if how == ANSWERED else max(self.gave_up_ns, start)) - start
                slices[at] = max(slices.get(at, 0.0), waited / 1e6)
        return slices

    def frame(self) -> "pd.DataFrame":
        """Return a row for each message: ``due_s``, ``sent_s``, ``done_s`` (NaN for none) and ``outcome`` in words."""
        import pandas as pd

        columns = {"due_s": self.due_ns, "sent_s": self.sent_ns, "done_s": self.done_ns}
        table = pd.DataFrame({name: pd.Series(list(ns), dtype=float) / 1e9 for name, ns in columns.items()})
        table["outcome"] = [OUTCOMES[how] for how in self.outcome]
        table.loc[table["outcome"] == OUTCOMES[UNANSWERED], "done_s"] = float("nan")
        return table

    def _began(self, since: Since) -> Sequence[int]:
        if since not in get_args(Since):
            raise ValueError(f"since={since!r}, expected one of {', '.join(get_args(Since))}")
        return self.due_ns if since == "due" else self.sent_ns

    def __repr__(self) -> str:
        """Say everything in one line, and in words when the generator itself was late."""
        said = f"{self.messages:,} messages at {self.offered_per_s:,.0f}/s, {'closed' if self.closed else 'open'} loop"
        said += f": answered {self.answered:,}, refused {self.refused:,}, lost {self.lost:,}"
        if self.answered:
            p50, p99, longest = (self.percentile_ms(percent) for percent in (50, 99, 100))
            said += f"; p50 {p50:,.3g} ms, p99 {p99:,.3g} ms, longest {longest:,.3g} ms since due"
        if not self.closed and (late := self.lateness_ms()) > LATE_MS:
            said += f"; of 100 messages, 1 left {late:,.3g} ms late or more: those latencies are the generator's own"
        return said


def _rank(percent: float, count: int) -> int:
    """Return the position of a percentile among so many sorted values: the first that enough of them do not exceed."""
    # Rounded first: 99.9 % of 1,000 is 999.0000000000001 as a float, which is not the 1,000th.
    return max(0, math.ceil(round(percent * count / 100, 9)) - 1)
