"""A drawing of regions, the gateways between them, and leaf nodes at their edge; use it as ``charts.regions``."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
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

SERVER_IN, GAP_IN, REGION_GAP_IN, LEAF_GAP_IN = 0.62, 0.12, 0.3, 0.45
Place = tuple[float, float]


def regions(
    servers: Mapping[str, Sequence[str]],
    *,
    title: str,
    leaves: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    cut: Collection[tuple[str, str]] = (),
) -> "Figure":
    """Draw each region as a box of its servers, gateways between the regions, and leaf nodes below theirs.

    Args:
        servers: Servers of each region, 1 to 3 regions, as ``mesh.layout.regions`` has them.
        title: The finding, in a sentence.
        leaves: Region that each leaf node is connected to, as ``mesh.layout.leaves`` has them.
        notes: A word or two below the name of a server or a leaf node, such as ``"leader"``.
        cut: Pairs of regions, or of a leaf node and its region, whose connection is cut.

    Raises:
        ValueError: There are no regions or more than 3, or a leaf node, a note or a cut names something else.
    """
    leaves, notes = dict(leaves or {}), dict(notes or {})
    places = {*servers, *leaves, *(name for names in servers.values() for name in names)}
    named = {*leaves.values(), *notes, *(place for pair in cut for place in pair)}
    if not 1 <= len(servers) <= 3 or not named <= places:
        raise ValueError(f"expected 1 to 3 regions that include {sorted(named)}, got {sorted(places)}")
    cuts = {frozenset(pair) for pair in cut}
    height = LINE_IN + 0.2 + SERVER_IN
    body = height + (LEAF_GAP_IN + SERVER_IN if leaves else 0) + 0.1
    with house_style():
        figure, top = card(title, body_in=body)
        axes = axes_in(figure, 0, 0, 0, figure.get_figheight())
        axes.set_xlim(0, WIDTH_IN)
        axes.set_ylim(0, figure.get_figheight())
        axes.axis("off")
        width = (WIDTH_IN - 2 * MARGIN_IN - 2 * REGION_GAP_IN * (len(servers) - 1)) / len(servers)
        foot, middles = top - height, {}
        for number, (region, names) in enumerate(servers.items()):
            left = MARGIN_IN + number * (width + 2 * REGION_GAP_IN)
            middles[region] = left + width / 2
            _box(axes, (left, foot), (width, height), facecolor="#F6F8FA", edgecolor=MUTED, linewidth=1.2)
            axes.text(left + 0.12, top - 0.08, region, weight="bold", va="top")
            each = (width - GAP_IN * (len(names) + 1)) / len(names)
            for at, name in enumerate(names):
                _server(axes, name, notes.get(name, ""), (left + GAP_IN + at * (each + GAP_IN), foot + 0.1), each)
        order = list(servers)
        for one, other in pairwise(order):
            ends = (middles[one] + width / 2, middles[other] - width / 2)
            _link(axes, (ends[0], foot + height / 2), (ends[1], foot + height / 2), cut=frozenset((one, other)) in cuts)
        for region in order:
            _leaves(axes, [leaf for leaf in leaves if leaves[leaf] == region], region, middles, foot, notes, cuts)
    return figure


def _leaves(
    axes: "Axes",
    names: Sequence[str],
    region: str,
    middles: Mapping[str, float],
    foot: float,
    notes: Mapping[str, str],
    cuts: Collection[frozenset[str]],
) -> None:
    widths = [max(text_width(name, bold=True), text_width(notes.get(name, ""))) + 0.3 for name in names]
    together = sum(widths) + GAP_IN * (len(names) - 1)
    left = min(max(middles[region] - together / 2, MARGIN_IN), WIDTH_IN - MARGIN_IN - together)
    above = foot - LEAF_GAP_IN
    for name, width in zip(names, widths, strict=True):
        middle = left + width / 2
        _link(axes, (middle, above), (middle, foot), cut=frozenset((name, region)) in cuts)
        _server(axes, name, notes.get(name, ""), (left, above - SERVER_IN), width, leaf=True)
        left += width + GAP_IN


def _box(axes: "Axes", corner: Place, size: Place, **look: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.07", **look))


def _server(axes: "Axes", name: str, note: str, corner: Place, width: float, *, leaf: bool = False) -> None:
    fill, edge = ("#DDF1EA", GREEN) if leaf else ("#DCEBF7", BLUE)
    _box(axes, corner, (width, SERVER_IN), facecolor=fill, edgecolor=edge, linewidth=1.5, zorder=4)
    middle, height = corner[0] + width / 2, corner[1] + SERVER_IN / 2
    half = LINE_IN / 2 if note else 0.0
    axes.text(middle, height + half, name, weight="bold", ha="center", va="center", zorder=5)
    if note:
        axes.text(middle, height - half, note, color=MUTED, ha="center", va="center", zorder=5)


def _link(axes: "Axes", one: Place, other: Place, *, cut: bool) -> None:
    axes.plot(
        [one[0], other[0]],
        [one[1], other[1]],
        color=RED if cut else INK,
        linestyle=(0, (2, 2)) if cut else "-",
        linewidth=2.2,
        zorder=3,
    )
    if cut:
        middle = ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2)
        axes.plot(*middle, marker="x", color=ORANGE, markersize=11, markeredgewidth=3, zorder=6)
