"""What the checks of notebook 09 share: orders to work on, and the way in."""

from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from mesh_lab.patterns import retry, wait_routable
from mesh_lab.servers.mesh import Mesh


async def orders_to_ship(own: Mesh) -> Client:
    """Let a stream ORDERS hold one order for each of its consumers, and return who made it."""
    keeper = await own.connect(name="keeper")
    js = keeper.jetstream(timeout=3.0)
    await retry(lambda: js.add_stream(name="ORDERS", subjects=["orders.>"]))
    for name in ("billing", "shipping"):
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name=name, filter_subject="orders.*.*.placed"))
        await wait_routable(keeper, "ORDERS", name)
    await js.publish("orders.eu.000001.placed", b"{}")
    return keeper


async def enter(own: Mesh, seed: str, complaints: list[str], **options: Any) -> Client:
    """Connect with a key, once, and note what the server complains of."""

    async def note(error: Exception) -> None:
        complaints.append(str(error))

    return await nats.connect(own.urls, nkeys_seed_str=seed, error_cb=note, allow_reconnect=False, **options)


async def lets_in(own: Mesh, seed: str) -> bool:
    """Whether a server lets a key in."""
    try:
        client = await enter(own, seed, [])
    except nats.errors.Error:
        return False
    await client.close()
    return True
