"""The services of the main job while it runs: processes of this machine, or containers beside their servers."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

from mesh_lab.errors import ServiceFailedError
from mesh_lab.processes import CONNECT_VARIABLE
from mesh_lab.servers.compose import Project
from mesh_lab.servers.docker import ContainerMesh
from mesh_lab.servers.guard import OWNER_VARIABLE
from mesh_lab.servers.mesh import Mesh
from mesh_lab.tls import pack

BUILD_LIMIT_S = 900.0
ENDS_WITHIN_S = 40.0
"""How long a service may take to end: an election, and what its orders in hand then need."""
KILLED = (-9, 137)  # by SIGKILL: as a process tells it, and as a container does
_SERVICES = ("publisher", "worker", "read-model")


class Services(ABC):
    """The services of one run, by name: ``publisher``, ``read-model``, ``worker-1`` and so on."""

    @abstractmethod
    def _codes(self) -> dict[str, int | None]:
        """Return each service's exit code, ``None`` while it runs."""

    @abstractmethod
    def _said(self, name: str) -> str:
        """Return what a service said about its failure."""

    @abstractmethod
    async def stop(self) -> list[dict[str, object]]:
        """End every service in good order and return their reports.

        Raises:
            ServiceFailedError: One ended with an error.
        """

    @abstractmethod
    def kill(self) -> None:
        """End what still runs at once and clean up."""

    @property
    def published(self) -> bool:
        """Whether the publisher placed everything and ended."""
        return self._codes()["publisher"] == 0

    @property
    def killed_workers(self) -> list[str]:
        """The workers that somebody killed."""
        return [name for name, code in self._codes().items() if name.startswith("worker-") and code in KILLED]

    def check(self) -> None:
        """Raise when a service failed; a killed worker is a fault that the rest of its group makes up for.

        Raises:
            ServiceFailedError: One did; the message carries what it said.
        """
        codes, killed = self._codes(), self.killed_workers
        workers = [name for name in codes if name.startswith("worker-")]
        borne = killed if len(killed) < len(workers) else []
        for name, code in codes.items():
            if code and name not in borne:
                said = self._said(name).strip()
                raise ServiceFailedError(f"{name} ended with code {code}: {said or 'it said nothing'}")


@contextlib.asynccontextmanager
async def start_services(
    mesh: Mesh, *, near: str | None, workers: int, first: int | None, file: Path | None
) -> AsyncIterator[Services]:
    """Run a publisher, workers and a read model where the mesh runs, for as long as the context lasts.

    Args:
        mesh: Which servers they work on; beside containers, they are containers too.
        near: Server to which processes connect first; ``None`` for any.
        workers: Number of workers in the one group.
        first: Number of orders to place; ``None`` for all.
        file: Orders in the data set's format instead of the data set.

    Raises:
        EngineRefusedError: The image could not be built, or the containers not started.
    """
    replicas = f"--replicas={3 if len(mesh.servers) >= 3 else 1}"
    chosen = [] if first is None else [f"--first={first}"]
    services: _Containers | _Processes
    if isinstance(mesh, ContainerMesh):
        services = _Containers(mesh.project, str(mesh.connect_options()["password"]))
    else:
        services = _Processes(_environment(mesh, near), mesh.directory)
    starting = asyncio.ensure_future(asyncio.to_thread(services.start, replicas, workers, chosen, file))
    try:
        await asyncio.shield(starting)
        yield services
    finally:
        # A start that is interrupted must not go on while its services are being removed.
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.to_thread(services.kill)


