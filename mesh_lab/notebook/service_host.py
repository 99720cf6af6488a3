"""The program of one replica of a service: ``python -m mesh_lab.notebook.service_host FILE CRASH``.

It runs the ``main(nc)`` of a ``%%service`` cell as a small production service: under uvloop, with a named connection
that survives fail-over, and with a graceful shutdown at SIGTERM. Nothing of Jupyter is loaded, so it starts fast.

Some facts about a client are private in nats-py 2.16 (tests/upstream fails when one of them changes):
``Client._resp_map``, the requests that wait for a reply; ``Client._subs``, all subscriptions, and ``_remove_sub`` that
forgets one; ``Subscription._jsi``, which JetStream's have; ``Subscription._pending_next_msgs_calls``, the calls of
``next_msg()`` that wait, and ``_pending_queue``, what came and was not taken.
"""

import asyncio
import contextlib
import json
import linecache
import os
import sys
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from mesh_lab import processes
from mesh_lab.errors import CredentialsError, LoginRefusedError, NotReadyError
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.connection import close, connect, flush, is_login_refused
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.processes import CONNECT_VARIABLE
from mesh_lab.servers.borrowed import who
from mesh_lab.tls import unpack

READY_VARIABLE, MEMBER_VARIABLE = "MESH_LAB_READY", "MESH_LAB_MEMBER"
SETTLE_S = 2.0
"""A main that waits for replies longer than this makes requests as its daily work."""
ANNOUNCE_EVERY_S, AGAIN_S = 0.05, 1.0
CELL_FILE = "<service"
LOOK_EVERY_S = 0.01
FINISH_S, CANCEL_S, CLOSE_S = 5.0, 1.0, 1.0
"""How long a main may take to handle what it has, to clean up when it is cancelled, and its connection to close."""

Main = Callable[[Client], Coroutine[Any, Any, object]]


