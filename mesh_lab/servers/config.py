"""The configuration file of one local server.

What each setting means: https://docs.nats.io/running-a-nats-service/configuration.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from mesh_lab.tls import TlsFiles, server_block

KnownBy = Literal["password", "certificate"]
ACCOUNT = "LAB"
USER, SYSTEM_USER, ROUTE_USER = "lab", "sys", "route"


@dataclass(frozen=True, slots=True)
class Passwords:
    """The passwords of one mesh: random, new for each mesh, and never shown in a repr."""

    user: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Of the account in which the lessons work."""
    system: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Of the system account, which sees every server and connection."""
    route: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    """Of the servers among themselves: without it, any local program could join the cluster."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one server listens on 127.0.0.1; 0 where it does not."""

    client: int
    monitor: int
    cluster: int = 0
    gateway: int = 0
    leafnodes: int = 0

    @property
    def all(self) -> tuple[int, ...]:
        """Every port that the server listens on."""
        return tuple(p for p in (self.client, self.monitor, self.cluster, self.gateway, self.leafnodes) if p)


@dataclass(frozen=True, slots=True)
class Dials:
    """The ports on 127.0.0.1 that one server dials: other servers' own, or those of the links that lead there."""

    routes: Sequence[int] = ()
    """The other servers of its cluster."""
    gateways: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Servers of each other region."""
    hub: Sequence[int] = ()
    """Servers that a leaf node may connect to; it takes one."""


class Further(NamedTuple):
    """Further settings in nats-server's own syntax, for lessons that need them."""

    server: str = ""
    """On their own, for every server."""
    account: str = ""
    """In the account in which the lessons work."""
    jetstream: str = ""
    """In the block of JetStream."""
    users: str = ""
    """More users of the account in which the lessons work."""
    accounts: str = ""
    """More accounts."""

    @property
    def of_accounts(self) -> bool:
        """Whether any of them is about accounts or their users."""
        return bool(self.account or self.users or self.accounts)


