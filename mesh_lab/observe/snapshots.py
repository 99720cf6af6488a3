"""A snapshot of all servers of a mesh: which reply, which are joined, which clients they have, and their traffic."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Any

from mesh_lab.observe.monitor import Monitor

SHOWN_SERVICES = 5
_ENDPOINTS = ("/varz", "/connz?limit=1000", "/routez", "/gatewayz", "/leafz", "/jsz?accounts=1&streams=1&consumers=1")


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """A stream, as its leader reports it."""

    scope: str
    """JetStream domain and account, in which no other has its name."""
    name: str
    messages: int
    others: tuple[str, ...] = ()
    """The other servers that hold it, or should."""
    behind: tuple[str, ...] = ()
    """Of those, which are not up to date, or away."""


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """The state of one server at one moment."""

    name: str
    """The name that other servers and the leaders of streams are told by; who asks may know it by an address."""
    at_s: float
    """When, on this process's monotonic clock."""
    server_id: str
    """The server's own id, which differs after a restart."""
    in_msgs: int
    """Messages received since it was started, from clients and servers."""
    slow_consumers: int
    """Connections, of clients or servers, that it cut off since it was started: they read too slowly."""
    clients: Mapping[str, int]
    """For each client by its name, ``"?"`` without one, the messages that passed on its connection, both ways."""
    streams: tuple[StreamSnapshot, ...]
    """Streams that it leads."""
    waiting: Mapping[tuple[str, str, str], int]
    """For each consumer that it leads, by scope, stream and name, the messages that are not acknowledged yet."""
    peers: Mapping[str, int]
    """For each server that it is joined to, the messages that passed between them on the connections that stand."""

    @property
    def leads(self) -> tuple[str, ...]:
        """Names of the streams that it leads."""
        return tuple(sorted(stream.name for stream in self.streams))


def snapshot(monitors: Mapping[str, Monitor]) -> dict[str, ServerSnapshot]:
    """Return the state of each server by its name; a server that does not reply in time is left out.

    Blocks for as long as the slowest reply takes, or the monitors' timeout.
    """
    if not monitors:
        return {}
    with ThreadPoolExecutor(len(monitors)) as pool:
        read = zip(monitors, pool.map(_read, monitors.values()), strict=True)
        replies = {name: reply for name, reply in read if reply is not None}
    names = {reply["/varz"]["server_id"]: reply["/varz"]["server_name"] for reply in replies.values()}
    return {name: _snapshot_of(reply, names) for name, reply in replies.items()}


def rate_per_s(
    before: ServerSnapshot | None, now: ServerSnapshot, *, peer: str | None = None, client: str | None = None
) -> float | None:
    """Return messages a second between two snapshots of one server, or ``None`` where it or the connection is new.

    It counts all messages that the server received, or those that passed between it and a ``peer`` or a ``client``.
    """
    if before is None or before.server_id != now.server_id or now.at_s <= before.at_s:
        return None
    if peer is not None:
        counts = before.peers.get(peer), now.peers.get(peer, 0)
    elif client is not None:
        counts = before.clients.get(client), now.clients.get(client, 0)
    else:
        counts = before.in_msgs, now.in_msgs
    if counts[0] is None or counts[1] < counts[0]:
        return None
    return (counts[1] - counts[0]) / (now.at_s - before.at_s)


def rate_in_words(rate: float) -> str:
    """Return a rate with two digits that count, such as ``"1,200/s"``."""
    return f"{float(f'{rate:.2g}'):,.0f}/s"


