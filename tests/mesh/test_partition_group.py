"""Partitioned groups keep the order of every key, whoever is killed, frozen or added."""

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
import pytest
from group_verdict import Handled, Published, faults
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamSource, SubjectTransform

from mesh_lab.errors import GroupMismatchError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.patterns.group_bucket import Group, GroupBucket
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.partition_group import GroupMember, Partition
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.patterns.windowed_publisher import WindowedPublisher
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

PROGRAM = Path(__file__).with_name("group_member.py")
LEASE_S = 1.5
PARTITIONS = 6
EVENTS = ("placed", "paid", "shipped")
ALL_SEEDS = 20
SETTLED_S = 4.0
SEEDS = range(1, 1 + int(os.environ.get("MESH_LAB_GROUP_SEEDS", "6")))
AT_A_TIME = 3


async def make_stream(client: Client, name: str, partitions: int = PARTITIONS) -> str:
    """Make a stream that spreads orders over partitions, and return the subject of one partition's events."""
    js = client.jetstream(timeout=10.0)
    low = name.lower()
    rest = ".".join(f"{{{{wildcard({n})}}}}" for n in (1, 2, 3))
    to = f"{low}.{{{{partition({partitions},2)}}}}.{rest}"
    with contextlib.suppress(nats.js.errors.NotFoundError):
        await js.delete_stream(f"KV_{name}-shop")
    await js.add_stream(
        name=name, subjects=[f"{low}.*.*.*"], subject_transform=SubjectTransform(src=f"{low}.*.*.*", dest=to)
    )
    await wait_routable(client, name)  # an event that is sent again would come behind the next one of its order
    return f"{low}.{{partition}}.>"


