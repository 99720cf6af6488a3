"""How clients connect and send: nats-py's own options, set for fail-over.

nats-py's defaults notice a silent server after four minutes (two pings of 120 s), dial the next one without jitter,
wait 2 s before they dial a server that failed again, and give it up for good after 60 attempts. On a mesh whose servers
come and go, that is first a stampede, then slow, and in the end final.
"""

import asyncio
import random
import ssl
from typing import Any, TypedDict

import nats
import nats.errors
from nats.aio.client import Client, Server

from mesh_lab.errors import NotReadyError, PublishRefusedError


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
    """Choose any server of the pool, and a wait of 50 to 250 ms, so that a dead server's clients do not dial as one."""
    return random.choice(servers), random.uniform(0.05, 0.25)


async def connect(options: ConnectOptions, *, within: float = 10.0, **more: Any) -> Client:
    """Return a connected, plain nats-py client.

    Args:
        options: Addresses and credentials.
        within: Seconds for the first connection; once connected, the client reconnects for as long as it takes.
        more: Any further arguments of ``nats.connect``; they win over the defaults here.

    Raises:
        NotReadyError: No server accepted the client; the message says what went wrong last.
        nats.errors.InvalidCallbackTypeError: A callback is not a coroutine function.
    """
    last: list[Exception] = []

    async def note(error: Exception) -> None:
        last[:] = [error]  # nats-py's default prints each error of a reconnecting client with its traceback

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
        raise  # the caller's mistake
    except (TimeoutError, OSError, nats.errors.Error) as err:
        raise NotReadyError(f"no server let us in within {within} s: {(last or [err])[0]!r}") from err
    if not client.is_connected:
        # nats-py 2.16 returns such a client when the server hangs up while it authenticates, and goes on trying.
        await client.close()
        raise NotReadyError("a server accepted the connection and hung up; check its log and the account")
    return client


async def publish_if_connected(
    client: Client, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
) -> bool:
    """Publish a message and return ``True``; return ``False`` while the connection can take nothing.

    The arguments are those of ``client.publish``, which would keep every copy of a message while it reconnects.

    Raises:
        PublishRefusedError: The message is larger than the server takes.
    """
    if not client.is_connected:
        return False
    try:
        await client.publish(subject, payload, reply=reply, headers=headers)
    except nats.errors.MaxPayloadError as err:
        raise too_large(client, subject, payload) from err
    except (nats.errors.OutboundBufferLimitError, RuntimeError) as err:
        if not is_send_failure(err):
            raise
        return False
    return True


def too_large(client: Client, subject: str, payload: bytes) -> PublishRefusedError:
    """Return the error for a message that is larger than the server takes."""
    return PublishRefusedError(f"{subject}: {len(payload):,} bytes, the server takes {client.max_payload:,}")


def is_send_failure(err: BaseException) -> bool:
    """Return whether a client raised only because its connection can take nothing at this moment."""
    # uvloop's, for a connection that nats-py considers alive until it reads its end; then it reconnects.
    closed = isinstance(err, RuntimeError) and "closed" in str(err)
    return closed or isinstance(err, nats.errors.OutboundBufferLimitError)