def in_words(now: Mapping[str, ServerSnapshot], before: Mapping[str, ServerSnapshot]) -> list[str]:
    """Return a line on the busiest services, and one for each stream: where it is, and what waits for which consumer.

    A service's processes have its name and a number, such as ``worker-2``.
    """
    rates, processes = defaultdict[str, float](float), Counter[str]()
    for server, seen in now.items():
        for client in seen.clients:
            service = re.sub(r"-\d+$", "", client)
            rates[service] += rate_per_s(before.get(server), seen, client=client) or 0.0
            processes[service] += 1
    busiest = sorted((rate, service) for service, rate in rates.items() if rate >= 1)[: -SHOWN_SERVICES - 1 : -1]
    busy = [
        f"{service} {f'({processes[service]}) ' if processes[service] > 1 else ''}{rate_in_words(rate)}"
        for rate, service in busiest
    ]
    led = sorted(((stream, one.name) for one in now.values() for stream in one.streams), key=_by_name)
    waiting = sorted({consumer: count for one in now.values() for consumer, count in one.waiting.items()}.items())
    lines = [f"messages of {', '.join(busy)}"] if busy else []
    for stream, leader in led:
        copies = [f"{other} (behind)" if other in stream.behind else other for other in stream.others]
        where = f"led by {leader}, copies on {' and '.join(copies)}" if copies else f"on {leader} alone"
        waits = [f"{count:,} wait for {who}" for (*of, who), count in waiting if of == [stream.scope, stream.name]]
        lines.append("; ".join([f"{stream.name}: {stream.messages:,} stored, {where}", *waits]))
    return lines


def _by_name(led: tuple[StreamSnapshot, str]) -> tuple[str, str]:
    return led[0].name, led[0].scope


def _read(monitor: Monitor) -> dict[str, Any] | None:
    """Return the replies by endpoint, or nothing from a server that is dead, frozen or starting."""
    try:
        return {**{path.split("?", 1)[0]: monitor.read(path)[1] for path in _ENDPOINTS}, "at": monotonic()}
    except (OSError, ValueError):
        return None


def _snapshot_of(reply: Mapping[str, Any], names: Mapping[str, str]) -> ServerSnapshot:
    varz = reply["/varz"]
    name = varz["server_name"]
    return ServerSnapshot(
        name=name,
        at_s=reply["at"],
        server_id=varz["server_id"],
        in_msgs=varz["in_msgs"],
        slow_consumers=varz["slow_consumers"],
        clients=_clients(reply["/connz"]),
        streams=tuple(_led_by(name, reply["/jsz"])),
        waiting=dict(_waiting(name, reply["/jsz"])),
        peers=_peers(reply, names),
    )


def _clients(connz: Mapping[str, Any]) -> dict[str, int]:
    passed: Counter[str] = Counter()
    for client in connz.get("connections") or ():
        if client.get("kind") == "Client":  # leaf nodes are in the list too
            passed[client.get("name") or "?"] += client["in_msgs"] + client["out_msgs"]
    return dict(passed)


def _streams(jsz: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield each stream with its scope."""
    domain = (jsz.get("config") or {}).get("domain", "")
    for account in jsz.get("account_details") or ():
        yield from ((f"{domain}/{account['name']}", stream) for stream in account.get("stream_detail") or ())


def _leads(name: str, asset: Mapping[str, Any]) -> bool:
    # Without a cluster there is no other server to lead it; in one that elects, none does.
    return not (cluster := asset.get("cluster")) or cluster.get("leader") == name


def _led_by(name: str, jsz: Mapping[str, Any]) -> Iterable[StreamSnapshot]:
    for scope, stream in _streams(jsz):
        if _leads(name, stream):
            others = (stream.get("cluster") or {}).get("replicas") or ()
            behind = tuple(one["name"] for one in others if not one.get("current") or one.get("offline"))
            names = tuple(sorted(one["name"] for one in others))
            yield StreamSnapshot(scope, stream["name"], stream["state"]["messages"], names, behind)


def _waiting(name: str, jsz: Mapping[str, Any]) -> Iterable[tuple[tuple[str, str, str], int]]:
    for scope, stream in _streams(jsz):
        for consumer in stream.get("consumer_detail") or ():
            if _leads(name, consumer):
                waits = consumer["num_pending"] + consumer["num_ack_pending"]
                yield (scope, stream["name"], consumer["name"]), waits


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
