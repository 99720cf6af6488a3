"""The windowed publisher knows the end of every message, whatever happens to the servers."""

import asyncio
import contextlib

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.errors import PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.patterns.windowed_publisher import WindowedPublisher
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


async def _stream(client: Client, name: str, **config) -> JetStreamContext:
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name=name, subjects=[f"{name}.>"], **config)
    await wait_routable(client, name)  # or the first message is sent again, and lands behind those that came after it
    return js


async def test_every_message_is_stored_once_and_in_order(client: Client) -> None:
    js = await _stream(client, "PUB1", num_replicas=3)
    seqs: list[int] = []
    async with WindowedPublisher(client, window=200) as publisher:
        for n in range(2_000):
            await publisher.publish("PUB1.x", b"%d" % n, msg_id=str(n), on_stored=lambda ack: seqs.append(ack.seq))
            assert publisher.outstanding <= 200
    assert seqs == list(range(1, 2_001))
    assert publisher.stored == 2_000
    assert (await js.get_msg("PUB1", 2_000)).data == b"1999"


async def test_a_repeated_id_is_acknowledged_and_not_stored_again(client: Client) -> None:
    js = await _stream(client, "PUB2")
    for _ in range(2):
        async with WindowedPublisher(client) as publisher:
            for n in range(100):
                await publisher.publish("PUB2.x", b"", msg_id=str(n))
    assert (publisher.stored, publisher.duplicates) == (100, 100)
    assert (await js.stream_info("PUB2")).state.messages == 100


async def test_what_the_stream_refuses_is_told_apart_and_named(client: Client) -> None:
    js = await _stream(client, "PUB3", max_msgs=5, discard="new")
    with pytest.raises(
        PublishRefusedError, match=r"PUB3.x \(5\): maximum messages exceeded .*err_code 10077"
    ) as refusal:
        async with WindowedPublisher(client) as publisher:
            for n in range(6):
                await publisher.publish("PUB3.x", b"", msg_id=str(n))
    assert (refusal.value.code, refusal.value.err_code) == (503, 10077)
    assert (await js.stream_info("PUB3")).state.messages == 5


async def test_a_publisher_that_goes_on_learns_of_each_failure_by_its_kind(client: Client) -> None:
    js = await _stream(client, "PUB6", max_msgs=2, discard="new")
    stored: list[int] = []
    failed: dict[int, type[Exception]] = {}
    async with WindowedPublisher(client, ack_timeout=0.2, retry_for=0.6) as publisher:
        for n, subject in enumerate(["PUB6.x", "PUB6.x", "PUB6.x", "nowhere.x", "PUB6.x"]):
            await publisher.publish(
                subject,
                b"",
                msg_id=str(n),
                on_stored=lambda ack, n=n: stored.append(n),
                on_failed=lambda err, n=n: failed.update({n: type(err)}),
            )
    assert stored == [0, 1]
    assert failed == dict.fromkeys((2, 3, 4), PublishRefusedError)
    assert (await js.stream_info("PUB6")).state.messages == 2


@pytest.mark.parametrize(
    ("over", "headers"),
    [(1_000_000, {}), (1, {}), (0, {}), (-20, {}), (-500, {"Note": "n" * 600}), (-300, {"N": "é" * 200})],
)
async def test_a_message_above_the_servers_limit_is_refused_with_both_sizes(
    mesh: Mesh, over: int, headers: dict[str, str]
) -> None:
    async with await mesh.connect() as own:
        js = await _stream(own, "PUB4")
        size = own.max_payload + over
        async with WindowedPublisher(own) as publisher:
            await publisher.publish("PUB4.x", b"before", msg_id="1")
            with pytest.raises(
                PublishRefusedError, match=rf"PUB4.x: {size:,} bytes and \d+ of headers, the server takes 1,0"
            ):
                await publisher.publish("PUB4.x", bytes(size), msg_id="big", headers=headers)
            await publisher.publish("PUB4.x", bytes(own.max_payload - 1_000), msg_id="fits", headers=headers)
        assert (publisher.stored, own.is_closed) == (2, False)
        await js.delete_stream("PUB4")


