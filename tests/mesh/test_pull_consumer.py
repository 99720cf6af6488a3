"""Continuous consumers take everything once, survive the loss of servers, and give back what they did not do."""

import asyncio
from contextlib import aclosing

import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.wait import eventually
from mesh_lab.patterns.windowed_publisher import WindowedPublisher
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


async def _filled(client: Client, name: str, messages: int, **config) -> JetStreamContext:
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name=name, subjects=[f"{name}.>"], **config)
    await wait_routable(client, name)
    async with WindowedPublisher(client) as publisher:
        for n in range(1, messages + 1):
            await publisher.publish(f"{name}.{n % 3}", b"%d" % n, msg_id=str(n))
    return js


async def test_every_message_is_yielded_once_and_in_order(client: Client) -> None:
    js = await _filled(client, "CON1", 3_000)
    await js.add_consumer("CON1", ConsumerConfig(durable_name="all"))
    got: list[int] = []
    async with PullConsumer(client, "CON1", "all", prefetch=100) as consumer, aclosing(consumer.batches()) as batches:
        async for batch in batches:
            assert len(batch) <= 100
            for msg in batch:
                got.append(int(msg.data))
                await msg.ack()
            if len(got) == 3_000:
                break
    assert got == list(range(1, 3_001))

    async def acknowledged() -> bool:
        info = await js.consumer_info("CON1", "all")
        return info.num_ack_pending == 0 and info.num_pending == 0

    await eventually(acknowledged, within=5.0)


async def test_what_was_prefetched_and_not_taken_goes_to_others_at_once(client: Client) -> None:
    js = await _filled(client, "CON2", 1)
    await js.add_consumer("CON2", ConsumerConfig(durable_name="shared", ack_wait=60.0))
    async with PullConsumer(client, "CON2", "shared", prefetch=100) as leaver, aclosing(leaver.batches()) as batches:
        (first,) = await anext(batches)
        await first.ack()
        for n in range(2, 101):  # all of these go to the leaver, which asked for them and takes none
            await js.publish("CON2.x", b"%d" % n)

        async def all_sent() -> bool:
            return (await js.consumer_info("CON2", "shared")).num_ack_pending == 99

        await eventually(all_sent, within=5.0)
        for _ in range(2):  # all that was sent is here; of nats-py's two PINGs the first may overtake
            await client.flush()
    got = {first.data}
    async with PullConsumer(client, "CON2", "shared", prefetch=100) as heir, aclosing(heir.batches()) as batches:
        async with asyncio.timeout(10.0):  # far below ack_wait
            while len(got) < 100:
                for msg in await anext(batches):
                    got.add(msg.data)
                    await msg.ack()


async def test_a_deleted_consumer_ends_the_iteration(client: Client) -> None:
    js = await _filled(client, "CON4", 1)
    await js.add_consumer("CON4", ConsumerConfig(durable_name="gone"))
    with pytest.raises(nats.js.errors.NotFoundError, match="'gone' of stream 'CON4' was deleted"):
        async with PullConsumer(client, "CON4", "gone") as consumer, aclosing(consumer.batches()) as batches:
            async for batch in batches:
                for msg in batch:
                    await msg.ack()
                await js.delete_consumer("CON4", "gone")


async def test_a_prefetch_below_one_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="prefetch=0, expected 1 or more"):
        PullConsumer(client, "S", "c", prefetch=0)


async def test_a_stream_is_read_in_order_and_from_any_place(client: Client) -> None:
    await _filled(client, "CON5", 2_500)
    for start, subject, expected in [
        (1, ">", list(range(1, 2_501))),
        (2_000, ">", list(range(2_000, 2_501))),
        (1, "CON5.0", list(range(3, 2_501, 3))),
    ]:
        got: list[int] = []
        async with aclosing(read_in_order(client, "CON5", start=start, subject=subject)) as batches:
            async for batch in batches:
                got += [int(msg.data) for msg in batch]
                if len(got) >= len(expected):
                    break
        assert got == expected


async def test_a_message_with_a_header_named_status_is_a_message(client: Client) -> None:
    js = await _filled(client, "CON7", 1)
    await js.publish("CON7.x", b"2", headers={"Status": "new"})
    await js.publish("CON7.x", b"3")
    await js.add_consumer("CON7", ConsumerConfig(durable_name="all"))
    read: list[bytes] = []
    async with asyncio.timeout(10.0):
        async with aclosing(read_in_order(client, "CON7")) as batches:
            async for batch in batches:
                read += [msg.data for msg in batch]
                if len(read) == 3:
                    break
        async with PullConsumer(client, "CON7", "all") as consumer, aclosing(consumer.batches()) as batches:
            async for batch in batches:
                read += [msg.data for msg in batch]
                if len(read) == 6:
                    break
    assert read == [b"1", b"2", b"3"] * 2


async def test_a_reader_leaves_no_consumer_behind(client: Client) -> None:
    js = await _filled(client, "CON8", 3)
    for _ in range(3):
        async with aclosing(read_in_order(client, "CON8")) as batches:
            await anext(batches)

    async def gone() -> bool:
        return (await js.stream_info("CON8")).state.consumer_count == 0

    await eventually(gone, within=5.0)


