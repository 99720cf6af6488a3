"""The part of this machine that belongs to one mesh: a private directory, ports, and a guard that frees both."""

import os
import secrets
import shutil
import sys
import tempfile
import weakref
from pathlib import Path

from mesh_lab.errors import StoreError
from mesh_lab.processes import ChildProcess
from mesh_lab.servers.guard import DISMISSED, kill_owned
from mesh_lab.servers.ports import PortBlock

FREE_DISK_BYTES = 256 * 2**20
CLEAN_UP_WITHIN_S = 10.0


class Workspace:
    """What one mesh has of this machine, and the guard that gives it back when this process dies.

    Attributes:
        directory: Mode 0700; holds configurations, stores and logs.
        ports: Ports that no other mesh uses.
        owner: Mark in the environment of every process that the mesh starts.
    """

    def __init__(self, parent: Path | None = None) -> None:
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="mesh-lab-", dir=parent))
            free = shutil.disk_usage(self.directory).free
        except OSError as err:
            place = parent or tempfile.gettempdir()
            raise StoreError(
                f"cannot make a directory for the servers' stores in {place}: {err.strerror or err}; "
                "make it writable, or name another one with start_mesh(directory=…) or the variable TMPDIR"
            ) from err
        if free < FREE_DISK_BYTES:
            self.directory.rmdir()
            raise StoreError(
                f"{free / 2**20:.0f} MiB free in {self.directory.parent}, expected at least "
                f"{FREE_DISK_BYTES / 2**20:.0f} MiB for the servers' stores; make room, or name another place "
                "with start_mesh(directory=…) or the variable TMPDIR"
            )
        self.owner = secrets.token_hex(16)
        self.ports = PortBlock.reserve()
        self._guard = ChildProcess(
            [sys.executable, "-m", "mesh_lab.servers.guard", str(self.directory), self.owner],
            name="the mesh's guard",
            owner="",  # unmarked: it has to outlive also those that another mesh's guard kills
            stdin=True,
        ).start()
        _guards.add(self._guard)
        # A mesh that is forgotten unclosed is cleaned up by its guard, when it is collected or at exit.
        self._forgotten = weakref.finalize(self, _clean_up, self._guard, self.ports)

    def remove(self) -> None:
        """End what still runs, remove the directory, give the ports back, end the guard."""
        if self._forgotten.detach() is None:
            return
        kill_owned(self.owner)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._guard.send(DISMISSED)
        _clean_up(self._guard, self.ports)


_guards: "weakref.WeakSet[ChildProcess]" = weakref.WeakSet()


def _close_pipes() -> None:
    """Let go of the pipes in a forked child, which would otherwise keep each guard waiting for its own end."""
    for guard in tuple(_guards):
        guard.close_input()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_pipes)


def _clean_up(guard: ChildProcess, ports: PortBlock) -> None:
    """Let the guard clean up, unless it was dismissed."""
    guard.close_input()
    guard.wait(within=CLEAN_UP_WITHIN_S)
    guard.close()
    ports.release()