async def test_a_full_message_is_counted_to_the_byte(mesh: Mesh) -> None:
    async with await mesh.connect() as own:
        js = await _stream(own, "PUBB")
        lines = len("NATS/1.0\r\nNats-Msg-Id: 1\r\nNote: é  ü\r\n\r\n".encode())
        async with WindowedPublisher(own) as publisher:
            for size in (own.max_payload - lines, own.max_payload - lines + 1):
                with contextlib.suppress(PublishRefusedError):
                    await publisher.publish("PUBB.x", bytes(size), msg_id="1", headers={"Note": " é\r\nü "})
        assert (publisher.stored, own.is_closed) == (1, False)
        await js.delete_stream("PUBB")


async def test_a_subject_without_a_stream_is_refused_since_every_copy_came_back(client: Client) -> None:
    words = (
        r"nowhere.x \(1\): nobody took the subject in 0.6 s: no stream listens to it, or it has no leader; it is not"
    )
    with pytest.raises(PublishRefusedError, match=words) as refusal:
        async with WindowedPublisher(client, ack_timeout=0.2, retry_for=0.6) as publisher:
            await publisher.publish("nowhere.x", b"", msg_id="1")
    assert refusal.value.code == 503


async def test_a_message_of_which_one_copy_got_no_answer_is_unknown(client: Client) -> None:
    silent = await client.subscribe("nowhere.y")
    await flush_through(client)
    with pytest.raises(
        UnknownOutcomeError, match=r"no answer in 0.9 s, last heard of another copy: nobody takes"
    ) as unknown:
        async with WindowedPublisher(client, ack_timeout=0.2, retry_for=0.9) as publisher:
            await publisher.publish("nowhere.y", b"", msg_id="1")
            await silent.next_msg(timeout=5.0)
            await silent.unsubscribe()
    assert unknown.value.waited_s == 0.9


async def test_a_client_that_is_closed_ends_every_wait_at_once(mesh: Mesh) -> None:
    own = await mesh.connect()
    await _stream(own, "PUBC")
    told: list[Exception] = []
    async with WindowedPublisher(own, window=2) as publisher:
        await publisher.publish("PUBC.x", b"", msg_id="1")
        await publisher.flush()
        await own.close()
    assert publisher.stored == 1, "nothing was outstanding: no error"
    for waits in ("flush", "publish"):
        own = await mesh.connect()
        silent = await own.subscribe("nowhere.z")
        with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
            async with asyncio.timeout(3.0), WindowedPublisher(own, window=2) as publisher:
                await publisher.publish("nowhere.z", b"", msg_id="1", on_failed=told.append)
                await publisher.publish("nowhere.z", b"", msg_id="2")
                await silent.next_msg(timeout=5.0)
                waiting = publisher.flush() if waits == "flush" else publisher.publish("nowhere.z", b"", msg_id="3")
                await asyncio.gather(waiting, own.close())
        with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
            await publisher.publish("nowhere.z", b"", msg_id="4")
    assert [type(err) for err in told] == [UnknownOutcomeError] * 2
    assert all("the client was closed; it may be stored" in str(err) for err in told)


async def test_an_answer_of_somebody_who_is_no_stream_is_none(client: Client) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b"{}" if msg.data == b"1" else b"thanks")

    await client.subscribe("nowhere.x7", cb=answer)
    errors: list[Exception] = []
    async with WindowedPublisher(client, ack_timeout=0.2, retry_for=0.6) as publisher:
        for n in (b"1", b"2"):
            await publisher.publish("nowhere.x7", n, msg_id=n.decode(), on_failed=errors.append)
    assert publisher.stored == 0
    assert [type(err) for err in errors] == [UnknownOutcomeError] * 2
    failed = list(map(str, errors))
    assert ["no answer in 0.6 s, but b'{}', which is no stream's; it may be stored" in text for text in failed] == [
        True,
        False,
    ]
    assert ["no answer in 0.6 s, but b'thanks', which" in text for text in failed] == [False, True]


