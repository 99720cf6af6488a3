"""Wait until a stream or a consumer can be reached from where a client is, and ask again where an answer got lost.

``add_stream`` returns when the stream stands. In a cluster it may stand on another server, and the word of what it
listens to travels between the servers on a way of its own: for some milliseconds this client's server knows of
nobody who would answer, and says so. A service tries again, as :class:`~mesh_lab.patterns.WindowedPublisher`
does; a lesson or a test that makes a stream and uses it in the next line waits here.

While servers elect a leader, after a cut or on a machine that is busy, a request to JetStream's API meets nobody, or
one who says "temporarily unavailable". :func:`retry` asks again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import nats.errors
import nats.js.api
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns.jetstream_api import TRANSIENT_ERR_CODES
from mesh_lab.patterns.wait import eventually

T = TypeVar("T")
ANSWER_WITHIN_S = 0.5
API_TIMEOUT_S = 3.0
APPEARS_WITHIN_S = 1.0
ASK_AGAIN_AFTER_S = 0.2
TRANSIENT_ERRORS = (TimeoutError, nats.errors.NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
NO_STREAM = "_"
# A message that expects to land in another stream is refused (err_code 10060) before it is stored.
EXPECTS_NO_STREAM: dict[str, str] = {nats.js.api.Header.EXPECTED_STREAM.value: NO_STREAM}

Probe = tuple[str, bytes, dict[str, str] | None]


async def wait_routable(client: Client, stream: str, consumer: str | None = None, *, within: float = 10.0) -> None:
    """Return when the server that this client is connected to knows who answers for a stream or a consumer.

    Nothing is stored and nothing delivered: the questions are such that the answer is a refusal. Whoever subscribes
    to the stream's subjects sees one empty message.

    Args:
        client: A connected nats-py client.
        stream: Name of a stream that exists.
        consumer: Name of one of its pull consumers; ``None`` asks for the stream's own subjects.
        within: Seconds until it is too late.

    Raises:
        TimeoutError: Nobody answered in time.
        nats.js.errors.NotFoundError: There is no such stream.
    """
    for probe in await _probes(client, stream, consumer, within):
        await eventually(partial(_answers, client, probe), within=within)


async def flush_through(client: Client) -> None:
    """Return when the server has read, and answered, all that this client published and subscribed to before.

    That is what ``flush`` is for. nats-py 2.16 writes flush's PING ahead of what ``publish`` left in its buffer, so the
    PONG may come before a complaint about the last message, in 18 of 60 runs of one publish and one flush. A second
    flush comes after it.

    Raises:
        nats.errors.FlushTimeoutError: The server did not answer within 10 s.
    """
    await client.flush()
    await client.flush()


async def wait_interest(client: Client, subject: str, *, within: float = 3.0) -> bool:
    """Wait until the server that this client is connected to knows of a stream that listens to a subject.

    For one who knows the subject and not the stream. Nothing is stored; who subscribes sees an empty message.

    Args:
        client: A connected nats-py client.
        subject: A subject; a token ``{n}`` stands for any number.
        within: Seconds after which to give up and return ``False``: the next message will say that nobody listens.
    """
    probe: Probe = (subject.replace("{n}", "0"), b"", EXPECTS_NO_STREAM)
    try:
        return await eventually(partial(_answers, client, probe), within=within)
    except NotReadyError:
        return False


async def retry(ask: Callable[[], Awaitable[T]], *, within: float = 30.0) -> T:
    """Return what a request is answered, and make it again while it is not.

    ::

        info = await retry(lambda: js.add_stream(name="ORDERS", subjects=["orders.>"]))

    Args:
        ask: Makes the request, with a timeout of its own of a few seconds. It may be made twice, because no answer
            does not mean that nothing was done; so twice has to be as good as once. That holds for reading and for
            making a stream or a consumer; of two deletions the second may find nothing.
        within: Seconds after which the last failure is raised instead of asking again.

    Raises:
        TimeoutError: Nobody answered in time.
        nats.js.errors.APIError: The servers still had no leader, or were still busy with the request.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            return await ask()
        except TRANSIENT_ERRORS:
            if time.monotonic() >= deadline:
                raise
        except APIError as err:
            if err.err_code not in TRANSIENT_ERR_CODES or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(ASK_AGAIN_AFTER_S)


async def wait_stream(js: JetStreamContext, stream: str) -> nats.js.api.StreamInfo:
    """Return what the servers say of a stream that may have been made a moment ago.

    In a mesh of regions, a new stream's own leader may confirm it before the meta leader, who is asked about streams
    that nobody leads, has it in its list. With nats-server 2.15.1, it met "not found" in 3 of 25 meshes.

    Args:
        js: A client's JetStream context.
        stream: Name of the stream.

    Raises:
        nats.js.errors.NotFoundError: There is no such stream, also a second later.
    """
    deadline = time.monotonic() + APPEARS_WITHIN_S
    while True:
        try:
            return await js.stream_info(stream)
        except NotFoundError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(ASK_AGAIN_AFTER_S)


async def _answers(client: Client, probe: Probe) -> bool:
    subject, payload, headers = probe
    try:
        await client.request(subject, payload, timeout=ANSWER_WITHIN_S, headers=headers)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return False
    return True


async def _probes(client: Client, stream: str, consumer: str | None, within: float) -> list[Probe]:
    if consumer is not None:
        # No JSON, so the consumer answers "400 Bad Request" and keeps its messages.
        return [(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b"{", None)]
    js = client.jetstream(timeout=min(within, API_TIMEOUT_S))
    config = (await retry(partial(wait_stream, js, stream), within=within)).config
    probes: list[Probe] = [
        (subject.replace("*", NO_STREAM).replace(">", NO_STREAM), b"", EXPECTS_NO_STREAM)
        for subject in config.subjects or []
    ]
    if config.allow_direct:
        probes.append((f"$JS.API.DIRECT.GET.{stream}", b"", None))  # an empty question: "408 Empty Request"
    return probes
