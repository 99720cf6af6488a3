"""Servers in containers behind the same :class:`~mesh_lab.servers.mesh.Mesh`: ``start_mesh(backend="docker")``.

A mesh of containers outlives the program that started it. It is joined when it is up already, ``close()`` lets
go of it, and only ``down()`` or ``mesh-lab down`` takes it away, with all that its streams hold.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from mesh_lab.errors import EngineRefusedError, NotReadyError, ServerExitedError, UnsupportedByBackendError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.connection import ConnectOptions
from mesh_lab.servers.backend import MeshRequest, MeshServer, State
from mesh_lab.servers.compose import CLIENT_PORT, MONITOR_PORT, SERVERS, Container, Engine, Project, Removed
from mesh_lab.servers.config import USER
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import Deadline, wait_until_ready
from mesh_lab.servers.workspace import Workspace

HOST = "127.0.0.1"
"""Containers are reached through their published ports only."""


class ContainerServer(MeshServer):
    """A nats-server in a container: its facts, and what the engine can do to it."""

    monitor: Monitor

    def __init__(self, container: Container, engine: Engine) -> None:
        monitor = Monitor(HOST, container.ports[MONITOR_PORT])
        super().__init__(container.service, host=HOST, port=container.ports[CLIENT_PORT], monitor=monitor)
        self._id = container.id
        self._engine = engine
        self._ended: State = "exited"
        self._state = self._state_of(container.status)

    @property
    def state(self) -> State:
        """What the container did when that was last seen; :meth:`observe` asks the engine."""
        return self._state

    def observe(self) -> State:
        """Ask the engine what the container does now, and return it.

        Raises:
            ServerExitedError: The container was removed.
        """
        self._inspect()
        return self._state

    def start(self) -> None:
        """Start the container, or let it go on; the server is not ready yet when this returns.

        Raises:
            ServerExitedError: The container was removed.
            EngineRefusedError: The engine refused.
        """
        if self._running("Paused"):
            self._engine.docker("unpause", self._id)
        self._engine.docker("start", self._id)
        self._ended, self._state, self.was_healthy = "exited", "running", None

    def stop(self) -> None:
        """Ask the server to end in good order (SIGTERM) and wait; it is killed after 10 s.

        Raises:
            EngineRefusedError: The engine refused.
        """
        self._end("stop", "stopped")

    def kill(self) -> None:
        """Kill the server (SIGKILL) and wait until it is gone.

        Raises:
            EngineRefusedError: The engine refused.
        """
        self._end("kill", "killed")

    def pause(self) -> None:
        """Freeze every process of the container: its connections stay open, and nothing answers.

        Raises:
            ServerExitedError: It is not running.
            EngineRefusedError: The engine refused.
        """
        self._require_running()
        self._engine.docker("pause", self._id)
        self._state = "paused"

    def resume(self) -> None:
        """Let a paused container go on.

        Raises:
            ServerExitedError: It is not running.
            EngineRefusedError: The engine refused.
        """
        self._require_running()
        if self._running("Paused"):
            self._engine.docker("unpause", self._id)
        self._state, self.was_healthy = "running", None

    def log(self, last: int | None = None) -> str:
        """Return the server's log since its container was made, across restarts.

        Args:
            last: Number of lines from the end; ``None`` for all.

        Raises:
            EngineRefusedError: The container was removed.
        """
        return self._engine.logs(self._id, last=last)

    def check_alive(self) -> None:
        """Return when the container runs, or was stopped on purpose.

        Raises:
            ServerExitedError: It ended by itself; the message ends with its last log lines.
        """
        state = self._inspect()
        if self._ended == "exited" and state["Status"] not in ("running", "paused", "created"):
            log = self.log(last=8)
            raise ServerExitedError(
                f"server {self.name!r} exited with code {state['ExitCode']}; its last log lines:\n{log}",
                name=self.name,
                exit_code=state["ExitCode"],
                log=log,
            )

    def _end(self, command: str, ended: State) -> None:
        if not self._running("Running"):
            return
        if self._running("Paused"):  # older engines neither stop nor kill what is paused
            self._engine.docker("unpause", self._id)
        self._engine.docker(command, self._id)
        self._ended = self._state = ended

    def _running(self, what: str) -> bool:
        return bool(self._inspect()[what])

    def _require_running(self) -> None:
        if not self._running("Running"):
            raise ServerExitedError(
                f"server {self.name!r} is {self.state}, expected running; restart it first", name=self.name
            )

    def _inspect(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._engine.docker("inspect", "-f", "{{json .State}}", self._id))
        except EngineRefusedError as err:
            raise ServerExitedError(
                f"the container of server {self.name!r} cannot be seen ({err}); if it was taken down, start the mesh "
                "anew: await start_mesh(backend='docker')",
                name=self.name,
            ) from err
        self._state = self._state_of(found["Status"])
        return found

    def _state_of(self, status: str) -> State:
        if status == "running":
            return "running"
        return "paused" if status == "paused" else self._ended


class ContainerMesh(Mesh):
    """Servers in containers. It outlives this object: ``close`` lets go of it, ``down`` takes it away.

    Attributes:
        project: The containers.
    """

    def __init__(self, project: Project, containers: dict[str, Container], *, workspace: Workspace) -> None:
        """Take hold of containers that run.

        Args:
            project: The project that they are of.
            containers: Those of its servers, by name.
            workspace: The mesh's own.
        """
        self.project = project
        # As the containers were made, and not as the file of variables may say by now.
        password = containers[SERVERS[0]].environment["USER_PASSWORD"]
        super().__init__(
            {name: ContainerServer(containers[name], project.engine) for name in SERVERS},
            backend="docker",
            credentials=ConnectOptions(user=USER, password=password),
            workspace=workspace,
        )

    async def down(self) -> Removed:
        """Close the clients and remove the containers, their network and their volumes, streams included.

        Raises:
            EngineRefusedError: The engine refused to remove something.
        """
        await self.close()
        return await asyncio.to_thread(self.project.down)


async def start(request: MeshRequest) -> ContainerMesh:
    """Return the mesh of containers that was asked for.

    Raises:
        UnsupportedByBackendError: Containers cannot be as asked for.
    """
    count = len(request.layout.servers)
    if count > len(SERVERS) or any(request.extra):
        what = "further settings" if any(request.extra) else f"{count} servers"
        raise UnsupportedByBackendError(
            f"{what} asked for, but the containers are three with the settings of docker/nats-server.conf; "
            "use backend='local' here"
        )
    return await start_containers(directory=request.directory, within=request.within)


async def start_containers(*, directory: Path | None = None, within: float = 20.0) -> ContainerMesh:
    """Return the mesh of ``docker/compose.yaml``: joined if it is up, brought up if not.

    Servers that somebody killed, stopped or paused are started again.

    Args:
        directory: Where to put the mesh's own directory; the system's temporary directory if ``None``.
        within: Seconds until the servers must be ready, once their containers run.

    Raises:
        NoEngineError: No Docker engine answers, or Compose 2 is missing.
        SettingsError: ``docker/`` or its ``.env`` is not as it must be.
        EngineRefusedError: A port is taken, the image cannot be had, or the engine failed otherwise.
        ServerExitedError: A server ended at its start; the message carries its last log lines.
        NotReadyError: The servers were not ready in time.
    """
    project = Project(await asyncio.to_thread(Engine.find))
    await asyncio.to_thread(project.up)
    containers = await asyncio.to_thread(project.servers)
    if missing := [name for name in SERVERS if name not in containers]:
        raise NotReadyError(
            f"project {project.name} has no container for {', '.join(missing)}, expected {', '.join(SERVERS)}; "
            "somebody took it down meanwhile: start it again"
        )
    mesh = ContainerMesh(project, containers, workspace=await asyncio.to_thread(Workspace, directory))
    try:
        await wait_until_ready(mesh.view, Deadline(within))
    except BaseException:
        await mesh.close()
        raise
    return mesh