async def test_a_reader_whose_client_is_closed_ends_and_says_so(client: Client, mesh: Mesh) -> None:
    js = await _filled(client, "CON9", 1)
    await js.add_consumer("CON9", ConsumerConfig(durable_name="all"))
    own = await mesh.connect()
    async with asyncio.timeout(10.0):
        async with aclosing(read_in_order(own, "CON9")) as reading, PullConsumer(own, "CON9", "all") as consumer:
            await anext(reading)
            batches = consumer.batches()
            await anext(batches)
            await own.close()
            for more in (reading, batches):
                with pytest.raises(nats.errors.ConnectionClosedError):
                    await anext(more)


async def test_what_the_servers_refuse_for_good_is_not_asked_for_ever(client: Client) -> None:
    await _filled(client, "CON10", 1)
    async with asyncio.timeout(10.0):
        with pytest.raises(nats.js.errors.APIError, match="invalid subject"):
            await anext(read_in_order(client, "CON10", subject="CON10..x"))


async def test_reading_a_stream_that_is_not_there_says_so(client: Client) -> None:
    with pytest.raises(nats.js.errors.NotFoundError, match="stream not found"):
        await anext(read_in_order(client, "NOWHERE"))


async def test_a_reader_keeps_its_place_when_any_server_is_killed() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        js = await _filled(client, "CON6", 20_000, num_replicas=3)
        got: list[int] = []
        async with asyncio.timeout(45.0), aclosing(read_in_order(client, "CON6", prefetch=200)) as batches:
            async for batch in batches:
                got += [int(msg.data) for msg in batch]
                if len(got) >= 5_000 and await mesh.is_healthy():
                    # The reader's consumer lives on one server; kill whichever that is.
                    (name,) = [c.cluster.leader for c in await js.consumers_info("CON6")]
                    await mesh.kill(name)
                if len(got) >= 20_000:
                    break
        assert got == list(range(1, 20_001))


async def test_a_worker_goes_on_when_its_consumers_leader_is_killed() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        js = await _filled(client, "CON7", 3_000, num_replicas=3)
        await js.add_consumer("CON7", ConsumerConfig(durable_name="all", ack_wait=2.0))
        got: list[int] = []
        async with (
            asyncio.timeout(45.0),
            PullConsumer(client, "CON7", "all", prefetch=50) as consumer,
            aclosing(consumer.batches()) as batches,
        ):
            async for batch in batches:
                for msg in batch:
                    got.append(int(msg.data))
                    await msg.ack()
                if len(got) >= 1_000 and await mesh.is_healthy():
                    await mesh.kill((await js.consumer_info("CON7", "all")).cluster.leader)
                if len(set(got)) == 3_000:
                    break
        # Each came; one whose acknowledgement died with the leader came twice, which is what at-least-once says.
        assert set(got) == set(range(1, 3_001))


async def test_a_reader_that_is_cancelled_again_while_it_leaves_keeps_the_client_alive(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name="TWICE", subjects=["TWICE.*"])
    await wait_routable(client, "TWICE")
    await js.add_consumer("TWICE", durable_name="workers", ack_policy="explicit")
    await wait_routable(client, "TWICE", "workers")

    async def read(entered: asyncio.Event) -> None:
        async with PullConsumer(client, "TWICE", "workers") as consumer:
            entered.set()
            async for _ in consumer.batches():
                pass

    for turns in range(12):  # the second one comes somewhat later each time: before, while and after it drains
        entered = asyncio.Event()
        reading = asyncio.create_task(read(entered))
        await entered.wait()
        reading.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        await js.publish("TWICE.order", b"", timeout=2.0)  # whoever reads no longer hears no acknowledgement
    assert (await js.stream_info("TWICE")).state.messages == 12


def test_a_connection_that_uvloop_has_closed_is_tolerated() -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not there for this platform")

    async def last_read() -> int:
        async with await start_mesh(servers=1) as mesh:
            client, last = await mesh.connect(), 0
            js = await _filled(client, "GONE", 300)
            await js.add_consumer("GONE", ConsumerConfig(durable_name="all", ack_policy="none"))
            async with (
                PullConsumer(client, "GONE", "all", prefetch=20) as reader,
                aclosing(reader.batches()) as batches,
            ):
                async for batch in batches:
                    if not last:
                        # As when the server dies: the task that writes has ended, and nats-py has not noticed yet.
                        client._flusher_task.cancel()
                        await asyncio.wait({client._flusher_task})
                        while not client._flush_queue.empty():
                            client._flush_queue.get_nowait().set_result(None)
                        client._transport._io_writer.transport.abort()
                        await asyncio.sleep(0)  # work: uvloop closes it
                        assert client.is_connected
                        reader._requested = 0
                        await reader._request()
                    last = int(batch[-1].data)
                    if last == 300:
                        break
            return last

    # What was on its way to a reader that acknowledges nothing went with the connection; the reader goes on.
    assert uvloop.run(last_read()) == 300
