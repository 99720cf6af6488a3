"""Charts for results and for the mesh itself, each with a title that states the finding.

Each function returns a matplotlib figure; as the last line of a cell, it shows itself.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from math import log10
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from mesh_lab.notebook import chart_style as style
from mesh_lab.notebook.chart_style import new_chart, number, png
from mesh_lab.notebook.mesh_drawing import regions, topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["bars", "dots", "lines", "new_chart", "percentiles", "png", "regions", "timeline", "topology"]

LABEL_CHARACTERS, HEADING_CHARACTERS = 26, 80
PLOT_IN, PANEL_IN = 3.2, 1.5
LANE_CHARACTERS = 18
LANE_IN, SPAN_IN = 0.4, 0.22


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
    rows = [0.17 + style.LINE_IN * (label.count("\n") + 1) for label in labels]
    middles = [sum(rows[:i]) + row / 2 for i, row in enumerate(rows)]
    with new_chart(title, body_in=sum(rows) + style.LINE_IN) as figure:
        axes = figure.subplots()
        colours = [style.BLUE if highlight in (None, label) else style.SHADE for label in values]
        drawn = axes.barh(middles, list(values.values()), height=0.24, color=colours)
        axes.bar_label(drawn, fmt=number, padding=4)
        if log:
            axes.set_xscale("log")
        axes.set_xlim(min(values.values()) / 3 if log else 0, max(values.values()) or 1)
        axes.set_ylim(sum(rows), 0)
        axes.set_yticks(middles, labels, color=style.INK)
        axes.minorticks_off()
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(unit, loc="left")
    return figure


def lines(
    series: Mapping[str, Mapping[float, float]], *, x: str, y: str, title: str, log: Literal["", "x", "y", "xy"] = ""
) -> "Figure":
    """Draw a line with points for each series; of several, the names stand beside them.

    Args:
        series: For each name, y by x.
        x: What the horizontal axis says, with its unit.
        y: What the vertical axis says, with its unit.
        title: The finding, in a sentence.
        log: Axes with a logarithmic scale; a y axis without one begins at 0.

    Raises:
        ValueError: There is no series, or one has no points, or one that is not positive on a logarithmic axis.
    """
    if not series or not all(series.values()):
        raise ValueError("lines need at least one series, and each at least one point")
    places = sorted({place for points in series.values() for place in points})
    lowest = min(min(points.values()) for points in series.values())
    if ("x" in log and places[0] <= 0) or ("y" in log and lowest <= 0):
        raise ValueError(f"a logarithmic axis needs values above 0, got x from {places[0]} and y from {lowest}")
    with new_chart(title, body_in=PLOT_IN) as figure:
        axes = figure.subplots()
        axes.margins(x=0.02)
        for (name, points), colour, marker in zip(series.items(), cycle(style.PALETTE), cycle("osD^vP"), strict=False):
            xs = sorted(points)
            axes.plot(xs, [points[p] for p in xs], color=colour, marker=marker, label=fill(name, LABEL_CHARACTERS))
        if "x" in log:
            axes.set_xscale("log")
        _value_axis(axes, y, log="y" in log)
        if _far_apart([log10(place) for place in places] if "x" in log else places):
            axes.set_xticks(places)
        axes.xaxis.set_major_formatter(number)
        axes.minorticks_off()
        axes.set_xlabel(x)
        if len(series) > 1:
            _name_lines(axes, [points[max(points)] for points in series.values()])
    return figure


def dots(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, title: str) -> "Figure":
    """Draw a dot for each pair, in a panel for each series; all panels have the same axes.

    Lines would join what was not measured.

    Args:
        series: For each panel, its heading in a few words: the x of every dot, and the y of every dot.
        x: What the horizontal axis says, with its unit.
        y: What the vertical axis says, with its unit; it begins at 0.
        title: The finding, in a sentence.

    Raises:
        ValueError: There is nothing to draw, a panel has more of the one than of the other, or a y is below 0.
    """
    if not series or not all(len(xs) == len(ys) > 0 for xs, ys in series.values()):
        raise ValueError("dots need at least one series, and each as many x as y, 1 or more")
    if (lowest := min(min(ys) for _, ys in series.values())) < 0:
        raise ValueError(f"dots need a y of 0 or more, got {lowest}")
    low, high = min(min(xs) for xs, _ in series.values()), max(max(xs) for xs, _ in series.values())
    whole = all(float(y).is_integer() for _, ys in series.values() for y in ys)
    with new_chart(title, body_in=PANEL_IN * len(series) + 0.3) as figure:
        panels = figure.subplots(len(series), sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (name, (xs, ys)), colour in zip(panels, series.items(), cycle(style.PALETTE), strict=False):
            axes.set_title(fill(name, HEADING_CHARACTERS), color=colour)
            axes.plot(xs, ys, "o", color=colour, markersize=3.6, markeredgewidth=0, clip_on=False)
            axes.locator_params(axis="y", nbins=4, integer=whole)
            axes.yaxis.set_major_formatter(number)
            axes.grid(axis="y")
        axes.set_xlim(*_with_room(low, high if high > low else low + 1))
        axes.set_ylim(0, 1.05 * max(max(ys) for _, ys in series.values()) or 1)
        axes.xaxis.set_major_formatter(number)
        axes.set_xlabel(x)
        figure.supylabel(y, fontsize="medium", color=style.INK)
    return figure


def percentiles(latencies_ms: Mapping[str, Sequence[float]], *, title: str, limit_ms: float | None = None) -> "Figure":
    """Draw which latency so many percent did not exceed, as HDR histograms are drawn; both axes are logarithmic.

    A line ends where its data do: of 1,000 messages, 99.9 % is the last percentile that one message decides.

    Args:
        latencies_ms: Latencies above 0, in any order, by the name of what was measured.
        title: The finding, in a sentence.
        limit_ms: A promise, such as 20 ms, drawn across the chart.

    Raises:
        ValueError: There is nothing to draw, or a latency is not above 0.
    """
    if not latencies_ms or not all(latencies_ms.values()) or min(map(min, latencies_ms.values())) <= 0:
        raise ValueError("percentiles need at least one series, and each at least one latency above 0")
    most = max(10, max(map(len, latencies_ms.values())))
    with new_chart(title, body_in=PLOT_IN) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_xlim(1, most)
        for (name, latencies), colour in zip(latencies_ms.items(), cycle(style.PALETTE), strict=False):
            count = len(latencies)
            # The k-th of n is the percentile k/n; it stands where 1 in n/(n-k) is longer. The longest ends the line.
            places = [count / max(count - k, 1) for k in range(count)]
            axes.step(places, sorted(latencies), where="post", color=colour, label=fill(name, LABEL_CHARACTERS))
        _value_axis(axes, "latency, ms", log=True)
        if limit_ms is not None:
            axes.axhline(limit_ms, color=style.INK, linewidth=1, linestyle="--", zorder=1)
            axes.annotate(f"{number(limit_ms)} ms", (1, limit_ms), (4, 3), textcoords="offset points")
        decades = range(int(log10(most) + 1e-9) + 1)
        # 1 in 10 is 90 %, 1 in 1,000 is 99.9 %.
        axes.set_xticks([10**i for i in decades], [f"{100 - 100 / 10**i:.{max(0, i - 2)}f} %" for i in decades])
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.tick_params(axis="x", pad=7)  # clear of the lowest value beside it
        axes.set_xlabel("percentile")
        _name_lines(axes, [max(latencies) for latencies in latencies_ms.values()])
    return figure


def timeline(
    events: Sequence[tuple[float, str, str]],
    *,
    title: str,
    spans: Sequence[tuple[float, float, str, str]] = (),
    x: str = "seconds",
) -> "Figure":
    """Draw what happened when, such as a redelivery or the death of a server.

    Args:
        events: Time, lane, and a label of a few words; lanes stand in the order in which they first appear.
        title: The finding, in a sentence.
        spans: Shaded stretches: start, end, lane, and a label or ``""``.
        x: What the time axis says, with its unit.

    Raises:
        ValueError: There are no events.
    """
    if not events:
        raise ValueError("a timeline needs at least one event")
    lanes = list(dict.fromkeys([*(lane for _, lane, _ in events), *(lane for _, _, lane, _ in spans)]))
    times = [time for time, _, _ in events] + [time for start, end, _, _ in spans for time in (start, end)]
    low, high = min(times), max(times)
    high = high if high > low else low + 1
    width_pt = 72 * (style.WIDTH_IN - 0.5) - style.CHARACTER_PT * max(min(len(lane), LANE_CHARACTERS) for lane in lanes)
    pt_per_s = width_pt / (high - low)
    # A span's label stands inside of it where it fits, between the markers at its ends.
    inside = [style.CHARACTER_PT * len(text) + 18 <= (end - start) * pt_per_s for start, end, _, text in spans]
    outside = [(start, lane, text) for fits, (start, _, lane, text) in zip(inside, spans, strict=True) if not fits]
    labels = [(lane, (time, text)) for time, lane, text in [*events, *outside] if text]
    stacked = {lane: _stack([one for where, one in labels if where == lane], low, pt_per_s, width_pt) for lane in lanes}
    names = [fill(lane, LANE_CHARACTERS) for lane in lanes]
    rows = [1 + max((row for *_, row in stacked[lane]), default=-1) for lane in lanes]
    feet = [max(LANE_IN, style.LINE_IN * (name.count("\n") + 1)) / 2 for name in names]
    heights = [foot + max(foot, LANE_IN / 2 + style.LINE_IN * count) for foot, count in zip(feet, rows, strict=True)]
    levels = {lane: sum(heights[i + 1 :]) + feet[i] for i, lane in enumerate(lanes)}
    with new_chart(title, body_in=sum(heights) + 0.45) as figure:
        axes = figure.subplots()
        for (lane, level), colour in zip(levels.items(), cycle(style.PALETTE), strict=False):
            axes.axhline(level, color=style.FAINT, linewidth=1, zorder=0)
            at = [time for time, where, _ in events if where == lane]
            axes.plot(at, [level] * len(at), "o", markersize=7, color=colour, clip_on=False, zorder=4)
            for time, text, side, row in stacked[lane]:
                arrow = {"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
                look: dict[str, Any] = {
                    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    "arrowprops": arrow | {"relpos": (side == "right", 0.0)},
                }
                spot = (0, 72 * (SPAN_IN / 2 + 0.05 + row * style.LINE_IN))
                axes.annotate(text, (time, level), spot, textcoords="offset points", ha=side, zorder=2, **look)
        for fits, (start, end, lane, text) in zip(inside, spans, strict=True):
            # The edge is a seam, where one follows another at once.
            axes.barh(levels[lane], end - start, SPAN_IN, start, color=style.FAINT, edgecolor="white", zorder=3)
            if fits:
                axes.text((start + end) / 2, levels[lane], text, ha="center", va="center", zorder=5)
        axes.set_xlim(*_with_room(low, high))
        axes.set_ylim(0, sum(heights))
        axes.set_yticks(list(levels.values()), names, color=style.INK)
        axes.tick_params(axis="y", pad=8)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=7, steps=[1, 2, 5, 10])
        axes.xaxis.set_major_formatter(number)
        axes.set_xlabel(x)
    return figure


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Return limits of an axis of time at which the first and the last marker are seen whole, and 0 if it is near."""
    room = 0.015 * (high - low)
    return low - room if low > 3 * room else min(low - room, 0.0), high + room


