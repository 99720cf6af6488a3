"""A stream that is backed up and restored has every order, and its consumers go on where they were."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from mesh_lab import start_mesh
from mesh_lab.errors import AlreadyThereError, TornBackupError, TransferEndedError
from mesh_lab.orders import STREAM, WORKERS, decode, open_event_store, place_orders, read_orders, totals_of
from mesh_lab.orders.event_store import create_worker_group
from mesh_lab.patterns import backup
from mesh_lab.patterns.backup import ABOUT, DATA, MARK, SUMS, backup_stream, restore_stream
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.testing import delete_streams, shared_mesh

ORDERS = list(read_orders(first=1_000))
SMALL = 'SMALL { jetstream: { max_file: 64KB }, users: [{ user: small, password: "small" }] }'

other = shared_mesh(scope="module", servers=1, accounts_config=SMALL)


@pytest.fixture
async def target(other: Mesh) -> AsyncIterator[Client]:
    """A client of one server of another mesh, which holds no streams."""
    await delete_streams(other)
    async with await other.connect() as connected:
        yield connected


@pytest.fixture
async def source(mesh: Mesh, client: Client) -> Client:
    """A client of three servers with a stream of orders, of which the workers have done the first 60."""
    await delete_streams(mesh)
    await open_event_store(client, replicas=3)
    await place_orders(client, ORDERS)
    await create_worker_group(client.jetstream())
    await wait_routable(client, STREAM, WORKERS)
    group = await client.jetstream().pull_subscribe_bind(WORKERS, stream=STREAM)
    got = []
    while len(got) < 100:
        got += await group.fetch(100 - len(got), timeout=5.0)
    for msg in got[:60]:
        await msg.ack_sync(timeout=5.0)
    return client


async def stored(client: Client) -> list:
    """Return all orders in the stream."""
    orders, last = [], (await client.jetstream().stream_info(STREAM)).state.last_seq
    async for batch in read_in_order(client, STREAM):
        orders += [decode(msg.data) for msg in batch]
        if batch[-1].metadata.sequence.stream >= last:
            break
    return orders


async def left_to_do(client: Client) -> list[str]:
    """Return the ids of the orders that the workers' consumer still delivers, and acknowledge them."""
    await wait_routable(client, STREAM, WORKERS)  # a cluster has just made the consumer
    group = await client.jetstream().pull_subscribe_bind(WORKERS, stream=STREAM)
    ids = []
    while len(ids) < len(ORDERS) - 60:
        for msg in await group.fetch(200, timeout=5.0):
            ids.append(decode(msg.data).id)
            await msg.ack()
    return ids


@pytest.mark.parametrize("replicas", [1, 3])
async def test_all_orders_come_back_and_the_workers_go_on_where_they_were(
    source: Client, target: Client, tmp_path: Path, replicas: int
) -> None:
    seen: list[tuple[int, int]] = []
    saved = await backup_stream(source, STREAM, tmp_path / "new", progress=lambda *bytes_: seen.append(bytes_))
    folder = tmp_path / "new" / STREAM
    assert saved.state["messages"] == len(ORDERS)
    assert seen[-1][0] == (folder / DATA).stat().st_size
    assert {path.name for path in (tmp_path / "new").rglob("*")} == {STREAM, DATA, ABOUT, SUMS}
    if os.name == "posix":
        assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
        assert folder.stat().st_mode & 0o777 == 0o700
        assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder).returncode == 0

    into = target
    if replicas == 3:
        into = source
        await source.jetstream().delete_stream(STREAM)
    made = await restore_stream(into, folder, replicas=replicas)
    config = saved.config | {"num_replicas": replicas}
    assert {key: made.config[key] for key in config} == config | {"metadata": made.config["metadata"]}
    assert MARK not in made.config["metadata"]
    assert totals_of(await stored(into)) == totals_of(ORDERS)
    assert await left_to_do(into) == [order.id for order in ORDERS[60:]]
    one = list(read_orders(first=len(ORDERS) + 1))[-1]
    await place_orders(into, [one])  # its own subjects are its own again
    assert totals_of(await stored(into)) == totals_of([*ORDERS, one])


def cut_off(folder: Path) -> None:
    os.truncate(folder / DATA, (folder / DATA).stat().st_size - 1)


