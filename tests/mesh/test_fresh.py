"""What a cell makes anew is empty, whatever its last run left."""

from nats.aio.client import Client

from mesh_lab.notebook import fresh


async def test_a_stream_and_a_consumer_that_are_made_again_begin_again(client: Client) -> None:
    js = client.jetstream(timeout=5.0)
    for ack_wait in (10, 20):
        await fresh.stream(client, "FRESH", ["fresh.*"], num_replicas=3)
        assert (await js.publish("fresh.1", b"order")).seq == 1
        for _ in range(2):
            group = await fresh.consumer(client, "FRESH", "workers", ack_wait=ack_wait)
            (msg,) = await group.fetch(1, timeout=5.0)
            assert (msg.data, msg.metadata.num_delivered) == (b"order", 1)
        assert (await group.consumer_info()).config.ack_wait == ack_wait
    await js.delete_stream("FRESH")
