"""Faults on purpose: writers that keep a history, a schedule of faults, and the invariants that a run must keep.

The promise under test is JetStream's own: what was acknowledged is stored. A run writes down what became of every order
while servers die, hang and lose each other, and compares that with what a client reads and with what lies on each disk,
as Jepsen's report on NATS 2.12.1 does (https://jepsen.io/analyses/nats-2.12.1).
"""

from mesh_lab.chaos.disks import why_not
from mesh_lab.chaos.history import Attempt, History, Outcome, audit
from mesh_lab.chaos.run import caught_up, chaos_run, read_replicas
from mesh_lab.chaos.schedule import draw_schedule
from mesh_lab.chaos.stored import Stored, read_replica, read_stream, truncate_replica
from mesh_lab.chaos.writers import Writers
