"""One drawing of a mesh, for still pictures and for the live map; lengths are points from the upper left corner."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import combinations, pairwise
from math import atan2, cos, hypot, log10, pi, sin
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mesh_lab.notebook import chart_style as style
from mesh_lab.notebook.chart_style import new_chart
from mesh_lab.notebook.mesh_card import COLOURS
from mesh_lab.observe.snapshots import ServerSnapshot, rate_in_words, rate_per_s
from mesh_lab.servers.layout import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
Clients = Mapping[str, tuple[str, str]]
NOBODY: Clients = {}
PAGE = 72 * (style.WIDTH_IN - 0.3)
SERVER, SERVER_LIVE = 30.0, 88.0
"""Height of a server's box, and the least width of one that shows a state."""
CLIENT, CLIENT_EVERY, ARROW = 34.0, 44.0, 26.0
APART, APART_LIVE = (104.0, 76.0), (160.0, 130.0)
"""From one server of a ring to the next, across and down; live ones have notes below and rates between them."""
NOTES, NOTE_PT = (186.0, 30.0), 8.0
"""Room for the notes below a live server: two names of clients, three lines."""
PADDING, TITLE, BETWEEN, TO_LEAVES = 12.0, 14.0, 34.0, 34.0
KIND = {"route": style.BLUE, "gateway": style.ORANGE, "leaf": style.GREEN}
BOLD = 600
SHOWN_CLIENTS, SHOWN_LINES, LINE_HEIGHT = 2, 6, 13.0
THICKEST, TO_HIT = 8.0, 16.0
"""Width of a link's line at most, and of what one can click of it."""
# Where JupyterLab shows the drawing, it has JupyterLab's colours, of which there is a dark set; elsewhere those given.
THEMED = {"white": "--jp-layout-color0", style.INK: "--jp-ui-font-color0", style.MUTED: "--jp-ui-font-color1"}
THEMED |= dict.fromkeys((style.FAINT, style.SHADE), "--jp-border-color1")
THEME = "".join(
    f".mesh-map [{part}='{colour}'] {{ {part}: var({variable}, {colour}) }} "
    for colour, variable in THEMED.items()
    for part in ("fill", "stroke")
)


class Box(NamedTuple):
    """A rounded rectangle."""

    left: float
    top: float
    width: float
    height: float
    fill: str
    edge: str

    @property
    def middle(self) -> Point:
        """Its middle."""
        return self.left + self.width / 2, self.top + self.height / 2

    def edge_towards(self, point: Point) -> Point:
        """Return where a line from its middle to a point outside leaves it."""
        (x, y), dx, dy = self.middle, point[0] - self.middle[0], point[1] - self.middle[1]
        share = min(self.width / 2 / abs(dx) if dx else 9.0, self.height / 2 / abs(dy) if dy else 9.0)
        return x + dx * share, y + dy * share

    def svg(self) -> str:
        """Return it as SVG."""
        return (
            f'<rect x="{self.left:.0f}" y="{self.top:.0f}" width="{self.width:.0f}" height="{self.height:.0f}" rx="5" '
            f'fill="{self.fill}" stroke="{self.edge}" stroke-width="1.5"/>'
        )


class Line(NamedTuple):
    """A connection, or with ``"arrow"`` the way of a client's messages."""

    start: Point
    end: Point
    colour: str
    width: float = 1.6
    look: Literal["", "dashed", "cut", "arrow"] = ""

    @property
    def middle(self) -> Point:
        """Its middle."""
        return (self.start[0] + self.end[0]) / 2, (self.start[1] + self.end[1]) / 2

    @property
    def below_middle(self) -> Point:
        """A point nearer to its lower end, clear of the notes below the server at its upper end."""
        (x1, y1), (x2, y2) = sorted((self.start, self.end), key=lambda point: point[1])
        return x1 + 0.62 * (x2 - x1), y1 + 0.62 * (y2 - y1)

    def svg(self) -> str:
        """Return it as SVG; arrows and crosses are for figures only."""
        (x1, y1), (x2, y2) = self.start, self.end
        dashes = ' stroke-dasharray="4 3"' if self.look == "dashed" else ""
        return (
            f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="{self.colour}" '
            f'stroke-width="{self.width:.1f}"{dashes}/>'
        )


