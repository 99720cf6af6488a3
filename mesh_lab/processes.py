"""Child processes: how they are started, read from and stopped, and what a child does on its own side.

The parent's side is :class:`ChildProcess`, and :func:`output_of` for a command that runs to its end; the child's is
:func:`run`, :func:`on_stop_signal` and :func:`on_input_line`. The standard library only, as services in containers need
it; and plain ``subprocess``, because asyncio's own does not work on Jupyter's event loop on Windows. What waits here
blocks, and belongs in a thread where an event loop runs.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from mesh_lab.errors import ProcessEndedError

OWNER_VARIABLE = "MESH_LAB_OWNER"
"""Marks a mesh's processes, and theirs in turn: the mesh's guard kills what carries its mark."""
CONNECT_VARIABLE = "MESH_LAB_CONNECT"
"""Arguments of ``nats.connect`` as JSON, for a service that a mesh starts: password, token or certificate included."""
if sys.platform == "win32":
    # Windows has no SIGTERM between processes, its terminate() is a kill; and Ctrl-Break goes to a whole group.
    STOP_SIGNAL, _FLAGS = signal.CTRL_BREAK_EVENT, subprocess.CREATE_NEW_PROCESS_GROUP
else:
    STOP_SIGNAL, _FLAGS = signal.SIGTERM, 0
ERROR_LOG_BYTES = 8_000  # end of a log that an error carries: a long traceback, and not a gigabyte
CANCEL_TIMES, CANCEL_EVERY_S = 5, 0.2
BACKGROUND_EVERY_S = 0.5
T = TypeVar("T")


class ChildProcess:
    """A child process in a session of its own: Ctrl-C in a terminal or an interrupted cell does not reach it.

    It may be started again after it ended; its log goes on. Every method may be called in every state.

    Attributes:
        command: Program and arguments of the next start.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log: Path | None = None,
        owner: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bool = False,
        stdout: bool = False,
    ) -> None:
        """Prepare it; nothing is started yet.

        Args:
            command: Program and arguments. No secrets: every user of the machine can read them.
            name: What errors call it, for example ``"load child 'publisher'"``.
            log: File to which its standard error is appended, and its standard output where that is no pipe;
                ``None`` for a temporary file that :meth:`close` removes.
            owner: Mark by which a mesh's guard finds and kills it; ``""`` for none, ``None`` for this process's own.
            environment: Variables on top of those that this process has when it starts it.
            stdin: Whether it can be sent lines; without, its standard input is empty.
            stdout: Whether its standard output can be read: :meth:`receive` and :meth:`rest`.
        """
        self.name, self._log_file = name, log
        self.command = list(command)
        self._variables = {**(environment or {}), **({} if owner is None else {OWNER_VARIABLE: owner})}
        self._stdin, self._stdout = stdin, stdout
        self._unnamed_log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> Self:
        """Start it and return it.

        Raises:
            OSError: The program cannot be run.
        """
        if self._log_file is None:  # not a pipe: one that nobody reads would stop a child that prints much
            self._unnamed_log = self._unnamed_log or tempfile.TemporaryFile()  # noqa: SIM115  # close() closes it
        variables = {**os.environ, **self._variables}
        if not variables.get(OWNER_VARIABLE):
            variables.pop(OWNER_VARIABLE, None)
        with contextlib.ExitStack() as opened:
            log = self._unnamed_log or opened.enter_context(Path(str(self._log_file)).open("ab"))
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE if self._stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._stdout else log,
                stderr=log,
                env=variables,
                start_new_session=True,
                creationflags=_FLAGS,
            )
        return self

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for the signal that killed it; ``None`` while it runs and before."""
        return self._process.poll() if self._process is not None else None

    def send(self, line: bytes = b"") -> None:
        """Write a line to its standard input; when it has ended, :meth:`receive` raises an error that says how."""
        if self._process is not None and self._process.stdin is not None:
            # ValueError: closed by close_input() or close().
            with contextlib.suppress(BrokenPipeError, ConnectionError, ValueError):
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()

    def receive(self) -> bytes:
        """Return the next line of its standard output, without the line's end.

        Raises:
            ProcessEndedError: It ended, or was closed, without one.
        """
        if self._process is not None and self._process.stdout is not None:
            with contextlib.suppress(ValueError):  # closed meanwhile
                if line := self._process.stdout.readline():
                    return line.rstrip(b"\r\n")
        raise self._ended_error()

    def request(self, value: Any) -> Any:
        """Send a value as a line of JSON, and return that of the next line as :meth:`receive`; one thread at a time."""
        with self._lock:
            self.send(json.dumps(value).encode())
            return json.loads(self.receive())

    def rest(self, *, within: float) -> bytes:
        """Wait until it has ended by itself, and return the rest of its output: at most what a pipe holds, 64 KB.

        Raises:
            TimeoutError: It has not ended after ``within`` seconds; it is not killed.
        """
        if self._process is None:
            return b""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired as err:
            raise TimeoutError(f"{self.name} did not end within {within:g} s") from err
        return self._process.stdout.read() if self._process.stdout is not None else b""

    def close_input(self) -> None:
        """Close its standard input, so that the child sees its end; in a forked child, let go of the pipe."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # lines that it never read
                self._process.stdin.close()

    def request_stop(self) -> None:
        """Send it SIGTERM, Ctrl-Break on Windows, and return at once."""
        if self._process is not None:
            self._process.send_signal(STOP_SIGNAL)  # Popen sends nothing to a process that has ended

    def wait(self, *, within: float) -> bool:
        """Wait for up to ``within`` seconds, kill it if it still runs, and return whether it ended by itself."""
        try:
            if self._process is not None:
                self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """Kill it (SIGKILL: no clean-up, no goodbye) and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Kill it if it still runs, and give back its pipes and its temporary log."""
        self.kill()
        self.close_input()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        if self._unnamed_log is not None:
            self._unnamed_log.close()
            self._unnamed_log = None

    def log(self, *, last: int | None = None) -> str:
        """Return its log since it was first started, or the ``last`` lines of it."""
        text = b""
        if self._log_file is not None and self._log_file.exists():
            text = self._log_file.read_bytes()
        elif (file := self._unnamed_log) is not None:
            with contextlib.suppress(OSError, ValueError):  # another thread closes it
                if sys.platform != "win32":
                    # The child writes at the position that both share, so it had better not move.
                    text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
                else:
                    file.seek(0)
                    text = file.read()
        lines = text.decode(errors="replace").splitlines()
        return "\n".join(lines if last is None else lines[-last:] if last > 0 else [])

    def _ended_error(self) -> ProcessEndedError:
        """Wait until it has ended, and return an error that says how: exit code or signal, and the end of its log."""
        how, code = "does not run", self._process.wait() if self._process is not None else None
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log = self.log()[-ERROR_LOG_BYTES:].strip()
        last = log.rsplit("\n", 1)[-1] or "it left no message"
        return ProcessEndedError(f"{self.name} {how}: {last}\n{log}".strip(), name=self.name, exit_code=code, log=log)


