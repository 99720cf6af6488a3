"""Load from child processes counts what really happened, and ends with a clear error where it cannot."""

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from programs import killed_at_the_end

from mesh_lab.errors import ProcessEndedError
from mesh_lab.measure.load import deliver_load, publish_load
from mesh_lab.measure.measurement import measure
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    connected = await mesh.connect()
    yield connected
    await connected.close()


@pytest.fixture
async def orders(client: Client) -> AsyncIterator[JetStreamContext]:
    """A stream of orders on three servers, gone after the test."""
    js = client.jetstream()
    await js.add_stream(name="LOAD", subjects=["orders.*.*.placed"], num_replicas=3)
    await wait_routable(client, "LOAD")
    yield js
    await js.delete_stream("LOAD")


def load_children(parent: int | None = None) -> list[psutil.Process]:
    """Return the load generators that a process started."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "mesh_lab.measure.load_worker" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


async def test_everything_published_reaches_the_server(mesh: Mesh) -> None:
    before = sum(server.monitor.varz()["in_msgs"] for server in mesh.servers.values())
    run = await publish_load(mesh.connect_options(), messages=10_000, payload_bytes=64, publishers=2)
    after = sum(server.monitor.varz()["in_msgs"] for server in mesh.servers.values())
    assert after - before >= 10_000
    assert (run.messages, run.lost, run.payload_bytes) == (10_000, 0, 64)
    assert run.server_version.startswith("2.")
    assert not load_children()


async def test_everything_acknowledged_is_stored_with_its_payload(mesh: Mesh, orders: JetStreamContext) -> None:
    options = mesh.connect_options()
    await publish_load(options, messages=200, payload_bytes=100, acknowledged=True)
    await publish_load(options, messages=3_000, payload_bytes=100, publishers=2, acknowledged=True, window=500)
    info = await orders.stream_info("LOAD")
    assert info.state.messages == 3_200
    assert (await orders.get_msg("LOAD", 1)).subject == "orders.eu.0.placed"
    assert len((await orders.get_msg("LOAD", 3_200)).data) == 100


@pytest.mark.alone
@pytest.mark.usefixtures("orders")
async def test_a_window_is_faster_than_one_at_a_time(mesh: Mesh) -> None:
    options = mesh.connect_options()
    single = await measure(
        "js.publish",
        lambda: publish_load(options, messages=300, acknowledged=True),
        kind="acknowledged",
        runs=1,
        warmup=0,
    )
    windowed = await measure(
        "window of 500",
        lambda: publish_load(options, messages=6_000, acknowledged=True, window=500),
        kind="acknowledged",
        runs=1,
        warmup=0,
    )
    assert windowed.rate_per_s > 2 * single.rate_per_s


async def test_every_subscriber_gets_every_message_also_one_at_another_server(mesh: Mesh) -> None:
    """A client picks one of the servers; a subscription travels to the publisher's while it starts."""
    for _ in range(3):
        run = await deliver_load(mesh.connect_options(), messages=500, subscribers=3)
        assert (run.messages, run.lost, run.duplicates) == (1_500, 0, 0)


async def test_a_message_that_was_sent_again_is_counted_as_a_duplicate(mesh: Mesh, client: Client) -> None:
    repeated = []

    async def repeat(msg):
        if not repeated:
            repeated.append(msg)
            await client.publish(msg.subject, msg.data)
            await client.flush()

    await (await client.subscribe("orders.eu.*.placed", cb=repeat)).unsubscribe(limit=1)  # it hears the first alone
    await flush_through(client)
    run = await deliver_load(mesh.connect_options(), messages=60_000)
    assert len(repeated) == 1
    assert (run.lost, run.duplicates) == (0, 1)


async def test_other_messages_on_the_subject_are_not_counted(mesh: Mesh, client: Client) -> None:
    running = asyncio.create_task(deliver_load(mesh.connect_options(), messages=5_000, subject="orders.eu.x.placed"))
    while not running.done():
        for payload in (b"", b"short", b"not the run's mark"):
            await client.publish("orders.eu.x.placed", payload)
        await client.flush()
    assert ((await running).lost, running.result().duplicates) == (0, 0)


