"""Fast ingest stores everything in order, or says where it ended, whatever happens to the servers."""

import asyncio
from contextlib import aclosing

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.errors import BatchEndedError, BatchForgottenError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.fast_ingest import FastIngest, ingest
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.servers.mesh import Mesh
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


async def test_a_subject_that_nobody_takes_is_refused_since_nothing_can_be_stored(client: Client) -> None:
    words = (
        "nowhere.x: nobody took the subject in 0.6 s: no stream listens to it, or it has no leader; nothing is stored"
    )
    with pytest.raises(PublishRefusedError, match=words):
        async with FastIngest(client, patience=0.6) as batch:
            await batch.publish("nowhere.x", b"")
    with pytest.raises(PublishRefusedError, match=words):
        await ingest(client, [("nowhere.x", b"")], patience=0.6)


async def test_a_stream_that_comes_later_gets_the_first_message_once(client: Client) -> None:
    ingesting = asyncio.create_task(ingest(client, [("LATE.x", b"%d" % n) for n in range(10)]))
    await asyncio.sleep(0.5)  # pacing: the first message finds nobody, twice
    js = await _stream(client, "LATE")
    assert await ingesting == await _stored(js, "LATE") == 10


@pytest.mark.parametrize(("over", "headers"), [(1_000_000, None), (0, {"A": "b"}), (-17, {"A": "b"}), (-9, {"": ""})])
async def test_a_message_above_the_servers_limit_is_refused_and_spoils_nothing(
    mesh: Mesh, over: int, headers: dict[str, str] | None
) -> None:
    async with await mesh.connect() as own:
        js = await _stream(own, "LARGE")
        size = own.max_payload + over
        async with FastIngest(own) as batch:
            await batch.publish("LARGE.x", b"1")
            with pytest.raises(PublishRefusedError, match=rf"LARGE.x: {size:,} bytes.*, the server takes 1,048,576"):
                await batch.publish("LARGE.x", bytes(size), headers=headers)
            await batch.publish("LARGE.x", b"2")
        assert await _stored(js, "LARGE") == 2
        with pytest.raises(PublishRefusedError, match="LARGE.x: 1,048,577 bytes, the server takes 1,048,576"):
            await ingest(own, [("LARGE.x", b"3"), ("LARGE.x", bytes(own.max_payload + 1))])
        assert await _stored(js, "LARGE") == 3
        await js.delete_stream("LARGE")


@pytest.mark.parametrize("words", [b"ok", b"{}", b"[1]", b'{"type": "ack", "seq": 99, "msgs": 1}', b'{"error": {}}'])
async def test_somebody_else_who_answers_is_passed_over(mesh: Mesh, client: Client, words: bytes) -> None:
    complaints: list[Exception] = []

    async def note(err: Exception) -> None:
        complaints.append(err)

    async def thank(msg: Msg) -> None:
        await msg.respond(words)

    async with await mesh.connect(error_cb=note) as own:
        js = await _stream(client, "OTHERS")
        await client.subscribe("OTHERS.>", cb=thank)
        await flush_through(client)
        async with FastIngest(own, flow=10) as batch:
            for n in range(50):
                await batch.publish("OTHERS.x", b"%d" % n)
        assert (batch.stored, await _stored(js, "OTHERS")) == (50, 50)
        assert complaints == []
        await js.delete_stream("OTHERS")


async def test_a_client_that_is_closed_ends_every_wait_at_once(mesh: Mesh) -> None:
    own = await mesh.connect()
    await _stream(own, "CLOSED")
    with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
        async with asyncio.timeout(3.0), FastIngest(own) as batch:
            await batch.publish("CLOSED.x", b"")
            await own.close()
    own = await mesh.connect()
    silent = await own.subscribe("nowhere.z")
    ingesting = asyncio.create_task(ingest(own, [("nowhere.z", b"")]))
    await silent.next_msg(timeout=5.0)
    await own.close()
    with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
        await asyncio.wait_for(ingesting, 2.0)


