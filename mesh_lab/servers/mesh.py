"""Real NATS servers behind one object: ``mesh = await start_mesh(servers=3)``."""

import asyncio
import weakref
from collections.abc import Awaitable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

from nats.aio.client import Client

from mesh_lab.errors import (
    MeshClosedError,
    NotReadyError,
    UnknownNameError,
    UnsupportedByBackendError,
)
from mesh_lab.patterns import connection
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.wait import run_shielded
from mesh_lab.servers.backend import Backend, MeshServer, traits_of
from mesh_lab.servers.borrowed import BorrowedAccount
from mesh_lab.servers.layout import Layout
from mesh_lab.servers.links import CutMode, Lane, Links
from mesh_lab.servers.readiness import Deadline, View, healthy, placeable, routed, wait_for, wait_until_ready
from mesh_lab.servers.server import reload_all
from mesh_lab.servers.workspace import Workspace

PLACE_WITHIN_S = 6.0  # for a restarted server to be found by those that run: an election may fall into them
RELOAD_WITHIN_S = 10.0
ASK_WITHIN_S = 2.0  # for a server without monitoring to let a client in, before it counts as not ready


class Mesh:
    """Servers that run, and what one can do with them.

    Facts are attributes, known without asking anybody: of a server's health, what was last seen. What asks the servers
    or does something to them is a coroutine. A connection or an effect that is asked for after :meth:`close` raises
    MeshClosedError, and the name of a server that is not there UnknownNameError, with those that are.

    Attributes:
        backend: Where its servers run.
        traits: What that backend can do.
        layout: Its regions and leaf nodes.
        links: What joins its servers, where that can be slowed and cut; ``None`` where they are joined directly.
        servers: The servers by name.
        directory: Private directory of the mesh; gone when the mesh is closed.
        owner: Mark in the environment of every process that belongs to the mesh and ends with it.
        borrowed: The account in which a lesson works on servers that outlive it; ``None`` elsewhere.
        closed: Whether the mesh was closed.
    """

    def __init__(
        self,
        servers: Mapping[str, MeshServer],
        *,
        backend: Backend,
        credentials: ConnectOptions,
        workspace: Workspace,
        system: ConnectOptions | None = None,
        layout: Layout | None = None,
        links: Links | None = None,
    ) -> None:
        self.backend: Backend = backend
        self.traits = traits_of(backend)
        self.layout = layout or Layout({"mesh": tuple(servers)}, {}, cluster="mesh")
        self.links = links
        self.servers = dict(servers)
        self.directory, self.owner = workspace.directory, workspace.owner
        self.closed = False
        self.borrowed: BorrowedAccount | None = None
        self._credentials = credentials
        self._system = system
        self._workspace = workspace
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()

    @property
    def urls(self) -> list[str]:
        """Where clients connect, in the first region; :meth:`connect_options` has their credentials too."""
        return [self.servers[name].url for name in self.layout.near()]

    @property
    def last_states(self) -> dict[str, str]:
        """Each server's state, such as ``killed``, or whether it was ``ready`` when that was last seen."""
        return {name: server.condition for name, server in self.servers.items()}

    @property
    def view(self) -> View:
        """What probes look at, to wait until it is ready."""
        return View(self.servers, self.layout, self.connect)

    def connect_options(
        self, *, to: str | None = None, region: str | None = None, system: bool = False
    ) -> ConnectOptions:
        """Return the arguments with which ``nats.connect`` reaches this mesh; they hold the password.

        Args:
            to: Server or leaf node to dial first, before the others of its region; ``None`` for any.
            region: Region to connect to; ``None`` for the first one.
            system: Whether to connect to the system account, which answers ``$SYS`` requests.

        Raises:
            UnknownNameError: No server or region has that name.
            UnsupportedByBackendError: The system account of this mesh is not ours.
        """
        self._check_open()
        names = self.layout.near(self._server(to).name if to is not None else None, region)
        credentials = self._system if system else self._credentials
        if credentials is None:
            raise UnsupportedByBackendError(
                "the system account of this mesh is not ours; use start_mesh(backend='local') for a mesh that is"
            )
        return {**credentials, "servers": [self.servers[name].url for name in names]}

    async def states(self) -> dict[str, str]:
        """Ask every server now, and return each one's state, or whether it is ``ready`` or ``not ready``.

        It is ready when its monitoring calls it healthy, JetStream included, or without monitoring lets a client in.
        """
        await asyncio.gather(*(self._ask(server) for server in self.servers.values()))
        return self.last_states

    async def is_healthy(self) -> bool:
        """Ask every server now, and return whether all run and are ready; ``False`` when the mesh was closed."""
        return not self.closed and set((await self.states()).values()) == {"ready"}

    async def connect(
        self, *, to: str | None = None, region: str | None = None, system: bool = False, **options: Any
    ) -> Client:
        """Return a connected nats-py client; the mesh closes it when it is closed itself.

        Args:
            to: Server or leaf node to dial first; the client moves on, within the region, when that dies.
            region: As for :meth:`connect_options`.
            system: As for :meth:`connect_options`.
            options: Further arguments of ``nats.connect``: its ``name``, which the servers' monitoring shows, …

        Raises:
            NotReadyError: No server let the client in. LoginRefusedError: Every server refused it as this user.
                Otherwise what :meth:`connect_options` raises.
        """
        if to is not None:
            options.setdefault("dont_randomize", True)
        client = await connection.connect(self.connect_options(to=to, region=region, system=system), **options)
        self._clients.add(client)
        return client

    async def ready(self, *, within: float = 60.0) -> None:
        """Return when all servers are joined and healthy, agree on their leader, and JetStream answers everywhere.

        Args:
            within: Seconds until it is too late.

        Raises:
            NotReadyError: It was not; the message says what was missing.
            ServerExitedError: A server ended.
        """
        self._check_open()
        await wait_until_ready(self.view, Deadline(within))

    async def reload(self, *, users_config: str) -> None:
        """Give all servers other further users, as for ``start_mesh``, and return when each uses them.

        Only Windows restarts them.

        Raises:
            BadConfigError: A server refused the text, and says why; all keep what they had.
            UnsupportedByBackendError: The servers are not local processes, or their users are an operator's.
            ServerExitedError: A server does not run; nothing is changed.
            NotReadyError: A server did not read its file within 10 s.
        """
        self._check_open()
        await reload_all(self.view, users_config, Deadline(RELOAD_WITHIN_S))

    def logs(self, server: str, *, last: int | None = 20) -> str:
        """Return the last lines of a server's log; ``None`` for all."""
        return self._server(server).log(last)

    async def kill(self, server: str) -> None:
        """Kill one server, for example ``"n2"``, with SIGKILL and return when it stopped answering.

        Raises:
            UnsupportedByBackendError: The mesh is external; so for pause, resume, restart.
            EngineRefusedError: The engine of the containers refused; so for pause, resume, restart.
        """
        await asyncio.to_thread(self._server(server).kill)

    async def pause(self, server: str) -> None:
        """Freeze one server with SIGSTOP, and return when it is frozen: its connections stay open, nothing answers.

        Raises:
            ServerExitedError: It does not run.
            NotReadyError: It goes on running for 10 s.
        """
        await asyncio.to_thread(self._server(server).pause)

    async def resume(self, server: str) -> None:
        """Let a paused server go on.

        Raises:
            ServerExitedError: It does not run.
        """
        await asyncio.to_thread(self._server(server).resume)

    async def restart(self, server: str, *, binary: str | Path | None = None, within: float = 40.0) -> bool:
        """Stop a server gracefully if it runs, start it again with its store, and return when it is ready.

        Args:
            server: A server, or a leaf node.
            binary: Path of another nats-server program to start it as, such as a newer version; ``None`` for the one
                that it ran. The server goes on where this is no such program.
            within: Seconds to wait until it is ready. An election takes 4 to 9 s, and may need a second try.

        Returns:
            Whether streams may be placed on every server by now; not while others are dead or cut off.

        Raises:
            NotReadyError: It was not ready in time.
            NoServerBinaryError: There is no nats-server at ``binary``.
            UnsupportedByBackendError: The servers are not local processes, whose program could be another.
        """
        target = self._server(server)
        if binary is not None:
            await asyncio.to_thread(target.run_on, Path(binary))
        await asyncio.to_thread(target.stop)
        await asyncio.to_thread(target.start)
        await wait_for(View({server: target}, self.layout, self.connect), [healthy], Deadline(within))
        try:
            await wait_for(self.view, [routed, placeable], Deadline(PLACE_WITHIN_S))
        except NotReadyError:
            return False
        # For a while, the leader goes on counting a server that was killed.
        return all(other.state == "running" for other in self.servers.values())

    async def slow(self, one: str, other: str, *, latency: float) -> None:
        """Delay what runs between two places, in both directions, until :meth:`heal`.

        Args:
            one: A server, a region or a leaf node.
            other: Another one; the same region stands for the routes inside of it.
            latency: Seconds that each byte is on its way, in one direction; 0 for none. It does not limit the rate.

        Raises:
            ValueError: The latency is negative.
            UnknownNameError: Nothing has that name, or the two are not joined.
            UnsupportedByBackendError: The mesh has no links.
        """
        if not 0 <= latency < float("inf"):
            raise ValueError(f"latency={latency!r} s, expected 0 or more")
        links, pairs = self._running_links(), self.layout.pairs(one, other)
        await asyncio.to_thread(links.do, "slow", pairs, latency=latency)

    async def cut(self, one: str, other: str, *, mode: CutMode = "silent") -> None:
        """Cut every connection between two places, in both directions, until :meth:`heal`. Raises as :meth:`slow`.

        Args:
            one: As for :meth:`slow`.
            other: As for :meth:`slow`.
            mode: ``"silent"``: nothing arrives and neither end learns of it, as when a cable is pulled; what was sent
                arrives late. ``"reset"``: connections break and new ones are refused, as when a process dies.
        """
        if mode not in get_args(CutMode):
            raise ValueError(f"mode {mode!r} asked for, expected one of {', '.join(get_args(CutMode))}")
        links, pairs = self._running_links(), self.layout.pairs(one, other)
        await asyncio.to_thread(links.do, "cut", pairs, mode=mode)

    async def heal(self) -> None:
        """Let every link carry again, without delay; the servers find each other again within seconds."""
        await asyncio.to_thread(self._running_links().do, "heal")

    async def lanes(self) -> list[Lane]:
        """Return what each direction of each link is doing, and how many bytes it has carried."""
        return await asyncio.to_thread(self._running_links().lanes)

    async def borrow(self) -> None:
        """Take the account for a lesson, whose streams :meth:`close` removes; raises as ``BorrowedAccount.begin``."""
        borrowed = BorrowedAccount(await self.connect(name="lesson"), self._clients)
        await borrowed.begin()
        self.borrowed = borrowed

    async def close(self) -> None:
        """Close the clients, stop local servers and remove their stores, also when the caller is cancelled."""
        if not self.closed:
            self.closed = True
            await run_shielded(self._end())

    async def _end(self) -> None:
        # Whatever fails must not keep servers alive.
        failures = await _failures([self.borrowed.end()] if self.borrowed is not None else ())
        failures += await _failures(connection.close(client) for client in self._clients)
        if self.traits.temporary:
            # Killed, not stopped gracefully: nothing of a temporary store will be read again.
            failures += await _failures(asyncio.to_thread(server.kill) for server in self.servers.values())
        if self.links is not None:
            failures += await _failures([asyncio.to_thread(self.links.stop)])
        failures += await _failures([asyncio.to_thread(self._workspace.remove)])
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise BaseExceptionGroup(f"{len(failures)} things failed while the mesh was closed", failures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "Mesh(closed)"
        layout, states = self.layout, self.last_states
        groups: dict[str, Iterable[str]] = {"": self.servers}
        if layout.cluster is None:
            groups = {f"{region}: ": names for region, names in layout.regions.items()}
            groups |= {"leaf nodes: ": layout.leaves} if layout.leaves else {}
        parts = (start + ", ".join(f"{name} {states[name]}" for name in names) for start, names in groups.items())
        return f"Mesh({'; '.join(parts)})"

    async def _ask(self, server: MeshServer) -> None:
        if await asyncio.to_thread(server.observe) != "running":
            return
        if server.monitor is not None:
            await asyncio.to_thread(server.health)
            return
        at = await connection.server_at(server.url, self._credentials, within=ASK_WITHIN_S)
        server.was_healthy = at is not None

    def _check_open(self) -> None:
        if self.closed:
            raise MeshClosedError("this mesh was closed; start another one with start_mesh()")

    def _running_links(self) -> Links:
        self._check_open()
        if self.links is None:
            ours = "start_mesh(links=True)" if self.traits.configurable else "start_mesh(backend='local', links=True)"
            raise UnsupportedByBackendError(f"the servers of this mesh are joined directly, not by links; use {ours}")
        return self.links

    def _server(self, name: str) -> MeshServer:
        self._check_open()
        try:
            return self.servers[name]
        except KeyError as err:
            raise UnknownNameError(f"no server {name!r} in this mesh; there are {', '.join(self.servers)}") from err


async def _failures(work: Iterable[Awaitable[None]]) -> list[BaseException]:
    """Await several things side by side, whether or not others fail, and return the exceptions."""
    ends = await asyncio.gather(*work, return_exceptions=True)
    return [end for end in ends if end is not None]
