"""One nats-server process on this machine, and how several of them change their users while they run."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from mesh_lab.errors import (
    BadConfigError,
    NotReadyError,
    ProcessEndedError,
    ServerExitedError,
    UnsupportedByBackendError,
)
from mesh_lab.observe.monitor import Monitor
from mesh_lab.processes import ChildProcess, output_of
from mesh_lab.servers.backend import MeshServer, State
from mesh_lab.servers.binary import read_version
from mesh_lab.servers.config import ServerConfig
from mesh_lab.servers.readiness import Deadline, View, ask, healthy, until, wait_for
from mesh_lab.servers.workspace import is_free

HOST = "127.0.0.1"
STOP_WITHIN_S = 10.0
FROZEN_WITHIN_S = 10.0
CHECK_WITHIN_S = 30.0  # to read a configuration: a server needs some hundredths, on a busy machine a few


class LocalServer(MeshServer):
    """A nats-server process.

    Attributes:
        ports: Where it listens.
        config: How it is set up. :meth:`configure` changes it.
        config_file: Where that is written for it to read.
    """

    monitor: Monitor

    def __init__(self, config: ServerConfig, *, binary: Path, directory: Path, owner: str) -> None:
        self.ports, name = config.ports, config.name
        super().__init__(name, host=config.host, port=self.ports.client, monitor=Monitor(HOST, self.ports.monitor))
        self.config_file = directory / f"{name}.conf"
        self.config_file.touch(mode=0o600)
        self.configure(config)
        command = [str(binary), "--config", str(self.config_file)]
        self._process = ChildProcess(command, name=f"server {name!r}", log=directory / f"{name}.log", owner=owner)
        self._ended: State | None = "stopped"
        self._paused = False

    @property
    def state(self) -> State:
        if self._ended is not None:
            return self._ended
        if self._process.exit_code is not None:
            return "exited"
        return "paused" if self._paused else "running"

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return self._process.pid

    def takes_routes(self) -> bool:
        """Return whether other servers can dial it by now."""
        if sys.platform == "linux":  # where the probe is in no server's way, and psutil reads every socket there is
            return not is_free(self.ports.cluster)
        try:
            sockets = self._running().net_connections(kind="tcp4")
        except (psutil.Error, ServerExitedError):  # it has ended, or is ending: check_alive tells why
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.ports.cluster for s in sockets)

    def start(self) -> None:
        self._process.start()
        self._ended, self._paused, self.was_healthy = None, False, None

    def run_on(self, binary: Path) -> None:
        read_version(binary)  # before the server is stopped for it
        self._process.command[0] = str(binary)

    def stop(self) -> None:
        if self._ended is not None:
            return
        if self.state == "paused":
            self.resume()
        self._process.request_stop()
        self._ended = "stopped" if self._process.wait(within=STOP_WITHIN_S) else "killed"

    def kill(self) -> None:
        if self._ended is None:
            self._process.kill()
            self._ended = "killed"

    def pause(self) -> None:
        process = self._running()
        process.suspend()
        self._paused, until_s = True, time.monotonic() + FROZEN_WITHIN_S
        while process.status() != psutil.STATUS_STOPPED:
            if time.monotonic() > until_s:
                raise NotReadyError(f"server {self.name!r} still runs {FROZEN_WITHIN_S:g} s after it was to freeze")
            time.sleep(0.001)  # on a busy machine its threads go on until the first of them takes the signal

    def resume(self) -> None:
        self._running().resume()
        self._paused, self.was_healthy = False, None

    def configure(self, config: ServerConfig) -> None:
        """Write a changed configuration; a running server uses it after :meth:`reload` or its next start."""
        self.config = config
        self.config_file.write_text(config.render())

    def check_config(self) -> None:
        """Raise BadConfigError, which says where, if nats-server does not understand the configuration file."""
        try:
            output_of([*self._process.command, "-t"], within=CHECK_WITHIN_S)
        except ProcessEndedError as err:
            words = (err.log or str(err)).replace(str(self.config_file.parent) + os.sep, "")
            raise BadConfigError(f"nats-server refuses the configuration of {self.name!r}: {words}") from err

    def reload(self) -> None:
        """Let the server read its configuration file again (SIGHUP, which Windows does not have)."""
        if sys.platform == "win32":
            raise UnsupportedByBackendError("a server cannot be told to reload on Windows; use WSL")
        self._running().send_signal(signal.SIGHUP)

    def log(self, last: int | None = None) -> str:
        return self._process.log(last=last)

    def check_alive(self) -> None:
        if self._ended is None and (code := self._process.exit_code) is not None:
            raise self.exited_error(code)

    def _running(self) -> psutil.Process:
        if (pid := self.pid) is None:
            raise self.not_running_error()
        return psutil.Process(pid)


async def reload_all(view: View, users: str, deadline: Deadline) -> None:
    """Change all servers' further users, and return when each goes by them; raises as ``Mesh.reload`` says."""
    servers = [server for server in view.servers.values() if isinstance(server, LocalServer)]
    if not servers:
        raise UnsupportedByBackendError("these servers' users are not ours to change; use backend='local' here")
    if any(server.config.operator for server in servers):
        raise UnsupportedByBackendError(
            "this mesh's accounts and users are its operator's; send a token to $SYS.REQ.CLAIMS.UPDATE"
        )
    for server in servers:
        if server.state != "running":
            raise server.not_running_error("all to run")
    old = [server.config for server in servers]
    for server in servers:
        server.configure(replace(server.config, extra=server.config.extra._replace(users=users)))
    try:
        for server in servers:
            await asyncio.to_thread(server.check_config)
    except BaseException:
        for server, config in zip(servers, old, strict=True):
            server.configure(config)
        raise
    if hasattr(signal, "SIGHUP"):
        await asyncio.gather(*(_reload(server, deadline) for server in servers))
    else:  # Windows has no signal for it
        for server in servers:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
        await wait_for(view, [healthy], deadline)


async def _reload(server: LocalServer, deadline: Deadline) -> None:
    before = None

    async def read_again() -> str:
        nonlocal before
        loaded = (await ask({"": server.monitor}, "/varz"))[""].get("config_load_time")
        if before is None and loaded is not None:
            before = loaded
            server.reload()
        done = loaded not in (None, before)
        return "" if done else f"server {server.name!r} has not read its configuration again"

    await until(read_again, deadline)
