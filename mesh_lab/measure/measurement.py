"""What was timed, how often, and how far the runs lie apart."""

import math
import platform
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal, Self, get_args

Kind = Literal["published", "acknowledged", "delivered", "processed", "ready"]
"""What the clock was stopped by.

``published``: the server has read the last message (a PONG came back). ``acknowledged``: the last message is
stored. ``delivered``: a subscriber received it. ``processed``: a worker's effect is confirmed. ``ready``:
something could be used.
"""

NOISY_SPREAD = 0.10


@dataclass(frozen=True, slots=True)
class Run:
    """One run of what is measured."""

    messages: int
    """Messages that were due."""
    elapsed_s: float
    """Time from the first of them to the last."""
    lost: int = 0
    """How many of them never came."""
    duplicates: int = 0
    """How many came a further time."""
    payload_bytes: int = 0
    """Size of each message's payload."""
    server_version: str = ""
    """Version of the nats-server that the clients were connected to."""

    def __post_init__(self) -> None:
        _check_counts(self.messages, self.lost, self.duplicates, self.payload_bytes)
        _check_elapsed(self.elapsed_s)
        if self.lost > self.messages:
            raise ValueError(f"lost={self.lost:,} of {self.messages:,} messages: more than there were")


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of several runs, with what it takes to read it a year later.

    ``repr`` is one line, which warns in words of a spread of 10 % or more.
    """

    name: str
    """What was done, in the words of the notebook."""
    kind: Kind
    """What the clock was stopped by."""
    messages: int
    """Messages that were due in each run; 1 for ``ready``."""
    elapsed_s: tuple[float, ...]
    """Time of each run."""
    payload_bytes: int = 0
    """Size of each message's payload."""
    lost: int = 0
    """Messages that never came, in all runs together."""
    duplicates: int = 0
    """Messages that came a further time, in all runs together."""
    server_version: str = ""
    """nats-server's version; empty when it is not known."""
    client_version: str = field(default_factory=lambda: version("nats-py"))
    """nats-py's version."""
    python_version: str = field(default_factory=platform.python_version)
    """Python's version."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a measurement needs a name that says what was done")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if not self.elapsed_s:
            raise ValueError(f"{self.name!r} has no runs, expected at least 1")
        for seconds in self.elapsed_s:
            _check_elapsed(seconds)
        _check_counts(self.messages, self.lost, self.duplicates, self.payload_bytes)
        if self.kind == "ready" and self.messages != 1:
            raise ValueError(f"messages={self.messages:,} for kind 'ready', expected 1: the thing itself")
        if self.lost > self.messages * self.runs:
            raise ValueError(f"lost={self.lost:,} of {self.messages * self.runs:,} messages: more than there were")

    @classmethod
    def of(cls, name: str, kind: Kind, runs: Sequence[Run]) -> Self:
        """Return the measurement that several runs make, which must be of the same size.

        Raises:
            ValueError: There are no runs, or they differ in size.
        """
        if len({(run.messages, run.payload_bytes) for run in runs}) != 1:
            sizes = sorted({(run.messages, run.payload_bytes) for run in runs})
            listed = (
                " and ".join(f"{messages:,} messages of {size:,} B" for messages, size in sizes) or "there are none"
            )
            raise ValueError(f"the runs of {name!r} differ: {listed}; only equal runs can be compared")
        return cls(
            name=name,
            kind=kind,
            messages=runs[0].messages,
            elapsed_s=tuple(run.elapsed_s for run in runs),
            payload_bytes=runs[0].payload_bytes,
            lost=sum(run.lost for run in runs),
            duplicates=sum(run.duplicates for run in runs),
            server_version=runs[0].server_version,
        )

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self.elapsed_s)

    @property
    def median_s(self) -> float:
        """Time of the run in the middle: one run that was disturbed does not move it."""
        return statistics.median(self.elapsed_s)

    @property
    def rate_per_s(self) -> float:
        """Messages that came, for each second of the median run; what was lost does not count."""
        return (self.messages - self.lost / self.runs) / self.median_s

    @property
    def spread(self) -> float:
        """Distance from the fastest run to the slowest, as a share of the median: 0.04 is 4 %."""
        return (max(self.elapsed_s) - min(self.elapsed_s)) / self.median_s

    @property
    def noisy(self) -> bool:
        """Whether the spread is 10 % or more: differences of that size mean nothing then."""
        return self.spread >= NOISY_SPREAD

    @property
    def figure(self) -> str:
        """The number that people quote, with its unit: ``"312,000/s"``, or ``"0.37 s"`` for ``ready``."""
        return f"{rounded(self.median_s)} s" if self.kind == "ready" else f"{rounded(self.rate_per_s)}/s"

    def __repr__(self) -> str:
        """Return everything in one line."""
        # Rounded down, so that a line that shows 10 % is always one that warns.
        percent = int(self.spread * 100)
        facts = ["1 run" if self.runs == 1 else f"{self.runs} runs, spread {percent} %"]
        if self.kind != "ready":
            facts += [f"{self.payload_bytes:,} B", f"lost {self.lost:,}"]
            facts += [f"duplicates {self.duplicates:,}"] if self.duplicates else []
        figure = self.figure if self.kind == "ready" else f"{self.figure} {self.kind}"
        warning = "; the runs lie far apart, read it as a rough number" if self.noisy else ""
        return f"{self.name}: {figure} ({', '.join(facts)}){warning}"


async def measure(
    name: str,
    run: Callable[[], Awaitable[Run]],
    *,
    kind: Kind,
    runs: int = 3,
    warmup: int = 1,
) -> Measurement:
    """Run something several times, one run after the other, and return what came out.

    Args:
        name: What is done, in the words of the notebook.
        run: Does it once and returns how it went.
        kind: What stops the clock.
        runs: Runs that count; with 1 there is no spread, and nothing tells whether the number is any good.
        warmup: Runs before those, whose times do not count. The first run pays for cold caches and new
            connections; 0 where just that is what you want to see.

    Raises:
        ValueError: A number is out of its range, or the runs were not of the same size.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs={runs}, warmup={warmup}: expected runs >= 1 and warmup >= 0")
    for _ in range(warmup):
        await run()
    return Measurement.of(name, kind, [await run() for _ in range(runs)])


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and thousands separators: ``"312,000"``, ``"0.372"``.

    Args:
        value: Any finite number.
        digits: Significant digits; what lies beyond them is noise in a timing.

    Raises:
        ValueError: ``value`` is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be shown")
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, places):,.{max(places, 0)}f}"


def _check_elapsed(seconds: float) -> None:
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"elapsed_s={seconds!r}, expected a positive number of seconds")


def _check_counts(messages: int, lost: int, duplicates: int, payload_bytes: int) -> None:
    if messages < 1:
        raise ValueError(f"messages={messages!r}, expected at least 1")
    for name, count in (("lost", lost), ("duplicates", duplicates), ("payload_bytes", payload_bytes)):
        if count < 0:
            raise ValueError(f"{name}={count!r}, expected 0 or more")
