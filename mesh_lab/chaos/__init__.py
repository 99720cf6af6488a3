"""Faults on purpose: writers that keep a history, a schedule of faults, and the invariants that a run must keep.

The promise under test is JetStream's own: what was acknowledged is stored. A run writes down what became of every
order (:mod:`~mesh_lab.chaos.history`), while servers die, hang and lose each other (:mod:`~mesh_lab.chaos.schedule`),
and compares that with what a client reads and with what lies on each server's disk (:mod:`~mesh_lab.chaos.audit`).
The method is that of Jepsen's report on NATS 2.12.1 (https://jepsen.io/analyses/nats-2.12.1).
"""

from typing import Literal, get_args

Kind = Literal["kill", "stop", "pause", "cut", "reset", "kill all"]
"""``kill``: SIGKILL. ``stop``: SIGTERM. ``pause``: SIGSTOP. ``cut``: nothing gets through between one
server and the others. ``reset``: its connections to the others break and are refused. ``kill all``: SIGKILL to all."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LINKED: frozenset[Kind] = frozenset({"cut", "reset"})
"""Kinds that need a mesh with links."""
