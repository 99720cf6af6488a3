"""A mesh that somebody else runs: the same lessons on any NATS that the reader may use."""

import asyncio
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns import connection
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.workspace import Workspace

_PORTS = {"ws": 80, "wss": 443}


class ExternalServer:
    """A server that this lab did not start: it can be used, not stopped."""

    backend = "external"
    monitor: Monitor | None = None
    state = "running"

    def __init__(self, name: str, *, url: str) -> None:
        parts = urlsplit(url)
        self.name, self.url = name, url
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    def _refuse(self) -> NoReturn:
        raise UnsupportedByBackendError(
            f"server {self.name!r} is external: the lab did not start it, so it does not stop, pause or restart it; "
            "unset MESH_LAB_URL for a mesh whose servers are yours"
        )

    def start(self) -> None:
        """Refuse."""
        self._refuse()

    def stop(self) -> None:
        """Refuse."""
        self._refuse()

    def kill(self) -> None:
        """Refuse."""
        self._refuse()

    def pause(self) -> None:
        """Refuse."""
        self._refuse()

    def resume(self) -> None:
        """Refuse."""
        self._refuse()

    def log(self, last: int | None = None) -> str:
        """Say where the log is not."""
        return f"server {self.name!r} is external: its log (last {last} lines) is with whoever runs it"

    def check_alive(self) -> None:
        """Do nothing: a client finds out by connection."""


async def join_external(url: str, *, credentials: Path | None, directory: Path | None = None) -> Mesh:
    """Return a mesh that stands for the servers at an address.

    Args:
        url: One or several addresses, separated by commas; a user and password, or a token, may stand in the first.
        credentials: Path of a credentials file, ``None`` where none is needed.
        directory: Where to put the mesh's own directory; the system's temporary directory if ``None``.

    Raises:
        NotReadyError: The credentials file is missing, or no server answered.
    """
    found = [urlsplit(one if "://" in one else f"nats://{one}") for one in url.split(",")]
    urls = [_address(parts) for parts in found]
    options = connection.ConnectOptions(servers=urls)
    if credentials is not None:
        if not await asyncio.to_thread(credentials.is_file):
            raise NotReadyError(f"MESH_LAB_CREDS names {credentials}, and no file is there; set it to a .creds file")
        options["user_credentials"] = str(credentials)
    if (user := found[0].username) is not None:
        if (password := found[0].password) is None:
            options["token"] = unquote(user)
        else:
            options["user"], options["password"] = unquote(user), unquote(password)
    try:
        client = await connection.connect(options)
    except NotReadyError as err:
        where = ", ".join(address.partition("://")[2] for address in urls)
        raise NotReadyError(f"MESH_LAB_URL names {where}: {err}") from err
    name = str(client._server_info.get("server_name", "external"))
    await client.close()
    servers = {}
    for number, address in enumerate(urls):
        label = name if number == 0 else f"{name}-{number + 1}"
        servers[label] = ExternalServer(label, url=address)
    options.pop("servers")
    workspace = await asyncio.to_thread(Workspace, directory)
    return Mesh(servers, backend="external", credentials=options, workspace=workspace)


def _address(parts: SplitResult) -> str:
    """Return an address with its port, and without who goes there."""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or _PORTS.get(parts.scheme, 4222)}"