class Crew:
    """The processes of a run, and what is done to them."""

    def __init__(self, mesh: Mesh, told: dict[str, Any]) -> None:
        self._options, self._told = mesh.connect_options(), told
        self.members: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, float] = {}
        self.frozen: set[str] = set()

    def add(self, name: str) -> None:
        process = subprocess.Popen([sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        words = json.dumps({"options": self._options, "told": {**self._told, "name": name}})
        process.stdin.write(words.encode() + b"\n")
        process.stdin.close()
        self.members[name], self.started[name] = process, time.monotonic()

    @property
    def at_work(self) -> list[str]:
        return [name for name in self.members if name not in self.frozen]

    @property
    def settled(self) -> list[str]:
        """Those that can be told to stop: a process that is still importing Python modules dies of it instead."""
        return [name for name in self.at_work if time.monotonic() - self.started[name] > SETTLED_S]

    def kill(self, name: str) -> None:
        process = self.members.pop(name)
        process.kill()
        process.wait()
        process.stderr.close()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.members[name].send_signal(number)

    async def stop(self, name: str) -> str:
        process = self.members.pop(name)
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 15.0)
        words = process.stderr.read().decode()
        process.stderr.close()
        return f"{name} ended with {code}: {words}" if code else ""

    def end(self) -> None:
        for name in list(self.members):
            self.kill(name)


@contextlib.asynccontextmanager
async def crew(mesh: Mesh, client: Client, name: str, *, work_s: float) -> AsyncIterator[Crew]:
    subject, js = await make_stream(client, name), client.jetstream(timeout=10.0)
    await js.add_stream(name=f"{name}-REPORTS", subjects=[f"reports.{name}"])
    told = {
        "stream": name, "subject": subject, "partitions": PARTITIONS, "lease_s": LEASE_S, "work_s": work_s,
        "reports": f"reports.{name}",
    }  # fmt: skip
    members = Crew(mesh, told)
    try:
        yield members
    finally:
        members.end()
        for stream in (name, f"{name}-REPORTS", f"KV_{name}-shop"):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await js.delete_stream(stream)


async def publish_events(client: Client, name: str, orders: int, *, rate_per_s: float) -> None:
    """Publish each order's events in their order, those of neighbouring orders mixed."""
    due = sorted((n + 7 * step, step, order) for n, order in enumerate(read_orders(first=orders)) for step in range(3))
    async with WindowedPublisher(client) as publisher:
        began = time.monotonic()
        for n, (_, step, order) in enumerate(due):
            await asyncio.sleep(max(0.0, began + n / rate_per_s - time.monotonic()))  # pacing: the rate
            subject = f"{name.lower()}.{order.region}.{order.id}.{EVENTS[step]}"
            await publisher.publish(subject, b"", msg_id=subject)


async def read_all(client: Client, stream: str) -> list[Msg]:
    """Return every message that the stream holds now."""
    last = (await client.jetstream(timeout=5.0).stream_info(stream)).state.last_seq
    found: list[Msg] = []
    if last:
        async with aclosing(read_in_order(client, stream)) as batches:
            async for batch in batches:
                found += batch
                if found[-1].metadata.sequence.stream >= last:
                    break
    return found


async def reports_of(client: Client, name: str) -> list[Handled]:
    found = await read_all(client, f"{name}-REPORTS")
    reports = [msgspec.json.decode(msg.data, type=Handled) for msg in found]
    return [
        msgspec.structs.replace(report, at=msg.metadata.timestamp.timestamp())
        for report, msg in zip(reports, found, strict=True)
    ]


async def published_to(client: Client, name: str) -> list[Published]:
    rows = []
    for msg in await read_all(client, name):
        _, partition, _, order, event = msg.subject.split(".")
        rows.append(
            Published(int(partition), msg.metadata.sequence.stream, order, event, msg.metadata.timestamp.timestamp())
        )
    return rows


async def all_handled(client: Client, name: str, count: int) -> None:
    # Counted by what the stream of reports holds, then by what they say: repetitions are allowed.
    async def enough() -> bool:
        state = (await client.jetstream(timeout=5.0).stream_info(f"{name}-REPORTS")).state
        return state.messages >= count and len({one.seq for one in await reports_of(client, name)}) == count

    await eventually(enough, within=40.0, every=0.3)


async def all_joined(client: Client, name: str, count: int) -> bool:
    subjects = f"$KV.{name}-shop.member.*"
    # Not made yet, or made and without a leader: such a request is never answered.
    with contextlib.suppress(nats.js.errors.NotFoundError, nats.errors.TimeoutError):
        info = await client.jetstream(timeout=1.0).stream_info(f"KV_{name}-shop", subjects_filter=subjects)
        return len(info.state.subjects or {}) == count
    return False


async def disturb(members: Crew, seed: int) -> int:
    """Kill, freeze and add members at moments that the seed decides; return how often one was frozen."""
    chance = random.Random(seed)
    steps = ["kill", "freeze", "add", "stop", chance.choice(["kill", "freeze", "add"])]
    chance.shuffle(steps)
    frozen, joined = 0, 3
    for step in steps:
        await asyncio.sleep(chance.uniform(0.4, 1.2))  # pacing: a moment that the seed decides
        if step == "add" or len(members.at_work) < 2:
            joined += 1
            members.add(f"m{joined}")
            continue
        if step == "stop":
            await eventually(lambda: members.settled, within=10.0)
        name = chance.choice(members.settled if step == "stop" else members.at_work)
        if step == "kill":
            members.kill(name)
            if chance.random() < 0.5:
                members.add(name)  # a supervisor starts it again at once, under its old name
        elif step == "stop":
            said = await members.stop(name)
            assert not said, said
        else:
            members.signal(name, signal.SIGSTOP)
            members.frozen.add(name)
            frozen += 1
            await asyncio.sleep(LEASE_S * chance.uniform(0.5, 2.0))  # pacing: as long as the seed decides
            members.signal(name, signal.SIGCONT)
            members.frozen.discard(name)
    return frozen


async def one_run(mesh: Mesh, client: Client, seed: int) -> None:
    name, orders = f"RUN{seed}", 150
    async with crew(mesh, client, name, work_s=0.01) as members:
        for n in (1, 2, 3):
            members.add(f"m{n}")
        # How long a process takes to import its modules is no pause of the group.
        await eventually(lambda: all_joined(client, name, 3), within=60.0, every=0.1)
        publishing = asyncio.create_task(publish_events(client, name, orders, rate_per_s=70.0))
        frozen = await disturb(members, seed)
        await publishing
        await all_handled(client, name, 3 * orders)
        for process in members.members.values():
            assert process.poll() is None, process.stderr.read().decode()
        found = faults(await published_to(client, name), await reports_of(client, name), frozen=frozen)
    assert not found, f"seed {seed}: {found[:8]}"


async def test_no_order_is_lost_and_none_goes_backwards_whatever_happens_to_the_members(
    mesh: Mesh, client: Client
) -> None:
    seeds = list(SEEDS)
    for at in range(0, len(seeds), AT_A_TIME):
        await asyncio.gather(*(one_run(mesh, client, seed) for seed in seeds[at : at + AT_A_TIME]))


async def test_a_member_that_was_frozen_at_work_knows_that_it_was_replaced(mesh: Mesh, client: Client) -> None:
    async with crew(mesh, client, "FROZEN", work_s=0.4) as members:
        members.add("m1")
        await eventually(lambda: all_joined(client, "FROZEN", 1), within=60.0, every=0.1)
        await publish_events(client, "FROZEN", 40, rate_per_s=1e6)
        await eventually(lambda: reports_of(client, "FROZEN"), within=10.0)
        members.signal("m1", signal.SIGSTOP)  # nearly all of its time, it is in the middle of its handler's work
        members.add("m2")

        async def replaced() -> bool:
            return len({one.partition for one in await reports_of(client, "FROZEN") if one.fence == 2}) == PARTITIONS

        await eventually(replaced, within=15.0)
        members.signal("m1", signal.SIGCONT)

        async def back() -> bool:
            return any(one.member == "m1" and one.fence > 2 for one in await reports_of(client, "FROZEN"))

        await eventually(back, within=15.0)
        reports = await reports_of(client, "FROZEN")
    took_over = min(at for at, one in enumerate(reports) if one.fence == 2)
    late = [one for one in reports[took_over:] if one.fence == 1]
    assert len(late) <= PARTITIONS
    assert sum(one.mine for one in late) <= 1  # frozen between its word and the wire


# The verdict itself: every planted fault is found.


def a_run() -> tuple[list[Published], list[Handled]]:
    """Two orders in two partitions, handled as they should be, with a replay after a change of owner."""
    published, handled = [], []
    for at, event in enumerate(EVENTS):
        for partition, order in enumerate(("000001", "000002")):
            seq = 2 * at + partition + 1
            published.append(Published(partition, seq, order, event, at=float(at)))
            handled.append(Handled(partition, seq, order, event, fence=1, member="a", at=at + 0.1))
    handled.append(msgspec.structs.replace(handled[-2], fence=2, member="b", at=3.0))  # "shipped" of 000001 again
    return published, handled


def test_a_run_with_a_replay_has_no_faults() -> None:
    assert faults(*a_run()) == []


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lambda handled: handled.pop(1), "lost: 000002 placed"),
        (lambda handled: handled.insert(0, handled.pop(2)), "reversed: 000001 paid before placed"),
        (lambda handled: handled.insert(1, handled.pop(5)), "reversed: 000002 shipped before paid"),
        (
            lambda handled: handled.__setitem__(5, msgspec.structs.replace(handled[5], at=30.0)),
            "idle: partition 1 for 28.0 s",
        ),
        (
            lambda handled: handled.__setitem__(2, msgspec.structs.replace(handled[2], fence=0)),
            "not in sequence: partition 0, fence 1",
        ),
        (
            lambda handled: handled.append(msgspec.structs.replace(handled[0], at=4.0)),
            "beside the owner: 1 reports of members that were replaced",
        ),
        (
            lambda handled: handled.insert(2, msgspec.structs.replace(handled[0], at=0.2)),
            "not in sequence: partition 0, fence 1",
        ),
    ],
)
def test_a_planted_fault_is_found(plant, said) -> None:
    published, handled = a_run()
    plant(handled)
    assert any(said in fault for fault in faults(published, handled)), faults(published, handled)


