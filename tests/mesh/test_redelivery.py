"""A worker that retries, buries and leaves: nothing is lost, and nothing comes for ever."""

import asyncio
import math
import time
from collections import Counter
from itertools import pairwise

import pytest
from nats.aio.client import Client
from nats.errors import ConnectionClosedError
from nats.js.api import ConsumerConfig
from nats.js.errors import NoStreamResponseError

from mesh_lab.errors import CircuitOpenError, PoisonMessageError, PublishRefusedError
from mesh_lab.patterns.connection import server_name
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.redelivery import Backoff, consume_with_retries, letter_id
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh

QUICK = Backoff(first=0.02, most=0.1)


class Desk:
    """A stream WORK with a consumer, and a worker on it."""

    def __init__(self, mesh: Mesh, ack_wait: float = 1) -> None:
        self.mesh = mesh
        self.ack_wait = ack_wait
        self.tries: Counter[bytes] = Counter()
        self.stop = asyncio.Event()

    async def __aenter__(self) -> "Desk":
        self.client = await self.mesh.connect(name="worker")
        self.js = self.client.jetstream(timeout=5.0)
        await self.js.add_stream(name="WORK", subjects=["work.*"])
        await self.js.add_stream(name="DEAD", subjects=["dead.work"])
        await self.js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=self.ack_wait))
        await wait_routable(self.client, "WORK", "desk")
        await wait_routable(self.client, "WORK")
        await wait_routable(self.client, "DEAD")
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in ("WORK", "DEAD"):
            await self.js.delete_stream(name)
        await self.client.close()

    async def requested(self) -> bool:
        """Return whether a worker waits for a message."""
        return bool((await self.js.consumer_info("WORK", "desk")).num_waiting)

    async def put(self, *payloads: bytes) -> None:
        for number, payload in enumerate(payloads):
            await self.js.publish(f"work.{number}", payload, headers={"Trace": "kept"})

    def work(
        self, handle, *, dead: str = "dead.work", attempts: int = 3, backoff: Backoff = QUICK
    ) -> "asyncio.Task[None]":
        async def counting(msg):
            self.tries[msg.data] += 1
            await handle(msg)

        return asyncio.create_task(
            consume_with_retries(
                self.client, "WORK", "desk", counting, dead=dead, attempts=attempts, backoff=backoff, stop=self.stop
            )
        )

    async def done(self) -> bool:
        info = await self.js.consumer_info("WORK", "desk")
        return info.num_pending == info.num_ack_pending == 0

    async def letters(self) -> list:
        held = (await self.js.stream_info("DEAD")).state
        if not held.messages:
            return []
        return [await self.js.get_msg("DEAD", seq) for seq in range(held.first_seq, held.last_seq + 1)]


async def well(msg) -> None:
    """Nothing is wrong with it."""


