"""What Prometheus scrapes of a mesh, under the names of NATS's own exporter (prometheus-nats-exporter, -prefix=nats).

So the alarms and the dashboard of ``docker/observe/`` work with either. In production that one stands beside each
server; this one needs nothing but Python, and asks all servers of a mesh: a dead one never fails the scrape. It has one
name of its own, ``nats_consumer_oldest_waiting_s``.
"""

import argparse
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mesh_lab.observe.monitor import Monitor

_VARZ = ("connections", "in_msgs", "out_msgs", "in_bytes", "out_bytes", "slow_consumers", "mem", "cpu", "subscriptions")
_STREAM = {"total_messages": "messages", "total_bytes": "bytes", "last_seq": "last_seq"}
_CONSUMER = ("num_pending", "num_ack_pending", "num_redelivered", "num_waiting")
_SERVER = ("server_id", "server_name")
_IN_STREAM = (*_SERVER, "account", "stream_name", "is_stream_leader")
_IN_CONSUMER = (*_IN_STREAM, "consumer_name", "is_consumer_leader")

MOST_LOOKS = 20_000  # three days, at a scrape each 15 s

Samples = dict[str, GaugeMetricFamily]
Reply = tuple[dict[str, Any], ...]
_Stream = tuple[str, str, str]  # its account, its name, and when it was made


