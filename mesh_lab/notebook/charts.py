"""Charts for results and for the mesh itself, each with a title that states the finding.

Each function returns a matplotlib figure; as the last line of a cell, it shows itself.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from math import log10
from textwrap import fill
from typing import TYPE_CHECKING, Literal

from mesh_lab.notebook.chart_style import (
    BLUE,
    INK,
    LINE_IN,
    MARGIN_IN,
    MUTED,
    PALETTE,
    SHADE,
    WIDTH_IN,
    X_AXIS_IN,
    axes_in,
    card,
    house_style,
    number,
    png,
    text_width,
)
from mesh_lab.notebook.dots_chart import dots
from mesh_lab.notebook.percentile_chart import percentiles
from mesh_lab.notebook.timeline import timeline
from mesh_lab.notebook.topology import topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "dots", "lines", "percentiles", "png", "timeline", "topology"]

LABEL_CHARACTERS = 26
BAR_IN = 0.24
PLOT_IN = 2.9


def bars(
    values: Mapping[str, float], *, title: str, unit: str, highlight: str | None = None, log: bool = False
) -> "Figure":
    """Draw a horizontal bar for each value, with the value at its end.

    Args:
        values: Not negative, by label; drawn from top to bottom.
        title: The finding, in a sentence.
        unit: What the values count, such as ``"orders a second"``.
        highlight: Label of the one bar that the title speaks of; the others step back.
        log: A logarithmic scale, on which equal steps are equal factors; say so in ``unit``.

    Raises:
        ValueError: There are no values, or one is negative, or not above 0 on a logarithmic scale.
    """
    if not values or min(values.values()) < 0 or (log and min(values.values()) == 0):
        raise ValueError(f"bars need values {'above 0' if log else 'of 0 or more'}, got {dict(values)!r}")
    labels = [fill(label, LABEL_CHARACTERS) for label in values]
    with house_style():
        rows = [max(BAR_IN + 0.12, LINE_IN * (label.count("\n") + 1) + 0.1) for label in labels]
        figure, top = card(title, body_in=sum(rows) + LINE_IN)
        left = MARGIN_IN + max(map(text_width, labels)) + 0.1
        right = max(text_width(number(value)) for value in values.values()) + MARGIN_IN + 0.1
        axes = axes_in(figure, left, right, MARGIN_IN + LINE_IN, top)
        middles = [sum(rows) - sum(rows[:i]) - row / 2 for i, row in enumerate(rows)]
        colours = [BLUE if highlight in (None, label) else SHADE for label in values]
        drawn = axes.barh(middles, list(values.values()), height=BAR_IN, color=colours)
        axes.bar_label(drawn, labels=[number(value) for value in values.values()], padding=4)
        if log:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xlim(min(values.values()) / 3 if log else 0, max(values.values()) or 1)
        axes.set_ylim(0, sum(rows))
        axes.set_yticks(middles, labels, color=INK)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel(unit, loc="left", labelpad=4)
    return figure


def lines(
    series: Mapping[str, Mapping[float, float]],
    *,
    x: str,
    y: str,
    title: str,
    log: Literal["", "x", "y", "xy"] = "",
) -> "Figure":
    """Draw a line with points for each series, named at its end.

    Args:
        series: For each name, y by x.
        x: What the horizontal axis says, with its unit.
        y: What the vertical axis says, with its unit.
        title: The finding, in a sentence.
        log: Axes with a logarithmic scale; a y axis without one begins at 0.

    Raises:
        ValueError: There is no series, or one has no points, or one that is not positive on a logarithmic axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not series or not all(series.values()):
        raise ValueError("lines need at least one series, and each at least one point")
    places = sorted({place for points in series.values() for place in points})
    lowest = min(min(points.values()) for points in series.values())
    if ("x" in log and places[0] <= 0) or ("y" in log and lowest <= 0):
        raise ValueError(f"a logarithmic axis needs values above 0, got x from {places[0]} and y from {lowest}")
    names = [fill(name, LABEL_CHARACTERS) for name in series]
    with house_style():
        figure, top = card(title, body_in=PLOT_IN)
        named = len(series) > 1
        right = MARGIN_IN + (max(map(text_width, names)) + 0.12 if named else 0.15)
        high = max(max(points.values()) for points in series.values())
        left = MARGIN_IN + max(text_width(number(high)), 0.3) + 0.15
        axes = axes_in(figure, left, right, MARGIN_IN + X_AXIS_IN, top - LINE_IN - 0.08)
        for points, colour, marker in zip(series.values(), cycle(PALETTE), cycle("osD^vP"), strict=False):
            xs = sorted(points)
            axes.plot(xs, [points[p] for p in xs], color=colour, marker=marker, markersize=4.5, linewidth=1.8)
        axes.margins(x=0.02)
        if "x" in log:
            axes.set_xscale("log")
        if "y" in log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        else:
            axes.set_ylim(0, 1.05 * high or 1)
        if _far_apart([log10(place) for place in places] if "x" in log else places):
            axes.set_xticks(places)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.minorticks_off()
        axes.set_xlabel(x, labelpad=5)
        figure.text(MARGIN_IN / WIDTH_IN, top / figure.get_figheight(), y, color=MUTED, va="top")
        if named:
            ends = [points[max(points)] for points in series.values()]
            _name_lines(axes, names, ends, axes.get_position().height * figure.get_figheight())
    return figure


def _far_apart(places: Sequence[float]) -> bool:
    """Say whether every measured place can have its own tick; even ticks in between would claim more."""
    gaps = [after - before for before, after in pairwise(places)]
    return not gaps or min(gaps) >= 0.09 * sum(gaps)


def _name_lines(axes: "Axes", names: Sequence[str], ends: Sequence[float], height_in: float) -> None:
    """Write each name beside the end of its line, and push names apart that would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [to_axes.transform((axes.get_xlim()[1], end))[1] * height_in for end in ends]
    order = sorted(range(len(names)), key=lambda i: wanted[i])
    heights = [LINE_IN * (name.count("\n") + 1) for name in names]
    places = dict(enumerate(wanted))
    # Upwards until nothing overlaps, then back down from the top edge.
    for below, above in pairwise(order):
        places[above] = max(places[above], places[below] + (heights[below] + heights[above]) / 2)
    ceiling = height_in + LINE_IN / 2
    for i in reversed(order):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    for i, (name, colour) in enumerate(zip(names, cycle(PALETTE), strict=False)):
        spot = (1.015, places[i] / height_in)
        axes.text(*spot, name, color=colour, transform=axes.transAxes, va="center", linespacing=1.1)
