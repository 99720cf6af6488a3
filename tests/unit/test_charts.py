from base64 import b64decode
from io import BytesIO
from itertools import combinations

import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mesh_lab.notebook.charts import bars, dots, lines, percentiles, png, regions, timeline, topology

LONG = "one order a message, waiting for the acknowledgement of each before the next is sent"
PUBLISHERS = {"publisher": ("n1", "orders.eu.1001.placed"), "web shop": ("n2", "orders.us.1002.placed")}
WORKERS = {f"worker-{i}": (f"n{i}", "orders.*.*.placed") for i in (1, 2, 3)}

CHARTS = {
    "bars": lambda: bars({"worker-1": 1_011, LONG: 987.5, "none": 0}, title=LONG, unit="orders"),
    "lines": lambda: lines(
        {"p50": {1: 0.4, 2: 0.5}, LONG: {1: 0.41, 2: 0.5}}, x="workers", y="latency, ms", title=LONG
    ),
    "logarithmic lines": lambda: lines(
        {"one": {10**i: 10**i for i in range(6)}}, x="payload, bytes", y="orders a second", title=LONG, log="xy"
    ),
    "dots": lambda: dots(
        {LONG: ([0.01 * i for i in range(200)], [0.5] * 200), "one": ([1], [1_234])},
        x="seconds",
        y="latency, ms",
        title=LONG,
    ),
    "a dot": lambda: dots({"one": ([1], [0])}, x="seconds", y="latency, ms", title=LONG),
    "percentiles": lambda: percentiles(
        {LONG: [0.4 + 0.001 * i for i in range(2_000)], "short": [3, 60_000], "close": [3, 61_000]},
        title=LONG,
        limit_ms=20,
    ),
    "timeline": lambda: timeline(
        [(0.1 * i, f"worker-{i % 2}", f"delivery {i}") for i in range(8)] + [(0.75, LONG, "killed")],
        spans=[(0.2, 0.3, "worker-0", "down"), (0.1, 0.7, LONG, "no answer")],
        title=LONG,
    ),
    "one region": lambda: regions({"eu": ["eu-1"]}, title=LONG),
    "three regions": lambda: regions(
        {region: [f"{region}-{i}" for i in (1, 2, 3)] for region in ("eu", "us", "asia")},
        leaves={"store-berlin": "eu", "kiosk": "eu"},
        cut=[("eu", "us"), ("kiosk", "eu")],
        title=LONG,
    ),
    "one server": lambda: topology(["n1"], title=LONG),
    "three servers": lambda: topology(["n1", "n2", "n3"], publishers=PUBLISHERS, subscribers=WORKERS, title=LONG),
    "seven servers": lambda: topology(
        [f"n{i}" for i in range(1, 8)], publishers=PUBLISHERS, subscribers=WORKERS, title=LONG
    ),
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


@pytest.fixture(scope="module", params=CHARTS.values(), ids=CHARTS.keys())
def chart(request):
    return request.param()


@pytest.fixture(scope="module")
def picture(chart):
    return png(chart)


def drawn_texts(figure):
    """All texts that can be seen; matplotlib keeps some tick labels outside of the axes' limits, undrawn."""
    yield from figure.texts
    for axes in figure.axes:
        yield from axes.texts
        yield axes._left_title
        yield from axes.get_legend().get_texts() if axes.get_legend() else ()
        for axis in (axes.xaxis, axes.yaxis):
            yield axis.label
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)


def test_a_chart_is_a_figure_that_states_its_finding(chart):
    assert isinstance(chart, Figure)
    assert LONG in " ".join(texts(chart)).replace("\n", " ")


def overlap(one, other):
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def test_no_text_of_a_chart_is_written_over_another(chart, picture):
    boxes = {text: Text.get_window_extent(text) for text in drawn_texts(chart) if text.get_text()}  # no arrows
    over = [(one, other) for one, other in combinations(boxes, 2) if overlap(boxes[one], boxes[other])]
    assert over == []


def test_nothing_of_a_chart_is_clipped_at_the_edge(chart, picture):
    card = chart.bbox
    for text in drawn_texts(chart):
        if text.get_text():
            box = text.get_window_extent()
            assert card.x0 <= box.x0 < box.x1 <= card.x1, text
            assert card.y0 <= box.y0 < box.y1 <= card.y1, text


def test_a_picture_is_small(chart, picture):
    assert len(picture) < 40_000
    assert b"atplotlib" not in picture
    assert Image.open(BytesIO(picture)).width == 770


