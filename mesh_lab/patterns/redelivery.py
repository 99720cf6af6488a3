"""Handle a consumer's messages one by one: retry with back-off, set dead letters aside, and stop gracefully.

A message is handled and acknowledged; or it waits at the server for its next attempt, each time longer; or it is stored
as a dead letter, with the reason, and taken off its consumer only after that was acknowledged. In no case is it lost.
A handler may see a message twice, so it has to be idempotent.
"""

import asyncio
import contextlib
import math
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import RetentionPolicy
from nats.js.errors import APIError

from mesh_lab.errors import CircuitOpenError, PoisonMessageError, PublishRefusedError, UnsuitableConsumerError
from mesh_lab.patterns.connection import message_bytes, publish_if_connected
from mesh_lab.patterns.consumer_info import ConsumerSettings, matches
from mesh_lab.patterns.jetstream_api import TOO_LARGE, is_transient, publish_once, stream_names
from mesh_lab.patterns.jetstream_wait import EXPECTS_NO_STREAM
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.wait import retry

BREAKER_PAUSE_S = 0.1
HOLD_EVERY_S, HOLD_AT_MOST_EVERY_S = 0.25, 0.05
WORD_TIMEOUT_S, WORD_WITHIN_S = 2.0, 4.0
BURY_WITHIN_S = 20.0  # longer than an election
LISTENED_TO_WITHIN_S = 3.0
ACK, NAK, TERM, IN_PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
REASON_CHARACTERS = 500
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

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A number is out of its range; the server would take a pause below 0 for none.
        """
        for what, seconds in (("first", self.first), ("most", self.most)):
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{what}={seconds}, expected 0 s or more, and finite")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor}, expected 1 or more, and finite")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter={self.jitter}, expected 0 to 1")

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
    domain: str | None = None,
) -> None:
    """Handle a consumer's messages one after the other until ``stop`` is set, then finish the one in hand and return.

    However long a handler awaits, no other worker gets its message: the server is told, well within ``ack_wait``, that
    it is in progress. While the handler raises :class:`CircuitOpenError`, the message stays in hand until the breaker
    lets a call through. Cancelled while it waits, the worker gives back the message that may be on its way; cancelled
    in the middle of one, it leaves that to ``ack_wait``.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        consumer: Name of a pull consumer with explicit acknowledgement and without a ``max_deliver`` of ``attempts`` or
            less, by which the server would give a message up before it is buried.
        handle: Does the work. What it raises means: try again later. :class:`PoisonMessageError` means: never again.
        dead: Subject for dead letters; a stream must listen to it, and the consumer must not. They keep payload and
            headers, or, where these do not fit beside the reason, ``Dead-Size``; ``Dead-Sequence`` finds the rest.
            Buried twice within the ``duplicate_window`` of their stream, a message is one letter.
        attempts: How often a message is delivered before it counts as dead, also one whose handler ends the process: 1
            or more. With the default pauses, 12 attempts tolerate an outage of about a minute and a half.
        backoff: How long it waits in between.
        stop: Set it to stop gracefully.
        domain: JetStream domain of the stream; ``None`` for the client's own. Letters go to ``dead`` wherever it leads.

    Raises:
        ValueError: ``attempts`` is below 1.
        UnsuitableConsumerError: The consumer would lose messages or bring none, or it would get the dead letters, or no
            stream takes these.
        nats.js.errors.NotFoundError: There is no such consumer or stream, or it went and is not back within a second.
        nats.js.errors.APIError: The servers refuse a request for messages, and would again.
        nats.js.errors.NoStreamResponseError: No stream takes the dead letters; the message in hand was not taken off.
        TimeoutError: The stream for dead letters did not reply in time; likewise.
        PublishRefusedError: A letter is too large with its payload, which the stream would not keep either.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts}, expected at least 1")
    name = f"consumer {consumer!r} of stream {stream!r}"
    work = _Work(client, handle, dead, attempts, backoff or Backoff(), stop or asyncio.Event(), domain)
    check = partial(expect_retries, name, attempts)
    source = PullConsumer(client, stream, consumer, prefetch=1, ahead=False, domain=domain, check=check)
    async with source, aclosing(source.batches(work.stop)) as batches:
        if source.settings is not None:
            await _check_dead(work, stream, source.settings)
        async for batch in batches:
            for msg in batch:  # one, or two where a request came late that seemed lost
                wait_s = source.settings.shortest_wait_s if source.settings else math.inf
                async with _held(msg, client, max(min(HOLD_EVERY_S, wait_s / 3), HOLD_AT_MOST_EVERY_S)):
                    word = await _attempt(msg, work)
                if word and not msg.is_acked:  # by the handler
                    await _say(msg, client, word)


class _Work(NamedTuple):
    client: Client
    handle: Handle
    dead: str
    attempts: int
    backoff: Backoff
    stop: asyncio.Event
    domain: str | None


def expect_retries(name: str, attempts: int, settings: ConsumerSettings) -> None:
    """Raise UnsuitableConsumerError for a consumer that does not deliver each message by itself, often enough."""
    if settings.ack_policy != "explicit":
        raise UnsuitableConsumerError(
            f"{name} has ack_policy {settings.ack_policy!r}, expected 'explicit': each message is tried again by itself"
        )
    if 0 < settings.max_deliver <= attempts:
        raise UnsuitableConsumerError(
            f"{name} has max_deliver {settings.max_deliver}, expected none or more than attempts={attempts}: "
            "the server would give a message up before it is buried"
        )


