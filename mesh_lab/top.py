"""``mesh-lab top``: what the servers of a mesh report, once a second, in a terminal."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from mesh_lab.errors import MeshLabError
from mesh_lab.observe.monitor import Monitor
from mesh_lab.observe.snapshots import ServerSnapshot, in_words, rate_per_s, snapshot

EVERY_S = 1.0
SHOWN_CLIENTS = 4
_HTTP = re.compile(r"(?m)^http: 127\.0\.0\.1:(\d+)$")  # in the file that a local mesh gives each server

Monitors = Mapping[str, Monitor]


def local_meshes() -> dict[str, dict[str, Monitor]]:
    """Return the monitors of the servers of each local mesh of which one runs now, by mesh and name.

    Whose meshes they are, this user may read: all of them as root.
    """
    found: dict[str, dict[str, Monitor]] = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        path = Path(command[command.index("--config") + 1]) if "--config" in command[:-1] else Path()
        if path.parent.name.startswith("mesh-lab-") and path.parent.name not in found:
            try:
                texts = {file.stem: file.read_text() for file in sorted(path.parent.glob("*.conf"))}
            except OSError:  # somebody else's, or gone
                continue
            ports = {name: http[1] for name, text in texts.items() if (http := _HTTP.search(text))}
            found[path.parent.name] = {name: Monitor("127.0.0.1", int(port), EVERY_S) for name, port in ports.items()}
    return dict(sorted(found.items()))


def show(monitors: Sequence[str], *, once: bool) -> int:
    """Show the servers at these addresses, or this user's local meshes, until interrupted; return an exit code.

    Raises:
        MeshLabError: An address is none, or no local mesh runs.
    """
    asked = {"": {address: _monitor(address) for address in monitors}} if monitors else {}
    console, before = Console(), dict[str, dict[str, ServerSnapshot]]()

    def tables() -> Group:
        nonlocal before
        if not (meshes := asked or local_meshes()):
            raise MeshLabError("no local mesh of yours runs on this machine; name monitors: mesh-lab top HOST:8222")
        now = {mesh: snapshot(servers) for mesh, servers in meshes.items()}
        old, before = before, now
        return Group(*(_table(mesh, servers, now[mesh], old.get(mesh, {})) for mesh, servers in meshes.items()))

    if once:
        console.print(tables())
        return 0
    with Live(tables(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            live.update(tables(), refresh=True)


def _monitor(address: str) -> Monitor:
    host, _, port = address.removeprefix("http://").rstrip("/").rpartition(":")
    if not (host and port.isdigit()):
        raise MeshLabError(f"{address!r}, expected HOST:PORT of a server's monitoring, such as 127.0.0.1:8222")
    return Monitor(host, int(port), timeout_s=EVERY_S)


def _table(
    mesh: str, servers: Monitors, now: Mapping[str, ServerSnapshot], before: Mapping[str, ServerSnapshot]
) -> Table:
    right = [Column(name, justify="right") for name in ("messages in/s", "to servers/s", "cut off as slow")]
    table = Table("server", "", *right, "clients", "leads", title=mesh, title_justify="left", box=None)
    for name in servers:
        if (seen := now.get(name)) is None:
            table.add_row(name, "[red]no answer")
            continue
        old = before.get(name)
        between = [rate for peer in seen.peers if (rate := rate_per_s(old, seen, peer=peer)) is not None]
        more = len(seen.clients) - SHOWN_CLIENTS
        clients = escape(", ".join(list(seen.clients)[:SHOWN_CLIENTS])) + (f" and {more} more" if more > 0 else "")
        rates = (rate_per_s(old, seen), sum(between) if between else None)
        shown = ("" if rate is None else f"{rate:,.0f}" for rate in rates)
        leads = escape(", ".join(seen.leads))
        table.add_row(name, "[green]ready", *shown, f"{seen.slow_consumers:,}", clients, leads)
    table.caption, table.caption_justify = escape("\n".join(in_words(now, before))), "left"
    return table
