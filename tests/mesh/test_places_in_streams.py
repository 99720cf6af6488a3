"""Whoever keeps a place in a stream knows which stream it was, and reads past what strangers left there."""

import asyncio
import contextlib
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from mesh_lab.errors import (
    GroupMismatchError,
    NotReadyError,
    OrderFormatError,
    StreamReplacedError,
    UnsuitableConsumerError,
)
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, create_bulk_lane, send_batches
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import create_event_store, create_worker_group, open_event_store, read_order
from mesh_lab.orders.order import STREAM, encode
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import Summary, ask_read_model, serve_read_model
from mesh_lab.orders.worker import Worker
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.partition_group import GroupMember, Partition
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.redelivery import consume_with_retries
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.testing import shared_mesh

LEASE_S = 0.9


# One server, and a leaf node with a JetStream domain of its own.
mesh = shared_mesh(scope="module", clean="file", servers=1, leaves=["store-berlin"])


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """A client of the hub."""
    async with await mesh.connect(to="n1") as connected:
        yield connected


@pytest.fixture
async def js(client: Client) -> AsyncIterator[JetStreamContext]:
    """A JetStream context of the hub; what a test leaves there is deleted."""
    context = client.jetstream(timeout=5.0)
    yield context
    for info in await context.streams_info():
        await context.delete_stream(info.config.name)


async def fill(js: JetStreamContext, messages: int, name: str = "S") -> None:
    await js.add_stream(name=name, subjects=[f"{name.lower()}.>"])
    for n in range(messages):
        await js.publish(f"{name.lower()}.{n % 2}", b"%d" % n)


async def read(client: Client, messages: int, **options) -> list[bytes]:
    got: list[bytes] = []
    async with asyncio.timeout(10.0), aclosing(read_in_order(client, "S", **options)) as batches:
        async for batch in batches:
            got += [msg.data for msg in batch]
            if len(got) >= messages:
                break
    return got


# A stream that is made again.


async def test_a_reader_of_a_stream_that_is_made_again_says_so(client: Client, js) -> None:
    await fill(js, 20)
    async with asyncio.timeout(15.0), aclosing(read_in_order(client, "S")) as batches:
        await anext(batches)
        with pytest.raises((StreamReplacedError, nats.js.errors.NotFoundError), match="made again|stream not found"):
            await js.delete_stream("S")
            await fill(js, 30)
            async for _ in batches:
                pass


async def test_a_reader_that_was_away_while_its_stream_was_made_again_says_so(mesh: Mesh, client: Client, js) -> None:
    await fill(js, 20)
    own = await mesh.connect(to="n1")
    async with asyncio.timeout(20.0), aclosing(read_in_order(own, "S")) as batches:
        await anext(batches)
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0.3)  # pacing: it waits
        own._transport.close()  # it learns of nothing until it is back
        await js.delete_stream("S")
        await fill(js, 30)
        with pytest.raises(StreamReplacedError, match="'S' was deleted and made again at .* up to message 20"):
            await waiting


async def test_a_place_beyond_the_end_of_a_stream_is_of_another_one(client: Client, js, monkeypatch) -> None:
    monkeypatch.setattr("mesh_lab.patterns.pull_consumer.CATCH_UP_S", 0.3)
    await fill(js, 5)
    assert await read(client, 1, start=5) == [b"4"]
    waiting = asyncio.create_task(read(client, 1, start=6))
    await asyncio.sleep(0.5)  # pacing: it waits for the message that comes next
    await js.publish("s.0", b"5")
    assert await waiting == [b"5"]
    with pytest.raises(StreamReplacedError, match="'S' ends with message 6, before the reader's place, 999"):
        await read(client, 1, start=1_000)


async def test_a_place_that_was_kept_is_refused_by_a_stream_made_later(client: Client, js) -> None:
    await fill(js, 5)
    made = (await js.stream_info("S")).created
    assert await read(client, 2, start=4, made=made) == [b"3", b"4"]
    await js.delete_stream("S")
    await fill(js, 5)
    with pytest.raises(StreamReplacedError, match="'S' was deleted and made again"):
        await read(client, 2, start=4, made=made)


