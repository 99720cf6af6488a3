"""Wait for a condition, with a deadline, instead of sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

from mesh_lab.errors import NotReadyError

T = TypeVar("T")
LOOK_EVERY_S = 0.02
SHOWN_CHARACTERS = 300


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float, every: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float, every: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float, every: float = LOOK_EVERY_S) -> Any:
    """Return the condition's value as soon as it is true.

    ::

        received = []
        await eventually(lambda: len(received) == 3, within=5.0)

    Args:
        condition: Looks at the world, as a plain or as an ``async`` function. It is called once at least, and
            what it raises ends the wait.
        within: Seconds until it is too late; an ``async`` condition that hangs is cut off then.
        every: Seconds between two looks; 0 looks at every turn of the event loop.

    Raises:
        NotReadyError: The condition was still not true; the message says what it last returned.
    """
    deadline = time.monotonic() + within
    seen = "it never returned"
    while True:
        value = condition()
        if inspect.isawaitable(value):
            # The limit is for the condition alone: what it raises, a TimeoutError of its own included, is passed on.
            look = asyncio.ensure_future(value)
            await _wait_or_cancel(look, max(deadline - time.monotonic(), 0.0))
            if look.cancelled():
                break
            value = look.result()
        if value:
            return value
        seen = f"it last returned {_short(value)}"
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(every)
    raise NotReadyError(f"condition not met within {within} s ({seen}), expected something true")


async def cancel_and_join(*tasks: "asyncio.Task[Any]", again_after: float = 1.0) -> None:
    """Cancel tasks, and return when all of them have ended; what they raised is theirs to tell.

    Once is not always enough. In Python 3.11, ``asyncio.wait_for`` loses a cancellation that comes together with the
    result (https://github.com/python/cpython/issues/86296), nats-py waits for every answer with it, and a task that
    goes on then waits for ever.

    Args:
        tasks: What to end; tasks that are done are left as they are.
        again_after: Seconds after which those that go on are cancelled again. It has to be longer than what they do
            to end in good order.
    """
    while going_on := [task for task in tasks if not task.done()]:
        for task in going_on:
            task.cancel()
        await asyncio.wait(going_on, timeout=again_after)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not warn of it


async def run_shielded(work: Coroutine[Any, Any, T]) -> T:
    """Return what a piece of work returns; who is cancelled meanwhile, however often, waits until it has ended.

    A thread cannot be cancelled: ``asyncio.to_thread`` gives up waiting, and the thread goes on beside whatever is
    done next. What must be undone afterwards goes through here.

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


async def _wait_or_cancel(look: "asyncio.Future[Any]", within: float) -> None:
    try:
        await asyncio.wait({look}, timeout=within)
    finally:
        if not look.done():
            look.cancel()
            await asyncio.wait({look})


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
