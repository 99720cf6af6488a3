"""Links delay, limit and cut what they are told to, nothing gets past them, and they heal."""

import asyncio
import json
import time
from dataclasses import astuple
from functools import partial

import psutil
import pytest
from nats.js.api import ExternalStream, Placement, StreamSource

from mesh_lab.errors import (
    MeshClosedError,
    ProcessEndedError,
    UnknownNameError,
    UnsupportedByBackendError,
)
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.servers.start import start_mesh

ONE_WAY_S = 0.06


async def seconds(make, runs: int = 5) -> float:
    """Return the least time of a call, after one that warms up what it meets for the first time."""
    await make()
    taken = []
    for _ in range(runs):
        begun = time.perf_counter()
        await make()
        taken.append(time.perf_counter() - begun)
    return min(taken)  # a busy machine only adds


def twice(taken: float) -> bool:
    """Whether it is the latency there and back: neither one way, nor three ways, whatever the machine adds."""
    return 0.96 * 2 * ONE_WAY_S <= taken < 3 * ONE_WAY_S


async def carried(mesh, one: str, other: str) -> int:
    pairs = {frozenset(pair) for pair in mesh.layout.pairs(one, other)}
    return sum(lane.carried_bytes for lane in await mesh.lanes() if {lane.source, lane.target} in pairs)


async def whole(mesh) -> bool:
    """Whether every server calls itself healthy, and each region has its gateways, routes and leaf nodes again."""
    try:
        return await mesh.is_healthy() and linked(mesh)
    except OSError:  # too busy to answer
        return False


def linked(mesh) -> bool:
    for name, server in mesh.servers.items():
        monitor = server.monitor
        if name in mesh.layout.leaves:
            if not monitor.leafz()["leafs"]:
                return False
            continue
        region = mesh.layout.region_of(name)
        peers = {route["remote_name"] for route in monitor.routez()["routes"]}
        others = set(mesh.layout.regions) - {region}
        if peers != set(mesh.layout.regions[region]) - {name}:
            return False
        if others and set(monitor.gatewayz().get("outbound_gateways") or ()) != others:
            return False
    return True


async def test_a_request_over_slowed_gateways_takes_twice_the_latency(regions) -> None:
    service = await regions.connect(region="us")

    async def answer(message) -> None:
        await message.respond(b"paid")

    await service.subscribe("pay", cb=answer)
    await service.flush()
    client = await regions.connect(region="eu")

    async def asked() -> bool:
        try:
            return bool(await client.request("pay", b"an order", timeout=1.0))
        except Exception:  # noqa: BLE001 - interest is on its way
            return False

    await eventually(asked, within=5.0)
    try:
        await regions.slow("eu", "us", latency=ONE_WAY_S)
        taken = await seconds(lambda: client.request("pay", b"an order", timeout=2.0))
        assert twice(taken)
    finally:
        await regions.heal()
    assert await seconds(lambda: client.request("pay", b"an order", timeout=2.0)) < ONE_WAY_S


async def test_a_publish_waits_for_the_quorum_and_one_slow_replica_is_hidden() -> None:
    async with await start_mesh(servers=3, links=True) as mesh:
        js = (await mesh.connect()).jetstream(timeout=5.0)
        info = await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
        info = await eventually(lambda: _led(js), within=10.0)
        leader = info.cluster.leader
        near = await mesh.connect(to=leader)
        followers = [name for name in mesh.servers if name != leader]
        await mesh.slow(leader, followers[0], latency=ONE_WAY_S)
        publish = near.jetstream(timeout=5.0).publish
        hidden = await seconds(lambda: publish("orders.1", b"an order"))
        await mesh.slow(leader, followers[1], latency=ONE_WAY_S)
        paid = await seconds(lambda: publish("orders.1", b"an order"))
        assert hidden < ONE_WAY_S
        assert twice(paid)


async def _led(js):
    info = await retry(lambda: js.stream_info("ORDERS"))
    return info if info.cluster.leader and len(info.cluster.replicas) == 2 else None


