"""The history of a run, which is what was promised, and its audit against what is there."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import msgspec

from mesh_lab.chaos.stored import Stored
from mesh_lab.errors import InvariantBrokenError

Outcome = Literal["stored", "refused", "unknown"]
GAP_S = 0.25
"""Time without an acknowledgement that counts as a gap."""
SHOWN = 3


class Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order that a writer sent, under one id, however often it had to be sent again."""

    writer: str
    number: int
    """The writer's own count, from 0: it sends an order when the outcome of the one before is known."""
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
    """A stretch of time in which no writer got an acknowledgement."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        """How long it was, in seconds."""
        return self.ended_s - self.began_s


class History:
    """The ``attempts`` of a run in the order in which they ended, how many were acknowledged, and its ``length_s``."""

    def __init__(self, attempts: Iterable[Attempt] = ()) -> None:
        self.attempts, self.length_s, self.number_acknowledged = list[Attempt](), 0.0, 0
        for attempt in attempts:
            self.add(attempt)

    def __len__(self) -> int:
        return len(self.attempts)

    def __repr__(self) -> str:
        ends = Counter(attempt.outcome for attempt in self.attempts)
        counts = ", ".join(f"{ends[outcome]:,} {outcome}" for outcome in get_args(Outcome))
        return f"{len(self):,} attempts in {self.length_s:.1f} s: {counts}"

    def add(self, attempt: Attempt) -> None:
        """Record one attempt whose outcome is known."""
        self.attempts.append(attempt)
        self.number_acknowledged += attempt.outcome == "stored"
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


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of the orders of a run; it is valid if nothing is ``broken``."""

    attempted: int
    acknowledged: int
    """Orders that the server acknowledged as stored."""
    stored: int
    """Messages that a client reads in the end."""
    recovered: int
    """Orders whose outcome was unknown and that are stored, which breaks no promise."""
    broken: Mapping[str, tuple[str, ...]]
    """The ids that break the promise, by how they break it; :func:`audit` has the ways."""

    @property
    def lost(self) -> tuple[str, ...]:
        """Acknowledged, and not stored."""
        return self.broken.get("lost", ())

    @property
    def counts(self) -> dict[str, int]:
        """The numbers that tables and reports show."""
        known = {"sent": self.attempted, "acknowledged": self.acknowledged, "stored": self.stored}
        ways = {"lost": "lost", "doubled": "doubled", "out of order": "reversed"}
        broken = {name: len(self.broken.get(way, ())) for name, way in ways.items()}
        return known | broken | {"unknown, and stored": self.recovered}

    def __str__(self) -> str:
        counts = f"{self.attempted:,} sent, {self.acknowledged:,} acknowledged, {self.stored:,} stored"
        broken = "; ".join(f"{len(ids):,} {way} ({_some(ids)})" for way, ids in self.broken.items())
        return f"{counts}: {broken or 'none lost, doubled or out of order'}"

    def check(self) -> None:
        """Return if the promise was kept.

        Raises:
            InvariantBrokenError: It was not; the message says how, with the first ids.
        """
        if self.broken:
            raise InvariantBrokenError(f"the stream broke its promise: {self}", broken=self.broken)


def audit(
    history: History,
    stored: Sequence[Stored],
    replicas: Mapping[str, Sequence[Stored]] | None = None,
    effects: Mapping[str, int] | None = None,
) -> Audit:
    """Return the audit of a history against what is stored once the servers have recovered and caught up.

    Args:
        history: What the writers wrote down.
        stored: What a client reads.
        replicas: What lies on each server's disk, for a stream with a copy on each.
        effects: How many effects each order was given by workers that have handled all that is stored.

    Raises:
        ValueError: Two attempts have the same id: the history is not one run's.
    """
    sent = {attempt.id: attempt for attempt in history.attempts}
    if len(sent) < len(history):
        twice = [id_ for id_, n in Counter(attempt.id for attempt in history.attempts).items() if n > 1]
        raise ValueError(f"{len(twice)} ids are in the history more than once ({_some(twice)}), expected each once")
    acknowledged, read = history.acknowledged, Counter(stored)
    seqs = {message.id: message.seq for message in reversed(stored)}  # the first of those that are there twice
    copies = Counter(message.id for message in stored)
    there = [attempt for attempt in history.attempts if attempt.id in seqs]
    ways, replicas = {"lost": _missing(acknowledged, stored)}, replicas or {}
    ways |= {f"lost on {server}": _missing(acknowledged, messages) for server, messages in replicas.items()}
    for server, messages in replicas.items():  # under another number, or more or less often, than a client reads
        held, missing = Counter(messages), ways[f"lost on {server}"]
        differing = dict.fromkeys(id_ for _, id_ in sorted((held - read) + (read - held)))
        ways[f"different on {server}"] = tuple(id_ for id_ in differing if id_ not in missing)
    ways |= {
        "unexpected": tuple(id_ for id_ in copies if id_ not in sent),
        "contradicted": tuple(attempt.id for attempt in there if attempt.outcome == "refused"),
        "doubled": tuple(id_ for id_, number in copies.items() if number > 1),
        "reversed": tuple(_reversed(acknowledged.values(), seqs)),
        # Under another number than the acknowledgement gave.
        "misplaced": tuple(id_ for id_, one in acknowledged.items() if seqs.get(id_, one.seq) != one.seq),
        "without effect": () if effects is None else tuple(id_ for id_ in copies if not effects.get(id_)),
        "repeated effect": tuple(id_ for id_, number in (effects or {}).items() if number > 1),
    }
    recovered = sum(attempt.outcome == "unknown" for attempt in there)
    broken = {way: ids for way, ids in ways.items() if ids}
    return Audit(len(sent), len(acknowledged), len(stored), recovered, broken)


def _missing(acknowledged: Iterable[str], messages: Iterable[Stored]) -> tuple[str, ...]:
    ids = {message.id for message in messages}
    return tuple(id_ for id_ in acknowledged if id_ not in ids)


def _reversed(acknowledged: Iterable[Attempt], seqs: Mapping[str, int]) -> Iterable[str]:
    by_writer: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in acknowledged:
        if attempt.id in seqs:
            by_writer[attempt.writer].append(attempt)
    for attempts in by_writer.values():
        attempts.sort(key=lambda attempt: attempt.number)
        yield from (later.id for earlier, later in pairwise(attempts) if seqs[later.id] < seqs[earlier.id])


def _some(ids: Iterable[str]) -> str:
    shown = list(ids)
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")
