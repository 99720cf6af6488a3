"""A dot for each message, a panel for each way to look at them; use it as ``charts.dots``.

Lines would join what nobody measured: where no message left, there must be nothing to see.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

from mesh_lab.notebook.chart_style import (
    LINE_IN,
    MARGIN_IN,
    MUTED,
    PALETTE,
    X_AXIS_IN,
    axes_in,
    card,
    house_style,
    number,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_IN = 1.25
GAP_IN = 0.12
NAME_CHARACTERS = 80


def dots(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    title: str,
) -> "Figure":
    """Draw a dot for each pair, in a panel for each series; all panels have the same axes, so that they compare.

    Args:
        series: For each panel, its heading in a few words: the x of every dot, and the y of every dot.
        x: What the horizontal axis says, with its unit.
        y: What the vertical axis says, with its unit; it begins at 0.
        title: The finding, in a sentence.

    Raises:
        ValueError: There is nothing to draw, a panel has more of the one than of the other, or a y is below 0.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not series or not all(len(xs) == len(ys) > 0 for xs, ys in series.values()):
        raise ValueError("dots need at least one series, and each as many x as y, 1 or more")
    if (lowest := min(min(ys) for _, ys in series.values())) < 0:
        raise ValueError(f"dots need a y of 0 or more, got {lowest}")
    low, high = min(min(xs) for xs, _ in series.values()), max(max(xs) for xs, _ in series.values())
    top_y = max(max(ys) for _, ys in series.values()) or 1.0
    headings = [fill(name, NAME_CHARACTERS) for name in series]
    with house_style():
        tall = [LINE_IN * (heading.count("\n") + 1) + 0.06 for heading in headings]
        figure, top = card(
            title, body_in=LINE_IN + 0.08 + sum(tall) + len(tall) * (PANEL_IN + GAP_IN) - GAP_IN + X_AXIS_IN
        )
        width, height = figure.get_size_inches()
        left = MARGIN_IN + max(text_width(number(top_y)), 0.3) + 0.15
        figure.text(MARGIN_IN / width, top / height, y, color=MUTED, va="top")
        ceiling = top - LINE_IN - 0.08
        for (xs, ys), heading, above, colour in zip(series.values(), headings, tall, cycle(PALETTE), strict=False):
            figure.text(left / width, ceiling / height, heading, color=colour, va="top", linespacing=1.1)
            ceiling -= above + PANEL_IN
            axes = axes_in(figure, left, MARGIN_IN + 0.15, ceiling, ceiling + PANEL_IN)
            axes.plot(xs, ys, "o", color=colour, markersize=3.6, markeredgewidth=0, clip_on=False)
            axes.set_xlim(low, high if high > low else low + 1)
            axes.set_ylim(0, 1.05 * top_y)
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.grid(axis="y")
            axes.tick_params(length=0, labelbottom=False)
            ceiling -= GAP_IN
        axes.tick_params(labelbottom=True, pad=5)
        axes.set_xlabel(x, labelpad=5)
    return figure
