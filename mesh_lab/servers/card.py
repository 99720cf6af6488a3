"""How a mesh shows itself: a line of text, and a card for notebooks. Neither has ports or secrets."""

import html
from collections.abc import Iterable, Mapping

from mesh_lab.servers.backend import Backend
from mesh_lab.servers.layout import Layout

GOOD, WAITING, BAD = "#2e7d32", "#b26a00", "#b71c1c"
COLOURS = {"ready": GOOD, "running": GOOD} | dict.fromkeys(
    ("paused", "not ready", "not asked yet", "cannot be asked"), WAITING
)
WHERE = {"local": "processes on this machine", "docker": "containers", "external": "external servers"}


def line(layout: Layout, states: Mapping[str, str]) -> str:
    """Return every server with its state, such as ``Mesh(n1 ready, n2 killed)``, region by region."""

    def named(names: Iterable[str]) -> str:
        return ", ".join(f"{name} {states[name]}" for name in names)

    if layout.cluster is not None:
        return f"Mesh({named(states)})"
    parts = [f"{region}: {named(names)}" for region, names in layout.regions.items()]
    parts += [f"leaf nodes: {named(layout.leaves)}"] if layout.leaves else []
    return f"Mesh({'; '.join(parts)})"


def table(layout: Layout, states: Mapping[str, str], *, backend: Backend) -> str:
    """Return an HTML table with a box for each server, and a row for each region and for the leaf nodes."""
    if layout.cluster is not None and not layout.leaves:
        return f"<table><caption>mesh: {WHERE[backend]}</caption>{_row(states)}</table>"
    rows = [_row({name: states[name] for name in names}, region) for region, names in layout.regions.items()]
    if layout.leaves:
        joined = {name: f"leaf node of {region}" for name, region in layout.leaves.items()}
        rows.append(_row({name: states[name] for name in layout.leaves}, "edge", joined))
    return f"<table><caption>mesh: {WHERE[backend]}</caption>{''.join(rows)}</table>"


def _row(states: Mapping[str, str], label: str | None = None, notes: Mapping[str, str] | None = None) -> str:
    cells = "".join(
        f'<td style="border:2px solid {COLOURS.get(state, BAD)};padding:8px 18px;text-align:center">'
        f"<b>{html.escape(name)}</b><br>{state}{_note(name, notes)}</td>"
        for name, state in states.items()
    )
    head = f'<th style="text-align:left;padding-right:18px">{html.escape(label)}</th>' if label is not None else ""
    return f"<tr>{head}{cells}</tr>"


def _note(name: str, notes: Mapping[str, str] | None) -> str:
    return f"<br>{html.escape(notes[name])}" if notes else ""
