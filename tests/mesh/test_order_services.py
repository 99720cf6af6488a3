"""The services of the order mesh: each order through all its events once, whatever is killed on the way."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import nats.errors
import nats.js.errors
import psutil
import pytest
from nats.aio.client import Client
from programs import killed_at_the_end

from mesh_lab.errors import OrderFormatError, ProcessEndedError, PublishRefusedError, WrongTotalsError
from mesh_lab.orders import publisher
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.event_store import WORKERS, create_event_store, create_worker_group, open_event_store, read_order
from mesh_lab.orders.job import run_orders
from mesh_lab.orders.order import STREAM, encode, totals_of
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import ReadModel, Summary, ask_read_model, serve_read_model
from mesh_lab.orders.worker import REJECTED, Worker
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.security.certificates import Authority
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

HEADER = " customer_id  date number_of_cds  dollar_value\n"


@pytest.fixture
async def store(client: Client):
    """An empty event store on the shared mesh, with the workers' group."""
    js = client.jetstream(timeout=5.0)
    await create_event_store(js, replicas=3)
    await create_worker_group(js, ack_wait=5.0)
    await wait_routable(client, STREAM)
    yield js
    await js.delete_stream(STREAM)


async def _summary_of(client: Client, events: int):
    serving = asyncio.create_task(serve_read_model(client))
    try:

        async def complete():
            try:
                summary = await ask_read_model(client)
            except nats.errors.NoRespondersError:
                return None
            return summary if summary.last_seq >= events else None

        return await eventually(complete, within=20.0)
    finally:
        serving.cancel()


async def test_orders_pass_through_all_their_events(client: Client, store) -> None:
    orders = list(read_orders(first=500))
    assert await place_orders(client, orders) == 500
    stop = asyncio.Event()
    worker = Worker(client)
    working = asyncio.create_task(worker.run(stop=stop))
    await eventually(lambda: worker.processed == 500, within=20.0)
    stop.set()
    await working
    summary = await _summary_of(client, 1_500)
    assert summary.totals == totals_of(orders)
    assert summary.events == {"placed": 500, "paid": 500, "shipped": 500}
    assert summary.doubled == 0


async def test_events_of_an_order_are_stored_in_their_order(client: Client, store) -> None:
    await place_orders(client, read_orders(first=50))
    worker = Worker(client)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: worker.processed == 50, within=20.0)
    working.cancel()
    for order in read_orders(first=50):
        life = await read_order(client, order.id)
        assert [e.event for e in life] == ["placed", "paid", "shipped"]
        assert {e.order for e in life} == {order}
    assert await read_order(client, "unknown") == []


async def test_a_publisher_that_goes_on_places_each_order_once_and_tells_those_that_were_there(
    client: Client, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "CHUNK", 20)
    for placed, again in ((50, 0), (100, 50), (100, 100)):
        told = Counter[str]()
        on_stored = lambda stored, twice, told=told: told.update(stored=stored, twice=twice)  # noqa: E731
        assert await place_orders(client, read_orders(first=placed), on_stored=on_stored) == placed
        assert (told["stored"], told["twice"]) == (placed, again)
        assert (await store.stream_info(STREAM)).state.messages == placed


async def test_a_publisher_goes_on_where_one_that_was_killed_stood(mesh: Mesh, store) -> None:
    options = mesh.connect_options()
    urls = [url.replace("://", f"://{options['user']}:{options['password']}@") for url in options["servers"]]
    environment = {**os.environ, "NATS_URL": ",".join(urls)}
    command = [sys.executable, "-m", "mesh_lab.orders", "publisher", "--first=20000"]

    async def stored() -> int:
        return (await store.stream_info(STREAM)).state.messages

    async def settled() -> bool:
        before = await stored()
        await asyncio.sleep(0.3)  # absence: what was on its way is stored by then
        return await stored() == before

    with killed_at_the_end(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)) as dying:
        await eventually(lambda: _reaches(stored, 500), within=30.0, every=0.01)
        dying.kill()
    for _ in range(2):  # a leader that hangs for a moment stores nothing, and then more
        await eventually(settled, within=10.0)
    there = await stored()
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60)
    assert 500 <= there < 20_000 == await stored()
    report = json.loads(done.stdout)
    assert (report["acknowledged"], report["duplicates"]) == (20_000, there)