async def test_latency_delays_and_does_not_throttle_and_keeps_the_order(regions) -> None:
    sender, receiver = await regions.connect(to="eu-1"), await regions.connect(region="us")
    subscription = await receiver.subscribe("flow", pending_msgs_limit=-1, pending_bytes_limit=-1)
    await receiver.flush()

    async def heard() -> bool:
        await sender.publish("flow", b"")
        await sender.flush()
        return subscription.pending_msgs > 0

    await eventually(heard, within=5.0, every=0.05)
    count, payload = 2_000, b"x" * 1_000
    try:
        await regions.slow("eu", "us", latency=0.2)
        begun = time.perf_counter()
        for number in range(count):
            await sender.publish("flow", number.to_bytes(4, "big") + payload)
        await sender.flush()
        got: list[int] = []
        while len(got) < count:
            if data := (await subscription.next_msg(timeout=5.0)).data:  # an empty one asked whether anybody listens
                got.append(int.from_bytes(data[:4], "big"))
        taken = time.perf_counter() - begun
    finally:
        await regions.heal()
    assert got == list(range(count)), "bytes arrived in another order"
    # A relay that slept for each chunk of 64 KB would need 31 times the latency.
    assert 0.2 < taken < 20 * 0.2


@pytest.mark.parametrize("mode", ["silent", "reset"])
async def test_a_cut_carries_nothing_and_the_mesh_is_whole_after_it_heals(regions, mode) -> None:
    await eventually(lambda: whole(regions), within=10.0)
    for one, other in (("eu-1", "eu-2"), ("eu", "us"), ("store-berlin", "eu")):
        await regions.cut(one, other, mode=mode)
        before = await carried(regions, one, other)
        sender = await regions.connect(to="eu-1")
        for _ in range(200):
            await sender.publish("nobody.knows", b"x" * 1_000)
        await sender.flush()
        pairs = {frozenset(pair) for pair in regions.layout.pairs(one, other)}
        lanes = [lane for lane in await regions.lanes() if {lane.source, lane.target} in pairs]
        assert lanes
        assert {lane.cut for lane in lanes} == {mode}
        assert sum(lane.carried_bytes for lane in lanes) == before
        if mode == "reset":
            assert {lane.connections for lane in lanes} == {0}
    await regions.heal()
    await eventually(lambda: whole(regions), within=20.0)  # two elections, where the first was not the last
    assert {lane.cut for lane in await regions.lanes()} == {None}


async def test_a_silent_cut_after_a_reset_refuses_nobody(regions) -> None:
    (listen, *_) = (join[3] for join in regions.links._wanted if set(join[1:3]) == {"eu-1", "eu-2"})
    try:
        await regions.cut("eu-1", "eu-2", mode="reset")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listen)
        await regions.cut("eu-1", "eu-2", mode="silent")
        _, writer = await asyncio.open_connection("127.0.0.1", listen)
        writer.close()
    finally:
        await regions.heal()
        await regions.ready()


async def test_a_silent_cut_of_seconds_heals_within_ten_more() -> None:
    async with await start_mesh(regions={"eu": 3, "us": 3}) as mesh:
        client = await mesh.connect(region="eu")
        here = client.jetstream(timeout=2.0)
        orders = {"subjects": ["orders.>"], "num_replicas": 3, "placement": Placement(cluster="eu")}
        await retry(lambda: here.add_stream(name="ORDERS", **orders))
        await wait_routable(client, "ORDERS")
        await mesh.cut("eu", "us")
        end = time.monotonic() + 6.0
        acknowledged = 0
        while time.monotonic() < end:  # eu has its own majority for its own stream
            acknowledged += (await here.publish("orders.1", b"an order")).seq > 0
            await asyncio.sleep(0.05)  # work: an order every 50 ms
        await mesh.heal()
        await eventually(lambda: whole(mesh), within=10.0)
        there = (await mesh.connect(region="us")).jetstream(timeout=1.0)

        async def seen() -> int:
            try:
                return (await there.stream_info("ORDERS")).state.messages
            except Exception:  # noqa: BLE001 - the meta group elects a leader
                return 0

        assert await eventually(seen, within=10.0, every=0.1) == acknowledged


async def test_orders_taken_while_the_store_is_cut_off_arrive_once_each_after_it_heals(regions) -> None:
    edge = (await regions.connect(to="store-berlin")).jetstream()
    hub = (await regions.connect(region="eu")).jetstream()
    await edge.add_stream(name="TAKEN", subjects=["taken.>"])
    source = StreamSource(name="TAKEN", external=ExternalStream(api="$JS.store-berlin.API"))
    await retry(lambda: hub.add_stream(name="ARRIVED", sources=[source], num_replicas=3))
    for mode in ("silent", "reset"):
        await regions.cut("store-berlin", "eu", mode=mode)
        for number in range(200):
            await edge.publish(f"taken.{mode}.{number}", str(number).encode())
        assert not [m for m in await stored(hub, "ARRIVED") if mode in m]
        await regions.heal()
        expected = await stored(edge, "TAKEN")
        await eventually(partial(same, hub, len(expected)), within=40.0)
        assert await stored(hub, "ARRIVED") == expected
    assert len(expected) == len(set(expected)) == 400


