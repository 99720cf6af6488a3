"""A real mesh for the tests of your own services: a plugin for pytest, with pytest-asyncio in its ``auto`` mode.

    pytest_plugins = ["mesh_lab.testing"]  # in the topmost conftest.py

    async def test_my_worker_ships_each_order_once(fresh_mesh):
        mesh = await fresh_mesh(servers=3)
        await place_orders(await mesh.connect(), orders := list(read_orders(first=1_000)))
        await asyncio.gather(my_worker(await mesh.connect()), mesh.kill("n2"))
        await check_orders(await mesh.connect(), orders, event="shipped")

It gives three fixtures. ``mesh`` is a server that all tests use, without streams when a test begins; ``client`` is a
connected client of it. ``fresh_mesh`` starts servers for one test, which may do to them whatever a mesh can do.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Literal

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from mesh_lab.orders.event_store import read_events
from mesh_lab.orders.order import Event, Order, Totals, check_totals, totals_of
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.wait import retry
from mesh_lab.servers import start
from mesh_lab.servers.mesh import Mesh

Scope = Literal["session", "module"]
Kept = dict[object, tuple[Mesh, object]]
"""Meshes by their settings, each with what used it last."""


def shared_mesh(*, scope: Scope = "session", clean: Literal["test", "file", "never"] = "test", **settings: Any) -> Any:
    """Return a fixture that gives a running mesh, which is the same one for all who ask for these settings.

    ``mesh = shared_mesh(servers=3)`` in a ``conftest.py`` or a file of tests takes the place of the plugin's own.

    Args:
        scope: For how long the servers are kept. A server that a test left dead or frozen ends that for all of them.
        clean: Before what its streams are deleted: each test, the first test of each file, or nothing.
        settings: As for ``start_mesh``.
    """
    key = tuple(sorted((name, repr(value)) for name, value in settings.items()))

    @pytest.fixture
    def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
        kept: Kept = request.getfixturevalue(f"_meshes_of_the_{scope}")
        user: object = {"test": request.node, "file": request.path, "never": None}[clean]
        # Loops of its own: a mesh outlives the loop of the test that started it.
        mesh, last_user = kept.get(key) or (asyncio.run(start.start_mesh(**settings)), user)
        if user != last_user:
            asyncio.run(delete_streams(mesh))
        kept[key] = mesh, user
        monkeypatch.setattr(start, "_started", weakref.WeakValueDictionary({id(mesh): mesh}))
        yield mesh
        if mesh.closed or any(server.state != "running" for server in mesh.servers.values()):
            asyncio.run(kept.pop(key)[0].close())

    return given


def _kept_meshes(scope: Scope) -> Any:
    @pytest.fixture(scope=scope)
    def kept_meshes() -> Iterator[Kept]:
        kept: Kept = {}
        yield kept
        for mesh, _ in kept.values():
            asyncio.run(mesh.close())

    return kept_meshes


_meshes_of_the_session, _meshes_of_the_module = _kept_meshes("session"), _kept_meshes("module")
mesh = shared_mesh()


@pytest_asyncio.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """A connected client of the shared mesh, closed in the loop that it was made in."""
    async with await mesh.connect() as connected:
        yield connected


@pytest_asyncio.fixture
async def fresh_mesh() -> AsyncIterator[Callable[..., Awaitable[Mesh]]]:
    """Starts servers for this test alone, with the arguments of ``start_mesh``; they end with it."""
    async with AsyncExitStack() as meshes:

        async def started(**settings: Any) -> Mesh:
            return await meshes.enter_async_context(await start.start_mesh(**settings))

        yield started


async def check_orders(client: Client, orders: Iterable[Order], *, event: Event = "placed") -> Totals:
    """Compare the orders that have an event in the event store with those that should have it, each exactly once.

    Raises:
        WrongTotalsError: Orders were lost, doubled or changed; the message lists each difference.
    """
    seen = totals_of(stored.order for stored in await read_events(client, f"orders.*.*.{event}"))
    check_totals(seen, totals_of(orders))
    return seen


async def delete_streams(mesh: Mesh) -> None:
    """Delete all streams of a mesh's account."""
    async with await mesh.connect() as client:
        js = client.jetstream(timeout=5.0)
        for stream in await stream_names(client):
            with suppress(NotFoundError):  # where the first request was carried out, and its reply was late
                await retry(partial(js.delete_stream, stream))