async def _reaches(count: Callable[[], Awaitable[int]], least: int) -> bool:
    return await count() >= least


async def test_an_acknowledgement_covers_many_orders_where_the_stream_allows_it(mesh: Mesh, store) -> None:
    async with await mesh.connect() as own:
        received = own.stats["in_msgs"]
        assert await place_orders(own, read_orders(first=1_000)) == 1_000
        assert own.stats["in_msgs"] - received < 100
    assert (await store.stream_info(STREAM)).state.messages == 1_000


async def test_an_order_whose_worker_died_goes_to_another_and_is_done_once(client: Client, store, mesh: Mesh) -> None:
    await place_orders(client, read_orders(first=5_000))
    async with await mesh.connect() as other:
        dying = Worker(other)
        dies = asyncio.create_task(dying.run())
        await eventually(lambda: dying.processed >= 50, within=20.0, every=0.01)
        dies.cancel()  # with orders in hand, some of their events stored
        await asyncio.wait({dies})
    assert dying.processed < 5_000
    worker = Worker(client)
    working = asyncio.create_task(worker.run())

    async def all_acknowledged() -> bool:
        info = await store.consumer_info(STREAM, WORKERS)
        return info.num_pending == 0 and info.num_ack_pending == 0

    await eventually(all_acknowledged, within=20.0)
    working.cancel()
    assert (await store.stream_info(STREAM)).state.messages == 15_000


async def test_events_are_stored_one_by_one_where_the_stream_takes_no_fast_ingest(client: Client, store) -> None:
    config = (await store.stream_info(STREAM)).config
    config.allow_batched = False
    await store.update_stream(config)
    await place_orders(client, read_orders(first=50))
    worker = Worker(client)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: worker.processed == 50, within=20.0)
    working.cancel()
    assert set((await _lives(client, 150)).values()) == {("placed", "paid", "shipped")}


async def _lives(client: Client, events: int) -> dict[str, tuple[str, ...]]:
    """Return each order's events in the order in which the stream has them."""
    lives = defaultdict[str, tuple[str, ...]](tuple)
    async with contextlib.aclosing(read_in_order(client, STREAM)) as batches:
        while events > 0:
            for msg in await anext(batches):
                _, _, order, event = msg.subject.split(".")
                lives[order] += (event,)
                events -= 1
    return lives


async def test_a_message_that_is_no_order_is_reported_and_does_not_hold_up_the_rest(client: Client, store) -> None:
    reports = await client.subscribe(REJECTED)
    await store.publish("orders.eu.poison.placed", b"{}")
    await place_orders(client, read_orders(first=10))
    worker = Worker(client)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: worker.processed == 10, within=20.0)
    working.cancel()
    report = await reports.next_msg(timeout=5.0)
    assert b"orders.eu.poison.placed: not an order" in report.data
    assert worker.rejected == 1


async def test_bytes_that_are_no_text_are_reported_as_well(client: Client, store) -> None:
    await client.publish("orders.eu.bad.placed", b'{"id":"\xff"}')
    await store.publish("orders.eu.good.placed", encode(next(read_orders(first=1))))
    worker = Worker(client)
    working = asyncio.create_task(worker.run())
    try:
        await eventually(lambda: (worker.rejected, worker.processed) == (1, 1), within=10.0)
    finally:
        working.cancel()
        await asyncio.wait({working})


@pytest.mark.parametrize("padding", ["full", "nearly full", "unknown field"])
async def test_a_message_too_large_to_be_passed_on_ends_no_worker(mesh: Mesh, store, padding: str) -> None:
    async with await mesh.connect() as own:
        reports = await own.subscribe(REJECTED)
        first, second = read_orders(first=2)
        padded = encode(first).ljust(own.max_payload - (30 if padding == "nearly full" else 0))
        if padding == "unknown field":  # of which the reason quotes the name
            padded = b'{"%b":1}' % (b"x" * (own.max_payload - 6))
        await store.publish(first.subject("placed"), padded)
        await store.publish(second.subject("placed"), encode(second))
        worker = Worker(own)
        working = asyncio.create_task(worker.run())
        rejected = int(padding == "unknown field")
        await eventually(lambda: (worker.processed, worker.rejected) == (2 - rejected, rejected), within=20.0)
        await cancel_and_join(working)
        assert not own.is_closed
        if rejected:
            assert len((await reports.next_msg(timeout=5.0)).data) < 2_000

        async def nothing_comes_again() -> bool:
            info = await store.consumer_info(STREAM, WORKERS)
            return (info.num_pending, info.num_ack_pending) == (0, 0)

        await eventually(nothing_comes_again, within=5.0)
        assert (await store.get_last_msg(STREAM, second.subject("shipped"))).data == encode(second)


