"""The program that runs one replica of a service: ``python -m mesh_lab.notebook.service_host FILE CRASH``.

It runs the ``main(nc)`` of a ``%%service`` cell, as a small production service would be run: under uvloop, with a
named connection that survives fail-over, and with an end in good order at SIGTERM. Nothing of Jupyter is
loaded, so that a replica starts in a tenth of a second.

The replica says that it is ready by a message, over the connection that its subscriptions went over before. Both
take the same way through the mesh, in order: whoever has got the message has the subscriptions.
"""

import asyncio
import contextlib
import json
import linecache
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from mesh_lab.patterns.connection import ConnectOptions, connect
from mesh_lab.processes import CONNECT_VARIABLE
from mesh_lab.tls import unpack

READY_VARIABLE = "MESH_LAB_READY"
SETTLE_S = 2.0  # main waits for answers longer than this only when requests are its daily work
ANNOUNCE_EVERY_S = 0.05
CELL_FILE = "<service"
FINISH_S, CANCEL_S, CLOSE_S = 5.0, 1.0, 1.0

Main = Callable[[Client], Coroutine[Any, Any, object]]


class Host:
    """Runs main, says when it is ready, and ends it in good order."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._stop, self._heard = asyncio.Event(), asyncio.Event()
        _call_at_stop_signal(asyncio.get_running_loop(), self._stop.set)
        _call_at_end_of_input(asyncio.get_running_loop(), self._heard.set)

    async def run(self) -> None:
        """Run main to its end, or until SIGTERM, and close the connection.

        Raises:
            Exception: Whatever main raised.
        """
        # What main needs to know is its name and its connection; who it is to the server is not for its prints.
        packed, ready = json.loads(os.environ.pop(CONNECT_VARIABLE)), os.environ.pop(READY_VARIABLE)
        options = cast(ConnectOptions, unpack(packed))
        client = await connect(options, name=os.environ["SERVICE_NAME"], error_cb=_log_error)
        main: asyncio.Task[object] = asyncio.create_task(self._main(client))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await self._settle(client, main)
            await self._announce(client, main, ready)
            await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not main.done():
                await _finish(client, main)
        finally:
            stopping.cancel()
            # Not asyncio.timeout: nats-py's close() may itself raise CancelledError when a server hangs.
            await asyncio.wait({asyncio.create_task(_close(client))}, timeout=CLOSE_S)
        if main.done() and not main.cancelled():
            main.result()

    def _over(self, main: "asyncio.Task[object]") -> bool:
        return main.done() or self._stop.is_set()

    async def _settle(self, client: Client, main: "asyncio.Task[object]") -> None:
        """Let main run until it waits for something else than an answer from the mesh."""
        deadline = time.monotonic() + SETTLE_S
        quiet = 0
        while quiet < 3 and not self._over(main) and time.monotonic() < deadline:
            try:
                await client.flush(timeout=1)  # a round trip: answers to what main sent before are here, too
            except nats.errors.Error:
                await asyncio.sleep(0.01)  # a closed connection refuses at once, and main must get on
                continue
            await asyncio.sleep(0)
            # nats-py has no public count of the requests that are out.
            quiet = 0 if client._resp_map else quiet + 1

    async def _announce(self, client: Client, main: "asyncio.Task[object]", subject: str) -> None:
        """Publish until somebody heard it: the listeners' own interest may not have spread yet."""
        heard = asyncio.create_task(self._heard.wait())
        while not (heard.done() or self._over(main)):
            with contextlib.suppress(nats.errors.Error):  # main closes the connection before it returns
                await client.publish(subject)
            await asyncio.wait({heard, main}, timeout=ANNOUNCE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()


async def _finish(client: Client, main: "asyncio.Task[object]") -> None:
    """End main in good order: no new messages, those received are handled, then it is cancelled.

    ``Client.drain`` alone would not do. It closes the connection as soon as the last message was *taken* from an
    iterated subscription, while main still works on it, and it closes the inboxes on which main, at that work,
    waits for its own acknowledgements. So the subscriptions that bring work are drained first.
    """
    deadline = time.monotonic() + FINISH_S
    inbox = client.new_inbox().rpartition(".")[0]
    # nats-py has no public list of subscriptions.
    work = [sub for sub in list(client._subs.values()) if _brings_work(sub, inbox)]
    # One that main drains already refuses; that is as good.
    drained = asyncio.gather(*(sub.drain() for sub in work), return_exceptions=True)  # type: ignore[no-untyped-call]
    await asyncio.wait({drained}, timeout=FINISH_S)
    # Callbacks have returned when their drain is over. Who takes messages by hand may still work on the last one.
    by_hand = [sub for sub in work if sub._cb is None]
    while by_hand and not main.done() and time.monotonic() < deadline:
        if all(sub._pending_next_msgs_calls for sub in by_hand):  # asks for messages that will not come
            break
        await asyncio.wait({main}, timeout=0.01)
    main.cancel()
    await asyncio.wait({main}, timeout=CANCEL_S)


def _brings_work(sub: Subscription, inbox: str) -> bool:
    answers = sub.subject.startswith(f"{inbox}.") and sub._cb is not None and sub._jsi is None
    return not answers


async def _close(client: Client) -> None:
    try:
        await client.drain()
    except (nats.errors.Error, OSError):
        await client.close()


async def _log_error(error: Exception) -> None:
    """Log what a subscription's callback raised in full, and the connection's troubles in a line."""
    if isinstance(error, (nats.errors.Error, OSError)):
        sys.stderr.write(f"{error!r}\n")
    else:
        sys.stderr.write(_told(error))


def _call_at_stop_signal(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    if sys.platform == "win32":
        for number in (signal.SIGTERM, signal.SIGBREAK):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
    else:
        loop.add_signal_handler(signal.SIGTERM, stop)


def _call_at_end_of_input(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    def read() -> None:
        # Not sys.stdin: a thread that sits in its lock at the interpreter's end is a fatal error.
        while os.read(0, 1):
            continue
        if not loop.is_closed():
            loop.call_soon_threadsafe(call)

    threading.Thread(target=read, daemon=True).start()


def _load(path: Path) -> Main:
    """Run the cell as a module and return its ``main``; tracebacks show its lines as they stand in the notebook."""
    source = path.read_text(encoding="utf-8")
    name = f"{CELL_FILE} {path.stem}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    # As in the notebook, the cell's own names live in __main__: classes are found there by pickle and msgspec.
    module = sys.modules["__main__"] = ModuleType("__main__")
    vars(module).update(asyncio=asyncio, os=os)
    exec(compile(source, name, "exec", dont_inherit=True), vars(module))  # noqa: S102  # the reader's own cell
    main: Main = vars(module)["main"]
    return main


def _told(error: BaseException, *, only_cell: bool = False) -> str:
    """Return a traceback that begins in the cell, where it comes by the cell at all.

    Args:
        error: What was raised.
        only_cell: Leave out what differs between machines and versions of Python: the libraries' frames, with their
            paths, and the marks under a part of a line.
    """
    told = traceback.TracebackException.from_exception(error)
    _prune(told, only_cell)
    return "".join(told.format())


def _prune(told: traceback.TracebackException | None, only_cell: bool) -> None:
    if told is None:
        return
    first = next((i for i, frame in enumerate(told.stack) if frame.filename.startswith(CELL_FILE)), 0)
    kept = told.stack[first:]
    if only_cell:
        kept = [frame for frame in kept if frame.filename.startswith(CELL_FILE)] or kept
        kept = [traceback.FrameSummary(frame.filename, frame.lineno, frame.name) for frame in kept]
    told.stack[:] = kept
    for other in (told.__cause__, told.__context__, *(told.exceptions or ())):
        _prune(other, only_cell)


def _in_a_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):  # a TaskGroup's: what it holds says more than that it holds it
        error = error.exceptions[0]
    return " ".join(traceback.format_exception_only(error)[-1].split())


async def _host(main: Main) -> None:
    await Host(main).run()


def run(program: Path, crash_file: Path) -> int:
    """Run a service and return the exit code: 1 after a crash, whose report stands in a file.

    Args:
        program: File with the cell's source.
        crash_file: Where to write a crash: the error in a line, then the traceback, reduced to the cell's own lines.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    if sys.platform == "win32":
        factory = asyncio.new_event_loop
    else:
        import uvloop

        factory = uvloop.new_event_loop
    try:
        main = _load(program)
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_host(main))
    except Exception as err:  # noqa: BLE001  # whatever the reader's code raises is for the reader
        sys.stderr.write(_told(err))
        crash_file.write_text(f"{_in_a_line(err)}\n{_told(err, only_cell=True)}", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2])))
