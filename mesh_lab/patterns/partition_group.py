"""A partitioned consumer group: many workers, and the messages of one key still handled one after the other.

A stream's subject transform (``{{partition(8,2)}}``) writes a partition number into each subject, the same one for the
same key. Each partition is owned by one member, by a lease in a key-value bucket. (The servers' own ``pinned_client``,
ADR-42, does not keep order: a successor is given the next messages before those that its predecessor held.)

A partition's messages are handled one at a time, in the order of the stream. A new owner handles again, in order, what
its predecessor handled and had not recorded, and nothing after a clean leave. A member that was frozen while its lease
ran out calls no further handler; one that it was in the middle of may run to its next ``await`` beside the successor's,
with ``partition.mine`` false and a smaller ``partition.fence``, by which a store can refuse what it writes. Partitions
of a member that dies move within the lease and a second. While the bucket has no leader, work pauses when leases end.
"""

import asyncio
import contextlib
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.group_bucket import (
    OPEN_WITHIN_S,
    Claim,
    ConflictError,
    Group,
    GroupBucket,
    NoReplyError,
    Presence,
    bucket_of,
)
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import cancel_and_join, run_shielded

RECORD_EVERY_S = 0.2
PREFETCH = 200  # messages requested ahead of the work, in each partition
FORGET_AFTER_LEASES = 20  # long enough for a frozen member to find its entry when it resumes
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")  # a token of a subject and of a key


class Partition:
    """A partition that this member owns, as its handler sees it.

    Attributes:
        number: Its number, from 0.
        fence: Grows with every change of owner: let a store refuse a smaller one than the largest it has seen.
        done: Number in the stream of the last message that was handled.
        leaving: Whether it takes no further message.
    """

    def __init__(self, bucket: GroupBucket, number: int, claim: Claim, revision: int, since: float, lease: float):
        # The lease is counted from before the claim was written: for others, who saw it later, it ends later.
        self.number, self.fence, self.done = number, claim.fence, claim.done
        self.leaving = False
        self._bucket, self._claim, self._revision = bucket, claim, revision
        self._lease, self._renewed_at = lease, since
        self._handling = self._lost = False
        self._working: asyncio.Task[None] | None = None

    @property
    def mine(self) -> bool:
        """Whether the lease stands, by this process's own clock; no message is sent to find out."""
        return not self._lost and time.monotonic() < self._renewed_at + self._lease

    async def own(self, client: Client, group: Group, handle: "Handler") -> None:
        """Handle messages until the partition is given up or lost, then hand it over; raise what the handler raised."""
        self._working = working = asyncio.create_task(self._work(client, group, handle))
        try:
            while self.mine and not working.done():
                await asyncio.wait({working}, timeout=RECORD_EVERY_S)
                if self.leaving and not self._handling:
                    working.cancel()  # again: the first time may have been lost, as `cancel_and_join` says
                due = time.monotonic() - self._renewed_at > self._lease / 3
                if self.mine and (due or self.done != self._claim.done):
                    await self._record(self._claim.owner)
        finally:
            self.leaving = True
            await cancel_and_join(working)  # a handler whose partition is another member's by now is cancelled, too
            while self.mine and self._claim.owner:
                await self._record("")
        if not working.cancelled():
            working.result()

    def give_up(self) -> None:
        """Finish the message in hand, if any, and no other."""
        self.leaving = True
        if self._working is not None and not self._handling:
            self._working.cancel()

    async def _work(self, client: Client, group: Group, handle: "Handler") -> None:
        subject = group.subject.format(partition=self.number)
        messages = read_in_order(
            client, group.stream, subject=subject, start=self.done + 1, prefetch=PREFETCH, domain=self._bucket.domain,
            made=self._claim.made,
        )  # fmt: skip
        async with aclosing(messages):
            async for batch in messages:
                for msg in batch:
                    if self.leaving or not self.mine:
                        return
                    self._handling = True
                    try:
                        await handle(msg, self)
                    except asyncio.CancelledError as err:
                        if (this := asyncio.current_task()) is not None and this.cancelling():
                            raise
                        # The handler awaited a task that somebody cancelled; nobody cancels this one.
                        raise RuntimeError(
                            f"the handler of message {msg.metadata.sequence.stream}, partition {self.number}, raised "
                            "CancelledError and was not cancelled, expected it to return or to raise another error"
                        ) from err
                    self._handling = False
                    self.done = msg.metadata.sequence.stream

    async def _record(self, owner: str) -> None:
        """Write progress and renew the lease in one write; find out whether another member took the partition."""
        began = time.monotonic()
        claim = Claim(owner, self._claim.instance if owner else "", self.fence, self.done, self._claim.made)
        try:
            self._revision = await self._bucket.write(f"partition.{self.number}", claim, last=self._revision)
        except ConflictError:
            # Perhaps it was our own write, whose reply was lost.
            with contextlib.suppress(NoReplyError):
                entry = await self._bucket.read(f"partition.{self.number}", Claim)
                if entry is not None and entry.value is not None and entry.value.fence == self.fence:
                    self._revision = entry.revision
                else:
                    self._lost = True
        except NoReplyError:
            await asyncio.sleep(RECORD_EVERY_S)  # until the lease is over
        else:
            self._claim, self._renewed_at = claim, began