async def test_a_message_that_cannot_be_sent_is_told_at_once_and_not_tried_again(client: Client) -> None:
    js = await _stream(client, "PUB8")
    async with WindowedPublisher(client, ack_timeout=0.1) as publisher:
        with pytest.raises(PublishRefusedError, match="the headers 'bad name', 'Nats-Msg-Id'") as refused:
            await publisher.publish("PUB8.x", b"", msg_id="1", headers={"bad name": "s3cret"})
        assert "s3cret" not in str(refused.value)
        with pytest.raises(PublishRefusedError, match=r"surrogates not allowed, in the subject or the headers"):
            await publisher.publish("PUB8.x", b"", msg_id="1", headers={"Note": "\ud800"})
        for subject in ("PUB8.a b", "", "PUB8.a\r\nPING"):
            with pytest.raises(PublishRefusedError, match="invalid subject, in the subject or"):
                await publisher.publish(subject, b"", msg_id="1")
        assert publisher.outstanding == 0
        await asyncio.sleep(0.3)  # absence: thrice ack_timeout; the sweeper would send it again, and trip
        await publisher.publish("PUB8.x", b"", msg_id="2")
    assert (await js.stream_info("PUB8")).state.messages == 1


async def test_a_callback_that_raises_does_not_stop_the_publisher(client: Client) -> None:
    await _stream(client, "PUB9")

    def trip(_end: object) -> None:
        raise KeyError("no such order")

    async with asyncio.timeout(5.0):
        async with WindowedPublisher(client) as publisher:
            await publisher.publish("PUB9.x", b"", msg_id="1", on_stored=trip)
        assert publisher.stored == 1
        with pytest.raises(UnknownOutcomeError, match="nobody waits for their answers: KeyError"):
            async with WindowedPublisher(client, ack_timeout=0.1, retry_for=0.2) as publisher:
                await publisher.publish("nowhere.x", b"", msg_id="1", on_failed=trip)
                await publisher.publish("nowhere.x", b"", msg_id="2", on_failed=trip)
                await publisher.flush()


async def test_a_refusal_whose_callback_raises_is_raised_at_the_end(client: Client) -> None:
    await _stream(client, "SMALL", max_msg_size=10)

    def trip(_end: object) -> None:
        raise KeyError("no such order")

    with pytest.raises(PublishRefusedError, match="message size exceeds maximum allowed"):
        async with WindowedPublisher(client) as publisher:
            await publisher.publish("SMALL.x", bytes(100), msg_id="1", on_failed=trip)


async def test_a_message_that_is_passed_on_has_the_id_that_it_is_given(client: Client) -> None:
    js = await _stream(client, "PASSED")
    async with WindowedPublisher(client) as publisher:
        for msg_id in ("m1", "m2"):
            await publisher.publish("PASSED.x", msg_id.encode(), msg_id=msg_id, headers={"Nats-Msg-Id": "m1"})
    assert (publisher.stored, publisher.duplicates) == (2, 0)
    assert (await js.get_msg("PASSED", seq=2)).headers == {"Nats-Msg-Id": "m2"}


@pytest.mark.parametrize("msg_id", ["", " "])
async def test_an_id_by_which_no_copy_is_known_is_refused(client: Client, msg_id: str) -> None:
    js = await _stream(client, "BLANK")
    async with WindowedPublisher(client) as publisher:
        with pytest.raises(ValueError, match=f"BLANK.x: msg_id='{msg_id}', expected one"):
            await publisher.publish("BLANK.x", b"", msg_id=msg_id)
    assert (await js.stream_info("BLANK")).state.messages == 0


NO_NUMBERS = [
    *({"window": 0}, {"ack_timeout": 0}, {"ack_timeout": 5.0, "retry_for": 1.0}),
    *({"ack_timeout": float("nan")}, {"retry_for": float("nan")}),
]


