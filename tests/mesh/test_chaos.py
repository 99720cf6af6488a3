"""Chaos runs on real servers: the promise is kept where it holds, and its breach is detected where it does not."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.js.api import StorageType, StreamConfig
from programs import killed_at_the_end

from mesh_lab import start_mesh
from mesh_lab.chaos.command import run_chaos, run_power_cuts
from mesh_lab.chaos.history import audit
from mesh_lab.chaos.power_cut import power_cut, why_not
from mesh_lab.chaos.run import audit_after_faults, caught_up, chaos_run, read_replicas
from mesh_lab.chaos.schedule import PlannedFault, inject, start_all
from mesh_lab.chaos.stored import read_stream
from mesh_lab.chaos.writers import Writers
from mesh_lab.errors import NoPowerCutError, UnsupportedByBackendError
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually


@pytest.fixture(scope="module")
def _power_can_be_cut() -> None:
    if missing := why_not():
        pytest.skip(f"no power cut here: {missing}")


def needs_power_cut(test: Callable[..., object]) -> Callable[..., object]:
    return pytest.mark.needs("power-cut")(pytest.mark.usefixtures("_power_can_be_cut")(test))


async def test_what_is_acknowledged_outlives_every_kind_of_fault():
    steps = [
        PlannedFault(0.5, "cut", "leader", 0.5),
        PlannedFault(1.0, "reset", "follower", 0.3),
        PlannedFault(1.5, "pause", "leader", 1.2),
        PlannedFault(2.0, "stop", "follower", 0.0),
        PlannedFault(2.5, "kill", "leader", 0.2),
        PlannedFault(3.0, "kill all", "all", 0.1),
    ]
    async with await start_mesh(servers=3, links=True) as mesh:
        client = await mesh.connect()
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        reported: list[str] = []
        async with Writers(mesh) as writing:
            faults = await inject(mesh, STREAM, steps, now=lambda: writing.now_s, on_fault=reported.append)
            done = len(writing.history)
            await eventually(lambda: len(writing.history) > done + 100, within=60.0)
        await mesh.ready()
        run = await audit_after_faults(mesh, writing.history, faults)
        run.check()
        assert [fault.planned for fault in run.faults] == steps
        assert len(reported) == len(steps)
        assert run.longest_gap_s > 1.0, "six faults, and nobody was hindered: they were none"
        await eventually(mesh.is_healthy, within=20.0)


async def test_a_run_from_a_seed_breaks_servers_without_links_as_well():
    async with await start_mesh(servers=3) as mesh:
        run = await chaos_run(mesh, seed=5, seconds=4.0)
        with pytest.raises(ValueError, match=r"stream ORDERS holds \d.* messages, expected none"):
            await chaos_run(mesh, seed=5, seconds=4.0)
    run.check()
    assert {fault.planned.kind for fault in run.faults} <= {"kill", "stop", "pause", "kill all"}


async def test_three_copies_in_memory_are_lost_together_and_that_is_seen():
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        await client.jetstream().add_stream(
            StreamConfig(name=STREAM, subjects=[ALL_SUBJECTS], num_replicas=3, storage=StorageType.MEMORY)
        )
        await wait_routable(client, STREAM)
        async with Writers(mesh, number=2) as writing:
            await eventually(lambda: len(writing.history) > 200, within=20.0)
        for name in mesh.servers:
            await mesh.kill(name)
        await start_all(mesh)
        reader = await mesh.connect()
        await wait_routable(reader, STREAM, within=30.0)
        found = audit(writing.history, await read_stream(reader, STREAM))
        assert len(found.lost) == found.acknowledged > 200
        assert not await caught_up(mesh, writing.history)


async def test_the_disks_hold_what_a_client_reads():
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        async with Writers(mesh, number=2) as writing:
            await eventually(lambda: len(writing.history) > 200, within=20.0)
        assert await caught_up(mesh, writing.history)
        stored = await read_stream(client, STREAM)
        assert [message.id for message in stored] == [
            a.id for a in sorted(writing.history.attempts, key=lambda a: a.seq)
        ]
        assert await read_replicas(mesh, STREAM) == dict.fromkeys(mesh.servers, stored)
        await eventually(mesh.is_healthy, within=20.0)


HURT = {
    "pause": lambda states, cut: "paused" in states,
    "kill": lambda states, cut: "killed" in states,
    "stop": lambda states, cut: "stopped" in states,
    "kill all": lambda states, cut: states == {"killed"},
    "cut": lambda states, cut: cut,
}


async def test_a_run_that_is_broken_off_leaves_all_servers_running_and_no_link_cut():
    async with await start_mesh(servers=3, links=True) as mesh:
        client = await mesh.connect()
        await open_event_store(client, replicas=3)
        for kind, hurt in HURT.items():
            step = PlannedFault(0.0, kind, "all" if kind == "kill all" else "follower", 60.0)

            async def is_hurt(hurt=hurt):
                states = {server.state for server in mesh.servers.values()}
                return hurt(states, any(lane.cut for lane in await mesh.lanes()))

            hurting = asyncio.create_task(inject(mesh, STREAM, [step], now=lambda: 0.0))
            # Every moment counts: the fault may be half-way when it is broken off.
            await eventually(is_hurt, within=30.0, every=0.0)
            hurting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hurting
            assert {server.state for server in mesh.servers.values()} == {"running"}, kind
            assert not any(lane.cut for lane in await mesh.lanes()), kind


async def test_other_meshes_than_three_local_servers_are_refused():
    async with await start_mesh(servers=1) as mesh:
        for run in (chaos_run(mesh, seed=1, seconds=3.0), read_replicas(mesh, STREAM)):
            with pytest.raises(UnsupportedByBackendError, match="1 servers of backend 'local', expected 3 local ones"):
                await run


async def test_links_that_are_not_there_cannot_be_cut():
    async with await start_mesh(servers=3) as mesh:
        with pytest.raises(UnsupportedByBackendError, match=r"start_mesh\(links=True\)"):
            await chaos_run(mesh, seed=1, seconds=3.0, kinds=["cut"])


async def test_writers_that_are_stopped_at_once_call_what_is_on_its_way_unknown():
    async with await start_mesh(servers=1) as mesh:
        client = await mesh.connect()
        await open_event_store(client)
        await wait_routable(client, STREAM)
        async with Writers(mesh, number=2) as writing:
            await eventually(lambda: len(writing.history) > 50, within=20.0)
            await mesh.pause("n1")
            await writing.stop(wait=False)
        await mesh.resume("n1")
    ends = [attempt.outcome for attempt in writing.history.attempts]
    assert ends[-2:] == ["unknown", "unknown"]
    assert set(ends[:-2]) == {"stored"}


def test_the_command_prints_what_became_of_the_orders(capsys: pytest.CaptureFixture[str]):
    assert run_chaos(seed=3, seconds=3.0) == 0
    told = capsys.readouterr()
    assert "lost" in told.out
    assert "seed 3" in told.err
    assert re.search(r"\d\.\d s: stop n\d \(follower\)", told.err)


@needs_power_cut
async def test_an_order_that_was_synced_outlives_a_power_cut():
    run = await power_cut(sync_interval="always", seconds=2.0)
    run.check()
    assert run.audit.acknowledged > 0


@needs_power_cut
@pytest.mark.parametrize("before", ["", "trap '' INT; "], ids=["in front", "a script's background job"])
async def test_a_power_cut_that_is_ended_early_leaves_no_disk(before, tmp_path):
    power_cuts = shlex.join([sys.executable, "-m", "mesh_lab.cli", "chaos", "--power-cut", "--seconds", "30"])
    command = ["sh", "-c", f"{before}exec {power_cuts}"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    with killed_at_the_end(running):
        mounts = lambda: Path("/proc/mounts").read_text().count(str(tmp_path))  # noqa: E731
        await eventually(lambda: mounts() == 3, within=30.0)
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 30.0) == 130
    assert mounts() == 0
    await eventually(lambda: not list(tmp_path.iterdir()), within=5.0)


@needs_power_cut
async def test_an_order_that_was_not_synced_is_lost_in_a_power_cut_and_that_is_seen():
    run = await power_cut(seconds=2.0)
    assert len(run.audit.lost) > 0.9 * run.audit.acknowledged > 0
    assert not run.caught_up


def test_a_machine_that_allows_no_power_cut_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mesh_lab.chaos.power_cut.why_not", lambda: "not root, and only root may mount")
    with pytest.raises(NoPowerCutError, match="no power cut here: not root.*--privileged"):
        run_power_cuts(seconds=1.0)
