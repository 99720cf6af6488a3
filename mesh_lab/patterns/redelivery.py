"""Handle a consumer's messages one by one: retry with back-off, set dead letters aside, and stop gracefully.

A message is handled and acknowledged; or it waits at the server for its next attempt, each time longer; or it is stored
as a dead letter, with the reason, and taken off its consumer only after that was acknowledged. In no case is it lost.
A handler may see a message twice, so it has to be idempotent.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, Error, MsgAlreadyAckdError, NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy
from nats.js.errors import APIError

from mesh_lab.errors import CircuitOpenError, PoisonMessageError, PublishRefusedError
from mesh_lab.patterns.jetstream_api import is_transient
from mesh_lab.patterns.wait import retry

FETCH_WITHIN_S, NO_LEADER_PAUSE_S = 0.5, 0.1
IN_PROGRESS_EVERY_S = 0.25  # well below any sensible ack_wait
BURY_WITHIN_S = 20.0  # longer than an election
REASON_CHARACTERS = 500
TOO_LARGE = 10054  # err_code of "message size exceeds maximum allowed"
_SENDABLE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # what nats-py takes as the name of a header

Handle = Callable[[Msg], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a message waits for its next attempt: longer each time, and never as long as its neighbour."""

    first: float = 0.1
    """Seconds after the first attempt."""
    factor: float = 2.0
    """Ratio of each wait to the one before."""
    most: float = 30.0
    """Longest wait, in seconds."""
    jitter: float = 0.5
    """Share of the wait that is random: what failed together does not come back together."""

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt, the first of which is number 1."""
        wait = min(self.most, self.first * self.factor ** min(attempt - 1, 64))
        return wait * (1 - self.jitter * random.random())


async def consume_with_retries(
    client: Client,
    stream: str,
    consumer: str,
    handle: Handle,
    *,
    dead: str,
    attempts: int = 12,
    backoff: Backoff | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Handle a consumer's messages one after the other until ``stop`` is set, then finish the one in hand and return.

    While its handler raises :class:`CircuitOpenError`, a message stays in hand until the breaker lets a call through.
    Cancelled while it waits, the worker gives back the message that may be on its way; cancelled in the middle of one,
    it leaves that to ``ack_wait``. Keep messages with a header ``Status``, which nats-py reads, out of the stream.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        consumer: Name of a pull consumer with explicit acknowledgement and without ``max_deliver``, by which the
            server would give a message up before it is buried.
        handle: Does the work. What it raises means: try again later. :class:`PoisonMessageError` means: never again.
        dead: Subject for dead letters; a stream must listen to it. They keep payload and headers, or, where these do
            not fit beside the reason, ``Dead-Size``; ``Dead-Sequence`` finds the rest. Buried twice within the
            ``duplicate_window`` of their stream, a message is one letter.
        attempts: How often a message is delivered before it counts as dead, also one whose handler ends the process.
            With the default pauses, 12 attempts tolerate an outage of about a minute and a half.
        backoff: How long it waits in between.
        stop: Set it to stop gracefully.

    Raises:
        nats.js.errors.APIError: The servers refuse a request for messages, and would again.
        nats.js.errors.NoStreamResponseError: No stream takes the dead letters; the message in hand was not taken off.
        TimeoutError: The stream for dead letters did not reply in time; likewise.
        PublishRefusedError: A letter is too large with its payload, which the stream would not keep either.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    backoff, stop = backoff or Backoff(), stop or asyncio.Event()
    messages = await client.jetstream().pull_subscribe_bind(consumer, stream=stream)
    try:
        while not stop.is_set():
            for msg in await _fetch_or_give_back(client, messages):
                await _attempt(msg, handle, client, dead=dead, attempts=attempts, backoff=backoff, stop=stop)
    finally:
        with contextlib.suppress(Error):  # closed or draining: then the server has forgotten the subscription, too
            await messages.unsubscribe()


async def _fetch_or_give_back(client: Client, messages: JetStreamContext.PullSubscription) -> list[Msg]:
    """Fetch; when cancelled meanwhile, give back what was on its way, or it would wait for ``ack_wait``."""
    fetching = asyncio.ensure_future(_fetch(client, messages))
    try:
        return await asyncio.shield(fetching)
    except asyncio.CancelledError:
        with contextlib.suppress(Error):  # what cannot be given back comes again after ``ack_wait``
            for msg in await fetching:
                await msg.nak()
        raise


async def _fetch(client: Client, messages: JetStreamContext.PullSubscription) -> list[Msg]:
    if client.is_closed:
        raise ConnectionClosedError
    # While it reconnects, nats-py would keep each request and send all later: more messages than one would be in hand.
    if client.is_connected:
        try:
            return await messages.fetch(1, timeout=FETCH_WITHIN_S)
        except TimeoutError:
            return []  # no message
        except APIError as err:  # the consumer has no leader at the moment
            if not is_transient(err):
                raise
    await asyncio.sleep(NO_LEADER_PAUSE_S)
    return []


async def _attempt(
    msg: Msg, handle: Handle, client: Client, *, dead: str, attempts: int, backoff: Backoff, stop: asyncio.Event
) -> None:
    attempt = msg.metadata.num_delivered
    if attempt > attempts:  # the worker that had it before died over it, or was killed, each time
        await _bury(msg, client, dead, f"no attempt of {attempts} came to an end")
        return
    try:
        while not await _is_handled(msg, handle, stop):
            if stop.is_set():
                await msg.nak()
                return
    except PoisonMessageError as err:
        await _bury(msg, client, dead, str(err))
    except Exception as err:  # noqa: BLE001 (whatever it is, the message is tried again or kept with the reason)
        if msg.is_acked:
            return  # the handler acknowledged it, and failed after that
        if attempt >= attempts:
            await _bury(msg, client, dead, f"{type(err).__name__}: {err} (attempt {attempt} of {attempts})")
        else:
            await msg.nak(delay=backoff.delay(attempt))
    else:
        # An acknowledgement that may be lost: the message comes again then, which an idempotent handler tolerates.
        with contextlib.suppress(TimeoutError, NoRespondersError, MsgAlreadyAckdError):  # the last by the handler
            await msg.ack_sync(timeout=2.0)


async def _is_handled(msg: Msg, handle: Handle, stop: asyncio.Event) -> bool:
    """Handle a message; or, where a breaker is open, keep it in hand until that is worth another try."""
    try:
        await handle(msg)
    except CircuitOpenError as err:
        until = asyncio.get_running_loop().time() + max(err.retry_after, NO_LEADER_PAUSE_S)
        while not stop.is_set() and (left := until - asyncio.get_running_loop().time()) > 0:
            await msg.in_progress()
            await asyncio.sleep(min(left, IN_PROGRESS_EVERY_S))
        return False
    return True


async def _bury(msg: Msg, client: Client, dead: str, reason: str) -> None:
    """Keep a message as a dead letter, and only then take it off its consumer."""
    about, headers = msg.metadata, msg.headers or {}
    # The server acts on headers of its own (Nats-Expected-…, Nats-TTL, …), which were meant for another stream.
    kept = [name for name in headers if _SENDABLE.fullmatch(name) and not name.lower().startswith("nats-")]
    ours = {
        "Dead-Reason": " ".join(reason[:REASON_CHARACTERS].split()),
        "Dead-Subject": msg.subject,
        "Dead-Sequence": str(about.sequence.stream),
        "Dead-Deliveries": str(about.num_delivered),
        "Dead-Msg-Id": headers.get("Nats-Msg-Id", ""),
        "Nats-Msg-Id": letter_id(msg),
    }
    if not await _is_kept(client, dead, msg.data, {name: headers[name] for name in kept} | ours):
        # It is too large: a letter without its payload, if the message stays in its stream.
        config = (await retry(lambda: client.jetstream(timeout=2.0).stream_info(about.stream))).config
        if config.retention not in (None, RetentionPolicy.LIMITS):
            raise PublishRefusedError(
                f"message {about.sequence.stream} of {about.stream}, {len(msg.data):,} bytes, is too large for a "
                f"letter on {dead!r}, expected some 2,000 bytes of room: lower max_msg_size of {about.stream}"
            )
        if not await _is_kept(client, dead, b"", {**ours, "Dead-Size": str(len(msg.data))}):
            raise PublishRefusedError(f"{dead!r} takes no letter of 2,000 bytes; raise max_msg_size of its stream")
    with contextlib.suppress(TimeoutError, NoRespondersError):  # then it comes again, and is buried again
        await client.request(msg.reply, b"+TERM", timeout=2.0)


def letter_id(msg: Msg) -> str:
    """Return the ``Nats-Msg-Id`` of a message's dead letter: the same each time, and no other message's."""
    about = msg.metadata  # with the time, since a stream that is deleted and made again numbers from 1 again
    return f"{about.stream}.{about.consumer}.{about.sequence.stream}.{about.timestamp.timestamp():.6f}"


async def _is_kept(client: Client, dead: str, payload: bytes, headers: dict[str, str]) -> bool:
    """Store a letter; return ``False`` if it is too large for the server or for the stream."""
    headers = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in headers.items()}
    # nats-py compares the payload alone, and the server, which counts the headers, would hang up.
    lines = sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())
    if len(payload) + lines + len("NATS/1.0\r\n\r\n") > client.max_payload:
        return False
    js = client.jetstream(timeout=2.0)
    try:
        await retry(lambda: js.publish(dead, payload, headers=headers), within=BURY_WITHIN_S)
    except APIError as err:
        if err.err_code != TOO_LARGE:
            raise
        return False
    return True
