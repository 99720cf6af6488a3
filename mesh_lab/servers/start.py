"""Start a mesh: local processes by default, containers, or the NATS that the environment names."""

import os
import sys
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast, get_args

from mesh_lab.errors import MeshClosedError, UnsupportedByBackendError
from mesh_lab.servers.backend import NEEDS, Backend, MeshRequest, Need, traits_of
from mesh_lab.servers.config import ClientAuth, ExtraConfig
from mesh_lab.servers.external import URL_VARIABLE
from mesh_lab.servers.layout import plan
from mesh_lab.servers.mesh import Mesh

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Operator
    from mesh_lab.security.certificates import Authority

BACKEND_VARIABLE = "MESH_LAB_BACKEND"
LOOPBACK = "127.0.0.1"
INSTEAD = "; use backend='local' here"
_started: "weakref.WeakValueDictionary[int, Mesh]" = weakref.WeakValueDictionary()  # the newest is the last
_lesson = _stays_local = False


async def start_mesh(
    *,
    servers: int = 1,
    regions: Mapping[str, int] | None = None,
    leaves: Collection[str] | Mapping[str, str] = (),
    links: bool | None = None,
    needs: Need | Collection[Need] = (),
    backend: Backend | None = None,
    extra_config: str = "",
    account_config: str = "",
    jetstream_config: str = "",
    users_config: str = "",
    accounts_config: str = "",
    tls: "Authority | None" = None,
    client_auth: ClientAuth = "password",
    operator: "Operator | None" = None,
    listen: str = LOOPBACK,
    leaf_nodes: bool = False,
    keep: Path | None = None,
    within: float = 20.0,
) -> Mesh:
    """Return a mesh of real NATS servers that are ready, by their own health checks and JetStream's replies.

    There are three backends: ``"local"`` processes, which end with the mesh; ``"docker"``, the three containers
    of ``docker/compose.yaml``, which are joined if they are up, and stay up until ``mesh-lab down``; and
    ``"external"``, whatever runs at the address in ``MESH_LAB_URL`` (with ``MESH_LAB_CREDS``, the path of a
    credentials file, where it is needed), of which nothing is started or stopped.

    Where the environment chose one that cannot do what is asked for, or a lesson's account there holds streams, local
    servers take its place, and one sentence says why. A lesson is what runs after ``%load_ext mesh_lab``; there, a
    mesh replaces an earlier one on the same servers, and its end removes the streams that it made.

    Args:
        servers: Number of servers, where there are no regions: 1, 3, 5 or 7, as JetStream needs a majority to agree.
            Containers are always three, and external servers as many as can be reached.
        regions: Number of servers in each region, such as ``{"eu": 3, "us": 3}``: each region is a cluster of its
            own, with servers ``eu-1`` to ``eu-3``, and gateways join the regions.
        leaves: Names of leaf nodes, such as ``["store-berlin"]``: each is one server with JetStream in a domain of
            its own name, connected to the first region, or to the region that a mapping names. The regions'
            domain is ``hub`` then.
        links: Whether servers are joined by links that can be slowed and cut; ``None``: if there are regions or
            leaf nodes.
        needs: What is needed beside that: ``"names"`` (n1 to n3), ``"kill"``, ``"monitoring"``, ``"system"`` (the
            account), ``"reload"`` (of users), ``"files"`` (of the servers, and their processes).
        backend: Where they run; ``None``: what ``MESH_LAB_BACKEND`` names, or else an external mesh if
            ``MESH_LAB_URL`` is set, and local processes if not.
        extra_config: Further settings in nats-server's own syntax, for every server.
        account_config: Further settings of the account in which the lessons work, such as ``"mappings { … }"``.
        jetstream_config: Further settings of JetStream, such as ``"max_buffered_msgs: 500"``.
        users_config: More users of that account, such as ``"{ nkey: U…, permissions: { … } }"``.
        accounts_config: More accounts, such as ``"SHOP { users: [ … ] }"``.
        tls: Authority that certifies the servers; then clients and servers talk TLS only. ``None``: plain text.
        client_auth: How a client with TLS signs in: by its ``"password"``, or by its ``"certificate"``.
        operator: Operator whose signed tokens are the accounts, in place of a configuration that lists them. Those
            that it has by now are known to every server; leaf nodes join each of them with their region.
        listen: Address of this machine on which the servers take clients, from other machines as well; another one than
            127.0.0.1 only with TLS and an operator.
        leaf_nodes: Whether leaf nodes that are no part of this mesh join there as well, each as a user of one of the
            operator's accounts.
        keep: Directory in which stores and ports outlive the mesh, for one of the same layout that goes on with them;
            ``None``: they are gone with it. An operator and its accounts have to be the same as well.
        within: Seconds until the servers must be ready, all steps and a second try on other ports included.

    Raises:
        BadLayoutError: A number of servers is not 1, 3, 5 or 7, or a name is not legal in NATS or not unique.
        ValueError: No backend has that name, or settings contradict each other.
        UnsupportedByBackendError: The named ``backend`` cannot do what is asked for, or its account is not empty.
        NoEngineError: Containers were asked for, and no Docker engine answers.
        EngineRefusedError: The engine could not start the containers; the message says why.
        SettingsError: ``docker/`` is not as the containers need it, or ``MESH_LAB_URL`` is not set.
        NoServerBinaryError: There is no nats-server that is new enough.
        StoreError: The temporary directory cannot be written, or its disk is full.
        ServerExitedError: A server ended at its start; the message carries its last log lines.
        NotReadyError: The servers were not ready in time; the message says what each last answered.
    """
    extra = ExtraConfig(extra_config, account_config, jetstream_config, users_config, accounts_config)
    request = MeshRequest(
        plan(servers, regions, leaves),
        within,
        links=bool(regions or leaves) if links is None else links,
        extra=extra,
        tls=tls,
        client_auth=client_auth,
        operator=operator,
        listen=listen,
        leaf_nodes=leaf_nodes,
        keep=keep,
    )
    if client_auth not in get_args(ClientAuth) or (client_auth == "certificate" and tls is None):
        raise ValueError(
            f"client_auth={client_auth!r} asked for, expected 'password', or 'certificate' with tls=Authority()"
        )
    beside = client_auth == "certificate" or account_config or users_config or accounts_config
    if operator is not None and beside:
        raise ValueError("an operator's tokens say who may come in; no users, accounts or certificates beside it")
    if (listen != LOOPBACK or leaf_nodes) and (tls is None or operator is None):
        opens = f"listen={listen!r}, leaf_nodes={leaf_nodes} opens the servers to others"
        raise ValueError(f"{opens}, expected tls= and operator= as well")
    global _stays_local
    needed: Collection[Need] = [needs] if isinstance(needs, str) else needs
    chosen = backend or chosen_backend()
    if backend is None and _stays_local:
        chosen = "local"  # the lesson goes on where it began
    wishes = {"tls": tls, "an operator": operator, "regions and leaf nodes": regions or leaves, "links": links}
    wishes |= {"listen": listen != LOOPBACK, "leaf nodes of others": leaf_nodes}
    wishes |= {"keep": keep is not None}
    wished = [what for what, wish in {**wishes, "further settings": any(extra)}.items() if wish]
    try:
        mesh = await _start(request, chosen, wished, needed)
    except UnsupportedByBackendError as err:
        if backend is not None:
            raise
        where = BACKEND_VARIABLE if os.environ.get(BACKEND_VARIABLE) else URL_VARIABLE
        said = f"Local servers run here, not those of {where}: {str(err).removesuffix(INSTEAD)}.\n"
        (sys.stdout if _lesson else sys.stderr).write(said)
        mesh = await _start(request, "local", (), ())
        _stays_local = _lesson and not any(other.borrowed for other in _open())
    _started[id(mesh)] = mesh
    return mesh


