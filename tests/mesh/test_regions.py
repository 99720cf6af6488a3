"""Regions joined by gateways, and leaf nodes at their edge: ready when it says so, and clear about what cannot be."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import astuple

import psutil
import pytest
from nats.js.api import ExternalStream, Placement, StreamSource
from programs import killed_at_the_end

from mesh_lab.errors import BadLayoutError, UnknownNameError, UnsupportedByBackendError
from mesh_lab.notebook.mesh_card import mesh_card
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import OWNER_VARIABLE
from mesh_lab.servers.start import start_mesh

REGIONS, LEAVES = {"eu": 3, "us": 3}, ["store-berlin"]


@pytest.mark.in_pairs
async def test_seven_servers_are_ready_almost_as_soon_as_the_gateways_allow_and_take_streams_at_once() -> None:
    # nats-server dials other regions one second after its start; an election that came too early for that would
    # cost at least four more (server/raft.go). A relation to what one cluster needs, not an absolute time.
    times: list[float] = []
    for _ in range(3):
        begun = time.perf_counter()
        async with await start_mesh(regions=REGIONS, leaves=LEAVES) as mesh:
            times.append(time.perf_counter() - begun)
            assert list(mesh.servers) == ["eu-1", "eu-2", "eu-3", "us-1", "us-2", "us-3", "store-berlin"]
            await eventually(mesh.is_healthy, within=20.0)
            for region in REGIONS:
                client = await mesh.connect(region=region)
                js = client.jetstream(timeout=2.0)
                placed = Placement(cluster=region)
                info = await js.add_stream(name=region, subjects=[f"{region}.>"], num_replicas=3, placement=placed)
                assert info.cluster.name == region
                await wait_routable(client, region)
                assert (await js.publish(f"{region}.1", b"an order")).seq == 1
            # From the region, by the leaf node's domain.
            edge = client.jetstream(domain="store-berlin", timeout=2.0)
            await edge.add_stream(name="SALES", subjects=["sales.>"])
            own = await (await mesh.connect(to="store-berlin")).jetstream().account_info()
            assert (own.domain, own.streams) == ("store-berlin", 1)
    begun = time.perf_counter()
    async with await start_mesh(servers=3):
        single = time.perf_counter() - begun
    assert statistics.median(times) < 4.0 + single


async def test_a_stream_of_one_region_is_placed_in_another_from_there() -> None:
    async with await start_mesh(regions=REGIONS) as mesh:
        client = await mesh.connect(region="eu")
        js = client.jetstream(timeout=10.0)
        info = await js.add_stream(name="FAR", subjects=["far.>"], num_replicas=3, placement=Placement(cluster="us"))
        assert info.cluster.name == "us"
        await wait_routable(client, "FAR")
        ack = await js.publish("far.1", b"an order")
        assert ack.stream == "FAR"


async def test_a_client_connects_where_it_is_told_and_stays_in_the_region(regions) -> None:
    ports = {name: server.port for name, server in regions.servers.items()}
    first = await regions.connect()
    assert first.connected_url.port in {ports[f"eu-{i}"] for i in (1, 2, 3)}
    far = await regions.connect(region="us")
    assert far.connected_url.port in {ports[f"us-{i}"] for i in (1, 2, 3)}
    for name in ("us-2", "store-berlin"):
        assert (await regions.connect(to=name)).connected_url.port == ports[name]
    assert len(regions.connect_options(to="us-2")["servers"]) == 3
    assert len(regions.connect_options(to="store-berlin")["servers"]) == 1
    known = {int(url.rpartition(":")[2]) for url in far._server_info["connect_urls"]}
    assert known <= {ports[f"us-{i}"] for i in (1, 2, 3)}, "a client is told of its own region only"


async def test_the_system_account_sees_every_server_of_the_regions(regions) -> None:
    system = await regions.connect(system=True)
    inbox = system.new_inbox()
    heard = await system.subscribe(inbox)
    await system.publish("$SYS.REQ.SERVER.PING", b"", reply=inbox)
    names = {json.loads((await heard.next_msg(timeout=5.0)).data)["server"]["name"] for _ in range(6)}
    assert names == {f"{region}-{i}" for region in REGIONS for i in (1, 2, 3)}
    assert regions.connect_options(system=True)["password"] != regions.connect_options()["password"]


async def test_the_mesh_shows_regions_and_leaf_nodes_and_neither_ports_nor_secrets(regions) -> None:
    assert repr(regions) == (
        "Mesh(eu: eu-1 ready, eu-2 ready, eu-3 ready; us: us-1 ready, us-2 ready, us-3 ready; "
        "leaf nodes: store-berlin ready)"
    )
    card = mesh_card(regions)
    assert card.count("<tr>") == 3
    assert "leaf node of eu" in card
    for text in (repr(regions), card, repr(regions.servers)):
        assert regions.connect_options()["password"] not in text
        assert regions.connect_options(system=True)["password"] not in text
        assert not any(
            str(port) in text for server in regions.servers.values() for port in astuple(server.ports) if port
        )


async def test_a_message_crosses_regions_and_reaches_the_leaf_node_only_where_somebody_listens(regions) -> None:
    here, there = await regions.connect(region="eu"), await regions.connect(region="us")
    edge = await regions.connect(to="store-berlin")
    subscriptions = [await client.subscribe("news.*") for client in (there, edge)]
    for client in (there, edge):
        await client.flush()

    async def heard() -> bool:
        await here.publish("news.today", b"an order")
        await here.flush()
        return all(subscription.pending_msgs for subscription in subscriptions)

    await eventually(heard, within=5.0, every=0.05)


async def test_restarting_a_server_without_peers_makes_nothing() -> None:
    async with await start_mesh(regions={"eu": 1}, leaves=["store"]) as mesh:
        for name in mesh.servers:
            await mesh.restart(name)
        for name in mesh.servers:
            async with await mesh.connect(to=name) as client:
                assert await client.jetstream(timeout=5.0).streams_info() == []


async def test_servers_of_regions_can_be_killed_paused_resumed_and_restarted() -> None:
    async with await start_mesh(regions=REGIONS, leaves=LEAVES) as mesh:
        for name in ("us-3", "store-berlin"):
            await mesh.kill(name)
            assert f"{name} killed" in repr(mesh)
            await mesh.restart(name)
        await mesh.pause("eu-2")
        assert mesh.servers["eu-2"].state == "paused"
        await mesh.resume("eu-2")
        await eventually(mesh.is_healthy, within=15.0)
        monitor = mesh.servers["store-berlin"].monitor
        await eventually(lambda: monitor.leafz()["leafs"], within=10.0)


async def test_a_leaf_node_sells_into_its_own_domain_and_the_region_sources_from_it(regions) -> None:
    edge = (await regions.connect(to="store-berlin")).jetstream()
    hub = (await regions.connect(region="eu")).jetstream()
    await edge.add_stream(name="SALES", subjects=["sales.>"])
    source = StreamSource(name="SALES", external=ExternalStream(api="$JS.store-berlin.API"))
    await hub.add_stream(name="ALL_SALES", sources=[source], num_replicas=3)
    for i in range(100):
        await edge.publish(f"sales.{i}", b"an order")

    async def arrived() -> bool:
        return (await hub.stream_info("ALL_SALES")).state.messages == 100

    await eventually(arrived, within=10.0)


async def test_one_region_needs_no_gateway_and_a_plain_cluster_may_have_a_leaf_node() -> None:
    async with await start_mesh(regions={"eu": 3}, leaves=["kiosk"]) as mesh:
        assert repr(mesh) == "Mesh(eu: eu-1 ready, eu-2 ready, eu-3 ready; leaf nodes: kiosk ready)"
        assert not mesh.servers["eu-1"].monitor.gatewayz().get("outbound_gateways")
    async with await start_mesh(servers=1, leaves=["kiosk"]) as mesh:
        assert await mesh.is_healthy()
        assert repr(mesh) == "Mesh(n1 ready, kiosk ready)"
    async with await start_mesh(regions={"eu": 1, "us": 1}, leaves={"kiosk": "us"}) as mesh:
        assert mesh.servers["us-1"].monitor.leafz()["leafs"][0]["name"] == "kiosk"
        await (await mesh.connect()).jetstream().add_stream(name="ONE", subjects=["one"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"regions": {}}, r"regions=\{\} asked for, expected at least one region"),
        ({"regions": {"eu": 0}}, "0 servers asked for in region 'eu', expected 1, 3, 5 or 7"),
        ({"regions": {"eu": 3, "us": 2}}, "2 servers asked for in region 'us'"),
        ({"regions": {"eu": True}}, "True servers asked for in region 'eu'"),
        ({"regions": {"eu.west": 3}}, "region named 'eu.west' asked for.*one token"),
        ({"regions": {"": 3}}, "region named '' asked for"),
        ({"regions": {"eu": 3}, "leaves": ["store berlin"]}, "leaf node named 'store berlin' asked for"),
        ({"regions": {"eu": 3}, "leaves": ["*"]}, r"leaf node named '\*' asked for"),
        ({"regions": {"eu": 3}, "leaves": ["eu"]}, "leaf node 'eu' has the same name as region 'eu'"),
        ({"regions": {"eu": 3}, "leaves": ["EU-1"]}, "leaf node 'EU-1' has the same name as server 'eu-1'"),
        ({"regions": {"eu": 1, "eu-1": 1}}, "has the same name as"),
        ({"regions": {"eu": 3}, "leaves": ["hub"]}, "leaf node 'hub' has the same name as the JetStream domain"),
        ({"regions": {"eu": 3}, "leaves": ["a", "b", "a"]}, "two leaf nodes named 'a' asked for"),
        ({"regions": {"eu": 3}, "leaves": "store"}, r"expected a list of names such as leaves=\['store'\]"),
        ({"regions": {"eu": 3}, "leaves": {"store": "asia"}}, "dials region 'asia'; there are eu"),
        ({"servers": 3, "leaves": ["n2"]}, "leaf node 'n2' has the same name as server 'n2'"),
    ],
)
async def test_a_layout_that_cannot_be_is_refused_with_the_reason(asked, said) -> None:
    with pytest.raises(BadLayoutError, match=said):
        await start_mesh(**asked)


async def test_regions_of_servers_that_are_not_ours_are_refused(monkeypatch) -> None:
    with pytest.raises(UnsupportedByBackendError, match="regions and leaf nodes asked for.*'docker'.*backend='local'"):
        await start_mesh(regions=REGIONS, backend="docker")
    monkeypatch.setenv("MESH_LAB_URL", "nats://127.0.0.1:9")
    with pytest.raises(UnsupportedByBackendError, match="regions and leaf nodes asked for.*'external'"):
        await start_mesh(leaves=LEAVES, backend="external")
    with pytest.raises(UnsupportedByBackendError, match="links asked for.*'external'"):
        await start_mesh(servers=3, links=True, backend="external")


async def test_an_unknown_region_or_server_is_named_beside_the_known_ones(regions, mesh) -> None:
    with pytest.raises(UnknownNameError, match="no region 'asia' in this mesh; there are eu, us"):
        await regions.connect(region="asia")
    with pytest.raises(UnknownNameError, match="no server 'us-9'.*store-berlin"):
        await regions.connect(to="us-9")
    with pytest.raises(UnknownNameError, match="no region 'eu' in this mesh; there are none"):
        await mesh.connect(region="eu")


async def test_killing_the_program_leaves_no_server_no_link_and_no_store() -> None:
    program = (
        "import asyncio\n"
        "from mesh_lab import start_mesh\n"
        "async def main():\n"
        "    mesh = await start_mesh(regions={'eu': 3, 'us': 3}, leaves=['store-berlin'])\n"
        "    print(mesh.directory, mesh.owner, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    with killed_at_the_end(child):
        directory, owner = (await asyncio.to_thread(child.stdout.readline)).split()
        assert len(_owned(owner)) == 8, "seven servers and the process of the links"
        child.kill()
    await eventually(lambda: not _owned(owner) and not os.path.exists(directory), within=10.0)


def _owned(owner: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(OWNER_VARIABLE) == owner and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
