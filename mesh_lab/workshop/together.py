"""What the seats of a room do together: their stores sell, the room counts; they share its work; one is noisy.

Orders come to the stream ``INTAKE``, one subject for each seat. The room's clerk takes them in their turn, so many a
second, and stores each in ``ORDERS`` under its id; what is stored there is counted, by id. What a seat may publish is
in the table of :mod:`.protocol`; of what it says here, the subject is true, and the content is looked at.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from statistics import median

import msgspec
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StreamConfig

from mesh_lab.errors import NotReadyError, OrderFormatError, SettingsError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import DUPLICATE_WINDOW_S, create_event_store
from mesh_lab.orders.order import STREAM, Order, decode, dollars, encode
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.token_bucket import TokenBucket
from mesh_lab.patterns.wait import cancel_and_join, eventually, retry
from mesh_lab.security.accounts import Account
from mesh_lab.servers.mesh import Mesh
from mesh_lab.workshop.protocol import Sold, Told
from mesh_lab.workshop.store import ACK_WAIT_S, Step, forward

INTAKE, CLERK, OPEN, SHUT = "INTAKE", "clerk", "intake.*", "intake.shut.*"
CLERK_PER_S = 150
"""Orders that the clerk does in a second: a number of our choice, so that a room sees the same on every machine."""
INTAKE_BYTES, ORDER_BYTES = 64 * 2**20, 4_096
TELL_EVERY_S, AGAIN_AFTER_S, CAUGHT_UP_WITHIN_S, DRAINED_WITHIN_S = 1.0, 2.0, 10.0, 120.0
RECENT_S, TAMED = 5.0, 4.0
STORES_OF_A_SEAT = 5  # it has another one after it joined anew
EXPORTS = [{"name": OPEN, "subject": OPEN, "type": "service"}]
"""Of the room's account: what the account of the stores may ask for."""