class Host:
    """Runs main, reports when it is ready, and shuts it down gracefully."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._stop, self._confirmed, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Run main to its end, or until SIGTERM, and close the connection; raises what main raised."""
        processes.on_stop_signal(self._stop.set)
        processes.on_input_line(lambda _: None, at_end=self._confirmed.set)
        # Main has its name and its connection; the credentials stay out of what it may print.
        packed, ready = json.loads(os.environ.pop(CONNECT_VARIABLE)), os.environ.pop(READY_VARIABLE)
        self._member = os.environ.pop(MEMBER_VARIABLE)
        options = cast(ConnectOptions, unpack(packed))
        client: Client | None = await self._connect(options)
        while client is not None and await self._serve(client, ready):
            # nats-py 2.16 closes a client for good when a server says why it hangs up, as for a user that was removed.
            sys.stderr.write(f"shut out: {client.last_error!r}; main(nc) begins again when the servers let it in\n")
            client = await self._connect_again(options)

    async def _connect(self, options: ConnectOptions, **more: Any) -> Client:
        async def note_closed() -> None:
            self._closed.set()

        self._closed.clear()
        name, log = os.environ["SERVICE_NAME"], lambda line: sys.stderr.write(f"{line}\n")
        client = await connect(options, name=name, closed_cb=note_closed, error_cb=_log_error, log=log, **more)
        if self._member:  # before main makes a stream, which is the lesson's too
            await client.publish(self._member, who(client).encode())
        return client

    async def _connect_again(self, options: ConnectOptions) -> Client | None:
        """Return a client as soon as the servers let one in again, ``None`` if main is to stop before that."""
        while not self._stop.is_set():
            with contextlib.suppress(LoginRefusedError, CredentialsError, NotReadyError):
                return await self._connect(options, within=AGAIN_S)
            await asyncio.sleep(AGAIN_S)
        return None

    async def _serve(self, client: Client, ready: str) -> bool:
        """Run main with a client, close that, and return whether the servers shut it out: then main can begin again."""
        main: asyncio.Task[object] = asyncio.create_task(self._main(client))
        ends = [asyncio.create_task(event.wait()) for event in (self._stop, self._closed)]
        try:
            await self._settle(client, main)
            await self._announce(client, main, ready)
            await asyncio.wait({main, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if client.is_closed:  # a main that closes it returns
                await asyncio.wait({main}, timeout=CANCEL_S)
            if not main.done():
                await _finish(client, main)
        finally:
            shut_out = client.is_closed and is_login_refused(client.last_error) and not self._stop.is_set()
            for end in ends:
                end.cancel()
            await close(client, drain=True, within=CLOSE_S)
        if shut_out and (not main.done() or main.cancelled() or main.exception()):
            return True
        if main.done() and not main.cancelled():
            main.result()
        return False

    def _over(self, main: "asyncio.Task[object]") -> bool:
        return main.done() or self._stop.is_set()

    async def _settle(self, client: Client, main: "asyncio.Task[object]") -> None:
        """Let main run until it waits for something other than a reply from the mesh."""
        deadline = time.monotonic() + SETTLE_S
        quiet = 0
        while quiet < 3 and not self._over(main) and time.monotonic() < deadline:
            try:
                await flush(client, within=1.0)  # a round trip: replies to what main sent before are here, too
            except nats.errors.Error:
                await asyncio.sleep(0.01)  # a closed connection refuses at once, and main must get on
                continue
            await asyncio.sleep(0)
            quiet = 0 if client._resp_map else quiet + 1

    async def _announce(self, client: Client, main: "asyncio.Task[object]", subject: str) -> None:
        """Publish until it is confirmed: the listeners' own interest may not have spread yet."""
        confirmed = asyncio.create_task(self._confirmed.wait())
        while not (confirmed.done() or self._over(main)):
            with contextlib.suppress(nats.errors.Error):  # main closes the connection before it returns
                await client.publish(subject)
            await asyncio.wait({confirmed, main}, timeout=ANNOUNCE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        confirmed.cancel()


async def _finish(client: Client, main: "asyncio.Task[object]") -> None:
    """End main gracefully: no new messages, those received are handled, then it is cancelled.

    ``Client.drain`` alone closes the connection as soon as the last message was *taken* from an iterated subscription,
    and with it the inboxes on which main waits for acknowledgements. So what brings work is drained first.
    """
    deadline = time.monotonic() + FINISH_S
    inbox = client.new_inbox().rpartition(".")[0]
    work = [sub for sub in list(client._subs.values()) if _brings_work(sub, inbox)]
    by_hand = [sub for sub in work if not _has_callback(sub)]
    drains = {sub: asyncio.ensure_future(_drain(sub)) for sub in work}
    await asyncio.wait({asyncio.ensure_future(_all_has_come(client))}, timeout=FINISH_S)

    def is_over(sub: Subscription) -> bool:
        # In nats-py 2.16, fetch takes what an earlier one left, such as the status of its end, and does not say that it
        # is done: a drain would wait for that for ever.
        in_vain = bool(sub._pending_next_msgs_calls) and sub._pending_queue.empty()
        return drains[sub].done() or (sub in by_hand and (main.done() or in_vain))

    while not all(map(is_over, work)) and time.monotonic() < deadline:
        await asyncio.wait(drains.values(), timeout=LOOK_EVERY_S)
    # Callbacks have returned when their drain is over. A main that takes messages by hand may still work on the last.
    while by_hand and not main.done() and time.monotonic() < deadline:
        if all(sub._pending_next_msgs_calls for sub in by_hand):  # asks for messages that will not come
            break
        await asyncio.wait({main}, timeout=LOOK_EVERY_S)
    for sub in filter(is_over, work):
        if drains[sub].cancel():
            client._remove_sub(sub._id)  # or the connection's own drain would wait for it
    # One that handles message after message ends by itself when it is done with the one in hand.
    pulling = [getattr(sub._cb, "__self__", None) for sub in list(client._subs.values())]
    for consumer in (one_by_one := [one for one in pulling if isinstance(one, PullConsumer) and not one.ahead]):
        consumer.stop()
    if one_by_one:
        await asyncio.wait({main}, timeout=max(deadline - time.monotonic(), 0.0))
    main.cancel()
    await asyncio.wait({main}, timeout=CANCEL_S)


async def _drain(sub: Subscription) -> None:
    """Drain a subscription; where main drains it already, or the connection is gone, that is as good."""
    with contextlib.suppress(nats.errors.Error, OSError, RuntimeError):
        await sub.drain()  # type: ignore[no-untyped-call]


async def _all_has_come(client: Client) -> None:
    """Return when the server has read what was sent, and what it sent before it did is in the subscriptions' queues."""
    await asyncio.sleep(0)  # what was to be sent is written
    with contextlib.suppress(nats.errors.Error):
        await flush_through(client, within=FINISH_S)


def _brings_work(sub: Subscription, inbox: str) -> bool:
    """Whether it brings more than replies to main's requests."""
    return not (sub.subject.startswith(f"{inbox}.") and _has_callback(sub) and sub._jsi is None)


def _has_callback(sub: Subscription) -> bool:
    try:
        return sub.messages is None
    except nats.errors.Error:  # only those without one can be iterated over
        return True


async def _log_error(error: Exception) -> None:
    """Log an exception of a subscription's callback in full; what concerns the connection is logged by ``connect``."""
    if not isinstance(error, (nats.errors.Error, OSError)):
        sys.stderr.write(_traceback(error))


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


def _traceback(error: BaseException, *, only_cell: bool = False) -> str:
    """Return a traceback that begins in the cell, if it passes through the cell at all.

    ``only_cell`` leaves out what differs between machines and versions of Python: the libraries' frames, with their
    paths, and the marks under a part of a line.
    """
    report = traceback.TracebackException.from_exception(error)
    reports: list[traceback.TracebackException | None] = [report]
    for one in filter(None, reports):  # grows on the way
        in_cell = [frame.filename.startswith(CELL_FILE) for frame in one.stack]
        kept = one.stack[in_cell.index(True) :] if any(in_cell) else one.stack[:]
        if only_cell:
            kept = [frame for frame in kept if frame.filename.startswith(CELL_FILE)] or kept
            kept = [traceback.FrameSummary(frame.filename, frame.lineno, frame.name) for frame in kept]
        one.stack[:] = kept
        reports += [one.__cause__, one.__context__, *(one.exceptions or ())]
    return "".join(report.format())


def _in_a_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):  # a TaskGroup's: what it holds says more than that it holds it
        error = error.exceptions[0]
    return " ".join(traceback.format_exception_only(error)[-1].split())


def run(program: Path, crash_file: Path) -> int:
    """Run a service and return the exit code; of a crash, write the error in a line, then the cell's own traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    try:
        processes.run(Host(_load(program)).run())
    except Exception as err:  # noqa: BLE001  # whatever the reader's code raises is for the reader
        sys.stderr.write(_traceback(err))
        crash_file.write_text(f"{_in_a_line(err)}\n{_traceback(err, only_cell=True)}", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), Path(sys.argv[2])))
