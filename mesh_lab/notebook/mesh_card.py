"""How a mesh shows itself in a notebook: a card with a box for each server, without ports or secrets."""

import html
from collections.abc import Mapping

from mesh_lab.servers.mesh import Mesh

GOOD, WAITING, BAD = "#2e7d32", "#b26a00", "#b71c1c"
COLOURS = {"ready": GOOD, "running": GOOD} | dict.fromkeys(
    ("paused", "not ready", "not asked yet", "cannot be asked"), WAITING
)


def mesh_card(mesh: Mesh) -> str:
    """Return an HTML table with a box for each server, and a row for each region and for the leaf nodes."""
    if mesh.closed:
        return "<b>mesh</b>: closed"
    layout, states = mesh.layout, mesh.last_states
    if layout.cluster is not None and not layout.leaves:
        rows = [_row(states)]
    else:
        rows = [_row({name: states[name] for name in names}, region) for region, names in layout.regions.items()]
    if layout.leaves:
        joined = {name: f"leaf node of {region}" for name, region in layout.leaves.items()}
        rows.append(_row({name: states[name] for name in layout.leaves}, "edge", joined))
    return f"<table><caption>mesh: {mesh.traits.label}</caption>{''.join(rows)}</table>"


def _row(states: Mapping[str, str], label: str | None = None, notes: Mapping[str, str] | None = None) -> str:
    cells = "".join(
        f'<td style="border:2px solid {COLOURS.get(state, BAD)};padding:8px 18px;text-align:center">'
        f"<b>{html.escape(name)}</b><br>{state}{f'<br>{html.escape(notes[name])}' if notes else ''}</td>"
        for name, state in states.items()
    )
    head = f'<th style="text-align:left;padding-right:18px">{html.escape(label)}</th>' if label is not None else ""
    return f"<tr>{head}{cells}</tr>"
