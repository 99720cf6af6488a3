"""An atomic batch is stored as a whole or not at all, whatever is wrong with a part of it."""

import asyncio

import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.errors import AlreadyStoredError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

LONG = {"Note": "n" * 600}


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
    with pytest.raises(AlreadyStoredError, match=r"duplicate message id .*err_code 10201"):
        await publish_together(client, messages)
    assert (await js.stream_info("ATOMD")).state.messages == 5


async def test_a_stream_that_does_not_allow_it_says_so(client: Client) -> None:
    js = await _stream(client, "ATOMN", allow_atomic=False)
    with pytest.raises(PublishRefusedError, match="atomic publish is disabled .*err_code 10174"):
        await publish_together(client, _messages("ATOMN", 3))
    assert (await js.stream_info("ATOMN")).state.messages == 0


async def test_a_subject_that_nobody_takes_is_refused_because_nothing_can_be_stored(client: Client) -> None:
    with pytest.raises(PublishRefusedError, match=r"nobody took the subject in 0.3 s: .*; nothing of the batch"):
        await publish_together(client, _messages("nowhere", 3), retry_for=0.3)


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_of_a_wrong_size_is_refused_before_anything_is_sent(client: Client, count: int) -> None:
    with pytest.raises(ValueError, match=rf"{count:,} messages in an atomic batch, expected 1 to 1,000"):
        await publish_together(client, _messages("ATOMS", count))


