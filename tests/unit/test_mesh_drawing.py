"""The drawing of a mesh: well-formed, inside its frame, and telling what stands from what does not."""

from itertools import combinations
from xml.etree import ElementTree

import pytest

from mesh_lab.notebook.mesh_drawing import Drawing, draw, spots
from mesh_lab.observe.snapshots import ServerSnapshot, StreamSnapshot, in_words, rate_per_s, snapshot
from mesh_lab.servers.layout import Layout, plan

SVG = "{http://www.w3.org/2000/svg}"


def look(
    *peers: str, at_s: float = 1.0, in_msgs: int = 0, passed: int = 0, server_id: str = "N1", name: str = "n1", **more
) -> ServerSnapshot:
    return ServerSnapshot(
        name=name, at_s=at_s, server_id=server_id, in_msgs=in_msgs, slow_consumers=more.pop("slow", 0),
        clients=dict.fromkeys(more.pop("clients", ()), passed), streams=more.pop("streams", ()),
        waiting=more.pop("waiting", {}), peers=dict.fromkeys(peers, passed),
    )  # fmt: skip


def live(layout: Layout, looks=None, before=None, states=None, **more) -> Drawing:
    states = states or dict.fromkeys(layout.servers, "ready")
    below = in_words(looks or {}, before or {})
    return draw(layout, states=states, snapshots=looks or {}, before=before or {}, below=below, **more)


def drawn(layout: Layout, looks=None, before=None, states=None, **more) -> ElementTree.Element:
    return ElementTree.fromstring(live(layout, looks, before, states, **more).svg("a <mesh>"))


def texts(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "layout",
    [
        plan(1, None, ()),
        plan(3, None, ()),
        plan(7, None, ()),
        Layout({"mesh": ("one", "other")}, {}, cluster="mesh"),
        Layout({"mesh": tuple("abcdefghijkl")}, {}, cluster="mesh"),
        plan(1, {"eu": 3, "us": 3}, ["store-berlin", "store-paris"]),
        plan(1, {"eu": 5, "us": 1, "asia": 3}, ["store"]),
    ],
    ids=[
        "one",
        "three",
        "seven",
        "two of others",
        "twelve of others",
        "two regions and two stores",
        "three regions and a store",
    ],
)
@pytest.mark.parametrize("kind", ["live", "still"])
def test_every_box_is_inside_the_drawing_and_on_no_other(layout, kind):
    drawing = live(layout) if kind == "live" else draw(layout if layout.cluster is None else plan(7, None, ()))
    width, height = drawing.size
    boxes = list(drawing.boxes.values())
    assert all(box.left > -0.01 and box.top > -0.01 for box in boxes)
    assert all(box.left + box.width < width + 0.01 and box.top + box.height < height + 0.01 for box in boxes)
    for one, other in combinations(boxes, 2):
        apart_x = abs(one.middle[0] - other.middle[0]) - (one.width + other.width) / 2
        apart_y = abs(one.middle[1] - other.middle[1]) - (one.height + other.height) / 2
        assert apart_x >= 0 or apart_y >= 0, (one, other)
        if one in boxes[: len(boxes) - len(layout.leaves)] and drawing.frames:
            assert any(
                frame.left <= one.left and one.left + one.width <= frame.left + frame.width for frame in drawing.frames
            )


def test_a_mesh_is_drawn_on_white_inside_a_frame_with_words_for_it():
    layout = plan(1, {"eu": 3, "us": 3}, ["store"])
    svg = drawn(layout)
    assert svg.find(f"{SVG}title").text == "a <mesh>"
    background = next(svg.iter(f"{SVG}rect")).attrib
    assert background["fill"] == "white"
    assert [float(background[side]) for side in ("x", "y", "width", "height")] == pytest.approx(
        [float(side) for side in svg.attrib["viewBox"].split()], abs=0.5
    )
    assert len(list(svg.iter(f"{SVG}rect"))) == 1 + 2 + len(layout.servers)
    assert {"eu", "us", *layout.servers} <= set(texts(svg))


def test_a_route_that_stands_is_drawn_through_and_one_that_does_not_is_dashed():
    looks = {"n1": look("n2"), "n2": look("n1"), "n3": look()}
    lines = list(drawn(plan(3, None, ()), looks).iter(f"{SVG}line"))
    assert ["stroke-dasharray" in line.attrib for line in lines].count(True) == 2
    assert len(lines) == 3


