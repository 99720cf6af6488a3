"""The configuration of one local server: a value, which is rendered into the file that the server reads.

What each setting means: https://docs.nats.io/running-a-nats-service/configuration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from mesh_lab.servers.layout import Kind
from mesh_lab.tls import TlsFiles, quoted, server_block

ClientAuth = Literal["password", "certificate"]
ACCOUNT = "LAB"
USER, SYSTEM_USER, ROUTE_USER = "lab", "sys", "route"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one server listens on 127.0.0.1; 0 where it does not."""

    client: int
    monitor: int
    cluster: int = 0
    gateway: int = 0
    leafnodes: int = 0

    def of(self, kind: Kind) -> int:
        """Return where it takes a kind of connection from other servers."""
        return {"route": self.cluster, "gateway": self.gateway, "leaf": self.leafnodes}[kind]


class ExtraConfig(NamedTuple):
    """Further settings in nats-server's own syntax: the arguments of ``start_mesh`` that end in ``_config``."""

    server: str = ""
    account: str = ""
    jetstream: str = ""
    users: str = ""
    accounts: str = ""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server is set up. What runs otherwise is a changed value, written anew."""

    name: str
    ports: Ports
    store: Path
    """Directory for JetStream's files."""
    passwords: Mapping[str, str] = field(repr=False)
    """Of the users ``lab``, ``sys`` and ``route``; without the last, any local program could join the cluster."""
    cluster: str | None = None
    dials: Mapping[Kind, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """Ports on 127.0.0.1 that it dials, by the kind of connection and the region that they lead to."""
    domain: str | None = None
    """Its JetStream domain."""
    host: str = "127.0.0.1"
    """Address on which it takes clients; other servers, and monitoring, reach it on 127.0.0.1 alone."""
    dead_port: int | None = None
    """Port on which nothing listens, for servers to gossip: with their own, they would dial each other past links."""
    tls: TlsFiles | None = None
    """Its certificate, with which it takes connections from clients and other servers."""
    client_auth: ClientAuth = "password"
    """Whether a client with TLS signs in by its password, or by the name in its certificate."""
    operator: str | None = None
    """The accounts of an operator, as its ``server_block`` renders them; ``None`` for those that stand in here."""
    leaf_nodes: bool = False
    """Whether leaf nodes of others join at ``host``, each as a user of one of the operator's accounts."""
    leaf_credentials: Mapping[str, str] = field(default_factory=dict)
    """Of the operator's accounts that a leaf node joins with its region: by public key, the credentials file for it."""
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    jetstream: bool = True

    def render(self) -> str:
        """Return the text of the configuration file."""
        tls, ports = self.tls, self.ports
        for_clients = "verify_and_map" if self.client_auth == "certificate" else None
        switch = "" if self.jetstream else "enabled: false, "
        own_domain = f", domain: {quoted(self.domain)}" if self.domain else ""
        lines = [
            f"server_name: {quoted(self.name)}",
            f"listen: {self.host}:{ports.client}",
            f"http: 127.0.0.1:{ports.monitor}",
            server_block(tls, verify=for_clients) if tls else "",
            # The limits are ceilings, nothing is set aside; a laptop's lessons stay far below them.
            f"jetstream {{ {switch}store_dir: {quoted(str(self.store))}, max_mem: 1GB, max_file: 8GB{own_domain}",
            f"  {self.extra.jetstream}",
            "}",
            self.operator or self._accounts(),
        ]
        if self.cluster is not None and ports.cluster:
            # JetStream wants a route to be named also where a region has one server, which knows its own address.
            routes = self._urls("nats", self.dials.get("route", {"": [ports.cluster]}))
            lines += self._listener("cluster", f"name: {quoted(self.cluster)}", f"routes: [{routes}]")
        if self.cluster is not None and ports.gateway:
            regions = [
                f"{{ name: {quoted(region)}, urls: [{self._urls('nats', {region: there})}] }}"
                for region, there in self.dials.get("gateway", {}).items()
            ]
            lines += self._listener("gateway", f"name: {quoted(self.cluster)}", f"gateways: [{', '.join(regions)}]")
        if ports.leafnodes:
            lines += self._listener("leafnodes")
        elif hub := self.dials.get("leaf"):
            joins = [f"account: {account}, credentials: {quoted(c)}" for account, c in self.leaf_credentials.items()]
            rest = f"urls: [{self._urls('nats-leaf', hub)}]" + (f", {server_block(tls)}" if tls else "")
            remotes = ", ".join(f"{{ {join}, {rest} }}" for join in joins or [f"account: {ACCOUNT}"])
            lines += [f"leafnodes {{ reconnect: 1s, remotes: [{remotes}] }}"]
        return "\n".join([*lines, self.extra.server, ""])

    def _accounts(self) -> str:
        """Return the accounts and their users, where no operator vouches for them."""

        def user(name: str) -> str:
            # A user that a certificate names must not have a password too: the server would ask for both.
            secret = "" if self.client_auth == "certificate" else f", password: {quoted(self.passwords[name])}"
            return f"{{ user: {name}{secret} }}"

        return f"""system_account: "$SYS"
accounts {{
  $SYS {{ users: [{user(SYSTEM_USER)}] }}
  {ACCOUNT} {{
    jetstream: enabled
    users: [{user(USER)}
{self.extra.users}
    ]
    {self.extra.account}
  }}
{self.extra.accounts}
}}"""

    def _listener(self, block: Literal["cluster", "gateway", "leafnodes"], *lines: str) -> list[str]:
        """Return a block in which the server takes connections from other servers."""
        account = f", account: {ACCOUNT}" if block == "leafnodes" else ""
        login = f"authorization {{ user: {ROUTE_USER}, password: {quoted(self.passwords[ROUTE_USER])}{account} }}"
        others = block == "leafnodes" and self.leaf_nodes
        return [
            f"{block} {{",
            f"  listen: {self.host if others else '127.0.0.1'}:{getattr(self.ports, block)}",
            f'  advertise: "127.0.0.1:{self.dead_port}"' if self.dead_port else "",
            "" if self.operator and block == "leafnodes" else f"  {login}",  # there, a leaf node is an account's user
            # Servers show each other a certificate: the password alone would let in whoever has read it. A leaf node of
            # others signs in with its user's key, which never travels.
            f"  {server_block(self.tls, verify=None if others else 'verify')}" if self.tls else "",
            *lines,
            "}",
        ]

    def _urls(self, scheme: str, dialled: Mapping[str, Sequence[int]]) -> str:
        login = "" if self.leaf_credentials and scheme == "nats-leaf" else f"{ROUTE_USER}:{self.passwords[ROUTE_USER]}@"
        start = f"{scheme}://{login}127.0.0.1"
        return ", ".join(quoted(f"{start}:{port}") for ports in dialled.values() for port in ports)
