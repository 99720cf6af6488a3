"""The configuration file of one local server.

What each setting means: https://docs.nats.io/running-a-nats-service/configuration.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """Where one server listens on 127.0.0.1."""

    client: int
    monitor: int
    cluster: int


def server_config(
    name: str,
    *,
    ports: Ports,
    store: Path,
    passwords: Passwords,
    cluster: str | None,
    peers: Sequence[Ports],
    extra: str,
) -> str:
    """Return the text of a server's configuration file.

    Args:
        name: Name of the server in its cluster.
        ports: Where it listens.
        store: Directory for JetStream's files.
        passwords: The mesh's passwords; the file must be readable by its owner only.
        cluster: Name of the cluster; ``None`` for a server on its own.
        peers: Ports of the cluster's other servers.
        extra: Further settings in the server's own syntax, for lessons that need them.
    """
    lines = [
        f"server_name: {name}",
        f"listen: 127.0.0.1:{ports.client}",
        f"http: 127.0.0.1:{ports.monitor}",
        # The limits are ceilings, nothing is set aside; a laptop's lessons stay far below them.
        f"jetstream {{ store_dir: {_quoted(str(store))}, max_mem: 1GB, max_file: 8GB }}",
        "accounts {",
        f"  $SYS {{ users: [{{ user: {SYSTEM_USER}, password: {_quoted(passwords.system)} }}] }}",
        f"  {ACCOUNT} {{ jetstream: enabled, users: [{{ user: {USER}, password: {_quoted(passwords.user)} }}] }}",
        "}",
    ]
    if cluster is not None:
        routes = ", ".join(_quoted(f"nats://{ROUTE_USER}:{passwords.route}@127.0.0.1:{p.cluster}") for p in peers)
        lines += [
            "cluster {",
            f"  name: {cluster}",
            f"  listen: 127.0.0.1:{ports.cluster}",
            f"  authorization {{ user: {ROUTE_USER}, password: {_quoted(passwords.route)} }}",
            f"  routes: [{routes}]",
            "}",
        ]
    return "\n".join([*lines, extra, ""])


def _quoted(text: str) -> str:
    """Return a string literal; backslashes of Windows paths are escapes to the server's parser."""
    return '"' + text.replace("\\", "\\\\") + '"'
