"""Wait until a stream or a consumer is routable: until a client's own server knows of its subscriptions.

A new stream's subscriptions reach the cluster's other servers some milliseconds after ``add_stream`` returned; until
then, a request finds no responders. A service tries again, as :class:`~mesh_lab.patterns.WindowedPublisher` does; code
that makes a stream and uses it in the next line waits here.
"""

import contextlib

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import Header, StreamInfo
from nats.js.errors import NotFoundError

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns.connection import first_reply, flush
from mesh_lab.patterns.jetstream_api import api_prefix, publish_reply
from mesh_lab.patterns.wait import eventually, retry, unless_closed

REPLY_WITHIN_S, API_TIMEOUT_S, PROBE_EVERY_S = 0.5, 3.0, 0.05
LISTED_WITHIN_S, INTEREST_WITHIN_S = 1.0, 3.0
# A message that expects to land in another stream is refused (err_code 10060) before it is stored.
EXPECTS_NO_STREAM: dict[str, str] = {Header.EXPECTED_STREAM.value: "_"}


async def wait_routable(
    client: Client, stream: str, consumer: str | None = None, *, within: float = 10.0, domain: str | None = None
) -> None:
    """Return when the server that this client is connected to routes requests to a stream or a consumer.

    Nothing is stored or delivered: each probe gets a refusal. Subscribers of the subjects see an empty message.

    Args:
        client: A connected nats-py client.
        stream: Name of a stream that exists.
        consumer: Name of one of its pull consumers; ``None`` probes the stream's own subjects.
        within: Seconds until it is too late.
        domain: JetStream domain of the stream, such as a leaf node's; ``None`` for the client's own.

    Raises:
        ValueError: No domain has that name.
        TimeoutError: No reply came in time.
        nats.js.errors.APIError: The servers still had no leader, or were still busy with the request.
        nats.js.errors.NotFoundError: There is no such stream.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    prefix = api_prefix(domain)
    if consumer is not None:
        # No JSON, so the consumer replies "400 Bad Request" and keeps its messages.
        await _wait_reply(client, f"{prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}", within, payload=b"{")
        return
    js = client.jetstream(timeout=min(within, API_TIMEOUT_S), domain=domain)
    config = (await unless_closed(client, retry(lambda: wait_stream(js, stream), within=within))).config
    for subject in config.subjects or []:
        await _wait_reply(client, subject.replace("*", "_").replace(">", "_"), within, headers=EXPECTS_NO_STREAM)
    if config.allow_direct:  # an empty request gets "408 Empty Request"
        await _wait_reply(client, f"{prefix}.DIRECT.GET.{stream}", within)


async def flush_through(client: Client, *, within: float = 10.0) -> None:
    """Return when the server has read, and replied to, all that this client published and subscribed to before.

    Args:
        client: A connected nats-py client.
        within: Seconds for each of two round trips.

    Raises:
        nats.errors.FlushTimeoutError: The server did not reply in time.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    # nats-py 2.16 writes flush's PING ahead of what publish left in its buffer (Client._send_ping): the first PONG may
    # come before a complaint about the last message, as in 18 of 60 runs. The second comes when all is read.
    for _ in range(2):
        await flush(client, within=within)


async def wait_interest(client: Client, subject: str) -> None:
    """Return when this client's server knows of a stream that takes a subject, or after 3 s without one.

    The subject may have a token ``{n}`` for any number; its subscribers see an empty message.
    """
    with contextlib.suppress(NotReadyError):  # the next message finds no responders then
        await _wait_reply(client, subject.replace("{n}", "0"), INTEREST_WITHIN_S, headers=EXPECTS_NO_STREAM)


async def wait_stream(js: JetStreamContext, stream: str) -> StreamInfo:
    """Return the servers' information about a stream that may have been made a moment ago.

    Raises:
        nats.js.errors.NotFoundError: There is no such stream, also a second later.
    """
    # Its own leader may confirm it before the meta leader lists it: in 3 of 25 meshes of regions (nats-server 2.15.1).
    return await retry(
        lambda: js.stream_info(stream), within=LISTED_WITHIN_S, transient=lambda err: isinstance(err, NotFoundError)
    )


def _is_of_jetstream(msg: Msg) -> bool | None:
    """Return ``True`` for a status or a stream's reply, ``None`` for that of others who listen to the subject."""
    return "Status" in (msg.headers or {}) or publish_reply(msg) is not None or None


async def _wait_reply(
    client: Client, subject: str, within: float, *, payload: bytes = b"", headers: dict[str, str] | None = None
) -> None:
    async def is_replied_to() -> bool:
        try:
            return await first_reply(
                client, subject, payload, accept=_is_of_jetstream, within=REPLY_WITHIN_S, headers=headers
            )
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError, nats.errors.ConnectionReconnectingError):
            return False

    await eventually(is_replied_to, within=within, every=PROBE_EVERY_S)
