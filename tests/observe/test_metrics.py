"""What the exporter adds to what servers report."""

import time

from nats.js.api import ConsumerConfig

from mesh_lab.observe.metrics import MeshMetrics
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.start import start_mesh


def ages(metrics: MeshMetrics) -> dict[str, float]:
    """Return how long the oldest message of each consumer waits, by the consumer's name."""
    [found] = [family for family in metrics.collect() if family.name == "nats_consumer_oldest_waiting_s"]
    return {sample.labels["consumer_name"]: sample.value for sample in found.samples}


async def test_the_oldest_message_that_a_consumer_has_not_acknowledged_grows_old():
    async with await start_mesh(servers=1) as mesh:
        client = await mesh.connect(name="till")
        js = client.jetstream()
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        for worker in ("quick", "idle"):
            await js.add_consumer("ORDERS", ConsumerConfig(durable_name=worker, ack_policy="explicit"))
        metrics = MeshMetrics({name: server.monitor for name, server in mesh.servers.items()})
        assert ages(metrics) == {"quick": 0.0, "idle": 0.0}
        quick = await js.pull_subscribe_bind("quick", "ORDERS")
        began = time.monotonic()
        await js.publish("orders.eu.000001.placed", b"first")
        await eventually(lambda: ages(metrics)["idle"] > 0.2, within=10.0)
        for msg in await quick.fetch(1, timeout=5.0):
            await msg.ack_sync()
        await js.publish("orders.eu.000002.placed", b"second")
        await eventually(lambda: 0 < ages(metrics)["quick"] < ages(metrics)["idle"], within=10.0)
        assert ages(metrics)["idle"] <= time.monotonic() - began
        for msg in await quick.fetch(1, timeout=5.0):
            await msg.ack_sync()
        assert ages(metrics)["quick"] == 0.0
        before = ages(metrics)["idle"]
        await js.delete_stream("ORDERS")
        await js.add_stream(name="ORDERS", subjects=["orders.>"])
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name="idle", ack_policy="explicit"))
        for _ in range(3):
            await js.publish("orders.eu.000003.placed", b"third")
        assert ages(metrics)["idle"] < before
