"""A drawing of a mesh: servers, the routes between them, and who is connected where; see ``charts.topology``."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from math import cos, pi, sin
from typing import TYPE_CHECKING, Any

from mesh_lab.notebook.chart_style import (
    BLUE,
    GREEN,
    INK,
    LINE_IN,
    MARGIN_IN,
    MUTED,
    ORANGE,
    RED,
    WIDTH_IN,
    axes_in,
    card,
    house_style,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
BOX_IN = 0.42
CLIENT_IN = 0.62  # from one client to the next
ARROW_IN = 0.3  # an arrow is never shorter
ROUTE = "#AFB8C1"
DASHES = (0, (3, 2))


def topology(
    servers: Sequence[str],
    *,
    title: str,
    publishers: Mapping[str, tuple[str, str]] | None = None,
    subscribers: Mapping[str, tuple[str, str]] | None = None,
    dead: Collection[str] = (),
) -> "Figure":
    """Draw servers joined by routes, publishers on their left and subscribers on their right.

    Args:
        servers: Names of 1 to 7 servers.
        title: The finding, in a sentence.
        publishers: For each client, the server that it is connected to and the subject on its arrow.
        subscribers: The same; their arrows lead from the server to the client.
        dead: Servers that were killed.

    Raises:
        ValueError: There are no servers or more than 7, or a client or ``dead`` names one that is not there.
    """
    publishers, subscribers = dict(publishers or {}), dict(subscribers or {})
    named = {server for server, _ in (*publishers.values(), *subscribers.values())} | set(dead)
    if not 1 <= len(servers) <= 7 or not named <= set(servers):
        raise ValueError(f"expected 1 to 7 servers that include {sorted(named)}, got {list(servers)}")
    box = max(text_width(name, bold=True) for name in servers) + 0.44
    radius = {1: 0.0, 3: 0.8}.get(len(servers), 1.15)
    rows = max(len(publishers), len(subscribers))
    body = max((2 * radius if len(servers) > 2 else 0) + BOX_IN + 0.1, CLIENT_IN * rows, 0.8)
    with house_style():
        figure, top = card(title, body_in=body)
        axes = axes_in(figure, 0, 0, 0, top)
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH_IN)
        axes.set_ylim(0, top)
        from_x = MARGIN_IN + _widest(publishers)
        to_x = WIDTH_IN - MARGIN_IN - _widest(subscribers)
        middle = MARGIN_IN + body / 2
        spread = min(max(radius, box / 2 + ARROW_IN), (to_x - from_x - box) / 2 - ARROW_IN) if radius else 0.0
        places = _ring(servers, ((from_x + to_x) / 2, middle), spread, radius)
        for one, other in combinations(servers, 2):
            broken = one in dead or other in dead
            ends = zip(places[one], places[other], strict=True)
            axes.plot(*ends, color=ROUTE, linewidth=1.6, linestyle=DASHES if broken else "-", zorder=1)
        for clients, inner, outer in ((publishers, from_x, MARGIN_IN), (subscribers, to_x, WIDTH_IN - MARGIN_IN)):
            # In the order of their servers' heights, so that few arrows cross.
            order = sorted(clients, key=lambda name: -places[clients[name][0]][1])
            for row, name in enumerate(order):
                server, subject = clients[name]
                y = middle + CLIENT_IN * ((len(order) - 1) / 2 - row)
                _client(axes, name, subject, inner, outer, y)
                edge = _edge(places[server], (inner, y), box)
                _arrow(axes, (inner, y), edge, outwards=outer > inner, broken=server in dead)
        for name, place in places.items():
            _server(axes, name, place, box, dead=name in dead)
    return figure


def _widest(clients: Mapping[str, tuple[str, str]]) -> float:
    texts = [text_width(name) for name in clients]
    texts += [text_width(subject, mono=True) for _, subject in clients.values()]
    return max(texts) + 0.24 if texts else 0.0


def _ring(servers: Sequence[str], centre: Point, across: float, up: float) -> dict[str, Point]:
    """Place the first server on the left, where publishers are, and the others clockwise."""
    angles = [pi - 2 * pi * i / len(servers) for i in range(len(servers))]
    # A triangle that points to the left is not as wide as its circle.
    shift = across / 4 if len(servers) == 3 else 0.0
    return {
        name: (centre[0] + across * cos(angle) + shift, centre[1] + up * sin(angle))
        for name, angle in zip(servers, angles, strict=True)
    }


def _edge(place: Point, seen_from: Point, box: float) -> Point:
    """Return where a line from somewhere to the middle of a server's box meets the box."""
    dx, dy = seen_from[0] - place[0], seen_from[1] - place[1]
    share = min(box / 2 / abs(dx) if dx else 9.0, BOX_IN / 2 / abs(dy) if dy else 9.0)
    return place[0] + dx * share, place[1] + dy * share


def _rounded(axes: "Axes", left: float, bottom: float, size: Point, **look: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch((left, bottom), *size, boxstyle=style, **look))


def _server(axes: "Axes", name: str, place: Point, box: float, *, dead: bool) -> None:
    _rounded(
        axes,
        place[0] - box / 2,
        place[1] - BOX_IN / 2,
        (box, BOX_IN),
        facecolor="#F6F8FA" if dead else "#DCEBF7",
        edgecolor=RED if dead else BLUE,
        linestyle=DASHES if dead else "-",
        linewidth=1.6,
        zorder=4,
    )
    half = LINE_IN / 2 if dead else 0.0
    axes.text(place[0], place[1] + half, name, weight="bold", ha="center", va="center", zorder=5)
    if dead:
        axes.text(place[0], place[1] - half, "killed", color=RED, ha="center", va="center", zorder=5)


def _client(axes: "Axes", name: str, subject: str, inner: float, outer: float, y: float) -> None:
    """Draw a client's box with its subject in it, from the side where its arrow is to the card's margin."""
    height = 2 * LINE_IN + 0.12
    fill, edge = ("#FDF3DC", ORANGE) if outer < inner else ("#DDF1EA", GREEN)
    look: dict[str, Any] = {"facecolor": fill, "edgecolor": edge, "linewidth": 1.2, "zorder": 4}
    _rounded(axes, min(inner, outer), y - height / 2, (abs(outer - inner), height), **look)
    middle = (inner + outer) / 2
    axes.text(middle, y + LINE_IN / 2, name, ha="center", va="center", zorder=5)
    look = {"family": "DejaVu Sans Mono", "color": MUTED}
    axes.text(middle, y - LINE_IN / 2, subject, ha="center", va="center", zorder=5, **look)


def _arrow(axes: "Axes", client: Point, server: Point, *, outwards: bool, broken: bool) -> None:
    start, end = (server, client) if outwards else (client, server)
    look = {"color": ROUTE if broken else INK, "linestyle": DASHES if broken else "-", "linewidth": 1.3}
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 1, "shrinkB": 1, **look}, zorder=3)
