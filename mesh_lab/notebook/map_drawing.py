"""The drawing of a live mesh map: an SVG of servers, the connections between them, and what passes."""

from collections.abc import Mapping, Sequence
from html import escape
from math import cos, log10, pi, sin

from mesh_lab.notebook.chart_style import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, RED
from mesh_lab.observe.snapshots import ServerSnapshot, rate_per_s
from mesh_lab.servers.card import COLOURS
from mesh_lab.servers.layout import Layout

Point = tuple[float, float]
WIDTH, BOX, MARGIN, STRETCH = 760.0, (132.0, 44.0), 14.0, 1.15
RADIUS = {1: 0.0, 3: 92.0, 5: 130.0, 7: 160.0}
TITLE, CLIENTS, LEAF_ROW = 30.0, 34.0, 130.0
KIND = {"route": BLUE, "gateway": ORANGE, "leaf": GREEN}
STAGGER = 24.0  # of every second region, so that no two connections lie on one line
SHOWN_CLIENTS = 2


def draw(
    layout: Layout,
    states: Mapping[str, str],
    looks: Mapping[str, ServerSnapshot],
    before: Mapping[str, ServerSnapshot] | None = None,
) -> str:
    """Return an SVG of a mesh.

    Args:
        layout: Who is to be joined to whom.
        states: Each server's state in a word or two.
        looks: What the servers that answered said.
        before: What they said the time before; rates are the difference.
    """
    places, (width, height) = _places(layout)
    parts = [f'<rect width="{width:g}" height="{height:g}" rx="8" fill="white" stroke="{FAINT}"/>']
    for region, names in layout.regions.items():
        if layout.cluster is None:
            middle = sum(places[name][0] for name in names) / len(names)
            parts.append(_text((middle, TITLE - 8), region, bold=True, colour=MUTED))
    earlier = before or {}
    for (one, other), kind in _pairs(layout).items():
        parts += _line(kind, (one, other), places, looks, earlier)
    for name, place in places.items():
        parts += _server(name, place, states[name], looks.get(name), earlier.get(name))
    summary = escape("; ".join(f"{name} {state}" for name, state in states.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{WIDTH:g}" '
        f'style="max-width:100%" font-family="system-ui, sans-serif" font-size="12" role="img">'
        f"<title>{summary}</title>{''.join(parts)}</svg>"
    )


def _places(layout: Layout) -> tuple[dict[str, Point], tuple[float, float]]:
    """Return where each server's box has its middle, and the size of the whole."""
    reaches = {region: RADIUS.get(len(names), 24.0 * len(names)) for region, names in layout.regions.items()}
    radius = max(reaches.values())
    column = max(WIDTH / len(layout.regions), 2 * STRETCH * radius + BOX[0] + 2 * MARGIN)
    width = column * len(layout.regions)
    middle = TITLE + BOX[1] / 2 + radius
    places: dict[str, Point] = {}
    for at, (region, names) in enumerate(layout.regions.items()):
        for number, name in enumerate(names):
            angle = 2 * pi * number / len(names) - pi / 2
            reach = reaches[region]
            x = column * (at + 0.5) + STRETCH * reach * cos(angle)
            places[name] = (x, middle + reach * sin(angle) + STAGGER * (at % 2))
    bottom = max(y for _, y in places.values()) + BOX[1] / 2 + CLIENTS
    for number, name in enumerate(layout.leaves):
        places[name] = (width * (number + 0.5) / len(layout.leaves), bottom + LEAF_ROW - BOX[1] / 2 - CLIENTS)
    return places, (width, bottom + (LEAF_ROW if layout.leaves else 0.0) + MARGIN)


def _pairs(layout: Layout) -> dict[tuple[str, str], str]:
    """Return every pair of servers that may be joined, and how."""
    pairs: dict[tuple[str, str], str] = {}
    for join in layout.joins():
        if (join.target, join.dialler) not in pairs:
            pairs[join.dialler, join.target] = join.kind
    return pairs


def _line(
    kind: str,
    ends: tuple[str, str],
    places: Mapping[str, Point],
    looks: Mapping[str, ServerSnapshot],
    before: Mapping[str, ServerSnapshot],
) -> list[str]:
    """Draw a connection that stands, with its rate; a route that does not stand is dashed."""
    one, other = ends
    (x1, y1), (x2, y2) = places[one], places[other]
    at = f'x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}"'
    seen = [(name, peer) for name, peer in (ends, ends[::-1]) if name in looks and peer in looks[name].peers]
    if not seen or other not in looks or one not in looks:
        # A server dials one of each other region, and one of those that a leaf node may dial: the rest is no loss.
        return [f'<line {at} stroke="{FAINT}" stroke-width="1.5" stroke-dasharray="5 4"/>'] if kind == "route" else []
    name, peer = seen[0]
    rate = rate_per_s(before.get(name), looks[name], peer=peer) or 0.0
    lines = [f'<line {at} stroke="{KIND[kind]}" stroke-width="{1.5 + log10(1 + rate):.1f}" opacity="0.7"/>']
    if rate >= 1:
        lines.append(_text(((x1 + x2) / 2, (y1 + y2) / 2 - 3), _rate(rate), colour=MUTED, halo=True))
    return lines


def _server(
    name: str, place: Point, state: str, look: ServerSnapshot | None, before: ServerSnapshot | None
) -> list[str]:
    x, y = place
    left, top, colour = x - BOX[0] / 2, y - BOX[1] / 2, COLOURS.get(state, RED)
    rate = rate_per_s(before, look) if look is not None else None
    below = state if state != "ready" else f"{_rate(rate)} in" if rate is not None else state
    parts = [
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{BOX[0]:g}" height="{BOX[1]:g}" rx="7" fill="white" '
        f'stroke="{colour}" stroke-width="2"/>',
        _text((x, y - 4), name, bold=True),
        _text((x, y + 13), below, colour=MUTED if state == "ready" else colour),
    ]
    if look is None:
        return parts
    notes = [_some(look.clients)] if look.clients else []
    notes += [f"leads {_some(look.leads)}"] if look.leads else []
    notes += [f"cut off as slow: {look.slow_consumers:,}"] if look.slow_consumers else []
    lines = [(note, y + BOX[1] / 2 + 13 * (number + 1)) for number, note in enumerate(notes)]
    return parts + [_text((x, at), note, colour=MUTED, small=True, halo=True) for note, at in lines]


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_CLIENTS
    return ", ".join(names[:SHOWN_CLIENTS]) + (f" and {more} more" if more > 0 else "")


def _rate(rate: float) -> str:
    return f"{float(f'{rate:.2g}'):,.0f}/s"


def _text(
    at: Point, text: str, *, bold: bool = False, small: bool = False, halo: bool = False, colour: str = INK
) -> str:
    look = ' font-weight="600"' if bold else ""
    look += ' font-size="11"' if small else ""
    # A white edge, so that it can be read where it lies on a line.
    look += ' stroke="white" stroke-width="3" paint-order="stroke"' if halo else ""
    return f'<text x="{at[0]:.0f}" y="{at[1]:.0f}" text-anchor="middle" fill="{colour}"{look}>{escape(text)}</text>'