def change_data(folder: Path) -> None:
    data = bytearray((folder / DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / DATA).write_bytes(data)


def change_description(folder: Path) -> None:
    (folder / ABOUT).write_text((folder / ABOUT).read_text().replace('"limits"', '"interest"'))


async def test_a_torn_or_changed_backup_is_refused_before_a_server_is_asked(
    source: Client, target: Client, tmp_path: Path
) -> None:
    faults: dict[Callable[[Path], object], str] = {
        cut_off: f"{DATA} is not as it was saved",
        change_data: f"{DATA} is not as it was saved",
        change_description: f"{ABOUT} is not as it was saved",
        lambda folder: (folder / ABOUT).unlink(): f"{ABOUT} is missing",
        lambda folder: (folder / SUMS).unlink(): f"{SUMS} is missing",
        lambda folder: (folder / SUMS).write_bytes(b"\xff\n"): "cannot be read",
    }
    for number, (fault, words) in enumerate(faults.items()):
        await backup_stream(source, STREAM, tmp_path / str(number))
        fault(tmp_path / str(number) / STREAM)
        with pytest.raises(TornBackupError, match=words):
            await restore_stream(target, tmp_path / str(number) / STREAM)
    assert await target.jetstream().streams_info() == []


async def test_what_is_there_already_stays_as_it_is(source: Client, tmp_path: Path) -> None:
    await backup_stream(source, STREAM, tmp_path)
    before = (tmp_path / STREAM / SUMS).read_bytes()
    with pytest.raises(AlreadyThereError, match="stays as it is, and nothing was restored"):
        await restore_stream(source, tmp_path / STREAM)
    with pytest.raises(AlreadyThereError, match="choose another folder"):
        await backup_stream(source, STREAM, tmp_path)
    assert (tmp_path / STREAM / SUMS).read_bytes() == before
    assert totals_of(await stored(source)) == totals_of(ORDERS)
    with pytest.raises(NotFoundError, match="'NONE'; there are 'ORDERS'"):
        await backup_stream(source, "NONE", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STREAM]


async def test_an_account_without_room_gets_no_part_of_a_stream(source: Client, other: Mesh, tmp_path: Path) -> None:
    await backup_stream(source, STREAM, tmp_path)
    async with await other.connect(user="small", password="small") as small:
        with pytest.raises(APIError, match="insufficient storage"):
            await restore_stream(small, tmp_path / STREAM, replicas=1)
        assert await small.jetstream().streams_info() == []


async def test_subjects_of_another_stream_are_not_taken_from_it(source: Client, target: Client, tmp_path: Path) -> None:
    await backup_stream(source, STREAM, tmp_path)
    await target.jetstream().add_stream(name="OTHER", subjects=["orders.eu.>"])
    with pytest.raises(APIError, match="subjects overlap"):
        await restore_stream(target, tmp_path / STREAM, replicas=1)
    assert [info.config.name for info in await target.jetstream().streams_info()] == ["OTHER"]


async def fill(client: Client) -> None:
    """Make a stream that is larger than what is under way at once."""
    await client.jetstream().add_stream(name="LARGE", subjects=["large"])
    for _ in range(8):
        await client.jetstream().publish("large", os.urandom(900_000))


async def test_a_server_that_dies_half_way_leaves_no_folder_that_looks_whole(tmp_path: Path) -> None:
    async with await start_mesh() as mesh, await mesh.connect() as client:
        await fill(client)
        with pytest.raises(TransferEndedError, match="connection to the server broke; nothing of it was left"):
            await backup_stream(client, "LARGE", tmp_path, progress=lambda *_: mesh.servers["n1"].kill())
        assert list(tmp_path.iterdir()) == []


async def test_a_server_that_dies_half_way_keeps_no_stream_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await start_mesh() as mesh, await mesh.connect() as client:
        await fill(client)
        await backup_stream(client, "LARGE", tmp_path)
        await client.jetstream().delete_stream("LARGE")

        async def restart_when_killed() -> None:
            await eventually(lambda: mesh.servers["n1"].state == "killed", within=20.0)
            await mesh.restart("n1")

        def kill_half_way(done: int, total: int) -> None:
            if done > total / 2:
                mesh.servers["n1"].kill()

        again = asyncio.create_task(restart_when_killed())
        with pytest.raises(TransferEndedError, match="connection to the server broke; nothing of it was left"):
            await restore_stream(client, tmp_path / "LARGE", progress=kill_half_way)
        await again
        assert await client.jetstream().streams_info() == []

        monkeypatch.setattr(backup, "UNDONE_WITHIN_S", 0.1)  # the server stays away for longer than that
        with pytest.raises(TransferEndedError, match=f"with the label '{MARK}', delete it"):
            await restore_stream(client, tmp_path / "LARGE", progress=kill_half_way)
        await mesh.restart("n1")
        with pytest.raises(AlreadyThereError, match="was left by a restore"):
            await restore_stream(client, tmp_path / "LARGE")
        await client.jetstream().delete_stream("LARGE")
        assert (await restore_stream(client, tmp_path / "LARGE")).state["messages"] == 8


async def test_the_command_saves_and_restores_what_an_address_names(
    source: Client, mesh: Mesh, other: Mesh, target: Client, tmp_path: Path
) -> None:
    def run(command: str, *arguments: object, of: Mesh) -> tuple[int, str]:
        given = of.connect_options()
        url = ",".join(one.replace("nats://", f"nats://{given['user']}:{given['password']}@") for one in of.urls)
        call = [sys.executable, "-m", "mesh_lab.cli", command, *map(str, arguments)]
        environment = {**os.environ, "MESH_LAB_URL": url}
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr if done.returncode else done.stdout

    where = tmp_path / "saved"
    said = "saved ORDERS: 1,000 messages, consumers: 1, in"
    assert await asyncio.to_thread(run, "backup", "--to", where, of=mesh) == (0, f"{said} {where / STREAM}\n")
    code, said = await asyncio.to_thread(run, "backup", "--to", where, of=mesh)
    assert (code, "is there already" in said) == (1, True)
    code, said = await asyncio.to_thread(run, "restore", where, "--replicas", 1, of=other)
    assert (code, said) == (0, f"restored ORDERS: 1,000 messages, consumers: 1, from {where / STREAM}\n")
    assert totals_of(await stored(target)) == totals_of(ORDERS)
    code, said = await asyncio.to_thread(run, "restore", tmp_path / "none", of=other)
    assert (code, "SHA256SUMS is missing" in said) == (1, True)