def _value_axis(axes: "Axes", y: str, *, log: bool) -> None:
    """Name the vertical axis above it, where a long name has room, and begin it at 0 unless it is logarithmic."""
    from matplotlib.ticker import LogLocator

    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    else:
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 or 1)
    axes.yaxis.set_major_formatter(number)
    axes.grid(axis="y")
    axes.set_title(y)


def _far_apart(places: Sequence[float]) -> bool:
    """Whether every measured place can have its own tick; even ticks in between would claim more."""
    gaps = [after - before for before, after in pairwise(places)]
    return not gaps or min(gaps) >= 0.09 * sum(gaps)


def _name_lines(axes: "Axes", ends: Sequence[float]) -> None:
    """Name the lines on the right, from the one that ends highest to the one that ends lowest."""
    named = [line for _, line in sorted(zip(ends, axes.get_lines(), strict=False), key=lambda pair: -pair[0])]
    axes.legend(handles=named, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _stack(
    wanted: Sequence[tuple[float, str]], low: float, pt_per_s: float, width_pt: float
) -> list[tuple[float, str, str, int]]:
    """Return for each label of a lane its time, text, alignment, and the row in which it overlaps no other.

    The latest goes lowest and comes last: the line from an earlier label to its event passes beside or behind it.
    """
    free_until: list[float] = []
    placed = []
    for time, text in sorted(wanted, reverse=True):
        at, needs = (time - low) * pt_per_s, style.CHARACTER_PT * len(text)
        side = "right" if at + needs > width_pt and needs <= at else "left"
        start = at - needs if side == "right" else at
        fits = [row for row, until in enumerate(free_until) if start + needs + 6 <= until]
        row = fits[0] if fits else len(free_until)
        free_until[row : row + 1] = [start]
        placed.append((time, text, side, row))
    return placed[::-1]
