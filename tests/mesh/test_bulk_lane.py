"""The bulk lane keeps every order to the cent, sets bad ones aside, and counts what comes twice once."""

import asyncio
import json
import os
import subprocess
import sys

import msgspec
import pytest
from nats.aio.client import Client
from programs import killed_at_the_end

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.bulk import OrderBatch, encode_batch, headers_of
from mesh_lab.orders.bulk_lane import (
    REJECTED_STREAM,
    STREAM,
    BulkCount,
    RejectionNote,
    batched,
    count_bulk,
    create_bulk_lane,
    send_batches,
)
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.order import totals_of
from mesh_lab.patterns.jetstream_wait import wait_routable, wait_stream
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


@pytest.fixture
async def lane(client: Client):
    js = client.jetstream(timeout=5.0)
    await create_bulk_lane(js, replicas=3)
    for stream in (STREAM, REJECTED_STREAM):
        await wait_routable(client, stream)
    yield js
    for stream in (STREAM, REJECTED_STREAM):
        await js.delete_stream(stream)


async def _counted(client: Client, orders: int) -> BulkCount:
    count = BulkCount()
    async with asyncio.timeout(30.0):
        await count_bulk(client, count, until=orders)
    return count


@pytest.mark.parametrize(("encoding", "compression"), [("json", ""), ("msgpack", "zstd"), ("columns", "zstd")])
async def test_all_real_orders_arrive_in_every_encoding(client: Client, lane, encoding, compression) -> None:
    sent = await send_batches(client, batched(read_orders()), encoding=encoding, compression=compression)
    assert sent == EVERYTHING.orders
    count = await _counted(client, sent)
    assert (count.totals, count.doubled, count.rejected) == (EVERYTHING, 0, 0)


async def test_a_load_that_runs_twice_is_stored_once(client: Client, lane) -> None:
    for _ in range(2):
        await send_batches(client, batched(read_orders(first=2_000), size=100))
    assert (await lane.stream_info(STREAM)).state.messages == 21  # 10 or 11 for each of the two regions


async def test_bad_orders_go_to_their_own_stream_and_the_rest_is_counted(client: Client, lane) -> None:
    orders = [order for order in read_orders(first=100) if order.region == "eu"]
    fields = msgspec.to_builtins(OrderBatch.of(orders))
    fields["cents"][7] = -5
    await lane.publish("bulk.eu", msgspec.msgpack.encode(fields), headers=headers_of("columns"))
    await lane.publish("bulk.eu", b"no batch", headers=headers_of("json"))
    await lane.publish("bulk.eu", encode_batch(OrderBatch.of(orders[:1]).renamed("z-")), headers=headers_of("columns"))
    for _ in range(2):  # a reader that begins again reports the same again, and that is stored once
        count = await _counted(client, len(orders) + 2)
        assert count.totals.orders == len(orders)
        assert count.totals.cents == totals_of(orders).cents - orders[7].cents + orders[0].cents
        assert count.rejected == 2
    assert (await lane.stream_info(REJECTED_STREAM)).state.messages == 2
    notes = [msgspec.json.decode((await lane.get_msg(REJECTED_STREAM, n)).data, type=RejectionNote) for n in (1, 2)]
    assert [(note.stream_seq, note.order.place) for note in notes] == [(1, 7), (2, -1)]
    assert "-5" in notes[0].order.seen


async def test_the_totals_are_exact_when_the_streams_leader_is_killed_half_way() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        await create_bulk_lane(client.jetstream(timeout=5.0), replicas=3)
        leader = (await wait_stream(client.jetstream(), STREAM)).cluster.leader
        killing: list[asyncio.Task] = []

        def load():
            for number, batch in enumerate(batched(read_orders(), size=64)):
                if number == 500:
                    killing.append(asyncio.create_task(mesh.kill(leader)))
                yield batch

        counting = asyncio.create_task(_counted(await _other(mesh, leader), EVERYTHING.orders))
        assert await send_batches(await _other(mesh, leader), load(), window=32) == EVERYTHING.orders
        count = await counting
        await asyncio.gather(*killing)
        assert (count.totals, count.doubled) == (EVERYTHING, 0)


async def _other(mesh: Mesh, leader: str) -> Client:
    return await mesh.connect(to=next(name for name in mesh.servers if name != leader))


async def test_batches_of_other_orders_are_not_taken_for_one_another(client: Client, lane) -> None:
    orders = [order for order in read_orders(first=400) if order.region == "eu"]
    duplicates: list[bool] = []
    batches = [OrderBatch.of([orders[0], *orders[start : start + 50]]) for start in (1, 51, 1)]
    await send_batches(client, batches, on_stored=lambda ack, batch: duplicates.append(ack.duplicate))
    assert duplicates == [False, False, True]
    with pytest.raises(OrderFormatError, match="a batch of region 'e u'"):
        await send_batches(client, [msgspec.structs.replace(batches[0], region="e u")])


async def test_a_long_reason_ends_no_reader(client: Client, lane) -> None:
    js, json_type = client.jetstream(), {"Content-Type": "application/json"}
    await js.publish("bulk.eu", b"1", headers={"Content-Type": "x" * 60_000})  # a stream takes 64 KiB
    await js.publish("bulk.eu", b'[{"%b":1}]' % (b"x" * 900_000), headers=json_type)
    count = BulkCount()
    await count_bulk(client, count, until=2)
    assert count.rejected == 2
    assert not client.is_closed


async def test_publisher_and_reader_run_as_services_of_their_own(mesh: Mesh, client: Client, lane) -> None:
    options = mesh.connect_options()
    urls = [url.replace("://", f"://{options['user']}:{options['password']}@") for url in options["servers"]]
    command = [sys.executable, "-m", "mesh_lab.orders", "--replicas=3"]
    environment = {**os.environ, "NATS_URL": ",".join(urls)}
    reading = [*command, "bulk-reader", f"--until={EVERYTHING.orders}"]
    with killed_at_the_end(subprocess.Popen(reading, env=environment, stdout=subprocess.PIPE, text=True)) as reader:
        done = subprocess.run([*command, "bulk-publisher"], env=environment, capture_output=True, text=True, timeout=60)
        sent = json.loads(done.stdout)
        assert (sent["acknowledged"], sent["duplicates"]) == (EVERYTHING.orders, 0), done.stderr
        report = json.loads(reader.communicate(timeout=30)[0])
    assert (report["orders"], report["cents"]) == (EVERYTHING.orders, EVERYTHING.cents)
    assert (report["doubled"], report["rejected"]) == (0, 0)