# Members in this process: balance, leaving, errors.


@contextlib.asynccontextmanager
async def joined(client: Client, stream: str, subject: str, name: str, handle, **options) -> AsyncIterator[GroupMember]:
    options = {"partitions": PARTITIONS, "lease": LEASE_S, **options}
    member, stop = GroupMember(client, stream, "shop", name=name, subject=subject, **options), asyncio.Event()
    running = asyncio.create_task(member.run(handle, stop=stop))
    try:
        yield member
    finally:
        stop.set()
        await running


async def ignore(msg: Msg, partition: Partition) -> None:
    return


async def test_members_share_evenly_and_a_leaver_hands_over_long_before_its_lease_ends(client: Client) -> None:
    subject = await make_stream(client, "PAR1", 7)
    options = {"partitions": 7, "lease": 20.0}
    async with joined(client, "PAR1", subject, "a", ignore, **options) as a:
        await eventually(lambda: len(a.partitions) == 7, within=10.0)
        async with joined(client, "PAR1", subject, "b", ignore, **options) as b:
            async with joined(client, "PAR1", subject, "c", ignore, **options) as c:
                all_three = (a, b, c)
                await eventually(lambda: sorted(len(one.partitions) for one in all_three) == [2, 2, 3], within=10.0)
                owners = Counter(n for member in all_three for n in member.partitions)
                assert owners == Counter(range(7))
            await eventually(lambda: len(a.partitions) + len(b.partitions) == 7, within=10.0)
        await eventually(lambda: len(a.partitions) == 7, within=10.0)


