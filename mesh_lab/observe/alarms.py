"""The signals of an order mesh: for each the chart that shows it and the alarm that it raises, from one description.

``python -m mesh_lab.observe.alarms docker/observe`` writes them as Prometheus and Grafana read them. An alarm says what
a customer or an operator would notice, lasts longer than a hiccup, and names what to look at first.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LEADER = '{is_consumer_leader="true"}'  # each server with a copy reports the consumer; the leader knows
_BY = "account, stream_name, consumer_name"


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing to watch; ``WINDOW`` in an expression stands for the time over which a change is judged."""

    title: str
    unit: str
    """As Grafana names units: ``short``, ``bytes``, ``mps``."""
    shows: str
    legend: str
    alarm: str = ""
    when: str = ""
    says: str = ""
    do: str = ""


SIGNALS = (
    Signal(
        "Servers that answer", "short", "sum(nats_up)", "servers",
        alarm="ServerGone", when='nats_up == 0 or up{job="nats"} == 0',
        says="{{ $labels.server_name }}{{ $labels.instance }} does not answer",
        do="the other copies serve; look why it ended, and restart it",
    ),
    Signal(
        "Messages received", "mps", "rate(nats_varz_in_msgs[WINDOW])", "{{server_name}}",
        alarm="NobodyHears",
        when="sum(rate(nats_varz_in_msgs[WINDOW])) > 1 and "
        "sum(rate(nats_varz_out_msgs[WINDOW])) < 0.1 * sum(rate(nats_varz_in_msgs[WINDOW]))",
        says="messages come in, and nearly none go out: nobody subscribes, and no stream stores them",
        do="trace one with Nats-Trace-Dest; compare its subject with those of the streams, letter by letter",
    ),
    Signal(
        "Orders behind", "short", f"sum by ({_BY}) (nats_consumer_num_pending{_LEADER})", "{{consumer_name}}",
        alarm="LagGrows",
        when=f"deriv(nats_consumer_num_pending{_LEADER}[WINDOW]) > 0 and nats_consumer_num_pending{_LEADER} > 100",
        says="{{ $labels.consumer_name }} falls behind: {{ $value | humanize }} more a second",
        do="is a worker there, and does it acknowledge? then more workers",
    ),
    Signal(
        "Delivered again", "short", f"nats_consumer_num_redelivered{_LEADER}", "{{consumer_name}}",
        alarm="PoisonOrder", when=f"nats_consumer_num_redelivered{_LEADER} > 0",
        says="{{ $labels.consumer_name }} gets {{ $value }} messages again and again",
        do="read the worker's log; set the message aside after max_deliver, and keep it",
    ),
    Signal(
        "Bytes that clients have not read", "bytes", "nats_connz_pending_bytes", "{{server_name}}",
        alarm="SlowConsumer",
        when="nats_connz_pending_bytes > 4e6 or increase(nats_varz_slow_consumers[WINDOW]) > 0",
        says="a client of {{ $labels.server_name }} reads too slowly", do="connz?sort=pending names it",
    ),
    Signal(
        "Routes", "short", "nats_routez_num_routes", "{{server_name}}",
        alarm="RouteLost", when="nats_routez_num_routes < max_over_time(nats_routez_num_routes[1h])",
        says="{{ $labels.server_name }} has lost routes to others of its cluster",
        do="which server do two others not see? then the network between them",
    ),
    Signal("Stored", "bytes", "max by (account, stream_name) (nats_stream_total_bytes)", "{{stream_name}}"),
)  # fmt: skip


def rules(*, window: str = "2m", hold: str = "1m") -> str:
    """Return the alarms as a file of rules for Prometheus.

    Args:
        window: Time over which a change is judged; at least four scrapes long.
        hold: How long it has to last.
    """
    lines = [
        "# Written by `python -m mesh_lab.observe.alarms docker/observe`.",
        "groups:",
        "  - name: order-mesh",
        "    rules:",
    ]
    for signal in SIGNALS:
        if signal.alarm:
            labels, notes = {"severity": "page"}, {"summary": signal.says, "do": signal.do}
            expression = signal.when.replace("WINDOW", window)
            lines += [
                f"      - alert: {signal.alarm}",
                f"        expr: {json.dumps(expression)}",
                f"        for: {hold}",
            ]
            lines += [f"        labels: {json.dumps(labels)}", f"        annotations: {json.dumps(notes)}"]
    return "\n".join(lines) + "\n"


def dashboard(*, window: str = "2m") -> str:
    """Return the charts as a dashboard for Grafana, two in a row."""
    panels: list[dict[str, Any]] = []
    for number, signal in enumerate(SIGNALS):
        target = {"refId": "A", "expr": signal.shows.replace("WINDOW", window), "legendFormat": signal.legend}
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": signal.title,
                "description": signal.do,
                "datasource": {"type": "prometheus", "uid": "prometheus"},
                "gridPos": {"x": number % 2 * 12, "y": number // 2 * 8, "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": signal.unit, "min": 0}, "overrides": []},
                "targets": [target],
            }
        )
    top = {"uid": "order-mesh", "title": "Order mesh", "schemaVersion": 41, "refresh": "5s", "tags": ["nats"]}
    return json.dumps(top | {"time": {"from": "now-15m", "to": "now"}, "panels": panels}, indent=1) + "\n"


def main(directory: Path) -> None:
    """Write both files."""
    (directory / "alarms.yml").write_text(rules(), encoding="utf-8")
    (directory / "dashboard.json").write_text(dashboard(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