Handler = Callable[[Msg, Partition], Awaitable[object]]
"""``async def handle(msg, partition)``: the message is done when it returns."""


class GroupMember:
    """One member of a partitioned group.

    Attributes:
        partitions: What it owns now, by number.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        group: str,
        *,
        name: str,
        subject: str,
        partitions: int,
        lease: float = 3.0,
        domain: str | None = None,
    ) -> None:
        """Prepare; nothing is requested of a server yet.

        Args:
            client: A connected nats-py client.
            stream: Name of the stream.
            group: Name of the group; its members share the stream's messages, another group gets all again.
            name: Whom the group's bucket shows as the owner; members of one name are members like others.
            subject: Where a partition's messages are, ``{partition}`` for its number: ``"orders.{partition}.>"``.
            partitions: How many there are: the most members that can work at once. It stays as it is.
            lease: Seconds for which a silent member keeps its partitions, the same for all members. A short one takes
                them also from members that a busy machine or an election held up. To change it, stop all members and
                delete the key ``group`` of the group's bucket.
            domain: JetStream domain of the stream and of the group's bucket; ``None`` for the client's own.

        Raises:
            ValueError: A name is not legal in NATS, the subject has no ``{partition}`` or has other braces, or a number
                is too small or not finite.
        """
        for what, text in (("stream", stream), ("group", group), ("member", name)):
            if NAME.fullmatch(text) is None:
                raise ValueError(f"{what} {text!r}, expected 1 to 32 letters, digits, '-' or '_'")
        if partitions < 1:
            raise ValueError(f"partitions={partitions}, expected 1 or more")
        if not 3 * RECORD_EVERY_S <= lease < math.inf:
            least = f"{3 * RECORD_EVERY_S:.1f} s or more"
            raise ValueError(f"lease={lease}, expected {least}, to be renewed in time, and finite")
        if "{partition}" not in subject.split("."):
            raise ValueError(f"subject {subject!r}, expected a token {{partition}} in it: 'orders.{{partition}}.>'")
        if set("{}") & set(subject.replace("{partition}", "")):
            raise ValueError(f"subject {subject!r}, expected no braces but {{partition}}: 'orders.{{partition}}.>'")
        self.partitions: dict[int, Partition] = {}
        self._client, self._name, self._lease = client, name, lease
        self._group = Group(stream, subject, partitions, lease)
        self._bucket = GroupBucket(client, bucket_of(stream, group), domain=domain)
        self._instance = uuid.uuid4().hex
        self._key = f"{name}-{self._instance}"
        self._beat_at = -math.inf
        self._owning: dict[int, asyncio.Task[None]] = {}

    async def run(self, handle: Handler, *, stop: asyncio.Event | None = None) -> None:
        """Take part until ``stop`` is set; then finish the messages in hand and leave.

        Args:
            handle: Called with each message and its partition, one message at a time in a partition. If it raises, the
                member leaves and the exception is raised here, since to skip a message would break the order.
            stop: Set it to leave gracefully. When the task is cancelled instead, so are handlers at work, and
                their messages are handled again by the next owner. It ends when they did, however often it is
                cancelled.

        Raises:
            RuntimeError: The handler raised CancelledError, and nobody had cancelled it.
            GroupMismatchError: The group exists with other partitions, stream, subject or lease.
            NotReadyError: No server replied within 10 s while the member joined, or none that could do it.
            nats.js.errors.NotFoundError: There is no such stream, or it or the group's bucket was deleted.
            StreamReplacedError: The stream or the bucket was deleted and made again, or ends before what is recorded as
                done. A member that joins then begins at the new stream's beginning.
            nats.js.errors.APIError: The servers refuse the group's bucket, or a write to it.
            nats.errors.ConnectionClosedError: The client was closed.
        """
        await self._bucket.open(self._group)
        watching = asyncio.create_task(self._bucket.watch())
        stopped = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            # A bucket that was purged meanwhile holds nothing to catch up with.
            await self._until(self._bucket.caught_up, watching, within=OPEN_WITHIN_S)
            while not stopped.done():
                self._bucket.changed.clear()
                await self._beat()
                await self._rebalance(handle)
                await self._until(self._bucket.changed, watching, stopped)
            for partition in self.partitions.values():
                partition.give_up()
            while self._owning:
                await self._beat()
                await self._until(asyncio.Event(), watching)
        finally:
            # Cancelled again meanwhile, as by `cancel_and_join`, it would leave its readers and their consumers behind.
            await run_shielded(self._leave(watching, stopped))

    async def _leave(self, *tasks: asyncio.Task[object]) -> None:
        """Hand over the partitions, end the tasks, and take this member's entry back."""
        for partition in self.partitions.values():
            partition.leaving = True
        # A partition that is handed over takes a moment, and at most its lease.
        await cancel_and_join(*self._owning.values(), again_after=self._lease + 1.0)
        await cancel_and_join(*tasks)
        # Whatever hinders it, the entry is void when the lease is over.
        with contextlib.suppress(NoReplyError, nats.errors.Error):
            await self._bucket.write(f"member.{self._key}", Presence(here=False))

    async def _until(
        self, event: asyncio.Event, *tasks: asyncio.Task[object], within: float | None = RECORD_EVERY_S
    ) -> None:
        """Return when an event is set, a task or a partition is done, or time is up; raise what a task raised."""
        waiting = asyncio.create_task(event.wait())
        every = {waiting, *tasks, *self._owning.values()}
        try:
            await asyncio.wait(every, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in tasks:
            if task.done():
                task.result()
        for number, owning in list(self._owning.items()):
            if owning.done():
                del self._owning[number], self.partitions[number]
                owning.result()
        if self._client.is_closed:
            raise nats.errors.ConnectionClosedError

    async def _beat(self) -> None:
        """Write this member's entry, if it is time."""
        now = time.monotonic()
        if now - self._beat_at < self._lease / 3:
            return
        try:
            await self._bucket.write(f"member.{self._key}", Presence(here=True))
            self._beat_at = now
        except NoReplyError:
            await asyncio.sleep(RECORD_EVERY_S)

    async def _rebalance(self, handle: Handler) -> None:
        """Move towards a fair share: give up what is too much, claim what is free."""
        now = time.monotonic()
        members = self._bucket.members.items()
        alive = [key for key, entry in members if entry.value.here and now - entry.since < self._lease]
        keys = sorted({*alive, self._key})
        rank, count = keys.index(self._key), self._group.partitions
        share = count // len(keys) + (rank < count % len(keys))
        held = sorted(number for number in self._owning if not self.partitions[number].leaving)
        for number in held[share:]:
            self.partitions[number].give_up()
        missing, first = share - len(held), rank * count // len(keys)
        # Members begin at different places, so that they rarely want the same one.
        for number in (*range(first, count), *range(first)):
            if missing > 0 and number not in self._owning and self._is_free(number, now):
                missing -= await self._claim(number, handle)
        gone = [key for key, entry in members if now - entry.since > FORGET_AFTER_LEASES * self._lease]
        if rank == 0 and gone:
            with contextlib.suppress(NoReplyError):
                await self._bucket.forget_member(gone[0])

    def _is_free(self, number: int, now: float) -> bool:
        entry = self._bucket.claims.get(number)
        # What is ours and not held was lost together with its reply, or to a pause that no other member noticed.
        return entry is None or entry.value.instance in ("", self._instance) or now - entry.since > self._lease

    async def _claim(self, number: int, handle: Handler) -> bool:
        entry = self._bucket.claims.get(number)
        before = entry.value if entry else Claim()
        made = self._bucket.made
        done = before.done if before.made in (None, made) else 0  # of an earlier stream of that name
        claim = Claim(self._name, self._instance, before.fence + 1, done, made)
        since = time.monotonic()
        try:
            revision = await self._bucket.write(f"partition.{number}", claim, last=entry.revision if entry else 0)
        except ConflictError:  # another member was quicker, which the view will show, or the bucket was purged
            with contextlib.suppress(NoReplyError):
                if entry is not None and await self._bucket.read(f"partition.{number}", Claim) is None:
                    self._bucket.forget_claim(number)
            return False
        except NoReplyError:
            return False  # perhaps it is ours: the view will show what the bucket holds
        self.partitions[number] = partition = Partition(self._bucket, number, claim, revision, since, self._lease)
        self._owning[number] = asyncio.create_task(partition.own(self._client, self._group, handle))
        return True