def test_a_chart_shows_itself_once_as_the_same_picture_and_pyplot_does_not_know_it(chart, picture, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    chart._ipython_display_()
    assert Gcf.get_all_fig_managers() == []
    assert [set(data) for data in shown] == [{"image/png", "text/plain"}]
    assert b64decode(shown[0]["image/png"]) == picture, "drawn twice, it differs"
    assert shown[0]["text/plain"] == f"Chart: {LONG}"


def test_a_picture_is_white_on_a_dark_page_too(picture):
    pixels = Image.open(BytesIO(picture)).convert("RGBA")
    corners = [(x, y) for x in (0, pixels.width - 1) for y in (0, pixels.height - 1)]
    assert all(min(pixels.getpixel(corner)) > 250 for corner in corners)


def test_the_names_of_lines_stand_in_the_order_of_their_ends():
    chart = lines({"low": {1: 5, 2: 1}, "high": {1: 1, 2: 9}, "middle": {1: 2, 2: 4}}, x="s", y="orders", title="a")
    (axes,) = chart.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["high", "middle", "low"]
    assert lines({"one": {1: 5}}, x="s", y="orders", title="a").axes[0].get_legend() is None


def test_axes_say_what_they_count():
    said = texts(CHARTS["lines"]())
    assert {"workers", "latency, ms"} <= set(said)
    assert "seconds" in texts(CHARTS["timeline"]())


def test_bars_show_their_values_and_unit():
    assert {"1,011", "988", "0", "orders"} <= set(texts(CHARTS["bars"]()))


def test_bars_on_a_logarithmic_scale_show_their_values_too():
    chart = bars({"a": 2_000, "b": 2_000_000}, title="a", unit="orders (logarithmic scale)", log=True)
    assert {"2,000", "2,000,000"} <= set(texts(chart))
    (axes,) = chart.axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < 2_000


def test_measured_places_are_the_ticks_where_there_is_room():
    (axes,) = lines({"a": {1: 10, 2: 20, 5: 30}, "b": {1: 5}}, x="workers", y="orders", title="a").axes
    assert list(axes.get_xticks()) == [1, 2, 5]


def test_every_panel_of_dots_has_the_same_axes_and_only_what_was_measured():
    upper, lower = dots({"a": ([0, 1, 5], [1, 2, 3]), "b": ([2], [8])}, x="s", y="ms", title="a").axes
    assert [list(line.get_xdata()) for line in upper.lines] == [[0, 1, 5]]
    assert [list(line.get_ydata()) for line in lower.lines] == [[8]]
    assert upper.lines[0].get_linestyle() == "None"
    assert upper.get_xlim() == lower.get_xlim()
    assert upper.get_xlim()[0] < 0 < 5 < upper.get_xlim()[1]  # the first dot and the last are seen whole
    assert all(tick.is_integer() for tick in upper.get_yticks())
    assert upper.get_ylim() == lower.get_ylim()
    assert upper.get_ylim()[0] == 0


def test_a_percentile_stands_where_so_many_messages_are_slower():
    latencies = {"a": list(range(1, 101)), "b": [5] * 10}
    (axes,) = percentiles(latencies, title="a", limit_ms=20).axes
    curve, short, limit = (dict(zip(*line.get_data(), strict=True)) for line in axes.lines)
    assert curve[1] == 1
    # 90 of 100 do not exceed 90; the 91st is the first that only 1 in 10 reaches.
    assert curve[10] == 91
    assert max(curve) == 100
    assert curve[100] == 100
    assert max(short) == 10
    assert set(limit.values()) == {20}
    png(axes.figure)  # ticks get their words when they are drawn
    assert {"90 %", "99 %", "20 ms", "percentile", "latency, ms"} <= set(texts(axes.figure))
    assert "99.9 %" not in texts(axes.figure)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: bars({}, title="a", unit="b"), "bars need values"),
        (lambda: bars({"a": -1}, title="a", unit="b"), "bars need values"),
        (lambda: bars({"a": 1, "b": 0}, title="a", unit="b", log=True), "bars need values above 0"),
        (lambda: lines({}, x="a", y="b", title="c"), "at least one series"),
        (lambda: lines({"a": {}}, x="a", y="b", title="c"), "at least one point"),
        (lambda: lines({"a": {0: 1}}, x="a", y="b", title="c", log="x"), "logarithmic axis"),
        (lambda: dots({}, x="a", y="b", title="c"), "at least one series"),
        (lambda: dots({"a": ([], [])}, x="a", y="b", title="c"), "1 or more"),
        (lambda: dots({"a": ([1, 2], [1])}, x="a", y="b", title="c"), "as many x as y"),
        (lambda: dots({"a": ([1], [-1])}, x="a", y="b", title="c"), "a y of 0 or more, got -1"),
        (lambda: percentiles({}, title="a"), "at least one series"),
        (lambda: percentiles({"a": [1], "b": []}, title="a"), "at least one latency"),
        (lambda: percentiles({"a": [1, 0]}, title="a"), "at least one latency above 0"),
        (lambda: regions({}, title="a"), "expected 1 to 3 regions"),
        (lambda: regions({"eu": ["eu-1"]}, leaves={"kiosk": "us"}, title="a"), "that include .'us'."),
        (lambda: timeline([], title="a"), "at least one event"),
        (lambda: topology([], title="a"), "expected 1 to 7 servers"),
        (lambda: topology(["n1"], publishers={"shop": ("n4", "a")}, title="a"), "that include"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(draw, said):
    with pytest.raises(ValueError, match=said):
        draw()