async def test_a_purge_and_an_update_leave_a_reader_where_it_stands(client: Client, js) -> None:
    await fill(js, 6)
    made = (await js.stream_info("S")).created
    async with asyncio.timeout(15.0), aclosing(read_in_order(client, "S", made=made)) as batches:
        await anext(batches)
        await js.purge_stream("S")
        await js.update_stream(StreamConfig(name="S", subjects=["s.>", "t.>"]))
        (name,) = [one.name for one in await js.consumers_info("S")]
        await js.delete_consumer("S", name)
        await js.publish("t.0", b"new")
        assert [msg.data for msg in await anext(batches)] == [b"new"]


async def summary_at(client: Client, events: int) -> Summary:
    async def reached() -> Summary | None:
        with contextlib.suppress(nats.errors.NoRespondersError):
            summary = await ask_read_model(client)
            return summary if summary.last_seq == events else None
        return None

    return await eventually(reached, within=15.0)


async def test_a_read_model_begins_again_with_its_stream(mesh: Mesh, client: Client, js, caplog) -> None:
    orders = list(read_orders(first=40))
    await open_event_store(client)
    await place_orders(client, orders[:30])
    own = await mesh.connect(to="n1")
    serving = asyncio.create_task(serve_read_model(own))
    await summary_at(client, 30)
    own._transport.close()  # it learns of nothing until it is back
    await js.delete_stream(STREAM)
    await open_event_store(client)
    await place_orders(client, orders[30:])
    summary = await summary_at(client, 10)
    assert (summary.totals.orders, summary.doubled) == (10, 0)
    assert "the read model begins again" in caplog.text
    await cancel_and_join(serving)
    await own.close()


async def test_a_count_of_bulk_orders_does_not_mix_two_streams(mesh: Mesh, client: Client, js) -> None:
    await create_bulk_lane(js)
    await send_batches(client, batched(read_orders(first=100), size=10))
    own, count = await mesh.connect(to="n1"), BulkCount()
    counting = asyncio.create_task(count_bulk(own, count))
    await eventually(lambda: count.totals.orders == 100, within=10.0)
    own._transport.close()
    await js.delete_stream("BULK")
    await create_bulk_lane(js)
    with pytest.raises(StreamReplacedError, match="'BULK' was deleted and made again"):
        await counting
    await own.close()


# What strangers left in a stream.

STRANGE = [b"", b"{}", b"null", b"[1]", b'{"id":"000001","reg', b"\xff\xfe", b'{"id":1}', bytes(10_000)]


async def test_a_read_model_and_a_worker_pass_over_what_is_no_order(client: Client, js, caplog) -> None:
    orders = list(read_orders(first=5))
    await create_event_store(js)
    await create_worker_group(js)
    for payload in STRANGE:
        await js.publish("orders.eu.x.placed", payload)
    await js.publish("orders.eu.x.placed", b"", headers={"KV-Operation": "DEL"})
    await js.publish("orders.eu.x.forgotten", encode(orders[0]))
    await place_orders(client, orders)
    worker, stop = Worker(client), asyncio.Event()
    working = asyncio.create_task(worker.run(stop=stop))
    serving = asyncio.create_task(serve_read_model(client))
    summary = await summary_at(client, len(STRANGE) + 2 + 15)
    assert (summary.rejected, summary.events) == (len(STRANGE) + 2, {"placed": 5, "paid": 5, "shipped": 5})
    await eventually(lambda: (worker.processed, worker.rejected) == (5, len(STRANGE) + 1), within=5.0)
    assert caplog.text.count("is passed over") == 1
    stop.set()
    await working
    await cancel_and_join(serving)


class Refusing:
    """A tracer that fails at once."""

    def follow(self, _what: str, _msg: Msg) -> None:
        raise LookupError("no span")


async def test_whoever_stops_reading_leaves_no_consumer_behind(mesh: Mesh, client: Client, js) -> None:
    orders = list(read_orders(first=20))
    await open_event_store(client)
    await place_orders(client, orders)
    await create_bulk_lane(js)
    await send_batches(client, batched(orders))

    async def count_all(own: Client) -> None:
        await count_bulk(own, BulkCount(), until=20)

    async def read_one(own: Client) -> None:
        assert len(await read_order(own, orders[0].id)) == 1

    async def fail(own: Client) -> None:
        with pytest.raises(LookupError, match="no span"):
            await serve_read_model(own, tracer=Refusing())

    for stream, reading in (("BULK", count_all), (STREAM, read_one), (STREAM, fail)):
        before = len(await js.consumers_info(stream))
        async with await mesh.connect(to="n1") as own:
            await reading(own)

        async def as_before(stream: str = stream, before: int = before) -> bool:
            return len(await js.consumers_info(stream)) == before

        await eventually(as_before, within=5.0)


