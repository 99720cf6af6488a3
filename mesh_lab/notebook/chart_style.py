"""The look that all charts share, and how they show themselves: once, small, and the same on every machine.

A chart is a plain matplotlib ``Figure`` unknown to pyplot, so the notebook's inline backend shows it no second time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY)
INK, MUTED, FAINT, SHADE = "#24292F", "#57606A", "#D8DEE4", "#C5CED6"

WIDTH_IN, DPI, COLOURS = 7.0, 110, 128
LINE_IN = 0.19
"""Height of a line of text."""
CHARACTER_PT = 6.3
"""Width of a character of DejaVu Sans at 10 pt, rather more than less: only what must keep apart is reckoned so."""
TITLE_CHARACTERS = 78

STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture is the same everywhere
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign is money
    "figure.facecolor": "white",  # also where the page is dark
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlecolor": MUTED,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@contextmanager
def new_chart(title: str, *, body_in: float) -> Iterator["Figure"]:
    """Yield an empty figure with its title, drawn upon in the house's style; the reader's own settings stay.

    The title is wrapped to the figure's width, and ``body_in`` is the height below it, in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = fill(title, TITLE_CHARACTERS)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, body_in + LINE_IN * (lines.count("\n") + 1) + 0.3))
        figure.suptitle(lines, x=0.15 / WIDTH_IN, ha="left", linespacing=1.25)
        figure.set_label(title)
        # IPython asks an object for this first, whatever inline backend is configured.
        figure._ipython_display_ = lambda: _display(figure)  # type: ignore[attr-defined]
        yield figure


def number(value: float, _position: object = None) -> str:
    """Write a number as one reads it: ``12,345``, ``3.14``, ``0.0021``; matplotlib may use it for its ticks."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.3g}"


def png(figure: "Figure") -> bytes:
    """Return a chart as the PNG that a notebook shows."""
    from matplotlib import rc_context
    from PIL import Image

    drawn, small = BytesIO(), BytesIO()
    with rc_context(STYLE):  # ticks are made while they are drawn
        figure.savefig(drawn, format="png")
        figure.set_layout_engine("none")  # as it is: laid out again, it might move by a pixel
    # A palette holds all shades of a few colours in a third of the bytes. Pillow, unlike matplotlib, does not
    # write its version into the picture, which would change every picture with it.
    Image.open(drawn).quantize(COLOURS, method=Image.Quantize.FASTOCTREE).save(small, format="png", optimize=True)
    return small.getvalue()


def _display(figure: "Figure") -> None:
    from base64 import b64encode

    from IPython.display import display

    data = {"image/png": b64encode(png(figure)).decode(), "text/plain": f"Chart: {figure.get_label()}"}
    display(data, raw=True)  # type: ignore[no-untyped-call]
