"""Fixtures of a mesh that the tests of a file, or of all files, only use."""

import asyncio
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from mesh_lab.servers import start
from mesh_lab.servers.mesh import Mesh


def shared_mesh(*, scope: Literal["session", "module"] = "module", **settings: Any) -> tuple[Callable, Callable]:
    """Return two fixtures: the mesh that is kept, and ``mesh``, which gives it to a test.

    Args:
        scope: For how long it is kept.
        settings: As for ``start_mesh``.
    """
    kept = f"_mesh_of_the_{scope}"

    @pytest.fixture(scope=scope, name=kept)
    def started() -> Iterator[Mesh]:
        # Loops of its own: a mesh outlives the loop of the test that started it.
        mesh = asyncio.run(start.start_mesh(**settings))
        yield mesh
        asyncio.run(mesh.close())

    @pytest.fixture(name="mesh")
    def mesh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mesh:
        """Servers that run; what a test leaves on them, the next one finds."""
        running = request.getfixturevalue(kept)
        monkeypatch.setattr(start, "_started", weakref.WeakValueDictionary({0: running}))
        return running

    return started, mesh
