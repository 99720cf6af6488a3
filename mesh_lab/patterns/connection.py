"""How the course's clients connect: nats-py's own options, set for fail-over.

nats-py's defaults suit a good network: they notice a silent server after four minutes (two pings of 120 s), dial
the next server without any jitter, all clients in the same millisecond, wait 2 s before a server that failed is
dialled again, and give it up for good after 60 attempts. On a mesh whose servers come and go, that is a stampede at
first, slow then, and final at last. Each option below says what it does instead. All of them are plain arguments of
``nats.connect``.
"""

import asyncio
import random
import ssl
from typing import Any, TypedDict

import nats
import nats.errors
from nats.aio.client import Client, Server

from mesh_lab.errors import NotReadyError


class ConnectOptions(TypedDict, total=False):
    """Keyword arguments of ``nats.connect`` that differ between meshes."""

    servers: list[str]
    user: str
    password: str
    token: str
    user_credentials: str
    tls: ssl.SSLContext
    name: str


def jittered_reconnect(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """Choose any server of the pool, and a wait of 50 to 250 ms before it is dialled.

    The jitter matters when a server dies with a thousand clients: without it, they all dial its neighbours in
    the same millisecond, again and again.
    """
    return random.choice(servers), random.uniform(0.05, 0.25)


async def connect(options: ConnectOptions, *, within: float = 10.0, **more: Any) -> Client:
    """Return a connected, plain nats-py client.

    Args:
        options: Where and as whom to connect.
        within: Seconds for the first connection; once connected, the client reconnects for as long as it takes.
        more: Any further arguments of ``nats.connect``; they win over the defaults here.

    Raises:
        NotReadyError: No server let the client in; the message says what went wrong last.
        nats.errors.InvalidCallbackTypeError: A callback is not a coroutine function.
    """
    last: list[Exception] = []

    async def note(error: Exception) -> None:
        # A reconnecting client meets errors all the time, and nats-py's default prints each with its traceback.
        last[:] = [error]

    defaults: dict[str, Any] = {
        "ping_interval": 2,  # a silent server is noticed after 2 pings, in 4 to 6 s
        "max_outstanding_pings": 2,
        "max_reconnect_attempts": -1,  # never give up: the mesh comes back
        "reconnect_to_server_handler": jittered_reconnect,
        "error_cb": note,
    }
    try:
        async with asyncio.timeout(within):
            client = await nats.connect(**{**defaults, **options, **more})
    except nats.errors.InvalidCallbackTypeError:
        raise  # the caller's mistake, and no server's
    except (TimeoutError, OSError, nats.errors.Error) as err:
        raise NotReadyError(f"no server let us in within {within} s: {(last or [err])[0]!r}") from err
    if not client.is_connected:
        # nats-py 2.16 returns such a client when the server hangs up while it authenticates, and goes on trying.
        await client.close()
        raise NotReadyError("a server accepted the connection and hung up; check its log and the account")
    return client


def is_send_failure(err: Exception) -> bool:
    """Say whether ``client.publish`` raised only because the connection can take nothing at this moment.

    nats-py may hold a connection for alive that uvloop closed a moment ago, whose word for that is a ``RuntimeError``.
    It reconnects when it reads the end.
    """
    gone = isinstance(err, RuntimeError) and "closed" in str(err)
    return gone or isinstance(err, nats.errors.OutboundBufferLimitError)
