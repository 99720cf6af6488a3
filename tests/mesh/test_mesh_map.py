"""The live map: it sees what stands, who is there and what died; its buttons do what they say."""

import asyncio
import gc
import warnings

import pytest

from mesh_lab import start_mesh
from mesh_lab.notebook.mesh_map import MeshMap, _linked
from mesh_lab.observe.snapshots import rate_per_s, snapshot
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.layout import plan


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr("mesh_lab.notebook.mesh_map.EVERY_S", 0.1)


def monitors(mesh):
    return {name: server.monitor for name, server in mesh.servers.items()}


async def all_answer(mesh):
    """Look until every server answers within its second, which a busy machine may not give it at once."""

    async def look():
        looks = await asyncio.to_thread(snapshot, monitors(mesh))
        return looks if set(looks) == set(mesh.servers) else None

    return await eventually(look, within=20.0)


async def probed(client, heard):
    """Publish until the subscriber's server has told the client's."""
    await client.publish("seen.probe", b"")
    await client.flush()
    return heard


async def test_a_look_sees_routes_gateways_and_leaf_nodes(regions):
    looks = await all_answer(regions)
    for name in ("eu-1", "eu-2", "eu-3"):
        others = {"eu-1", "eu-2", "eu-3"} - {name}
        assert others < set(looks[name].peers)
        assert set(looks[name].peers) & {"us-1", "us-2", "us-3"}
    assert "?" not in {peer for look in looks.values() for peer in look.peers}
    [hub] = looks["store-berlin"].peers
    assert "store-berlin" in looks[hub].peers


async def test_a_look_sees_clients_leaders_and_what_passed(mesh):
    till = await mesh.connect(name="till", to="n1")
    reader = await mesh.connect(name="reader", to="n2")
    heard = []

    async def note(msg):
        heard.append(msg)

    await reader.subscribe("seen.>", cb=note)
    await flush_through(reader)
    await eventually(lambda: probed(till, heard), within=10.0, every=0.1)
    heard.clear()
    js = till.jetstream(timeout=10.0)
    await js.add_stream(name="SEEN", subjects=["led.>"], num_replicas=3)
    before = await all_answer(mesh)
    for _ in range(500):
        await till.publish("seen.it", b"")
    await eventually(lambda: len(heard) >= 500, within=10.0)
    now = await all_answer(mesh)
    leader = (await js.stream_info("SEEN")).cluster.leader
    assert "till" in now["n1"].clients
    assert "reader" in now["n2"].clients
    assert [name for name, look in now.items() if "SEEN" in look.leads] == [leader]
    assert now["n1"].in_msgs - before["n1"].in_msgs >= 500
    assert now["n1"].peers["n2"] - before["n1"].peers["n2"] >= 500
    assert rate_per_s(before["n1"], now["n1"], peer="n2") > rate_per_s(before["n1"], now["n1"], peer="n3")
    await js.delete_stream("SEEN")
    await till.close()
    await reader.close()


async def test_who_is_dead_or_frozen_does_not_hold_up_the_look():
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n1")
        await mesh.pause("n2")
        looks = await asyncio.to_thread(snapshot, monitors(mesh))
        assert set(looks) == {"n3"}
        assert snapshot({}) == {}


async def test_the_map_follows_and_its_buttons_break_and_mend():
    async with await start_mesh(servers=3) as mesh:
        shown = MeshMap(mesh)
        assert "not asked yet" in shown.svg
        await eventually(lambda: len(shown.snapshots) == 3, within=10.0)
        assert repr(shown) == "MeshMap(n1 ready, n2 ready, n3 ready)"
        assert "<title>n1 ready; n2 ready; n3 ready</title>" in shown.svg  # for screen readers
        shown._spots["n2",].click()
        said = shown._message
        for word, state in (("kill", "killed"), ("restart", "running"), ("pause", "paused"), ("resume", "running")):
            shown.buttons[word].click()
            await eventually(lambda word=word: said.value == f"{word} n2: done", within=60.0)
            assert mesh.servers["n2"].state == state
        await mesh.kill("n2")
        shown.buttons["resume"].click()
        await eventually(lambda: "expected running" in said.value, within=10.0)
        await eventually(lambda: "n2 killed" in repr(shown) and "killed" in shown.svg, within=10.0)
        await shown.close()
        await shown.close()


