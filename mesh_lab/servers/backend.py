"""What a mesh needs of a server, and what each backend can do.

A backend is a file of its own, with the function that starts or joins its meshes, and an entry in :data:`BACKENDS`.
Nothing else of the package goes by a backend's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mesh_lab.errors import SettingsError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.servers.config import ClientAuth, ExtraConfig
from mesh_lab.servers.layout import Layout

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Operator
    from mesh_lab.security.certificates import Authority

Backend = Literal["local", "docker", "external"]
State = Literal["running", "paused", "stopped", "killed", "exited"]


@dataclass(frozen=True, slots=True)
class BackendTraits:
    """What a backend is and can do."""

    label: str
    """What its servers are, for a card."""
    start: str
    """Place of ``async def start(request: MeshRequest) -> Mesh``, as ``module:function``; loaded when it is used."""
    configurable: bool
    """Whether servers are set up as asked for: regions, leaf nodes, links, TLS, accounts, and a reload of users."""
    stoppable: bool
    """Whether servers can be killed, paused and restarted."""
    temporary: bool
    """Whether servers and their streams end with the mesh. Otherwise closing it leaves them as they are."""
    services: Literal["processes", "containers"]
    """As what the services of the main job run: on this machine, or in containers beside the servers."""


BACKENDS: Mapping[Backend, BackendTraits] = {
    "local": BackendTraits(
        label="processes on this machine",
        start="mesh_lab.servers.local:start",
        configurable=True,
        stoppable=True,
        temporary=True,
        services="processes",
    ),
    "docker": BackendTraits(
        label="containers",
        start="mesh_lab.servers.docker:start",
        configurable=False,
        stoppable=True,
        temporary=False,
        services="containers",
    ),
    "external": BackendTraits(
        label="external servers",
        start="mesh_lab.servers.external:start",
        configurable=False,
        stoppable=False,
        temporary=False,
        services="processes",
    ),
}


def traits_of(backend: str) -> BackendTraits:
    """Return what a backend can do.

    Raises:
        SettingsError: No backend has that name; the message lists those there are.
    """
    for name, traits in BACKENDS.items():
        if name == backend:
            return traits
    raise SettingsError(f"backend {backend!r} asked for, expected one of {', '.join(BACKENDS)}")


@dataclass(frozen=True, slots=True)
class MeshRequest:
    """A mesh as :func:`~mesh_lab.servers.start.start_mesh` was asked for it."""

    layout: Layout
    """The servers, and which of them are joined."""
    within: float
    """Seconds until the servers must be ready."""
    directory: Path | None = None
    """Where to put the mesh's own directory; the system's temporary directory if ``None``."""
    links: bool = False
    """Whether every connection between servers runs through a link."""
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    """Further settings."""
    tls: "Authority | None" = None
    """Authority that certifies the servers; ``None`` for connections in plain text."""
    client_auth: ClientAuth = "password"
    """Whether the mesh's own clients have a password or a certificate."""
    operator: "Operator | None" = None
    """Operator whose signed tokens are the accounts; ``None`` where the configuration lists them."""


class MeshServer(ABC):
    """One server of a mesh, whichever backend runs it. Its methods block; its properties are known without asking.

    Attributes:
        name: Name in the mesh, for example ``"n1"``.
        host: Host for clients.
        port: Port for clients.
        url: Address for clients, without their credentials.
        monitor: Reads its monitoring endpoints; ``None`` where they cannot be reached.
        was_healthy: Whether it last called itself healthy; ``None`` while it was not asked since it was started.
    """

    def __init__(self, name: str, *, host: str, port: int, url: str = "", monitor: Monitor | None = None) -> None:
        self.name, self.host, self.port = name, host, port
        self.url = url or f"nats://{host}:{port}"
        self.monitor = monitor
        self.was_healthy: bool | None = None

    def __repr__(self) -> str:
        """Return name and state, without ports."""
        return f"<server {self.name}: {self.state}>"

    @property
    @abstractmethod
    def state(self) -> State:
        """What it did when that was last seen; ``exited`` means that it ended, and not by this mesh."""

    @property
    def condition(self) -> str:
        """Its state, or where it runs, whether it last called itself healthy: ``ready``, ``not ready``."""
        if self.state != "running" or self.was_healthy is None:
            return self.state
        return "ready" if self.was_healthy else "not ready"

    def observe(self) -> State:
        """Ask the backend what the server does now, and return it."""
        return self.state

    def health(self) -> str:
        """Ask its monitoring whether it is healthy, and return what it replied; ``"200 ok"`` when it is."""
        if self.monitor is None:
            return "no monitoring"
        reply = self.monitor.health()
        self.was_healthy = reply.ok
        return "200 ok" if reply.ok else reply.seen

    @abstractmethod
    def start(self) -> None:
        """Start it; it need not be ready when this returns."""

    @abstractmethod
    def stop(self) -> None:
        """End it in good order."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""

    @abstractmethod
    def pause(self) -> None:
        """Stop it where it stands."""

    @abstractmethod
    def resume(self) -> None:
        """Let it go on."""

    @abstractmethod
    def log(self, last: int | None = None) -> str:
        """Return its log, or so many lines from its end."""

    @abstractmethod
    def check_alive(self) -> None:
        """Return when it runs, or was stopped on purpose.

        Raises:
            ServerExitedError: It ended by itself.
        """
