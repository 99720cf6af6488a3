"""What a mesh needs of a server, and what each backend can do.

A backend is a file of its own and an entry in :data:`BACKENDS`; nothing else of the package goes by its name.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mesh_lab.errors import ServerExitedError, SettingsError, UnsupportedByBackendError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.servers.config import ClientAuth, ExtraConfig
from mesh_lab.servers.layout import Layout

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Operator
    from mesh_lab.security.certificates import Authority

Backend = Literal["local", "docker", "external"]
Need = Literal["names", "kill", "monitoring", "system", "reload", "files"]
State = Literal["running", "paused", "stopped", "killed", "exited"]

NEEDS: Mapping[Need, str] = {
    "names": "servers called n1, n2 and n3",
    "kill": "servers that may be killed and paused",
    "monitoring": "the servers' monitoring",
    "system": "the system account",
    "reload": "users that change while the servers run",
    "files": "the servers' files and processes",
}
"""What a lesson may need beyond JetStream, in words."""


@dataclass(frozen=True, slots=True)
class BackendTraits:
    """What a backend is and can do."""

    label: str
    """What its servers are, for a card."""
    start: str
    """Place of ``async def start(request: MeshRequest) -> Mesh``, as ``module:function``; loaded when it is used."""
    settings: str = ""
    """How its servers are set up, for an error; empty where :attr:`configurable`."""
    gives: frozenset[Need] = frozenset(NEEDS)
    """What it has of :data:`NEEDS`."""
    temporary: bool = False
    """Whether servers and their streams end with the mesh; otherwise closing it leaves them as they are."""
    services: Literal["processes", "containers"] = "processes"
    """How the services of the main job run: on this machine, or in containers beside the servers."""

    @property
    def configurable(self) -> bool:
        """Whether servers are set up as asked for: regions, leaf nodes, links, TLS, accounts, and a reload of users."""
        return not self.settings


BACKENDS: Mapping[str, BackendTraits] = {
    "local": BackendTraits(
        "processes on this machine",
        "mesh_lab.servers.local:start",
        gives=frozenset(NEEDS) - ({"reload"} if sys.platform == "win32" else set()),  # a reload is a signal
        temporary=True,
    ),
    "docker": BackendTraits(
        "containers",
        "mesh_lab.servers.docker:start",
        settings="by docker/nats-server.conf",
        gives=frozenset({"names", "kill", "monitoring", "system"}),
        services="containers",
    ),
    "external": BackendTraits(
        "external servers", "mesh_lab.servers.external:start", settings="by whoever runs them", gives=frozenset()
    ),
}


def traits_of(backend: str) -> BackendTraits:
    """Return what a backend can do; SettingsError, which lists those there are, if none has that name."""
    if backend not in BACKENDS:
        raise SettingsError(f"backend {backend!r} asked for, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[backend]


@dataclass(frozen=True, slots=True)
class MeshRequest:
    """A mesh as :func:`~mesh_lab.servers.start.start_mesh` was asked for it, which describes each field."""

    layout: Layout
    within: float
    links: bool = False
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    tls: "Authority | None" = None
    client_auth: ClientAuth = "password"
    operator: "Operator | None" = None
    listen: str = "127.0.0.1"
    leaf_nodes: bool = False
    keep: Path | None = None


class MeshServer(ABC):
    """One server of a mesh, whichever backend runs it. Its methods block; its properties are known without asking.

    What a server does not let do raises UnsupportedByBackendError, and what an engine refuses EngineRefusedError.

    Attributes:
        name: Name in the mesh, for example ``"n1"``.
        host: Host for clients.
        port: Port for clients.
        url: Both, without credentials.
        monitor: Reads its monitoring endpoints; ``None`` where they cannot be reached.
        was_healthy: Whether it last called itself healthy; ``None`` while it was not asked since it was started.
    """

    def __init__(self, name: str, *, host: str, port: int, url: str = "", monitor: Monitor | None = None) -> None:
        self.name, self.host, self.port = name, host, port
        self.url = url or f"nats://{host}:{port}"
        self.monitor = monitor
        self.was_healthy: bool | None = None

    def __repr__(self) -> str:
        return f"<server {self.name}: {self.state}>"

    @property
    @abstractmethod
    def state(self) -> State:
        """What it did when that was last seen; ``exited`` means that it ended, and not by this mesh."""

    @property
    def condition(self) -> str:
        """Its state, or while it runs, whether it last called itself healthy: ``ready``, ``not ready``."""
        if self.state != "running" or self.was_healthy is None:
            return self.state
        return "ready" if self.was_healthy else "not ready"

    def observe(self) -> State:
        """Ask the backend what the server does now, and return it; ServerExitedError if its container was removed."""
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
        """Start it, or let it go on; it need not be ready when this returns."""

    def run_on(self, binary: Path) -> None:
        """Use another nats-server program from the next start on; NoServerBinaryError, if it is none."""
        raise UnsupportedByBackendError(
            f"the program of server {self.name!r} is not ours to change; use start_mesh(backend='local')"
        )

    @abstractmethod
    def stop(self) -> None:
        """Stop it gracefully (SIGTERM) and wait; it is killed when it has not ended after 10 s."""

    @abstractmethod
    def kill(self) -> None:
        """Kill it (SIGKILL: no clean-up, no goodbye) and wait until it is gone."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze it, as a hung machine is: its connections stay open; ServerExitedError if it does not run."""

    @abstractmethod
    def resume(self) -> None:
        """Let it go on after :meth:`pause`; ServerExitedError if it does not run."""

    @abstractmethod
    def log(self, last: int | None = None) -> str:
        """Return its log since it was made, across restarts, or so many lines from its end."""

    @abstractmethod
    def check_alive(self) -> None:
        """Raise ServerExitedError, with its last log lines, if it ended by itself."""

    def exited_error(self, code: int) -> ServerExitedError:
        """Return the error for a server that ended by itself, with its last log lines."""
        log = self.log(last=8)
        message = f"server {self.name!r} exited with code {code}; its last log lines:\n{log}"
        return ServerExitedError(message, name=self.name, exit_code=code, log=log)

    def not_running_error(self, expected: str = "running") -> ServerExitedError:
        """Return the error for an operation that needs a running server."""
        message = f"server {self.name!r} is {self.state}, expected {expected}; restart it first"
        return ServerExitedError(message, name=self.name)