async def test_an_event_above_the_streams_own_limit_is_reported_and_terminated(client: Client, store) -> None:
    reports = await client.subscribe(REJECTED)
    one, other = read_orders(first=2)
    await store.publish(one.subject("placed"), encode(one))
    await store.publish(other.subject("placed"), encode(other))
    config = (await store.stream_info(STREAM)).config
    config.max_msg_size = len(encode(one)) + 10  # the id in the headers of an event does not fit any more
    await store.update_stream(config)
    worker = Worker(client)
    working = asyncio.create_task(worker.run())
    await eventually(lambda: worker.rejected == 2, within=20.0)
    await cancel_and_join(working)
    assert b"message size exceeds maximum allowed" in (await reports.next_msg(timeout=5.0)).data


async def test_a_worker_holds_its_orders_while_their_events_cannot_be_stored() -> None:
    boss, desk = "{ user: boss, password: boss }, ", "{{ user: desk, password: desk{} }}"
    may_not_pay = ', permissions: { publish: { deny: ["orders.*.*.paid"] } }'

    async def ignore(_err: Exception) -> None:
        """The server says what this user may not do."""

    async with await start_mesh(servers=1, users_config=boss + desk.format(may_not_pay)) as mesh:
        client = await mesh.connect(user="boss", password="boss")
        js = client.jetstream(timeout=5.0)
        await create_event_store(js)
        await create_worker_group(js, ack_wait=2.0)
        await wait_routable(client, STREAM, WORKERS)
        await place_orders(client, read_orders(first=3))
        workers = [Worker(await mesh.connect(user="desk", password="desk", error_cb=ignore)) for _ in range(2)]
        working = [asyncio.create_task(worker.run()) for worker in workers]

        async def group_has(in_hand: int) -> bool:
            info = await js.consumer_info(STREAM, WORKERS)
            return (info.num_pending, info.num_ack_pending, info.num_redelivered) == (0, in_hand, 0)

        await eventually(lambda: group_has(3), within=10.0)
        await asyncio.sleep(4.0)  # absence: in twice their ack_wait, no order comes again
        assert await group_has(3)
        await mesh.reload(users_config=boss + desk.format(""))
        await eventually(lambda: sum(worker.processed for worker in workers) == 3, within=15.0)
        await eventually(lambda: group_has(0), within=5.0)
        await cancel_and_join(*working)


async def test_a_worker_whose_client_is_closed_says_so(mesh: Mesh, store) -> None:
    own = await mesh.connect()
    await place_orders(own, read_orders(first=500))
    working = asyncio.create_task(Worker(own).run())
    await asyncio.sleep(0.05)  # work: it has orders in hand
    await own.close()
    with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
        await asyncio.wait_for(working, 5.0)


@pytest.mark.parametrize(
    "wrong", [{"id": "a b"}, {"id": "*"}, {"region": "eu.>"}, {"id": "a\r\nPUB x 0"}, {"cds": 0}, {"cds": 2**31}]
)
async def test_an_order_that_readers_would_refuse_is_not_placed(mesh: Mesh, store, wrong: dict[str, object]) -> None:
    # As the services connect, which leave it to the orders that a subject is one.
    async with await mesh.connect(skip_subject_validation=True) as own:
        good = next(read_orders(first=1))
        with pytest.raises(OrderFormatError, match=f"not an order: .*{next(iter(wrong))}"):
            await place_orders(own, [good, msgspec.structs.replace(good, **wrong), good])
        assert not own.is_closed
    assert (await store.stream_info(STREAM)).state.messages == 1


