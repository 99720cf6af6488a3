"""The services of the main job while it runs: processes of this machine, or containers beside their servers."""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from mesh_lab.errors import EngineRefusedError, ProcessEndedError
from mesh_lab.orders.saga import DUTIES
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess
from mesh_lab.servers.docker import ContainerMesh
from mesh_lab.servers.mesh import Mesh
from mesh_lab.tls import pack

BUILD_LIMIT_S = 900.0
ENDS_WITHIN_S = 40.0
"""How long a service may take to end: an election, and what its orders in hand then need."""
KILLED = (-9, 137)  # by SIGKILL: the exit code of a process, and that of a container
NOT_BEGUN = (-15, 143, 0xC000013A)
"""By SIGTERM or Ctrl-Break, in place of a service that listens for them: it was stopped before it had begun."""
LOG_LINES = 20
_SERVICES = ("publisher", "worker", "read-model", *DUTIES)
CredentialsOf = Callable[[str, str], str]
"""Returns the path of the credentials file of a role's process: its role, and its own name."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the services have to do, as for :func:`mesh_lab.orders.job.run.run_orders`."""

    workers: int
    replicas: int
    first: int | None
    file: Path | None
    saga: bool

    @property
    def roles(self) -> tuple[str, ...]:
        """The services that orders pass through, of each as many as there are workers."""
        return tuple(DUTIES) if self.saga else ("worker",)

    def publisher(self, file: Path | None) -> list[str]:
        """Return the publisher's arguments of ``python -m mesh_lab.orders``, with the place of :attr:`file` for it."""
        given = {"--replicas": self.replicas, "--first": self.first, "--file": file}
        return ["publisher", *(f"{option}={value}" for option, value in given.items() if value is not None)]


class Services:
    """The services of one run, by name: ``publisher``, ``read-model``, ``worker-1`` and so on."""

    def __init__(self, running: "Mapping[str, ChildProcess | _Container]", roles: Iterable[str]) -> None:
        """Note what runs; of each role, ``worker-1`` and so on make up for one another."""
        self._running = running
        self._groups = [[name for name in running if name.rpartition("-")[0] == role] for role in roles]
        self._stopping = False

    @property
    def published(self) -> bool:
        """Whether the publisher placed everything and ended."""
        return self._running["publisher"].exit_code == 0

    @property
    def killed_workers(self) -> list[str]:
        """The workers that were killed."""
        return [name for group in self._groups for name in group if self._running[name].exit_code in KILLED]

    @property
    def expendable(self) -> list[str]:
        """The workers that leave another one of their group behind."""
        return [name for group in self._groups if len(group) > 1 for name in group]

    async def kill(self, name: str) -> None:
        """Kill a service, and return when it is gone."""
        await asyncio.to_thread(self._running[name].kill)

    def check(self) -> None:
        """Return if none failed; a killed worker is a fault that the rest of its group makes up for.

        Raises:
            ProcessEndedError: One did; the message carries the end of its log.
        """
        killed = set(self.killed_workers)
        tolerated = {name for group in self._groups if set(group) - killed for name in group} & killed
        for name, service in self._running.items():
            stopped = self._stopping and service.exit_code in NOT_BEGUN  # the others did it all while this one started
            if (code := service.exit_code) and name not in tolerated and not stopped:
                log = service.log(last=LOG_LINES)
                message = f"{name} ended with code {code}: {log.strip() or 'it printed nothing'}"
                raise ProcessEndedError(message, name=name, exit_code=code, log=log)

    async def finish(self) -> list[dict[str, object]]:
        """Stop every service gracefully and return the report that each printed last; one that had not begun has none.

        Raises:
            ProcessEndedError: One ended with an error, or did not end.
        """
        self.check()
        self._stopping = True
        for service in self._running.values():
            await asyncio.to_thread(service.request_stop)
        ends = (asyncio.to_thread(service.rest, within=ENDS_WITHIN_S) for service in self._running.values())
        try:
            reports = await asyncio.gather(*ends)
        except TimeoutError as err:
            raise ProcessEndedError(f"{err} after SIGTERM") from err
        self.check()
        return [json.loads(report) for report in reports if report]


@contextlib.asynccontextmanager
async def start_services(
    mesh: Mesh, job: Job, *, near: str | None, file_of: CredentialsOf | None = None
) -> AsyncIterator[Services]:
    """Run a publisher, workers and a read model for as long as the context lasts, as containers beside containers.

    As processes, they connect to the server ``near`` first, if one is named; each as the user whose credentials file
    ``file_of`` returns, or all as the mesh's own.

    Raises:
        EngineRefusedError: The image could not be built, or the containers not started.
    """

    def start() -> "Mapping[str, ChildProcess | _Container]":
        if mesh.traits.services == "containers":
            return _start_containers(cast(ContainerMesh, mesh), job, closing)
        return _start_processes(mesh, near, job, closing, file_of)

    closing = contextlib.ExitStack()
    starting = asyncio.ensure_future(asyncio.to_thread(start))
    try:
        yield Services(await asyncio.shield(starting), job.roles)
    finally:
        # A start that is interrupted must not go on while its services are being removed.
        await asyncio.gather(starting, return_exceptions=True)
        await asyncio.to_thread(closing.close)