async def test_after_a_clean_leave_nothing_is_handled_twice(client: Client) -> None:
    subject, handled = await make_stream(client, "PAR2"), list[int]()

    async def note(msg: Msg, partition: Partition) -> None:
        await asyncio.sleep(0.002)  # work
        handled.append(msg.metadata.sequence.stream)

    await publish_events(client, "PAR2", 300, rate_per_s=1e6)
    async with joined(client, "PAR2", subject, "a", note, lease=20.0):
        await eventually(lambda: len(handled) > 100, within=10.0)
        async with joined(client, "PAR2", subject, "b", note, lease=20.0) as b:
            await eventually(lambda: len(b.partitions) == 3 and len(handled) > 300, within=10.0)
    async with joined(client, "PAR2", subject, "c", note, lease=20.0):
        await eventually(lambda: len(handled) >= 900, within=20.0)
    assert sorted(handled) == list(range(1, 901))


async def test_a_member_whose_client_is_closed_ends_and_its_partition_goes_on_elsewhere(
    mesh: Mesh, client: Client
) -> None:
    subject, seen = await make_stream(client, "PAR3", 1), list[tuple[str, int]]()
    arrived = asyncio.Event()
    alone = await mesh.connect(name="to be cut off")

    async def hang(msg: Msg, partition: Partition) -> None:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(("told", partition.fence))

    async def note(msg: Msg, partition: Partition) -> None:
        seen.append(("successor", partition.fence))

    await publish_events(client, "PAR3", 1, rate_per_s=1e6)
    member = GroupMember(alone, "PAR3", "shop", name="a", subject=subject, partitions=1, lease=LEASE_S)
    running = asyncio.create_task(member.run(hang))
    await arrived.wait()
    async with joined(client, "PAR3", subject, "b", note, partitions=1):
        await alone.close()
        await eventually(lambda: len(seen) == 4, within=10.0)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await running
    assert seen == [("told", 1), *[("successor", 2)] * 3]


async def test_what_a_handler_raises_ends_the_member_and_the_message_waits_for_the_next(client: Client) -> None:
    subject, handled = await make_stream(client, "PAR4"), list[int]()

    async def fail(msg: Msg, partition: Partition) -> None:
        raise OSError("the provider is away")

    async def note(msg: Msg, partition: Partition) -> None:
        handled.append(msg.metadata.sequence.stream)

    await publish_events(client, "PAR4", 5, rate_per_s=1e6)
    options = {"subject": subject, "partitions": PARTITIONS, "lease": LEASE_S}
    member = GroupMember(client, "PAR4", "shop", name="a", **options)
    with pytest.raises(OSError, match="the provider is away"):
        await member.run(fail)
    async with joined(client, "PAR4", subject, "a", note):  # the name is free at once: it left in good order
        await eventually(lambda: len(handled) == 15, within=10.0)


async def test_a_cancellation_of_the_handlers_own_ends_the_member_with_an_error(client: Client) -> None:
    subject, calls = await make_stream(client, "PAR8", 1), list[int]()

    async def ask(msg: Msg, partition: Partition) -> None:
        calls.append(msg.metadata.sequence.stream)
        asked = asyncio.create_task(asyncio.Event().wait())
        asked.cancel()  # by somebody else: nobody cancels the member
        await asked

    await publish_events(client, "PAR8", 1, rate_per_s=1e6)
    member = GroupMember(client, "PAR8", "shop", name="a", subject=subject, partitions=1)
    async with asyncio.timeout(10.0):
        with pytest.raises(RuntimeError, match="message 1, partition 0, raised CancelledError and was not cancelled"):
            await member.run(ask)
    assert calls == [1]


