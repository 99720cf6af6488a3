"""The plugin with which readers test their own services, in a project of its own, and what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh_lab.errors import WrongTotalsError
from mesh_lab.orders import encode, open_event_store, place_orders, read_orders
from mesh_lab.servers.mesh import Mesh
from mesh_lab.testing import check_orders, shared_mesh

ORDERS = list(read_orders(first=200))
mesh = shared_mesh(scope="module")

CONFTEST = 'pytest_plugins = ["mesh_lab.testing"]\n'
TESTS = """
import pytest
from mesh_lab.orders import encode, open_event_store, place_orders, read_orders
from mesh_lab.testing import check_orders

ORDERS = list(read_orders(first=100))

async def my_worker(client, finish):
    await open_event_store(client)
    await place_orders(client, ORDERS)
    for order in ORDERS[:finish]:
        await client.jetstream(timeout=10.0).publish(order.subject("shipped"), encode(order))

@pytest.mark.parametrize("finish", [len(ORDERS) - 1, len(ORDERS)])
async def test_each_order_is_shipped(fresh_mesh, finish):
    mesh = await fresh_mesh()
    await my_worker(await mesh.connect(), finish)
    await mesh.kill("n1")
    await mesh.restart("n1")
    await check_orders(await mesh.connect(), ORDERS, event="shipped")
"""


def test_a_test_of_a_worker_is_red_before_it_is_green(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_worker.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "orders: seen 99, expected 100 (-1)" in done.stdout


@pytest.mark.parametrize("time", ["first", "second"])
async def test_the_shared_mesh_has_no_streams_when_a_test_begins(mesh: Mesh, client: Client, time: str) -> None:
    assert await client.jetstream().streams_info() == []
    await client.jetstream().add_stream(name="LEFT", subjects=["left"])


async def test_a_lost_a_doubled_and_a_changed_order_are_told(client: Client) -> None:
    await open_event_store(client)
    with pytest.raises(WrongTotalsError, match=r"orders: seen 0, expected 200 \(-200\)"):
        await check_orders(client, ORDERS)
    await place_orders(client, ORDERS)
    assert (await check_orders(client, ORDERS)).orders == len(ORDERS)
    await client.jetstream().publish(ORDERS[0].subject("placed"), encode(ORDERS[0]))
    with pytest.raises(WrongTotalsError, match=r"orders: seen 201, expected 200 \(\+1\)"):
        await check_orders(client, ORDERS)


killed: list[Mesh] = []


async def test_a_server_that_a_test_left_dead(mesh: Mesh) -> None:
    await mesh.kill("n1")
    killed.append(mesh)


async def test_is_not_the_next_ones_concern(mesh: Mesh, client: Client) -> None:
    assert killed
    assert killed[0].closed
    assert mesh is not killed[0]
    assert await mesh.is_healthy()


async def test_fresh_servers_are_no_others(mesh: Mesh, fresh_mesh) -> None:
    one, two = await fresh_mesh(), await fresh_mesh()
    assert len({mesh.urls[0], one.urls[0], two.urls[0]}) == 3
    async with await one.connect() as client:
        await client.jetstream().add_stream(name="ONE", subjects=["one"])
    async with await two.connect() as client:
        assert await client.jetstream().streams_info() == []


def test_the_package_without_pytest_lacks_only_this(tmp_path: Path) -> None:
    hidden = (
        "import sys; sys.modules['pytest'] = None; import mesh_lab.cli, mesh_lab.orders, mesh_lab.notebook.extension"
    )
    assert subprocess.run([sys.executable, "-c", hidden], capture_output=True, timeout=60).returncode == 0
