"""A hub as its trainer commands it: start seats, run code at one, see what each costs."""

import json
import ssl
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from typing import Any, NamedTuple

import psutil

from mesh_lab.errors import MeshLabError, NotReadyError
from mesh_lab.processes import ChildProcess

POLL_S = 0.5  # the hub, whose cores the seats share, has work with each question
ERROR_BYTES = 500
REQUEST_WITHIN_S = 60.0  # a hub that starts twenty servers on two cores answers late


class HubApi:
    """A running hub. What waits here blocks.

    Attributes:
        process: The hub's own process.
    """

    def __init__(self, url: str, token: str, process: ChildProcess, trust: ssl.SSLContext | None) -> None:
        """Name the hub by its public URL; ``trust`` is for its certificate, ``None`` without TLS."""
        self.url, self.process = url, process
        self._headers, self._trust = {"Authorization": f"token {token}"}, trust
        # No proxy from the environment: the hub is on this machine.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if trust is not None:
            handlers.append(urllib.request.HTTPSHandler(context=trust))
        self._opener = urllib.request.build_opener(*handlers)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to a path of the hub or of a seat's server, and return what the answer says.

        Raises:
            urllib.error.HTTPError: It was refused.
            OSError: Nobody answers.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=REQUEST_WITHIN_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as err:
            err.msg = f"{err.msg}; {method} {path}: {err.read(ERROR_BYTES).decode(errors='replace')}"
            raise
        return json.loads(text) if text else None

    def wait_up(self, *, within: float) -> None:
        """Return when the hub answers through its proxy.

        Raises:
            NotReadyError: It did not in time.
            ProcessEndedError: It ended instead.
        """
        deadline, last = time.monotonic() + within, "nothing yet"
        while time.monotonic() < deadline:
            if self.process.pid is None:
                self.process.receive()  # raises, with the end of its log
            try:
                self.call("GET", "/hub/api/user")
            except OSError as err:
                last = str(err)
            else:
                return
            time.sleep(POLL_S)
        raise NotReadyError(f"the hub did not answer within {within:g} s ({last}): {self.process.log(last=3)}")

    def start(self, *seats: str, within: float) -> None:
        """Start the servers of seats, those that do not run, and return when all answer.

        Raises:
            NotReadyError: Some did not in time; the message names them.
        """
        deadline = time.monotonic() + within
        with ThreadPoolExecutor(len(seats)) as pool:
            list(pool.map(self._request_start, seats))
        missing = set(seats)
        while missing and time.monotonic() < deadline:
            time.sleep(POLL_S)
            ready = {user["name"] for user in self.call("GET", "/hub/api/users?state=ready&limit=200")}
            missing -= {seat for seat in missing & ready if self._answers(seat)}
        if missing:
            names = ", ".join(sorted(missing))
            raise NotReadyError(f"no server of {names} was ready within {within:g} s; hub.log says what they did")

    def run(self, seat: str, code: str, *, within: float) -> str:
        """Run code in a kernel of a seat, its first or else a new one, and return the text that it showed.

        Raises as :meth:`SeatKernel.run`.
        """
        kernels = f"/user/{seat}/api/kernels"
        kernel = next(iter(self.call("GET", kernels)), None) or self.call("POST", kernels, {"name": "python3"})
        with closing(self.connect(seat, kernel["id"])) as connected:
            return connected.run(code, within=within).text

    def connect(self, seat: str, kernel: str) -> "SeatKernel":
        """Connect to a kernel of a seat by way of the proxy, as the page in a browser does."""
        import websocket

        address = f"{self.url.replace('http', 'ws', 1)}/user/{seat}/api/kernels/{kernel}/channels"
        channel = websocket.create_connection(
            address, timeout=REQUEST_WITHIN_S, header=self._headers, http_no_proxy=["*"],
            sslopt={"context": self._trust},
        )  # fmt: skip
        return SeatKernel(seat, channel)

    def pid_of(self, seat: str) -> int:
        """Return the process id of a seat's server."""
        return int(self.server(seat)["state"]["pid"])

    def server(self, seat: str) -> dict[str, Any]:
        """Return what the hub says of a seat's server, nothing where there is none."""
        servers: dict[str, dict[str, Any]] = self.call("GET", f"/hub/api/users/{seat}")["servers"]
        return servers.get("", {})

    def _answers(self, seat: str) -> bool:
        """Return whether a server answers by way of the proxy, which may learn of it after the hub calls it ready."""
        try:
            self.call("GET", f"/user/{seat}/api/status")
        except urllib.error.HTTPError:
            return False
        return True

    def _request_start(self, seat: str) -> None:
        try:
            self.call("POST", f"/hub/api/users/{seat}/server")
        except urllib.error.HTTPError as err:
            if err.code != 400:  # it runs, or is about to
                raise


class Shown(NamedTuple):
    """The text that a cell showed, and when, in seconds since 1970, the kernel sent the last of it."""

    text: str
    at: float


class SeatKernel:
    """A connection to a kernel of a seat. What waits here blocks."""

    def __init__(self, seat: str, channel: Any) -> None:
        """Take over an open websocket."""
        self._seat, self._channel = seat, channel

    def run(self, code: str, *, within: float) -> Shown:
        """Run a cell and return what it showed.

        Raises:
            MeshLabError: It ended with an exception.
            NotReadyError: It was not done in time.
        """
        asked, shown, at, deadline = uuid.uuid4().hex, [], 0.0, time.monotonic() + within
        header = {"msg_id": asked, "msg_type": "execute_request", "session": asked, "username": "", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "user_expressions": {}}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._channel.settimeout(REQUEST_WITHIN_S)
        self._channel.send(json.dumps(message))
        while got := self._receive(deadline):
            if got["parent_header"].get("msg_id") != asked:
                continue
            what, said = got["msg_type"], got["content"]
            if what == "error":
                raise MeshLabError(f"the code at {self._seat} ended with {said['ename']}: {said['evalue']}")
            if what == "stream":
                shown.append(said["text"])
            if what in ("execute_result", "display_data"):
                shown.append(said["data"].get("text/plain", ""))
                at = datetime.fromisoformat(got["header"]["date"]).timestamp()
            if what == "status" and said["execution_state"] == "idle":
                return Shown("".join(shown), at)
        raise NotReadyError(f"the code at {self._seat} was not done within {within:g} s; it showed {''.join(shown)!r}")

    def listen(self, seconds: float) -> None:
        """Take what the kernel sends for some seconds, as an open page does, and answer the server's pings."""
        deadline = time.monotonic() + seconds
        while self._receive(deadline):
            pass

    def close(self) -> None:
        """Disconnect; the kernel goes on."""
        self._channel.close()

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message, ``None`` where there is none in time."""
        import websocket

        if (left := deadline - time.monotonic()) <= 0:
            return None
        self._channel.settimeout(left)
        try:
            got: dict[str, Any] = json.loads(self._channel.recv())
        except websocket.WebSocketTimeoutException:
            return None
        return got


def memory_bytes(pid: int | None, *, without: int | None = None) -> int:
    """Return the memory of a process and its descendants, of what they share with others their part (PSS).

    ``without`` is a descendant that is not counted, nor are its own.
    """
    top, rest, total = psutil.Process(pid), psutil.Process(without) if without else None, 0
    left_out = {rest, *rest.children(recursive=True)} if rest else set()
    for process in {top, *top.children(recursive=True)} - left_out:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            full = process.memory_full_info()
            total += getattr(full, "pss", full.uss)  # only Linux has the former
    return total