async def test_what_is_handled_does_not_come_again(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        await desk.put(b"a", b"b")
        working = desk.work(well)
        await eventually(desk.done, within=10.0)
        await asyncio.sleep(1.2)  # absence: after ack_wait, 1 s, what is not acknowledged comes again
        desk.stop.set()
        await working
        assert desk.tries == {b"a": 1, b"b": 1}
        assert await desk.letters() == []


async def test_what_fails_is_tried_again_and_then_done(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        if desk.tries[msg.data] < 3:
            raise ConnectionError("away")

    async with Desk(mesh) as desk:
        await desk.put(b"a")
        working = desk.work(handle, attempts=5)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert desk.tries == {b"a": 3}
        assert await desk.letters() == []


async def test_what_always_fails_is_buried_with_a_reason_and_the_others_go_on(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        if msg.data == b"bad":
            raise ConnectionError("unknown\ncard")
        if msg.data == b"poison":
            raise PoisonMessageError("no order")

    async with Desk(mesh) as desk:
        await desk.put(b"bad", b"good", b"poison", b"fine")
        working = desk.work(handle)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert desk.tries == {b"bad": 3, b"good": 1, b"poison": 1, b"fine": 1}
        bad, poison = sorted(await desk.letters(), key=lambda letter: letter.data)
        assert (poison.data, poison.headers["Dead-Reason"], poison.headers["Dead-Subject"]) == (
            b"poison",
            "no order",
            "work.2",
        )
        assert (bad.data, bad.headers["Dead-Deliveries"], bad.headers["Trace"]) == (b"bad", "3", "kept")
        assert bad.headers["Dead-Reason"] == "ConnectionError: unknown card (attempt 3 of 3)"
        assert bad.headers["Dead-Sequence"] == "1"


async def test_a_handler_that_raises_a_cancellation_of_its_own_failed_like_any_other(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        if msg.data == b"bad":
            asked = asyncio.create_task(asyncio.Event().wait())
            asked.cancel()  # by somebody else: nobody cancels the worker
            await asked

    async with Desk(mesh) as desk:
        await desk.put(b"bad", b"good")
        working = desk.work(handle)
        await eventually(lambda: working.done() or desk.done(), within=10.0)
        desk.stop.set()
        await asyncio.gather(working)
        assert desk.tries == {b"bad": 3, b"good": 1}
        [letter] = await desk.letters()
        assert letter.headers["Dead-Reason"] == "CancelledError: (attempt 3 of 3)"


@pytest.mark.parametrize("attempts", [0, -1])
async def test_no_attempt_at_all_is_refused(attempts: int) -> None:
    async with asyncio.timeout(5.0):
        with pytest.raises(ValueError, match=f"attempts={attempts}, expected at least 1"):
            await consume_with_retries(Client(), "WORK", "desk", well, dead="dead.work", attempts=attempts)


async def test_where_nobody_keeps_the_dead_any_more_nothing_is_taken_off(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_lab.patterns.redelivery.BURY_WITHIN_S", 0.5)

    async def handle(msg) -> None:
        await desk.js.delete_stream("DEAD")
        raise PoisonMessageError("no order")

    async with Desk(mesh) as desk:
        await desk.put(b"a")
        with pytest.raises((NoStreamResponseError, TimeoutError)):  # as the servers have heard of it, or not yet
            await desk.work(handle)
        await desk.js.add_stream(name="DEAD", subjects=["dead.work"])
        info = await desk.js.consumer_info("WORK", "desk")
        assert info.num_ack_pending == 1


@pytest.mark.parametrize("word", [b"ok", b'{"error": {"code": 400, "err_code": 0, "description": "no"}}'])
async def test_whoever_replies_to_dead_letters_as_well_is_not_taken_for_their_stream(mesh: Mesh, word: bytes) -> None:
    async def answer(msg) -> None:
        await msg.respond(word)

    async with Desk(mesh) as desk, await mesh.connect(to=server_name(desk.client)) as other:
        await other.subscribe("dead.*", cb=answer)
        await other.flush()
        await desk.put(b"a")
        await buried(desk, "no order")
        assert [letter.data for letter in await desk.letters()] == [b"a"]


async def test_a_death_between_burying_and_taking_off_leaves_one_letter(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        if desk.tries[msg.data] == 1:
            # As if the worker had died after it buried the message: the letter is there, the message comes again.
            headers = {"Nats-Msg-Id": letter_id(msg)}
            await desk.js.publish("dead.work", msg.data, headers=headers)
            raise ConnectionError("died")
        raise PoisonMessageError("no order")

    async with Desk(mesh) as desk:
        await desk.put(b"a")
        working = desk.work(handle)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert len(await desk.letters()) == 1


async def test_conditions_of_the_first_stream_do_not_keep_a_letter_out(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        raise PoisonMessageError("no order")

    conditions = {
        "Nats-Msg-Id": "own",
        "Nats-Expected-Last-Subject-Sequence": "0",
        "Nats-Expected-Stream": "WORK",
        "Trace": "kept",
    }
    async with Desk(mesh) as desk:
        for number in range(2):
            await desk.js.publish(f"work.{number}", b"a", headers={**conditions, "Nats-Msg-Id": f"own-{number}"})
        working = desk.work(handle)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        letters = await desk.letters()
        assert [(letter.headers["Dead-Msg-Id"], letter.headers["Trace"]) for letter in letters] == [
            ("own-0", "kept"),
            ("own-1", "kept"),
        ]


async def buried(desk: Desk, reason: str) -> None:
    async def handle(msg) -> None:
        raise PoisonMessageError(reason)

    working = desk.work(handle)
    try:
        await eventually(lambda: working.done() or desk.done(), within=10.0)
        desk.stop.set()
        await working
    finally:
        await cancel_and_join(working)


async def test_a_reason_is_cut_and_made_sendable(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        await desk.put(b"a")
        await buried(desk, "bad \udc80 " + "order " * 200_000)
        [letter] = await desk.letters()
        assert letter.headers["Dead-Reason"].startswith("bad \\udc80 order order")
        assert len(letter.headers["Dead-Reason"]) <= 510


async def test_a_message_that_fills_its_limit_is_buried_without_its_payload(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        full = bytes(desk.client.max_payload - 100)
        await desk.js.publish("work.1", full, headers={"Trace": "kept"})
        await buried(desk, "too much")
        [letter] = await desk.letters()
        assert (letter.data or b"", letter.headers["Dead-Size"]) == (b"", str(len(full)))
        assert (await desk.js.get_msg("WORK", int(letter.headers["Dead-Sequence"]))).data == full


async def test_a_message_whose_headers_fill_what_a_stream_takes_is_buried_without_them(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        await desk.js.publish("work.1", b"a", headers={"Trace": "x" * 65_400})
        await buried(desk, "no order")
        [letter] = await desk.letters()
        assert (letter.data or b"", letter.headers["Dead-Size"]) == (b"", "1")
        assert "Trace" not in letter.headers


async def test_a_message_too_large_for_the_stream_of_letters_is_buried_without_its_payload(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        await desk.js.update_stream(name="DEAD", subjects=["dead.work"], max_msg_size=2_000)
        await desk.put(bytes(5_000), b"small")
        await buried(desk, "no order")
        large, small = await desk.letters()
        assert (large.headers["Dead-Size"], small.data) == ("5000", b"small")


async def test_what_only_its_stream_would_keep_is_not_taken_off(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        await desk.js.delete_stream("WORK")
        await desk.js.add_stream(name="WORK", subjects=["work.*"], retention="workqueue")
        await desk.js.update_stream(name="DEAD", subjects=["dead.work"], max_msg_size=2_000)
        await desk.js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=1))
        await wait_routable(desk.client, "WORK", "desk")
        await wait_routable(desk.client, "WORK")
        await desk.put(bytes(5_000))
        with pytest.raises(PublishRefusedError, match=r"5,000 bytes, is too large for a letter on 'dead.work'"):
            await buried(desk, "no order")
        assert (await desk.js.stream_info("WORK")).state.messages == 1


async def test_a_header_that_nats_py_cannot_send_is_left_out(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        reply, headers = desk.client.new_inbox(), b"NATS/1.0\r\nA/B: c\r\nTrace: kept\r\n\r\n"
        answers = await desk.client.subscribe(reply)
        # By hand: the client would refuse to send it, and another client's server takes it.
        sizes = f"{len(headers)} {len(headers) + 1}"
        desk.client._pending.append(f"HPUB work.1 {reply} {sizes}\r\n".encode() + headers + b"a\r\n")
        await desk.client.flush()
        await answers.next_msg(timeout=5)
        await buried(desk, "no order")
        [letter] = await desk.letters()
        assert letter.headers["Trace"] == "kept"
        assert "A/B" not in letter.headers


async def test_a_worker_whose_client_is_closed_ends(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        own = await mesh.connect(name="closed")
        working = asyncio.create_task(consume_with_retries(own, "WORK", "desk", well, dead="dead.work"))
        await eventually(desk.requested, within=5.0)
        await own.close()
        with pytest.raises(ConnectionClosedError):
            await asyncio.wait_for(working, 5.0)
        assert desk.client.is_connected


async def test_a_message_over_which_workers_die_is_buried_unhandled(mesh: Mesh) -> None:
    async def die(msg) -> None:
        await asyncio.Event().wait()  # the worker is cancelled here, as if it had died

    async with Desk(mesh, ack_wait=0.2) as desk:
        await desk.put(b"a")
        for number in range(1, 4):
            working = desk.work(die)
            await eventually(lambda number=number: desk.tries[b"a"] == number, within=10.0)
            await cancel_and_join(working)
        working = desk.work(die)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert desk.tries == {b"a": 3}
        [letter] = await desk.letters()
        assert letter.headers["Dead-Reason"] == "no attempt of 3 came to an end"


async def test_an_open_breaker_holds_the_message_and_buries_none(mesh: Mesh) -> None:
    refused = 0

    async def handle(msg) -> None:
        nonlocal refused
        if refused < 5:
            refused += 1
            raise CircuitOpenError("open", retry_after=0.8)

    async with Desk(mesh, ack_wait=3) as desk:
        await desk.put(b"a")
        working = desk.work(handle, attempts=1)
        await eventually(desk.done, within=20.0)
        desk.stop.set()
        await working
        assert desk.tries == {b"a": 6}
        assert await desk.letters() == []
        info = await desk.js.consumer_info("WORK", "desk")
        assert info.delivered.consumer_seq == 1, "held for 4 s with an ack_wait of 3, it was delivered once"


async def test_told_to_stop_while_a_breaker_is_open_it_gives_the_message_back(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        raise CircuitOpenError("open", retry_after=60)

    async with Desk(mesh, ack_wait=60) as desk:
        await desk.put(b"a")
        working = desk.work(handle)
        await eventually(lambda: desk.tries, within=10.0)
        desk.stop.set()
        await asyncio.wait_for(working, 5.0)
        other = await desk.js.pull_subscribe_bind("desk", stream="WORK")
        [msg] = await other.fetch(1, timeout=5)
        assert msg.metadata.num_delivered == 2


async def test_a_handler_that_acknowledges_and_then_fails_ends_no_worker(mesh: Mesh) -> None:
    async def handle(msg) -> None:
        if msg.data == b"a":
            await msg.ack()
            raise ConnectionError("after the acknowledgement")

    async with Desk(mesh) as desk:
        await desk.put(b"a", b"b")
        working = desk.work(handle)
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert desk.tries == {b"a": 1, b"b": 1}


async def test_told_to_stop_it_finishes_what_it_has_in_hand(mesh: Mesh) -> None:
    began = asyncio.Event()

    async def handle(msg) -> None:
        began.set()
        await asyncio.sleep(0.3)  # work

    async with Desk(mesh) as desk:
        await desk.put(b"a", b"b")
        working = desk.work(handle)
        await began.wait()
        desk.stop.set()
        await asyncio.wait_for(working, 5.0)
        info = await desk.js.consumer_info("WORK", "desk")
        assert (desk.tries, info.num_ack_pending, info.num_pending) == ({b"a": 1}, 0, 1)


async def test_cancelled_while_it_waits_it_gives_back_what_is_on_its_way(mesh: Mesh) -> None:
    async with Desk(mesh, ack_wait=60) as desk:
        for number in range(20):
            working = desk.work(well)
            await eventually(desk.requested, within=5.0)
            publishing = asyncio.create_task(desk.put(str(number).encode()))
            await asyncio.sleep(0.001 * (number % 5))  # pacing: another moment each time
            await cancel_and_join(working)
            await publishing
        working = desk.work(well)
        await eventually(desk.done, within=10.0)  # none of them waits for ack_wait
        await cancel_and_join(working)
        assert desk.tries == {str(number).encode(): 1 for number in range(20)}


async def test_it_outlives_a_consumer_that_has_no_leader_for_a_while(mesh: Mesh) -> None:
    async with Desk(mesh) as desk:
        working = desk.work(well)
        await desk.js.delete_consumer("WORK", "desk")
        await asyncio.sleep(0.2)  # pacing: so long nobody leads it
        await desk.js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=1))
        await wait_routable(desk.client, "WORK", "desk")
        await desk.put(b"a")
        try:
            await eventually(desk.done, within=10.0)
            assert desk.tries == {b"a": 1}
        finally:
            await cancel_and_join(working)


def test_pauses_grow_up_to_a_limit_and_differ() -> None:
    pauses = Backoff(first=0.1, factor=2.0, most=1.0, jitter=0.5)
    for attempt, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (5, 1.0), (1_000, 1.0)):
        drawn = {pauses.delay(attempt) for _ in range(50)}
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
    assert Backoff(first=0.1, jitter=0).delay(1) == 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": -5}, "first=-5, expected 0 s or more, and finite"),
        ({"first": math.nan}, "first=nan, expected 0 s or more"),
        ({"most": -0.1}, r"most=-0\.1, expected 0 s or more"),
        ({"most": math.inf}, "most=inf, expected 0 s or more, and finite"),
        ({"factor": 0.5}, r"factor=0\.5, expected 1 or more, and finite"),
        ({"factor": math.inf}, "factor=inf, expected 1 or more"),
        ({"factor": math.nan}, "factor=nan, expected 1 or more"),
        ({"jitter": 3.0}, r"jitter=3\.0, expected 0 to 1"),
        ({"jitter": -0.1}, r"jitter=-0\.1, expected 0 to 1"),
        ({"jitter": math.nan}, "jitter=nan, expected 0 to 1"),
    ],
)
def test_pauses_that_no_server_can_keep_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Backoff(**settings)


def test_the_least_and_the_most_of_each_number_of_a_pause_are_taken() -> None:
    assert Backoff(first=0, factor=1, most=0, jitter=1).delay(3) == 0


async def test_the_pause_is_kept_by_the_server(mesh: Mesh) -> None:
    at: list[float] = []

    async def handle(msg) -> None:
        at.append(time.monotonic())
        raise ConnectionError("away")

    async with Desk(mesh) as desk:
        await desk.put(b"a")
        working = desk.work(handle, backoff=Backoff(first=0.3, factor=1.0, jitter=0))
        await eventually(desk.done, within=10.0)
        desk.stop.set()
        await working
        assert all(later - earlier > 0.29 for earlier, later in pairwise(at))
