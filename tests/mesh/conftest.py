"""Meshes for the tests that only use them; a test that breaks servers starts its own."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh_lab.notebook.trial import Trial
from mesh_lab.servers import start
from mesh_lab.servers.mesh import Mesh
from mesh_lab.testing import delete_streams, shared_mesh

mesh = shared_mesh(clean="file", servers=3)  # the streams of many files would cost heartbeats for every replica


@pytest.fixture(autouse=True)
def _own_progress(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the exercises that a test solves out of the progress of whoever runs the tests."""
    if request.module.__name__.startswith("test_checks_"):
        monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))


@pytest.fixture(scope="module")  # seven servers cost something also when nobody asks them for anything
def _shared_regions() -> Iterator[Mesh]:
    mesh = asyncio.run(start.start_mesh(regions={"eu": 3, "us": 3}, leaves=["store-berlin"]))
    yield mesh
    asyncio.run(mesh.close())


@pytest.fixture
async def regions(_shared_regions: Mesh, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    """Two regions of three servers and a leaf node; what a test leaves on them, the next one finds."""
    monkeypatch.setattr(start, "_started", weakref.WeakValueDictionary({0: _shared_regions}))
    yield _shared_regions
    for client in list(_shared_regions._clients):  # in the loop that they were made in
        await client.close()
    _shared_regions._clients.clear()


@pytest.fixture(scope="module")
def _kept() -> Iterator[dict[object, Mesh]]:
    meshes: dict[object, Mesh] = {}
    yield meshes
    for mesh in meshes.values():
        asyncio.run(mesh.close())


@pytest.fixture
def own_meshes_kept(_kept: dict[object, Mesh], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give checks that ask for servers of their own those of the file's earlier checks, without streams.

    For checks whose answers get a client, and cannot harm a server.
    """

    async def own_mesh(trial: Trial, **settings: Any) -> Mesh:
        kind = tuple(sorted((name, id(value)) for name, value in settings.items()))
        if kind not in _kept:
            _kept[kind] = await start.start_mesh(**{"backend": "local", **settings})
            start.forget(_kept[kind])
        await delete_streams(_kept[kind])
        return _kept[kind]

    monkeypatch.setattr(Trial, "own_mesh", own_mesh)
