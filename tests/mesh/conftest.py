"""Meshes for the tests that only use them; a test that breaks servers starts its own."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from mesh_lab.servers import start
from mesh_lab.servers.mesh import Mesh


@pytest.fixture(scope="session")
def _shared_mesh() -> Iterator[Mesh]:
    # Loops of its own: a mesh outlives the loop of the test that started it.
    mesh = asyncio.run(start.start_mesh(servers=3))
    yield mesh
    asyncio.run(mesh.close())


@pytest.fixture
def mesh(_shared_mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """Three servers that run; what a test leaves on them, the next one finds."""
    monkeypatch.setattr(start, "_started", [weakref.ref(_shared_mesh)])
    return _shared_mesh


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """A client of the shared mesh, closed in the loop that it was made in."""
    async with await mesh.connect() as connected:
        yield connected


@pytest.fixture(autouse=True)
def _own_progress(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the exercises that a test solves out of the progress of whoever runs the tests."""
    if request.module.__name__.startswith("test_checks_"):
        monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))


@pytest.fixture(scope="session")
def _shared_regions() -> Iterator[Mesh]:
    mesh = asyncio.run(start.start_mesh(regions={"eu": 3, "us": 3}, leaves=["store-berlin"]))
    yield mesh
    asyncio.run(mesh.close())


@pytest.fixture
async def regions(_shared_regions: Mesh, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    """Two regions of three servers and a leaf node; what a test leaves on them, the next one finds."""
    monkeypatch.setattr(start, "_started", [weakref.ref(_shared_regions)])
    yield _shared_regions
    for client in list(_shared_regions._clients):  # in the loop that they were made in
        await client.close()
    _shared_regions._clients.clear()
