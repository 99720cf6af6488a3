"""A mesh that the lab did not start: the same lessons on any NATS that the reader may use."""

import asyncio
import os
from urllib.parse import urlsplit

from mesh_lab.errors import LoginRefusedError, NotReadyError, SettingsError, UnsupportedByBackendError
from mesh_lab.patterns import connection
from mesh_lab.patterns.addresses import CredentialsFile, options_from
from mesh_lab.servers.backend import MeshRequest, MeshServer, State
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.workspace import Workspace

URL_VARIABLE, CREDS_VARIABLE = "MESH_LAB_URL", "MESH_LAB_CREDS"
NAME_WITHIN_S = 3.0  # for one address: what a server tells of others may not reach them from here


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
        return f"server {self.name!r} is external: its log (last {last} lines) is with whoever runs it"

    def check_alive(self) -> None:
        """Return: whether it lives is what a client finds out."""


async def start(request: MeshRequest) -> Mesh:
    """Return a mesh that stands for the servers at the addresses in ``MESH_LAB_URL``, separated by commas.

    An address may carry a user and password, or a token, which count for all. ``MESH_LAB_CREDS`` names a credentials
    file. Those that a server tells of are in it too, if they can be reached: each server under its own name.
    """
    if not (url := os.environ.get(URL_VARIABLE)):
        raise SettingsError(f"backend 'external' needs an address; set {URL_VARIABLE}=nats://host:4222")
    options = options_from(url, setting=URL_VARIABLE)
    urls = options["servers"]
    if credentials := os.environ.get(CREDS_VARIABLE):
        CredentialsFile(credentials, setting=CREDS_VARIABLE)
        options["user_credentials"] = credentials
    try:
        client = await connection.connect(options)
    except (NotReadyError, LoginRefusedError) as err:
        where = ", ".join(address.partition("://")[2] for address in urls)
        raise type(err)(f"{URL_VARIABLE} names {where}: {err}") from err
    scheme, told = urls[0].partition("://")[0], client.discovered_servers
    await connection.close(client)
    urls = list(dict.fromkeys([*urls, *(f"{scheme}://{parts.netloc.rpartition('@')[2]}" for parts in told)]))
    servers: dict[str, ExternalServer] = {}
    names = await asyncio.gather(*(connection.server_at(one, options, within=NAME_WITHIN_S) for one in urls))
    for name, one in zip(names, urls, strict=True):
        if name is not None:  # of several addresses of a server, the first one
            servers.setdefault(name, ExternalServer(name, url=one))
    servers = dict(sorted(servers.items()))  # what a server tells of others has no order
    if len(servers) < (asked := len(request.layout.servers)):
        raise UnsupportedByBackendError(
            f"{asked} servers asked for, but {URL_VARIABLE} reaches {len(servers)} ({', '.join(servers)}); "
            "use backend='local' here"
        )
    options.pop("servers")
    workspace = await asyncio.to_thread(Workspace)
    mesh = Mesh(servers, backend="external", credentials=options, workspace=workspace)
    await mesh.states()
    return mesh
