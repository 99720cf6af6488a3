"""Work off a consumer: try again what may succeed later, put aside what never will, and leave in good order.

A message ends in one of three ways: it was handled and acknowledged; it waits for its next attempt, at the server, with
a delay that grows; or it lies in a stream for dead letters, with the reason, and is taken off the consumer only after
that was acknowledged. None of them loses it. A handler may see a message twice, so it has to be idempotent.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import MsgAlreadyAckdError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from mesh_lab.errors import PoisonMessageError

FETCH_WITHIN_S = 0.5
NO_LEADER_PAUSE_S = 0.1
REASON, SUBJECT, SEQUENCE, DELIVERIES = "Dead-Reason", "Dead-Subject", "Dead-Sequence", "Dead-Deliveries"

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


async def work_off(
    client: Client,
    stream: str,
    consumer: str,
    handle: Handle,
    *,
    dead: str,
    attempts: int = 5,
    backoff: Backoff | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Handle a consumer's messages one after the other until told to stop, then finish the one in hand and return.

    Cancelled while it waits, it gives back the message that may be on its way; cancelled in the middle of one, it
    leaves that to ``ack_wait``.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        consumer: Name of a pull consumer with explicit acknowledgement, and with ``max_deliver`` above ``attempts``,
            or the server gives messages up before this does.
        handle: Does the work. What it raises means: try again later. :class:`PoisonMessageError` means: never again.
        dead: Subject for dead letters; a stream must listen to it. They keep payload and headers.
        attempts: How often a message is tried before it counts as dead.
        backoff: How long it waits in between.
        stop: Set it to end.

    Raises:
        nats.js.errors.NoStreamResponseError: Nobody keeps the dead letters; the message in hand was not taken off.
    """
    js, backoff, stop = client.jetstream(), backoff or Backoff(), stop or asyncio.Event()
    messages = await js.pull_subscribe_bind(consumer, stream=stream)
    try:
        while not stop.is_set():
            for msg in await _fetch_or_give_back(messages):
                await _attempt(msg, handle, js, dead=dead, attempts=attempts, backoff=backoff)
    finally:
        await messages.unsubscribe()


async def _fetch_or_give_back(messages: JetStreamContext.PullSubscription) -> list[Msg]:
    """Fetch; when cancelled meanwhile, give back what was on its way, or it would wait for ``ack_wait``."""
    fetching = asyncio.ensure_future(_fetch(messages))
    try:
        return await asyncio.shield(fetching)
    except asyncio.CancelledError:
        for msg in await fetching:
            await msg.nak()
        raise


async def _fetch(messages: JetStreamContext.PullSubscription) -> list[Msg]:
    try:
        return await messages.fetch(1, timeout=FETCH_WITHIN_S)
    except TimeoutError:
        return []  # nothing there
    except APIError:
        await asyncio.sleep(NO_LEADER_PAUSE_S)  # the consumer has no leader at the moment
        return []


async def _attempt(
    msg: Msg, handle: Handle, js: JetStreamContext, *, dead: str, attempts: int, backoff: Backoff
) -> None:
    tried = msg.metadata.num_delivered
    try:
        await handle(msg)
    except PoisonMessageError as err:
        await _bury(msg, js, dead, str(err))
    except Exception as err:  # noqa: BLE001 (whatever it is, the message is tried again or kept with the reason)
        if tried >= attempts:
            await _bury(msg, js, dead, f"{type(err).__name__}: {err} (attempt {tried} of {attempts})")
        else:
            await msg.nak(delay=backoff.delay(tried))
    else:
        await _ack(msg)


async def _ack(msg: Msg) -> None:
    """Acknowledge, and wait until the server has it: only then it does not come again."""
    try:
        await msg.ack_sync(timeout=2.0)
    except TimeoutError:
        return  # it may come again, which an idempotent handler bears
    except MsgAlreadyAckdError:
        return  # the handler did


async def _bury(msg: Msg, js: JetStreamContext, dead: str, reason: str) -> None:
    about = msg.metadata
    headers = {
        **(msg.headers or {}),
        REASON: " ".join(reason.split()),
        SUBJECT: msg.subject,
        SEQUENCE: str(about.sequence.stream),
        DELIVERIES: str(about.num_delivered),
        # Buried twice, after an acknowledgement that was lost, it is one letter.
        "Nats-Msg-Id": f"{about.stream}.{about.consumer}.{about.sequence.stream}",
    }
    await js.publish(dead, msg.data, headers=headers)
    await msg.term()
