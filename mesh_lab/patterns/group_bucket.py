"""What a partitioned group knows of itself: a key-value bucket of members, claims and progress.

An entry for each partition says which member owns it *and* how far it is done. Both change in one conditional write
(``Nats-Expected-Last-Subject-Sequence``), so a member that lost the ownership cannot record progress any more. No clock
has to be agreed on: each member measures by its own for how long an entry did not change.
"""

import asyncio
import datetime
import re
import time
from collections.abc import Awaitable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import Header, StorageType, StreamConfig
from nats.js.errors import APIError, ServiceUnavailableError

from mesh_lab.errors import GroupMismatchError, NotReadyError
from mesh_lab.patterns.consumer_info import no_stream
from mesh_lab.patterns.jetstream_api import WRONG_LAST_SEQUENCE, api_prefix, is_transient, publish_once
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry

# A write is one round trip, or one in which servers agree; what takes longer than a lease lasts is of no use.
REPLY_WITHIN_S, RETRY_EVERY_S = 0.5, 0.1
OPEN_WITHIN_S, CREATE_WITHIN_S = 10.0, 3.0
STREAM_NAME_IN_USE = 10058  # err_code of making a stream that is there with other settings
SPREAD = re.compile(r"partition\(\s*(\d+)")  # in the destination of a subject transform
MARKERS = ("KV-Operation", "Nats-Marker-Reason")
"""Headers of a message that stands for an entry that was deleted or purged (ADR-8), or that expired (ADR-43)."""
UNKNOWN = "?"  # instance of an owner of whose entry nothing is left

T = TypeVar("T")


class Group(msgspec.Struct, frozen=True):
    """What all members of a group must agree on."""

    stream: str
    subject: str
    partitions: int
    lease: float | None = None
    """Seconds; ``None`` in an entry of a version that kept it out, which agrees with any."""


class Presence(msgspec.Struct, frozen=True):
    """A member's entry, which it alone writes, again and again; the key ends in what is random for each process."""

    here: bool


class Claim(msgspec.Struct, frozen=True):
    """A partition's entry: ``owner`` is empty without one, and messages up to number ``done`` are handled.

    ``made`` says of which stream, by the time of its creation: one that is made again numbers from 1 again.
    """

    owner: str = ""
    instance: str = ""
    fence: int = 0
    done: int = 0
    made: datetime.datetime | None = None


def bucket_of(stream: str, group: str) -> str:
    """Return the name of a group's bucket."""
    return f"{stream}-{group}"


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """An entry of the bucket, and when this process saw it, on its monotonic clock."""

    revision: int
    value: T
    since: float


class ConflictError(Exception):
    """Another member changed the entry in between; nothing is written."""


class NoReplyError(NotReadyError):
    """No server replied, or none that could do it at the moment; a write may have been done."""


