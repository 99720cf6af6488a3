"""Paced load on real servers: every end of a message is told apart, and a stall is seen by whoever was due in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.errors import ProcessEndedError
from mesh_lab.measure.paced import PacedRun, paced_load
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

ANSWERED, UNANSWERED, REFUSED, NOBODY = "answered", "unanswered", "refused", "nobody there"
OnMessage = Callable[[Msg], Awaitable[None]]


def near(mesh: Mesh) -> dict[str, Any]:
    """Return options for the server that the test's own client is at, so that interest needs no time to travel."""
    return {**mesh.connect_options(to="n1"), "dont_randomize": True}


@pytest.fixture
async def desk(mesh: Mesh) -> AsyncIterator[Client]:
    async with await mesh.connect(name="desk", to="n1") as connected:
        yield connected


async def listen(client: Client, subject: str, callback: OnMessage) -> None:
    await client.subscribe(subject, cb=callback)
    await client.flush()


@pytest.fixture
async def stream(desk: Client) -> AsyncIterator[JetStreamContext]:
    """A stream that takes 30 messages and refuses the next one."""
    js = desk.jetstream(timeout=10)
    await js.add_stream(name="PACED", subjects=["paced.store.*"], max_msgs=30, discard="new")
    await wait_routable(desk, "PACED")
    yield js
    await js.delete_stream("PACED")


async def test_every_request_is_answered_and_its_times_are_in_order(mesh: Mesh, desk: Client) -> None:
    asked: list[str] = []

    async def answer(msg: Msg) -> None:
        asked.append(msg.subject)
        await msg.respond(b"12")

    await listen(desk, "paced.ask.*", answer)
    run = await paced_load(near(mesh), subject="paced.ask.{n}", rate_per_s=200, seconds=0.5)
    assert (run.messages, run.answered, run.refused, run.lost) == (100, 100, 0, 0)
    assert asked == [f"paced.ask.{n}" for n in range(100)]
    assert list(run.due_ns) == [5_000_000 * n for n in range(100)]
    for due, sent, done in zip(run.due_ns, run.sent_ns, run.done_ns, strict=True):
        assert due <= sent < done <= run.gave_up_ns
    assert run.percentile_ms(50) < run.percentile_ms(100) < 1_000
    assert not run.closed


async def test_an_answer_that_says_error_is_a_refusal(mesh: Mesh, desk: Client) -> None:
    async def answer(msg: Msg) -> None:
        if msg.data == b"kind-of-blue":
            headers = {"Nats-Service-Error": "no such CD", "Nats-Service-Error-Code": "404"}
            await desk.publish(msg.reply, headers=headers)
        else:
            await msg.respond(b"12")

    await listen(desk, "paced.stock", answer)
    titles = [b"homogenic", b"ok-computer", b"kind-of-blue"]
    run = await paced_load(near(mesh), subject="paced.stock", rate_per_s=300, seconds=0.1, payloads=titles)
    assert list(run.frame()["outcome"]) == [ANSWERED, ANSWERED, REFUSED] * 10
    assert (run.answered, run.refused, run.lost) == (20, 10, 0)
    assert run.share_within(10_000) == pytest.approx(2 / 3)


async def test_a_stream_acknowledges_what_it_stores_and_refuses_the_rest(mesh: Mesh, stream: JetStreamContext) -> None:
    run = await paced_load(near(mesh), subject="paced.store.{n}", rate_per_s=400, seconds=0.1, until="ack")
    assert list(run.frame()["outcome"]) == [ANSWERED] * 30 + [REFUSED] * 10
    assert (await stream.stream_info("PACED")).state.messages == 30
    assert (await stream.get_msg("PACED", 30)).subject == "paced.store.29"


async def test_a_services_reply_is_no_acknowledgement(mesh: Mesh, desk: Client) -> None:
    async def answer(msg: Msg) -> None:
        await msg.respond(b'{"copies": 3, "seq": 1}')

    await listen(desk, "paced.shelf.*", answer)
    load: dict[str, Any] = {"options": near(mesh), "subject": "paced.shelf.{n}", "rate_per_s": 200, "seconds": 0.1}
    assert (await paced_load(**load, until="ack")).refused == 20
    assert (await paced_load(**load, until="reply")).answered == 20


async def test_what_was_published_is_received_and_no_other_message_counts(mesh: Mesh, desk: Client) -> None:
    load = paced_load(near(mesh), subject="paced.heard.{n}", rate_per_s=500, seconds=0.5, until="received")
    running = asyncio.create_task(load)
    while not running.done():
        for payload in (b"", b"short", b"not the run's mark"):
            await desk.publish("paced.heard.0", payload)
        await desk.flush()
    run = await running
    assert (run.messages, run.answered, run.lost) == (250, 250, 0)
    assert run.percentile_ms(100) > 0