def _start_processes(
    mesh: Mesh, near: str | None, job: Job, closing: contextlib.ExitStack, file_of: CredentialsOf | None
) -> dict[str, ChildProcess]:
    """Start processes of this machine, which end with the mesh at the latest."""
    replicas = f"--replicas={job.replicas}"
    numbers = range(1, job.workers + 1)
    commands = {f"{role}-{number}": [role, replicas] for role in job.roles for number in numbers}
    reader = ["--consumer=read-model"] if file_of else []
    commands |= {"read-model": ["read-model", replicas, *reader], "publisher": job.publisher(job.file)}
    # Before the first process starts: a role that is not known starts none.
    users = {
        name: ConnectOptions(user_credentials=file_of(service, name)) if file_of else ConnectOptions()
        for name, (service, *_) in commands.items()
    }
    running = {}
    for name, arguments in commands.items():
        # In the environment: any user of the machine can read arguments.
        environment = {CONNECT_VARIABLE: json.dumps(pack({**mesh.connect_options(to=near), **users[name]}))}
        command = [sys.executable, "-m", "mesh_lab.orders", *arguments, "--name", name]
        running[name] = ChildProcess(command, name=name, owner=mesh.owner, environment=environment, stdout=True)
        closing.callback(running[name].close)
        running[name].start()
    return running


def remove_services(mesh: Mesh) -> None:
    """Remove the containers in which services run; processes end with the run that started them."""
    if isinstance(mesh, ContainerMesh):
        project = mesh.project
        if old := [c.id for c in project.containers() if c.service in _SERVICES]:
            project.engine.docker("rm", "--force", *old)


def _start_containers(mesh: ContainerMesh, job: Job, closing: contextlib.ExitStack) -> "dict[str, _Container]":
    """Start containers of the project's profile ``orders`` or ``saga``; each role is one service, scaled."""
    project = mesh.project

    # The password of the servers as they run: the file of variables may be newer than they are.
    variables = {"MESH_LAB_USER_PASSWORD": str(mesh.connect_options()["password"])}
    compose = partial(project.compose, "--profile", "saga" if job.saga else "orders", variables=variables)

    remove_services(mesh)  # what a run that was killed left behind
    compose("build", "--quiet", "publisher", within=BUILD_LIMIT_S)
    # Not `docker compose wait`: it waits for containers that run when it starts, and a publisher of few orders may have
    # ended by then.
    ours = ["--filter", f"label=com.docker.compose.project={project.name}", "--filter", "event=die"]
    command = ["docker", "events", *ours, "--format", "{{.Actor.ID}} {{.Actor.Attributes.exitCode}}"]
    events, codes = ChildProcess(command, name="docker events", stdout=True), dict[str, int]()
    closing.callback(events.close)
    events.start()
    threading.Thread(target=_note_exit_codes, args=(events, codes), daemon=True).start()
    closing.callback(remove_services, mesh)
    scale = [f"--scale={role}={job.workers}" for role in job.roles]
    compose("up", "--detach", "--no-deps", "--no-build", *scale, "read-model", *job.roles)
    inside = None if job.file is None else Path("/orders.txt")
    mount = [] if job.file is None else ["--volume", f"{job.file.absolute()}:{inside}:ro,z"]
    name = f"--name={project.name}-publisher-1"
    compose("run", "--detach", "--no-deps", name, *mount, "publisher", *job.publisher(inside))
    return {
        container.name if container.service in job.roles else container.service: _Container(mesh, container.id, codes)
        for container in project.containers()
        if container.service in _SERVICES
    }


def _note_exit_codes(events: ChildProcess, codes: dict[str, int]) -> None:
    with contextlib.suppress(ProcessEndedError):  # it was closed
        while True:
            container, _, code = events.receive().decode().partition(" ")
            codes[container] = int(code)


class _Container:
    """A service in a container, with the methods of :class:`~mesh_lab.processes.ChildProcess` that are needed here."""

    def __init__(self, mesh: ContainerMesh, id_: str, codes: dict[str, int]) -> None:
        self._engine, self._id, self._codes = mesh.project.engine, id_, codes

    @property
    def exit_code(self) -> int | None:
        return self._codes.get(self._id)

    def log(self, *, last: int) -> str:
        return self._engine.logs(self._id, last=last)

    def request_stop(self) -> None:
        with contextlib.suppress(EngineRefusedError):  # it has ended already
            self._engine.docker("kill", "--signal=TERM", self._id)

    def kill(self) -> None:
        self._engine.docker("kill", self._id)

    def rest(self, *, within: float) -> bytes:
        self._codes[self._id] = int(self._engine.docker("wait", self._id, within=within))
        return self._engine.docker("logs", "--tail=1", self._id).encode()