async def test_the_events_of_an_order_are_read_past_strange_ones(client: Client, js) -> None:
    order = next(read_orders(first=1))
    await create_event_store(js)
    await js.publish(order.subject("placed"), encode(order))
    for payload in STRANGE:
        await js.publish(order.subject("paid"), payload)
    async with asyncio.timeout(10.0):
        assert [event.event for event in await read_order(client, order.id)] == ["placed"]


# A group's bucket.


class Crew:
    """Members of a group on stream S, and what they handled."""

    def __init__(self, client: Client) -> None:
        self.client, self.handled, self.stop = client, list[tuple[str, int]](), asyncio.Event()
        self.members: dict[str, asyncio.Task[None]] = {}
        self.at_work: dict[str, GroupMember] = {}

    def join(self, name: str, *, domain: str | None = None) -> None:
        async def handle(msg: Msg, partition: Partition) -> None:
            self.handled.append((name, msg.metadata.sequence.stream))

        member = GroupMember(
            self.client, "S", "g", name=name, subject="s.{partition}", partitions=2, lease=LEASE_S, domain=domain
        )
        self.members[name], self.at_work[name] = asyncio.create_task(member.run(handle, stop=self.stop)), member

    def saw(self, *numbers: int) -> bool:
        for task in self.members.values():
            if task.done():
                task.result()
        return {seq for _, seq in self.handled} >= set(numbers)

    async def leave(self) -> None:
        self.stop.set()
        await asyncio.gather(*self.members.values())


@pytest.mark.parametrize(
    ("key", "what"),
    [
        *(("member.a", what) for what in ("delete", "expired", b'{"version":2}')),
        ("member.old", b""),
        *(("partition.0", what) for what in ("purge", "expired", b'{"instance":', b'{"owner":5}', b'{"version":2}')),
        *(("group", what) for what in ("delete", b"", b'{"version":2}')),
    ],
)
async def test_a_group_goes_on_whatever_becomes_of_an_entry(client: Client, js, key: str, what: str | bytes) -> None:
    await fill(js, 2)
    crew = Crew(client)
    crew.join("a")
    crew.join("b")
    await eventually(lambda: crew.saw(1, 2) and all(one.partitions for one in crew.at_work.values()), within=10.0)
    bucket = await js.key_value("S-g")
    if key == "member.a":  # what is behind the name is random
        key = next(one for one in await bucket.keys() if one.startswith("member.a-"))
    if what == "delete":
        await bucket.delete(key)
    elif what == "purge":
        await bucket.purge(key)
    elif what == "expired":
        await js.publish(f"$KV.S-g.{key}", b"", headers={"Nats-Marker-Reason": "MaxAge"})
    else:
        await bucket.put(key, what)
    for n in (2, 3):
        await js.publish(f"s.{n % 2}", b"more")
    await eventually(lambda: crew.saw(3, 4), within=10.0)
    if key == "group" and isinstance(what, bytes) and what:
        crew.join("c")
        with pytest.raises(GroupMismatchError, match=r"key 'group' of bucket 'S-g' holds .*, expected"):
            await crew.members.pop("c")
    else:
        crew.join("c")
        await js.publish("s.0", b"more")
        await eventually(lambda: crew.saw(5), within=10.0)
    await crew.leave()


async def test_keys_of_strangers_in_a_groups_bucket_are_passed_over(client: Client, js) -> None:
    await fill(js, 2)
    bucket = await js.create_key_value(bucket="S-g")
    keys = ("stranger", "member.x.y", "partition.x", "partition.99", "partition.-1", "partition")
    for key in keys:
        await bucket.put(key, b"mine")
    crew = Crew(client)
    crew.join("a")
    await eventually(lambda: crew.saw(1, 2), within=10.0)
    await crew.leave()
    for key in keys:
        assert (await bucket.get(key)).value == b"mine"


