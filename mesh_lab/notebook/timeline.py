"""A timeline: what happened when, one lane for each party; use it as ``charts.timeline``."""

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any

from mesh_lab.notebook.chart_style import CHARACTER_PT, FAINT, INK, LINE_IN, MUTED, PALETTE, WIDTH_IN, new_chart, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LANE_CHARACTERS = 18
LANE_IN, SPAN_IN = 0.4, 0.22


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
    width_pt = 72 * (WIDTH_IN - 0.5) - CHARACTER_PT * max(min(len(lane), LANE_CHARACTERS) for lane in lanes)
    pt_per_s = width_pt / (high - low)
    # A span's label stands inside of it where it fits, between the markers at its ends.
    inside = [CHARACTER_PT * len(text) + 18 <= (end - start) * pt_per_s for start, end, _, text in spans]
    outside = [(start, lane, text) for fits, (start, _, lane, text) in zip(inside, spans, strict=True) if not fits]
    labels = [(lane, (time, text)) for time, lane, text in [*events, *outside] if text]
    stacked = {lane: _stack([one for where, one in labels if where == lane], low, pt_per_s, width_pt) for lane in lanes}
    names = [fill(lane, LANE_CHARACTERS) for lane in lanes]
    rows = [1 + max((row for *_, row in stacked[lane]), default=-1) for lane in lanes]
    feet = [max(LANE_IN, LINE_IN * (name.count("\n") + 1)) / 2 for name in names]
    heights = [foot + max(foot, LANE_IN / 2 + LINE_IN * count) for foot, count in zip(feet, rows, strict=True)]
    levels = {lane: sum(heights[i + 1 :]) + feet[i] for i, lane in enumerate(lanes)}
    with new_chart(title, body_in=sum(heights) + 0.45) as figure:
        axes = figure.subplots()
        for (lane, level), colour in zip(levels.items(), cycle(PALETTE), strict=False):
            axes.axhline(level, color=FAINT, linewidth=1, zorder=0)
            at = [time for time, where, _ in events if where == lane]
            axes.plot(at, [level] * len(at), "o", markersize=7, color=colour, clip_on=False, zorder=4)
            for time, text, side, row in stacked[lane]:
                look: dict[str, Any] = {
                    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8},
                    "arrowprops": {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0,
                                   "relpos": (side == "right", 0.0)},
                }  # fmt: skip
                spot = (0, 72 * (SPAN_IN / 2 + 0.05 + row * LINE_IN))
                axes.annotate(text, (time, level), spot, textcoords="offset points", ha=side, zorder=2, **look)
        for fits, (start, end, lane, text) in zip(inside, spans, strict=True):
            axes.barh(levels[lane], end - start, left=start, height=SPAN_IN, color=FAINT, zorder=3)
            if fits:
                axes.text((start + end) / 2, levels[lane], text, ha="center", va="center", zorder=5)
        axes.set_xlim(low, high)
        axes.set_ylim(0, sum(heights))
        axes.set_yticks(list(levels.values()), names, color=INK)
        axes.tick_params(axis="y", pad=8)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=7, steps=[1, 2, 5, 10])
        axes.xaxis.set_major_formatter(number)
        axes.set_xlabel(x)
    return figure


def _stack(
    wanted: Sequence[tuple[float, str]], low: float, pt_per_s: float, width_pt: float
) -> list[tuple[float, str, str, int]]:
    """Return for each label of a lane its time, text, alignment, and the row in which it overlaps no other.

    The latest goes lowest and comes last: the line from an earlier label to its event passes beside or behind it.
    """
    free_until: list[float] = []
    placed = []
    for time, text in sorted(wanted, reverse=True):
        at, needs = (time - low) * pt_per_s, CHARACTER_PT * len(text)
        side = "right" if at + needs > width_pt and needs <= at else "left"
        start = at - needs if side == "right" else at
        fits = [row for row, until in enumerate(free_until) if start + needs + 6 <= until]
        row = fits[0] if fits else len(free_until)
        free_until[row : row + 1] = [start]
        placed.append((time, text, side, row))
    return placed[::-1]