def test_what_passes_is_written_on_the_line_and_makes_it_thicker():
    layout = plan(3, None, ())
    before = {name: look(*{"n1", "n2", "n3"} - {name}) for name in layout.servers}
    busy = before | {"n1": look("n2", "n3", at_s=3.0, in_msgs=500, passed=400)}
    quiet, loud = drawn(layout, before, before), drawn(layout, busy, before)
    assert {"200/s", "250/s in"} <= set(texts(loud))
    assert not any("/s" in text for text in texts(quiet))
    widths = [max(float(line.attrib["stroke-width"]) for line in svg.iter(f"{SVG}line")) for svg in (quiet, loud)]
    assert widths[0] < widths[1]


def test_clients_leadership_and_slow_readers_stand_below_their_server():
    looks = {"n1": look(clients=("till", "desk", "a<b"), streams=(StreamSnapshot("LAB", "ORDERS", 5),), slow=2)}
    assert {"till, desk and 1 more", "leads ORDERS", "cut off as slow: 2"} <= set(
        texts(drawn(plan(1, None, ()), looks))
    )


def test_each_stream_says_what_it_holds_where_and_what_waits_and_many_are_counted():
    orders = StreamSnapshot("LAB", "ORDERS", 1_204, ("n2", "n3"), ("n3",))
    looks = {
        "n1": look(streams=(orders,), waiting={("LAB", "ORDERS", "desk"): 0}),
        "n2": look(name="n2", streams=(StreamSnapshot("EDGE", "ORDERS", 0),), waiting={("LAB", "ORDERS", "till"): 24}),
    }
    said = texts(drawn(plan(3, None, ()), looks))
    copies = "led by n1, copies on n2 and n3 (behind)"
    assert f"ORDERS: 1,204 stored, {copies}; 0 wait for desk; 24 wait for till" in said
    assert "ORDERS: 0 stored, on n2 alone" in said
    many = {"n1": look(streams=tuple(StreamSnapshot("LAB", f"S{number}", 1) for number in range(9)))}
    assert "and 4 more" in texts(drawn(plan(1, None, ()), many))


def test_services_are_counted_with_their_rate_and_the_idle_are_not_named():
    workers = {"n1": look(clients=("worker-1", "worker-2", "idle")), "n2": look(clients=("worker-3", "till"))}
    later = {
        "n1": look(clients=("worker-1", "worker-2", "idle"), at_s=3.0, passed=200),
        "n2": look(clients=("worker-3", "till"), at_s=3.0, passed=100),
    }
    later["n1"].clients["idle"] = 0
    assert in_words(later, workers) == ["messages of worker (3) 250/s, till 50/s"]
    assert in_words(later, {}) == []


def test_a_long_line_is_written_smaller_and_stays_inside():
    drawing = draw(plan(3, None, ()), states={}, below=["short", "long " * 60])
    short, long = drawing.texts[-2:]
    assert short.size == 10
    assert long.size * len(long.text) * 0.63 <= drawing.size[0] * 1.001


@pytest.mark.parametrize(
    "layout",
    [plan(3, None, ()), plan(3, None, ["kiosk"]), plan(1, {"eu": 3, "us": 3}, ["kiosk"])],
    ids=["a cluster", "a cluster and a leaf node", "two regions and a leaf node"],
)
def test_each_server_and_each_link_has_its_own_place_to_click(layout):
    drawing, found = live(layout), spots(layout)
    assert {place[0] for place in found if len(place) == 1} == set(layout.servers)
    assert all(found[name,].middle == box.middle for name, box in drawing.boxes.items())
    assert all(layout.pairs(*place) for place in found if len(place) == 2)
    links = [spot for place, spot in found.items() if len(place) == 2]
    for one, other in combinations(links, 2):
        assert abs(one.middle[0] - other.middle[0]) + abs(one.middle[1] - other.middle[1]) > 10, (one, other)


def test_a_link_that_is_cut_or_slow_says_so_whether_or_not_it_stands():
    layout = plan(1, {"eu": 1, "us": 1}, ["kiosk"])
    looks = {"eu-1": look("us-1"), "us-1": look("eu-1"), "kiosk": look()}
    pairs = frozenset(("eu-1", "us-1")), frozenset(("kiosk", layout.regions[layout.leaves["kiosk"]][0]))
    faults = dict(zip(pairs, ("+100 ms", "cut"), strict=True))
    assert set(faults.values()) <= set(texts(drawn(layout, looks, faults=faults)))
    assert not set(faults.values()) & set(texts(drawn(layout, looks)))