async def test_a_subscriber_that_the_server_cuts_off_loses_messages_and_the_run_says_so() -> None:
    # Left to itself, the server would slow the publisher down just enough.
    settings = "max_payload: 64KB, max_pending: 64KB, no_fast_producer_stall: true"
    async with await start_mesh(extra_config=settings) as mesh:
        run = await deliver_load(mesh.connect_options(), messages=20_000, payload_bytes=1_024)
        assert 0 < run.lost < 20_000
        assert run.duplicates == 0


@pytest.mark.parametrize("victim", ["publisher", "subscriber"])
async def test_a_killed_child_is_an_error_that_names_it(mesh: Mesh, victim: str) -> None:
    """The subscriber is the child that was started first."""
    running = asyncio.create_task(deliver_load(mesh.connect_options(), messages=5_000_000))
    await eventually(lambda: len(load_children()) == 2, within=10.0)
    children = sorted(load_children(), key=lambda process: process.create_time())
    children[victim == "publisher"].kill()
    with pytest.raises(ProcessEndedError, match=f"load child '{victim} 1' was killed by SIGKILL"):
        await running
    assert not load_children()


async def test_a_child_that_fails_shows_its_traceback(mesh: Mesh) -> None:
    with pytest.raises(
        ProcessEndedError, match=r"(?s)'publisher 1' ended with exit code 1: .*NoStreamResponse.*Traceback"
    ):
        await publish_load(mesh.connect_options(), messages=10, acknowledged=True)


async def test_a_wrong_password_is_reported_and_the_right_one_is_not_shown(mesh: Mesh) -> None:
    options = mesh.connect_options()
    with pytest.raises(ProcessEndedError, match=r"no server let us in: .*Authorization") as caught:
        await publish_load({**options, "password": "made-up"}, messages=10)
    assert "made-up" not in str(caught.value)
    assert options["password"] not in str(caught.value)


async def test_a_publisher_that_loses_its_server_does_not_count_what_never_left() -> None:
    async with await start_mesh(servers=3) as mesh:
        options = {**mesh.connect_options(to="n2"), "dont_randomize": True}
        running = asyncio.create_task(publish_load(options, messages=10_000_000))
        monitor = mesh.servers["n2"].monitor
        assert monitor is not None

        def busy() -> bool:
            with contextlib.suppress(OSError):  # too busy to answer
                return monitor.varz()["in_msgs"] > 5_000
            return False

        await eventually(busy, within=10.0)
        await mesh.kill("n2")
        with pytest.raises(ProcessEndedError, match="the connection broke while waiting for the server to read"):
            await running


@pytest.mark.usefixtures("orders")
async def test_a_load_that_takes_too_long_says_what_it_waited_for(mesh: Mesh) -> None:
    with pytest.raises(ProcessEndedError, match=r"not done after 1\.5 s; was waiting for acknowledgements"):
        await publish_load(mesh.connect_options(), messages=10_000_000, acknowledged=True, within=1.5)
    assert not load_children()


async def test_a_cancelled_load_leaves_no_child(mesh: Mesh) -> None:
    running = asyncio.create_task(publish_load(mesh.connect_options(), messages=10_000_000))
    await eventually(lambda: load_children(), within=10.0)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert not load_children()


async def test_children_die_with_a_parent_that_was_killed(mesh: Mesh) -> None:
    program = textwrap.dedent("""
        import asyncio, sys, msgspec
        from mesh_lab.measure.load import deliver_load
        asyncio.run(deliver_load(msgspec.json.decode(sys.stdin.buffer.read()), messages=20_000_000))
    """)
    command = [sys.executable, "-c", program]
    with killed_at_the_end(await asyncio.to_thread(subprocess.Popen, command, stdin=subprocess.PIPE)) as parent:
        assert parent.stdin is not None
        parent.stdin.write(msgspec.json.encode(mesh.connect_options()))
        parent.stdin.close()
        await eventually(lambda: len(load_children(parent.pid)) == 2, within=10.0)
        children = load_children(parent.pid)
        parent.kill()
    await eventually(lambda: not any(child.is_running() for child in children), within=5.0)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="reads what /proc shows of a process")
async def test_the_password_is_not_in_what_other_users_can_read(mesh: Mesh) -> None:
    options = mesh.connect_options()
    running = asyncio.create_task(publish_load(options, messages=10_000_000))
    await eventually(lambda: load_children(), within=10.0)
    [child] = load_children()
    shown = " ".join([*child.cmdline(), *child.environ().values()])
    assert "load_worker" in shown
    assert options["password"] not in shown
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
