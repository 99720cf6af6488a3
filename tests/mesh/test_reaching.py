"""What was made a moment ago on another server is used in the next line, and answers."""

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from mesh_lab.patterns.reaching import reachable


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_reachable_stream_and_consumer_answer_at_once(client: Client, replicas: int) -> None:
    js = client.jetstream(timeout=5.0)
    for n in range(10):
        name = f"REACH{replicas}-{n}"
        await js.add_stream(name=name, subjects=[f"{name}.*.>"], num_replicas=replicas)
        await reachable(client, name)
        assert (await js.publish(f"{name}.a.b", b"order")).seq == 1
        consumer = await js.pull_subscribe(f"{name}.>", durable="worker", stream=name)
        await reachable(client, name, "worker")
        (msg,) = await consumer.fetch(1, timeout=5.0)
        assert (msg.data, msg.metadata.num_delivered) == (b"order", 1)
        await js.delete_stream(name)


async def test_asking_stores_and_takes_nothing(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    await js.create_key_value(bucket="REACH", direct=True)
    await js.add_consumer("KV_REACH", durable_name="worker")
    await reachable(client, "KV_REACH")
    await reachable(client, "KV_REACH", "worker")
    info = await js.consumer_info("KV_REACH", "worker")
    assert (await js.stream_info("KV_REACH")).state.last_seq == 0
    assert (info.num_waiting, info.delivered.consumer_seq) == (0, 0)
    await js.delete_key_value("REACH")


async def test_a_stream_that_does_not_exist_is_named_at_once(client: Client) -> None:
    with pytest.raises(NotFoundError, match="stream not found"):
        await reachable(client, "NOWHERE")
