"""A mesh that somebody else runs: the same lessons on any NATS that the reader may use."""

import asyncio
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from mesh_lab.errors import NotOursError, NotReadyError
from mesh_lab.observe.monitoring import Monitor
from mesh_lab.patterns import connecting
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.workspace import Workspace


class ExternalServer:
    """A server that this lab did not start: it can be used, not stopped."""

    backend = "external"
    monitor: Monitor | None = None
    state = "running"

    def __init__(self, name: str, *, host: str, port: int) -> None:
        self.name, self.host, self.port = name, host, port

    def _refuse(self) -> NoReturn:
        raise NotOursError(
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
        """Do nothing: a client finds out by connecting."""


async def join_external(url: str, *, credentials: Path | None) -> Mesh:
    """Return a mesh that stands for the servers at an address.

    Args:
        url: One or several addresses, separated by commas; user and password may stand in them.
        credentials: Path of a credentials file, ``None`` where none is needed.

    Raises:
        NotReadyError: The credentials file is missing, or no server answered.
    """
    urls = url.split(",")
    options = connecting.ConnectOptions(servers=urls)
    if credentials is not None:
        if not await asyncio.to_thread(credentials.is_file):
            raise NotReadyError(f"MESH_LAB_CREDS names {credentials}, and no file is there; set it to a .creds file")
        options["user_credentials"] = str(credentials)
    parts = urlsplit(urls[0])
    if parts.username is not None:
        options["user"], options["password"] = parts.username, parts.password or ""
    where = [f"{urlsplit(u).hostname}:{urlsplit(u).port or 4222}" for u in urls]
    try:
        client = await connecting.connect(options)
    except NotReadyError as err:
        raise NotReadyError(f"MESH_LAB_URL names {', '.join(where)}: {err}") from err
    name = str(client._server_info.get("server_name", "external"))
    await client.close()
    servers = {}
    for number, address in enumerate(where):
        host, _, port = address.rpartition(":")
        label = name if number == 0 else f"{name}-{number + 1}"
        servers[label] = ExternalServer(label, host=host, port=int(port))
    options.pop("servers")
    return Mesh(servers, backend="external", credentials=options, workspace=Workspace())