def output_of(
    command: Sequence[str], *, within: float, environment: Mapping[str, str] | None = None, stderr: bool = False
) -> str:
    """Run a command to its end and return its standard output.

    Args:
        command: Program and arguments; its standard input is empty.
        within: Seconds after which it is killed.
        environment: Variables on top of this process's own.
        stderr: Whether its standard error is returned too.

    Raises:
        ProcessEndedError: It failed, or was not done in time (``exit_code`` is ``None`` then); ``log`` is the end of
            what it printed to standard error, or else to standard output.
        FileNotFoundError: There is no such program.
    """
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if stderr else subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            timeout=within,
        )
    except subprocess.TimeoutExpired as err:
        raise ProcessEndedError(f"`{' '.join(command)}` was not done after {within:g} s", name=command[0]) from err
    if done.returncode != 0:
        printed = ((done.stderr or "").strip() or done.stdout.strip())[-ERROR_LOG_BYTES:]
        message = f"`{' '.join(command)}` ended with code {done.returncode}: {printed or 'it printed nothing'}"
        raise ProcessEndedError(message, name=command[0], exit_code=done.returncode, log=printed)
    return done.stdout


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's where there is one, as for Windows there is not."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a child's main coroutine on a :func:`new_event_loop` to its end, and return what it returns."""

    async def run_and_end_the_rest() -> T:
        try:
            return await main
        finally:
            # The runner cancels what is left once, and waits for ever; nats-py's tasks may lose a cancellation.
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for _ in range(CANCEL_TIMES):
                if rest:
                    for task in rest:
                        task.cancel()
                    _, rest = await asyncio.wait(rest, timeout=CANCEL_EVERY_S)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run_and_end_the_rest())


def on_stop_signal(call: Callable[[], object]) -> None:
    """Call back in the running event loop at SIGTERM and Ctrl-C, Ctrl-Break on Windows, instead of ending."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGBREAK):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(call))
    else:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, call)


def read_input_line() -> bytes:
    """Return one line of standard input without its end; blocks. Before :func:`on_input_line`, which reads the rest."""
    # Unbuffered, here and below: a buffered standard input that a daemon thread reads cannot be closed at exit.
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        return pipe.readline().rstrip(b"\r\n")


def on_input_line(call: Callable[[bytes], object], *, at_end: Callable[[], object] | None = None) -> None:
    """Call back in the running event loop with each further line of standard input, and ``at_end`` of it.

    Without ``at_end``, the process ends when its input does, however busy the loop is: the parent is gone. A process in
    the background of a terminal hears nothing until it is brought to the front, and goes on meanwhile.
    """
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # which would stop it in the background; now, reading fails

    def read() -> None:  # in a thread: not every event loop can read standard input on every platform
        # Where it was closed from the beginning, its number is another file's by now.
        while sys.stdin is not None:
            try:
                with open(0, "rb", buffering=0, closefd=False) as pipe:
                    while line := pipe.readline():
                        loop.call_soon_threadsafe(call, line.rstrip(b"\r\n"))
                break
            except OSError as err:
                if err.errno != errno.EIO:
                    raise
                time.sleep(BACKGROUND_EVERY_S)
        if at_end is None:
            os._exit(1)
        if not loop.is_closed():
            loop.call_soon_threadsafe(at_end)

    threading.Thread(target=read, daemon=True).start()
