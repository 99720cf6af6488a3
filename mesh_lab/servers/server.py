"""One nats-server process on this machine."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Literal

import psutil

from mesh_lab.errors import BadConfigError, ServerExitedError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.servers.config import Ports
from mesh_lab.servers.guard import OWNER_VARIABLE

State = Literal["running", "paused", "stopped", "killed", "exited"]


class LocalServer:
    """A nats-server process: its facts, and what can be done to it.

    Attributes:
        name: Name in the mesh, for example ``"n1"``.
        host: Always ``"127.0.0.1"``.
        ports: Where it listens.
        monitor: Reads its monitoring endpoints.
        configuration: Its configuration file.
    """

    backend = "local"
    host = "127.0.0.1"

    def __init__(self, name: str, *, binary: Path, directory: Path, ports: Ports, owner: str) -> None:
        self.name = name
        self.ports = ports
        self.monitor = Monitor(self.host, ports.monitor)
        self.configuration = directory / f"{name}.conf"
        self._command = [str(binary), "--config", str(self.configuration)]
        self._log = directory / f"{name}.log"
        self._owner = owner
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: State = "stopped"
        self._paused = False

    def __repr__(self) -> str:
        """Return name and state, without ports."""
        return f"<server {self.name}: {self.state}>"

    @property
    def state(self) -> State:
        """What the process is doing now; ``exited`` means that it ended by itself."""
        if self._process is None:
            return self._ended
        if self._process.poll() is not None:
            return "exited"
        return "paused" if self._paused else "running"

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return self._process.pid if self._process is not None else None

    @property
    def port(self) -> int:
        """Port for clients."""
        return self.ports.client

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def takes_routes(self) -> bool:
        """Whether other servers can dial it by now."""
        try:
            sockets = self._running().net_connections(kind="tcp4")
        except (psutil.Error, ServerExitedError):  # it has ended, or is ending: check_alive tells why
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.ports.cluster for s in sockets)

    def start(self) -> None:
        """Start the process; it is not ready yet when this returns."""
        self._paused = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, OWNER_VARIABLE: self._owner},
                start_new_session=True,  # Ctrl-C in the terminal is for the kernel, not for the servers
            )

    def stop(self, *, within: float = 10.0) -> None:
        """Ask the server to end in good order (SIGTERM) and wait; kill it when it has not ended in time.

        Args:
            within: Seconds to wait before it is killed.
        """
        if self._process is None:
            return
        if self.state == "paused":
            self.resume()
        self._process.terminate()
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            return
        self._process, self._ended, self._paused = None, "stopped", False

    def kill(self) -> None:
        """Kill the server (SIGKILL: no clean-up, no goodbye) and wait until it is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process, self._ended, self._paused = None, "killed", False

    def pause(self) -> None:
        """Stop the process where it stands (SIGSTOP), as a hung machine or a frozen VM would.

        Raises:
            ServerExitedError: It is not running.
        """
        self._running().suspend()
        self._paused = True

    def resume(self) -> None:
        """Let a paused process go on.

        Raises:
            ServerExitedError: It is not running.
        """
        self._running().resume()
        self._paused = False

    def check_config(self) -> None:
        """Return when nats-server understands the configuration file; the server that runs is not touched.

        Raises:
            BadConfigError: It does not; the message says what and where.
        """
        done = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().replace(str(self.configuration.parent) + os.sep, "")
            raise BadConfigError(f"nats-server refuses the configuration of {self.name!r}: {said}")

    def reload(self) -> None:
        """Let the server read its configuration file again (SIGHUP, which Windows does not have).

        Raises:
            ServerExitedError: It is not running.
        """
        self._running().send_signal(signal.SIGHUP)

    def _running(self) -> psutil.Process:
        if self._process is None or self._process.poll() is not None:
            raise ServerExitedError(f"server {self.name!r} is {self.state}, expected running; restart it first")
        return psutil.Process(self._process.pid)

    def log(self, last: int | None = None) -> str:
        """Return the server's log since the mesh started, across restarts.

        Args:
            last: Number of lines from the end; ``None`` for all.
        """
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines if last is None else lines[-last:] if last > 0 else [])

    def check_alive(self) -> None:
        """Return when the process lives.

        Raises:
            ServerExitedError: It ended by itself; the message ends with its last log lines.
        """
        if self._process is not None and (code := self._process.poll()) is not None:
            raise ServerExitedError(
                f"server {self.name!r} exited with code {code}; its last log lines:\n{self.log(last=8)}"
            )