class GroupBucket:
    """The bucket of one group, and a view of it that is kept up to date.

    Attributes:
        members: Every member that has been seen, by key.
        claims: Every partition that was ever claimed, by number.
        made: When the group's stream was made; set by :meth:`open`.
        changed: Set when members or owners change, not when progress is recorded.
        caught_up: Set when the view holds what the bucket held when :meth:`watch` began.
    """

    made: datetime.datetime | None = None

    def __init__(self, client: Client, name: str, *, domain: str | None = None) -> None:
        """Prepare; nothing is read yet."""
        self.members: dict[str, Entry[Presence]] = {}
        self.claims: dict[int, Entry[Claim]] = {}
        self.changed, self.caught_up = asyncio.Event(), asyncio.Event()
        self._client, self.domain = client, domain
        self._js = client.jetstream(timeout=REPLY_WITHIN_S, domain=domain)
        self._name, self._stream, self._prefix = name, f"KV_{name}", f"$KV.{name}."
        # Servers map the API's prefix of a domain to that domain's buckets; without it, the nearest bucket is written.
        self._write_prefix = f"{api_prefix(domain)}.{self._prefix}" if domain else self._prefix

    async def open(self, group: Group) -> None:
        """Make the bucket, or join one that is there, within 10 s.

        Raises:
            GroupMismatchError: The group is there with another number of partitions, stream, subject or lease.
            nats.js.errors.NotFoundError: There is no such stream.
            nats.js.errors.APIError: The servers refuse the bucket, or have no room for its copies (``err_code`` 10005).
            NoReplyError: No server replied in time, or none that could do it.
        """
        try:
            agreed = await retry(partial(self._agree, group), within=OPEN_WITHIN_S, every=RETRY_EVERY_S)
        except Exception as err:
            refused = isinstance(err, APIError) and not isinstance(err, ServiceUnavailableError)
            if refused or not is_transient(err):
                raise
            raise NoReplyError(
                f"stream {group.stream!r} and bucket {self._name!r} not ready within {OPEN_WITHIN_S:g} s (last: "
                f"{err!r}), expected a reply of their leaders: see whether their servers are there"
            ) from err
        if msgspec.structs.replace(agreed, lease=group.lease) != group:
            raise GroupMismatchError(
                f"the group has {agreed.partitions} partitions on {agreed.subject!r} of stream {agreed.stream!r}, "
                f"expected {group.partitions} on {group.subject!r} of {group.stream!r}, as this member asks; "
                f"they stay as they are: take another group name, or delete bucket {self._name!r} when all is done"
            )
        if agreed.lease != group.lease and None not in (agreed.lease, group.lease):
            raise GroupMismatchError(
                f"the group has a lease of {agreed.lease} s, expected {group.lease} s, as this member asks; it is the "
                f"same for all: to change it, stop all members and delete key 'group' of bucket {self._name!r}"
            )

    async def _agree(self, group: Group) -> Group:
        """Return the group as its members agreed on it, which this call decides where it is the first."""
        js = self._client.jetstream(timeout=CREATE_WITHIN_S, domain=self.domain)
        try:
            info = await js.stream_info(group.stream)
        except nats.js.errors.NotFoundError as err:
            raise await no_stream(self._client, group.stream, domain=self.domain) from err
        self.made, config = info.created, info.config
        for spread in _spreads(config, group.subject):
            if spread != group.partitions:
                raise GroupMismatchError(
                    f"stream {group.stream!r} spreads its subjects over {spread} partitions, expected "
                    f"{group.partitions} as this member asks; what nobody reads would wait for ever"
                )
        try:
            await js.stream_info(self._stream)  # a member may have no right to make it
        except nats.js.errors.NotFoundError:
            await self._make(js, config.num_replicas or 1)
        entry = await self.read("group", Group)
        if entry is not None and entry.value is not None:
            return entry.value
        try:
            await self.write("group", group, last=entry.revision if entry else 0)
        except ConflictError as err:
            raise NoReplyError(f"entry 'group' of bucket {self._name!r} is being made") from err
        return group

    async def _make(self, js: JetStreamContext, replicas: int) -> None:
        try:
            await js.create_key_value(bucket=self._name, storage=StorageType.FILE, replicas=replicas)
        except nats.js.errors.BadRequestError as err:
            if err.err_code != STREAM_NAME_IN_USE:  # another member made it, perhaps with other replicas
                raise

    async def write(self, key: str, value: msgspec.Struct, *, last: int | None = None) -> int:
        """Store an entry and return its revision; NoReplyError if that is unknown.

        With ``last``, it takes the place of that revision alone (0: it is not there yet), or raises ConflictError.
        """
        headers = {} if last is None else {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(last)}
        subject, entry = self._write_prefix + key, msgspec.json.encode(value)
        try:
            ack = await _replied(publish_once(self._client, subject, entry, headers, REPLY_WITHIN_S))
        except nats.js.errors.APIError as err:
            if err.err_code in WRONG_LAST_SEQUENCE:
                raise ConflictError(key) from err
            raise
        return ack.seq

    async def read(self, key: str, kind: type[T]) -> Entry[T | None] | None:
        """Return an entry as the bucket's leader has it, its value ``None`` if it was deleted; or ``None``.

        A foreign entry counts as deleted, but for that of the ``group``, which is a GroupMismatchError.
        """
        try:
            msg = await _replied(self._js.get_last_msg(self._stream, self._prefix + key, direct=False))
        except nats.js.errors.NotFoundError:
            return None
        data, value = msg.data or b"", _decoded(msg.headers, msg.data or b"", kind)
        if key == "group" and value is None and data:
            raise GroupMismatchError(
                f"key 'group' of bucket {self._name!r} holds {data[:80]!r}, expected what this package stores there: "
                "take another group name, or delete the key if nobody needs it"
            )
        return Entry(msg.seq or 0, value, time.monotonic())

    async def forget_member(self, key: str) -> None:
        """Remove a member's entry as it stands in the view; it may be gone also when this raises NoReplyError."""
        subject, revision = f"{self._prefix}member.{key}", self.members[key].revision
        await _replied(self._js.purge_stream(self._stream, subject=subject, seq=revision + 1))
        del self.members[key]

    async def watch(self) -> None:
        """Keep the view up to date, until cancelled; a lost reader is replaced where it stood.

        Raises:
            nats.js.errors.NotFoundError: The bucket was deleted.
            StreamReplacedError: It was deleted and made again.
        """
        reading = read_in_order(self._client, self._stream, prefetch=1_000, domain=self.domain)
        async with aclosing(reading) as batches:
            async for batch in batches:
                for msg in batch:
                    self._note(msg.subject.removeprefix(self._prefix), msg)
                    if msg.metadata.num_pending == 0:
                        self.caught_up.set()

    def forget_claim(self, number: int) -> None:
        """Note that the bucket holds nothing of a partition, as after a purge of all of it, which tells no reader."""
        self.claims[number] = replace(self.claims[number], revision=0)

    def _note(self, key: str, msg: Msg) -> None:
        kind, _, name = key.partition(".")
        revision, now = msg.metadata.sequence.stream, time.monotonic()
        if kind == "member" and "." not in name:
            known = self.members.get(name)
            presence = _decoded(msg.headers, msg.data, Presence) or Presence(here=False)
            self.members[name] = Entry(revision, presence, now)
            if known is None or known.value != presence:
                self.changed.set()
        elif kind == "partition" and name.isdecimal():
            before, claim = self.claims.get(int(name)), _decoded(msg.headers, msg.data, Claim)
            if claim is None:
                # Deleted, or overwritten by a stranger. The owner, if any, learns of it within a lease. No fence was
                # ever larger than the bucket's last revision at that time.
                known_claim = before.value if before else Claim(instance=UNKNOWN)
                claim = msgspec.structs.replace(known_claim, fence=max(known_claim.fence, revision))
            self.claims[int(name)] = Entry(revision, claim, now)
            if before is None or before.value.fence != claim.fence or not claim.owner:
                self.changed.set()