def test_names_cannot_break_the_drawing():
    assert "<script>" in texts(drawn(plan(1, None, ()), {"n1": look(clients=("<script>",))}))


def test_a_dead_server_says_so():
    svg = drawn(plan(3, None, ()), states={"n1": "killed", "n2": "ready", "n3": "no answer"})
    assert {"killed", "no answer"} <= set(texts(svg))


def test_a_cut_between_two_places_crosses_out_their_connection_and_no_other():
    layout = plan(1, {"eu": 3, "us": 3}, ["store", "kiosk"])
    drawing = draw(layout, cut=[("us", "eu"), ("eu", "kiosk")])
    assert [line.look for line in drawing.lines if line.look == "cut"] == ["cut", "cut"]
    assert len(drawing.lines) == 3 + 3 + 1 + 2, "the routes of two regions, a gateway, and two leaf nodes' connections"


def test_clients_stand_outside_with_arrows_to_their_servers():
    drawing = draw(plan(3, None, ()), publishers={"shop": ("n2", "a.b")}, subscribers={"desk": ("n1", "a.>")})
    boxes = drawing.boxes
    servers = [boxes[name] for name in ("n1", "n2", "n3")]
    shop, desk = boxes["client shop"], boxes["client desk"]
    assert all(shop.left + shop.width < box.left and box.left + box.width < desk.left for box in servers)
    arrows = [line for line in drawing.lines if line.look == "arrow"]
    assert [arrow.start[0] < arrow.end[0] for arrow in arrows] == [True, True]
    assert {"a.b", "a.>"} <= {text.text for text in drawing.texts}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, look("n2", in_msgs=5)),
        (look("n2", server_id="N0"), look("n2", at_s=2.0, in_msgs=5)),
        (look("n2"), look("n2", in_msgs=5)),
        (look("n2", in_msgs=9, passed=9), look("n2", at_s=2.0, in_msgs=5, passed=5)),
    ],
    ids=["no look before", "the server is a new one", "no time between", "counters that fell"],
)
def test_a_rate_that_cannot_be_known_is_none(before, now):
    assert rate_per_s(before, now) is None
    assert rate_per_s(before, now, peer="n2") is None


def test_a_peer_that_was_not_there_before_has_no_rate_yet():
    assert rate_per_s(look("n3"), look("n2", "n3", at_s=2.0, passed=500_000), peer="n2") is None


def test_a_rate_is_the_difference_over_the_time():
    assert rate_per_s(look("n2", in_msgs=5, passed=1), look("n2", at_s=3.0, in_msgs=15, passed=2), peer="n2") == 0.5
    assert rate_per_s(look("n2", in_msgs=5), look("n2", at_s=3.0, in_msgs=15)) == 5.0


DESK = {"name": "desk", "num_pending": 2, "num_ack_pending": 3, "cluster": {"leader": "n1"}}


class Told:
    """A server's monitor that says what a test wants."""

    def __init__(self, cluster: dict | None) -> None:
        self._stream = {"name": "ORDERS", "state": {"messages": 7}, "consumer_detail": [DESK]}
        self._stream |= {} if cluster is None else {"cluster": cluster}

    def read(self, path: str) -> tuple[int, dict]:
        jsz = {"account_details": [{"name": "LAB", "stream_detail": [self._stream]}]}
        varz = {"server_id": "N1", "server_name": "n1", "in_msgs": 0, "slow_consumers": 0}
        return 200, {"/varz": varz, "/jsz": jsz}.get(path.split("?")[0], {})


REPLICAS = [
    {"name": "n2", "current": True},
    {"name": "n3", "current": False},
    {"name": "n4", "current": True, "offline": True},
]


@pytest.mark.parametrize(
    ("cluster", "led"),
    [
        (None, [StreamSnapshot("/LAB", "ORDERS", 7)]),
        (
            {"leader": "n1", "replicas": REPLICAS},
            [StreamSnapshot("/LAB", "ORDERS", 7, others=("n2", "n3", "n4"), behind=("n3", "n4"))],
        ),
        ({"leader": "n2"}, []),
        ({"name": "mesh"}, []),
    ],
    ids=["no cluster", "itself", "another", "an election"],
)
def test_a_stream_is_led_by_whom_its_cluster_names(cluster, led):
    seen = snapshot({"127.0.0.1:8222": Told(cluster)})["127.0.0.1:8222"]
    assert list(seen.streams) == led
    assert seen.waiting == {("/LAB", "ORDERS", "desk"): 5}