class Text(NamedTuple):
    """A line of text around a point."""

    at: Point
    text: str
    colour: str = style.INK
    size: float = 10.0
    weight: int = 400
    font: str = "DejaVu Sans"

    def svg(self) -> str:
        """Return it as SVG, with a white edge, so that it can be read where it lies on a line."""
        return (
            f'<text x="{self.at[0]:.0f}" y="{self.at[1]:.0f}" dy=".35em" font-size="{self.size:g}" '
            f'fill="{self.colour}" stroke="white" stroke-width="4" paint-order="stroke" font-weight="{self.weight}">'
            f"{escape(self.text)}</text>"
        )


class Spot(NamedTuple):
    """What one can click: a rectangle around a point, turned by an angle."""

    middle: Point
    width: float
    height: float
    turned_rad: float = 0.0


@dataclass(slots=True)
class Drawing:
    """What is drawn, from back to front: frames, lines, boxes, texts."""

    size: Point = (PAGE, 0.0)
    frames: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    boxes: dict[str, Box] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)

    def svg(self, summary: str) -> str:
        """Return the drawing as SVG, on white with a margin; its title is a ``summary`` in words."""
        width, height = (length + 2 * PADDING for length in self.size)
        page = Box(-PADDING, -PADDING, width, height, "white", style.FAINT)
        parts: list[Box | Line | Text] = [page, *self.frames, *self.lines, *self.boxes.values(), *self.texts]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-PADDING:g} {-PADDING:g} {width:g} {height:g}" '
            'class="mesh-map" role="img" width="760" style="max-width:100%" font-family="system-ui, sans-serif" '
            'text-anchor="middle">'
            f"<title>{escape(summary)}</title><style>{THEME}</style>{''.join(part.svg() for part in parts)}</svg>"
        )

    def figure(self, title: str) -> "Figure":
        """Return the drawing as a chart under its title."""
        from matplotlib.patches import FancyBboxPatch

        scale = PAGE / self.size[0]
        with new_chart(title, body_in=self.size[1] * scale / 72 + 0.1) as figure:
            axes = figure.subplots()
            axes.set(xlim=(0, self.size[0]), ylim=(self.size[1], 0), aspect="equal", anchor="N")
            axes.set_axis_off()
            for order, box in [*((0, frame) for frame in self.frames), *((2, box) for box in self.boxes.values())]:
                shape = FancyBboxPatch(box[:2], *box[2:4], boxstyle="round,pad=0,rounding_size=5", clip_on=False)
                shape.set(facecolor=box.fill, edgecolor=box.edge, linewidth=1.4 * scale, zorder=order)
                axes.add_patch(shape)
            for line in self.lines:
                head, order = ("-|>", 3) if line.look == "arrow" else ("-", 1)
                look: dict[str, Any] = {"arrowstyle": head, "linestyle": "--" if line.look == "cut" else "-"}
                look |= {"color": line.colour, "linewidth": line.width, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", line.end, line.start, arrowprops=look, zorder=order)
                if line.look == "cut":
                    axes.plot(*line.middle, marker="x", color=style.ORANGE, markersize=11, markeredgewidth=3)
            for text in self.texts:
                drawn = axes.text(*text.at, text.text, size=text.size * scale, ha="center", va="center", zorder=5)
                drawn.set(color=text.colour, weight="bold" if text.weight == BOLD else "normal", family=text.font)
        return figure


def topology(
    servers: Sequence[str], *, title: str, publishers: Clients = NOBODY, subscribers: Clients = NOBODY
) -> "Figure":
    """Draw servers joined by routes, publishers on their left and subscribers on their right.

    Args:
        servers: Names of 1 to 7 servers.
        title: The finding, in a sentence.
        publishers: For each client, the server that it is connected to and the subject on its arrow.
        subscribers: The same; their arrows lead from the server to the client.

    Raises:
        ValueError: There are no servers or more than 7, or a client is connected to one that is not there.
    """
    named = {server for server, _ in (*publishers.values(), *subscribers.values())}
    if not 1 <= len(servers) <= 7 or not named <= set(servers):
        raise ValueError(f"expected 1 to 7 servers that include {sorted(named)}, got {list(servers)}")
    layout = Layout({"mesh": tuple(servers)}, {}, cluster="mesh")
    return draw(layout, publishers=publishers, subscribers=subscribers).figure(title)


def regions(
    servers: Mapping[str, Sequence[str]],
    *,
    title: str,
    leaves: Mapping[str, str] | None = None,
    cut: Collection[tuple[str, str]] = (),
) -> "Figure":
    """Draw each region as a frame around its servers, gateways between the regions, and leaf nodes below theirs.

    Args:
        servers: Servers of each region, 1 to 3 regions, as ``mesh.layout.regions`` has them.
        title: The finding, in a sentence.
        leaves: Region that each leaf node is connected to, as ``mesh.layout.leaves`` has them.
        cut: Pairs of regions, or of a leaf node and its region, whose connection is cut.

    Raises:
        ValueError: There are no regions or more than 3, or a leaf node or a cut names something else.
    """
    layout = Layout({region: tuple(names) for region, names in servers.items()}, leaves or {})
    places = {*layout.regions, *layout.leaves}
    named = {*layout.leaves.values(), *(place for pair in cut for place in pair)}
    if not 1 <= len(servers) <= 3 or not named <= places:
        raise ValueError(f"expected 1 to 3 regions that include {sorted(named)}, got {sorted(places)}")
    return draw(layout, cut=cut).figure(title)


def draw(
    layout: Layout,
    *,
    publishers: Clients = NOBODY,
    subscribers: Clients = NOBODY,
    cut: Collection[tuple[str, str]] = (),
    states: Mapping[str, str] | None = None,
    snapshots: Mapping[str, ServerSnapshot] | None = None,
    before: Mapping[str, ServerSnapshot] | None = None,
    faults: Mapping[frozenset[str], str] | None = None,
    below: Sequence[str] = (),
) -> Drawing:
    """Return the drawing of a mesh: as it is laid out, or, with each server's state in words, as it is now.

    Rates are the difference between what the servers reported and what they had reported ``before``; ``faults`` are of
    links, in words; the lines of text stand ``below`` it all. Clients and cuts are as in :func:`topology`, which draws
    no regions, and in :func:`regions`.
    """
    drawing, snapshots, before = Drawing(), snapshots or {}, before or {}
    _place(drawing, layout, publishers, subscribers, live=states is not None)
    if states is None:
        _plan_links(drawing, layout, {frozenset(pair) for pair in cut})
        drawing.texts += [Text(drawing.boxes[name].middle, name, weight=BOLD) for name in layout.servers]
        return drawing
    _live_links(drawing, layout, snapshots, before, faults or {})
    for name, state in states.items():
        _describe(drawing, name, state, snapshots.get(name), before.get(name))
    lines = list(below)
    if len(lines) > SHOWN_LINES:
        lines[SHOWN_LINES - 1 :] = [f"and {len(lines) - SHOWN_LINES + 1} more"]
    width, height = drawing.size
    for number, line in enumerate(lines, 1):
        size = min(10.0, 10.0 * width / (style.CHARACTER_PT * len(line)))
        drawing.texts.append(Text((width / 2, height + LINE_HEIGHT * number), line, size=size))
    drawing.size = (width, height + LINE_HEIGHT * len(lines))
    return drawing


def spots(layout: Layout) -> dict[tuple[str, ...], Spot]:
    """Return where on a live drawing each server is, by its name alone, and each link, by the two places it joins.

    Between regions, that is the gap between two that stand side by side; inside one, its name above the servers.
    """
    drawing = Drawing()
    _place(drawing, layout, NOBODY, NOBODY, live=True)
    boxes, frames = drawing.boxes, dict(zip(layout.regions, drawing.frames, strict=False))
    found: dict[tuple[str, ...], Spot] = {}
    if not frames:
        for one, other in {(min(join.dialler, join.target), max(join.dialler, join.target)) for join in layout.joins()}:
            (x1, y1), (x2, y2) = (boxes[a].edge_towards(boxes[b].middle) for a, b in ((one, other), (other, one)))
            middle, turned = ((x1 + x2) / 2, (y1 + y2) / 2), atan2(y2 - y1, x2 - x1)
            found[one, other] = Spot(middle, hypot(x2 - x1, y2 - y1), TO_HIT, turned)
    for (one, left), (other, right) in pairwise(frames.items()):
        gap = (left.left + left.width + right.left) / 2
        found[one, other] = Spot((gap, left.middle[1]), right.left - left.left - left.width, left.height)
    for region, frame in frames.items():
        if len(layout.regions[region]) > 1:
            found[region, region] = Spot((frame.middle[0], PADDING), SERVER_LIVE, TO_HIT)
        for leaf in [leaf for leaf, where in layout.leaves.items() if where == region]:
            x, length = boxes[leaf].middle[0], boxes[leaf].top - frame.height
            found[leaf, region] = Spot((x, frame.height + length / 2), boxes[leaf].width, length)
    return {**found, **{(name,): Spot(box.middle, box.width, box.height) for name, box in boxes.items()}}


def _place(drawing: Drawing, layout: Layout, publishers: Clients, subscribers: Clients, *, live: bool) -> None:
    """Place the regions side by side, clients at their sides, leaf nodes below."""
    note_width, notes = NOTES if live else (0.0, 0.0)
    frame, title = (PADDING, TITLE) if layout.cluster is None else (0.0, 0.0)
    box, leaf_box = (
        max([SERVER_LIVE if live else 0.0, *(style.CHARACTER_PT * len(name) + 24 for name in names)])
        for names in ([name for names in layout.regions.values() for name in names], layout.leaves)
    )
    side = frame + max(0.0, note_width - box) / 2
    rings = {region: _ring(len(names), box, APART_LIVE if live else APART) for region, names in layout.regions.items()}
    before, after = _client_width(publishers), _client_width(subscribers)
    left, right = before + ARROW * (before > 0), after + ARROW * (after > 0)
    needed = left + right + sum(size[0] + 2 * side for _, size in rings.values()) + BETWEEN * (len(rings) - 1)
    spare = max(0.0, PAGE - needed) / len(rings)
    height = max(size[1] for _, size in rings.values()) + notes + title + 2 * frame
    height = max(height, CLIENT_EVERY * max(len(publishers), len(subscribers)))
    for at, (region, names) in enumerate(layout.regions.items()):
        spots, size = rings[region]
        width = size[0] + 2 * side + spare
        if frame:
            drawing.frames.append(Box(left, 0.0, width, height, "white", style.SHADE))
            drawing.texts.append(Text((left + width / 2, PADDING), region, style.MUTED, weight=BOLD))
        # Of three live regions every second stands lower, so that no two connections lie on one line.
        lower = SERVER / 4 * (-1) ** at if live and len(rings) > 2 else 0.0
        centre = (left + width / 2, (height + title - notes) / 2 + lower)
        for name, (x, y) in zip(names, spots, strict=True):
            drawing.boxes[name] = _around((centre[0] + x, centre[1] + y), box, "#DCEBF7", style.BLUE)
        left += width + BETWEEN
    drawing.size = (max(PAGE, needed), height)
    _add_clients(drawing, publishers, 0.0, before, outwards=False)
    _add_clients(drawing, subscribers, drawing.size[0] - after, after, outwards=True)
    if layout.leaves:
        _place_leaves(drawing, layout, leaf_box, max(leaf_box, note_width), notes)


def _ring(count: int, box: float, room: Point) -> tuple[list[Point], Point]:
    """Return the middles of servers on a ring, from its middle, and its size: the first left, then clockwise."""
    apart = 2 * sin(pi / count)
    across, down = (max(box + 12, room[0]) / apart, room[1] / apart) if count > 1 else (0.0, 0.0)
    angles = [2 * pi * i / count for i in range(count)]
    xs, ys = [-across * cos(angle) for angle in angles], [-down * sin(angle) for angle in angles]
    shift = (max(xs) + min(xs)) / 2
    size = (max(xs) - min(xs) + box, max(ys) - min(ys) + SERVER)
    return [(x - shift, y) for x, y in zip(xs, ys, strict=True)], size


def _place_leaves(drawing: Drawing, layout: Layout, box: float, room: float, notes: float) -> None:
    """Place the leaf nodes below their regions, as near to the middle as those before them allow."""
    step, free, top = room + PADDING, room / 2, drawing.size[1] + TO_LEAVES
    for region, names in layout.regions.items():
        leaves = [leaf for leaf, where in layout.leaves.items() if where == region]
        middle = sum(drawing.boxes[name].middle[0] for name in names) / len(names)
        for number, leaf in enumerate(leaves):
            x = max(free, middle + step * (number - (len(leaves) - 1) / 2))
            drawing.boxes[leaf] = _around((x, top + SERVER / 2), box, "#DDF1EA", style.GREEN)
            free = x + step
    drawing.size = (max(drawing.size[0], free - PADDING - room / 2), top + SERVER + notes)


def _around(middle: Point, width: float, fill: str, edge: str) -> Box:
    return Box(middle[0] - width / 2, middle[1] - SERVER / 2, width, SERVER, fill, edge)


def _client_width(clients: Clients) -> float:
    # The subject is in 9 pt of DejaVu Sans Mono, whose characters are 0.6 as wide as high.
    return max(
        (max(style.CHARACTER_PT * len(name), 5.4 * len(text)) + 14 for name, (_, text) in clients.items()), default=0
    )


def _add_clients(drawing: Drawing, clients: Clients, left: float, width: float, *, outwards: bool) -> None:
    fill, edge = ("#DDF1EA", style.GREEN) if outwards else ("#FDF3DC", style.ORANGE)
    # In the order of their servers' heights, so that few arrows cross.
    order = sorted(clients, key=lambda name: drawing.boxes[clients[name][0]].top)
    for row, name in enumerate(order):
        server, subject = clients[name]
        y = drawing.size[1] / 2 + CLIENT_EVERY * (row - (len(order) - 1) / 2)
        box = drawing.boxes[f"client {name}"] = Box(left, y - CLIENT / 2, width, CLIENT, fill, edge)
        drawing.texts.append(Text((box.middle[0], y - 7), name))
        drawing.texts.append(Text((box.middle[0], y + 8), subject, style.MUTED, 9.0, font="DejaVu Sans Mono"))
        inner = (left if outwards else left + width, y)
        ends = (inner, drawing.boxes[server].edge_towards(inner))
        drawing.lines.append(Line(*(ends[::-1] if outwards else ends), style.INK, 1.3, "arrow"))


def _plan_links(drawing: Drawing, layout: Layout, cuts: Collection[frozenset[str]]) -> None:
    """Draw what joins servers by the layout: routes one by one, gateways and leaf nodes' connections by region."""

    def link(one: str, other: str, start: Point, end: Point, kind: str) -> None:
        cut = frozenset((one, other)) in cuts
        drawing.lines.append(Line(start, end, style.RED if cut else KIND[kind], 2.2, "cut" if cut else ""))

    boxes, frames = drawing.boxes, dict(zip(layout.regions, drawing.frames, strict=False))
    for names in layout.regions.values():
        drawing.lines += [Line(boxes[a].middle, boxes[b].middle, "#8CA9C4") for a, b in combinations(names, 2)]
    for (one, left), (other, right) in pairwise(frames.items()):
        link(one, other, (left.left + left.width, left.middle[1]), (right.left, left.middle[1]), "gateway")
    for leaf, region in layout.leaves.items():
        x = boxes[leaf].middle[0]
        link(leaf, region, (x, frames[region].height), (x, boxes[leaf].top), "leaf")


def _live_links(
    drawing: Drawing,
    layout: Layout,
    snapshots: Mapping[str, ServerSnapshot],
    before: Mapping[str, ServerSnapshot],
    faults: Mapping[frozenset[str], str],
) -> None:
    """Draw the connections that stand, with their rates or what is wrong; a route that does not stand is dashed."""
    pairs: dict[tuple[str, str], str] = {}
    for join in layout.joins():
        if (join.target, join.dialler) not in pairs:
            pairs[join.dialler, join.target] = join.kind
    for (one, other), kind in pairs.items():
        ends, fault = (drawing.boxes[one].middle, drawing.boxes[other].middle), faults.get(frozenset((one, other)), "")
        seen = [(a, b) for a, b in ((one, other), (other, one)) if a in snapshots and b in snapshots[a].peers]
        if seen and one in snapshots and other in snapshots:
            name, peer = seen[0]
            rate = rate_per_s(before.get(name), snapshots[name], peer=peer) or 0.0
            line = Line(*ends, style.RED if fault else KIND[kind], min(THICKEST, 1.2 + 1.1 * log10(1 + rate)))
            text = ", ".join(filter(None, [fault, rate_in_words(rate) if rate >= 1 else ""]))
        elif kind == "route" or fault:
            # A server dials one of each other region, and one of those that a leaf node may dial: the rest is no loss.
            line, text = Line(*ends, style.RED if fault else style.FAINT, look="dashed"), fault
        else:
            continue
        drawing.lines.append(line)
        drawing.texts += [Text(line.below_middle, text, style.RED if fault else style.MUTED, NOTE_PT)] if text else []


def _describe(
    drawing: Drawing, name: str, state: str, snapshot: ServerSnapshot | None, before: ServerSnapshot | None
) -> None:
    """Write a live server's name and state into its box, and what is known of it below."""
    box, colour = drawing.boxes[name], COLOURS.get(state, style.RED)
    drawing.boxes[name] = box._replace(fill="white", edge=colour)
    (x, y), notes, below = box.middle, [], state
    if snapshot is not None:
        if state == "ready" and (rate := rate_per_s(before, snapshot)) is not None:
            below = f"{rate_in_words(rate)} in"
        slow = f"cut off as slow: {snapshot.slow_consumers:,}" if snapshot.slow_consumers else ""
        notes = list(filter(None, [_some("", list(snapshot.clients)), _some("leads ", snapshot.leads), slow]))
    drawing.texts.append(Text((x, y - 6), name, weight=BOLD))
    drawing.texts.append(Text((x, y + 7), below, style.MUTED if state == "ready" else colour, NOTE_PT))
    for number, note in enumerate(notes, 1):
        drawing.texts.append(Text((x, box.top + SERVER + 9.5 * number - 2), note, style.MUTED, NOTE_PT))


def _some(prefix: str, names: Sequence[str]) -> str:
    more = len(names) - SHOWN_CLIENTS
    shown = ", ".join(names[:SHOWN_CLIENTS]) + (f" and {more} more" if more > 0 else "")
    return f"{prefix}{shown}" if names else ""
