"""Fixtures of a mesh that the tests of a file, or of all files, only use."""

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import pytest
from nats.js.errors import NotFoundError

from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.wait import retry
from mesh_lab.servers import start
from mesh_lab.servers.mesh import Mesh


def shared_mesh(
    *, scope: Literal["session", "module"] = "module", **settings: Any
) -> tuple[Callable, Callable, Callable]:
    """Return three fixtures: the mesh that is kept, what clears it after a file, and ``mesh``, which a test takes.

    Args:
        scope: For how long it is kept.
        settings: As for ``start_mesh``.
    """
    kept, cleared = f"_mesh_of_the_{scope}", f"_streams_of_a_file_{scope}"

    @pytest.fixture(scope=scope, name=kept)
    def started() -> Iterator[Mesh]:
        # Loops of its own: a mesh outlives the loop of the test that started it.
        mesh = asyncio.run(start.start_mesh(**settings))
        yield mesh
        asyncio.run(mesh.close())

    @pytest.fixture(scope="module", name=cleared)
    def without_streams(request: pytest.FixtureRequest) -> Iterator[Mesh]:
        # Servers that hold the streams of many files send each other heartbeats for every replica of them.
        running = request.getfixturevalue(kept)
        yield running
        asyncio.run(delete_streams(running))

    @pytest.fixture(name="mesh")
    def mesh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mesh:
        """Servers that run; what a test leaves on them, the next one of its file finds."""
        running = request.getfixturevalue(cleared)
        monkeypatch.setattr(start, "_started", weakref.WeakValueDictionary({0: running}))
        return running

    return started, without_streams, mesh


async def delete_streams(mesh: Mesh) -> None:
    """Delete all streams of a mesh."""
    async with await mesh.connect() as client:
        js = client.jetstream(timeout=5.0)
        for stream in await stream_names(client):
            with suppress(NotFoundError):  # where the first request was carried out, and its reply was late
                await retry(partial(js.delete_stream, stream))
