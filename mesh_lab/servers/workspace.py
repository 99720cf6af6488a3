"""The part of this machine that belongs to one mesh: a private directory, ports, and a guard that frees both.

A client that redials a killed server must not find another program there. So ports come from blocks below the range
from which the operating system picks outgoing ports (32768 on Linux, 49152 elsewhere), and each block is held by a
lock: a socket bound to its first port for as long as the mesh lives. A program that takes a port of the block without
asking is found out when the server fails to bind, and the mesh moves to another block.
"""

import os
import random
import secrets
import shutil
import socket
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Self

from mesh_lab.errors import NotReadyError, StoreError
from mesh_lab.processes import OWNER_VARIABLE, ChildProcess
from mesh_lab.servers.guard import DISMISSED, kill_owned

FIRST_PORT, LAST_PORT, BLOCK_SIZE = 15_000, 31_000, 128
FREE_DISK_BYTES = 256 * 2**20
CLEAN_UP_WITHIN_S = 10.0


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of 127.0.0.1 at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set the option too, so a port in TIME_WAIT is free to them. On Windows, two programs would share it.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class PortBlock:
    """Ports that this process holds, on 127.0.0.1.

    Attributes:
        dead: The lock's own port: nothing can listen there, and a server that dials it is refused.
    """

    def __init__(self, lock: socket.socket) -> None:
        self._lock = lock
        self.dead: int = lock.getsockname()[1]
        self._ports = iter(range(self.dead + 1, self.dead + BLOCK_SIZE))

    @classmethod
    def reserve(cls, kept: int | None = None) -> Self:
        """Return a block that no other mesh on this machine holds, or the one that begins with a kept port.

        Raises:
            NotReadyError: Every block is taken, or the kept one, or programs listen in it for 10 s.
        """
        bases = list(range(FIRST_PORT, LAST_PORT, BLOCK_SIZE))
        random.shuffle(bases)
        if kept is not None:
            bases, deadline = [kept], time.monotonic() + CLEAN_UP_WITHIN_S
            # The servers of a mesh that was killed a moment ago; its guard is about to end them.
            while not all(map(is_free, range(kept + 1, kept + BLOCK_SIZE))) and time.monotonic() < deadline:
                time.sleep(0.05)
        for base in bases:
            lock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                lock.bind(("127.0.0.1", base))
            except OSError:  # another mesh holds this block, or the system reserves the port
                lock.close()
            else:
                return cls(lock)
        if kept is not None:
            raise NotReadyError(f"port {kept} is taken; end the mesh that runs from the same folder, or its program")
        raise NotReadyError(
            f"all {len(bases)} port blocks between {FIRST_PORT} and {LAST_PORT} are taken; "
            "close other meshes, or end programs that listen there"
        )

    def take(self) -> int:
        """Return the block's next port on which nothing listens at this moment; NotReadyError if it is used up."""
        for port in self._ports:
            if is_free(port):
                return port
        raise NotReadyError(f"all {BLOCK_SIZE} ports of the mesh's block are used; start a smaller mesh")

    def release(self) -> None:
        """Give the block back; releasing twice does nothing."""
        self._lock.close()


class Workspace:
    """What one mesh has of this machine, and the guard that gives it back when this process dies.

    Attributes:
        directory: Mode 0700; holds configurations, stores and logs.
        stores: Where the stores are: there, or in a folder that outlives the mesh.
        ports: Ports that no other mesh uses.
        owner: Mark in the environment of every process that the mesh starts.
    """

    def __init__(self, keep: Path | None = None) -> None:
        place = tempfile.gettempdir()
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="mesh-lab-"))
            free = shutil.disk_usage(self.directory).free
        except OSError as err:
            raise StoreError(
                f"cannot make a directory for the servers' stores in {place}: {err.strerror or err}; "
                "make it writable, or name another one with the variable TMPDIR"
            ) from err
        if free < FREE_DISK_BYTES:
            self.directory.rmdir()
            raise StoreError(
                f"{free / 2**20:.0f} MiB free in {place}, expected at least {FREE_DISK_BYTES / 2**20:.0f} MiB for the "
                "servers' stores; make room, or name another place with the variable TMPDIR"
            )
        self.owner = secrets.token_hex(16)
        self.stores, number = (self.directory, None) if keep is None else (keep, keep / "port")
        self.ports = PortBlock.reserve(int(number.read_text()) if number is not None and number.exists() else None)
        if number is not None:
            number.write_text(str(self.ports.dead))
        self._guard = ChildProcess(
            [sys.executable, "-m", "mesh_lab.servers.guard", str(self.directory), OWNER_VARIABLE, self.owner],
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
        kill_owned(OWNER_VARIABLE, self.owner)
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