async def recorded(js: JetStreamContext, done: list[int]) -> bool:
    """Whether the bucket says that the partitions are done up to these messages."""
    bucket = await js.key_value("S-g")
    claims = [json.loads((await bucket.get(f"partition.{number}")).value) for number in range(2)]
    return sorted(claim["done"] for claim in claims) == done


async def test_a_group_whose_bucket_is_purged_goes_on_where_it_was(client: Client, js) -> None:
    await fill(js, 2)
    crew = Crew(client)
    crew.join("a")
    crew.join("b")
    await eventually(lambda: crew.saw(1, 2), within=10.0)
    await eventually(lambda: recorded(js, [1, 2]), within=10.0)
    await js.purge_stream("KV_S-g")
    for n in (2, 3):
        await js.publish(f"s.{n % 2}", b"more")
    await eventually(lambda: crew.saw(3, 4), within=10.0)
    await crew.leave()
    assert sorted(seq for _, seq in crew.handled) == [1, 2, 3, 4]


@pytest.mark.parametrize("again", [True, False])
async def test_a_member_whose_bucket_is_deleted_says_so(client: Client, js, again: bool) -> None:
    await fill(js, 2)
    crew = Crew(client)
    crew.join("a")
    await eventually(lambda: crew.saw(1, 2), within=10.0)
    await js.delete_key_value("S-g")
    if again:
        await js.create_key_value(bucket="S-g")
    with pytest.raises((nats.js.errors.NotFoundError, StreamReplacedError), match="KV_S-g"):
        async with asyncio.timeout(15.0):
            await crew.members["a"]


async def test_a_group_whose_stream_is_made_again_begins_at_its_beginning(client: Client, js) -> None:
    await fill(js, 10)
    crew = Crew(client)
    crew.join("a")
    await eventually(lambda: crew.saw(*range(1, 11)), within=10.0)
    await js.delete_stream("S")
    await fill(js, 4)
    with pytest.raises((nats.js.errors.NotFoundError, StreamReplacedError), match="'S'"):
        async with asyncio.timeout(15.0):
            await crew.members["a"]
    crew.handled.clear()
    crew.join("a")  # as its supervisor starts it again
    await eventually(lambda: crew.saw(1, 2, 3, 4), within=10.0)
    await crew.leave()


async def test_a_handler_that_takes_longer_than_the_lease_keeps_its_partition(client: Client, js) -> None:
    await fill(js, 2)
    handled: list[tuple[int, int]] = []

    async def handle(msg: Msg, partition: Partition) -> None:
        await asyncio.sleep(3 * LEASE_S)  # work
        handled.append((msg.metadata.sequence.stream, partition.fence))
        assert partition.mine

    stop = asyncio.Event()
    options = {"subject": "s.{partition}", "partitions": 2, "lease": LEASE_S}
    members = [GroupMember(client, "S", "g", name=name, **options).run(handle, stop=stop) for name in ("a", "b")]
    running = asyncio.gather(*members)
    await eventually(lambda: len(handled) == 2 or running.done(), within=15.0)
    stop.set()
    await running
    assert sorted(seq for seq, _ in handled) == [1, 2]


# A stream in another JetStream domain.


