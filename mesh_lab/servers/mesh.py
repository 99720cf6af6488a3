"""Real NATS servers behind one object: ``mesh = await start_mesh(servers=3)``."""

import asyncio
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nats.aio.client import Client

from mesh_lab.errors import MeshClosedError, UnknownServerError, UnsupportedByBackendError
from mesh_lab.patterns import connection
from mesh_lab.patterns.wait import run_shielded
from mesh_lab.servers import card
from mesh_lab.servers.backend import Backend, MeshServer
from mesh_lab.servers.faults import Faults
from mesh_lab.servers.layout import Layout
from mesh_lab.servers.links import Links
from mesh_lab.servers.workspace import Workspace


class Mesh(Faults):
    """Servers that run, and what one can do with them.

    Facts are properties, effects are methods. ``connect`` returns plain nats-py clients.
    """

    def __init__(
        self,
        servers: Mapping[str, MeshServer],
        *,
        backend: Backend,
        credentials: connection.ConnectOptions,
        workspace: Workspace,
        system: connection.ConnectOptions | None = None,
        layout: Layout | None = None,
        links: Links | None = None,
    ) -> None:
        self._servers = dict(servers)
        self._credentials = credentials
        self._system = system
        self._workspace = workspace
        self._links = links
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._closed = False
        self.backend: Backend = backend
        self.layout = layout or Layout({"mesh": tuple(servers)}, {}, cluster="mesh")

    # Facts

    @property
    def servers(self) -> dict[str, MeshServer]:
        """The servers by name."""
        return dict(self._servers)

    @property
    def urls(self) -> list[str]:
        """Where clients connect, in the first region; who they are is said by :meth:`connect_options`."""
        return self._urls(self.layout.default)

    @property
    def closed(self) -> bool:
        """Whether the mesh was closed."""
        return self._closed

    @property
    def healthy(self) -> bool:
        """Whether every server runs and calls itself healthy."""
        return not self._closed and all(self._state(name) == "ready" for name in self._servers)

    @property
    def linked(self) -> bool:
        """Whether its servers are joined by links that can be slowed and cut."""
        return self._links is not None

    @property
    def directory(self) -> Path:
        """Private directory of the mesh; gone when the mesh is closed."""
        return self._workspace.directory

    @property
    def owner(self) -> str:
        """Mark in the environment of every process that belongs to the mesh and ends with it."""
        return self._workspace.owner

    def connect_options(
        self, *, to: str | None = None, region: str | None = None, system: bool = False
    ) -> connection.ConnectOptions:
        """Return the arguments with which ``nats.connect`` reaches this mesh; they hold the password.

        Args:
            to: Server or leaf node to dial first, before the others of its region; ``None`` for any.
            region: Region to connect to; ``None`` for the first one.
            system: Whether to connect to the system account, which answers ``$SYS`` requests.

        Raises:
            UnknownServerError: No server or region has that name.
            UnsupportedByBackendError: The system account of this mesh is not ours.
            MeshClosedError: The mesh was closed.
        """
        self._check_open()
        names = self.layout.near(self._server(to).name if to is not None else None, region)
        who = self._system if system else self._credentials
        if who is None:
            raise UnsupportedByBackendError(
                "the system account of this mesh is not ours; unset MESH_LAB_URL for a mesh that is"
            )
        return {**who, "servers": self._urls(names)}

    # Effects

    async def connect(
        self,
        *,
        name: str | None = None,
        to: str | None = None,
        region: str | None = None,
        system: bool = False,
        **options: Any,
    ) -> Client:
        """Return a connected nats-py client; the mesh closes it when it is closed itself.

        Args:
            name: Name of the connection, as the servers' monitoring shows it.
            to: Server or leaf node to dial first; ``None`` for any. The client still moves on, within the region,
                when that server dies.
            region: Region to connect to; ``None`` for the first one.
            system: Whether to connect to the system account, which answers ``$SYS`` requests.
            options: Any further arguments of ``nats.connect``.

        Raises:
            UnknownServerError: No server or region has that name.
            UnsupportedByBackendError: The system account of this mesh is not ours.
            MeshClosedError: The mesh was closed.
            NotReadyError: No server let the client in.
        """
        if to is not None:
            options.setdefault("dont_randomize", True)
        if name is not None:
            options["name"] = name
        client = await connection.connect(self.connect_options(to=to, region=region, system=system), **options)
        self._clients.add(client)
        return client

    async def ready(self, *, within: float = 60.0) -> None:
        """Return when all servers are joined and healthy, agree on their leader, and JetStream answers everywhere.

        A mesh that was just started is. After a cut was healed or servers came back, it takes some seconds.

        Args:
            within: Seconds until it is too late.

        Raises:
            NotReadyError: It was not; the message says what was missing.
            ServerExitedError: A server ended, or was killed and is not back.
        """
        from mesh_lab.servers.readiness import wait_until_ready

        self._check_open()
        await wait_until_ready(self, within=within)

    async def reload(
        self, *, users_config: str | None = None, accounts_config: str | None = None, within: float = 10.0
    ) -> None:
        """Let all servers read other users and accounts, and return when each goes by them; nothing is restarted.

        Who is connected as a user that is no longer there, or no longer the same, is disconnected.

        Args:
            users_config: Users of the lessons' account, in place of those that :func:`start_mesh` or the last call was
                given; ``None`` leaves them, an empty text removes them.
            accounts_config: Accounts beside it, likewise.
            within: Seconds until it is too late.

        Raises:
            BadConfigError: A server refused the text; the message says why. All keep what they had.
            UnsupportedByBackendError: The servers are not local processes.
        """
        from mesh_lab.servers.reloading import reload

        self._check_open()
        await reload(self.servers, {"users": users_config, "accounts": accounts_config}, within=within)

    def logs(self, server: str, *, last: int | None = 20) -> str:
        """Return the end of a server's log.

        Args:
            server: Name as the mesh shows it.
            last: Number of lines; ``None`` for all.

        Raises:
            UnknownServerError: No server has that name.
        """
        return self._server(server).log(last)

    async def close(self) -> None:
        """Close the clients, stop local servers, remove their stores; closing twice does nothing.

        Containers and external servers stay as they are. Who is cancelled meanwhile waits until all is done.
        """
        if not self._closed:
            self._closed = True
            await run_shielded(self._end())

    async def _end(self) -> None:
        ends = await asyncio.gather(*(_close_client(client) for client in self._clients), return_exceptions=True)
        # Not in good order but at once: nothing of a temporary store will be read again.
        if self.backend == "local":
            await asyncio.gather(*(asyncio.to_thread(server.kill) for server in self._servers.values()))
            if self._links is not None:
                await asyncio.to_thread(self._links.stop)
        await asyncio.to_thread(self._workspace.remove)
        for failure in (end for end in ends if end is not None):  # it must not keep servers alive
            raise failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # How it looks

    def _state(self, name: str) -> str:
        server = self._servers[name]
        if server.state != "running" or server.monitor is None:
            return server.state
        return "ready" if server.monitor.health().ok else "not ready"

    def __repr__(self) -> str:
        """Name the servers and their states, without ports or secrets."""
        return "Mesh(closed)" if self._closed else card.line(self.layout, self._states())

    def _repr_html_(self) -> str:
        """Draw a card for notebooks: a box for each server, without ports or secrets."""
        if self._closed:
            return "<b>mesh</b>: closed"
        return card.table(self.layout, self._states(), backend=self.backend)

    # Helpers

    def _check_open(self) -> None:
        if self._closed:
            raise MeshClosedError("this mesh was closed; start another one with start_mesh()")

    def _states(self) -> dict[str, str]:
        return {name: self._state(name) for name in self._servers}

    def _urls(self, names: Iterable[str]) -> list[str]:
        return [self._servers[name].url for name in names]

    def _server(self, name: str) -> MeshServer:
        self._check_open()
        try:
            return self._servers[name]
        except KeyError as err:
            raise UnknownServerError(f"no server {name!r} in this mesh; there are {', '.join(self._servers)}") from err


async def _close_client(client: Client) -> None:
    """Close a client whatever state it is in; a server that hangs must not hold up the end of a lesson."""
    try:
        async with asyncio.timeout(2.0):
            await client.close()
    except (TimeoutError, OSError):
        return
    except RuntimeError as err:
        if not connection.is_send_failure(err):
            raise
