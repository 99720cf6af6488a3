"""Links between servers that can be slowed or cut, on every platform and without root.

Each connection from one server to another, be it a route, a gateway or a leaf node's, runs through a TCP relay in
a process of its own (:mod:`mesh_lab.servers.link_process`), which ends with the mesh. Servers gossip addresses and
would dial each other past the relays: :func:`mesh_lab.servers.config.server_config` makes them gossip a dead one.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mesh_lab.errors import LinksFailedError
from mesh_lab.servers.config import Dials, Ports
from mesh_lab.servers.guard import OWNER_VARIABLE
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
        listeners = {name: {"route": p.cluster, "gateway": p.gateway, "leaf": p.leafnodes} for name, p in ports.items()}
        self._wanted = [
            {
                "kind": join.kind,
                "dialler": join.dialler,
                "target": join.target,
                "listen": listen,
                "port": listeners[join.target][join.kind],
            }
            for join, listen in joins.items()
        ]
        self._log = directory / "links.log"
        self._owner = owner
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process, and return when every link is open.

        Raises:
            LinksFailedError: A port was taken, or the process ended.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mesh_lab.servers.link_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, OWNER_VARIABLE: self._owner},
                start_new_session=True,  # as for the servers: Ctrl-C is for the kernel
            )
        self._send(self._wanted)

    @property
    def pid(self) -> int | None:
        """Process id, ``None`` while it does not run."""
        return self._process.pid if self._process is not None else None

    def slow(self, pairs: Collection[Pair], *, latency: float, rate: float | None) -> None:
        """Delay and limit what runs between pairs of servers, in both directions."""
        self._send({"do": "slow", "pairs": list(pairs), "latency": latency, "rate": rate})

    def cut(self, pairs: Collection[Pair], *, mode: CutMode) -> None:
        """Cut what runs between pairs of servers, in both directions."""
        self._send({"do": "cut", "pairs": list(pairs), "mode": mode})

    def heal(self) -> None:
        """Let every link carry again, without delay or limit."""
        self._send({"do": "heal"})

    def lanes(self) -> list[Lane]:
        """Return every direction of every link."""
        return [Lane(**lane) for lane in self._send({"do": "look"})]

    def stop(self) -> None:
        """End the process; stopping twice does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _send(self, order: Any) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise LinksFailedError("the links of this mesh do not run: it was closed")
        with self._lock:
            try:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline() or "{}")
            except (OSError, ValueError):
                answer = {}
        if "ok" not in answer:
            said = answer.get("error") or self._log.read_text(errors="replace").strip()[-500:] or "nothing"
            raise LinksFailedError(f"the process of the links failed, it said: {said}; start the mesh anew")
        return answer["ok"]


def dials(layout: Layout, ports: Mapping[str, Ports], joins: Mapping[Join, int] | None) -> dict[str, Dials]:
    """Return what each server dials: other servers' own ports, or those of the links.

    Args:
        layout: Who is joined to whom.
        ports: Where each server listens.
        joins: For each connection, the port on which its link listens; ``None`` where there are no links.
    """

    def port(join: Join) -> int:
        if joins is not None:
            return joins[join]
        there = ports[join.target]
        return {"route": there.cluster, "gateway": there.gateway, "leaf": there.leafnodes}[join.kind]

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
