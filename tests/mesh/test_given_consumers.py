"""Whoever is given a consumer by name looks at it first, says what does not fit, and notices when it goes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from mesh_lab.errors import PoisonMessageError, UnsuitableConsumerError
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.redelivery import Backoff, consume_with_retries
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh
from mesh_lab.testing import shared_mesh

QUICK = Backoff(first=0.02, most=0.1)


mesh = shared_mesh(scope="module", clean="file", servers=1)  # enough for what is tried here


@pytest.fixture
async def js(client: Client) -> AsyncIterator[JetStreamContext]:
    """Streams A, on `a.>`, and DEAD, on `dead`; what a test leaves is deleted."""
    context = client.jetstream(timeout=5.0)
    await context.add_stream(name="A", subjects=["a.>"])
    await context.add_stream(name="DEAD", subjects=["dead"])
    yield context
    for name in ("A", "DEAD"):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await context.delete_stream(name)


async def make(client: Client, name: str, **config: Any) -> None:
    """Make a consumer of A, with settings that nats-py has no words for as well."""
    request = {"stream_name": "A", "config": {"durable_name": name, "ack_policy": "explicit", **config}}
    reply = await client.request(f"$JS.API.CONSUMER.CREATE.A.{name}", json.dumps(request).encode(), timeout=5.0)
    assert "error" not in json.loads(reply.data), reply.data
    if "deliver_subject" not in config:
        await wait_routable(client, "A", name)


async def first_batch(client: Client, stream: str, consumer: str, **options: Any) -> list[bytes]:
    async with PullConsumer(client, stream, consumer, **options) as source, aclosing(source.batches()) as batches:
        async with asyncio.timeout(10.0):
            return [msg.data for msg in await anext(batches)]


async def well(msg) -> None:
    """Nothing is wrong with it."""


async def poison(msg) -> None:
    raise PoisonMessageError("no order")


# A name that is wrong.


async def test_a_consumer_that_is_not_there_is_named_with_those_there_are(client: Client, js) -> None:
    await make(client, "billing")
    said = r"consumer not found: 'biling' of stream 'A', which has 'billing'"
    with pytest.raises(nats.js.errors.NotFoundError, match=said):
        await consume_with_retries(client, "A", "biling", well, dead="dead")
    with pytest.raises(nats.js.errors.NotFoundError, match=said):
        await first_batch(client, "A", "biling")


async def test_a_stream_that_is_not_there_is_named_with_those_there_are(client: Client, js) -> None:
    said = r"stream not found: 'B'; there are 'A', 'DEAD'"
    with pytest.raises(nats.js.errors.NotFoundError, match=said):
        await consume_with_retries(client, "B", "billing", well, dead="dead")
    with pytest.raises(nats.js.errors.NotFoundError, match=said):
        await first_batch(client, "B", "billing")
    with pytest.raises(nats.js.errors.NotFoundError, match=said):
        await anext(read_in_order(client, "B"))


@pytest.mark.parametrize(("stream", "consumer"), [("", "c"), ("A", ""), ("A.B", "c"), ("A", "*"), ("A", "my desk")])
async def test_what_is_no_name_is_refused(client: Client, stream: str, consumer: str) -> None:
    with pytest.raises(ValueError, match="expected a name without dots, blanks, slashes and wildcards"):
        await first_batch(client, stream, consumer)


# A consumer that does not fit.


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"deliver_subject": "x.y"}, "pushes to 'x.y', expected a pull consumer"),
        ({"deliver_subject": "x.y", "deliver_group": "g"}, "pushes to 'x.y' for queue group 'g', expected a pull"),
        ({"priority_policy": "overflow", "priority_groups": ["far"]}, r"has priority groups \['far'\]"),
        (
            {"priority_policy": "pinned_client", "priority_groups": ["p"], "priority_timeout": 10**10},
            r"priority groups \['p'\]",
        ),
    ],
)
async def test_a_consumer_that_brings_nothing_is_refused_by_all(client: Client, js, config, said: str) -> None:
    await make(client, "odd", **config)
    with pytest.raises(UnsuitableConsumerError, match=said):
        await first_batch(client, "A", "odd")
    with pytest.raises(UnsuitableConsumerError, match=said):
        await consume_with_retries(client, "A", "odd", well, dead="dead")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"ack_policy": "none"}, "ack_policy 'none', expected 'explicit'"),
        ({"ack_policy": "all"}, "ack_policy 'all', expected 'explicit'"),
        ({"max_deliver": 3}, "max_deliver 3, expected none or more than attempts=3"),
        ({"max_deliver": 1}, "max_deliver 1, expected none or more than attempts=3"),
        ({"max_deliver": 2, "backoff": [10**9, 10**9]}, "max_deliver 2, expected none or more than attempts=3"),
    ],
)
async def test_a_consumer_that_would_lose_messages_is_refused(client: Client, js, config, said: str) -> None:
    await make(client, "odd", **config)
    with pytest.raises(UnsuitableConsumerError, match=said):
        await consume_with_retries(client, "A", "odd", well, dead="dead", attempts=3)


async def test_a_consumer_that_delivers_more_often_than_the_attempts_is_taken(client: Client, js) -> None:
    await make(client, "fits", max_deliver=4)
    await js.publish("a.1", b"1")
    working = asyncio.create_task(consume_with_retries(client, "A", "fits", poison, dead="dead", attempts=3))
    await eventually(lambda: _letters(js), within=10.0)
    await cancel_and_join(working)


async def _letters(js: JetStreamContext) -> int:
    return (await js.stream_info("DEAD")).state.messages


@pytest.mark.parametrize(
    ("filters", "dead"),
    [
        ([], "a.dead"),
        (["a.>"], "a.dead"),
        (["a.*"], "a.dead"),
        (["a.todo", "a.*.dead"], "a.x.dead"),
        (["a.dead"], "a.dead"),
    ],
)
async def test_letters_that_would_come_back_are_refused(client: Client, js, filters: list[str], dead: str) -> None:
    await make(client, "loop", filter_subjects=filters)
    with pytest.raises(UnsuitableConsumerError, match=f"dead letters on '{dead}' would come back: stream 'A'"):
        await consume_with_retries(client, "A", "loop", poison, dead=dead)


@pytest.mark.parametrize("dead", ["", "dead.>", "dead.*", "dead..x", ">"])
async def test_letters_need_one_subject(client: Client, js, dead: str) -> None:
    await make(client, "billing")
    with pytest.raises(UnsuitableConsumerError, match="expected a subject without wildcards and empty tokens"):
        await consume_with_retries(client, "A", "billing", well, dead=dead)


async def test_letters_in_the_same_stream_beside_the_filter_are_kept(client: Client, js) -> None:
    await make(client, "beside", filter_subject="a.todo.*")
    await js.publish("a.todo.1", b"1")
    working = asyncio.create_task(consume_with_retries(client, "A", "beside", poison, dead="a.dead"))
    letter = await eventually(lambda: _last(js, "a.dead"), within=10.0)
    await cancel_and_join(working)
    assert letter.data == b"1"
    assert (await js.stream_info("A")).state.messages == 2


async def _last(js: JetStreamContext, subject: str):
    with contextlib.suppress(nats.js.errors.NotFoundError):
        return await js.get_last_msg("A", subject)


async def test_letters_that_no_stream_takes_are_refused_before_any_work(client: Client, js, monkeypatch) -> None:
    monkeypatch.setattr("mesh_lab.patterns.redelivery.LISTENED_TO_WITHIN_S", 0.5)
    await make(client, "billing")
    with pytest.raises(UnsuitableConsumerError, match=r"no stream takes dead letters on 'nowhere', expected one"):
        await consume_with_retries(client, "A", "billing", well, dead="nowhere")


# Requests that are refused.


@pytest.mark.parametrize(
    "limits",
    [{"max_batch": 10}, {"max_batch": 1}, {"max_expires": 5 * 10**9}, {"max_expires": 10**7}, {"max_bytes": 9}],
)
async def test_requests_fit_what_a_consumer_takes(client: Client, js, limits: dict[str, int]) -> None:
    await make(client, "limited", **limits)
    for n in range(30):
        await js.publish("a.x", b"%d" % n)
    got: list[bytes] = []
    async with PullConsumer(client, "A", "limited") as source, aclosing(source.batches()) as batches:
        async with asyncio.timeout(10.0):
            while len(got) < 30:
                got += [msg.data for msg in await anext(batches)]
    assert got == [b"%d" % n for n in range(30)]


async def test_a_limit_that_is_set_meanwhile_is_told_in_the_servers_words(client: Client, js) -> None:
    await make(client, "limited")
    await js.publish("a.x", b"1")
    async with PullConsumer(client, "A", "limited", prefetch=20) as source, aclosing(source.batches()) as batches:
        await anext(batches)
        await make(client, "limited", max_batch=10)
        source._requested = 0  # as when the request of half a minute has ended
        with pytest.raises(nats.js.errors.APIError, match="409 Exceeded MaxRequestBatch of 10"):
            async with asyncio.timeout(10.0):
                await anext(batches)


async def in_msgs(mesh: Mesh) -> int:
    return sum(server.monitor.varz()["in_msgs"] for server in mesh.servers.values())


async def test_an_idle_consumer_is_asked_at_most_20_times_a_second(mesh: Mesh, client: Client, js) -> None:
    tasks: list[asyncio.Task[object]] = []
    for name, config in (("short", {"max_expires": 10**6}), ("narrow", {"max_waiting": 1}), ("plain", {})):
        await make(client, name, **config)
        tasks += [asyncio.create_task(first_batch(client, "A", name)) for _ in range(2)]
        tasks.append(asyncio.create_task(consume_with_retries(client, "A", name, well, dead="dead")))
    await asyncio.sleep(1.0)  # pacing: all of them have asked
    before = await in_msgs(mesh)
    await asyncio.sleep(2.0)  # absence: so many requests do not come
    assert await in_msgs(mesh) - before <= len(tasks) * 2.0 * 20
    assert not any(task.done() for task in tasks)
    await cancel_and_join(*tasks)


# What goes meanwhile.


async def asked(js, number: int) -> bool:
    """Whether so many requests wait for messages of the consumer."""
    return (await js.consumer_info("A", "billing")).num_waiting >= number


async def test_a_stream_that_is_deleted_ends_all_who_wait_for_its_messages(client: Client, js) -> None:
    await make(client, "billing")
    waiting = [
        asyncio.create_task(first_batch(client, "A", "billing")),
        asyncio.create_task(consume_with_retries(client, "A", "billing", well, dead="dead")),
        asyncio.create_task(anext(read_in_order(client, "A"))),
    ]
    await eventually(lambda: asked(js, 2), within=10.0)
    await js.delete_stream("A")
    await asyncio.wait(waiting, timeout=10.0)
    for task, said in zip(
        waiting, ["'billing' of stream 'A' was deleted"] * 2 + ["stream not found: 'A'"], strict=True
    ):
        with pytest.raises(nats.js.errors.NotFoundError, match=said):
            await task


async def test_a_consumer_that_went_while_nobody_asked_is_missed(client: Client, js) -> None:
    await make(client, "billing")
    await js.publish("a.1", b"1")
    one = PullConsumer(client, "A", "billing", prefetch=1, ahead=False)
    async with one as source, aclosing(source.batches()) as batches:
        await anext(batches)
        await js.delete_consumer("A", "billing")  # no request stands that could be told
        with pytest.raises(nats.js.errors.NotFoundError, match="'billing' of stream 'A' was deleted"):
            async with asyncio.timeout(10.0):
                await anext(batches)


async def test_a_consumer_that_is_made_again_at_once_goes_on(client: Client, js) -> None:
    await make(client, "billing")
    waiting = asyncio.create_task(first_batch(client, "A", "billing"))
    await eventually(lambda: asked(js, 1), within=10.0)
    await js.delete_consumer("A", "billing")
    await js.publish("a.1", b"1")
    await make(client, "billing")
    assert await waiting == [b"1"]


async def test_a_push_consumer_that_takes_the_place_is_refused(client: Client, js) -> None:
    await make(client, "billing")
    waiting = asyncio.create_task(first_batch(client, "A", "billing"))
    await eventually(lambda: asked(js, 1), within=10.0)
    await js.delete_consumer("A", "billing")
    await make(client, "billing", deliver_subject="x.y")
    with pytest.raises((UnsuitableConsumerError, nats.js.errors.APIError), match=r"pushes to|push based"):
        await waiting


async def test_a_paused_consumer_is_told_and_waited_for(client: Client, js, caplog) -> None:
    await make(client, "billing")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    await js.pause_consumer("A", "billing", until)
    await js.publish("a.1", b"1")
    assert await first_batch(client, "A", "billing") == [b"1"]
    assert "consumer 'billing' of stream 'A': paused for" in caplog.text


# Slow handlers.


async def test_a_message_whose_handler_takes_long_comes_once(client: Client, js) -> None:
    backoff = {"ack_wait": 30 * 10**9, "backoff": [10**9, 5 * 10**9]}
    consumers = {"second": {"ack_wait": 10**9}, "short": {"ack_wait": 6 * 10**8}, "backoff": backoff}
    for name, config in consumers.items():
        await make(client, name, **config, max_deliver=5)
    await js.publish("a.1", b"1")
    began = list[str]()

    async def works(name: str) -> None:
        stop = asyncio.Event()

        async def handle(msg) -> None:
            began.append(name)
            await asyncio.sleep(2.0)  # work
            stop.set()

        options = {"dead": "dead", "attempts": 2, "stop": stop}
        await asyncio.gather(*(consume_with_retries(client, "A", name, handle, **options) for _ in range(3)))

    async with asyncio.timeout(20.0):
        await asyncio.gather(*map(works, consumers))
    assert sorted(began) == sorted(consumers)
    assert await _letters(js) == 0
    for name in consumers:
        info = await js.consumer_info("A", name)
        assert (info.num_ack_pending, info.num_redelivered) == (0, 0)


async def test_a_message_is_held_while_its_letter_waits_for_a_stream(client: Client, js) -> None:
    await make(client, "slow", ack_wait=5 * 10**8)
    handled: list[bytes] = []

    async def handle(msg) -> None:
        handled.append(msg.data)
        await js.delete_stream("DEAD")
        raise PoisonMessageError("no order")

    await js.publish("a.1", b"1")
    workers = [asyncio.create_task(consume_with_retries(client, "A", "slow", handle, dead="dead")) for _ in range(2)]
    await eventually(lambda: handled, within=5.0)
    await asyncio.sleep(2.0)  # absence: nobody else gets it in four times its ack_wait
    await js.add_stream(name="DEAD", subjects=["dead"])
    await eventually(lambda: _letters(js), within=10.0)
    await cancel_and_join(*workers)
    assert handled == [b"1"]


# A connection that can take nothing for a moment.


async def test_errors_of_a_connection_that_has_just_closed_leave_no_pattern(mesh: Mesh, client: Client, js) -> None:
    await make(client, "billing", ack_wait=2 * 10**9)
    own, handled = await mesh.connect(), list[bytes]()
    broken = 0

    async def handle(msg) -> None:
        nonlocal broken
        handled.append(msg.data)
        if len(handled) in (2, 4):  # as under uvloop, when the server dies: nats-py has not noticed yet
            broken = 3

    writelines = own._transport.writelines

    def failing(lines) -> None:
        nonlocal broken
        if broken:
            broken -= 1
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True …>; the handler is closed")
        writelines(lines)

    own._transport.writelines = failing
    own._flusher_task.cancel()  # it ends with the first of these errors
    working = asyncio.create_task(consume_with_retries(own, "A", "billing", handle, dead="dead"))
    for n in range(6):
        await js.publish("a.x", b"%d" % n)
    await eventually(lambda: len(set(handled)) == 6 or working.done(), within=15.0)
    await cancel_and_join(working)
    assert working.cancelled(), working.exception()
    own._transport.writelines = writelines


async def test_a_worker_that_may_only_take_and_acknowledge_needs_no_more(client: Client) -> None:
    may = '["$JS.API.CONSUMER.MSG.NEXT.A.desk", "$JS.ACK.A.desk.>", "dead"]'
    users = f"{{ user: boss, password: boss }}, {{ user: desk, password: desk, permissions: {{ publish: {may} }} }}"
    async with await start_mesh(servers=1, users_config=users) as mesh:
        boss = await mesh.connect(user="boss", password="boss")
        context = boss.jetstream()
        await context.add_stream(name="A", subjects=["a.>"])
        await context.add_consumer("A", ConsumerConfig(durable_name="desk"))
        await context.publish("a.1", b"1")

        async def ignore(_err: Exception) -> None:
            """The server says what this user may not do."""

        desk = await mesh.connect(user="desk", password="desk", error_cb=ignore)
        handled = asyncio.Event()

        async def handle(msg) -> None:
            handled.set()

        working = asyncio.create_task(consume_with_retries(desk, "A", "desk", handle, dead="dead"))
        async with asyncio.timeout(15.0):
            await handled.wait()
        await cancel_and_join(working)
