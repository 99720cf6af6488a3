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

LOOK_EVERY_S = 0.05  # how soon a wait notices that the client was closed
NEVER_S = 10**8
_round_trips: set["asyncio.Task[None]"] = set()  # asyncio itself holds only weak references to tasks


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


async def flush(client: Client, *, within: float = 10.0) -> None:
    """Return when the server has replied to a PING; unlike ``client.flush``, it can time out and be cancelled.

    Args:
        client: A connected nats-py client; while it reconnects, the PING waits for the next server.
        within: Seconds to wait for the reply.

    Raises:
        nats.errors.FlushTimeoutError: No server replied in time.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    # In a task of its own, which nobody cancels: nats-py 2.16 stops reading for good when the PONG of a flush comes
    # that was cancelled or timed out (Client._process_pong).
    trip = asyncio.create_task(_round_trip(client))
    _round_trips.add(trip)
    trip.add_done_callback(_forget)
    if not (await asyncio.wait({trip}, timeout=within))[0]:
        raise nats.errors.FlushTimeoutError
    trip.result()


def _forget(trip: "asyncio.Task[None]") -> None:
    _round_trips.discard(trip)
    if not trip.cancelled():
        trip.exception()  # retrieved, so that asyncio does not warn of it when nobody waits any more


async def _round_trip(client: Client) -> None:
    while not client.is_closed:
        if client.is_connected:
            connection = client.stats["reconnects"]
            flushing = asyncio.ensure_future(client.flush(timeout=NEVER_S))
            while not flushing.done() and not client.is_closed and client.stats["reconnects"] == connection:
                await asyncio.wait({flushing}, timeout=LOOK_EVERY_S)
            if flushing.cancel():
                continue  # no PONG of an earlier connection comes any more
            if (err := flushing.exception()) is None:
                return
            if not is_send_failure(err):
                raise err
        await asyncio.sleep(LOOK_EVERY_S)
    raise nats.errors.ConnectionClosedError


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