class _Processes(Services):
    """Processes of this machine, which end with the mesh."""

    def __init__(self, environment: dict[str, str], directory: Path) -> None:
        self._environment = environment
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, replicas: str, workers: int, chosen: list[str], file: Path | None) -> None:
        self._start("read-model", "read-model", replicas)
        for number in range(1, workers + 1):
            self._start(f"worker-{number}", "worker", replicas)
        self._start("publisher", "publisher", replicas, *chosen, *([] if file is None else [f"--file={file}"]))

    def _start(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.log").open("w") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "mesh_lab.orders", *arguments, "--name", name],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def _codes(self) -> dict[str, int | None]:
        return {name: process.poll() for name, process in self._processes.items()}

    def _said(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    async def stop(self) -> list[dict[str, object]]:
        for process in self._processes.values():
            process.terminate()
        said = await asyncio.gather(*(asyncio.to_thread(_last_words, *one) for one in self._processes.items()))
        self.check()
        return [json.loads(out) for out in said if out]

    def kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


class _Containers(Services):
    """Containers of the project's profile ``orders``; the workers are one service, scaled."""

    def __init__(self, project: Project, password: str) -> None:
        self._project = project
        # That of the servers as they run: the file of variables may be newer than they are.
        self._variables = {"MESH_LAB_USER_PASSWORD": password}
        self._ids: dict[str, str] = {}
        self._codes_seen: dict[str, int] = {}
        self._waits: dict[str, subprocess.Popen[str]] = {}

    def start(self, replicas: str, workers: int, chosen: list[str], file: Path | None) -> None:
        self._remove()  # what a run that was killed left behind
        self._compose("build", "--quiet", "worker", within=BUILD_LIMIT_S)
        self._compose("up", "--detach", "--no-deps", "--no-build", f"--scale=worker={workers}", "read-model", "worker")
        mount = [] if file is None else ["--volume", f"{file.absolute()}:/orders.txt:ro,z"]
        placed = chosen if file is None else [*chosen, "--file=/orders.txt"]
        name = f"--name={self._project.name}-publisher-1"
        self._compose("run", "--detach", "--no-deps", name, *mount, "publisher", "publisher", replicas, *placed)
        for container in self._project.containers():
            if container.service in _SERVICES:
                label = container.name if container.service == "worker" else container.service
                self._ids[label] = container.id
                # One sleeping process for each, instead of asking the engine ten times a second.
                self._waits[label] = subprocess.Popen(
                    ["docker", "wait", container.id], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
                )

    def _codes(self) -> dict[str, int | None]:
        for name, wait in self._waits.items():
            if name not in self._codes_seen and wait.poll() is not None:
                said = wait.communicate()[0].strip()
                self._codes_seen[name] = int(said) if said.isdigit() else -1  # removed by somebody
        return {name: self._codes_seen.get(name) for name in self._waits}

    def _said(self, name: str) -> str:
        return self._project.engine.logs(self._ids[name], last=5)

    async def stop(self) -> list[dict[str, object]]:
        engine = self._project.engine
        await asyncio.to_thread(engine.docker, "stop", *self._ids.values())
        await asyncio.gather(*(asyncio.to_thread(wait.wait) for wait in self._waits.values()))
        self.check()
        said = [await asyncio.to_thread(engine.docker, "logs", "--tail=1", i) for i in self._ids.values()]
        return [json.loads(line) for line in said if line]

    def kill(self) -> None:
        self._remove()
        for wait in self._waits.values():
            wait.wait()
            if wait.stdout is not None:
                wait.stdout.close()

    def _remove(self) -> None:
        if old := [c.id for c in self._project.containers() if c.service in _SERVICES]:
            self._project.engine.docker("rm", "--force", *old)

    def _compose(self, *arguments: str, within: float = 120.0) -> None:
        self._project.compose("--profile", "orders", *arguments, within=within, variables=self._variables)


def _environment(mesh: Mesh, near: str | None) -> dict[str, str]:
    """Return the variables under which a process finds the mesh, and ends with it."""
    # In the environment, not among the arguments: those any user of the machine can read.
    connect = json.dumps(pack(mesh.connect_options(to=near)))
    return {**os.environ, CONNECT_VARIABLE: connect, OWNER_VARIABLE: mesh.owner}


def _last_words(name: str, process: subprocess.Popen[str]) -> str:
    """Return what a process that was told to end says in the end."""
    try:
        return process.communicate(timeout=ENDS_WITHIN_S)[0]
    except subprocess.TimeoutExpired as err:
        raise ServiceFailedError(f"{name} did not end within {ENDS_WITHIN_S:g} s of being told to") from err