def _spreads(config: StreamConfig, subject: str) -> list[int]:
    """Return over how many partitions a stream's transform spreads subjects, and those of its sources or its mirror.

    Sources may differ: only those count that write where the group reads.
    """
    filled_from = [*(config.sources or ()), *([config.mirror] if config.mirror else ())]
    to = [transform.dest for source in filled_from for transform in source.subject_transforms or ()]
    to = [dest for dest in to if _leads_to(dest, subject)]
    if config.subject_transform:
        to.append(config.subject_transform.dest)
    return [int(spread[1]) for dest in to if (spread := SPREAD.search(dest))]


def _leads_to(dest: str, subject: str) -> bool:
    """Return whether a transform writes its partition's number where a group's subject has ``{partition}``."""
    tokens, wanted = dest.split("."), subject.split(".")
    at = wanted.index("{partition}")
    before = zip(tokens[:at], wanted[:at], strict=False)
    return any(map(SPREAD.search, tokens[at : at + 1])) and all(w in ("*", t) or "{{" in t for t, w in before)


def _decoded(headers: Mapping[str, str] | None, data: bytes, kind: type[T]) -> T | None:
    """Return an entry's value; ``None`` for one that was deleted, and for what is no value of that kind."""
    if any(name in (headers or {}) for name in MARKERS):
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def _replied(request: Awaitable[T]) -> T:
    """Return what a request returns; raise NoReplyError for an error that is transient."""
    try:
        return await request
    except Exception as err:
        if is_transient(err):
            raise NoReplyError(str(err) or repr(err)) from err
        raise
