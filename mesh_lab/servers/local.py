"""The servers of a mesh as processes on this machine: their ports, their configuration files, their links."""

import signal
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from mesh_lab.patterns.connection import ConnectOptions
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers import config
from mesh_lab.servers.layout import HUB, Layout
from mesh_lab.servers.links import Links, dials
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.polling import ask
from mesh_lab.servers.server import LocalServer
from mesh_lab.servers.workspace import Workspace

if TYPE_CHECKING:  # its library takes a while to load, and most meshes need none
    from mesh_lab.security.accounts import Account, Operator
    from mesh_lab.security.certificates import Authority


class Settings(TypedDict):
    """How the servers of a mesh are set up."""

    linked: bool
    """Whether every connection between servers runs through a link."""
    further: config.Further
    """Further settings for every server."""
    tls: "Authority | None"
    """Who certifies the servers; ``None`` for connections in plain text."""
    known_by: config.KnownBy
    """Whether the mesh's own clients have a password or a certificate."""
    operator: "Operator | None"
    """Who vouches for accounts; ``None`` where the configuration does."""


def local_mesh(
    layout: Layout,
    binary: Path,
    workspace: Workspace,
    **settings: Unpack[Settings],
) -> tuple[Mesh, Links | None]:
    """Return a mesh whose servers are configured, and its links, where it has some; nothing runs yet.

    Args:
        layout: Who is joined to whom.
        binary: The nats-server program.
        workspace: Where the files go, and which ports are free.
        settings: How they are set up.

    Raises:
        NotReadyError: The workspace has too few ports for a mesh of this size.
    """
    linked, tls, known_by = settings["linked"], settings["tls"], settings["known_by"]
    ports = {name: _ports(name, layout, workspace) for name in layout.servers}
    joins = {join: workspace.ports.take() for join in layout.joins()} if linked else None
    dialled = dials(layout, ports, joins)
    passwords = config.Passwords()
    operator = settings["operator"]
    lab = operator.account("LAB") if operator is not None else None
    servers = {}
    for name in layout.servers:
        text = config.server_config(
            name,
            ports=ports[name],
            store=workspace.directory / name,
            passwords=passwords,
            cluster=layout.cluster or layout.region_of(name),
            dials=dialled[name],
            domain=name if name in layout.leaves else HUB if layout.leaves else None,
            dead_port=workspace.ports.dead if linked else None,
            tls=tls.issue(workspace.directory, name, "127.0.0.1", "localhost") if tls else None,
            known_by=known_by,
            operator=_believed(operator, lab, workspace.directory / f"{name}-accounts") if operator and lab else None,
            further=settings["further"],
        )
        path = workspace.directory / f"{name}.conf"
        path.touch(mode=0o600)
        path.write_text(text)
        servers[name] = LocalServer(
            name, binary=binary, directory=workspace.directory, ports=ports[name], owner=workspace.owner
        )

    def who(user: str, password: str, account: "Account | None") -> ConnectOptions:
        return _who(user, password, account, workspace.directory, tls=tls, known_by=known_by)

    links = Links(joins, ports, directory=workspace.directory, owner=workspace.owner) if joins else None
    mesh = Mesh(
        servers,
        backend="local",
        credentials=who(config.USER, passwords.user, lab),
        system=who(config.SYSTEM_USER, passwords.system, operator.system if operator is not None else None),
        workspace=workspace,
        layout=layout,
        links=links,
    )
    return mesh, links


def _takes_routes(server: LocalServer) -> bool:
    server.check_alive()
    return server.takes_routes


def _believed(operator: "Operator", lab: "Account", directory: Path) -> str:
    from mesh_lab.security.accounts import server_block

    return server_block(operator, {lab.public: lab.token()}, directory=str(directory))


def _who(
    user: str,
    password: str,
    account: "Account | None",
    directory: Path,
    *,
    tls: "Authority | None",
    known_by: config.KnownBy,
) -> ConnectOptions:
    """Return how one of the mesh's own users signs in: by certificate, by token or by password."""
    if known_by == "certificate" and tls is not None:
        return ConnectOptions(tls=tls.context(directory, user))
    options = ConnectOptions(user=user, password=password)
    if account is not None:
        path = directory / f"{user}.creds"
        path.touch(mode=0o600)
        path.write_text(account.user(user).credentials)
        options = ConnectOptions(user_credentials=str(path))
    return ConnectOptions(**options, tls=tls.context(directory)) if tls is not None else options


def _ports(name: str, layout: Layout, workspace: Workspace) -> config.Ports:
    take = workspace.ports.take
    client, monitor = take(), take()
    if name in layout.leaves:
        return config.Ports(client, monitor)
    region = layout.region_of(name)
    clustered = len(layout.servers) - len(layout.leaves) > 1
    return config.Ports(
        client,
        monitor,
        cluster=take() if clustered else 0,
        gateway=take() if len(layout.regions) > 1 else 0,
        leafnodes=take() if region in layout.leaves.values() else 0,
    )


async def start_in_turn(mesh: Mesh, *, within: float) -> None:
    """Start the servers of each region one after the other, a moment apart; none is ready when this returns.

    Two servers that dial each other at the same moment may each hang up the call that the other one keeps, and try
    again after a second (``reConnectToRoute`` in server/route.go). So each waits until the one before takes calls.

    Args:
        mesh: Mesh whose servers are configured.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: A server did not listen in time.
        ServerExitedError: A server ended.
    """
    servers = {name: server for name, server in mesh.servers.items() if isinstance(server, LocalServer)}
    for turn in zip_longest(*mesh.layout.regions.values()):
        started = [servers[name] for name in turn if name is not None]
        for server in started:
            server.start()
        for server in (server for server in started if server.ports.cluster):
            await eventually(partial(_takes_routes, server), within=within, every=0.002)
    for leaf in mesh.layout.leaves:
        servers[leaf].start()


async def elect_at_once(mesh: Mesh, *, within: float) -> None:
    """Let regions that are joined elect their first meta leader now, in 1 s, and not in 4 to 9 s.

    A server dials other regions one second after its start (``gatewaySolicitDelay`` in server/gateway.go). Right
    after JetStream's first start, the servers try to elect a meta leader within 0.1 to 0.8 s, which needs a
    majority over all regions; then they wait for 4 to 9 s (server/raft.go). So that first try comes too early, and
    JetStream is switched off and on again here, by two reloads: nothing is stored yet, and its second first try
    finds the gateways standing. Where there is no signal to reload, the election comes when it comes.

    Args:
        mesh: Mesh that was just started, whose gateways stand.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: JetStream did not stop in time.
        ServerExitedError: A server ended.
    """
    servers = [s for n, s in mesh.servers.items() if n not in mesh.layout.leaves and isinstance(s, LocalServer)]

    async def states() -> list[dict[str, Any]]:
        return list((await ask({server.name: server.monitor.jsz for server in servers})).values())

    async def off() -> bool:
        return all(state.get("disabled") for state in await states())

    if not hasattr(signal, "SIGHUP") or any(state.get("meta_cluster", {}).get("leader") for state in await states()):
        return
    texts = [server.configuration.read_text() for server in servers]
    for server, text in zip(servers, texts, strict=True):
        server.configuration.write_text(text.replace("jetstream {", "jetstream { enabled: false,", 1))
        server.reload()
    await eventually(off, within=within)
    for server, text in zip(servers, texts, strict=True):
        server.configuration.write_text(text)
        server.reload()