async def test_no_responder_is_distinguished_from_no_reply(mesh: Mesh, desk: Client) -> None:
    async def stay_silent(msg: Msg) -> None:
        return

    await listen(desk, "paced.silent", stay_silent)
    load: dict[str, Any] = {"options": near(mesh), "rate_per_s": 100, "seconds": 0.1, "patience": 2.0}
    absent = await paced_load(**load, subject="paced.absent")
    silent = await paced_load(**load, subject="paced.silent")
    assert list(absent.frame()["outcome"]) == [NOBODY] * 10
    assert list(silent.frame()["outcome"]) == [UNANSWERED] * 10
    assert (absent.lost, silent.lost) == (10, 10)
    assert absent.gave_up_ns < silent.gave_up_ns  # a requester that gets "no responders" need not wait
    assert silent.gave_up_ns - silent.sent_ns[-1] >= 2_000_000_000
    with pytest.raises(ValueError, match="of 0 answered messages"):
        silent.percentile_ms(50)


async def test_one_message_that_is_never_answered_is_lost_and_the_others_are_not(mesh: Mesh, desk: Client) -> None:
    async def forget_one(msg: Msg) -> None:
        if not msg.subject.endswith(".7"):
            await msg.respond(b"12")

    await listen(desk, "paced.forget.*", forget_one)
    load: dict[str, Any] = {"options": near(mesh), "subject": "paced.forget.{n}", "rate_per_s": 100, "seconds": 0.2}
    opened = await paced_load(**load, patience=1.0)
    closed = await paced_load(**load, patience=1.0, closed=True)
    for run in (opened, closed):
        assert (run.answered, run.lost) == (19, 1)
        assert run.frame()["outcome"][7] == UNANSWERED
        assert run.share_within(60_000) == 0.95
    # The closed loop sat there until its patience ended, and the eighth left late; the open loop went on.
    assert closed.sent_ns[8] - closed.sent_ns[7] >= 1_000_000_000
    assert opened.sent_ns[8] - opened.sent_ns[7] < 1_000_000_000


async def test_an_answer_counts_however_late_while_the_run_lasts(mesh: Mesh, desk: Client) -> None:
    first: list[Msg] = []

    async def answer_the_first_at_the_end(msg: Msg) -> None:
        if msg.subject.endswith(".0"):
            first.append(msg)
            return
        await msg.respond(b"12")
        if msg.subject.endswith(".60"):
            await first[0].respond(b"12")

    await listen(desk, "paced.late.*", answer_the_first_at_the_end)
    run = await paced_load(near(mesh), subject="paced.late.{n}", rate_per_s=100, seconds=0.8, patience=5.0)
    assert run.lost == 0
    assert run.latencies_ms()[0] >= 600


async def test_a_second_answer_changes_nothing(mesh: Mesh, desk: Client) -> None:
    async def answer_twice(msg: Msg) -> None:
        await msg.respond(b"12")
        await desk.publish(msg.reply, headers={"Nats-Service-Error-Code": "500"})

    await listen(desk, "paced.twice", answer_twice)
    run = await paced_load(near(mesh), subject="paced.twice", rate_per_s=200, seconds=0.1)
    assert (run.answered, run.refused, run.lost) == (20, 0, 0)


@pytest.mark.alone
@pytest.mark.parametrize("closed", [True, False])
async def test_only_the_closed_loop_waits_for_an_answer_before_it_asks_again(
    mesh: Mesh, desk: Client, closed: bool
) -> None:
    asked, most = 0, 0
    answering: set[asyncio.Task[None]] = set()

    async def answer(msg: Msg) -> None:
        nonlocal asked
        await asyncio.sleep(0.02)  # work
        asked -= 1
        await msg.respond(b"12")

    async def take(msg: Msg) -> None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        answering.add(asyncio.create_task(answer(msg)))

    await listen(desk, "paced.slow", take)
    run = await paced_load(near(mesh), subject="paced.slow", rate_per_s=200, seconds=0.25, closed=closed)
    assert (run.answered, run.closed) == (50, closed)
    assert (most == 1) is closed
    # 50 answers of 20 ms, one after the other, need 1 s: four times as long as the messages are due.
    assert (run.sent_ns[-1] > 3 * run.due_ns[-1]) is closed
    assert (max(run.done_ns) > 3 * run.due_ns[-1]) is closed


