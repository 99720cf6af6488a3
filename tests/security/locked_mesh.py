"""Meshes to attack, each kept for all the attacks of a file, and who comes in."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client, RawCredentials

from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.job.report import open_account
from mesh_lab.orders.publisher import place_orders
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.security.accounts import Account, Operator, announce
from mesh_lab.security.certificates import Authority
from mesh_lab.security.roles import Keyring
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

PLACED = 20


@dataclass
class Party:
    """A client, and what the servers complained of to it."""

    client: Client
    complaints: list[str]
    number: int | None
    """Of its connection; nats-py forgets it at the end."""

    async def complaint(self, act: Awaitable[object]) -> str:
        """Return what the servers complain of about an act; nothing, where they let it pass."""
        self.complaints.clear()
        await act
        await flush_through(self.client)
        return "; ".join(self.complaints)


@dataclass
class LockedMesh:
    """An order mesh as ``mesh-lab orders --secure`` has it, on one server, and a rival's account beside it."""

    mesh: Mesh
    operator: Operator
    keyring: Keyring
    rival: Account
    tls: ssl.SSLContext
    parties: list[Client] = field(default_factory=list)

    async def enter(self, credentials: str | None, **options: Any) -> Party:
        """Return whoever comes in with the text of a credentials file, with no more than nats-py itself."""
        complaints: list[str] = []

        async def note(error: Exception) -> None:
            complaints.append(str(error))

        given = {"tls": self.tls, "allow_reconnect": False, "error_cb": note, "connect_timeout": 5}
        login = {} if credentials is None else {"user_credentials": RawCredentials(credentials)}
        client = await nats.connect(self.mesh.urls, **{**given, **login, **options})
        self.parties.append(client)
        return Party(client, complaints, client.client_id)

    async def role(self, role: str, name: str | None = None) -> Party:
        """Return a service, by its credentials file."""
        path = Path(self.keyring.file(role, name))
        return await self.enter(path.read_text(), inbox_prefix=f"_INBOX_{path.stem}")

    def file_of(self, account: Account) -> str:
        """Return a credentials file of who may do everything in an account."""
        path = self.mesh.directory / f"{account.name}.creds"
        path.touch(mode=0o600)
        path.write_text(account.user("owner").credentials)
        return str(path)

    async def leave(self) -> None:
        """Let everybody leave who came in."""
        for client in self.parties:
            await client.close()
        self.parties.clear()

    async def owner(self, account: Account | None = None) -> Party:
        """Return who may do everything in an account."""
        return await self.enter((account or self.keyring.account).user("owner").credentials)


async def _lock() -> LockedMesh:
    operator = Operator()
    mesh = await start_mesh(operator=operator, tls=Authority())
    keyring = await open_account(mesh, operator)
    rival = operator.account("RIVAL", conn=10, payload=1_000, subs=20, streams=2, consumer=3, disk_storage=50_000)
    async with await mesh.connect(system=True) as system:
        await announce(system, rival, servers=1)
    locked = LockedMesh(mesh, operator, keyring, rival, mesh.connect_options()["tls"])
    deployer, publisher, owner = [await locked.role(role) for role in ("deployer", "publisher")] + [
        await locked.owner()
    ]
    await open_event_store(deployer.client)
    await place_orders(publisher.client, read_orders(first=PLACED))
    prices = await owner.client.jetstream().create_key_value(bucket="PRICES", direct=True)
    await prices.put("cd", b"11.77")
    await locked.leave()
    return locked


@pytest.fixture(scope="module")
def _locked() -> Iterator[LockedMesh]:
    # A loop of its own: the mesh outlives the loop of each test.
    locked = asyncio.run(_lock())
    yield locked
    asyncio.run(locked.mesh.close())


@pytest.fixture
async def locked(_locked: LockedMesh) -> AsyncIterator[LockedMesh]:
    yield _locked
    await _locked.leave()
    for client in list(_locked.mesh._clients):
        await client.close()
    _locked.mesh._clients.clear()


def kept(start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Return a fixture of a mesh that is kept for a file."""

    @pytest.fixture(scope="module")
    def mesh() -> Iterator[Any]:
        running = asyncio.run(start())
        yield running
        asyncio.run(running.close())

    return mesh