async def test_a_connection_that_takes_nothing_for_a_moment_costs_no_batch(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await mesh.connect() as own:
        js = await _stream(own, "FAILS")
        write, failures = own._transport.writelines, [0]

        def writelines(payload: list[bytes]) -> None:
            if 1 <= failures[0] <= 4:  # as uvloop's, for a connection that nats-py considers alive
                failures[0] += 1
                raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
            write(payload)

        monkeypatch.setattr(own._transport, "writelines", writelines)
        async with FastIngest(own, flow=10) as batch:
            for n in range(100):
                failures[0] += n in (50, 51)
                await batch.publish("FAILS.x", b"%d" % n)
                await asyncio.sleep(0)
        assert failures[0] > 3, "it did not fail"
        assert await _stored(js, "FAILS") == 100
        await js.delete_stream("FAILS")


@pytest.mark.parametrize("wrong", [{"flow": 0}, {"flow": 70_000}, {"patience": 0}, {"patience": float("nan")}])
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


async def _audit(js: JetStreamContext, stream: str, at_least: int) -> None:
    """Read a stream of numbers: all of them are there, each once, in their order."""
    last = await _stored(js, stream)
    assert last >= at_least
    numbers = list[int]()
    async with aclosing(read_in_order(js._nc, stream)) as batches:
        while len(numbers) < last:
            numbers += [int(msg.data) for msg in await anext(batches)]
    assert numbers == list(range(last))


async def test_ingest_goes_on_where_the_stream_stands_when_its_server_forgot_the_batch() -> None:
    async with await start_mesh(servers=1) as mesh, await mesh.connect() as client:
        js = await _stream(client, "FORGOT", num_replicas=1)
        sent, enough = 0, asyncio.Event()

        def messages():
            nonlocal sent
            while not enough.is_set():
                yield "FORGOT.x", b"%d" % sent
                sent += 1

        ingesting = asyncio.create_task(ingest(client, messages(), flow=100))
        for _ in range(2):
            reached = sent + 5_000
            await eventually(lambda reached=reached: sent > reached or ingesting.done(), within=20.0)
            await mesh.kill("n1")
            await mesh.restart("n1")
        reached = sent + 5_000
        await eventually(lambda: sent > reached or ingesting.done(), within=20.0)
        enough.set()
        async with asyncio.timeout(30.0):
            assert await ingesting == sent
        await _audit(js, "FORGOT", sent)


async def test_a_batch_that_its_server_forgot_is_no_refusal() -> None:
    async with await start_mesh(servers=1) as mesh, await mesh.connect() as client, await mesh.connect() as rival:
        js = await _stream(client, "FORGOT", num_replicas=1)
        with pytest.raises(
            BatchForgottenError, match=r"batch publish ID unknown .*; \d of \d messages are ack.*others may"
        ):
            async with FastIngest(client, flow=1) as batch:
                for n in range(100):
                    if n == 3:
                        await mesh.kill("n1")
                        await mesh.restart("n1")
                    await batch.publish("FORGOT.x", b"%d" % n)
        assert issubclass(BatchForgottenError, UnknownOutcomeError)
        assert batch.acknowledged <= (await js.stream_info("FORGOT")).state.messages <= 3

        def messages():
            for n in range(100_000):
                if n == 1_000:
                    faults.append(asyncio.create_task(fault()))
                yield "FORGOT.x", b"%d" % n

        async def fault() -> None:
            for n in range(10):  # whoever writes as well makes it impossible to count
                await rival.jetstream().publish("FORGOT.x", b"rival %d" % n)
            await mesh.kill("n1")
            await mesh.restart("n1")

        faults: list[asyncio.Task[None]] = []
        with pytest.raises(UnknownOutcomeError, match=r"behind number [\d,]+, expected only the first"):
            await ingest(client, messages(), flow=100)
        await asyncio.gather(*faults)


async def test_everything_gone_ends_as_unknown_and_not_in_a_hang() -> None:
    async with await start_mesh(servers=1) as mesh:
        client = await mesh.connect()
        await _stream(client, "GONE", num_replicas=1)
        with pytest.raises(
            UnknownOutcomeError, match=r"not connected for 1 s; [\d,]+ of [\d,]+ messages are acknowledged"
        ):
            async with asyncio.timeout(20.0), FastIngest(client, patience=1.0) as batch:
                await batch.publish("GONE.x", b"")
                await mesh.kill("n1")
                await eventually(lambda: not client.is_connected, within=5.0)
                await batch.publish("GONE.x", b"")
