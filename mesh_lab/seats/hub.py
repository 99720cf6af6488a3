"""What JupyterHub is given for a workshop: who may take which seat, and how a seat's server is started.

``start.py`` writes JupyterHub's settings and names these two classes in them. A seat has a code, which is all that one
needs to take it, and a home folder. Where the hub runs as root, each seat also has a user id of its own, for which the
machine needs no account: the system then keeps the files, processes and sockets of one seat from all others.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from secrets import compare_digest
from typing import Any

from jupyterhub.auth import Authenticator
from jupyterhub.spawner import LocalProcessSpawner
from traitlets import Dict, Int, Unicode

from mesh_lab.measure.local_store import HOME_VARIABLE
from mesh_lab.seats.seat import BYTES_VARIABLE, LINE_VARIABLE, PROCESSES_VARIABLE

MOST_PROCESSES = 2_000  # threads among them; a seat with three servers and three services has under 200


class CodeAuthenticator(Authenticator):  # type: ignore[misc]  # JupyterHub has no types
    """Lets in who knows a seat's code, as often as they come back."""

    codes = Dict(config=True, help="The code of each seat.")

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """Return the name of the seat whose code was given, ``None`` for a wrong one."""
        name, given = (data.get(field, "").strip().lower() for field in ("username", "password"))
        known: str = self.codes.get(name, "")
        return name if known and compare_digest(known.encode(), given.encode()) else None


class SeatSpawner(LocalProcessSpawner):  # type: ignore[misc]
    """Starts a seat's server as a process, and as the seat's own user where there is one."""

    folder = Unicode(config=True, help="The folder of the seats' homes.")
    first_uid = Int(0, config=True, help="The first seat's user id; 0: seats run as the hub does.")
    seats = Dict(config=True, help="The number of each seat, from 0.")
    lines = Dict(config=True, help="What each seat joins the room's mesh with.")
    process_bytes = Int(config=True, help="Memory that each process of a seat may have.")

    scratch: str | None = None

    @property
    def uid(self) -> int | None:
        """The seat's user id, ``None`` where it has none of its own."""
        return self.first_uid + self.seats[self.user.name] if self.first_uid else None

    async def start(self) -> Any:
        """Start the server and return where it listens."""
        # Short, for the sockets in it: a path of one has at most 107 bytes.
        self.scratch = tempfile.mkdtemp(prefix="seat-", dir="/tmp")  # mode 0700
        own = {"umask": 0o077, "cwd": os.path.join(self.folder, self.user.name)}
        if self.uid is not None and sys.platform != "win32":
            os.chown(self.scratch, self.uid, self.uid)
            own |= {"user": self.uid, "group": self.uid, "extra_groups": ()}
        self.popen_kwargs = own
        return await super().start()

    def make_preexec_fn(self, name: str) -> Callable[[], None] | None:
        """Return nothing: ``Popen`` itself changes to the user, and ``seat.py`` sets the limits."""
        return None

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """Return a server's variables with those of its seat."""
        home, scratch = Path(self.folder, self.user.name), str(self.scratch)
        own = {
            "HOME": str(home),
            "USER": self.user.name,
            HOME_VARIABLE: str(home / ".mesh-lab"),
            "TMPDIR": scratch,
            "JUPYTER_RUNTIME_DIR": scratch,
            BYTES_VARIABLE: str(self.process_bytes),
            # Counted for each user of the system, which others have a part in where a seat has none of its own.
            PROCESSES_VARIABLE: str(MOST_PROCESSES if self.first_uid else 0),
            LINE_VARIABLE: self.lines.get(self.user.name, ""),
        }
        return env | own

    def get_state(self) -> dict[str, Any]:
        """Return what a hub that is started again needs to go on with this server."""
        return dict(super().get_state()) | ({"scratch": self.scratch} if self.scratch else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with a server that an earlier hub started."""
        super().load_state(state)
        self.scratch = state.get("scratch")

    def run_post_stop_hook(self) -> Any:
        """Remove what the server had in the temporary directory, however it ended."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch = None
        return super().run_post_stop_hook()
