"""A mesh that the lab did not start: the same lessons on any NATS that the reader may use."""

import asyncio
import os
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from mesh_lab.errors import NotReadyError, SettingsError, UnsupportedByBackendError
from mesh_lab.patterns import connection
from mesh_lab.servers.backend import MeshRequest, MeshServer, State
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.workspace import Workspace

URL_VARIABLE, CREDS_VARIABLE = "MESH_LAB_URL", "MESH_LAB_CREDS"
_PORTS = {"ws": 80, "wss": 443}


class ExternalServer(MeshServer):
    """A server that this lab did not start: it can be used, not stopped. It runs as far as the lab knows."""

    state: State = "running"

    def __init__(self, name: str, *, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(name, host=str(parts.hostname), port=int(parts.port or 0), url=url)

    def _refuse(self) -> None:
        raise UnsupportedByBackendError(
            f"server {self.name!r} is external: the lab did not start it, so it does not stop, pause or restart it; "
            "unset MESH_LAB_URL for a mesh whose servers are yours"
        )

    start = stop = kill = pause = resume = _refuse

    def log(self, last: int | None = None) -> str:
        """Return where its log is."""
        return f"server {self.name!r} is external: its log (last {last} lines) is with whoever runs it"

    def check_alive(self) -> None:
        """Return: whether it lives is what a client finds out."""


async def start(request: MeshRequest) -> Mesh:
    """Return a mesh that stands for the servers at the addresses in ``MESH_LAB_URL``, separated by commas.

    The first address may carry a user and password, or a token. ``MESH_LAB_CREDS`` names a credentials file.
    """
    if not (url := os.environ.get(URL_VARIABLE)):
        raise SettingsError(f"backend 'external' needs an address; set {URL_VARIABLE}=nats://host:4222")
    found = [urlsplit(one if "://" in one else f"nats://{one}") for one in url.split(",")]
    urls = [_address(parts) for parts in found]
    options = connection.ConnectOptions(servers=urls)
    if credentials := os.environ.get(CREDS_VARIABLE):
        if not await asyncio.to_thread(Path(credentials).is_file):
            raise NotReadyError(f"MESH_LAB_CREDS names {credentials}, and no file is there; set it to a .creds file")
        options["user_credentials"] = credentials
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
    labels = [name, *(f"{name}-{number}" for number in range(2, len(urls) + 1))]
    servers = {label: ExternalServer(label, url=address) for label, address in zip(labels, urls, strict=True)}
    options.pop("servers")
    workspace = await asyncio.to_thread(Workspace, request.directory)
    mesh = Mesh(servers, backend="external", credentials=options, workspace=workspace)
    await mesh.states()
    return mesh


def _address(parts: SplitResult) -> str:
    """Return an address with its port, and without credentials."""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or _PORTS.get(parts.scheme, 4222)}"