class Together:
    """The stores of a room's seats, and what is known of them.

    Attributes:
        told: What the stores are told.
        sold: Orders that each store has sold, by its own word; a store's name begins with its seat's number.
        counted: By store, the value in cents of each order that the room has stored, by id.
        rejected: By seat, what came and was none of its orders.
        jobs: The orders that the room has handed out to pack, by id, and how often each seat has packed it.
        cut: Seats whose link is cut.
    """

    def __init__(self, mesh: Mesh, client: Client, stores: Account, announce: Callable[[], Awaitable[None]]) -> None:
        self.told = Told(0.0, "")
        self.sold, self.rejected = dict[str, int](), Counter[str]()
        self.counted: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self.jobs: dict[str, Counter[str]] = {}
        self.cut = set[str]()
        self.quiet_s = self.noisy_s = 0.0  # how long the other seats' orders waited before the noise, and beside it
        self._mesh, self._client, self._stores, self._announce = mesh, client, stores, announce
        self._desks, self._work = list[Client](), list[asyncio.Task[None]]()
        self._jobs = dict[bytes, str]()  # by what is published of each: the order
        self._waits: deque[tuple[float, str, float]] = deque(maxlen=20_000)

    async def open(self) -> None:
        """Make the streams, begin to count, and listen to the stores.

        Raises:
            nats.errors.Error: The servers do not make the streams; NotReadyError: they let the desk not in.
        """
        js = self._client.jetstream(timeout=3.0)
        taken = StreamConfig(
            name=INTAKE, subjects=[OPEN], retention=RetentionPolicy.WORK_QUEUE, num_replicas=3,
            duplicate_window=DUPLICATE_WINDOW_S, deny_delete=True, deny_purge=True,
            discard=DiscardPolicy.NEW, max_bytes=INTAKE_BYTES, max_msg_size=ORDER_BYTES,
        )  # fmt: skip
        if INTAKE not in [info.config.name for info in await retry(js.streams_info)]:
            await retry(partial(js.add_stream, taken))
        await retry(partial(create_event_store, js, replicas=3))
        clerk = ConsumerConfig(durable_name=CLERK, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S)
        await retry(partial(js.add_consumer, INTAKE, clerk))
        desk = RawCredentials(self._stores.user("desk").credentials)
        for server in self._mesh.servers:  # a queue group's members at the publisher's own server come first
            self._desks.append(await self._mesh.connect(to=server, name="desk of stores", user_credentials=desk))
        await self._desks[0].subscribe("sold.*", cb=self._note_sold)
        await self._desks[0].subscribe("done.*", cb=self._note_done)
        await self._desks[0].subscribe("ask.*", cb=self._asked)
        pace = TokenBucket(CLERK_PER_S, burst=CLERK_PER_S // 10)
        clerk_works = forward(self._client, INTAKE, CLERK, self._enter, pace=pace)
        doing = (clerk_works, self._count(), self._tell(), self._hand_out())
        self._work = [asyncio.create_task(work) for work in doing]

    async def close(self) -> None:
        """End the counting; the mesh closes the clients."""
        await cancel_and_join(*self._work)

    def sell(self, pace: float) -> None:
        """Let each store sell so many orders a second, none more than another; 0 ends it.

        Raises:
            SettingsError: The pace is no number of a store's.
        """
        if not 0 <= pace <= 50:
            raise SettingsError(f"a pace of {pace:g} orders a second for each store, expected 0 to 50")
        self.told = Told(pace, "")

    async def cut_link(self, seat: str, key: str) -> None:
        """Refuse a seat's store, by its key, until :meth:`mend`; the servers disconnect it at once."""
        self._stores.revoked[key] = int(time.time()) + 1
        await self._announce()
        self.cut.add(seat)

    async def mend(self, seat: str, key: str) -> None:
        """Let a seat's store in again."""
        self._stores.revoked.pop(key, None)
        await self._announce()
        self.cut.discard(seat)

    def hand_out(self, orders: int) -> None:
        """Hand out so many more orders to pack, each to one member of the stores' queue group, until it is done.

        Raises:
            SettingsError: They are too many for a room.
        """
        if not 0 < orders <= 5_000:
            raise SettingsError(f"{orders} orders to pack, expected 1 to 5,000")
        for order in islice(cycle(read_orders(first=1_000)), orders):
            job = f"{len(self.jobs) + 1:06}"
            self.jobs[job] = Counter()
            self._jobs[encode(msgspec.structs.replace(order, id=job))] = job

    def make_noise(self, seat: str) -> None:
        """Let one store sell as much as it can, until :meth:`sell`, and keep how long the others' orders waited."""
        self.quiet_s, self.noisy_s = self._waited(), 0.0
        self.told = Told(self.told.pace, seat)

    async def limit(self, most: int) -> None:
        """Let at most so many orders of each seat wait at the intake from now on; further ones stay in their store.

        The intake is shut until it is empty: the servers would drop what is there and above the new limit, although it
        was acknowledged. (``enforceMsgPerSubjectLimit`` in server/filestore.go)

        Raises:
            SettingsError: The limit is below 1.
            NotReadyError: The intake was not empty in time; it is as it was.
        """
        if most < 1:
            raise SettingsError(f"a limit of {most}, expected 1 or more")
        self.noisy_s = self._waited() if self.told.noisy else 0.0
        js = self._client.jetstream(timeout=3.0)
        now = (await retry(partial(js.stream_info, INTAKE))).config
        shut = replace(now, subjects=[SHUT])
        limited = replace(now, max_msgs_per_subject=most, discard_new_per_subject=True, subjects=[OPEN])

        async def empty() -> bool:
            return not (await retry(partial(js.stream_info, INTAKE))).state.messages

        await retry(partial(js.update_stream, shut))
        try:
            await eventually(empty, within=DRAINED_WITHIN_S, every=0.1)
        except BaseException:
            await retry(partial(js.update_stream, now))
            raise
        await retry(partial(js.update_stream, limited))
        self._waits.clear()

    def facts(self) -> list[str]:
        """Return what everybody may see of it, in a few words each."""
        counted, packed = sum(map(len, self.counted.values())), sum(bool(by) for by in self.jobs.values())
        said = [f"{len(self.sold)} stores: {counted:,} of {max(counted, sum(self.sold.values())):,} orders counted"]
        said += [f"it stopped: {task.exception()!r}" for task in self._work if task.done() and not task.cancelled()]
        said += [f"links cut: {', '.join(sorted(self.cut))}"] if self.cut else []
        said += [f"others' orders wait {self._waited():.2f} s beside seat {self.told.noisy}"] if self.told.noisy else []
        said += [f"{packed:,} of {len(self.jobs):,} packed: {self._shares()}"] if self.jobs else []
        return said

    async def check(self, what: str) -> str:
        """Return the verdict on all seats together; for stores that sell, on what they had sold when this began."""
        checks = {"count": self._check_count, "share": self._check_share, "noise": self._check_noise}
        if what not in checks:
            return f"not yet: no check {what[:20]!r}; expected one of {', '.join(checks)}"
        return await checks[what]()

    async def _check_count(self) -> str:
        if not any(self.sold.values()):
            return "not yet: no store has sold anything; expected some: open the stores, and sell 5"
        wanted = dict(self.sold)

        def missing() -> dict[str, int]:
            return {store: n for store, sold in wanted.items() if (n := sold - len(self.counted[store])) > 0}

        with contextlib.suppress(NotReadyError):
            await eventually(lambda: not missing(), within=CAUGHT_UP_WITHIN_S, every=0.1)
        if left := missing():
            seen = ", ".join(
                f"{n:,} of seat {store[:2]}{' (its link is cut)' * (store[:2] in self.cut)}"
                for store, n in sorted(left.items())
            )
            return (
                f"not yet: not counted are {seen}; expected every order: mend the links, bring the servers back, wait"
            )
        orders, cents = sum(map(len, self.counted.values())), sum(sum(of.values()) for of in self.counted.values())
        return f"correct: {orders:,} orders of {len(wanted)} stores, {dollars(cents)}, each counted once"

    async def _check_share(self) -> str:
        if not self.jobs:
            return "not yet: no order is handed out; expected some: work 300"
        left, twice = sum(not by for by in self.jobs.values()), sum(by.total() > 1 for by in self.jobs.values())
        said = self._shares()
        if left:
            seen = f"{left:,} of {len(self.jobs):,} orders are not packed (so far: {said})"
            return f"not yet: {seen}; expected all: a worker that runs, and a moment"
        if len({seat for by in self.jobs.values() for seat in by}) < 2:
            return f"not yet: {said} packed all; expected several seats in the group: start workers, work 300"
        again = f", {twice} of them more than once: who dies may have packed it" if twice else ""
        return f"correct: {len(self.jobs):,} orders are packed{again}; {said}"

    async def _check_noise(self) -> str:
        now = self._waited()
        if not self.quiet_s:
            return "not yet: no seat was noisy; expected: sell 5, a few seconds, then noise 07"
        if not self.noisy_s:
            times = now / self.quiet_s
            return (
                f"not yet: the others' orders wait {now:.2f} s, {times:,.0f} times as long; expected a limit: limit 20"
            )
        if not now:
            return "not yet: no order of another seat came lately; expected some: sell 5"
        said = f"{self.quiet_s:.3f} s before, {self.noisy_s:.2f} s beside the noise, {now:.3f} s with the limit"
        if now * TAMED > self.noisy_s:
            return f"not yet: the others' orders wait {said}; expected a fourth or less: wait a moment, or limit 5"
        return f"correct: the others' orders waited {said}: {self.noisy_s / now:,.0f} times as long without it"

    def _shares(self) -> str:
        """Return how many of the orders each seat packed."""
        shares = Counter(seat for by in self.jobs.values() for seat in by)
        return ", ".join(f"seat {seat} {n:,}" for seat, n in sorted(shares.items())) or "by nobody"

    def _waited(self) -> float:
        """Return how long the orders of the seats that are not noisy waited at the intake lately, 0 if none came."""
        since, noisy = time.monotonic() - RECENT_S, self.told.noisy
        recent = [waited for at, seat, waited in self._waits if at > since and seat != noisy]
        return median(recent) if recent else 0.0

    def _enter(self, msg: Msg) -> Step | None:
        """Return where an order goes that is the seat's own, by the subject on which the servers let it in."""
        seat = msg.subject.rpartition(".")[2]
        self._waits.append((time.monotonic(), seat, max(0.0, time.time() - msg.metadata.timestamp.timestamp())))
        try:
            order = decode(msg.data)
        except OrderFormatError:
            order = None
        if order is None or order.region != seat or not order.id.startswith(f"{seat}-"):
            self.rejected[seat] += 1
            return None
        return order.subject("placed"), msg.data, order.msg_id("placed")

    async def _count(self) -> None:
        async for batch in read_in_order(self._client, STREAM):
            for msg in batch:
                order: Order = decode(msg.data)
                self.counted[order.id.rpartition("-")[0]].setdefault(order.id, order.cents)

    async def _tell(self) -> None:
        while True:
            await publish_if_connected(self._desks[0], "told.pace", msgspec.json.encode(self.told))
            await asyncio.sleep(TELL_EVERY_S)  # the stores' next turn; one that comes back has heard nothing

    async def _hand_out(self) -> None:
        """Publish each order that nobody has packed, from each server in turn, again and again."""
        desks = cycle(self._desks)
        sent = dict[str, float]()
        while True:
            for order, job in [(order, job) for order, job in self._jobs.items() if not self.jobs[job]]:
                if time.monotonic() - sent.get(job, 0.0) > AGAIN_AFTER_S:
                    sent[job] = time.monotonic()
                    await publish_if_connected(next(desks), f"work.{job}", order)
            await asyncio.sleep(0.1)  # until there is more, or who took one should have packed it

    async def _note_sold(self, msg: Msg) -> None:
        seat = msg.subject.rpartition(".")[2]
        with contextlib.suppress(msgspec.DecodeError):
            said = msgspec.json.decode(msg.data, type=Sold)
            known = [store for store in self.sold if store.startswith(f"{seat}-")]
            if said.store in known or (said.store.startswith(f"{seat}-") and len(known) < STORES_OF_A_SEAT):
                self.sold[said.store] = said.orders
                return
        self.rejected[seat] += 1

    async def _note_done(self, msg: Msg) -> None:
        seat, job = msg.subject.rpartition(".")[2], self._jobs.get(msg.data)
        if job is None:  # it was not handed out, or was changed
            self.rejected[seat] += 1
        else:
            self.jobs[job][seat] += 1

    async def _asked(self, msg: Msg) -> None:
        seat, what = msg.subject.rpartition(".")[2], msg.data.decode(errors="replace")
        if msg.reply.startswith(f"_INBOX_store-{seat}."):  # as with the desk of reports: no forgery for anybody
            await publish_if_connected(self._desks[0], msg.reply, (await self.check(what)).encode())