async def _check_dead(work: _Work, stream: str, settings: ConsumerSettings) -> None:
    if {"", "*", ">"} & set(work.dead.split(".")):
        raise UnsuitableConsumerError(f"dead={work.dead!r}, expected a subject without wildcards and empty tokens")
    try:
        takers = await stream_names(work.client, work.dead, domain=work.domain, within=WORD_TIMEOUT_S)
    except Exception as err:
        if not is_transient(err):
            raise
        return  # no server replies, or this client may not ask
    filters = settings.filters or [">"]
    if stream in takers and any(matches(work.dead, pattern) for pattern in filters):
        raise UnsuitableConsumerError(
            f"dead letters on {work.dead!r} would come back: stream {stream!r} takes them, and the consumer's filter, "
            f"{', '.join(filters)}, too; expected a subject of another stream, or outside of the filter"
        )
    if not takers:  # of this account; another one may import the subject
        ask = partial(work.client.request, work.dead, headers=EXPECTS_NO_STREAM, timeout=WORD_TIMEOUT_S)
        try:
            await retry(ask, within=LISTENED_TO_WITHIN_S)
        except NoRespondersError as err:
            said = f"no stream takes dead letters on {work.dead!r}, expected one: make it, or choose another subject"
            raise UnsuitableConsumerError(said) from err


@contextlib.asynccontextmanager
async def _held(msg: Msg, client: Client, every_s: float) -> AsyncIterator[None]:
    """Keep the server from delivering a message again."""

    async def hold() -> None:
        while not msg.is_acked:
            await asyncio.sleep(every_s)
            await publish_if_connected(client, msg.reply, IN_PROGRESS)

    holding = asyncio.create_task(hold())
    holding.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved: the client was closed
    try:
        yield
    finally:
        holding.cancel()  # and no wait, in which a cancellation would come before the acknowledgement


async def _say(msg: Msg, client: Client, word: bytes) -> None:
    """Acknowledge a message, or ask for it again; one whose word is lost comes again, and handlers are idempotent."""
    try:
        await retry(lambda: client.request(msg.reply, word, timeout=WORD_TIMEOUT_S), within=WORD_WITHIN_S)
    except Exception as err:
        if not is_transient(err):
            raise


async def _attempt(msg: Msg, work: _Work) -> bytes:
    """Return what to say of a message to its consumer, after an attempt or a burial."""
    attempt, attempts = msg.metadata.num_delivered, work.attempts
    if attempt > attempts:  # the worker that had it before died over it, or was killed, each time
        return await _bury(msg, work, f"no attempt of {attempts} came to an end")
    try:
        while not await _is_handled(msg, work):
            if work.stop.is_set():
                return NAK
    except PoisonMessageError as err:
        return await _bury(msg, work, str(err))
    # Whatever it is, the message is tried again or kept with the reason.
    except (Exception, asyncio.CancelledError) as err:
        if isinstance(err, asyncio.CancelledError) and (this := asyncio.current_task()) and this.cancelling():
            raise  # this worker is cancelled; otherwise, the handler awaited a task that somebody cancelled
        if msg.is_acked:
            return b""  # the handler acknowledged it, and failed after that
        if attempt >= attempts:
            return await _bury(msg, work, f"{type(err).__name__}: {err} (attempt {attempt} of {attempts})")
        return NAK + b' {"delay": %d}' % int(work.backoff.delay(attempt) * 1e9)
    return ACK


async def _is_handled(msg: Msg, work: _Work) -> bool:
    """Handle a message; or, where a breaker is open, wait until that is worth another try."""
    try:
        await work.handle(msg)
    except CircuitOpenError as err:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(err.retry_after, BREAKER_PAUSE_S)):
                await work.stop.wait()
        return False
    return True


async def _bury(msg: Msg, work: _Work, reason: str) -> bytes:
    """Keep a message as a dead letter, and only then return the word that takes it off its consumer."""
    client, dead, about, headers = work.client, work.dead, msg.metadata, msg.headers or {}
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
        js = client.jetstream(timeout=2.0, domain=work.domain)
        config = (await retry(lambda: js.stream_info(about.stream))).config
        if config.retention not in (None, RetentionPolicy.LIMITS):
            raise PublishRefusedError(
                f"message {about.sequence.stream} of {about.stream}, {len(msg.data):,} bytes, is too large for a "
                f"letter on {dead!r}, expected some 2,000 bytes of room: lower max_msg_size of {about.stream}"
            )
        if not await _is_kept(client, dead, b"", {**ours, "Dead-Size": str(len(msg.data))}):
            raise PublishRefusedError(f"{dead!r} takes no letter of 2,000 bytes; raise max_msg_size of its stream")
    return TERM


def letter_id(msg: Msg) -> str:
    """Return the ``Nats-Msg-Id`` of a message's dead letter: the same each time, and no other message's."""
    about = msg.metadata  # with the time, since a stream that is deleted and made again numbers from 1 again
    return f"{about.stream}.{about.consumer}.{about.sequence.stream}.{about.timestamp.timestamp():.6f}"


async def _is_kept(client: Client, dead: str, payload: bytes, headers: dict[str, str]) -> bool:
    """Store a letter; return ``False`` if it is too large for the server or for the stream."""
    headers = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in headers.items()}
    if message_bytes(payload, headers) > client.max_payload:
        return False
    try:
        await retry(partial(publish_once, client, dead, payload, headers, WORD_TIMEOUT_S), within=BURY_WITHIN_S)
    except APIError as err:
        if err.err_code not in TOO_LARGE:
            raise
        return False
    return True