async def test_a_member_that_is_cancelled_twice_leaves_no_task_and_no_consumer(client: Client) -> None:
    subject, js = await make_stream(client, "PAR9", 1), client.jetstream(timeout=5.0)
    began, before = asyncio.Event(), asyncio.all_tasks()

    async def tidy(msg: Msg, partition: Partition) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)  # work: it closes a file

    await publish_events(client, "PAR9", 1, rate_per_s=1e6)
    running = asyncio.create_task(
        GroupMember(client, "PAR9", "shop", name="a", subject=subject, partitions=1, lease=LEASE_S).run(tidy)
    )
    await began.wait()
    await cancel_and_join(running, again_after=0.1)
    assert running.cancelled()
    await eventually(lambda: asyncio.all_tasks() <= before, within=2.0)

    async def no_consumers() -> bool:
        return not any([await js.consumers_info(name) for name in ("KV_PAR9-shop", "PAR9")])

    await eventually(no_consumers, within=5.0)
    entry = await js.get_last_msg("KV_PAR9-shop", "$KV.PAR9-shop.member.*")
    assert entry.data == b'{"here":false}'


async def test_a_stream_whose_source_spreads_over_other_partitions_is_refused(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name="FROM", subjects=["from.*", "by.*"])
    spread = [
        SubjectTransform(src="from.*", dest="into.{{partition(8,1)}}.{{wildcard(1)}}"),
        SubjectTransform(src="by.*", dest="beside.{{partition(4,1)}}.{{wildcard(1)}}"),
    ]
    await js.add_stream(name="INTO", sources=[StreamSource(name="FROM", subject_transforms=spread)])
    await js.add_stream(name="COPY", mirror=StreamSource(name="FROM", subject_transforms=spread[:1]))
    for name in ("INTO", "COPY"):
        member = GroupMember(client, name, "shop", name="a", subject="into.{partition}.>", partitions=4)
        with pytest.raises(GroupMismatchError, match=f"'{name}' spreads its subjects over 8 partitions, expected 4"):
            await asyncio.wait_for(member.run(ignore), 15.0)
    for group, subject, partitions in (("one", "into.{partition}.>", 8), ("two", "beside.{partition}.>", 4)):
        await GroupBucket(client, f"INTO-{group}").open(Group("INTO", subject, partitions))


async def test_another_lease_is_refused(client: Client) -> None:
    subject = await make_stream(client, "PAR10")
    async with joined(client, "PAR10", subject, "a", ignore) as a:
        await eventually(lambda: a.partitions, within=10.0)
        other = GroupMember(client, "PAR10", "shop", name="b", subject=subject, partitions=PARTITIONS, lease=30)
        with pytest.raises(GroupMismatchError, match=r"a lease of 1\.5 s, expected 30 s.* delete key 'group'"):
            await asyncio.wait_for(other.run(ignore), 15.0)
    await (await client.jetstream(timeout=5.0).key_value("PAR10-shop")).delete("group")
    async with joined(client, "PAR10", subject, "b", ignore, lease=30) as b:
        await eventually(lambda: len(b.partitions) == PARTITIONS, within=10.0)


async def test_a_group_of_the_version_before_which_kept_no_lease_is_joined_with_any(client: Client) -> None:
    subject, js = await make_stream(client, "PAR11"), client.jetstream(timeout=5.0)
    bucket = await js.create_key_value(bucket="PAR11-shop")
    await bucket.put("group", json.dumps({"stream": "PAR11", "subject": subject, "partitions": PARTITIONS}).encode())
    async with joined(client, "PAR11", subject, "a", ignore) as a:
        await eventually(lambda: len(a.partitions) == PARTITIONS, within=10.0)
    with pytest.raises(GroupMismatchError, match=r"6 partitions on 'par11\..*, expected 6 on 'x\."):
        await GroupBucket(client, "PAR11-shop").open(Group("PAR11", "x.{partition}.>", PARTITIONS, LEASE_S))


