"""Start the children of a load generator, lead them through a run, and end them whatever happens.

Plain ``subprocess`` and threads: ``asyncio``'s own subprocesses do not work on the event loop that Jupyter runs
on Windows.
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import msgspec

from mesh_lab.errors import LoadFailedError
from mesh_lab.measure.load_jobs import Report, Task

GRACE_S = 5.0
STDERR_BYTES = 8_000


class Child:
    """One child process, seen from its parent. Its methods block."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # A file, because a pipe that nobody reads would stop a child that has much to say.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # end() closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mesh_lab.measure.load_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # interrupting a cell is the parent's business
        )
        self.tell(msgspec.json.encode(task))

    def tell(self, line: bytes = b"") -> None:
        """Hand the child a line; the empty one means "go on"."""
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it is dead: hear() says how it died

    def hear(self) -> bytes:
        """Return the child's next line.

        Raises:
            LoadFailedError: It ended without one.
        """
        assert self._process.stdout is not None  # noqa: S101
        if line := self._process.stdout.readline():
            return line
        code = self._process.wait()
        self._stderr.seek(0, 2)
        self._stderr.seek(max(0, self._stderr.tell() - STDERR_BYTES))
        words = self._stderr.read().decode(errors="replace").strip()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = words.rsplit("\n", 1)[-1] or "it left no message"
        raise LoadFailedError(f"load child {self.task.role!r} {how}: {last}\n{words}".strip())

    def end(self) -> None:
        """Kill the child if it still runs, and give back what it held; calling it twice does nothing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # words that it never read
                    continue


async def run_children(
    publishers: Sequence[Task], subscribers: Sequence[Task] = (), *, within: float
) -> tuple[list[Report], list[Report]]:
    """Run a load: every child ready, publishers off together, then subscribers told that all was sent.

    Args:
        publishers: Tasks that begin when everyone is ready.
        subscribers: Tasks that run until the publishers are done and nothing more arrives.
        within: Seconds until the children must be done; 5 s later they are killed.

    Returns:
        The reports of the publishers and those of the subscribers, in the tasks' order.

    Raises:
        LoadFailedError: A child ended without a report, or was not done in time.
    """
    children: list[Child] = []
    loop = asyncio.get_running_loop()
    tasks = [*subscribers, *publishers]
    # Threads of its own: the loop's default ones are few, and a child that is slow would hold up all others.
    threads = ThreadPoolExecutor(len(tasks), thread_name_prefix="load")

    stopping = threading.Event()

    def start() -> None:
        for task in tasks:
            if not stopping.is_set():
                children.append(Child(task))

    async def hear(some: Sequence[Child]) -> list[bytes]:
        return await asyncio.gather(*(loop.run_in_executor(threads, child.hear) for child in some))

    async def lead(sending: Sequence[Child], receiving: Sequence[Child]) -> list[bytes]:
        for child in sending:
            child.tell()
        lines = await hear(sending)
        for child in receiving:
            child.tell()
        return lines

    try:
        async with asyncio.timeout(within + GRACE_S):
            await loop.run_in_executor(threads, start)
            receiving, sending = children[: len(subscribers)], children[len(subscribers) :]
            await hear(children)
            # Subscribers are listened to from the beginning, so that the death of one is noticed at once.
            sent, got = await asyncio.gather(lead(sending, receiving), hear(receiving))
    except TimeoutError as err:
        raise LoadFailedError(f"the load was not done after {within + GRACE_S:g} s; its children hang") from err
    finally:
        stopping.set()
        for child in children:
            child.end()
        threads.shutdown()
        for child in children:  # one that was just being started
            child.end()
    return [_report(line) for line in sent], [_report(line) for line in got]


def _report(line: bytes) -> Report:
    return msgspec.json.decode(line, type=Report)
