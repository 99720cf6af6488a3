"""Links between servers that can be slowed or cut, on every platform and without root.

Each connection from one server to another runs through a TCP relay in a process of its own
(:mod:`mesh_lab.servers.relay`). Servers gossip addresses and would dial each other past the relays: their configuration
(``dead_port``) makes them gossip one where nothing listens.
"""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mesh_lab.errors import ProcessEndedError
from mesh_lab.processes import ChildProcess
from mesh_lab.servers.config import Ports
from mesh_lab.servers.layout import Join, Kind, Pair

CutMode = Literal["silent", "reset"]


@dataclass(frozen=True, slots=True)
class Lane:
    """One direction of a link, as it is at this moment."""

    source: str
    target: str
    kind: Kind
    latency_s: float
    """Seconds that each byte is on its way."""
    cut: CutMode | None
    connections: int
    carried_bytes: int
    """Bytes that have arrived at the target since the mesh was started."""


class Links:
    """The process that runs the links of one mesh, seen from the mesh. Calls block for a millisecond or two."""

    def __init__(self, joins: Mapping[Join, int], ports: Mapping[str, Ports], *, directory: Path, owner: str) -> None:
        self._wanted = [
            (join.kind, join.dialler, join.target, listen, ports[join.target].of(join.kind))
            for join, listen in joins.items()
        ]
        self._process = ChildProcess(
            [sys.executable, "-m", "mesh_lab.servers.relay"],
            name="the process of the links",
            log=directory / "links.log",
            owner=owner,
            stdin=True,
            stdout=True,
        )

    def start(self) -> None:
        """Start the process, and return when every link is open; ProcessEndedError if a port was taken."""
        self._process.start()
        self._request({"do": "open", "links": self._wanted})

    def do(self, what: Literal["slow", "cut", "heal"], pairs: Collection[Pair] = (), **how: float | str) -> None:
        """Slow what runs between pairs of servers (``latency``) or cut it (``mode``); heal all links."""
        self._request({"do": what, "pairs": list(pairs), **how})

    def lanes(self) -> list[Lane]:
        """Return every direction of every link."""
        return [Lane(*lane) for lane in self._request({"do": "lanes"})]

    def stop(self) -> None:
        """End the process; stopping twice does nothing."""
        self._process.close()

    def _request(self, request: Any) -> Any:
        try:
            reply = self._process.request(request)
        except (ProcessEndedError, ValueError):
            reply = {}
        if "ok" not in reply:
            words = reply.get("error") or self._process.log()[-500:].strip() or "nothing"
            raise ProcessEndedError(
                f"the process of the links failed, it said: {words}; start the mesh anew",
                name=self._process.name,
                exit_code=self._process.exit_code,
                log=words,
            )
        return reply["ok"]
