"""The ledger: every order's events, each order's in their order, by the members of a partitioned group.

A stream takes the event store's events under subjects with a partition number, the same one for all of an order. A
member writes what it handles as one line of JSON. Lines of a smaller fence came first, whoever is read first; what a
new owner handles again, because the last one had not recorded it, has a number that was there before.
"""

from collections.abc import Iterable

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamSource, SubjectTransform

from mesh_lab.errors import WrongTotalsError
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM, Event, decode, event_of
from mesh_lab.patterns.group_bucket import bucket_of
from mesh_lab.patterns.partition_group import GroupMember, Partition

LEDGER, GROUP, PARTITIONS, SUBJECT = "LEDGER", "books", 8, "ledger.{partition}.>"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event in the ledger."""

    partition: int
    fence: int
    """Of the partition's owner."""
    seq: int
    """Number in the ledger's stream."""
    order: str
    event: Event


_decoder = msgspec.json.Decoder(Entry)


async def create_ledger(js: JetStreamContext, *, replicas: int = 1) -> None:
    """Make the ledger's stream, and the bucket of the group that keeps it; both may be there already."""
    tokens = ".".join(f"{{{{wildcard({number})}}}}" for number in (1, 2, 3))
    sharded = SubjectTransform(src=ALL_SUBJECTS, dest=f"ledger.{{{{partition({PARTITIONS},2)}}}}.{tokens}")
    source = StreamSource(name=STREAM, subject_transforms=[sharded])
    await js.add_stream(name=LEDGER, sources=[source], num_replicas=replicas)
    await js.create_key_value(bucket=bucket_of(LEDGER, GROUP), storage=StorageType.FILE, replicas=replicas)


def member_of_ledger(client: Client, name: str) -> GroupMember:
    """Return a member of the group that keeps the ledger."""
    return GroupMember(client, LEDGER, GROUP, name=name, subject=SUBJECT, partitions=PARTITIONS)


def line_of(msg: Msg, partition: Partition) -> str:
    """Return the line of an event that a member handles; raises OrderFormatError for what is none."""
    event = event_of(f"orders.{msg.subject.split('.', 2)[2]}")
    entry = Entry(partition.number, partition.fence, msg.metadata.sequence.stream, decode(msg.data).id, event)
    return msgspec.json.encode(entry).decode() + "\n"


def entries_in(text: str) -> list[Entry]:
    """Return the entries of a member's lines; others, as of a log, are passed over."""
    return [_decoder.decode(line) for line in text.splitlines() if line.startswith("[")]


def lives_in(entries: Iterable[Entry]) -> tuple[dict[str, list[Event]], int]:
    """Return each order's events as the members saw them, and how many entries came again to a partition's new owner.

    Args:
        entries: Those of all members, of each in the order in which it wrote them.

    Raises:
        WrongTotalsError: An owner of a partition saw an event after a later one.
    """
    lives: dict[str, list[Event]] = {}
    owner, place, done, again = (-1, -1), 0, 0, 0
    for entry in sorted(entries, key=lambda entry: (entry.partition, entry.fence)):
        if owner != (entry.partition, entry.fence):
            done = done if owner[0] == entry.partition else 0
            owner, place = (entry.partition, entry.fence), 0
        if entry.seq <= place:
            raise WrongTotalsError(f"partition {owner[0]}: seen event {entry.seq} after {place}, expected a later one")
        place = entry.seq
        if place <= done:
            again += 1
        else:
            done = place
            lives.setdefault(entry.order, []).append(entry.event)
    return lives, again
