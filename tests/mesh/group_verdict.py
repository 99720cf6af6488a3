"""What a run of a partitioned group must keep, computed from what was published and what was handled."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import msgspec

IDLE_S = 10.0


class Published(msgspec.Struct, frozen=True):
    """An event in the stream."""

    partition: int
    seq: int
    order: str
    event: str
    at: float


class Handled(msgspec.Struct, frozen=True):
    """An event that a member handled; ``at`` is when the server stored the report."""

    partition: int
    seq: int
    order: str
    event: str
    fence: int
    member: str
    mine: bool = True
    at: float = 0.0


def faults(published: Sequence[Published], handled: Sequence[Handled], *, frozen: int = 0) -> list[str]:
    """Return what went wrong, in words; empty when the run kept what the group promises.

    Args:
        published: Every event, in the order of the stream.
        handled: Every report, in the order in which they were stored.
        frozen: How often a member was frozen: each may end one call of its handler in every partition it held.
    """
    first: dict[int, Handled] = {}
    for one in handled:
        first.setdefault(one.seq, one)
    lost = [event for event in published if event.seq not in first]
    found = [f"lost: {event.order} {event.event}" for event in lost]
    found += _reversed(published, first)
    by_partition: dict[int, list[Published]] = defaultdict(list)
    for event in published:
        by_partition[event.partition].append(event)
    stale = 0
    for partition, events in sorted(by_partition.items()):
        reports = [one for one in handled if one.partition == partition]
        found += _idle(partition, events, first)
        found += _gaps(partition, [event.seq for event in events], reports)
        stale += _stale(reports)
    if stale > frozen * len(by_partition):
        found.append(f"beside the owner: {stale} reports of members that were replaced, {frozen} were frozen")
    return found


def _reversed(published: Sequence[Published], first: dict[int, Handled]) -> list[str]:
    """Compare the order in which a key's events were handled for the first time with their order in the stream."""
    rank = {seq: at for at, seq in enumerate(first)}
    last: dict[str, Published] = {}
    found = []
    for event in published:
        before = last.get(event.order)
        if before and before.seq in rank and event.seq in rank and rank[event.seq] < rank[before.seq]:
            found.append(f"reversed: {event.order} {event.event} before {before.event}")
        last[event.order] = event
    return found


def _idle(partition: int, events: list[Published], first: dict[int, Handled]) -> list[str]:
    """Return in words where a partition stalled although something waited in it."""
    active, found = 0.0, []
    for event in events:
        if event.seq in first:
            waited = first[event.seq].at - max(active, event.at)
            if waited > IDLE_S:
                found.append(f"idle: partition {partition} for {waited:.1f} s")
            active = max(active, first[event.seq].at)
    return found


def _gaps(partition: int, seqs: list[int], reports: list[Handled]) -> list[str]:
    """Each owner handles without gaps, and begins no further than one behind what was handled before."""
    at = {seq: number for number, seq in enumerate(seqs)}
    found, reached = [], -1
    for fence in sorted({one.fence for one in reports}):
        numbers = [at[one.seq] for one in reports if one.fence == fence]
        if numbers[0] > reached + 1:
            found.append(f"skipped: partition {partition}, fence {fence} began behind a gap")
        if any(after != before + 1 for before, after in pairwise(numbers)):
            found.append(f"not in sequence: partition {partition}, fence {fence}")
        reached = max(reached, numbers[-1])
    return found


def _stale(reports: list[Handled]) -> int:
    newest, stale = 0, 0
    for one in reports:
        stale += one.fence < newest
        newest = max(newest, one.fence)
    return stale
