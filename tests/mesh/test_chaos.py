"""Chaos runs on real servers: the promise is kept where it holds, and its breach is detected where it does not."""

import asyncio
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig
from programs import killed_at_the_end

from mesh_lab import start_mesh
from mesh_lab.chaos.command import run_chaos, run_power_cuts
from mesh_lab.chaos.disks import clear_leftovers, start_all, why_not
from mesh_lab.chaos.history import Attempt, History, audit
from mesh_lab.chaos.injection import inject
from mesh_lab.chaos.run import ChaosRun, audit_after_faults, caught_up, chaos_run, new_servers, power_cut, read_replicas
from mesh_lab.chaos.schedule import KINDS, LINKED, OUTBOX_STEPS, InjectedFault, PlannedFault
from mesh_lab.chaos.services import services_of
from mesh_lab.chaos.stored import Stored, read_stream
from mesh_lab.chaos.writers import Writers
from mesh_lab.errors import NoPowerCutError, UnsupportedByBackendError
from mesh_lab.orders.event_store import create_worker_group, open_event_store
from mesh_lab.orders.order import ALL_SUBJECTS, STREAM
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.mesh import Mesh


@pytest.fixture(scope="module")
def _power_can_be_cut() -> None:
    if missing := why_not():
        pytest.skip(f"no power cut here: {missing}")


def needs_power_cut(test: Callable[..., object]) -> Callable[..., object]:
    return pytest.mark.needs("power-cut")(pytest.mark.usefixtures("_power_can_be_cut")(test))


async def with_store(mesh: Mesh) -> Client:
    """Open the event store on three servers, and return the client that did."""
    client = await mesh.connect()
    await open_event_store(client, replicas=3)
    await wait_routable(client, STREAM)
    return client


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
        await with_store(mesh)
        reported: list[InjectedFault] = []
        async with Writers(mesh) as writing:
            faults = await inject(mesh, STREAM, steps, now=lambda: writing.now_s, on_fault=reported.append)
            done = len(writing.history)
            await eventually(lambda: len(writing.history) > done + 100, within=60.0)
        await mesh.ready()
        run = await audit_after_faults(mesh, writing.history, faults)
        run.check()
        assert [fault.planned for fault in run.faults] == steps
        assert [fault.planned for fault in reported] == steps
        assert run.longest_gap_s > 1.0, "six faults, and nobody was hindered: they were none"
        await eventually(mesh.is_healthy, within=20.0)


async def test_a_slow_link_a_hand_over_and_a_loss_of_quorum_lose_no_order():
    steps = [
        PlannedFault(0.3, "slow", "leader", 0.5),
        PlannedFault(0.9, "step down", "leader", 0.2),
        PlannedFault(1.2, "no quorum", "follower", 1.0),
    ]
    async with await start_mesh(servers=3, links=True) as mesh:
        await with_store(mesh)
        async with Writers(mesh) as writing:
            hurting = asyncio.create_task(inject(mesh, STREAM, steps, now=lambda: writing.now_s))
            await eventually(lambda: sum(s.state == "killed" for s in mesh.servers.values()) == 2, within=30.0)
            faults = await hurting
            done = len(writing.history)
            await eventually(lambda: len(writing.history) > done + 100, within=60.0)
        run = await audit_after_faults(mesh, writing.history, faults, restart=False)
    run.check()
    assert [fault.planned for fault in run.faults] == steps


async def test_a_worker_and_a_publisher_that_die_at_every_step_lose_and_double_nothing():
    deaths = [("kill worker", "effect"), *(("kill publisher", step) for step in OUTBOX_STEPS)]
    steps = [PlannedFault(0.1 * number, kind, step, 0.0) for number, (kind, step) in enumerate(deaths)]
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        await open_event_store(client, replicas=3)
        await create_worker_group(client.jetstream(), ack_wait=1.0)
        await wait_routable(client, STREAM)
        async with services_of(mesh, ["worker", "publisher"]) as services, Writers(mesh, pace=0.005) as writing:
            faults = await inject(mesh, STREAM, steps, now=lambda: writing.now_s, services=services)
            await writing.stop()
            await services["publisher"].finish()
            for attempt in services["publisher"].attempts(began=writing.began):
                writing.history.add(attempt)
            await services["worker"].finish(writing.history.acknowledged)
            redelivered, effects = services["worker"].redelivered, services["worker"].effects()
        run = await audit_after_faults(mesh, writing.history, faults, effects=effects, restart=False)
    run.check()
    assert [(fault.server, fault.planned.target) for fault in faults] == [
        (kind.removeprefix("kill "), step) for kind, step in deaths
    ]
    assert any(attempt.writer == "publisher" for attempt in run.history.attempts)
    assert redelivered > 0, "the worker died, and nothing came again: it died after an acknowledgement"


async def test_a_service_that_is_not_there_cannot_be_killed():
    async with await start_mesh(servers=1) as mesh:
        for kind in ("kill worker", "kill publisher"):
            with pytest.raises(UnsupportedByBackendError, match=rf"'{kind}' takes a {kind[5:]}; .*services="):
                await inject(mesh, STREAM, [PlannedFault(0.0, kind, "effect", 0.0)], now=lambda: 0.0)


