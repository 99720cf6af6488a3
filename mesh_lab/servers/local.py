"""The servers of a mesh as processes on this machine: their ports, their configuration files, their links."""

import asyncio
import secrets
import signal
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from mesh_lab.errors import ProcessEndedError
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.servers import config
from mesh_lab.servers.backend import MeshRequest
from mesh_lab.servers.binary import find_server
from mesh_lab.servers.layout import HUB, Kind, Layout
from mesh_lab.servers.links import Links
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import Deadline, ask, gateways_stand, routed, until, wait_for, wait_until_ready
from mesh_lab.servers.server import LocalServer
from mesh_lab.servers.workspace import Workspace

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Account, Operator, User

PORT_CLASH_TRIES = 5  # a program that takes a port just before the server does is rare; five in a row are no accident


async def start(request: MeshRequest) -> Mesh:
    """Return a mesh of processes, ready; raises what ``start_mesh`` says."""
    binary = (await asyncio.to_thread(find_server)).path
    deadline = Deadline(request.within)
    tries = PORT_CLASH_TRIES
    while True:
        tries -= 1
        workspace = await asyncio.to_thread(Workspace, request.keep)
        try:
            mesh, servers = _configured(request, binary, workspace)
        except BaseException:
            workspace.remove()
            raise
        try:
            await _bring_up(mesh, servers, deadline)
        except BaseException as err:
            await mesh.close()
            clash = isinstance(err, ProcessEndedError) and "address already in use" in err.log
            if not clash or not tries or not deadline.left:
                raise
        else:
            return mesh


async def _bring_up(mesh: Mesh, servers: dict[str, LocalServer], deadline: Deadline) -> None:
    if mesh.links is not None:  # before the servers: a server that is refused waits for a second
        await asyncio.to_thread(mesh.links.start)
    await _start_in_turn(mesh.layout, servers, deadline)
    if len(mesh.layout.regions) > 1:
        await wait_for(mesh.view, [gateways_stand, routed], deadline)
        members = [server for name, server in servers.items() if name not in mesh.layout.leaves]
        await _elect_at_once(members, deadline)
    # Not before: an account that a leaf node makes known while JetStream is off may stay without it.
    for leaf in mesh.layout.leaves:
        servers[leaf].start()
    await wait_until_ready(mesh.view, deadline)


def _configured(request: MeshRequest, binary: Path, workspace: Workspace) -> tuple[Mesh, dict[str, LocalServer]]:
    """Return a mesh whose servers are configured, and its servers; nothing runs yet."""
    layout, tls, operator, directory = request.layout, request.tls, request.operator, workspace.directory
    ports = {name: _ports(name, request, workspace) for name in layout.servers}
    joins = {join: workspace.ports.take() for join in layout.joins()} if request.links else None
    dialled = {name: dict[Kind, dict[str, list[int]]]() for name in layout.servers}
    for join in layout.joins():
        port = joins[join] if joins else ports[join.target].of(join.kind)
        there = dialled[join.dialler].setdefault(join.kind, {})
        there.setdefault(str(layout.region_of(join.target)), []).append(port)
    passwords = {user: secrets.token_urlsafe(24) for user in (config.USER, config.SYSTEM_USER, config.ROUTE_USER)}
    lab = (operator.lab or _own_account(operator)) if operator is not None else None
    servers = {}
    for name in layout.servers:
        sent_later = str(directory / f"{name}-accounts")
        accounts = operator.server_block(lab, directory=sent_later) if operator and lab else None
        settings = config.ServerConfig(
            name,
            ports=ports[name],
            store=workspace.stores / name,
            passwords=passwords,
            cluster=layout.cluster or layout.region_of(name),
            dials=dialled[name],
            domain=name if name in layout.leaves else HUB if layout.leaves else None,
            host=request.listen,
            leaf_nodes=request.leaf_nodes,
            dead_port=workspace.ports.dead if request.links else None,
            tls=tls.issue(directory, *dict.fromkeys((name, "127.0.0.1", "localhost", request.listen))) if tls else None,
            client_auth=request.client_auth,
            operator=accounts,
            leaf_credentials={
                account.public: _credentials_file(
                    directory / f"{name}-{account.public}.creds", account.user(name, **account.edge)
                )
                for account in ((lab, *operator.accounts) if operator and lab and name in layout.leaves else ())
            },
            extra=request.extra,
        )
        servers[name] = LocalServer(settings, binary=binary, directory=directory, owner=workspace.owner)
    mesh = Mesh(
        servers,
        backend="local",
        credentials=_credentials(config.USER, passwords[config.USER], lab, directory, request),
        system=_credentials(
            config.SYSTEM_USER, passwords[config.SYSTEM_USER], operator.system if operator else None, directory, request
        ),
        workspace=workspace,
        layout=layout,
        links=Links(joins, ports, directory=directory, owner=workspace.owner) if joins else None,
    )
    return mesh, servers


