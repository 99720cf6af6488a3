"""What the checks of notebook 10 share: accounts announced, users joined, limits reached."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.js.errors import APIError

from mesh_lab.patterns import eventually, retry
from mesh_lab.security import Account, User
from mesh_lab.servers.mesh import Mesh

LIMITS = {"connections": 3, "subscriptions": 20, "bytes in a message": 65_536, "streams": 2, "bytes on disk": 5_000_000}


async def announce(own: Mesh, *accounts: Account) -> str:
    """Give the server accounts, and return what it objects to, or nothing."""
    async with await own.connect(system=True) as admin:
        for account in accounts:
            answer = await admin.request("$SYS.REQ.CLAIMS.UPDATE", account.token().encode(), timeout=5)
            if b'"error"' in answer.data:
                return account.name
    return ""


async def join(own: Mesh, user: User, complaints: list[str] | None = None, **options: Any) -> Client:
    """Connect as a user, once, and note what the server complains of."""

    async def note(error: Exception) -> None:
        if complaints is not None:
            complaints.append(str(error))

    credentials = RawCredentials(user.credentials)
    fixed: dict[str, Any] = {"error_cb": note, "allow_reconnect": False}
    return await nats.connect(own.urls, user_credentials=credentials, **fixed, **options)


async def close(*clients: Client) -> None:
    """Close connections, also those that are closed."""
    for client in clients:
        await client.close()


def _nobody_of(own: Mesh, account: Account) -> bool:
    monitors = [server.monitor for server in own.servers.values() if server.monitor is not None]
    return not any(monitor.connz(f"acc={account.public}")["connections"] for monitor in monitors)


Reach = Callable[[Mesh, Account, Client, int], Awaitable[None]]


async def reaches(own: Mesh, account: Account, reach: Reach, amount: int) -> bool:
    """Whether a user of the account can have so much of something."""
    try:
        client = await join(own, account.user("student"))
    except nats.errors.Error:
        return False
    try:
        await reach(own, account, client, amount)
    except (nats.errors.Error, APIError, OSError):
        return False
    finally:
        await close(client)
        await eventually(partial(_nobody_of, own, account), within=5.0)  # the next attempt counts from none
    return True


async def _connections(own: Mesh, account: Account, client: Client, amount: int) -> None:
    more: list[Client] = []
    try:
        for _ in range(amount - 1):
            more.append(await join(own, account.user("student")))
    finally:
        await close(*more)


async def _subscriptions(own: Mesh, account: Account, client: Client, amount: int) -> None:
    for number in range(amount):
        await client.subscribe(f"orders.{number}")
    await _held(client)


async def _payload(own: Mesh, account: Account, client: Client, amount: int) -> None:
    await client.publish("orders", bytes(amount))
    await _held(client)


async def _held(client: Client) -> None:
    """Return when the connection outlived what was sent; the server says no by hanging up, and nats-py closes then."""
    for _ in range(3):
        await client.flush(timeout=2)


async def _streams(own: Mesh, account: Account, client: Client, amount: int) -> None:
    await _with_streams(client, {f"S{number}": 1_000 for number in range(amount)})


async def _disk(own: Mesh, account: Account, client: Client, amount: int) -> None:
    await _with_streams(client, {"BIG": amount})


async def _with_streams(client: Client, sizes: dict[str, int]) -> None:
    js, made = client.jetstream(timeout=3.0), []
    try:
        for name, size in sizes.items():
            await retry(partial(js.add_stream, name=name, subjects=[name], max_bytes=size))
            made.append(name)
    finally:
        for name in made:
            await js.delete_stream(name)


REACH: dict[str, Reach] = {
    "connections": _connections,
    "subscriptions": _subscriptions,
    "bytes in a message": _payload,
    "streams": _streams,
    "bytes on disk": _disk,
}
