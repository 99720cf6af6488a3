"""The order's whole life on real servers: one end for each order, and effects that agree, whatever is killed."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from mesh_lab.errors import OrderFormatError, WrongTotalsError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.order import STREAM, Order, dollars, encode
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.replay import dead_letters, replay_letters
from mesh_lab.orders.saga import DUTIES, LIVES, SAGA, fate
from mesh_lab.orders.saga_audit import audit_saga, expected_ends
from mesh_lab.orders.worker import REJECTED, Worker
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh


@pytest.fixture
async def store(client: Client) -> AsyncIterator[JetStreamContext]:
    """Empty streams with the groups of the saga; the test may make them before, as with other settings."""
    js = client.jetstream(timeout=5.0)
    yield js
    for stream in SAGA.streams:
        await js.delete_stream(stream)


async def _all_done(js: JetStreamContext) -> bool:
    groups = [await js.consumer_info(STREAM, group) for group in SAGA.groups]
    return not any(group.num_pending or group.num_ack_pending for group in groups)


@contextlib.asynccontextmanager
async def _services(mesh: Mesh, *, replicas: int = 1) -> AsyncIterator[list[Worker]]:
    """Run services, each with a connection of its own; leaving cancels them, whatever they have in hand."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await mesh.connect()) for _ in range(replicas * len(DUTIES))]
        workers = [Worker(client, duty) for client, duty in zip(clients, [*DUTIES.values()] * replicas, strict=True)]
        working = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            yield workers
        finally:
            await cancel_and_join(*working)


@pytest.mark.parametrize("copies", [1, 3])
async def test_each_order_comes_to_one_end_though_services_die_and_everything_comes_again(
    mesh: Mesh, client: Client, store: JetStreamContext, copies: int
) -> None:
    orders = list(read_orders(first=1_500))
    await open_event_store(client, replicas=copies, deployment=SAGA)
    await place_orders(client, orders)
    async with _services(mesh) as dying:
        await eventually(lambda: all(worker.processed > 50 for worker in dying), within=20.0, every=0.005)
    assert not await _all_done(store)
    async with _services(mesh, replicas=2):
        await eventually(lambda: _all_done(store), within=30.0, every=0.1)
        assert await audit_saga(client) == expected_ends(orders)
    before = [(await store.stream_info(stream)).state.messages for stream in SAGA.streams]
    for stream in SAGA.streams:  # as long after the duplicate window: the streams know no id any more
        config = (await store.stream_info(stream)).config
        config.duplicate_window = 0.1
        await store.update_stream(config)
    for group in SAGA.groups:
        await store.delete_consumer(STREAM, group)
    await open_event_store(client, deployment=SAGA)  # groups that begin at the beginning
    async with _services(mesh, replicas=2) as again:
        await eventually(lambda: _all_done(store), within=30.0, every=0.1)
        lives = [LIVES[fate(order)] for order in orders]
        brought = sum(len(life) - 1 + 2 * (life[-1] == "cancelled") for life in lives)
        assert sum(worker.processed for worker in again) >= brought
    assert [(await store.stream_info(stream)).state.messages for stream in SAGA.streams] == before
    assert await audit_saga(client) == expected_ends(orders)


def _with(end: str, number: int = 0) -> Order:
    return [order for order in read_orders(first=500) if fate(order) == end][number]


