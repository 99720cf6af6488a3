"""What a mesh can do to its servers and to the links between them."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError
from mesh_lab.servers.backend import Backend, MeshServer
from mesh_lab.servers.layout import Layout
from mesh_lab.servers.links import CutMode, Lane, Links

if TYPE_CHECKING:
    from mesh_lab.servers.mesh import Mesh

PLACE_WITHIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was put into the mesh."""

    server: str
    """What it was put into: a server, or what lies between two places, such as ``"eu and us"``."""
    kind: Literal["killed", "paused", "slowed", "cut"]

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"{self.server} {self.kind}"


class Faults:
    """The part of a :class:`~mesh_lab.servers.mesh.Mesh` that kills and freezes servers, and slows and cuts links."""

    backend: Backend
    layout: Layout
    _links: Links | None

    def _check_open(self) -> None:
        raise NotImplementedError

    def _server(self, name: str) -> MeshServer:
        raise NotImplementedError

    async def kill(self, server: str) -> Fault:
        """Kill one server with SIGKILL and return when it stopped answering.

        Args:
            server: Name as the mesh shows it, for example ``"n2"``.

        Raises:
            UnknownServerError: No server has that name; the message lists those there are.
            UnsupportedByBackendError: The mesh is external.
            EngineRefusedError: The mesh is of containers, and the engine refused; so for pause, resume, restart.
        """
        await asyncio.to_thread(self._server(server).kill)
        return Fault(server, "killed")

    async def pause(self, server: str) -> Fault:
        """Freeze one server with SIGSTOP: its connections stay open, and nothing answers.

        Raises:
            UnknownServerError: No server has that name.
            ServerExitedError: It does not run.
            UnsupportedByBackendError: The mesh is external.
        """
        await asyncio.to_thread(self._server(server).pause)
        return Fault(server, "paused")

    async def resume(self, server: str) -> None:
        """Let a paused server go on.

        Raises:
            UnknownServerError: No server has that name.
            ServerExitedError: It does not run.
            UnsupportedByBackendError: The mesh is external.
        """
        await asyncio.to_thread(self._server(server).resume)

    async def restart(self, server: str, *, within: float = 40.0) -> None:
        """Stop a server in good order if it runs, start it again, and return when it is ready.

        Streams may be placed on it then, if the others are well.

        It keeps its name, ports and store, so it catches up with what it missed.

        Args:
            server: Name as the mesh shows it.
            within: Seconds to wait until it is ready. An election takes 4 to 9, and may need a second try.

        Raises:
            UnknownServerError: No server has that name.
            NotReadyError: It was not ready in time.
            UnsupportedByBackendError: The mesh is external.
        """
        from mesh_lab.servers.joining import wait_until_routed
        from mesh_lab.servers.placing import wait_until_placeable
        from mesh_lab.servers.readiness import wait_until_healthy

        target = self._server(server)
        await asyncio.to_thread(target.stop)
        await asyncio.to_thread(target.start)
        await wait_until_healthy([target], within=within)
        mesh = cast("Mesh", self)
        with contextlib.suppress(NotReadyError):  # while others are dead or cut off, it may be alone for long
            await wait_until_routed(mesh, within=PLACE_WITHIN_S)
            await wait_until_placeable(mesh, within=PLACE_WITHIN_S)

    async def slow(self, one: str, other: str, *, latency: float, rate: float | None = None) -> Fault:
        """Delay what runs between two places, in both directions, until :meth:`heal`.

        Args:
            one: A server, a region or a leaf node.
            other: Another one; the same region stands for the routes inside of it.
            latency: Seconds that each byte is on its way, in one direction; 0 for none. It does not limit the rate.
            rate: Bytes a second that each direction between two servers carries; ``None`` for as many as come.

        Raises:
            ValueError: The latency is negative, or the rate is not above 0.
            UnknownServerError: Nothing has that name.
            UnknownLinkError: The two are not joined.
            UnsupportedByBackendError: The mesh has no links that could be slowed.
        """
        if not 0 <= latency < float("inf") or (rate is not None and not 0 < rate < float("inf")):
            raise ValueError(f"latency={latency!r} s, rate={rate!r} bytes/s, expected 0 or more, and above 0 or None")
        links, pairs = self._running_links(), self.layout.pairs(one, other)
        await asyncio.to_thread(links.slow, pairs, latency=latency, rate=rate)
        return Fault(f"{one} and {other}", "slowed")

    async def cut(self, one: str, other: str, *, mode: CutMode = "silent") -> Fault:
        """Cut every connection between two places, in both directions, until :meth:`heal`.

        Args:
            one: A server, a region or a leaf node.
            other: Another one; the same region stands for the routes inside of it.
            mode: ``"silent"``: nothing arrives and nobody is told, as when a cable is pulled; what was sent arrives
                late, as TCP sends it again. ``"reset"``: connections break and new ones are refused, as when a
                process dies.

        Raises:
            ValueError: There is no such mode.
            UnknownServerError: Nothing has that name.
            UnknownLinkError: The two are not joined.
            UnsupportedByBackendError: The mesh has no links that could be cut.
        """
        if mode not in get_args(CutMode):
            raise ValueError(f"mode {mode!r} asked for, expected one of {', '.join(get_args(CutMode))}")
        links, pairs = self._running_links(), self.layout.pairs(one, other)
        await asyncio.to_thread(links.cut, pairs, mode=mode)
        return Fault(f"{one} and {other}", "cut")

    async def heal(self) -> None:
        """Let every link carry again, without delay or limit; the servers find each other again within seconds.

        Raises:
            UnsupportedByBackendError: The mesh has no links.
        """
        await asyncio.to_thread(self._running_links().heal)

    async def lanes(self) -> list[Lane]:
        """Return what each direction of each link is doing, and how many bytes it has carried.

        Raises:
            UnsupportedByBackendError: The mesh has no links.
        """
        return await asyncio.to_thread(self._running_links().lanes)

    def _running_links(self) -> Links:
        self._check_open()
        if self._links is None:
            ours = "start_mesh(links=True)" if self.backend == "local" else "start_mesh(backend='local', links=True)"
            raise UnsupportedByBackendError(f"the servers of this mesh are joined directly, not by links; use {ours}")
        return self._links
