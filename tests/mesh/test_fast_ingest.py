"""Fast ingest stores everything in order, or says where it ended, whatever happens to the servers."""

import asyncio

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from mesh_lab.errors import BatchEndedError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.fast_ingest import FastIngest, ingest
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.servers.start import start_mesh


async def _stream(client: Client, name: str, **config) -> JetStreamContext:
    js = client.jetstream(timeout=5.0)
    settings = {"allow_batched": True, "num_replicas": 3, **config}
    await js.add_stream(name=name, subjects=[f"{name}.*"], **settings)
    await wait_routable(client, name)
    return js


async def _stored(js: JetStreamContext, stream: str) -> int:
    return (await retry(lambda: js.stream_info(stream))).state.messages


@pytest.mark.parametrize("flow", [1, 7, 1_000])
async def test_everything_is_stored_once_and_in_order(client: Client, flow: int) -> None:
    js = await _stream(client, f"FAST{flow}")
    async with FastIngest(client, flow=flow) as batch:
        for n in range(3_000):
            await batch.publish(f"FAST{flow}.x", b"%d" % n)
            assert batch.sent - batch.acknowledged <= 2 * max(flow, 500)
    assert (batch.sent, batch.acknowledged, batch.stored) == (3_000, 3_000, 3_000)
    assert batch.flow <= flow
    assert await _stored(js, f"FAST{flow}") == 3_000
    assert (await js.get_msg(f"FAST{flow}", 3_000)).data == b"2999"


async def test_a_gap_ends_the_batch_at_the_hole(client: Client) -> None:
    js = await _stream(client, "GAPS")
    batch = FastIngest(client)
    with pytest.raises(BatchEndedError, match=r"ended the batch with 9 messages stored of 22 sent; go on behind"):
        async with batch:
            for n in range(1, 21):
                if n == 10:
                    batch.sent += 2  # two numbers that never reach the server
                await batch.publish("GAPS.x", b"%d" % n)
    assert (batch.stored, await _stored(js, "GAPS")) == (9, 9)
    with pytest.raises(BatchEndedError, match="9 messages stored") as ended:
        await batch.publish("GAPS.x", b"one more")
    assert (ended.value.stored, ended.value.sent) == (9, 22)


async def test_a_repeated_id_is_dropped(client: Client) -> None:
    js = await _stream(client, "IDS")
    for _ in range(2):
        async with FastIngest(client) as batch:
            for n in range(50):
                await batch.publish("IDS.x", b"", headers={"Nats-Msg-Id": str(n)})
    assert batch.stored == 50
    assert await _stored(js, "IDS") == 50


async def test_a_stream_that_does_not_allow_it_says_so_at_the_first_message(client: Client) -> None:
    js = await _stream(client, "PLAIN", allow_batched=False)
    with pytest.raises(PublishRefusedError, match=r"PLAIN.x: batch publish is disabled .*err_code 10205") as refusal:
        async with FastIngest(client) as batch:
            await batch.publish("PLAIN.x", b"")
    assert (refusal.value.code, refusal.value.err_code) == (400, 10205)
    assert await _stored(js, "PLAIN") == 0


async def test_a_full_stream_refuses_and_says_how_much_it_has(client: Client) -> None:
    js = await _stream(client, "FULL", max_msgs=100, discard="new", num_replicas=1)
    with pytest.raises((PublishRefusedError, BatchEndedError), match=r"stored|acknowledged"):
        async with FastIngest(client, flow=10) as batch:
            for _ in range(300):
                await batch.publish("FULL.x", b"")
    assert batch.acknowledged <= await _stored(js, "FULL") == 100


async def test_a_subject_that_nobody_takes_ends_as_unknown(client: Client) -> None:
    with pytest.raises(UnknownOutcomeError, match=r"nowhere.x: nobody takes the subject; 0 of 1 messages") as unknown:
        async with FastIngest(client, patience=0.6) as batch:
            await batch.publish("nowhere.x", b"")
    assert unknown.value.waited_s == 0.6


async def test_a_payload_above_the_servers_limit_is_refused_and_spoils_nothing(client: Client) -> None:
    js = await _stream(client, "LARGE")
    async with FastIngest(client) as batch:
        await batch.publish("LARGE.x", b"1")
        with pytest.raises(PublishRefusedError, match="2,000,000 bytes, the server takes 1,048,576"):
            await batch.publish("LARGE.x", bytes(2_000_000))
        await batch.publish("LARGE.x", b"2")
    assert await _stored(js, "LARGE") == 2


@pytest.mark.parametrize("wrong", [{"flow": 0}, {"flow": 70_000}, {"patience": 0}])
async def test_numbers_out_of_range_are_refused(client: Client, wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected flow 1 to 65535"):
        FastIngest(client, **wrong)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_ingest_leaves_out_nothing_and_doubles_nothing_when_the_leader_goes(fault: str) -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        js = await _stream(client, "FAULT")
        leader = (await js.stream_info("FAULT")).cluster.leader
        other = await mesh.connect(to=next(name for name in mesh.servers if name != leader))
        broken: list[asyncio.Task] = []

        def messages():
            for n in range(30_000):
                if n == 10_000:
                    broken.append(asyncio.create_task(getattr(mesh, fault)(leader)))
                yield "FAULT.x", b"%d" % n

        async with asyncio.timeout(60.0):
            assert await ingest(other, messages(), patience=30.0) == 30_000
        await asyncio.gather(*broken)
        js = other.jetstream(timeout=5.0)
        assert await _stored(js, "FAULT") == 30_000
        for seq in (1, 9_999, 10_001, 10_500, 11_000, 30_000):
            assert (await js.get_msg("FAULT", seq)).data == b"%d" % (seq - 1)
        if fault == "pause":
            await mesh.resume(leader)  # it holds itself for the leader until it hears otherwise, and answers so

            async def caught_up() -> bool:
                return await _stored(js, "FAULT") == 30_000

            await eventually(caught_up, within=20.0)


async def test_everything_gone_ends_as_unknown_and_not_in_a_hang() -> None:
    async with await start_mesh(servers=1) as mesh:
        client = await mesh.connect()
        await _stream(client, "GONE", num_replicas=1)
        with pytest.raises(UnknownOutcomeError, match=r"no answer in 1 s; [\d,]+ of [\d,]+ messages are acknowledged"):
            async with asyncio.timeout(20.0), FastIngest(client, patience=1.0) as batch:
                await batch.publish("GONE.x", b"")
                await mesh.kill("n1")
                await eventually(lambda: not client.is_connected, within=5.0)
                await batch.publish("GONE.x", b"")
