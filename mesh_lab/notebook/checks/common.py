"""What checks of several exercises need to look at a connection from outside."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns import eventually, flush_through
from mesh_lab.servers.mesh import Mesh

SOON_S = 0.5  # for what comes at once, or never
LONG_S = 1.5  # an answer that is not back by then does not come back


def own_subject(client: Client) -> str:
    """Return a subject that nobody else uses."""
    return client.new_inbox().replace("_INBOX", "check")


async def returns_within(limit: float, call: Awaitable[Any]) -> bool:
    """Say whether a call returns in time.

    Raises:
        TimeoutError: The call raised one of its own.
    """
    try:
        async with asyncio.timeout(limit) as deadline:
            await call
    except TimeoutError:
        if not deadline.expired():
            raise
        return False
    return True


async def connect(mesh: Mesh, name: str) -> Client:
    """Connect to the server that the lesson's shop is at, so that interest needs no time to travel."""
    return await mesh.connect(name=name, to=next(iter(mesh.servers)))


async def subscriptions(mesh: Mesh, client: Client) -> int:
    """Return how many subscriptions a client has, by its server's own count; 0 where that cannot be asked."""
    await flush_through(client)
    at = client.connected_url
    monitor = next((s.monitor for s in mesh.servers.values() if at is not None and s.port == at.port), None)
    if monitor is None:
        return 0
    found = (await asyncio.to_thread(monitor.connz, f"cid={client.client_id}"))["connections"]
    return sum(int(connection["subscriptions"]) for connection in found)


async def nobody_on(client: Client, subject: str) -> bool:
    """Say whether nobody is subscribed."""

    async def refused() -> bool:
        try:
            await client.request(subject, b"late", timeout=0.2)
        except nats.errors.NoRespondersError:
            return True
        except nats.errors.TimeoutError:
            return False
        return False

    try:
        return await eventually(refused, within=SOON_S)
    except NotReadyError:
        return False
