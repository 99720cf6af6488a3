"""The history of a run: what each writer sent, what became of it, and when."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import msgspec

Outcome = Literal["stored", "refused", "unknown"]
GAP_S = 0.25
"""Time without an acknowledgement that counts as a gap."""


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order that a writer sent, under one id, however often it had to be sent again."""

    writer: str
    number: int
    """The writer's own count, from 0: it sends an order when the one before has met its end."""
    id: str
    """The ``Nats-Msg-Id``; no other attempt has it."""
    began_s: float
    """When it was first sent, in seconds since the run began."""
    ended_s: float
    outcome: Outcome
    """``stored``: acknowledged. ``refused``: the server said no. ``unknown``: no answer; it may be stored."""
    seq: int = 0
    """Its number in the stream, from the acknowledgement; 0 without one."""


class Gap(NamedTuple):
    """A stretch of time in which nothing was acknowledged to anybody."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        """How long it was, in seconds."""
        return self.ended_s - self.began_s


class History:
    """The ``attempts`` of a run in the order in which they ended, and how many seconds it took: ``length_s``."""

    def __init__(self, attempts: Iterable[Attempt] = ()) -> None:
        self.attempts = list(attempts)
        self.length_s = max((attempt.ended_s for attempt in self.attempts), default=0.0)

    def __len__(self) -> int:
        """Return the number of attempts."""
        return len(self.attempts)

    def __repr__(self) -> str:
        """Return how many attempts met which end."""
        ends = Counter(attempt.outcome for attempt in self.attempts)
        counts = ", ".join(f"{ends[outcome]:,} {outcome}" for outcome in get_args(Outcome))
        return f"{len(self):,} attempts in {self.length_s:.1f} s: {counts}"

    def add(self, attempt: Attempt) -> None:
        """Write down one attempt that met its end."""
        self.attempts.append(attempt)
        self.length_s = max(self.length_s, attempt.ended_s)

    @property
    def acknowledged(self) -> dict[str, Attempt]:
        """The attempts that were acknowledged, by id."""
        return {attempt.id: attempt for attempt in self.attempts if attempt.outcome == "stored"}

    def gaps(self) -> list[Gap]:
        """Return when nothing was acknowledged, the time before the first and after the last one included."""
        times = sorted([0.0, *(a.ended_s for a in self.attempts if a.outcome == "stored"), self.length_s])
        return [Gap(one, other) for one, other in pairwise(times) if other - one > GAP_S]

    @property
    def availability(self) -> float:
        """Share of the time that lies in no gap, from 0 to 1."""
        return 1 - sum(gap.length_s for gap in self.gaps()) / self.length_s if self.length_s else 1.0