async def test_the_map_cuts_slows_and_heals_links_and_says_what_streams_hold():
    async with await start_mesh(servers=3, links=True) as mesh:
        shop = await mesh.connect(name="shop")
        js = shop.jetstream(timeout=10.0)
        await js.add_stream(name="ORDERS", subjects=["orders"], num_replicas=3)
        await wait_routable(shop, "ORDERS")
        await js.add_consumer("ORDERS", durable_name="desk", ack_policy="explicit")
        for _ in range(5):
            await js.publish("orders", b"")
        shown = MeshMap(mesh)
        await eventually(lambda: "; 5 wait for desk" in shown.svg, within=20.0)
        leader = (await js.stream_info("ORDERS")).cluster.leader
        assert f"ORDERS: 5 stored, led by {leader}, copies on " in shown.svg
        assert [name for name, button in shown.buttons.items() if button.disabled] == ["cut", "slow"]
        shown._spots["n1", "n3"].click()
        assert [name for name, button in shown.buttons.items() if not button.disabled] == ["cut", "slow", "heal"]
        assert "mesh-map-chosen" in shown._spots["n1", "n3"]._dom_classes
        for word, drawn in (("slow", "n1 to n3 +100 ms"), ("cut", "n1 to n3 cut")):
            shown.buttons[word].click()
            said = f"{word} n1 – n3: done"  # noqa: RUF001
            await eventually(lambda said=said: shown._message.value == said, within=20.0)
            await eventually(lambda drawn=drawn: drawn in shown.svg, within=10.0)
        shown.buttons["heal"].click()
        await eventually(lambda: shown._message.value == "heal all links: done", within=20.0)
        await eventually(lambda: "n1 to n3" not in shown.svg, within=10.0)
        await shown.close()


async def test_what_can_be_cut_between_regions_is_regions_and_leaf_nodes():
    linked = plan(1, {"eu": 3, "us": 1}, ["kiosk"])
    assert _linked(linked) == [("eu", "us"), ("eu", "eu"), ("kiosk", linked.leaves["kiosk"])]
    assert all(linked.pairs(*pair) for pair in _linked(linked))


async def test_buttons_that_are_pressed_together_act_one_after_the_other():
    async with await start_mesh(servers=3) as mesh:
        shown = MeshMap(mesh)
        for word in ("restart", "restart", "pause", "resume"):
            shown.buttons[word].click()
        await eventually(lambda: shown._message.value == "resume n1: done", within=120.0)
        assert {server.state for server in mesh.servers.values()} == {"running"}
        await mesh.ready()
        await shown.close()


async def test_a_click_in_another_thread_acts_in_the_loop_of_the_mesh(mesh):
    shown = MeshMap(mesh)
    await asyncio.to_thread(shown.buttons["resume"].click)
    await eventually(lambda: shown._message.value == "resume n1: done", within=10.0)
    await shown.close()


async def test_a_death_is_drawn_at_once_and_not_after_the_period(monkeypatch):
    monkeypatch.setattr("mesh_lab.notebook.mesh_map.EVERY_S", 3_600.0)
    async with await start_mesh(servers=1) as mesh:
        shown = MeshMap(mesh, tally=lambda: {"placed": 1_204, "lost": 0})
        await eventually(lambda: "n1 ready" in shown.svg, within=10.0)
        assert "placed 1,204, lost 0" in shown.svg
        await mesh.kill("n1")
        await eventually(lambda: "n1 killed" in shown.svg, within=10.0)
        await shown.close()


async def test_a_map_that_fails_says_so(mesh, monkeypatch):
    def broken(monitors):
        raise RuntimeError("no sight")

    monkeypatch.setattr("mesh_lab.notebook.mesh_map.snapshot", broken)
    shown = MeshMap(mesh)
    await eventually(lambda: "no sight" in shown._message.value, within=10.0)
    await shown.close()


async def test_servers_that_nobody_can_ask_are_said_to_be_so(mesh, monkeypatch):
    monkeypatch.setenv("MESH_LAB_URL", ",".join(_with_password(mesh)))
    async with await start_mesh(backend="external") as others:
        shown = MeshMap(others)
        await shown.refresh()
        assert "cannot be asked" in shown.svg
        assert [*shown.buttons, *shown.chosen.options, *shown._spots] == [], "there is nothing to kill"
        await shown.close()


def _with_password(mesh):
    who = mesh.connect_options()
    return [url.replace("nats://", f"nats://{who['user']}:{who['password']}@") for url in who["servers"]]


async def test_the_map_does_not_keep_its_mesh():
    mesh = await start_mesh(servers=1)
    directory, shown = mesh.directory, MeshMap(mesh)
    await shown.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the children that nobody waited for
        del mesh

        def gone():
            gc.collect()
            return not directory.exists()

        await eventually(gone, within=10.0)
    await eventually(lambda: shown._message.value == "the mesh was closed", within=5.0)
    assert repr(shown) == "MeshMap()"


async def test_the_map_ends_with_its_mesh():
    mesh = await start_mesh(servers=1)
    shown = MeshMap(mesh)
    await eventually(lambda: shown.snapshots, within=10.0)
    await mesh.close()
    await eventually(lambda: shown._message.value == "the mesh was closed", within=10.0)
    assert shown._following.done()
    assert shown._following.exception() is None
    assert all(button.disabled for button in shown.buttons.values())


async def test_a_notebook_without_its_kernel_shows_the_drawing(mesh):
    shown = MeshMap(mesh)
    bundle = shown._repr_mimebundle_()
    await shown.close()
    assert bundle["text/plain"].startswith("MeshMap(n1 ")
    assert bundle["image/svg+xml"].startswith("<svg ")
    assert "application/vnd.jupyter.widget-view+json" in bundle
