"""What a partitioned group knows of itself: a key-value bucket of members, claims and progress.

An entry for each partition says who owns it *and* how far it is done. Both are changed in one conditional write
(``Nats-Expected-Last-Subject-Sequence``), so whoever lost the ownership cannot record progress any more: its write
names a revision that is no longer the last. There is no clock to be agreed on: everybody measures by its own for
how long an entry did not change.
"""

import asyncio
import contextlib
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import Header, KeyValueConfig, StorageType

from mesh_lab.errors import GroupMismatchError
from mesh_lab.patterns.pull_consumer import position, read_in_order

ANSWER_S, RETRY_S = 0.5, 0.1
WRONG_LAST_SEQUENCE = {10071, 10164}  # err_code of a conditional write that came too late
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
TRANSIENT = (TimeoutError, nats.errors.Error, nats.js.errors.APIError)
"""What a write may meet while servers come and go; its outcome is unknown then."""

T = TypeVar("T")


class Group(msgspec.Struct, frozen=True):
    """What all members of a group must agree on."""

    stream: str
    subject: str
    partitions: int


class Presence(msgspec.Struct, frozen=True):
    """A member's entry; it is written again and again while the member lives."""

    instance: str
    """Random, new for each process that joins; empty when the member has left."""


class Claim(msgspec.Struct, frozen=True):
    """A partition's entry."""

    owner: str = ""
    """Name of the member; empty when nobody owns the partition."""
    instance: str = ""
    """Which process of that name."""
    fence: int = 0
    """Grows with every change of ownership."""
    done: int = 0
    """Number in the stream up to which the partition's messages are handled."""


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """An entry, and since when it stands unchanged by our own clock."""

    revision: int
    value: T
    at: float


class ConflictError(Exception):
    """Somebody else wrote the entry in between."""


def check_name(what: str, name: str) -> None:
    """Return when a name can be a token of a subject and of a key.

    Raises:
        ValueError: It cannot.
    """
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{what} {name!r}, expected 1 to 32 letters, digits, '-' or '_'")


class GroupBucket:
    """The bucket of one group, and a view of it that is kept up to date.

    Attributes:
        members: Every member that has been heard of, by name.
        claims: Every partition that was ever claimed, by number.
        changed: Set when members or owners change, not when work goes on.
        caught_up: Set when the view holds what was in the bucket when :meth:`watch` began.
    """

    def __init__(self, client: Client, name: str) -> None:
        """Prepare; nothing is read yet.

        Args:
            client: A connected nats-py client.
            name: Name of the bucket.
        """
        self.members: dict[str, Seen[Presence]] = {}
        self.claims: dict[int, Seen[Claim]] = {}
        self.changed = asyncio.Event()
        self.caught_up = asyncio.Event()
        self._client = client
        self._js = client.jetstream(timeout=ANSWER_S)
        self._stream, self._prefix = f"KV_{name}", f"$KV.{name}."

    async def open(self, group: Group, *, within: float = 10.0) -> None:
        """Make the bucket, or join one that is there.

        Args:
            group: What this member expects of the group.
            within: Seconds that the servers may take.

        Raises:
            GroupMismatchError: The group is there with another number of partitions, stream or subject.
            nats.js.errors.NotFoundError: There is no such stream.
        """
        js = self._client.jetstream(timeout=within)
        config = (await js.stream_info(group.stream)).config
        spread = re.search(r"partition\(\s*(\d+)", config.subject_transform.dest if config.subject_transform else "")
        if spread is not None and int(spread[1]) != group.partitions:
            raise GroupMismatchError(
                f"stream {group.stream!r} spreads its subjects over {spread[1]} partitions, expected "
                f"{group.partitions} as this member asks; what nobody reads would wait for ever"
            )
        bucket = self._prefix.split(".")[1]
        with contextlib.suppress(nats.js.errors.BadRequestError):  # it is there, with other replicas perhaps
            await js.create_key_value(
                KeyValueConfig(bucket=bucket, storage=StorageType.FILE, replicas=config.num_replicas or 1)
            )
        deadline = time.monotonic() + within
        there = None
        while there is None:
            there = await self._agree(group, deadline)
        if there != group:
            raise GroupMismatchError(
                f"the group has {there.partitions} partitions on {there.subject!r} of stream {there.stream!r}, "
                f"expected {group.partitions} on {group.subject!r} of {group.stream!r}, as this member asks; "
                f"they stay as they are: take another group name, or delete bucket {bucket!r} when all is done"
            )

    async def _agree(self, group: Group, deadline: float) -> Group | None:
        """Return what the group is, which this call may decide; ``None`` while the servers cannot say."""
        try:
            try:
                await self.write("group", group, last=0)
            except ConflictError:
                there = await self.read("group", Group)
                return there.value if there else None
        except TRANSIENT:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)
            return None
        return group

    async def write(self, key: str, value: msgspec.Struct, *, last: int) -> int:
        """Store a value if the entry's last revision is the one that is named; return the new revision.

        Args:
            key: The entry.
            value: What to store.
            last: The revision that it replaces; 0 for an entry that must not be there yet.

        Raises:
            ConflictError: The entry has another revision.
            TimeoutError: No answer; it may be stored. Other members of ``TRANSIENT`` are raised as well.
        """
        headers: dict[str, str] = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(last)}
        payload = msgspec.json.encode(value)
        try:
            ack = await self._js.publish(self._prefix + key, payload, timeout=ANSWER_S, headers=headers)
        except nats.js.errors.APIError as err:
            if err.err_code in WRONG_LAST_SEQUENCE:
                raise ConflictError(key) from err
            raise
        return ack.seq

    async def read(self, key: str, kind: type[T]) -> Seen[T] | None:
        """Return an entry as the stream's leader has it, or ``None``."""
        try:
            msg = await self._js.get_last_msg(self._stream, self._prefix + key, direct=False)
        except nats.js.errors.NotFoundError:
            return None
        return Seen(msg.seq or 0, msgspec.json.decode(msg.data or b"", type=kind), time.monotonic())

    async def forget(self, key: str, revision: int) -> None:
        """Remove an entry of that revision or older, so that names used once do not pile up."""
        await self._js.purge_stream(self._stream, subject=self._prefix + key, seq=revision + 1)

    async def watch(self) -> None:
        """Keep the view up to date, until cancelled; a lost reader is replaced where it stood."""
        async with aclosing(read_in_order(self._client, self._stream, prefetch=1_000)) as batches:
            async for batch in batches:
                for msg in batch:
                    at = position(msg)
                    self._note(msg.subject.removeprefix(self._prefix), at.stream_seq, msg.data)
                    if at.pending == 0:
                        self.caught_up.set()

    def _note(self, key: str, revision: int, data: bytes) -> None:
        kind, _, name = key.partition(".")
        now = time.monotonic()
        if kind == "member":
            presence = Seen(revision, msgspec.json.decode(data, type=Presence), now)
            known = self.members.get(name)
            self.members[name] = presence
            if known is None or known.value != presence.value:
                self.changed.set()
        elif kind == "partition":
            claim = Seen(revision, msgspec.json.decode(data, type=Claim), now)
            before = self.claims.get(int(name))
            self.claims[int(name)] = claim
            if before is None or before.value.fence != claim.value.fence or not claim.value.owner:
                self.changed.set()