async def same(js, count: int) -> bool:
    return (await retry(lambda: js.stream_info("ARRIVED"))).state.messages == count


async def stored(js, stream: str) -> list[str]:
    state = (await js.stream_info(stream)).state
    return [(await js.get_msg(stream, seq)).subject for seq in range(state.first_seq or 1, state.last_seq + 1)]


async def test_no_connection_between_servers_gets_past_a_link(regions) -> None:
    links = psutil.Process(regions.links._process.pid)
    through = {c.laddr.port for c in links.net_connections("inet")} | {
        c.raddr.port for c in links.net_connections("inet") if c.raddr
    }
    seen = {"route": 0, "gateway": 0, "leaf": 0}
    for server in regions.servers.values():
        monitor = server.monitor
        # The port at the other end of each connection, by the server's own monitoring, is one of the links'.
        for route in monitor.routez().get("routes") or ():
            assert route["port"] in through
            seen["route"] += 1
        gateways = monitor.gatewayz()
        for out in (gateways.get("outbound_gateways") or {}).values():
            assert out["connection"]["port"] in through
            seen["gateway"] += 1
        for come in (gateways.get("inbound_gateways") or {}).values():
            assert all(one["connection"]["port"] in through for one in come)
        for leaf in monitor.leafz().get("leafs") or ():
            assert leaf["port"] in through
            seen["leaf"] += 1
        # And by the operating system: no server has a connection to a port on which another one listens.
        listening = {
            p for other in regions.servers.values() for p in (astuple(other.ports) if other is not server else ())
        }
        remote = {c.raddr.port for c in psutil.Process(server.pid).net_connections("inet") if c.raddr}
        assert not remote & listening
    assert seen["route"] == 6 * 2 * 4, "two peers with three pooled routes and one for the system account"
    assert seen["gateway"] == 6
    assert seen["leaf"] == 2


async def test_an_unknown_place_or_link_is_named_beside_the_known_ones(regions) -> None:
    with pytest.raises(UnknownNameError, match="no server, region or leaf node 'asia'.*eu, us, eu-1.*store-berlin"):
        await regions.slow("eu", "asia", latency=0.1)
    with pytest.raises(UnknownNameError, match="no link between 'store-berlin' and 'us'.*joined to eu-1, eu-2, eu-3"):
        await regions.cut("store-berlin", "us")
    with pytest.raises(UnknownNameError, match="no link between 'eu-1' and 'eu-1'"):
        await regions.cut("eu-1", "eu-1")
    for latency in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected 0 or more"):
            await regions.slow("eu", "us", latency=latency)
    with pytest.raises(ValueError, match="mode 'loud' asked for, expected one of silent, reset"):
        await regions.cut("eu", "us", mode="loud")


async def test_a_mesh_without_links_says_how_to_get_them(mesh) -> None:
    for attempt in (lambda: mesh.slow("n1", "n2", latency=0.1), lambda: mesh.cut("n1", "n2"), mesh.heal, mesh.lanes):
        with pytest.raises(
            UnsupportedByBackendError, match=r"joined directly, not by links; use start_mesh\(links=True\)"
        ):
            await attempt()


async def test_links_whose_process_died_are_an_error_that_says_so() -> None:
    mesh = await start_mesh(servers=1, leaves=["kiosk"])
    psutil.Process(mesh.links._process.pid).kill()
    with pytest.raises(ProcessEndedError, match="start the mesh anew"):
        await mesh.heal()
    await mesh.close()
    with pytest.raises(MeshClosedError, match="start another one"):
        await mesh.heal()


def test_a_lane_says_what_it_does_in_words_a_program_can_read(regions) -> None:
    lanes = asyncio.run(regions.lanes())
    assert {lane.kind for lane in lanes} == {"route", "gateway", "leaf"}
    assert json.dumps([lane.carried_bytes for lane in lanes])
