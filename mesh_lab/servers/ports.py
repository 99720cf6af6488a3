"""Free ports without a race.

A client that redials a killed server must not find another program there. So ports come from blocks below the range
from which the operating system picks outgoing ports (32768 on Linux, 49152 elsewhere), and each block is held by a
lock: a socket bound to its first port for as long as the mesh lives. A program that takes a port of the block without
asking is found out when the server fails to bind, and the mesh moves to another block.
"""

import os
import random
import socket
from typing import Self

from mesh_lab.errors import NotReadyError

FIRST_PORT, LAST_PORT, BLOCK_SIZE = 15_000, 31_000, 128


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
    def reserve(cls, *, first: int = FIRST_PORT, last: int = LAST_PORT) -> Self:
        """Return a block, from ``first`` to below ``last``, that no other mesh on this machine holds.

        Raises:
            NotReadyError: Every block is taken.
        """
        bases = list(range(first, last, BLOCK_SIZE))
        random.shuffle(bases)
        for base in bases:
            lock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                lock.bind(("127.0.0.1", base))
            except OSError:  # another mesh holds this block, or the system keeps the port back
                lock.close()
            else:
                return cls(lock)
        raise NotReadyError(
            f"all {len(bases)} port blocks between {first} and {last} are taken; "
            "close other meshes, or end programs that listen there"
        )

    def take(self) -> int:
        """Return the block's next port on which nothing listens at this moment.

        Raises:
            NotReadyError: The block is used up.
        """
        for port in self._ports:
            if is_free(port):
                return port
        raise NotReadyError(f"all {BLOCK_SIZE} ports of the mesh's block are used; start a smaller mesh")

    def release(self) -> None:
        """Give the block back; releasing twice does nothing."""
        self._lock.close()
