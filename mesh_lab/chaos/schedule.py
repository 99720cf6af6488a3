"""Schedules of faults: which kinds there are, and which of them a seed draws, when and on what.

Clock steps are not among them. ``nats-server`` is a static Go program that reads the time without the C library, so
libfaketime, which replaces that library's functions, does not reach it; a time namespace of Linux moves only the
monotonic clock, and only before a process starts; and setting the machine's own clock would hit everything on it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

ServerFault = Literal["kill", "stop", "step down", "pause", "cut", "reset", "slow", "no quorum", "kill all"]
"""``kill``: SIGKILL. ``stop``: SIGTERM. ``step down``: the leader is asked to hand over. ``pause``: SIGSTOP. ``cut``:
nothing gets through between one server and the others. ``reset``: its connections to the others break and are refused.
``slow``: they take a tenth of a second longer each way. ``no quorum``: SIGKILL to two of three, ``kill all``: all."""
ServiceFault = Literal["kill worker", "kill publisher"]
"""SIGKILL to a worker between its effect and its acknowledgement, and to a publisher at a step of its outbox."""
DiskFault = Literal["full disk", "power cut"]
"""No space left on a server's disk; what no server had synced is lost. Each server needs a disk of its own."""
Kind = Literal[ServerFault, ServiceFault, DiskFault]
KINDS: tuple[Kind, ...] = (*get_args(ServerFault), *get_args(ServiceFault))
"""Kinds that every mesh of three local servers with links allows."""
ON_DISKS: tuple[Kind, ...] = get_args(DiskFault)
FAULTS: tuple[Kind, ...] = KINDS + ON_DISKS
LINKED: frozenset[Kind] = frozenset({"cut", "reset", "slow"})
"""Kinds that need a mesh with links."""
OUTBOX_STEPS = ("before the commit", "noted", "published", "acknowledged", "crossed out")
"""What a publisher with an outbox has just done, in this order; it can be killed after each."""
TARGETS: dict[Kind, str] = {"kill all": "all", "power cut": "all", "step down": "leader", "kill worker": "effect"}
FIRST_AT_S = 1.0  # the writers get going, so that the first fault hits something
LASTS_S, PAUSE_S = (0.5, 3.0), (1.0, 4.0)  # around an election, of a second or two: some faults end before it
OUTAGE_S = 60.0


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of a schedule."""

    at_s: float
    """Seconds after the beginning; later, if the fault before it was not over by then."""
    kind: Kind
    target: str
    """``leader`` of the stream at that time, ``follower``: the first other server by name, ``all``, or for a service
    the step after which it is killed."""
    lasts_s: float


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that was injected and recovered from."""

    planned: PlannedFault
    server: str
    """The server that was hit, ``"all"``, or the service."""
    began_s: float
    ended_s: float
    """When recovery was done; a server that was down is healthy by then."""

    def __str__(self) -> str:
        return f"{self.began_s:.1f} s: {self.planned.kind} {self.server} ({self.planned.target})"


def draw_schedule(
    seed: int, *, seconds: float, kinds: Sequence[Kind] = KINDS, outage: float = OUTAGE_S
) -> list[PlannedFault]:
    """Return the faults of a run: the same arguments, the same faults.

    Args:
        seed: Any whole number.
        seconds: Length of the run; no fault begins in its last second.
        kinds: Kinds to draw from, each as likely as the others.
        outage: Seconds that a loss of quorum lasts, up to half of the run.

    Raises:
        ValueError: ``kinds`` is empty, or names an unknown kind.
    """
    if not kinds or (unknown := set(kinds) - set(FAULTS)):
        raise ValueError(f"kinds {sorted(unknown) if kinds else []}, expected some of {', '.join(FAULTS)}")
    chance = random.Random(seed)  # to be repeated, not to be secret
    schedule, at_s = list[PlannedFault](), FIRST_AT_S
    while at_s < seconds - 1.0:
        kind = chance.choice(kinds)
        target = chance.choice(("leader", "leader", "follower"))
        lasts_s = min(outage, seconds / 2) if kind == "no quorum" else chance.uniform(*LASTS_S)
        if kind in TARGETS:
            target = TARGETS[kind]
        elif kind == "kill publisher":  # its steps in turn, so that none is left out
            target = OUTBOX_STEPS[(seed + sum(fault.kind == kind for fault in schedule)) % len(OUTBOX_STEPS)]
        schedule.append(PlannedFault(round(at_s, 2), kind, target, round(lasts_s, 2)))
        at_s += lasts_s + chance.uniform(*PAUSE_S)
    return schedule