async def test_random_arrivals_come_again_with_their_seed(mesh: Mesh) -> None:
    load: dict[str, Any] = {
        "options": near(mesh),
        "subject": "paced.random",
        "rate_per_s": 500,
        "seconds": 0.4,
        "until": "received",
        "arrivals": "random",
    }
    first, again, other = [await paced_load(**load, seed=seed) for seed in (3, 3, 4)]
    assert list(first.due_ns) == list(again.due_ns)
    assert list(first.due_ns) != list(other.due_ns)
    gaps = {after - before for before, after in zip(first.due_ns, first.due_ns[1:], strict=False)}
    assert len(gaps) > 150
    assert (first.messages, first.answered) == (200, 200)
    assert all(sent >= due for due, sent in zip(first.due_ns, first.sent_ns, strict=True))


async def paused_in_the_middle(mesh: Mesh, *, closed: bool) -> PacedRun:
    """Run 1,000 messages over 2 s; the server is paused for the 0.5 s after the 500th."""
    options = {**mesh.connect_options(), "name": "watch"}
    watch = await mesh.connect(name="watch")
    begun, stalls = asyncio.Event(), []

    async def count(msg: Msg) -> None:
        if msg.subject == "paced.stall.500":
            begun.set()

    async def stall() -> None:
        await begun.wait()
        await mesh.pause("n1")
        try:
            await asyncio.sleep(0.5)  # work: a stall of half a second
            stalls.append("over")
        finally:
            await mesh.resume("n1")

    await listen(watch, "paced.stall.*", count)
    stalling = asyncio.create_task(stall())
    load = {"subject": "paced.stall.{n}", "rate_per_s": 500, "seconds": 2, "until": "received", "closed": closed}
    run = await paced_load(options, **load)
    await stalling
    await watch.close()
    assert stalls == ["over"]
    assert (run.answered, run.lost) == (1_000, 0)
    return run


@pytest.mark.alone
async def test_a_stall_is_seen_by_all_who_were_due_in_it_and_the_closed_loop_hides_it() -> None:
    async with await start_mesh() as mesh:
        opened = await paused_in_the_middle(mesh, closed=False)
        closed = await paused_in_the_middle(mesh, closed=True)
    # Due in the stall: 250 of 1,000, of whom those at its beginning waited longest.
    for run in (opened, closed):
        assert sum(latency > 100 for latency in run.latencies_ms()) > 150
        assert run.percentile_ms(99) > 400
    # The closed loop asked once during the stall, and has one bad answer to show (a few on a busy machine).
    hidden = closed.latencies_ms(since="sent")
    assert 1 <= sum(latency > 100 for latency in hidden) < 15
    assert max(hidden) > 400
    assert sorted(hidden)[979] < opened.percentile_ms(98) / 4
    # In the open loop the messages left when they were due, so both clocks agree.
    assert opened.lateness_ms(80) < 100
    assert sum(latency > 100 for latency in opened.latencies_ms(since="sent")) > 150
    quarters = [max(opened.latencies_ms()[n : n + 125]) for n in range(0, 1_000, 125)]
    assert min(quarters) < max(quarters) / 4


async def test_a_generator_that_cannot_keep_its_rate_says_so_and_still_sends_everything(mesh: Mesh) -> None:
    load = {"subject": "paced.fast", "rate_per_s": 1_000_000, "seconds": 0.05, "until": "received"}
    run = await paced_load(near(mesh), **load)
    assert (run.messages, run.answered) == (50_000, 50_000)
    assert run.lateness_ms() > 50
    assert "those latencies are the generator's own" in repr(run)
    assert run.answered / (max(run.done_ns) / 1e9) < 500_000


async def test_a_wrong_password_is_an_error_and_no_result(mesh: Mesh) -> None:
    options = {**near(mesh), "password": "made-up"}
    with pytest.raises(ProcessEndedError, match=r"no server let us in: .*Authorization"):
        await paced_load(options, subject="paced.ask", rate_per_s=100, seconds=0.1)


async def test_a_closed_loop_that_waits_too_often_says_what_it_waited_for(
    mesh: Mesh, desk: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stay_silent(msg: Msg) -> None:
        return

    await listen(desk, "paced.silent", stay_silent)
    monkeypatch.setattr("mesh_lab.measure.paced.LATE_BY_S", 0.5)
    load: dict[str, Any] = {"subject": "paced.silent", "rate_per_s": 100, "seconds": 1, "closed": True}
    with pytest.raises(ProcessEndedError, match="was waiting for the answers"):
        await paced_load(near(mesh), **load, patience=0.2)