class _Arrivals:
    """When the messages of a stream came, as finely as it is looked at: monitoring does not say."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque(maxlen=MOST_LOOKS)

    def note(self, last_seq: int, now: float) -> None:
        """Note the last message that is there now."""
        if not self._looks or last_seq > self._looks[-1][1]:
            self._looks.append((now, last_seq))

    def age_s(self, seq: int, now: float) -> float:
        """Return for how long a message has been seen to be there."""
        return next((now - at for at, last_seq in self._looks if last_seq >= seq), 0.0)

    def forget(self, seq: int) -> None:
        """Forget when messages came for which nobody waits any more, this one the last."""
        while len(self._looks) > 1 and self._looks[0][1] <= seq:
            self._looks.popleft()


class MeshMetrics(Collector):
    """Reads every server's monitoring port when it is scraped, all at once."""

    def __init__(self, monitors: Mapping[str, Monitor]) -> None:
        self._monitors = dict(monitors)
        self._arrivals: defaultdict[_Stream, _Arrivals] = defaultdict(_Arrivals)
        self._one_at_a_time = threading.Lock()  # a scrape may begin before another one's end

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield what the servers say; of one that does not reply, that it is down and nothing else."""
        found: Samples = {}
        with ThreadPoolExecutor(max(1, len(self._monitors))) as pool:
            replies = dict(zip(self._monitors, pool.map(_read, self._monitors.values()), strict=True))
        for name, reply in replies.items():
            _add(found, "up", _SERVER, (name, name), reply is not None)
            if reply is not None:
                _of_server(found, name, *reply)
        with self._one_at_a_time:
            self._add_ages(found, {name: reply for name, reply in replies.items() if reply is not None})
        yield from found.values()

    def _add_ages(self, found: Samples, replies: Mapping[str, Reply]) -> None:
        """Add how long the oldest message waits, in seconds, of each consumer by what its leader reports."""
        now, streams = time.monotonic(), list(_streams(replies))
        floors, last = defaultdict[_Stream, list[int]](list), defaultdict[_Stream, int](int)
        for _, account, stream in streams:
            which = (account, stream["name"], stream["created"])
            last[which] = max(last[which], stream["state"]["last_seq"])
        for which, seq in last.items():
            self._arrivals[which].note(seq, now)
        for server, account, stream in streams:
            which = (account, stream["name"], stream["created"])
            for consumer in stream.get("consumer_detail") or ():
                floors[which].append(floor := consumer["ack_floor"]["stream_seq"])
                if _leads(consumer, server[1]) == "true":
                    waits = consumer["num_pending"] + consumer["num_ack_pending"]
                    place = (*server, account, stream["name"], _leads(stream, server[1]), consumer["name"], "true")
                    age = self._arrivals[which].age_s(floor + 1, now) if waits else 0.0
                    _add(found, "consumer_oldest_waiting_s", _IN_CONSUMER, place, age)
        for which, seq in last.items():
            self._arrivals[which].forget(min(floors[which], default=seq))
        if replies.keys() == self._monitors.keys():  # or else a stream may be away with its server
            for gone in self._arrivals.keys() - last.keys():
                del self._arrivals[gone]


def _read(monitor: Monitor) -> Reply | None:
    try:
        return monitor.varz(), monitor.connz("limit=1024"), monitor.routez(), monitor.jsz("consumers=true&config=true")
    except (OSError, ValueError):
        return None


def _add(found: Samples, name: str, labels: tuple[str, ...], values: Iterable[str], value: float) -> None:
    family = found.setdefault(name, GaugeMetricFamily(f"nats_{name}", f"as NATS reports {name}", labels=labels))
    family.add_metric(list(values), float(value))


def _of_server(
    found: Samples, name: str, varz: dict[str, Any], connz: dict[str, Any], routez: dict[str, Any], jsz: dict[str, Any]
) -> None:
    server = (name, varz["server_name"])
    for key in _VARZ:
        _add(found, f"varz_{key}", _SERVER, server, varz[key])
    pending = sum(connection["pending_bytes"] for connection in connz.get("connections") or ())
    _add(found, "connz_pending_bytes", _SERVER, server, pending)
    _add(found, "routez_num_routes", _SERVER, server, routez["num_routes"])
    for _, account, stream in _streams({name: (varz, connz, routez, jsz)}):
        place = (*server, account, stream["name"], _leads(stream, server[1]))
        for metric, key in _STREAM.items():
            _add(found, f"stream_{metric}", _IN_STREAM, place, stream["state"][key])
        for consumer in stream.get("consumer_detail") or ():
            place_of_it = (*place, consumer["name"], _leads(consumer, server[1]))
            for key in _CONSUMER:
                _add(found, f"consumer_{key}", _IN_CONSUMER, place_of_it, consumer[key])


def _streams(replies: Mapping[str, Reply]) -> Iterator[tuple[tuple[str, str], str, dict[str, Any]]]:
    """Yield each copy of a stream: its server's labels, its account's name, and what that server says of it."""
    for name, (varz, _, _, jsz) in replies.items():
        for account in jsz.get("account_details") or ():
            for stream in account.get("stream_detail") or ():
                yield (name, varz["server_name"]), account["name"], stream


def _leads(thing: Mapping[str, Any], server: str) -> str:
    cluster = thing.get("cluster")
    return "true" if not cluster or cluster.get("leader") == server else "false"


def serve(monitors: Mapping[str, Monitor], *, host: str = "127.0.0.1", port: int) -> Any:
    """Answer ``GET /metrics`` in a thread, and return Prometheus's server, whose ``shutdown()`` ends it.

    Raises:
        OSError: Nothing can listen there.
    """
    registry = CollectorRegistry()
    registry.register(MeshMetrics(monitors))
    server, _ = start_http_server(port, addr=host, registry=registry)
    return server


def monitor_at(address: str) -> Monitor:
    """Return the monitor at an address such as ``http://127.0.0.1:8222``; raise ValueError if it is none."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        if parts.scheme == "http" and parts.hostname and not parts.path.strip("/"):
            return Monitor(parts.hostname, parts.port or 8222)
    except ValueError:  # the port is none
        pass
    raise ValueError(f"{address!r} is no monitoring address; expected http://127.0.0.1:8222")


def main() -> None:
    """Serve the metrics of servers named by their monitoring addresses, until stopped."""
    parser = argparse.ArgumentParser(prog="python -m mesh_lab.observe.metrics", description=__doc__)
    parser.add_argument("server", nargs="+", type=monitor_at, help="monitoring address: http://127.0.0.1:8222")
    parser.add_argument("--port", type=int, default=7777, help="where to answer /metrics (default: 7777)")
    options = parser.parse_args()
    monitors = {f"{monitor.host}:{monitor.port}": monitor for monitor in options.server}
    serve(monitors, port=options.port)
    threading.Event().wait()


if __name__ == "__main__":
    main()
