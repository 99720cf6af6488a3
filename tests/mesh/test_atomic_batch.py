"""An atomic batch is stored as a whole or not at all, whatever is wrong with a part of it."""

import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.errors import PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.start import start_mesh


async def _stream(client: Client, name: str, **config) -> JetStreamContext:
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name=name, subjects=[f"{name}.*"], num_replicas=3, **{"allow_atomic": True, **config})
    await wait_routable(client, name)
    return js


def _messages(name: str, count: int) -> list[BatchMessage]:
    return [BatchMessage(f"{name}.{n}", b"%d" % n) for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 1_000])
async def test_a_batch_is_stored_in_its_order_and_next_to_each_other(client: Client, count: int) -> None:
    js = await _stream(client, f"ATOM{count}")
    ack = await publish_together(client, _messages(f"ATOM{count}", count))
    assert (ack.stream, ack.seq, ack.count) == (f"ATOM{count}", count, count)
    assert (await js.stream_info(f"ATOM{count}")).state.messages == count
    assert (await js.get_msg(f"ATOM{count}", count)).data == b"%d" % (count - 1)


async def test_one_condition_that_does_not_hold_refuses_all_of_it(client: Client) -> None:
    js = await _stream(client, "ATOMX")
    messages = _messages("ATOMX", 3)
    messages[1] = messages[1]._replace(headers={"Nats-Expected-Last-Subject-Sequence": "7"})
    with pytest.raises(PublishRefusedError, match=r"wrong last sequence.*err_code 10071.*nothing of the batch"):
        await publish_together(client, messages)
    assert (await js.stream_info("ATOMX")).state.messages == 0


async def test_a_batch_sent_again_under_its_ids_is_not_stored_again(client: Client) -> None:
    js = await _stream(client, "ATOMD")
    messages = [m._replace(headers={"Nats-Msg-Id": m.subject}) for m in _messages("ATOMD", 5)]
    await publish_together(client, messages)
    with pytest.raises(PublishRefusedError, match=r"duplicate message id .*err_code 10201") as refusal:
        await publish_together(client, messages)
    assert (refusal.value.code, refusal.value.err_code) == (400, 10201)
    assert (await js.stream_info("ATOMD")).state.messages == 5


async def test_a_stream_that_does_not_allow_it_says_so(client: Client) -> None:
    js = await _stream(client, "ATOMN", allow_atomic=False)
    with pytest.raises(PublishRefusedError, match="atomic publish is disabled .*err_code 10174"):
        await publish_together(client, _messages("ATOMN", 3))
    assert (await js.stream_info("ATOMN")).state.messages == 0


async def test_a_subject_that_nobody_takes_is_refused_because_nothing_can_be_stored(client: Client) -> None:
    with pytest.raises(PublishRefusedError, match=r"nobody takes the subject.*for 0.3 s; nothing of the batch"):
        await publish_together(client, _messages("nowhere", 3), retry_for=0.3)


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_of_a_wrong_size_is_refused_before_anything_is_sent(client: Client, count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count:,} messages in an atomic batch, expected 1 to 1,000"):
        await publish_together(client, _messages("ATOMS", count))


async def test_an_answer_of_somebody_who_is_no_stream_is_no_success(client: Client) -> None:
    async def thank(msg: Msg) -> None:
        await msg.respond(b"{}" if msg.headers["Nats-Batch-Sequence"] == "1" else b"")

    await client.subscribe("nobody.batches", cb=thank)
    messages = [BatchMessage("nobody.batches", b"") for _ in range(3)]
    with pytest.raises(UnknownOutcomeError, match="the first message of a batch was answered b'{}', expected an empty"):
        await publish_together(client, messages)
    with pytest.raises(UnknownOutcomeError, match="the end of a batch of 1 was answered b'{}', expected its"):
        await publish_together(client, messages[:1])


async def test_a_leader_that_hangs_is_outlived_and_nothing_is_stored_in_part() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        js = await _stream(client, "HANG")
        leader = (await js.stream_info("HANG")).cluster.leader
        other = await mesh.connect(to=next(name for name in mesh.servers if name != leader))
        await mesh.pause(leader)
        stored = 0
        for n in range(10):
            messages = [BatchMessage(f"HANG.{n}", b"", {"Nats-Msg-Id": f"{n}-{part}"}) for part in range(10)]
            try:
                await publish_together(other, messages, answer_within=1.0, retry_for=30.0)
            except UnknownOutcomeError:
                continue
            stored += 10
        await mesh.resume(leader)
        assert stored > 0

        async def count() -> int | None:
            try:
                return (await other.jetstream(timeout=1.0).stream_info("HANG")).state.messages
            except (TimeoutError, nats.js.errors.APIError):
                return None

        found = await eventually(count, within=20.0)
        assert found >= stored
        assert found % 10 == 0
