"""Wait with a deadline: for a condition, for a request that succeeds, for tasks that end."""

import asyncio
import inspect
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns.connection import LOOK_EVERY_S
from mesh_lab.patterns.jetstream_api import is_transient

T = TypeVar("T")
CHECK_EVERY_S, RETRY_EVERY_S = 0.02, 0.2
SHOWN_CHARACTERS = 300


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float, every: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float, every: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float, every: float = CHECK_EVERY_S) -> Any:
    """Return the condition's value as soon as it is true.

    Args:
        condition: A plain or an ``async`` function. It is called at least once, and what it raises ends the wait.
        within: Seconds until it is too late; an ``async`` condition that hangs is cut off then.
        every: Seconds between two calls; 0 calls it at every turn of the event loop.

    Raises:
        NotReadyError: The condition was still not true; the message says what it last returned.
    """
    deadline = time.monotonic() + within
    last = "it never returned"
    while True:
        value = condition()
        if inspect.isawaitable(value):
            # The limit is for the condition alone: what it raises, a TimeoutError of its own included, is passed on.
            call = asyncio.ensure_future(value)
            try:
                await asyncio.wait({call}, timeout=max(deadline - time.monotonic(), 0.0))
            finally:
                await cancel_and_join(call)
            if call.cancelled():
                break
            value = call.result()
        if value:
            return value
        shown = repr(value)
        last = f"it last returned {shown[:SHOWN_CHARACTERS]}{'…' * (len(shown) > SHOWN_CHARACTERS)}"
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(every)
    raise NotReadyError(f"condition not met within {within} s ({last}), expected something true")


async def retry(
    request: Callable[[], Awaitable[T]],
    *,
    within: float = 30.0,
    every: float = RETRY_EVERY_S,
    transient: Callable[[Exception], bool] = is_transient,
) -> T:
    """Return what a request returns, and repeat it while its error is transient, as while servers elect a leader.

    Args:
        request: Makes the request, with a timeout of its own of a few seconds. It may be carried out twice, so twice
            has to be as good as once: true for making a stream, while of two deletions the second may find nothing.
        within: Seconds after which the last error is raised instead of another try.
        every: Seconds between two tries, give or take a half, so that clients do not try in the same millisecond.
        transient: Returns whether an error is worth another try.

    Raises:
        TimeoutError: No reply came in time.
        nats.js.errors.APIError: The servers still had no leader, or were still busy with the request.
        Exception: What the request raised and is not transient, at once.
    """
    deadline = time.monotonic() + within
    while True:
        try:
            return await request()
        except Exception as err:
            if not transient(err) or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(every * random.uniform(0.5, 1.5))


async def unless_closed(client: Client, request: Coroutine[Any, Any, T]) -> T:
    """Return what a client's request returns, or raise ConnectionClosedError at once when the client is closed.

    nats-py itself lets a request wait for its time-out then.
    """
    task = asyncio.ensure_future(request)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_EVERY_S))[0]:
            if client.is_closed:
                raise nats.errors.ConnectionClosedError
    finally:
        await cancel_and_join(task)
    return task.result()


async def cancel_and_join(*tasks: "asyncio.Future[Any]", again_after: float = 1.0) -> None:
    """Cancel tasks, and return when all of them have ended; what they raised is not raised here.

    Once is not always enough: ``asyncio.wait_for``, with which nats-py waits for replies, loses in Python 3.11 a
    cancellation that comes together with the result (https://github.com/python/cpython/issues/86296).

    Args:
        tasks: What to end; tasks that are done are left as they are.
        again_after: Seconds after which those that go on are cancelled again; longer than they need to end well.
    """
    while going_on := [task for task in tasks if not task.done()]:
        for task in going_on:
            task.cancel()
        await asyncio.wait(going_on, timeout=again_after)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn of it


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns; a caller that is cancelled meanwhile, however often, waits for its end first.

    For what must be undone afterwards: an ``asyncio.to_thread`` that is cancelled leaves its thread at work.

    Args:
        work: A coroutine that ends by itself.
    """
    task, cancelled = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as err:
            cancelled = err
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
