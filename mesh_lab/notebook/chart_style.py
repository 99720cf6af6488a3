"""The look that all charts share, and how they show themselves: once, small, and the same on every machine.

A chart is a plain matplotlib ``Figure`` that pyplot does not know: the notebook's inline backend, which shows
every figure pyplot knows when a cell ends, cannot show it a second time, and nothing has to be closed.
"""

from contextlib import AbstractContextManager
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY)
INK, MUTED, FAINT, SHADE = "#24292F", "#57606A", "#D8DEE4", "#C5CED6"

FONT_PT = 10.0
DPI = 110
COLOURS = 128
WIDTH_IN = 7.0
MARGIN_IN = 0.2
LINE_IN = 1.35 * FONT_PT / 72
X_AXIS_IN = 0.42  # tick labels and the name of a horizontal axis
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture is the same everywhere
    "font.size": FONT_PT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.parse_math": False,  # a dollar sign is money
}


def house_style() -> AbstractContextManager[None]:
    """Return the context in which a chart is drawn; the reader's own settings stay as they are."""
    from matplotlib import rc_context

    return rc_context(STYLE)


def text_width(text: str, *, bold: bool = False, mono: bool = False) -> float:
    """Return the width of a text's longest line, in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(
        family="DejaVu Sans Mono" if mono else "DejaVu Sans", size=FONT_PT, weight="bold" if bold else "normal"
    )
    # A box around the glyphs leaves out spaces at the ends; two bars keep them in.
    bars = TextPath((0, 0), "||", prop=font).get_extents().width
    lines = (TextPath((0, 0), f"|{line}|", prop=font).get_extents().width for line in text.split("\n"))
    return float(max(lines) - bars) / 72


def number(value: float) -> str:
    """Write a number as one reads it: ``12,345``, ``3.14``, ``0.0021``."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def card(title: str, *, body_in: float) -> tuple["Figure", float]:
    """Return a figure with its title on a white card, and the height in inches where the body ends.

    The card is white with transparent corners: dark ink on it reads on a light page and on a dark one.

    Args:
        title: The finding, in a sentence; wrapped to the card's width.
        body_in: Height below the title, in inches, margins not counted.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    per_character = text_width(title, bold=True) / max(1, len(title))
    lines = wrap(title, int((WIDTH_IN - 2 * MARGIN_IN) / max(per_character, 0.01)))
    top = MARGIN_IN + body_in
    height = top + 0.12 + len(lines) * LINE_IN + MARGIN_IN
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="none")
    corner = 0.1
    figure.add_artist(
        FancyBboxPatch(
            (corner / WIDTH_IN, corner / height),
            1 - 2 * corner / WIDTH_IN,
            1 - 2 * corner / height,
            boxstyle=f"round,pad={corner / WIDTH_IN},rounding_size={corner / WIDTH_IN}",
            mutation_aspect=WIDTH_IN / height,
            facecolor="white",
            edgecolor="none",
            transform=figure.transFigure,
            zorder=-10,
        )
    )
    figure.text(
        MARGIN_IN / WIDTH_IN,
        1 - MARGIN_IN / height,
        "\n".join(lines),
        weight="bold",
        va="top",
        linespacing=1.25,
    )
    figure.set_label(title)
    # IPython asks an object for this first, whatever inline backend is configured.
    figure._ipython_display_ = lambda: _display(figure)  # type: ignore[attr-defined]
    return figure, top


def axes_in(figure: "Figure", left: float, right: float, bottom: float, top: float) -> "Axes":
    """Return axes inside a card.

    Args:
        figure: The card.
        left: Inches from the card's left edge.
        right: Inches from its right edge.
        bottom: Inches from its bottom edge to the axes'.
        top: Inches from its bottom edge to the axes' top.
    """
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, (width - left - right) / width, (top - bottom) / height))


def png(figure: "Figure") -> bytes:
    """Return a chart as the PNG that a notebook shows."""
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # A palette holds all shades of a few colours in a third of the bytes. Pillow, unlike matplotlib, does not
    # write its version into the picture, which would change every picture with it.
    Image.open(drawn).quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(small, format="png", optimize=True)
    return small.getvalue()


def _display(figure: "Figure") -> None:
    from base64 import b64encode

    from IPython.display import display

    data = {"image/png": b64encode(png(figure)).decode(), "text/plain": f"Chart: {figure.get_label()}"}
    display(data, raw=True)  # type: ignore[no-untyped-call]
