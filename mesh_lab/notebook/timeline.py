"""A timeline: what happened when, one lane for each party; use it as ``charts.timeline``."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING

from mesh_lab.notebook.chart_style import (
    FAINT,
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

LANE_CHARACTERS = 18
SPAN_IN = 0.22
AXIS_IN = 0.18  # from the bottom of a lane to the line on which its events stand
LABELS_IN = 0.33  # and to the lowest label
GAP_IN = 0.12


@dataclass(frozen=True, slots=True)
class _Label:
    time: float
    text: str
    left_in: float
    row: int


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
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not events:
        raise ValueError("a timeline needs at least one event")
    lanes = list(dict.fromkeys([*(lane for _, lane, _ in events), *(lane for _, _, lane, _ in spans)]))
    names = [fill(lane, LANE_CHARACTERS) for lane in lanes]
    times = [time for time, _, _ in events] + [time for start, end, _, _ in spans for time in (start, end)]
    low, high = min(times), max(times)
    high = high if high > low else low + 1
    left = MARGIN_IN + max(map(text_width, names)) + 0.22
    width = WIDTH_IN - left - MARGIN_IN - 0.1
    inches = width / (high - low)
    # A span's label stands inside of it where it fits, between the markers at its ends.
    inside = [text_width(text) + 0.25 <= (end - start) * inches for start, end, _, text in spans]
    with house_style():
        wanted = [(time, lane, text) for time, lane, text in events if text]
        wanted += [
            (start, lane, text) for fits, (start, _, lane, text) in zip(inside, spans, strict=True) if text and not fits
        ]
        labels = {
            lane: _stack([(t, text) for t, of, text in wanted if of == lane], low, inches, width) for lane in lanes
        }
        heights = []
        for lane, name in zip(lanes, names, strict=True):
            rows = 1 + max((label.row for label in labels[lane]), default=0)
            heights.append(max(LABELS_IN + rows * LINE_IN + 0.08, (name.count("\n") + 1) * LINE_IN + 0.1))
        figure, top = card(title, body_in=sum(heights) + X_AXIS_IN)
        axes = axes_in(figure, left, MARGIN_IN + 0.1, MARGIN_IN + X_AXIS_IN, top)
        levels = {lane: sum(heights[i + 1 :]) + AXIS_IN for i, lane in enumerate(lanes)}
        colours = dict(zip(lanes, cycle(PALETTE), strict=False))
        for lane, level in levels.items():
            axes.axhline(level, color=FAINT, linewidth=1, zorder=0)
            for label in labels[lane]:
                foot = level - AXIS_IN + LABELS_IN + label.row * LINE_IN
                axes.plot([label.time, label.time], [level, foot], color=MUTED, linewidth=0.7, zorder=1)
                patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                axes.text(low + label.left_in / inches, foot, label.text, bbox=patch, zorder=2)
        for fits, (start, end, lane, text) in zip(inside, spans, strict=True):
            axes.barh(levels[lane], end - start, left=start, height=SPAN_IN, color=FAINT, zorder=3)
            if fits:
                axes.text((start + end) / 2, levels[lane], text, ha="center", va="center", zorder=5)
        for time, lane, _ in events:
            axes.plot(time, levels[lane], "o", markersize=7, color=colours[lane], clip_on=False, zorder=4)
        axes.set_xlim(low, high)
        axes.set_ylim(0, sum(heights))
        axes.set_yticks(list(levels.values()), names, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.tick_params(length=0)
        axes.tick_params(axis="y", pad=11)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(x)
    return figure


def _stack(wanted: Sequence[tuple[float, str]], low: float, in_per_s: float, width: float) -> list[_Label]:
    """Give each label of a lane a row in which it overlaps no other.

    The latest goes lowest: then the line from an earlier label down to its event passes no later label.
    """
    free_until: list[float] = []
    placed = []
    for time, text in sorted(wanted, reverse=True):
        needs = text_width(text)
        start = max(0.0, min((time - low) * in_per_s, width - needs))
        fits = [row for row, until in enumerate(free_until) if start + needs + GAP_IN <= until]
        row = fits[0] if fits else len(free_until)
        free_until[row : row + 1] = [start]
        placed.append(_Label(time, text, start, row))
    return placed
