"""Links between servers that can be slowed or cut, on every platform and without root.

Each connection from one server to another, be it a route, a gateway or a leaf node's, runs through a TCP relay in
a process of its own (:mod:`mesh_lab.servers.relay`), which ends with the mesh. Servers gossip addresses and would dial
each other past the relays: their configuration (``dead_port``) makes them gossip one where nothing listens.
"""

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mesh_lab.errors import ProcessEndedError
from mesh_lab.processes import ChildProcess
from mesh_lab.servers.config import Dials, Ports
from mesh_lab.servers.layout import Join, Layout, Pair

CutMode = Literal["silent", "reset"]


@dataclass(frozen=True, slots=True)
class Lane:
    """One direction of a link, as it is at this moment."""

    source: str
    """Server whose data it carries."""
    target: str
    """Server that the data reaches."""
    kind: str
    """``route``, ``gateway`` or ``leaf``."""
    latency_s: float
    """Seconds that each byte is on its way."""
    rate_bytes_per_s: float | None
    """Bytes a second that it carries at most; ``None`` for as many as come."""
    cut: CutMode | None
    """How it is cut, if it is."""
    connections: int
    """Connections that run through it."""
    carried_bytes: int
    """Bytes that have arrived at the target since the mesh was started."""


class Links:
    """The process that runs the links of one mesh, seen from the mesh. Calls block for a millisecond or two."""

    def __init__(self, joins: Mapping[Join, int], ports: Mapping[str, Ports], *, directory: Path, owner: str) -> None:
        """Prepare the links.

        Args:
            joins: For each connection that a server dials, the port on which its link listens.
            ports: Where each server listens.
            directory: The mesh's own; takes the process's log.
            owner: The mesh's mark in the environment of its processes.
        """
        self._wanted = [
            {**asdict(join), "listen": listen, "port": ports[join.target].of(join.kind)}
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
        """Start the process, and return when every link is open.

        Raises:
            ProcessEndedError: A port was taken, or the process ended.
        """
        self._process.start()
        self._request(self._wanted)

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return self._process.pid

    def slow(self, pairs: Collection[Pair], *, latency: float, rate: float | None) -> None:
        """Delay and limit what runs between pairs of servers, in both directions."""
        self._request({"do": "slow", "pairs": list(pairs), "latency": latency, "rate": rate})

    def cut(self, pairs: Collection[Pair], *, mode: CutMode) -> None:
        """Cut what runs between pairs of servers, in both directions."""
        self._request({"do": "cut", "pairs": list(pairs), "mode": mode})

    def heal(self) -> None:
        """Let every link carry again, without delay or limit."""
        self._request({"do": "heal"})

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


def dials(layout: Layout, ports: Mapping[str, Ports], joins: Mapping[Join, int] | None) -> dict[str, Dials]:
    """Return what each server dials: other servers' own ports, or those of the links.

    Args:
        layout: Which servers are joined.
        ports: Where each server listens.
        joins: For each connection, the port on which its link listens; ``None`` where there are no links.
    """

    def port(join: Join) -> int:
        return joins[join] if joins is not None else ports[join.target].of(join.kind)

    def of(kind: str, dialler: str, targets: Iterable[str] | None = None) -> list[int]:
        wanted = [join for join in layout.joins() if join.kind == kind and join.dialler == dialler]
        return [port(join) for join in wanted if targets is None or join.target in targets]

    return {
        name: Dials(
            routes=of("route", name),
            gateways={
                region: of("gateway", name, there)
                for region, there in layout.regions.items()
                if name not in there and name not in layout.leaves
            },
            hub=of("leaf", name),
        )
        for name in layout.servers
    }
