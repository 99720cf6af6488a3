"""Work off a consumer: try again what may succeed later, put aside what never will, and leave in good order.

A message ends in one of three ways: it was handled and acknowledged; it waits for its next attempt, at the server, with
a delay that grows; or it lies in a stream for dead letters, with the reason, and is taken off the consumer only after
that was acknowledged. None of them loses it. A handler may see a message twice, so it has to be idempotent.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, Error, MsgAlreadyAckdError, NoRespondersError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from mesh_lab.errors import CircuitOpenError, PoisonMessageError
from mesh_lab.patterns.dead_letters import bury

FETCH_WITHIN_S = 0.5
NO_LEADER_PAUSE_S = 0.1
HOLD_S = 0.25  # between two words to the server that a message is still in hand; well below any sensible ack_wait

Handle = Callable[[Msg], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a message waits for its next attempt: longer each time, and never as long as its neighbour."""

    first: float = 0.1
    """Seconds after the first attempt."""
    factor: float = 2.0
    """By how much each wait is longer than the one before."""
    most: float = 30.0
    """Seconds that no wait exceeds."""
    jitter: float = 0.5
    """Part of the wait that is left to chance, so that what failed together does not come back together."""

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after an attempt.

        Args:
            attempt: Number of the attempt that failed, from 1.
        """
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
    """Handle a consumer's messages one after the other until told to stop, then finish the one in hand and return.

    A handler that raises :class:`CircuitOpenError` has asked nobody: the message stays in hand until the breaker lets a
    call through, since the next one would fare no better. Cancelled while it waits, the worker gives back the message
    that may be on its way; cancelled in the middle of one, it leaves that to ``ack_wait``.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        consumer: Name of a pull consumer with explicit acknowledgement, and without ``max_deliver``, or the server may
            give a message up before this buries it.
        handle: Does the work. What it raises means: try again later. :class:`PoisonMessageError` means: never again.
        dead: Subject for dead letters; a stream must listen to it. They keep payload and headers. Where these do not
            fit into a message beside the reason, a letter says ``Dead-Size`` instead; ``Dead-Sequence`` finds the rest.
        attempts: How often a message is delivered before it counts as dead, also one whose handler ends the process.
            With the pauses of ``backoff``, 12 attempts bear about a minute and a half without the service.
        backoff: How long it waits in between.
        stop: Set it to end.

    nats-py takes a message with a header ``Status`` for a server's own, and fails; keep such headers out of the stream.

    Raises:
        nats.js.errors.NoStreamResponseError: Nobody keeps the dead letters; the message in hand was not taken off.
        TimeoutError: Who keeps them did not answer in time, likewise.
        PublishRefusedError: A letter is too large with its payload, which the stream would not keep either.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    js, backoff, stop = client.jetstream(), backoff or Backoff(), stop or asyncio.Event()
    messages = await js.pull_subscribe_bind(consumer, stream=stream)
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
    if not client.is_connected:
        # nats-py would keep each request and send all of them when it is back: more messages than one is in hand.
        await asyncio.sleep(NO_LEADER_PAUSE_S)
        return []
    try:
        return await messages.fetch(1, timeout=FETCH_WITHIN_S)
    except TimeoutError:
        return []  # nothing there
    except APIError:
        await asyncio.sleep(NO_LEADER_PAUSE_S)  # the consumer has no leader at the moment
        return []


async def _attempt(
    msg: Msg,
    handle: Handle,
    client: Client,
    *,
    dead: str,
    attempts: int,
    backoff: Backoff,
    stop: asyncio.Event,
) -> None:
    tried = msg.metadata.num_delivered
    if tried > attempts:  # whoever had it before died over it, or was killed, each time
        await bury(msg, client, dead, f"no attempt of {attempts} came to an end")
        return
    try:
        while not await _handled(msg, handle, stop):
            if stop.is_set():
                await msg.nak()
                return
    except PoisonMessageError as err:
        await bury(msg, client, dead, str(err))
    except Exception as err:  # noqa: BLE001 (whatever it is, the message is tried again or kept with the reason)
        if msg.is_acked:
            return  # the handler acknowledged it, and failed after that
        if tried >= attempts:
            await bury(msg, client, dead, f"{type(err).__name__}: {err} (attempt {tried} of {attempts})")
        else:
            await msg.nak(delay=backoff.delay(tried))
    else:
        await _ack(msg)


async def _handled(msg: Msg, handle: Handle, stop: asyncio.Event) -> bool:
    """Handle a message; or, where a breaker is open, hold it until that is worth another try."""
    try:
        await handle(msg)
    except CircuitOpenError as err:
        until = asyncio.get_running_loop().time() + max(err.retry_after, NO_LEADER_PAUSE_S)
        while not stop.is_set() and (left := until - asyncio.get_running_loop().time()) > 0:
            await msg.in_progress()
            await asyncio.sleep(min(left, HOLD_S))
        return False
    return True


async def _ack(msg: Msg) -> None:
    """Acknowledge, and wait until the server has it: only then it does not come again."""
    try:
        await msg.ack_sync(timeout=2.0)
    except (TimeoutError, NoRespondersError):
        return  # no leader at the moment: it may come again, which an idempotent handler bears
    except MsgAlreadyAckdError:
        return  # the handler did
