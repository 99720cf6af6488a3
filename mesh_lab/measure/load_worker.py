"""The child process of a load generator: ``python -m mesh_lab.measure.load_worker``.

It reads one :class:`Task` from standard input (never from its arguments, which every user of the machine can
read, and the task holds a password), does it under uvloop, and writes lines of JSON to standard output:
``{"ready":true}`` when it could begin, its :class:`Report` at the end. In between the parent says when to go on,
with an empty line. When standard input ends, the parent is dead, and so is the child a moment later.

Clocks: ``time.perf_counter_ns`` is the same for all processes of a machine (Python's documentation of ``time``),
so a publisher's first stamp and a subscriber's last one can be subtracted.
"""

import asyncio
import os
import selectors
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

import msgspec
import nats
import nats.errors
from nats.aio.client import Client

from mesh_lab.measure.load_jobs import JOBS, SURVIVES_RECONNECT, Job, Parent, Report, Task, say
from mesh_lab.measure.paced_jobs import PACED_JOBS
from mesh_lab.tls import unpack

ALL_JOBS = {**JOBS, **PACED_JOBS}
RECONNECTING = SURVIVES_RECONNECT | set(PACED_JOBS)


async def _connect(task: Task, gone: asyncio.Event) -> Client:
    """Connect as the task says; ``gone`` is set when the connection can no longer serve the task."""
    seen: dict[str, None] = {}  # in the order of their first coming: a refusal may be followed by mere resets

    async def on_error(error: Exception) -> None:
        seen[repr(error)] = None

    async def on_gone() -> None:
        gone.set()

    defaults: dict[str, Any] = {
        "name": f"load {task.role}",
        "reconnect_time_wait": 0.1,
        "max_reconnect_attempts": 20,
        "error_cb": on_error,
        "closed_cb": on_gone,
    }
    if task.job not in RECONNECTING:
        defaults["disconnected_cb"] = on_gone
    try:
        return await nats.connect(**{**defaults, **unpack(task.options)})
    except nats.errors.NoServersError as err:
        raise ConnectionError(f"no server took the connection: {', '.join(seen) or 'no server given'}") from err


async def _work(task: Task) -> Report:
    parent = Parent(task)
    gone = asyncio.Event()
    try:
        async with asyncio.timeout(task.within):
            client = await _connect(task, gone)
            job = asyncio.ensure_future(_job(task)(client, parent))
            watch = asyncio.ensure_future(gone.wait())
            await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()
                raise ConnectionError(f"the connection broke while waiting for {parent.stage}")
            watch.cancel()
            report = job.result()
    except TimeoutError as err:
        if isinstance(err, nats.errors.Error):
            raise
        raise TimeoutError(f"not done after {task.within:g} s; was waiting for {parent.stage}") from err
    version = client.connected_server_version
    await client.close()
    return msgspec.structs.replace(report, server_version=f"{version.major}.{version.minor}.{version.patch}")


def _job(task: Task) -> Job:
    # A benchmark's jobs know the order mesh, which this floor of the house does not; they are named by their place.
    found: Job = resolve_name(task.job) if ":" in task.job else ALL_JOBS[task.job]
    return found


def _loop_factory(task: Task) -> Callable[[], asyncio.AbstractEventLoop]:
    if task.job in PACED_JOBS:
        # select counts in microseconds; epoll, kqueue under asyncio and uvloop's timers in milliseconds.
        return lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    if task.plain_loop:
        return asyncio.new_event_loop
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # there is no uvloop on Windows
        from uvloop import new_event_loop as new_loop
    return new_loop


def main() -> None:
    """Do the task that standard input names."""
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        task = msgspec.json.decode(pipe.readline(), type=Task)
    with asyncio.Runner(loop_factory=_loop_factory(task)) as runner:
        try:
            report = runner.run(_work(task))
        except BaseException:  # noqa: BLE001
            # Not in good order: that would wait for the cancelled job, and nats-py may swallow its cancellation.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        say(msgspec.json.encode(report))


if __name__ == "__main__":
    main()
