"""What a mesh needs of a server, whichever backend runs it: a local process, a container, somebody else."""

from typing import Literal, Protocol

from mesh_lab.observe.monitor import Monitor

Backend = Literal["local", "docker", "external"]


class MeshServer(Protocol):
    """What a mesh needs of a server, whichever backend runs it."""

    name: str

    @property
    def monitor(self) -> Monitor | None:
        """Reads its monitoring endpoints; ``None`` where they cannot be reached."""

    @property
    def host(self) -> str:
        """Host for clients."""

    @property
    def port(self) -> int:
        """Port for clients."""

    @property
    def url(self) -> str:
        """Address for clients, without who they are."""

    @property
    def state(self) -> str:
        """``running``, ``paused``, ``stopped``, ``killed`` or ``exited``."""

    def start(self) -> None:
        """Start it; it need not be ready when this returns."""

    def stop(self) -> None:
        """End it in good order."""

    def kill(self) -> None:
        """End it at once."""

    def pause(self) -> None:
        """Stop it where it stands."""

    def resume(self) -> None:
        """Let it go on."""

    def log(self, last: int | None = None) -> str:
        """Return its log."""

    def check_alive(self) -> None:
        """Raise when it ended by itself."""
