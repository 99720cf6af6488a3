"""One partition while a member of a group owns it: its lease, its fence, and the work on its messages.

See :mod:`~mesh_lab.patterns.partition_group` for what holds and why.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.partition_claims import TRANSIENT, Claim, ConflictError, Group, GroupBucket
from mesh_lab.patterns.pull_consumer import position, read_in_order
from mesh_lab.patterns.wait import cancel_and_join

RECORD_EVERY_S = 0.2


class Partition:
    """A partition that this member owns, as its handler sees it.

    Attributes:
        number: 0 to the number of partitions less one.
        fence: Grows with every change of owner. A store that keeps the largest one it has seen, and refuses smaller
            ones, is safe from a member that does not know yet that it was replaced.
        done: Number in the stream of the last message that was handled.
        leaving: It takes no further message.
    """

    def __init__(self, bucket: GroupBucket, number: int, claim: Claim, revision: int, *, since: float, lease: float):
        """Note what was claimed.

        Args:
            bucket: Where the claim stands.
            number: Number of the partition.
            claim: The claim as it was written.
            revision: Revision of that entry.
            since: Monotonic time *before* it was written. Others count the lease from when they saw it, so they are
                later than we are to think that it is over.
            lease: Seconds for which the claim holds without being renewed.
        """
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

    async def own(self, client: Client, group: Group, handle: "Handler", prefetch: int) -> None:
        """Handle messages until the partition is given up or lost, then hand it over.

        Raises:
            Exception: Whatever the handler raised.
        """
        self._working = working = asyncio.create_task(self._work(client, group, handle, prefetch))
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
            await cancel_and_join(working)  # a handler at work on what is somebody else's by now is told, too
            while self.mine and self._claim.owner:
                await self._record("")
        if not working.cancelled():
            working.result()

    def give_up(self) -> None:
        """Finish the message in hand, if any, and no other."""
        self.leaving = True
        if self._working is not None and not self._handling:
            self._working.cancel()

    async def _work(self, client: Client, group: Group, handle: "Handler", prefetch: int) -> None:
        subject = group.subject.format(partition=self.number)
        messages = read_in_order(client, group.stream, subject=subject, start=self.done + 1, prefetch=prefetch)
        async with aclosing(messages):
            async for batch in messages:
                for msg in batch:
                    if self.leaving or not self.mine:
                        return
                    self._handling = True
                    await handle(msg, self)
                    self._handling = False
                    self.done = position(msg).stream_seq

    async def _record(self, owner: str) -> None:
        """Write progress and renew the lease in one; find out whether the partition is somebody else's."""
        began, key = time.monotonic(), f"partition.{self.number}"
        claim = Claim(owner, self._claim.instance if owner else "", self.fence, self.done)
        try:
            self._revision = await self._bucket.write(key, claim, last=self._revision)
        except ConflictError:
            # Perhaps our own write, whose answer was lost: then the entry is ours, at another revision.
            with contextlib.suppress(*TRANSIENT):
                there = await self._bucket.read(key, Claim)
                if there is not None and there.value.fence == self.fence:
                    self._revision = there.revision
                else:
                    self._lost = True
        except TRANSIENT:
            await asyncio.sleep(RECORD_EVERY_S)  # until the lease is over
        else:
            self._claim, self._renewed_at = claim, began


Handler = Callable[[Msg, Partition], Awaitable[object]]
"""``async def handle(msg, partition)``: the message is done when it returns."""