async def test_a_run_from_a_seed_breaks_servers_without_links_as_well():
    async with await start_mesh(servers=3) as mesh:
        run = await chaos_run(mesh, seed=5, seconds=4.0)
        with pytest.raises(ValueError, match=r"stream ORDERS holds \d.* messages, expected none"):
            await chaos_run(mesh, seed=5, seconds=4.0)
    run.check()
    assert {fault.planned.kind for fault in run.faults} <= set(KINDS) - LINKED


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
        client = await with_store(mesh)
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
    assert run_chaos(seed=3, seconds=3.0, outage=1.0, kinds=["stop"]) == 0
    told = capsys.readouterr()
    assert "lost" in told.out
    assert "seed 3" in told.err
    assert re.search(r"\d\.\d s: stop n\d \((leader|follower)\)", told.err)


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
async def test_full_disks_and_power_cuts_lose_no_order_that_was_synced():
    steps = [PlannedFault(0.5, "full disk", "leader", 0.2), PlannedFault(1.0, "power cut", "all", 0.0)]
    async with new_servers(["full disk", "power cut"]) as (mesh, disks):
        await with_store(mesh)
        async with Writers(mesh) as writing:
            faults = await inject(mesh, STREAM, steps, now=lambda: writing.now_s, disks=disks)
        assert any("resources" in mesh.logs(name, last=None) for name in mesh.servers), "the disk was never full"
        run = await audit_after_faults(mesh, writing.history, faults, restart=False)
    run.check()


async def test_a_disk_that_a_server_does_not_have_cannot_be_filled():
    async with await start_mesh(servers=3) as mesh:
        with pytest.raises(UnsupportedByBackendError, match=r"'full disk' takes .* use own_disks\(mesh\)"):
            await chaos_run(mesh, seed=1, seconds=3.0, kinds=["full disk"])


@needs_power_cut
async def test_disks_that_a_killed_run_left_are_cleared_by_the_next(tmp_path, monkeypatch):
    run = [sys.executable, "-m", "mesh_lab.cli", "chaos", "--fault", "full-disk", "--seconds", "30"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(run, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    mounts = lambda: Path("/proc/mounts").read_text().count(str(tmp_path))  # noqa: E731
    with killed_at_the_end(running):
        await eventually(lambda: mounts() == 3, within=30.0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert clear_leftovers() == 0, "disks of a run that is alive"
        running.kill()
        running.wait()
    assert await asyncio.to_thread(clear_leftovers) == 3
    assert mounts() == 0
    assert not list(tmp_path.glob("mesh-lab-disks-*"))


@needs_power_cut
async def test_an_order_that_was_not_synced_is_lost_in_a_power_cut_and_that_is_seen():
    run = await power_cut(seconds=2.0)
    assert len(run.audit.lost) > 0.9 * run.audit.acknowledged > 0
    assert not run.caught_up


def test_a_machine_that_allows_no_power_cut_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mesh_lab.chaos.disks.why_not", lambda: "not root, and only root may mount")
    with pytest.raises(NoPowerCutError, match="no power cut or full disk here: not root.*--privileged"):
        run_power_cuts(seconds=1.0)


def test_servers_that_are_not_back_are_a_line_of_the_table_and_explained_below(monkeypatch, capsys):
    def ended(not_back: str) -> ChaosRun:
        history = History([Attempt("w1", n, f"w1-{n}", 1.0 * n, 1.0 * n, "stored", n + 1) for n in range(3)])
        stored = [Stored(attempt.seq, attempt.id) for attempt in history.attempts]
        fault = InjectedFault(PlannedFault(8.0, "power cut", "all", 0.0), "all", 8.0, 9.0)
        return ChaosRun(history, (fault,), not not_back, audit(history, stored), not_back, {"n1": 3, "n2": 3, "n3": 2})

    async def cut(*, sync_interval: str | None, seconds: float) -> ChaosRun:
        return ended("503 … stream catching up" if sync_interval == "1s" else "")

    monkeypatch.setattr("mesh_lab.chaos.command.power_cut", cut)
    assert run_power_cuts(seconds=8.0) == 0
    told = capsys.readouterr()
    assert re.search(r"back within a minute +yes +no +yes", told.out)
    assert re.search(r"on the disk of n3 +2 +2 +2", told.out)
    assert "sync_interval 1s: not back within 60 s: 503 … stream catching up" in told.err
    assert re.search(r"a fault of nats-server\n\(this is 2\.\d+", told.err)
    assert "Notebook 14 shows the way back" in told.err


def test_a_terminal_shows_how_a_run_goes_on(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert run_chaos(seed=1, seconds=3.0, outage=1.0, kinds=["pause"]) == 0
    shown = terminal.getvalue()
    for word in ("elapsed", "faults so far", "acknowledged", "last fault", r"n\d paused"):
        assert re.search(word, shown), word
