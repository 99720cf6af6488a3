"""What was timed, how often, and how far the runs lie apart."""

import math
import platform
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal, Self, get_args

Kind = Literal["published", "acknowledged", "delivered", "processed", "ready"]
"""What stopped the clock: the server had read the last message (``published``: a PONG came back), it was stored
(``acknowledged``), a subscriber had it (``delivered``), a worker's effect was confirmed (``processed``), or something
could be used (``ready``).
"""

NOISY_SPREAD = 0.10  # from here on, differences of that size mean nothing
MILLISECONDS_BELOW_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """One run of what is measured: messages that were due, and the time from the first to the last of them.

    Of these, ``lost`` never came; ``duplicates`` came again.
    """

    messages: int
    elapsed_s: float
    lost: int = 0
    duplicates: int = 0
    payload_bytes: int = 0
    server_version: str = ""

    def __post_init__(self) -> None:
        _check(self, (self.elapsed_s,))


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of several runs; its ``repr`` is one line, which warns in words of a spread of 10 % or more.

    Attributes:
        name: What was done, in the words of the notebook.
        kind: What stopped the clock.
        messages: Messages that were due in each run; 1 for ``ready``.
        elapsed_s: Time of each run.
        payload_bytes: Size of each message's payload.
        lost: Messages that never came, in all runs together.
        duplicates: Messages that came a further time, in all runs together.
        server_version: nats-server's version, if it is known.
        client_version: nats-py's version.
        python_version: Python's version.
    """

    name: str
    kind: Kind
    messages: int
    elapsed_s: tuple[float, ...]
    payload_bytes: int = 0
    lost: int = 0
    duplicates: int = 0
    server_version: str = ""
    client_version: str = field(default_factory=lambda: version("nats-py"))
    python_version: str = field(default_factory=platform.python_version)

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("a measurement needs a name that says what was done")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if not self.elapsed_s:
            raise ValueError(f"{self.name!r} has no runs, expected at least 1")
        _check(self, self.elapsed_s)
        if self.kind == "ready" and self.messages != 1:
            raise ValueError(f"messages={self.messages:,} for kind 'ready', expected 1: the thing itself")

    @classmethod
    def of(cls, name: str, kind: Kind, runs: Sequence[Run]) -> Self:
        """Return the measurement of several runs, which must be of the same size.

        Raises:
            ValueError: There are no runs, or they differ in size.
        """
        sizes = sorted({(run.messages, run.payload_bytes) for run in runs})
        if len(sizes) != 1:
            listed = " and ".join(f"{messages:,} messages of {size:,} B" for messages, size in sizes)
            raise ValueError(f"the runs of {name!r} differ: {listed or 'none'}; only equal runs can be compared")
        [(messages, size)] = sizes
        elapsed_s = tuple(run.elapsed_s for run in runs)
        lost, duplicates = sum(run.lost for run in runs), sum(run.duplicates for run in runs)
        return cls(name, kind, messages, elapsed_s, size, lost, duplicates, runs[0].server_version)

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
    def value(self) -> float:
        """The number that people quote: the rate, or the time for ``ready``."""
        return self.median_s if self.kind == "ready" else self.rate_per_s

    @property
    def figure(self) -> str:
        """That number with its unit: ``"312,000/s"``, or ``"0.37 s"`` and ``"0.665 ms"`` for ``ready``."""
        return figure(self.value, self.kind)

    def __repr__(self) -> str:
        # Rounded down, so that a line that shows 10 % is always one that warns.
        facts = ["1 run" if self.runs == 1 else f"{self.runs} runs, spread {int(self.spread * 100)} %"]
        if self.kind != "ready":
            facts += [f"{self.payload_bytes:,} B", f"lost {self.lost:,}"]
            facts += [f"duplicates {self.duplicates:,}"] if self.duplicates else []
        end = "" if self.kind == "ready" else f" {self.kind}"
        warning = "; the runs lie far apart, read it as a rough number" if self.spread >= NOISY_SPREAD else ""
        return f"{self.name}: {self.figure}{end} ({', '.join(facts)}){warning}"


async def measure(
    name: str, run: Callable[[], Awaitable[Run]], *, kind: Kind, runs: int = 3, warmup: int = 1
) -> Measurement:
    """Run something several times, one run after the other, and return the measurement.

    Args:
        name: What is done, in the words of the notebook.
        run: Does it once and returns how it went.
        kind: What stops the clock.
        runs: Runs that count; with 1 there is no spread.
        warmup: Runs before those, which do not count; with 0, cold caches and new connections do.

    Raises:
        ValueError: A number is out of its range, or the runs were not of the same size.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs={runs}, warmup={warmup}: expected runs >= 1 and warmup >= 0")
    for _ in range(warmup):
        await run()
    return Measurement.of(name, kind, [await run() for _ in range(runs)])


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits and thousands separators: ``"312,000"``, ``"0.372"``.

    Raises:
        ValueError: ``value`` is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a number that can be shown")
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, places):,.{max(places, 0)}f}"


def figure(value: float, kind: Kind) -> str:
    """Return a rate, or the time for ``ready``, with its unit: ``"312,000/s"``, ``"0.37 s"``, ``"0.665 ms"``."""
    if kind != "ready":
        return f"{rounded(value)}/s"
    return f"{rounded(value)} s" if value >= MILLISECONDS_BELOW_S else f"{rounded(1_000 * value)} ms"


def _check(facts: Run | Measurement, elapsed_s: Sequence[float]) -> None:
    """Raise ValueError for times or counts that no run can have."""
    for seconds in elapsed_s:
        if not (seconds > 0 and math.isfinite(seconds)):
            raise ValueError(f"elapsed_s={seconds!r}, expected a positive number of seconds")
    if facts.messages < 1:
        raise ValueError(f"messages={facts.messages!r}, expected at least 1")
    for name in ("lost", "duplicates", "payload_bytes"):
        if (count := getattr(facts, name)) < 0:
            raise ValueError(f"{name}={count!r}, expected 0 or more")
    if facts.lost > (due := facts.messages * len(elapsed_s)):
        raise ValueError(f"lost={facts.lost:,} of {due:,} messages: more than there were")
