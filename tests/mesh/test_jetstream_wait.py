"""What was made a moment ago on another server is used in the next line, and answers."""

import asyncio

import pytest
from nats.aio.client import Client
from nats.js.api import StreamInfo
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.servers.start import start_mesh


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_reachable_stream_and_consumer_answer_at_once(client: Client, replicas: int) -> None:
    js = client.jetstream(timeout=5.0)
    for n in range(10):
        name = f"REACH{replicas}-{n}"
        await js.add_stream(name=name, subjects=[f"{name}.*.>"], num_replicas=replicas)
        await wait_routable(client, name)
        assert (await js.publish(f"{name}.a.b", b"order")).seq == 1
        consumer = await js.pull_subscribe(f"{name}.>", durable="worker", stream=name)
        await wait_routable(client, name, "worker")
        (msg,) = await consumer.fetch(1, timeout=5.0)
        assert (msg.data, msg.metadata.num_delivered) == (b"order", 1)
        await js.delete_stream(name)


async def test_asking_stores_and_takes_nothing(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    await js.create_key_value(bucket="REACH", direct=True)
    await wait_routable(client, "KV_REACH")
    await js.add_consumer("KV_REACH", durable_name="worker")
    await wait_routable(client, "KV_REACH", "worker")
    info = await js.consumer_info("KV_REACH", "worker")
    assert (await js.stream_info("KV_REACH")).state.last_seq == 0
    assert (info.num_waiting, info.delivered.consumer_seq) == (0, 0)
    await js.delete_key_value("REACH")


async def test_a_stream_that_does_not_exist_is_named(client: Client) -> None:
    with pytest.raises(NotFoundError, match="stream not found"):
        await wait_routable(client, "NOWHERE")


async def test_a_request_that_nobody_answers_is_made_again() -> None:
    asked = 0
    async with await start_mesh(servers=3) as mesh, await mesh.connect(to="n1") as client:
        js = client.jetstream(timeout=0.5)

        async def make() -> StreamInfo:
            nonlocal asked
            asked += 1
            return await js.add_stream(name="AGAIN", subjects=["again"], num_replicas=3)

        for name in ("n2", "n3"):  # one of three servers is no majority
            await mesh.pause(name)
        with pytest.raises((TimeoutError, ServiceUnavailableError), match=r"timeout|temporarily unavailable"):
            await retry(make, within=3.0)
        assert asked > 1
        before = asked
        waiting = asyncio.create_task(retry(make, within=30.0))
        await eventually(lambda: asked > before + 1, within=5.0)
        for name in ("n2", "n3"):
            await mesh.resume(name)
        assert (await waiting).config.name == "AGAIN"


async def test_a_refusal_that_passes_is_asked_again(client: Client) -> None:
    refusals = [APIError(code=409, err_code=10158, description="duplicate message id is in process")]

    async def ask() -> str:
        if refusals:
            raise refusals.pop()
        return "stored"

    assert await retry(ask) == "stored"
    refusals.append(APIError(code=429, err_code=10167, description="too many requests"))
    with pytest.raises(APIError):
        await retry(ask, within=0.0)


async def test_a_refusal_is_an_answer(client: Client) -> None:
    asked = 0

    async def ask() -> StreamInfo:
        nonlocal asked
        asked += 1
        return await client.jetstream(timeout=5.0).stream_info("NOWHERE")

    with pytest.raises(NotFoundError, match="stream not found"):
        await retry(ask)
    assert asked == 1
