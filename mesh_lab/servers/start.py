"""Start a mesh: local processes by default, containers, or the NATS that the environment names."""

import asyncio
import os
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, get_args

from mesh_lab.errors import (
    LinksFailedError,
    MeshLabError,
    NoMeshError,
    ServerExitedError,
    SettingsError,
    UnsupportedByBackendError,
)
from mesh_lab.servers.backend import Backend
from mesh_lab.servers.binary import find_server
from mesh_lab.servers.config import Further, KnownBy
from mesh_lab.servers.external import join_external
from mesh_lab.servers.joining import wait_until_joined, wait_until_routed
from mesh_lab.servers.layout import Layout, plan
from mesh_lab.servers.local import Settings, elect_at_once, local_mesh, start_in_turn
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import wait_until_ready
from mesh_lab.servers.workspace import Workspace

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Operator
    from mesh_lab.security.certificates import Authority

URL_VARIABLE, CREDS_VARIABLE = "MESH_LAB_URL", "MESH_LAB_CREDS"
BACKEND_VARIABLE = "MESH_LAB_BACKEND"
PORT_CLASHES_BORNE = 5
_LOCAL = "use backend='local' here"
_started: "list[weakref.ref[Mesh]]" = []  # the newest is the last


async def start_mesh(
    *,
    servers: int = 1,
    regions: Mapping[str, int] | None = None,
    leaves: Collection[str] | Mapping[str, str] = (),
    links: bool | None = None,
    backend: Backend | None = None,
    directory: str | Path | None = None,
    extra_config: str = "",
    account_config: str = "",
    jetstream_config: str = "",
    users_config: str = "",
    accounts_config: str = "",
    tls: "Authority | None" = None,
    known_by: KnownBy = "password",
    operator: "Operator | None" = None,
    within: float = 20.0,
) -> Mesh:
    """Return a mesh of real NATS servers that are ready in truth.

    There are three backends: ``"local"`` processes, which end with the mesh; ``"docker"``, the three containers
    of ``docker/compose.yaml``, which are joined if they are up, and stay up until ``mesh-lab down``; and
    ``"external"``, whatever runs at the address in ``MESH_LAB_URL`` (with ``MESH_LAB_CREDS``, the path of a
    credentials file, where it is needed), of which nothing is started or stopped.

    Args:
        servers: Number of servers, 1 or an odd number: JetStream needs a majority to agree. Containers are
            always three, also where one is enough, and external servers as many as their addresses. Of no effect
            where there are regions.
        regions: Number of servers in each region, such as ``{"eu": 3, "us": 3}``: each region is a cluster of its
            own, with servers ``eu-1`` to ``eu-3``, and gateways join the regions.
        leaves: Names of leaf nodes, such as ``["store-berlin"]``: each is one server with JetStream in a domain of
            its own name, connected to the first region, or to the region that a mapping names. The regions'
            domain is ``hub`` then.
        links: Whether servers are joined by links that can be slowed and cut. ``None`` means: where there are
            regions or leaf nodes. Links make the start a little slower.
        backend: Where they run. ``None`` takes what ``MESH_LAB_BACKEND`` names; without that variable, an
            external mesh if ``MESH_LAB_URL`` is set, and local processes if not.
        directory: Where to put the mesh's own directory; the system's temporary directory if ``None``.
        extra_config: Further settings in nats-server's own syntax, for every server.
        account_config: Further settings of the account in which the lessons work, such as ``"mappings { … }"``.
        jetstream_config: Further settings of JetStream, such as ``"max_buffered_msgs: 500"``.
        users_config: More users of that account, such as ``"{ nkey: U…, permissions: { … } }"``.
        accounts_config: More accounts, such as ``"SHOP { users: [ … ] }"``.
        tls: Authority that certifies the servers; then clients and servers talk TLS only. ``None``: plain text.
        known_by: Who a client with TLS is: what its password says, or what its certificate says.
        operator: Who vouches for accounts by signed tokens, in place of a configuration that lists them.
        within: Seconds until the servers must be ready.

    Raises:
        BadLayoutError: A number of servers is not 1, 3, 5 or 7, or a name is not legal in NATS or not unique.
        ValueError: No backend has that name, or settings contradict each other.
        UnsupportedByBackendError: Containers cannot be as many as asked for; containers or external
            servers cannot be joined or set up as asked for.
        NoEngineError: Containers were asked for, and no Docker engine answers.
        EngineRefusedError: The engine could not start the containers; the message says why.
        SettingsError: ``docker/.env`` is not as the containers need it, or ``MESH_LAB_URL`` is not set.
        NoServerBinaryError: There is no nats-server that is new enough.
        StoreError: The directory cannot be written, or its disk is full.
        ServerExitedError: A server ended at its start; the message carries its last log lines.
        NotReadyError: The servers were not ready in time; the message says what each last answered.
    """
    layout = plan(servers, regions, leaves)
    joined = bool(regions or leaves)
    place = Path(directory) if directory else None
    further = Further(extra_config, account_config, jetstream_config, users_config, accounts_config)
    chosen = _choose(backend)
    if known_by not in get_args(KnownBy) or (known_by == "certificate" and tls is None):
        raise ValueError(f"clients known by {known_by!r}; expected 'password', or 'certificate' with tls=Authority()")
    if chosen != "local" and (tls or operator):
        what = "tls" if tls else "an operator"
        raise UnsupportedByBackendError(
            f"{what} asked for, but the servers of backend {chosen!r} stand as they are; {_LOCAL}"
        )
    if operator is not None and (known_by == "certificate" or leaves or further.of_accounts):
        raise ValueError(
            "an operator's tokens say who may come in; no users, accounts, certificates or leaves beside it"
        )
    if chosen != "local" and (joined or links):
        what = "regions and leaf nodes" if joined else "links"
        raise UnsupportedByBackendError(
            f"{what} asked for, but the servers of backend {chosen!r} stand as they are; {_LOCAL}"
        )
    if chosen == "external" and any(further):
        raise UnsupportedByBackendError(f"further settings asked for, but external servers stand as they are; {_LOCAL}")
    match chosen:
        case "external":
            credentials = os.environ.get(CREDS_VARIABLE)
            mesh = await join_external(
                os.environ[URL_VARIABLE], credentials=Path(credentials) if credentials else None, directory=place
            )
        case "docker":
            mesh = await _start_docker(servers, place, further, within)
        case "local":
            linked = joined if links is None else links
            mesh = await _start_local(
                layout, place, within, linked=linked, further=further, tls=tls, known_by=known_by, operator=operator
            )
    _started[:] = [other for other in _started if (known := other()) is not None and not known.closed]
    _started.append(weakref.ref(mesh))
    return mesh