async def test_every_consuming_pattern_works_in_another_domain(mesh: Mesh, client: Client) -> None:
    berlin = client.jetstream(domain="store-berlin", timeout=5.0)
    await fill(berlin, 6)
    await berlin.add_stream(name="DEAD", subjects=["dead.letters"])
    await berlin.add_consumer("S", durable_name="desk", ack_policy="explicit")
    await berlin.add_consumer("S", durable_name="till", ack_policy="explicit")
    for name in ("desk", "till"):
        await wait_routable(client, "S", name, domain="store-berlin")
    assert await read(client, 6, domain="store-berlin") == [b"%d" % n for n in range(6)]

    got: list[bytes] = []
    pulling = PullConsumer(client, "S", "desk", domain="store-berlin")
    async with asyncio.timeout(10.0), pulling as source, aclosing(source.batches()) as batches:
        while len(got) < 6:
            for msg in await anext(batches):
                got.append(msg.data)
                await msg.ack()
    assert got == [b"%d" % n for n in range(6)]

    handled, stop = list[bytes](), asyncio.Event()

    async def handle(msg: Msg) -> None:
        handled.append(msg.data)
        if len(handled) == 6:
            stop.set()
        if msg.data == b"3":
            raise ValueError("no")

    async with asyncio.timeout(10.0):
        await consume_with_retries(
            client, "S", "till", handle, dead="dead.letters", attempts=1, stop=stop, domain="store-berlin"
        )
    assert (await berlin.stream_info("DEAD")).state.messages == 1

    async def acknowledged() -> bool:
        infos = [await berlin.consumer_info("S", name) for name in ("desk", "till")]
        return all(info.num_pending == info.num_ack_pending == 0 for info in infos)

    await eventually(acknowledged, within=5.0)

    await client.jetstream().create_key_value(bucket="S-g")  # of the same name, in the hub
    crew = Crew(client)
    crew.join("a", domain="store-berlin")
    await eventually(lambda: crew.saw(*range(1, 7)), within=10.0)
    await crew.leave()
    assert (await client.jetstream().stream_info("KV_S-g")).state.messages == 0
    for name in ("S", "DEAD", "KV_S-g"):
        await berlin.delete_stream(name)
    await client.jetstream().delete_stream("KV_S-g")


async def test_a_member_that_no_server_replies_to_is_not_ready(client: Client, js, monkeypatch) -> None:
    monkeypatch.setattr("mesh_lab.patterns.group_bucket.OPEN_WITHIN_S", 0.3)
    await fill(js, 1)
    crew = Crew(client)
    crew.join("a", domain="store-bern")  # as if its leaf node were away
    with pytest.raises(NotReadyError, match=r"stream 'S' and bucket 'S-g' not ready within 0\.3 s .last: Service"):
        await crew.members["a"]


async def test_a_stream_that_is_in_no_domain_of_that_name_is_told(client: Client, js, caplog, monkeypatch) -> None:
    monkeypatch.setattr("mesh_lab.patterns.pull_consumer.TELL_AFTER_S", 1.0)
    await fill(js, 1)
    waiting = asyncio.create_task(read(client, 1, domain="store-bern"))
    await eventually(lambda: "stream 'S': nothing for" in caplog.text, within=10.0)
    await cancel_and_join(waiting)
    with pytest.raises(ValueError, match=r"domain 'store\.bern', expected"):
        PullConsumer(client, "S", "desk", domain="store.bern")


def test_the_time_of_a_streams_making_survives_the_groups_bucket() -> None:
    import msgspec

    from mesh_lab.patterns.group_bucket import Claim

    made = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    assert msgspec.json.decode(msgspec.json.encode(Claim(made=made)), type=Claim).made == made


async def test_a_worker_refuses_a_group_that_acknowledges_for_it(client: Client, js) -> None:
    await create_event_store(js)
    await js.add_consumer(STREAM, durable_name="workers", ack_policy="all", filter_subject="orders.*.*.placed")
    with pytest.raises(UnsuitableConsumerError, match="'workers' of stream 'ORDERS' has ack_policy 'all', expected"):
        await Worker(client).run()


async def test_a_client_that_is_closed_waits_for_no_summary(mesh: Mesh, client: Client) -> None:
    await client.subscribe("read_model.summary")  # which never replies
    await client.flush()
    own = await mesh.connect(to="n1")
    asking = asyncio.create_task(ask_read_model(own, within=30.0))
    await asyncio.sleep(0.2)  # pacing: it has asked
    await own.close()
    with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
        async with asyncio.timeout(5.0):
            await asking


async def test_a_group_is_not_led_astray_by_those_who_reply_to_its_writes(client: Client, js) -> None:
    async def answer(msg: Msg) -> None:
        if msg.reply:
            await msg.respond(b"ok")

    await client.subscribe("$KV.S-g.>", cb=answer)
    await fill(js, 2)
    crew = Crew(client)
    crew.join("a")
    await eventually(lambda: crew.saw(1, 2), within=10.0)
    await crew.leave()


async def test_a_reply_that_is_no_summary_is_told(client: Client, js) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"ok")

    await client.subscribe("read_model.summary", cb=answer)
    with pytest.raises(OrderFormatError, match=r"b'ok' on 'read_model.summary', expected a summary"):
        await ask_read_model(client)
