"""Servers in containers behind the same :class:`~mesh_lab.servers.mesh.Mesh`: ``start_mesh(backend="docker")``.

A mesh of containers outlives the program that started it. It is joined when it is up already, ``close()`` lets
go of it, and only ``mesh-lab down`` takes it away, with all that its streams hold.
"""

import asyncio
import json
from typing import Any

from mesh_lab.errors import EngineRefusedError, NotReadyError, ServerExitedError, UnsupportedByBackendError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.servers.backend import MeshRequest, MeshServer, State
from mesh_lab.servers.compose import CLIENT_PORT, MONITOR_PORT, SERVERS, Container, Engine, Project
from mesh_lab.servers.config import SYSTEM_USER, USER
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import Deadline, wait_until_ready
from mesh_lab.servers.workspace import Workspace

HOST = "127.0.0.1"  # containers are reached through their published ports only


class ContainerServer(MeshServer):
    """A nats-server in a container, whose state the engine reports."""

    monitor: Monitor

    def __init__(self, container: Container, engine: Engine) -> None:
        monitor = Monitor(HOST, container.ports[MONITOR_PORT])
        super().__init__(container.service, host=HOST, port=container.ports[CLIENT_PORT], monitor=monitor)
        self._id = container.id
        self._engine = engine
        self._ended: State = "exited"
        self._status = container.status

    @property
    def state(self) -> State:
        if self._status == "running":
            return "running"
        return "paused" if self._status == "paused" else self._ended

    def observe(self) -> State:
        self._inspect()
        return self.state

    def start(self) -> None:
        self._unpause()
        self._engine.docker("start", self._id)
        self._ended, self._status, self.was_healthy = "exited", "running", None

    def stop(self) -> None:
        self._end("stop", "stopped")

    def kill(self) -> None:
        self._end("kill", "killed")

    def pause(self) -> None:
        self._require_running()
        self._engine.docker("pause", self._id)
        self._status = "paused"

    def resume(self) -> None:
        self._require_running()
        self._unpause()
        self._status, self.was_healthy = "running", None

    def log(self, last: int | None = None) -> str:
        return self._engine.logs(self._id, last=last)

    def check_alive(self) -> None:
        state = self._inspect()
        if self._ended == "exited" and state["Status"] not in ("running", "paused", "created"):
            raise self.exited_error(state["ExitCode"])

    def _end(self, command: str, ended: State) -> None:
        if self._inspect()["Running"]:
            self._unpause()  # older engines neither stop nor kill what is paused
            self._engine.docker(command, self._id)
            self._ended, self._status = ended, "exited"

    def _unpause(self) -> None:
        if self._inspect()["Paused"]:
            self._engine.docker("unpause", self._id)

    def _require_running(self) -> None:
        if not self._inspect()["Running"]:
            raise self.not_running_error()

    def _inspect(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._engine.docker("inspect", "-f", "{{json .State}}", self._id))
        except EngineRefusedError as err:
            raise ServerExitedError(
                f"the container of server {self.name!r} cannot be seen ({err}); if it was taken down, start the mesh "
                "anew: await start_mesh(backend='docker')",
                name=self.name,
            ) from err
        self._status = found["Status"]
        return found


class ContainerMesh(Mesh):
    """Servers in containers, which outlive this object.

    Attributes:
        project: The containers.
    """

    def __init__(self, project: Project, containers: dict[str, Container], *, workspace: Workspace) -> None:
        self.project = project
        # As the containers were made, and not as the file of variables may say by now.
        made_with = containers[SERVERS[0]].environment
        super().__init__(
            {name: ContainerServer(containers[name], project.engine) for name in SERVERS},
            backend="docker",
            credentials=ConnectOptions(user=USER, password=made_with["USER_PASSWORD"]),
            system=ConnectOptions(user=SYSTEM_USER, password=made_with["SYSTEM_PASSWORD"]),
            workspace=workspace,
        )


async def start(request: MeshRequest) -> ContainerMesh:
    """Return the mesh of ``docker/compose.yaml``: joined if it is up, brought up if not; raises as ``start_mesh`` says.

    The servers must be ready ``request.within`` seconds after their containers run.
    """
    count = len(request.layout.servers)
    if count > len(SERVERS):
        raise UnsupportedByBackendError(f"{count} servers asked for, but the containers are three; use backend='local'")
    project = Project(await asyncio.to_thread(Engine.find))
    await asyncio.to_thread(project.up)
    containers = await asyncio.to_thread(project.servers)
    if missing := [name for name in SERVERS if name not in containers]:
        raise NotReadyError(
            f"project {project.name} has no container for {', '.join(missing)}, expected {', '.join(SERVERS)}; "
            "somebody took it down meanwhile: start it again"
        )
    mesh = ContainerMesh(project, containers, workspace=await asyncio.to_thread(Workspace))
    try:
        await wait_until_ready(mesh.view, Deadline(request.within))
    except BaseException:
        await mesh.close()
        raise
    return mesh