async def _start(request: MeshRequest, backend: str, wished: Collection[str], needs: Collection[Need]) -> Mesh:
    traits = traits_of(backend)
    lacking = [] if traits.configurable else list(wished)
    if lacking := lacking + [NEEDS[need] for need in needs if need not in traits.gives]:
        raise UnsupportedByBackendError(
            f"{', '.join(lacking)} asked for, but the servers of backend {backend!r} are set up {traits.settings}"
            f"{INSTEAD}"
        )
    borrows = _lesson and not traits.temporary
    for earlier in _open():
        if borrows and earlier.backend == backend:  # as where the set-up cell runs again
            await earlier.close()
    mesh: Mesh = await resolve_name(traits.start)(request)
    if borrows:
        try:
            await mesh.borrow()
        except BaseException:
            await mesh.close()
            raise
    return mesh


def chosen_backend() -> Backend:
    """Return the backend that the environment names; ``"local"`` where it names none."""
    named = os.environ.get(BACKEND_VARIABLE) or ("external" if os.environ.get(URL_VARIABLE) else "local")
    return cast(Backend, named)


def begin_lessons(on: bool = True) -> None:
    """Say whether what this process starts from now on are lessons, which leave nothing behind on servers of others."""
    global _lesson, _stays_local
    _lesson, _stays_local = on, False


def forget(mesh: Mesh) -> None:
    """Take a mesh out of those that :func:`newest_mesh` chooses from; it stays open."""
    _started.pop(id(mesh), None)


def newest_mesh() -> Mesh:
    """Return the mesh that was started last in this process, of those that are open.

    Raises:
        MeshClosedError: None is.
    """
    if meshes := _open():
        return meshes[-1]
    raise MeshClosedError("no mesh is open; start one first: mesh = await start_mesh(servers=3)")


def _open() -> list[Mesh]:
    return [mesh for mesh in _started.values() if not mesh.closed]