@pytest.mark.parametrize("wrong", NO_NUMBERS)
async def test_numbers_out_of_range_are_refused(client: Client, wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected window >= 1"):
        WindowedPublisher(client, **wrong)


async def test_a_publisher_that_was_not_entered_says_so(client: Client) -> None:
    await _stream(client, "PUB5")
    publisher = WindowedPublisher(client, window=1)
    await publisher.publish("PUB5.x", b"", msg_id="1")
    with pytest.raises(UnknownOutcomeError, match="async with WindowedPublisher"):
        await publisher.publish("PUB5.x", b"", msg_id="2")


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_no_message_is_lost_or_doubled_when_the_leader_goes(fault: str) -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        js = await _stream(client, "FAULT", num_replicas=3)
        leader = (await js.stream_info("FAULT")).cluster.leader
        stored: list[int] = []

        async def publish() -> None:
            async with WindowedPublisher(client, window=500, ack_timeout=1.0) as publisher:
                for n in range(6_000):
                    await publisher.publish(
                        "FAULT.x", b"%d" % n, msg_id=str(n), on_stored=lambda a: stored.append(a.seq)
                    )
                    if n == 3_000:
                        await getattr(mesh, fault)(leader)

        async with asyncio.timeout(45.0):
            await publish()
        assert len(set(stored)) == len(stored) == 6_000
        assert (await retry(lambda: js.stream_info("FAULT"))).state.messages == 6_000
        if fault == "pause":
            await mesh.resume(leader)  # it holds itself for the leader until it hears otherwise, and answers so
        else:
            await mesh.restart(leader)

        async def all_there() -> bool:
            return (await retry(lambda: js.stream_info("FAULT"))).state.messages == 6_000

        await eventually(all_there, within=20.0)


def test_a_connection_that_uvloop_has_closed_is_borne() -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not there for this platform")

    async def publish() -> int:
        async with await start_mesh(servers=1) as mesh:
            client = await mesh.connect()
            js = await _stream(client, "GONE")
            async with WindowedPublisher(client, ack_timeout=0.5) as publisher:
                for n in range(20):
                    if n == 10:  # as when the server dies: nats-py has not noticed when the next message comes
                        client._transport._io_writer.transport.abort()
                        assert client.is_connected
                    await publisher.publish("GONE.x", b"", msg_id=str(n))
                    await asyncio.sleep(0)  # work: nats-py's own task writes, and ends of what uvloop says
            return (await js.stream_info("GONE")).state.messages

    assert uvloop.run(publish()) == 20


async def test_what_the_servers_cannot_buffer_is_sent_again_until_it_is_stored() -> None:
    told: list[bytes] = []
    async with await start_mesh(servers=1, jetstream_config="max_buffered_msgs: 20") as mesh:
        client = await mesh.connect()
        js = await _stream(client, "BURST")
        inbox = client.new_inbox()

        async def note(msg: Msg) -> None:
            told.append(msg.data)

        await client.subscribe(inbox, cb=note)
        for _ in range(10_000):  # whoever does not know of acknowledgements meets the limit
            await client.publish("BURST.x", bytes(128), reply=inbox)
        await eventually(lambda: len(told) == 10_000, within=20.0)
        refused = sum(b'"err_code":10167' in answer for answer in told)
        assert refused > 0
        assert (await js.stream_info("BURST")).state.messages == 10_000 - refused
        (server,) = mesh.servers.values()
        before = server.monitor.varz()["in_msgs"]
        async with WindowedPublisher(client, window=10_000) as publisher:
            for n in range(10_000):
                await publisher.publish("BURST.x", bytes(128), msg_id=str(n))
        assert publisher.stored == 10_000
        assert server.monitor.varz()["in_msgs"] - before < 5 * 10_000, "each one is sent some three times"
        assert (await js.stream_info("BURST")).state.messages == 20_000 - refused