@pytest.mark.parametrize("wrong", [{"answer_within": 0}, {"retry_for": -1}, {"retry_for": float("nan")}])
async def test_seconds_out_of_range_are_refused(client: Client, wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected seconds above 0, and 0 or more"):
        await publish_together(client, [BatchMessage("x", b"")], **wrong)


async def test_messages_that_are_passed_on_keep_their_headers_but_those_of_their_batch(client: Client) -> None:
    js = await _stream(client, "PASSED")
    await publish_together(client, [BatchMessage("PASSED.x", b"%d" % n, {"Note": "new"}) for n in range(2)])
    stored = [await js.get_msg("PASSED", seq=number) for number in (1, 2)]
    assert stored[1].headers["Nats-Batch-Commit"] == "1"
    again = [BatchMessage(msg.subject, msg.data, msg.headers) for msg in stored]
    ack = await publish_together(client, [*again, BatchMessage("PASSED.x", b"2")])
    assert (ack.count, (await js.stream_info("PASSED")).state.messages) == (3, 5)
    assert (await js.get_msg("PASSED", seq=4)).headers["Note"] == "new"


@pytest.mark.parametrize("words", [b"ok", b"{}", b"[1]", b'{"error": {"code": 400}}', b'{"stream": 5}', b"\xff"])
async def test_somebody_else_who_answers_is_passed_over(mesh: Mesh, client: Client, words: bytes) -> None:
    async def thank(msg: Msg) -> None:
        await msg.respond(words)

    async with await mesh.connect() as other:
        js = await _stream(client, "ATOMO")
        for client_here in (client, other):  # nearer than the stream, so it answers first, and farther
            await client_here.subscribe("ATOMO.*", cb=thank)
            await flush_through(client_here)
        for count in (1, 3):
            ack = await publish_together(client, _messages("ATOMO", count))
            assert (ack.stream, ack.count) == ("ATOMO", count)
        assert (await js.stream_info("ATOMO")).state.messages == 4
        await js.delete_stream("ATOMO")


async def test_an_answer_of_somebody_who_is_no_stream_is_no_success(client: Client) -> None:
    async def thank(msg: Msg) -> None:
        await msg.respond(b"{}" if msg.headers["Nats-Batch-Sequence"] == "1" else b"")

    await client.subscribe("nobody.batches", cb=thank)
    messages = [BatchMessage("nobody.batches", b"") for _ in range(3)]
    heard = "in 0.3 s, but b'{}', which is no stream's"
    with pytest.raises(PublishRefusedError, match=f"no answer {heard}, for 0.5 s; nothing of the batch is stored"):
        await publish_together(client, messages, answer_within=0.3, retry_for=0.5)
    with pytest.raises(UnknownOutcomeError, match=f"no answer to the end of the batch {heard}; all of it is stored or"):
        await publish_together(client, messages[:1], answer_within=0.3)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_message_that_is_too_large_with_the_batchs_own_headers_refuses_all_of_it(
    mesh: Mesh, place: int
) -> None:
    async with await mesh.connect() as own:
        js, seen = await _stream(own, "ATOML"), list[Msg]()

        async def see(msg: Msg) -> None:
            seen.append(msg)

        await own.subscribe("ATOML.>", cb=see)
        for size, headers in ((own.max_payload, None), (own.max_payload + 1, None), (own.max_payload - 500, LONG)):
            messages = _messages("ATOML", 3)
            messages[place] = BatchMessage("ATOML.big", bytes(size), headers)
            with pytest.raises(PublishRefusedError, match=rf"ATOML.big: {size:,} bytes and \d+ of headers, the server"):
                await publish_together(own, messages)
        await own.flush()
        assert not seen
        assert (await js.stream_info("ATOML")).state.messages == 0
        await publish_together(own, [BatchMessage("ATOML.fits", bytes(own.max_payload - 200))])
        assert (await js.stream_info("ATOML")).state.messages == 1
        await js.delete_stream("ATOML")


MALFORMED = [
    BatchMessage("", b""),
    BatchMessage("ATOMM.a b", b""),
    BatchMessage("ATOMM.a\r\nPUB ATOMM.b 0\r\n", b""),
    BatchMessage("ATOMM.\ud800", b""),
    BatchMessage("ATOMM.a", b"", {"bad name": "x"}),
    BatchMessage("ATOMM.a", b"", {"Good": "x", "Größe": "x"}),
    BatchMessage("ATOMM.a", b"", {"Good": "\ud800"}),
]


@pytest.mark.parametrize("wrong", MALFORMED)
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_malformed_subject_or_header_refuses_the_batch_before_anything_is_sent(
    client: Client, wrong: BatchMessage, place: int
) -> None:
    js = await _stream(client, "ATOMM")
    heard = await client.subscribe("ATOMM.>")
    messages = [BatchMessage("ATOMM.a", b"", {"": "left out", " Good ": "a\r\nb"})] * 3
    messages[place] = wrong
    with pytest.raises(PublishRefusedError, match="in the subject or the headers"):
        await publish_together(client, messages)
    await client.flush()
    assert heard.pending_msgs == 0
    messages[place] = messages[place - 1]
    assert (await publish_together(client, messages)).seq == 3
    assert (await js.stream_info("ATOMM")).state.messages == 3
    await js.delete_stream("ATOMM")


async def test_a_batch_of_which_the_server_has_a_part_is_sent_again(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await mesh.connect() as own:
        js = await _stream(own, "ATOMI", max_msg_size=1_000)
        publish, lost = own.publish, list[str]()

        async def loses_one(subject: str, *args: object, **options: object) -> None:
            if subject == "ATOMI.1" and not lost:
                lost.append(subject)
            else:
                await publish(subject, *args, **options)

        monkeypatch.setattr(own, "publish", loses_one)
        assert (await publish_together(own, _messages("ATOMI", 4))).seq == 4
        assert lost == ["ATOMI.1"]
        messages = _messages("ATOMI", 4)
        messages[1] = messages[1]._replace(payload=bytes(2_000))
        with pytest.raises(PublishRefusedError, match=r"incomplete .*err_code 10176\), 3 times: the stream refuses"):
            await publish_together(own, messages)
        assert (await js.stream_info("ATOMI")).state.messages == 4
        await js.delete_stream("ATOMI")


async def test_a_client_that_is_closed_ends_a_batch_at_once(mesh: Mesh) -> None:
    async with await mesh.connect() as own:
        heard = await own.subscribe("nobody.closes")
        storing = asyncio.create_task(publish_together(own, [BatchMessage("nobody.closes", b"")], answer_within=30.0))
        await heard.next_msg(timeout=5.0)
        await own.close()
        with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
            await asyncio.wait_for(storing, 2.0)


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
