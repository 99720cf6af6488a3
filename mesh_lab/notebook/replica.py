"""One replica of a service: an operating-system process, its log, and how it ended."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from mesh_lab.servers.guard import OWNER_VARIABLE

State = Literal["running", "stopped", "killed", "crashed", "finished"]
if sys.platform == "win32":
    # Windows has no SIGTERM between processes, its terminate() is a kill; and Ctrl-Break goes to a whole group.
    STOP_SIGNAL, NEW_GROUP = signal.CTRL_BREAK_EVENT, subprocess.CREATE_NEW_PROCESS_GROUP
else:
    STOP_SIGNAL, NEW_GROUP = signal.SIGTERM, 0
STOP_PATIENCE_S = 9.0  # a little more than the host's own limits together; see service_host.py


class Replica:
    """A process that runs a service's code.

    Attributes:
        number: Counted from 1.
        name: ``worker-1``: name of its connection, and its ``SERVICE_NAME``.
        crash: What it said when it crashed, a traceback as a rule; empty while it did not.
        error: The same in a line.
        shown: Whether the crash was shown to the reader.
    """

    def __init__(self, service: str, number: int, *, directory: Path, wanted: Callable[[], bool]) -> None:
        """Prepare; nothing is started yet.

        Args:
            service: Name of the service.
            number: Number of this replica, from 1.
            directory: Private directory for its log and its crash report.
            wanted: Says whether its mesh is still open; an end after that is no crash.
        """
        self.number, self.name = number, f"{service}-{number}"
        self.crash, self.error, self.shown = "", "", False
        self._log_file = directory / f"{self.name}.log"
        self._crash_file = directory / f"{self.name}.crash"
        self._wanted = wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: State | None = None
        self._ended: State | None = "stopped"

    def __repr__(self) -> str:
        """Return name and state, without the process id."""
        return f"<{self.name}: {self.state}>"

    @property
    def state(self) -> State:
        """What the process does now, or how it ended."""
        if self._ended is None and self._process is not None and (code := self._process.poll()) is not None:
            self._ended = self._how_it_ended(code)
        return self._ended or "running"

    def _how_it_ended(self, code: int) -> State:
        if self._asked is not None:
            return self._asked
        if code == 0:
            return "finished"
        if not self._wanted():  # the mesh was closed: it took its processes along, or the ground from under them
            return "stopped"
        if self._crash_file.exists():
            self.error, _, self.crash = self._crash_file.read_text(encoding="utf-8").partition("\n")
        else:
            self.error = f"exited with code {code}"
            said = self.log(last=5)
            self.crash = self.error + (f"; its last log lines:\n{said}" if said else "")
        return "crashed"

    def start(self, program: Path, *, owner: str, environment: Mapping[str, str]) -> None:
        """Start the process; it is not ready yet when this returns.

        Args:
            program: File with the service's source.
            owner: Mark by which the mesh's guard finds and kills it.
            environment: Variables on top of this process's own.
        """
        self.crash, self.error, self.shown = "", "", False
        self._crash_file.unlink(missing_ok=True)
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mesh_lab.notebook.service_host", str(program), str(self._crash_file)],
                stdin=subprocess.PIPE,  # see release()
                stdout=log,
                stderr=log,
                env={**os.environ, **environment, OWNER_VARIABLE: owner, "SERVICE_NAME": self.name},
                start_new_session=True,  # an interrupt is for the kernel, not for its services
                creationflags=NEW_GROUP,
            )
        self._asked = self._ended = None  # only now: a process that could not be started does not run

    def release(self) -> None:
        """Tell the process that its report of being ready was heard, by closing the pipe to it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def ask_to_stop(self) -> None:
        """Ask the process to end in good order (SIGTERM); :meth:`wait_stopped` waits until it did."""
        if self._process is None or self.state != "running":
            return
        self._asked = "stopped"
        self._process.send_signal(STOP_SIGNAL)

    def wait_stopped(self, *, within: float) -> None:
        """Wait until the process is gone; kill it when it takes too long.

        Args:
            within: Seconds to wait before it is killed.
        """
        if self._process is None:
            return
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.release()

    def kill(self) -> None:
        """Kill the process (SIGKILL: it handles nothing more) and wait until it is gone."""
        if self._process is None or self.state != "running":
            return
        self._asked = "killed"
        self._process.kill()
        self._process.wait()

    def log(self, *, last: int | None = None) -> str:
        """Return what it printed since the cell ran.

        Args:
            last: Number of lines from the end; ``None`` for all.
        """
        if not self._log_file.exists():
            return ""
        with self._log_file.open(encoding="utf-8", errors="replace") as lines:
            return "".join(deque(lines, maxlen=last)).rstrip("\n")