async def test_what_is_no_order_is_reported_and_replayed_when_it_is_repaired(
    mesh: Mesh, client: Client, store: JetStreamContext, tmp_path: Path
) -> None:
    await open_event_store(client, deployment=SAGA)
    await wait_routable(client, STREAM)
    reports = await client.subscribe(REJECTED)
    cut, blocked, foreign = (_with("shipped", number) for number in range(3))
    await client.publish(cut.subject("placed"), encode(cut)[:-5])
    await client.publish(blocked.subject("paid"), b"\xff")  # there before payment has the order
    await client.publish(foreign.subject("cancelled"), encode(blocked))  # which would undo another order
    await place_orders(client, [blocked, foreign])
    async with _services(mesh):
        seen = [(await reports.next_msg(timeout=10.0)).data.decode() for _ in range(4)]
        assert {line.split(":")[0] for line in seen} == {
            cut.subject("placed"), blocked.subject("paid"), foreign.subject("cancelled"),
        }  # fmt: skip
        await eventually(lambda: _all_done(store), within=20.0)
        with pytest.raises(
            WrongTotalsError, match=f"in no end: 1, as {blocked.id}; charged and not paid.*{blocked.id}"
        ):
            await audit_saga(client)

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            options = mesh.connect_options()
            urls = [url.replace("://", f"://{options['user']}:{options['password']}@") for url in options["servers"]]
            whole = [sys.executable, "-m", "mesh_lab.orders", "replay", *arguments]
            environment = {**os.environ, "NATS_URL": ",".join(urls)}
            return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60)

        said = json.loads((await asyncio.to_thread(command)).stdout)
        assert [letter["subject"] for letter in said["letters"]] == [
            cut.subject("placed"), blocked.subject("paid"), foreign.subject("cancelled"),
        ]  # fmt: skip
        for letter, order in zip(said["letters"], [cut, blocked], strict=False):
            letter["order"] = msgspec.to_builtins(order)
        (tmp_path / "repaired.json").write_text(json.dumps(said))
        for stored, before in ((2, 0), (0, 2)):
            done = await asyncio.to_thread(command, f"--file={tmp_path}/repaired.json")
            assert json.loads(done.stdout) == {"service": "replay", "stored": stored, "before": before}
        await eventually(lambda: _all_done(store), within=20.0)
    assert await audit_saga(client) == expected_ends([cut, blocked, foreign])
    assert [letter.subject for letter in await dead_letters(client)] == [foreign.subject("cancelled")]
    said["letters"][0]["order"]["id"] = "another"
    with pytest.raises(
        OrderFormatError, match=f"an order on subject '{cut.subject('placed')}', expected on 'orders.*another"
    ):
        await replay_letters(client, json.dumps(said).encode())
    with pytest.raises(OrderFormatError, match="truncated; seen b'', expected what `replay` prints, repaired"):
        await replay_letters(client, b"")


async def test_the_audit_names_what_does_not_agree(client: Client, store: JetStreamContext) -> None:
    await open_event_store(client, deployment=SAGA)
    for stream in SAGA.streams:
        await wait_routable(client, stream)
    assert await audit_saga(client) == expected_ends([])
    shipped, cancelled = _with("shipped"), _with("no carrier")

    async def add(*subjects: str, order: Order) -> None:
        for subject in subjects:
            await store.publish(subject, encode(order))

    for order in (shipped, cancelled):
        await add(*map(order.subject, LIVES[fate(order)]), order=order)
        await add(*(f"effects.{effect}.{order.id}" for effect in ("charge", "reserve")), order=order)
    with pytest.raises(WrongTotalsError, match="wrong orders: not refunded.*: 1, as .*; not released.*: 1") as wrong:
        await audit_saga(client)
    assert set(wrong.value.differences.values()) == {1}
    await add(*(f"effects.{effect}.{cancelled.id}" for effect in ("refund", "release")), order=cancelled)
    assert await audit_saga(client) == expected_ends([shipped, cancelled])
    await add(shipped.subject("cancelled"), order=shipped)
    await add(f"effects.refund.{cancelled.id}", order=cancelled)
    await add("effects.charge.stranger", order=msgspec.structs.replace(shipped, id="stranger"))
    await add(cancelled.subject("declined"), order=msgspec.structs.replace(cancelled, cents=1))
    with pytest.raises(WrongTotalsError) as wrong:
        await audit_saga(client)
    assert wrong.value.differences == {
        "stored twice": 1,
        "in two ends": 2,
        "never placed": 1,
        "changed": 1,
        "charged and not paid, or paid and not charged": 1,
        "not refunded, or for no reason": 1,
        "not released, or for no reason": 1,
    }


def test_the_command_takes_orders_through_their_whole_life_while_a_server_and_a_service_are_killed() -> None:
    whole = [sys.executable, "-m", "mesh_lab.cli", "orders", "--saga", "--kill-one", "--first=4000"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=200, env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == 0, done.stderr
    assert "exact: 4,000 orders, $146,052.93, each in one end" in done.stdout
    assert "fault: payment-1 killed" in done.stdout
    faults = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("fault: n")]
    assert faults == ["killed", "restarted"]
    for end in expected_ends(read_orders(first=4_000)):
        (row,) = [row for line in done.stdout.splitlines() if len(row := line.split()) == 7 and row[0] == end.end]
        money = [dollars(cents).removeprefix("$") for cents in (end.cents, end.charged, end.refunded)]
        assert row[1:] == [f"{end.orders:,}", *money, f"{end.reserved:,}", f"{end.released:,}"]
