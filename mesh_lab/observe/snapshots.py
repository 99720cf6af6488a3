"""A snapshot of all servers of a mesh: which reply, which are joined, which clients they have, and their traffic."""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Any

from mesh_lab.observe.monitor import Monitor

_ENDPOINTS = ("/varz", "/connz?limit=1000", "/routez", "/gatewayz", "/leafz", "/jsz?accounts=1&streams=1")


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """The state of one server at one moment."""

    at_s: float
    """When, on this process's monotonic clock."""
    server_id: str
    """The server's own id, which differs after a restart."""
    in_msgs: int
    """Messages received since it was started, from clients and servers."""
    slow_consumers: int
    """Connections, of clients or servers, that it cut off since it was started: they read too slowly."""
    clients: tuple[str, ...]
    """Names of the connections; ``"?"`` for one without a name."""
    leads: tuple[str, ...]
    """Streams that it leads."""
    peers: Mapping[str, int]
    """For each server that it is joined to, the messages that passed between them on the connections that stand."""


def snapshot(monitors: Mapping[str, Monitor]) -> dict[str, ServerSnapshot]:
    """Return the state of each server by its name; a server that does not reply in time is left out.

    Blocks for as long as the slowest reply takes, or the monitors' timeout.
    """
    if not monitors:
        return {}
    with ThreadPoolExecutor(len(monitors)) as pool:
        read = zip(monitors, pool.map(_read, monitors.values()), strict=True)
        replies = {name: reply for name, reply in read if reply is not None}
    names = {reply["/varz"]["server_id"]: name for name, reply in replies.items()}
    return {name: _snapshot_of(name, reply, names) for name, reply in replies.items()}


def rate_per_s(before: ServerSnapshot | None, now: ServerSnapshot, *, peer: str | None = None) -> float | None:
    """Return messages a second between two snapshots of one server, or ``None`` where it or the connection is new.

    It counts all messages that the server received, or with ``peer`` those that passed between the two.
    """
    if before is None or before.server_id != now.server_id or now.at_s <= before.at_s:
        return None
    if peer is not None and peer not in before.peers:
        return None
    counts = (before.in_msgs, now.in_msgs) if peer is None else (before.peers[peer], now.peers.get(peer, 0))
    return (counts[1] - counts[0]) / (now.at_s - before.at_s) if counts[1] >= counts[0] else None


def _read(monitor: Monitor) -> dict[str, Any] | None:
    """Return the replies by endpoint, or nothing from a server that is dead, frozen or starting."""
    try:
        return {**{path.split("?", 1)[0]: monitor.read(path)[1] for path in _ENDPOINTS}, "at": monotonic()}
    except (OSError, ValueError):
        return None


def _snapshot_of(name: str, reply: Mapping[str, Any], names: Mapping[str, str]) -> ServerSnapshot:
    varz = reply["/varz"]
    return ServerSnapshot(
        at_s=reply["at"],
        server_id=varz["server_id"],
        in_msgs=varz["in_msgs"],
        slow_consumers=varz["slow_consumers"],
        clients=tuple(
            client.get("name") or "?"
            for client in reply["/connz"].get("connections") or ()
            if client.get("kind") == "Client"  # leaf nodes are in the list too
        ),
        leads=tuple(sorted(_led_by(name, reply["/jsz"]))),
        peers=_peers(reply, names),
    )


def _led_by(name: str, jsz: Mapping[str, Any]) -> Iterable[str]:
    for account in jsz.get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            # Without a cluster there is no other server to lead it; in one that elects, none does.
            cluster = stream.get("cluster")
            if not cluster or cluster.get("leader") == name:
                yield stream["name"]


def _peers(reply: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    """Add up what passed over routes, gateways and leaf node connections, by the server at the other end."""
    passed: Counter[str] = Counter()
    for route in reply["/routez"].get("routes") or ():
        passed[route.get("remote_name", "?")] += route["in_msgs"] + route["out_msgs"]
    outbound = (reply["/gatewayz"].get("outbound_gateways") or {}).values()
    inbound = (reply["/gatewayz"].get("inbound_gateways") or {}).values()
    for gateway in chain(outbound, *inbound):
        connection = gateway["connection"]
        passed[names.get(connection["name"], "?")] += connection["in_msgs"] + connection["out_msgs"]
    for leaf in reply["/leafz"].get("leafs") or ():
        passed[leaf["name"]] += leaf["in_msgs"] + leaf["out_msgs"]
    return dict(passed)
