"""The audit of a run: what was promised against what is there."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mesh_lab.chaos.history import Attempt, History
from mesh_lab.chaos.stored import Stored
from mesh_lab.errors import InvariantBrokenError

SHOWN = 3


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of the orders of a run. Every tuple of ids has to be empty for it to be valid."""

    attempted: int
    acknowledged: int
    """Orders of which the server promised that they are stored."""
    stored: int
    """Messages that a client reads in the end."""
    recovered: int
    """Orders whose end was unknown and that are stored: neither right nor wrong."""
    lost: tuple[str, ...]
    """Acknowledged, and not there."""
    lost_on: Mapping[str, tuple[str, ...]]
    """Acknowledged, and not on the disk of that server, by server."""
    differing_on: Mapping[str, tuple[str, ...]]
    """On the disk of that server under another number, or more or less often, than a client reads, by server."""
    unexpected: tuple[str, ...]
    """There, and never sent."""
    contradicted: tuple[str, ...]
    """There, although the server had refused it."""
    doubled: tuple[str, ...]
    """There more than once."""
    reversed: tuple[str, ...]
    """Acknowledged, and stored before an order that their writer had sent earlier."""
    misplaced: tuple[str, ...]
    """There, under another number than in the acknowledgement."""

    @property
    def valid(self) -> bool:
        """Whether the promise was kept."""
        return not self.broken

    @property
    def broken(self) -> dict[str, tuple[str, ...]]:
        """The ids that break the promise, by how they break it."""
        ways = {"lost": self.lost}
        ways |= {f"lost on {server}": ids for server, ids in self.lost_on.items()}
        ways |= {f"different on {server}": ids for server, ids in self.differing_on.items()}
        ways |= {way: getattr(self, way) for way in ("unexpected", "contradicted", "doubled", "reversed", "misplaced")}
        return {way: ids for way, ids in ways.items() if ids}

    def __str__(self) -> str:
        """Return the findings in one line."""
        counts = f"{self.attempted:,} sent, {self.acknowledged:,} acknowledged, {self.stored:,} stored"
        broken = "; ".join(f"{len(ids):,} {way} ({_some(ids)})" for way, ids in self.broken.items())
        return f"{counts}: {broken or 'none lost, doubled or out of order'}"

    def check(self) -> None:
        """Return if the promise was kept.

        Raises:
            InvariantBrokenError: It was not; the message says how, with the first ids.
        """
        if not self.valid:
            raise InvariantBrokenError(f"the stream broke its promise: {self}", broken=self.broken)


def audit(history: History, stored: Sequence[Stored], replicas: Mapping[str, Sequence[Stored]] | None = None) -> Audit:
    """Compare a history with what is stored when servers have healed and caught up.

    Args:
        history: What the writers wrote down.
        stored: What a client reads.
        replicas: What lies on each server's disk, for a stream with a copy on each.

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
    lost_on, differing_on = dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()
    for server, messages in (replicas or {}).items():
        lost_on[server], held = _missing(acknowledged, messages), Counter(messages)
        differing = dict.fromkeys(id_ for _, id_ in sorted((held - read) + (read - held)))
        differing_on[server] = tuple(id_ for id_ in differing if id_ not in lost_on[server])
    return Audit(
        attempted=len(sent),
        acknowledged=len(acknowledged),
        stored=len(stored),
        recovered=sum(attempt.outcome == "unknown" for attempt in there),
        lost=_missing(acknowledged, stored),
        lost_on=lost_on,
        differing_on=differing_on,
        contradicted=tuple(attempt.id for attempt in there if attempt.outcome == "refused"),
        unexpected=tuple(id_ for id_ in copies if id_ not in sent),
        doubled=tuple(id_ for id_, number in copies.items() if number > 1),
        reversed=tuple(_reversed(acknowledged.values(), seqs)),
        misplaced=tuple(id_ for id_, attempt in acknowledged.items() if seqs.get(id_, attempt.seq) != attempt.seq),
    )


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