def forget(mesh: Mesh) -> None:
    """Take a mesh out of those that :func:`newest_mesh` chooses from; it stays open."""
    _started[:] = [other for other in _started if other() is not mesh]


def newest_mesh() -> Mesh:
    """Return the mesh that was started last in this process, of those that are open.

    Raises:
        NoMeshError: None is.
    """
    for reference in reversed(_started):
        if (mesh := reference()) is not None and not mesh.closed:
            return mesh
    raise NoMeshError("no mesh is open; start one first: mesh = await start_mesh(servers=3)")


def _choose(backend: str | None) -> Backend:
    """Return the backend that was asked for, by the argument or by the environment."""
    asked = backend or os.environ.get(BACKEND_VARIABLE)
    if asked is None:
        return "external" if os.environ.get(URL_VARIABLE) else "local"
    known: tuple[Backend, ...] = get_args(Backend)
    if asked not in known:
        raise SettingsError(f"backend {asked!r} asked for, expected one of {', '.join(known)}")
    if asked == "external" and not os.environ.get(URL_VARIABLE):
        raise SettingsError(f"backend 'external' needs an address; set {URL_VARIABLE}=nats://host:4222")
    return known[known.index(asked)]


async def _start_docker(count: int, directory: Path | None, further: Further, within: float) -> Mesh:
    # Loaded only now: nearly every mesh is local.
    from mesh_lab.servers.docker import start_containers

    if count > 3 or any(further):
        what = "further settings" if any(further) else f"{count} servers"
        raise UnsupportedByBackendError(
            f"{what} asked for, but the containers are three with the settings of docker/nats-server.conf; "
            "use backend='local' here"
        )
    return await start_containers(directory=directory, within=within)


async def _start_local(layout: Layout, parent: Path | None, within: float, **settings: Unpack[Settings]) -> Mesh:
    binary = (await asyncio.to_thread(find_server)).path
    for attempt in range(PORT_CLASHES_BORNE):
        workspace = await asyncio.to_thread(Workspace, parent)
        try:
            mesh, links = local_mesh(layout, binary, workspace, **settings)
        except BaseException:
            workspace.remove()
            raise
        try:
            if links is not None:  # before the servers: a server that is refused waits for a second
                await asyncio.to_thread(links.start)
            await start_in_turn(mesh, within=within)
            if len(layout.regions) > 1:
                await wait_until_joined(mesh, within=within)
                await wait_until_routed(mesh, within=within)
                await elect_at_once(mesh, within=within)
            await wait_until_ready(mesh, within=within)
        except BaseException as err:
            await mesh.close()
            clash = isinstance(err, ServerExitedError | LinksFailedError) and "address already in use" in str(err)
            if not clash or attempt == PORT_CLASHES_BORNE - 1:
                raise
        else:
            return mesh
    raise MeshLabError("unreachable: the last attempt returns or raises")