async def test_each_file_has_ids_of_its_own_and_a_second_time_is_told(mesh: Mesh, store, tmp_path: Path) -> None:
    options = mesh.connect_options()
    urls = [url.replace("://", f"://{options['user']}:{options['password']}@") for url in options["servers"]]

    def publish(file: Path, service: str) -> tuple[dict[str, object], str]:
        command = [sys.executable, "-m", "mesh_lab.orders", service, "--replicas=3", "--file", str(file)]
        environment = {**os.environ, "NATS_URL": ",".join(urls)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    files = [tmp_path / "monday.txt", tmp_path / "tuesday.txt"]
    for number, file in enumerate(files):
        rows = [f" {customer:05d} 19970101  1   {number + 1}1.77\n" for customer in range(1, 51)]
        file.write_text(HEADER + "".join(rows))
    try:
        for service in ("publisher", "bulk-publisher"):
            for file, duplicates in ((files[0], 0), (files[1], 0), (files[0], 50)):
                report, complaint = await asyncio.to_thread(publish, file, service)
                assert (report["acknowledged"], report["duplicates"]) == (50, duplicates)
                told = f"{service}: 50 of 50 orders were in the stream already, under the same ids"
                assert (told in complaint) is (duplicates > 0)
        assert (await store.stream_info(STREAM)).state.messages == 100
        assert (await store.stream_info("BULK")).state.messages == 4
    finally:
        for stream in ("BULK", "REJECTED"):
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await store.delete_stream(stream)


async def test_a_worker_whose_event_is_refused_ends_also_when_it_has_to_stop(client: Client, store) -> None:
    await place_orders(client, read_orders(first=5))
    config = (await store.stream_info(STREAM)).config
    config.max_msgs, config.discard = 5, "new"
    await store.update_stream(config)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(3.0, stop.set)  # it has orders in hand, and their first events are refused
    async with asyncio.timeout(10.0):
        with pytest.raises(PublishRefusedError, match="maximum messages exceeded"):
            await Worker(client).run(stop=stop)


async def test_publisher_worker_and_read_model_keep_no_more_of_an_order_than_its_id(mesh: Mesh, store) -> None:
    model, objects, a_time = ReadModel(), list[int](), 300
    async with await mesh.connect() as own, contextlib.aclosing(read_in_order(own, STREAM)) as batches:
        worker = Worker(own)
        working = asyncio.create_task(worker.run())
        for turn in range(11):
            orders = read_orders(first=a_time)
            await place_orders(own, (msgspec.structs.replace(order, id=f"{turn}-{order.id}") for order in orders))
            done = a_time * (turn + 1)
            while model.summary().last_seq < 3 * done:
                model.apply(await anext(batches))
            await eventually(lambda done=done: worker.processed == done, within=20.0, every=0.01)
            gc.collect()
            objects.append(sys.getallocatedblocks())
        await cancel_and_join(working)
    assert model.summary().totals.orders == 11 * a_time
    # The read model keeps one, the id; whoever kept messages would keep five of each.
    assert (objects[-1] - objects[0]) / (10 * a_time) < 3, objects


async def test_what_stands_is_opened_as_it_is(client: Client, store) -> None:
    config = (await store.stream_info(STREAM)).config
    config.max_msgs = 1_000
    await store.update_stream(config)
    await create_worker_group(store, ack_wait=60.0, max_ack_pending=100)
    info = await open_event_store(client, replicas=1)
    assert (info.config.num_replicas, info.config.max_msgs) == (3, 1_000)
    group = (await store.consumer_info(STREAM, WORKERS)).config
    assert (group.ack_wait, group.max_ack_pending) == (60.0, 100)


async def test_the_main_job_counts_what_is_declined(tmp_path: Path) -> None:
    path = tmp_path / "orders.txt"
    path.write_text(HEADER + " 00001 19970101  1   11.77\n 00002 19970101  3 6000.00\n")
    async with await start_mesh(servers=1) as mesh:
        run = await run_orders(mesh, workers=1, file=path)
    assert (run.totals.orders, run.totals.customers, run.totals.cds, run.totals.cents) == (2, 2, 1, 1_177)


async def test_the_event_store_forgets_nothing_on_request(client: Client, store) -> None:
    await place_orders(client, read_orders(first=1))
    with pytest.raises(nats.js.errors.APIError, match="message delete not permitted"):
        await store.delete_msg(STREAM, 1)
    with pytest.raises(nats.js.errors.APIError, match="stream purge not permitted"):
        await store.purge_stream(STREAM)


async def test_the_main_job_is_exact() -> None:
    async with await start_mesh(servers=3) as mesh:
        run = await run_orders(mesh, workers=2, first=10_000)
    assert run.totals == totals_of(read_orders(first=10_000))
    assert run.faults == ()


# With all orders, as notebook 15 runs it undisturbed.
async def test_the_main_job_is_exact_while_the_streams_leader_is_killed_and_restarted() -> None:
    async with await start_mesh(servers=3) as mesh:
        run = await run_orders(mesh, workers=2, kill_one=True)
        await eventually(mesh.is_healthy, within=20.0)
        lives = await _lives(await mesh.connect(), 3 * run.totals.orders)
    assert set(lives.values()) == {("placed", "paid", "shipped")}
    assert run.totals == EVERYTHING
    assert [fault.split()[1] for fault in run.faults] == ["killed", "restarted"]


@pytest.mark.parametrize(("doomed", "outcome"), [({"worker-1"}, "exact"), ({"worker-1", "worker-2"}, "failed")])
async def test_the_main_job_tolerates_the_death_of_a_worker_but_not_of_all(doomed: set[str], outcome: str) -> None:
    def kill_workers(summary: Summary) -> None:
        if summary.totals.orders > 1_000:
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if doomed & set(child.cmdline()):
                        child.kill()

    async with await start_mesh(servers=3) as mesh:
        running = run_orders(mesh, workers=2, first=8_000, progress=kill_workers)
        if outcome == "exact":
            run = await running
            assert run.totals == totals_of(read_orders(first=8_000))
            assert run.faults == ("worker-1 killed",)
        else:
            with pytest.raises(ProcessEndedError, match=r"worker-\d ended with code -9"):
                await running


async def test_an_order_that_nobody_placed_is_found_with_the_difference() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        intruder = msgspec.structs.replace(next(read_orders()), id="intruder", customer=99_999, cents=5)
        planting: list[asyncio.Task[object]] = []

        def plant(summary: Summary) -> None:
            if not planting:
                sent = client.jetstream(timeout=5.0).publish(intruder.subject("placed"), encode(intruder))
                planting.append(asyncio.create_task(sent))

        expected = r"orders: seen 8,001, expected 8,000 \(\+1\); customers: .*\(\+1\); cds: .*\(\+1\); .*\(\+5\)"
        with pytest.raises(WrongTotalsError, match=expected):
            await run_orders(mesh, first=8_000, progress=plant)


async def test_an_order_that_got_lost_is_found_with_the_difference() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()

        def lose(summary: Summary) -> None:
            if not stealing:
                stealing.append(asyncio.create_task(_steal_an_order(client)))

        stealing: list[asyncio.Task[None]] = []
        with pytest.raises(WrongTotalsError, match=r"cds: .*\(-[\d,]+\); cents: .*\(-[\d,]+\)"):
            await run_orders(mesh, first=8_000, progress=lose, within=20.0)
        await stealing[0]


async def _steal_an_order(client: Client) -> None:
    """Take one order from the workers' group and acknowledge it without doing anything for it."""
    thief = await client.jetstream().pull_subscribe_bind(consumer=WORKERS, stream=STREAM)
    while True:
        with contextlib.suppress(TimeoutError, nats.errors.TimeoutError):
            (msg,) = await thief.fetch(1, timeout=1.0)
            await msg.ack_sync()
            return


async def test_a_stream_that_was_there_before_is_not_counted_in() -> None:
    async with await start_mesh(servers=1) as mesh:
        client = await mesh.connect()
        await create_event_store(client.jetstream())
        await place_orders(client, read_orders(first=3))
        with pytest.raises(WrongTotalsError, match="ORDERS takes their name.*another account or mesh"):
            await run_orders(mesh, first=10)


async def test_a_doubled_event_and_a_changed_amount_are_found(client: Client, store) -> None:
    orders = list(read_orders(first=3))
    for order in orders:
        await store.publish(order.subject("placed"), encode(order))
    await store.publish(orders[0].subject("placed"), encode(orders[0]))
    await store.publish(orders[1].subject("paid"), encode(msgspec.structs.replace(orders[1], cents=1)))
    summary = await _summary_of(client, 5)
    assert summary.doubled == 1
    assert (summary.totals.orders, summary.totals.cents) == (3, 1)


@pytest.mark.parametrize("service", ["worker", "read-model", "bulk-reader", "stock"])
async def test_a_service_that_has_to_stop_reports_and_logs_no_error(mesh: Mesh, client, service) -> None:
    options = mesh.connect_options()
    urls = [url.replace("://", f"://{options['user']}:{options['password']}@") for url in options["servers"]]
    command = [sys.executable, "-m", "mesh_lab.orders", service, "--replicas=3", f"--name={service}-told"]
    environment = {**os.environ, "NATS_URL": ",".join(urls)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with killed_at_the_end(subprocess.Popen(command, env=environment, text=True, **pipes)) as process:

        def connected() -> bool:
            try:
                connections = [c for s in mesh.servers.values() for c in s.monitor.connz("subs=1")["connections"]]
            except OSError:  # too busy to answer
                return False
            return any(c.get("name") == f"{service}-told" and c.get("subscriptions", 0) >= 2 for c in connections)

        await eventually(connected, within=20.0, every=0.1)
        process.terminate()
        said, complained = process.communicate(timeout=20.0)
    assert (process.returncode, complained) == (0, "")
    assert json.loads(said)["service"] == service
    js = client.jetstream(timeout=5.0)
    for stream in (STREAM, "BULK", "REJECTED", "EFFECTS"):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await js.delete_stream(stream)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mesh_lab.cli", "orders", *arguments]


def test_the_command_shows_its_totals() -> None:
    done = subprocess.run(_command("--first", "500"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = str(totals_of(read_orders(first=500)))
    assert f"exact: {expected}, each order once" in " ".join(done.stdout.split())


def test_the_command_refuses_a_malformed_file_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "orders.txt"
    path.write_text(HEADER + "00001 19970101 1 11.77\n00002 19970112 one 12.00\n")
    done = subprocess.run(_command("--file", str(path)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "mesh-lab orders: orders.txt line 3: number of CDs 'one', expected a number above 0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"arguments": ["--file", "/no/such.txt"]}, 2, "'/no/such.txt', expected a file that is there"),
        ({"MESH_LAB_BACKEND": "podman"}, 1, "mesh-lab orders: backend 'podman' asked for, expected one of local"),
    ],
)
def test_the_command_says_what_it_cannot_use(settings: dict, code: int, said: str) -> None:
    arguments = settings.pop("arguments", [])
    done = subprocess.run(
        _command(*arguments), capture_output=True, text=True, timeout=60, env={**os.environ, **settings}
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert said in done.stderr


async def test_services_reach_a_mesh_by_tls_and_an_external_one_by_its_own_user(monkeypatch) -> None:
    async with await start_mesh(
        servers=1, tls=Authority(), users_config='{ user: "shop/1", password: "p%?#word" }'
    ) as mesh:
        assert (await run_orders(mesh, workers=1, first=10)).totals == totals_of(read_orders(first=10))
    async with await start_mesh(servers=1, users_config='{ user: "shop/1", password: "p%?#word" }') as mesh:
        address = mesh.urls[0].replace("://", "://shop%2F1:p%25%3F%23word@")
        monkeypatch.setenv("MESH_LAB_URL", address)
        async with await start_mesh() as external:
            assert external.backend == "external"
            run = await run_orders(external, workers=1, first=10, keep=False)
        assert run.totals == totals_of(read_orders(first=10))
        assert await (await mesh.connect()).jetstream().streams_info() == []


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--first", "-3"], ["--first", "many"]])
def test_the_command_refuses_numbers_that_make_no_sense(arguments: list[str]) -> None:
    done = subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "expected a whole number from 1" in done.stderr


async def test_killing_the_command_leaves_no_process_and_no_store(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = subprocess.Popen(_command(), env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    with killed_at_the_end(command):

        def family() -> list[psutil.Process]:
            return psutil.Process(command.pid).children(recursive=True)

        # Three servers, their guard, a read model, two workers and a publisher.
        await eventually(lambda: len(family()) >= 8, within=30.0)
        children = family()
        command.send_signal(signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert alive == []
    await eventually(lambda: not list(tmp_path.iterdir()), within=5.0)
