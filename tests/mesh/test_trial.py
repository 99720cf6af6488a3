"""What a check is given is gone afterwards, and what an answer leaves behind is found, on real servers."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time

import pytest
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError

from mesh_lab.notebook import exercises
from mesh_lab.notebook.exercises import check, exercise
from mesh_lab.notebook.trial import NotYet, Trial
from mesh_lab.patterns import eventually, flush_through, wait_routable
from mesh_lab.servers.start import newest_mesh


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path):
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))
    monkeypatch.setattr(exercises, "_exercises", {})
    monkeypatch.setattr(exercises, "_load", lambda notebook: None)


@pytest.fixture
def handed_a_client():
    """An exercise whose check hands a client to the answer and looks at nothing."""

    @exercise("1.1", title="do something", hint="")
    async def does_something(trial, answer):
        await answer(await trial.client())
        return "something was done"


async def leaves_a_subscription(nc):
    await nc.subscribe("orders.eu.*.placed")


async def leaves_an_inbox(nc):
    await nc.subscribe(nc.new_inbox())


async def leaves_an_inbox_for_many(nc):
    async def take(msg): ...

    await nc.subscribe(f"{nc.new_inbox()}.*", cb=take)


async def leaves_an_inbox_for_many_without_a_callback(nc):
    await nc.subscribe(f"{nc.new_inbox()}.*")


async def leaves_a_watcher(nc):
    async for msg in (await nc.subscribe("orders.>")).messages:
        raise AssertionError(msg)


async def leaves_a_task(nc):
    leaves_a_task.kept = asyncio.create_task(leaves_a_watcher(nc))


async def leaves_a_connection(nc):
    leaves_a_connection.kept = await newest_mesh().connect(name="mine")


async def leaves_a_stream(nc):
    await nc.jetstream().add_stream(name="LEFT", subjects=["left"])


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (leaves_a_subscription, "a subscription to orders.eu.*.placed"),
        (leaves_an_inbox, "an inbox subscribed"),
        (leaves_an_inbox_for_many, "an inbox subscribed"),
        (leaves_an_inbox_for_many_without_a_callback, "an inbox subscribed"),
        (leaves_a_task, "a task running, leaves_a_watcher()"),
        (leaves_a_connection, "a connection named 'mine'"),
        (leaves_a_stream, "the stream LEFT"),
    ],
)
async def test_what_an_answer_leaves_behind_is_named(mesh, client, handed_a_client, answer, left):
    assert repr(await check("1.1", answer)) == f"not yet: it left {left}; expected nothing left behind"
    if answer is leaves_a_connection:
        await answer.kept.close()
    if answer is leaves_a_stream:
        await client.jetstream().delete_stream("LEFT")


async def test_a_consumer_that_is_left_on_a_stream_of_the_lesson_is_named(mesh, client, handed_a_client):
    async def leaves_a_consumer(nc):
        await nc.jetstream().add_consumer("LESSON", ConsumerConfig(durable_name="mine"))

    js = client.jetstream()
    await js.add_stream(name="LESSON", subjects=["lesson"])
    try:
        verdict = repr(await check("1.1", leaves_a_consumer))
        assert verdict.startswith("not yet: it left the consumer mine of the stream LESSON; ")
    finally:
        await js.delete_stream("LESSON")


async def test_whatever_ends_what_it_began_leaves_nothing(mesh, handed_a_client):
    async def tidy(nc):
        async with await newest_mesh().connect(name="mine") as mine:
            sub = await mine.subscribe("orders.>")
            await sub.unsubscribe()
        js = nc.jetstream()
        await js.add_stream(name="TIDY", subjects=["tidy"])
        await wait_routable(nc, "TIDY")
        await js.publish("tidy", b"")  # a reply comes to nats-py's own inbox, which stays subscribed
        await js.delete_stream("TIDY")

    assert repr(await check("1.1", tidy)) == "correct: something was done"


async def test_what_was_there_before_is_not_the_answer_s(mesh, client, handed_a_client):
    await client.subscribe("orders.>")

    async def idle(nc):
        await nc.flush()

    assert (await check("1.1", idle)).state == "correct"


async def test_nothing_is_looked_for_on_servers_without_monitoring(mesh, handed_a_client, monkeypatch):
    for server in mesh.servers.values():
        monkeypatch.setattr(server, "monitor", None)
    assert (await check("1.1", leaves_a_subscription)).state == "correct"


async def test_what_a_trial_gives_is_gone_afterwards(mesh, client):
    trial = Trial("1.1", mesh)
    nc = await trial.client()
    js = await trial.stream(nc, "ORDERS-1-1", subjects=["orders11.*"])
    await js.publish("orders11.1", b"")
    own = await trial.client(on=await trial.own_mesh())
    assert newest_mesh() is mesh
    assert nc.connected_url.port != own.connected_url.port
    await trial.close()
    assert nc.is_closed
    assert own.is_closed
    with pytest.raises(NotFoundError, match="stream not found"):
        await client.jetstream().stream_info("ORDERS-1-1")


async def test_a_stream_of_an_earlier_try_is_removed_first(mesh, client):
    await client.jetstream().add_stream(name="WEEK", subjects=["week"])
    await wait_routable(client, "WEEK")
    trial = Trial("1.1", mesh)
    js = await trial.absent(await trial.client(), "WEEK")
    with pytest.raises(NotFoundError, match="stream not found"):
        await js.stream_info("WEEK")
    await trial.close()


async def test_a_rival_is_a_moment_earlier_whatever_the_client_sends(mesh, client):
    trial, begun = Trial("3.3", mesh), []

    async def rival(subject):
        begun.append(subject)
        await client.publish("check.rival", b"rival")
        await flush_through(client)

    late = await trial.rivalled(rival)
    sub = await client.subscribe("check.>")
    await flush_through(client)
    # One at a time: the rival comes before its own message; the one before may still be on its way through the relay.
    await late.publish("check.plain", b"PUB check.no 0\r\n")
    arrived = [await sub.next_msg(timeout=5.0) for _ in range(2)]
    await late.publish("check.headers", b"", headers={"Name": "Łukasz"})
    arrived += [await sub.next_msg(timeout=5.0) for _ in range(2)]
    await late.publish("check.replied", b"", reply="check.reply")
    await eventually(lambda: len(begun) == 3, within=5.0)
    await trial.close()
    await sub.unsubscribe()
    assert [msg.subject for msg in arrived] == ["check.rival", "check.plain", "check.rival", "check.headers"]
    assert (arrived[1].data, arrived[3].headers) == (b"PUB check.no 0\r\n", {"Name": "Łukasz"})
    assert begun == ["check.plain", "check.headers", "check.replied"]


async def test_a_subscription_left_on_a_rivalled_client_is_named(mesh):
    @exercise("1.1", title="do something", hint="")
    async def does_something(trial, answer):
        await answer(await trial.rivalled(lambda subject: asyncio.sleep(0)))
        return "something was done"

    assert "it left a subscription to orders.eu.*.placed" in repr(await check("1.1", leaves_a_subscription))


async def test_a_client_hears_what_its_server_complains_of(mesh):
    trial = Trial("10.1", mesh)
    own = await trial.own_mesh(
        users_config='{ user: "till", password: "12345678", permissions: { publish: "orders" } }'
    )
    till = await trial.enter(own, user="till", password="12345678")
    await till.publish("orders", b"")
    assert await trial.complaints(till) == []
    await till.publish("refunds", b"")
    [complaint] = await trial.complaints(till)
    assert 'permissions violation for publish to "refunds"' in complaint.lower()
    assert await trial.complaints(till) == []
    await trial.close()


@pytest.mark.parametrize(
    ("value", "kinds", "seen"),
    [(None, str, "None was returned"), (True, int, "bool was returned"), ({}, set, "dict was returned")],
)
def test_a_value_of_another_kind_is_named(value, kinds, seen):
    with pytest.raises(NotYet, match=f"^{seen}; expected a number$"):
        Trial.kind(value, kinds, "a number")


def test_true_is_not_one():
    Trial.equal(1, 1, "")
    with pytest.raises(NotYet, match="for a paid order, 1 was returned; expected True"):
        Trial.equal(1, True, "for a paid order, ")


async def test_what_does_not_come_soon_is_said_as_it_is_at_the_end():
    came = []
    with pytest.raises(NotYet, match="0 of 3 came; expected all"):
        await Trial.soon(lambda: len(came) == 3, lambda: f"{len(came)} of 3 came", "all", within=0.05)


async def test_a_call_that_loses_a_cancellation_is_ended_all_the_same():
    async def loses_one():  # as asyncio.wait_for of Python 3.11 may, when the result comes at that moment
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with asyncio.timeout(10.0):
        with pytest.raises(NotYet, match="it hung"):
            await Trial.returns(loses_one(), "it hung", "its end", within=0.05)


async def test_a_call_that_does_not_return_is_told_from_one_that_times_out():
    async def impatient():
        raise TimeoutError("of its own")

    with pytest.raises(NotYet, match="it hung; expected its end"):
        await Trial.returns(asyncio.Event().wait(), "it hung", "its end", within=0.05)
    with pytest.raises(TimeoutError, match="of its own"):
        await Trial.returns(impatient(), "it hung", "its end")


CLOCK = """
from mesh_lab.notebook.trial import MachineClock
with MachineClock() as clock:
    print("up", flush=True)
    input()
print(clock.longest_pause_s)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system does not stop processes")
def test_a_pause_of_the_machine_is_noted():
    with subprocess.Popen([sys.executable, "-c", CLOCK], stdin=-1, stdout=-1, text=True) as program:
        assert program.stdout.readline() == "up\n"
        program.send_signal(signal.SIGSTOP)
        time.sleep(0.4)  # work: the machine stands still
        program.send_signal(signal.SIGCONT)
        said, _ = program.communicate("go on\n", timeout=20)
    assert float(said) > 0.3