def server_config(
    name: str,
    *,
    ports: Ports,
    store: Path,
    passwords: Passwords,
    cluster: str | None = None,
    dials: Dials | None = None,
    domain: str | None = None,
    dead_port: int | None = None,
    tls: TlsFiles | None = None,
    known_by: KnownBy = "password",
    operator: str | None = None,
    further: Further,
) -> str:
    """Return the text of a server's configuration file.

    Args:
        name: Name of the server in its cluster.
        ports: Where it listens.
        store: Directory for JetStream's files.
        passwords: The mesh's passwords; the file must be readable by its owner only.
        cluster: Name of the cluster; ``None`` for a server on its own.
        dials: What it dials, itself left out.
        domain: Its JetStream domain; ``None`` for none.
        dead_port: Port on which nothing ever listens, to be told to other servers in place of its own. Servers
            gossip their addresses, and dial those that they hear of: with a dead one, the links are the only way.
        tls: Its certificate, with which it takes connections from clients and other servers; ``None`` for none.
        known_by: Whether a client with TLS is who its password says, or who its certificate says.
        operator: Whom the server believes about accounts, as :func:`mesh_lab.security.accounts.server_block` says it;
            ``None`` for accounts that stand in the configuration.
        further: Further settings.
    """
    dials = dials or Dials()
    route = _quoted(passwords.route)
    among_servers = f"  authorization {{ user: {ROUTE_USER}, password: {route} }}"
    advertise = [f'  advertise: "127.0.0.1:{dead_port}"'] if dead_port else []
    for_clients = server_block(tls, verify="verify_and_map" if known_by == "certificate" else None) if tls else ""
    # Servers always show each other a certificate: the password alone would let in whoever has read it.
    for_servers = f"  {server_block(tls, verify='verify')}" if tls else ""

    own_domain = f", domain: {_quoted(domain)}" if domain else ""
    lines = [
        f"server_name: {_quoted(name)}",
        f"listen: 127.0.0.1:{ports.client}",
        f"http: 127.0.0.1:{ports.monitor}",
        for_clients,
        # The limits are ceilings, nothing is set aside; a laptop's lessons stay far below them.
        f"jetstream {{ store_dir: {_quoted(str(store))}, max_mem: 1GB, max_file: 8GB{own_domain}",
        f"  {further.jetstream}",
        "}",
        operator or _accounts(passwords, further, known_by),
    ]
    if cluster is not None and ports.cluster:
        lines += [
            "cluster {",
            f"  name: {_quoted(cluster)}",
            f"  listen: 127.0.0.1:{ports.cluster}",
            *advertise,
            among_servers,
            for_servers,
            # JetStream wants a route to be named also where a region has one server, which knows its own address.
            f"  routes: [{_urls('nats', passwords, dials.routes or [ports.cluster])}]",
            "}",
        ]
    if cluster is not None and ports.gateway:
        lines += [
            "gateway {",
            f"  name: {_quoted(cluster)}",
            f"  listen: 127.0.0.1:{ports.gateway}",
            *advertise,
            among_servers,
            for_servers,
            "  gateways: [",
            *(
                f"    {{ name: {_quoted(region)}, urls: [{_urls('nats', passwords, there)}] }}"
                for region, there in dials.gateways.items()
            ),
            "  ]",
            "}",
        ]
    if ports.leafnodes:
        lines += [
            "leafnodes {",
            f"  listen: 127.0.0.1:{ports.leafnodes}",
            *advertise,
            f"  authorization {{ user: {ROUTE_USER}, password: {route}, account: {ACCOUNT} }}",
            for_servers,
            "}",
        ]
    elif dials.hub:
        remote = f"account: {ACCOUNT}, urls: [{_urls('nats-leaf', passwords, dials.hub)}]"
        remote += f", {server_block(tls)}" if tls else ""
        lines += [f"leafnodes {{ reconnect: 1s, remotes: [{{ {remote} }}] }}"]
    return "\n".join([*lines, further.server, ""])


def _accounts(passwords: Passwords, further: Further, known_by: KnownBy) -> str:
    """Return who may come in, where the configuration says so."""

    def user(name: str, password: str) -> str:
        # Whom a certificate names must not have a password too: the server would ask for both.
        return f"{{ user: {name}{'' if known_by == 'certificate' else f', password: {_quoted(password)}'} }}"

    return "\n".join(
        [
            'system_account: "$SYS"',
            "accounts {",
            f"  $SYS {{ users: [{user(SYSTEM_USER, passwords.system)}] }}",
            f"  {ACCOUNT} {{",
            "    jetstream: enabled",
            f"    users: [{user(USER, passwords.user)}",
            *_marked("users", further.users),
            "    ]",
            f"    {further.account}",
            "  }",
            *_marked("accounts", further.accounts),
            "}",
        ]
    )


def rewritten(text: str, what: Literal["users", "accounts"], more: str) -> str:
    """Return a configuration with other further users or accounts in place of those it has.

    Args:
        text: What :func:`server_config` returned.
        what: Which of the two.
        more: The new ones; an empty text for none.
    """
    begin, *_, end = _marked(what, "")
    head, rest = text.split(begin + "\n", 1)
    return head + "\n".join(_marked(what, more)) + rest[rest.index(end) + len(end) :]


def _marked(what: str, more: str) -> list[str]:
    return [f"# more {what}: from here", more.strip("\n"), f"# more {what}: to here"]


def _urls(scheme: str, passwords: Passwords, ports: Sequence[int]) -> str:
    return ", ".join(_quoted(f"{scheme}://{ROUTE_USER}:{passwords.route}@127.0.0.1:{port}") for port in ports)


def _quoted(text: str) -> str:
    """Return a string literal; backslashes of Windows paths are escapes to the server's parser."""
    return '"' + text.replace("\\", "\\\\") + '"'
