"""A process that outlives a killed kernel just long enough to clean up after it.

``kill -9`` leaves a program no chance to stop its servers. So each mesh starts this guard, which holds the
read end of a pipe whose only write end is in the mesh's process. When that process ends, however it ends,
the pipe ends too, and the guard kills what the mesh started and removes its directory.

What the mesh started is known by an environment variable that its processes, and theirs in turn, inherit:
the guard never goes by name, and never touches a process of anyone else. A mesh that one of them starts has a mark and
a guard of its own.
"""

import os
import shutil
import sys
import time
import weakref
from pathlib import Path

from mesh_lab.processes import OWNER_VARIABLE, ChildProcess

DISMISSED = b"dismissed"
KILL_WITHIN_S = 4.0
"""A process that cannot be killed until then hangs in the kernel."""


class Guard:
    """The guard process of one mesh, seen from the mesh."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._process = ChildProcess(
            [sys.executable, "-m", "mesh_lab.servers.guard", str(directory), owner],
            name="the mesh's guard",
            owner="",  # unmarked: it has to outlive also those that another mesh's guard kills
            stdin=True,
        ).start()
        _guards.add(self)

    def close_pipe(self) -> None:
        """Let go of the pipe in a forked child, which would otherwise keep the guard waiting for its own end."""
        self._process.close_input()

    def dismiss(self) -> None:
        """End the guard because the mesh has cleaned up by itself."""
        self._process.send(DISMISSED)
        self._end(within=5.0)

    def clean_up(self) -> None:
        """Let the guard clean up, and wait for it; for a mesh that is forgotten unclosed."""
        self._end(within=10.0)

    def _end(self, *, within: float) -> None:
        self._process.close_input()
        self._process.wait(within=within)
        self._process.close()


_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()


def _close_pipes() -> None:
    for guard in tuple(_guards):
        guard.close_pipe()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_pipes)


def kill_owned(owner: str) -> None:
    """Kill every process that carries this owner's mark, and return when none is left.

    Args:
        owner: Value of the mark in the processes' environment.
    """
    import psutil

    deadline = time.monotonic() + KILL_WITHIN_S
    clean_scans = 0
    # One more scan after the first clean one: a process that was being started during the first is seen then.
    while clean_scans < 2 and time.monotonic() < deadline:
        found = False
        for process in psutil.process_iter():
            try:
                if process.environ().get(OWNER_VARIABLE) == owner and process.status() != psutil.STATUS_ZOMBIE:
                    found = True
                    process.kill()
            except (psutil.Error, OSError):  # it ended meanwhile, or belongs to somebody else
                continue
        clean_scans = 0 if found else clean_scans + 1
        time.sleep(0.05)


def main() -> None:
    """Wait for the end of standard input, then clean up unless the mesh has."""
    directory, owner = Path(sys.argv[1]), sys.argv[2]
    if sys.stdin.buffer.read().strip() == DISMISSED:
        return
    kill_owned(owner)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
