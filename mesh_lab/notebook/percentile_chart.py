"""Latency by percentile, as HDR histograms are drawn; use it as ``charts.percentiles``.

Each step to the right is ten times as rare: 90 %, 99 %, 99.9 %. What a mean hides lies at the right edge.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import log10
from textwrap import fill
from typing import TYPE_CHECKING

from mesh_lab.notebook.chart_style import (
    INK,
    LINE_IN,
    MARGIN_IN,
    MUTED,
    PALETTE,
    WIDTH_IN,
    X_AXIS_IN,
    axes_in,
    card,
    house_style,
    number,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME_CHARACTERS = 20
PLOT_IN = 2.9


def percentiles(
    latencies_ms: Mapping[str, Sequence[float]],
    *,
    title: str,
    limit_ms: float | None = None,
    y: str = "latency, ms",
) -> "Figure":
    """Draw which latency so many percent did not exceed; both axes are logarithmic.

    A line ends where its data do: of 1,000 messages, 99.9 % is the last percentile that one message decides.

    Args:
        latencies_ms: Latencies above 0, in any order, by the name of what was measured.
        title: The finding, in a sentence.
        limit_ms: A promise, such as 20 ms, drawn across the chart.
        y: What the vertical axis says, with its unit.

    Raises:
        ValueError: There is nothing to draw, or a latency is not above 0.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    if not latencies_ms or not all(latencies_ms.values()) or min(map(min, latencies_ms.values())) <= 0:
        raise ValueError("percentiles need at least one series, and each at least one latency above 0")
    names = [fill(name, NAME_CHARACTERS) for name in latencies_ms]
    most = max(10, max(map(len, latencies_ms.values())))
    longest = max(map(max, latencies_ms.values()))
    with house_style():
        figure, top = card(title, body_in=PLOT_IN)
        left = MARGIN_IN + max(text_width(number(10.0 * longest)), 0.45) + 0.15
        right = MARGIN_IN + max(map(text_width, names)) + 0.3
        axes = axes_in(figure, left, right, MARGIN_IN + X_AXIS_IN, top - LINE_IN - 0.08)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(1, most)
        ends = []
        for name, colour in zip(latencies_ms, cycle(PALETTE), strict=False):
            ordered = sorted(latencies_ms[name])
            count = len(ordered)
            # The k-th of n is the percentile k/n; it stands where 1 in n/(n-k) is longer. The longest ends the line.
            places = [count / max(count - k, 1) for k in range(count)]
            axes.step(places, ordered, where="post", color=colour, linewidth=1.8)
            ends.append((places[-1], ordered[-1]))
        if limit_ms is not None:
            axes.axhline(limit_ms, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{number(limit_ms)} ms", (1, limit_ms), (4, 3), textcoords="offset points", color=INK, va="bottom"
            )
        axes.xaxis.set_major_locator(FixedLocator([10**i for i in range(int(log10(most) + 1e-9) + 1)]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: _percent(place)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="both")
        axes.tick_params(length=0)
        axes.tick_params(axis="x", pad=7)  # clear of the lowest value beside it
        axes.set_xlabel("percentile", labelpad=5)
        figure.text(MARGIN_IN / WIDTH_IN, top / figure.get_figheight(), y, color=MUTED, va="top")
        to_axes = axes.transData + axes.transAxes.inverted()
        height_in = axes.get_position().height * figure.get_figheight()
        lowest_free = -1.0
        for i in sorted(range(len(names)), key=lambda i: ends[i][1]):
            x, at = to_axes.transform(ends[i])
            tall = LINE_IN * (names[i].count("\n") + 1)
            at = max(at * height_in, lowest_free + tall / 2)
            lowest_free = at + tall / 2
            axes.text(
                x + 0.015,
                at / height_in,
                names[i],
                color=PALETTE[i % len(PALETTE)],
                transform=axes.transAxes,
                va="center",
            )
    return figure


def _percent(place: float) -> str:
    """Write the percentile that 1 in so many exceeds: 10 is 90 %, 1,000 is 99.9 %."""
    digits = max(0, round(log10(place)) - 2)
    return f"{100 - 100 / place:.{digits}f} %"
