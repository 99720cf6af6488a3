"""Change who may do what on servers that run: write their configuration files anew and let them read them."""

import asyncio
import signal
from collections.abc import Mapping

from mesh_lab.errors import ServerExitedError, UnsupportedByBackendError
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers import config
from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.polling import ask
from mesh_lab.servers.server import LocalServer


async def reload(servers: Mapping[str, MeshServer], more: Mapping[str, str | None], *, within: float) -> None:
    """Give every server other users and accounts, and return when each goes by them.

    Args:
        servers: Servers that run.
        more: New ``users`` and ``accounts``; ``None`` leaves what is there.
        within: Seconds until it is too late.

    Raises:
        BadConfigError: A server refused the text; all keep what they had.
        UnsupportedByBackendError: The servers are not local processes.
        NotReadyError: A server did not read its file in time.
        ServerExitedError: A server does not run.
    """
    local = [server for server in servers.values() if isinstance(server, LocalServer)]
    if len(local) < len(servers):
        raise UnsupportedByBackendError("these servers' users are not ours to change; use backend='local' here")
    if any("\noperator: " in server.configuration.read_text() for server in local):
        raise UnsupportedByBackendError(
            "this mesh's accounts and users are its operator's; send a token to $SYS.REQ.CLAIMS.UPDATE"
        )
    if down := [server for server in local if server.state != "running"]:
        raise ServerExitedError(f"server {down[0].name!r} is {down[0].state}, expected all to run; restart it first")
    old = [server.configuration.read_text() for server in local]
    for server, text in zip(local, old, strict=True):
        for what in ("users", "accounts"):
            if (new := more.get(what)) is not None:
                text = config.rewritten(text, what, new)
        server.configuration.write_text(text)
    try:
        for server in local:
            await asyncio.to_thread(server.check_config)
    except BaseException:
        for server, text in zip(local, old, strict=True):
            server.configuration.write_text(text)
        raise
    await asyncio.gather(*(_reload(server, within) for server in local))


async def _reload(server: LocalServer, within: float) -> None:
    if not hasattr(signal, "SIGHUP"):  # Windows has no signal for it
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await eventually(lambda: server.monitor.health().ok, within=within)
        return

    async def loaded() -> object:
        # Nothing, while a busy server takes its time to answer.
        return (await ask({server.name: server.monitor.varz}))[server.name].get("config_load_time")

    before = await eventually(loaded, within=within)
    server.reload()

    async def done() -> bool:
        return await loaded() not in (None, before)

    await eventually(done, within=within)
