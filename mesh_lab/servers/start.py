"""Start a mesh: local processes by default, containers, or the NATS that the environment names."""

import asyncio
import os
import weakref
from pathlib import Path
from typing import get_args

from mesh_lab.errors import MeshLabError, NoMeshError, NotOursError, ServerExitedError, SettingsError
from mesh_lab.patterns.connecting import ConnectOptions
from mesh_lab.servers import config
from mesh_lab.servers.backend import Backend
from mesh_lab.servers.binary import ensure_server
from mesh_lab.servers.external import join_external
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import wait_until_ready
from mesh_lab.servers.server import LocalServer
from mesh_lab.servers.workspace import Workspace

URL_VARIABLE, CREDS_VARIABLE = "MESH_LAB_URL", "MESH_LAB_CREDS"
BACKEND_VARIABLE = "MESH_LAB_BACKEND"
PORT_CLASHES_BORNE = 5
_newest: "weakref.ref[Mesh] | None" = None


async def start_mesh(
    *,
    servers: int = 1,
    backend: Backend | None = None,
    directory: str | Path | None = None,
    extra_config: str = "",
    within: float = 20.0,
) -> Mesh:
    """Return a mesh of real NATS servers that are ready in truth.

    There are three backends: ``"local"`` processes, which end with the mesh; ``"docker"``, the three containers
    of ``docker/compose.yaml``, which are joined if they are up, and stay up until ``mesh-lab down``; and
    ``"external"``, whatever runs at the address in ``MESH_LAB_URL`` (with ``MESH_LAB_CREDS``, the path of a
    credentials file, where it is needed), of which nothing is started or stopped.

    Args:
        servers: Number of servers, 1 or an odd number: JetStream needs a majority to agree. Containers are
            always three, also where one is enough.
        backend: Where they run. ``None`` takes what ``MESH_LAB_BACKEND`` names; without that variable, an
            external mesh if ``MESH_LAB_URL`` is set, and local processes if not.
        directory: Where to put the mesh's own directory; the system's temporary directory if ``None``.
        extra_config: Further settings in nats-server's own syntax, for every server.
        within: Seconds until the servers must be ready.

    Raises:
        ValueError: The number of servers is not 1, 3, 5 or 7, or no backend has that name.
        NotOursError: Containers cannot be as many, or as configured, as asked for.
        NoEngineError: Containers were asked for, and no Docker engine answers.
        EngineRefusedError: The engine could not start the containers; the message says why.
        SettingsError: ``docker/.env`` is not as the containers need it, or ``MESH_LAB_URL`` is not set.
        NoServerBinaryError: There is no nats-server and none can be had.
        StoreError: The directory cannot be written, or its disk is full.
        ServerExitedError: A server ended at its start; the message carries its last log lines.
        NotReadyError: The servers were not ready in time; the message says what each last answered.
    """
    global _newest
    if servers not in (1, 3, 5, 7):
        raise ValueError(f"{servers!r} servers asked for, expected 1, 3, 5 or 7: a cluster decides by majority")
    place = Path(directory) if directory else None
    match _choose(backend):
        case "external":
            credentials = os.environ.get(CREDS_VARIABLE)
            mesh = await join_external(os.environ[URL_VARIABLE], credentials=Path(credentials) if credentials else None)
        case "docker":
            mesh = await _start_docker(servers, place, extra_config, within)
        case "local":
            mesh = await _start_local(servers, place, extra_config, within)
    _newest = weakref.ref(mesh)
    return mesh


def newest_mesh() -> Mesh:
    """Return the mesh that was started last in this process.

    Raises:
        NoMeshError: There is none, or it was closed.
    """
    mesh = _newest() if _newest is not None else None
    if mesh is None or mesh.closed:
        raise NoMeshError("no mesh is open; start one first: mesh = await start_mesh(servers=3)")
    return mesh


def _choose(backend: str | None) -> Backend:
    """Return the backend that was asked for, by the argument or by the environment."""
    asked = backend or os.environ.get(BACKEND_VARIABLE)
    if asked is None:
        return "external" if os.environ.get(URL_VARIABLE) else "local"
    known: tuple[Backend, ...] = get_args(Backend)
    if asked not in known:
        raise ValueError(f"backend {asked!r} asked for, expected one of {', '.join(known)}")
    if asked == "external" and not os.environ.get(URL_VARIABLE):
        raise SettingsError(f"backend 'external' needs an address; set {URL_VARIABLE}=nats://host:4222")
    return known[known.index(asked)]


async def _start_docker(count: int, directory: Path | None, extra_config: str, within: float) -> Mesh:
    # Loaded only now: nearly every mesh is local.
    from mesh_lab.servers.docker import start_containers

    if count > 3 or extra_config:
        what = "extra_config" if extra_config else f"{count} servers"
        raise NotOursError(
            f"{what} asked for, but the containers are three with the settings of docker/nats-server.conf; "
            "use backend='local' here"
        )
    return await start_containers(directory=directory, within=within)


async def _start_local(count: int, parent: Path | None, extra_config: str, within: float) -> Mesh:
    binary = (await asyncio.to_thread(ensure_server)).path
    for attempt in range(PORT_CLASHES_BORNE):
        workspace = await asyncio.to_thread(Workspace, parent)
        try:
            mesh = _local_mesh(count, binary, workspace, extra_config)
        except BaseException:
            workspace.remove()
            raise
        try:
            for server in mesh.servers.values():
                server.start()
            await wait_until_ready(mesh, within=within)
        except BaseException as err:
            await mesh.close()
            clash = isinstance(err, ServerExitedError) and "address already in use" in str(err)
            if not clash or attempt == PORT_CLASHES_BORNE - 1:
                raise
        else:
            return mesh
    raise MeshLabError("unreachable: the last attempt returns or raises")


def _local_mesh(count: int, binary: Path, workspace: Workspace, extra_config: str) -> Mesh:
    names = [f"n{i}" for i in range(1, count + 1)]
    take = workspace.ports.take
    ports = {name: config.Ports(take(), take(), take()) for name in names}
    passwords = config.Passwords()
    servers = {}
    for name in names:
        text = config.server_config(
            name,
            ports=ports[name],
            store=workspace.directory / name,
            passwords=passwords,
            cluster="mesh" if count > 1 else None,
            peers=[p for other, p in ports.items() if other != name],
            extra=extra_config,
        )
        path = workspace.directory / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(text)
        servers[name] = LocalServer(
            name, binary=binary, directory=workspace.directory, ports=ports[name], owner=workspace.owner
        )
    credentials = ConnectOptions(user=config.USER, password=passwords.user)
    return Mesh(servers, backend="local", credentials=credentials, workspace=workspace)