async def test_another_number_of_partitions_is_refused(client: Client) -> None:
    subject = await make_stream(client, "PAR5")
    other = GroupMember(client, "PAR5", "shop", name="b", subject=subject, partitions=PARTITIONS + 1)
    with pytest.raises(GroupMismatchError, match="'PAR5' spreads its subjects over 6 partitions, expected 7"):
        await other.run(ignore)
    async with joined(client, "PAR5", subject, "a", ignore) as a:
        await eventually(lambda: a.partitions, within=10.0)
        elsewhere = GroupMember(client, "PAR5", "shop", name="b", subject="x.{partition}.*", partitions=PARTITIONS)
        with pytest.raises(GroupMismatchError, match=r"6 partitions on 'par5.\{partition\}.>' .* take another group"):
            await elsewhere.run(ignore)


async def test_a_bucket_that_cannot_be_made_says_so_and_is_not_taken_for_one_that_is_there() -> None:
    tight = "TIGHT { jetstream { max_streams: 1 }, users [ { user: tight, password: tight } ] }"
    async with await start_mesh(accounts_config=tight) as mesh:
        client = await mesh.connect(user="tight", password="tight")
        js = client.jetstream(timeout=5.0)
        await js.add_stream(name="ROOM", subjects=["room.*.>"])
        bucket, group = GroupBucket(client, "ROOM-shop"), Group("ROOM", "room.{partition}.>", 2)
        with pytest.raises(nats.js.errors.BadRequestError, match="maximum number of streams reached") as refusal:
            await bucket.open(group)
        assert refusal.value.err_code == 10027


async def test_a_bucket_that_is_there_with_other_settings_serves(client: Client) -> None:
    await make_stream(client, "PAR7")
    await client.jetstream(timeout=5.0).create_key_value(bucket="PAR7-shop", history=3)
    await GroupBucket(client, "PAR7-shop").open(Group("PAR7", "par7.{partition}.>", PARTITIONS))


async def test_two_members_of_one_name_share_the_partitions_as_any_two(client: Client) -> None:
    subject = await make_stream(client, "PAR6")
    async with joined(client, "PAR6", subject, "a", ignore) as one, joined(client, "PAR6", subject, "a", ignore) as two:
        await eventually(lambda: len(one.partitions) == len(two.partitions) == PARTITIONS // 2, within=10.0)
        assert not set(one.partitions) & set(two.partitions)


async def test_a_group_of_a_stream_that_is_not_there_is_refused(client: Client) -> None:
    member = GroupMember(client, "NOWHERE", "shop", name="a", subject="x.{partition}.>", partitions=1)
    with pytest.raises(nats.js.errors.NotFoundError, match="stream not found"):
        await member.run(ignore)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partitions": 0}, "partitions=0, expected 1 or more"),
        ({"partitions": -3}, "partitions=-3, expected 1 or more"),
        ({"name": "a.b"}, "member 'a.b', expected 1 to 32 letters, digits"),
        ({"name": ""}, "member '', expected"),
        ({"group": "my group"}, "group 'my group', expected"),
        ({"stream": "S>"}, "stream 'S>', expected"),
        ({"subject": "orders.>"}, "subject 'orders.>', expected a token {partition}"),
        ({"subject": "orders.p{partition}.>"}, "expected a token {partition}"),
        ({"subject": "orders.{partition}.{region}.>"}, "expected no braces but {partition}"),
        ({"subject": "orders.{partition}.{0}"}, "expected no braces but {partition}"),
        ({"subject": "orders.{partition}.{partition:>3}"}, "expected no braces but {partition}"),
        ({"subject": "orders.{partition}.{"}, "expected no braces but {partition}"),
        ({"lease": 0.1}, "lease=0.1, expected 0.6 s or more"),
        ({"lease": math.nan}, "lease=nan, expected 0.6 s or more"),
        ({"lease": math.inf}, "lease=inf, expected 0.6 s or more, to be renewed in time, and finite"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_asked_of_a_server(settings, said) -> None:
    good = {"stream": "S", "group": "g", "name": "a", "subject": "orders.{partition}.>", "partitions": 1}
    merged = {**good, **settings}
    with pytest.raises(ValueError, match=said.replace("{", r"\{")):
        GroupMember(Client(), merged.pop("stream"), merged.pop("group"), **merged)