def _credentials(
    user: str, password: str, account: "Account | None", directory: Path, request: MeshRequest
) -> ConnectOptions:
    """Return how one of the mesh's own users signs in: by certificate, by token or by password."""
    tls = request.tls
    if request.client_auth == "certificate" and tls is not None:
        return ConnectOptions(tls=tls.context(directory, user))
    options = ConnectOptions(user=user, password=password)
    if account is not None:
        options = ConnectOptions(user_credentials=_credentials_file(directory / f"{user}.creds", account.user(user)))
    return ConnectOptions(**options, tls=tls.context(directory)) if tls is not None else options


def _own_account(operator: "Operator") -> "Account":
    """Return an account for the mesh itself, which is none of the operator's others."""
    from mesh_lab.security.accounts import Account  # who has an operator has loaded it

    return Account(config.ACCOUNT, operator.key)


def _credentials_file(path: Path, user: "User") -> str:
    path.touch(mode=0o600)
    path.write_text(user.credentials)
    return str(path)


def _ports(name: str, request: MeshRequest, workspace: Workspace) -> config.Ports:
    take, layout, region = workspace.ports.take, request.layout, request.layout.region_of(name)
    return config.Ports(
        take(),
        take(),
        cluster=take() if region and len(layout.servers) - len(layout.leaves) > 1 else 0,
        gateway=take() if region and len(layout.regions) > 1 else 0,
        leafnodes=take() if region and (request.leaf_nodes or region in layout.leaves.values()) else 0,
    )


async def _start_in_turn(layout: Layout, servers: dict[str, LocalServer], deadline: Deadline) -> None:
    """Start the servers of each region one after the other, a moment apart; none is ready when this returns.

    Two servers that dial each other at the same moment may each hang up the call that the other one keeps, and try
    again after a second (``reConnectToRoute`` in server/route.go). So each waits until the one before accepts routes.
    """

    async def listens(server: LocalServer) -> str:
        server.check_alive()
        return "" if server.takes_routes() else f"server {server.name!r} does not listen for routes"

    for turn in zip_longest(*layout.regions.values()):
        started = [servers[name] for name in turn if name is not None]
        for server in started:
            server.start()
        for server in (server for server in started if server.ports.cluster):
            await until(partial(listens, server), deadline, every=0.002)


async def _elect_at_once(servers: list[LocalServer], deadline: Deadline) -> None:
    """Let regions that are joined elect their first meta leader now, in 1 s, and not in 4 to 9 s.

    JetStream first tries to elect one 0.1 to 0.8 s after its start, and then every 4 to 9 s (server/raft.go). That
    needs a majority over all regions, but a server dials other regions only after one second (``gatewaySolicitDelay``
    in server/gateway.go). So JetStream, which stores nothing yet, is switched off and on again by two reloads. Where
    there is no signal to reload, the election comes when it comes.
    """
    monitors = {server.name: server.monitor for server in servers}

    async def switched(on: bool) -> str:
        replies = (await ask(monitors, "/jsz")).items()
        waiting = [name for name, reply in replies if not reply or bool(reply.get("disabled")) == on]
        return f"JetStream was not switched {'on' if on else 'off'} on {', '.join(waiting)}" if waiting else ""

    led = any(reply.get("meta_cluster", {}).get("leader") for reply in (await ask(monitors, "/jsz")).values())
    if led or not hasattr(signal, "SIGHUP"):
        return
    for jetstream in (False, True):
        for server in servers:
            server.configure(replace(server.config, jetstream=jetstream))
            server.reload()
        await until(partial(switched, jetstream), deadline)
