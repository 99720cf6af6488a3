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
import subprocess
import sys
import time
import weakref
from pathlib import Path

OWNER_VARIABLE = "MESH_LAB_OWNER"
CLOSED = b"closed"


class Guard:
    """The guard process of one mesh, seen from the mesh."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mesh_lab.servers.guard", str(directory), owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Jupyter interrupts and kills the kernel's whole process group
            # Unmarked: it has to outlive also those that another mesh's guard kills.
            env={name: value for name, value in os.environ.items() if name != OWNER_VARIABLE},
        )
        _guards.add(self)

    def forget(self) -> None:
        """Let go of the pipe in a forked child, which would otherwise keep the guard waiting for its own end."""
        if self._process.stdin:
            self._process.stdin.close()

    def stand_down(self) -> None:
        """End the guard because the mesh has cleaned up by itself."""
        try:
            self._process.communicate(CLOSED, timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def release(self) -> None:
        """Let go of the pipe and wait while the guard cleans up; for a mesh that is forgotten unclosed."""
        self.forget()
        self._process.wait(10.0)


_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()


def _forget_all() -> None:
    for guard in tuple(_guards):
        guard.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def kill_owned(owner: str, *, within: float = 4.0) -> None:
    """Kill every process that carries this owner's mark, and return when none is left.

    Args:
        owner: Value of the mark in the processes' environment.
        within: Seconds after which to give up; a process that cannot be killed hangs in the kernel.
    """
    import psutil

    deadline = time.monotonic() + within
    clean_looks = 0
    # One more look after the first clean one: a process that was being started during the first is seen then.
    while clean_looks < 2 and time.monotonic() < deadline:
        found = False
        for process in psutil.process_iter():
            try:
                if process.environ().get(OWNER_VARIABLE) == owner and process.status() != psutil.STATUS_ZOMBIE:
                    found = True
                    process.kill()
            except (psutil.Error, OSError):  # it ended meanwhile, or belongs to somebody else
                continue
        clean_looks = 0 if found else clean_looks + 1
        time.sleep(0.05)


def main() -> None:
    """Wait for the end of standard input, then clean up unless told that all is done."""
    directory, owner = Path(sys.argv[1]), sys.argv[2]
    if sys.stdin.buffer.read() == CLOSED:
        return
    kill_owned(owner)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
