"""The main job in containers: the same exact totals, whatever is killed on the way, and nothing left behind."""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import nats.errors
import nats.js.errors
import pytest
from containers import SERVICES, assert_locked_down, command, leftovers

from mesh_lab.errors import ProcessEndedError, WrongTotalsError
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.job import run_orders
from mesh_lab.orders.order import STREAM, totals_of
from mesh_lab.orders.read_model import Summary, ask_read_model
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.compose import Project
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

HEADER = " customer_id  date number_of_cds  dollar_value\n"


@pytest.fixture
async def mesh(project: Project):
    async with await start_mesh(servers=3, backend="docker") as started:
        yield started
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await (await started.connect()).jetstream(timeout=5.0).delete_stream(STREAM)


def services(project: Project) -> list[str]:
    return [c.name for c in project.containers() if c.service in SERVICES and c.status == "running"]


@pytest.mark.parametrize("faults", [[], ["--kill-one"]], ids=["undisturbed", "with the leader's container killed"])
def test_the_main_job_is_exact(project: Project, faults: list[str]) -> None:
    done = command("orders", "--docker", *faults)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"exact: {EVERYTHING}, each order once" in said
    assert "69,659 orders" in said
    assert "$2,500,315.63" in said
    assert re.findall(r"fault: n\d (\w+)", said) == (["killed", "restarted"] if faults else [])
    assert [c.service for c in project.containers()] == ["n1", "n2", "n3"], "the services are gone, the servers stay"


async def test_a_run_leaves_no_stream_so_that_the_next_one_can_start(project: Project, mesh: Mesh) -> None:
    await run_orders(mesh, first=100, keep=False)
    run = await run_orders(mesh, first=100)
    assert run.totals == totals_of(read_orders(first=100))
    with pytest.raises(WrongTotalsError, match="ORDERS takes their name.*another account or mesh"):
        await run_orders(mesh, first=100)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_run_that_is_ended_is_not_in_the_way_of_the_next(project: Project, how: signal.Signals) -> None:
    whole = [sys.executable, "-m", "mesh_lab.cli", "orders", "--docker"]
    run = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await eventually(lambda: len(services(project)) == 4, within=120.0, every=0.5)
        run.send_signal(how)
        assert await asyncio.to_thread(run.wait, 60.0) == (130 if how == signal.SIGTERM else -signal.SIGKILL)
    finally:
        run.kill()
    assert bool(services(project)) is (how == signal.SIGKILL), "who is killed cannot end anything"
    done = await asyncio.to_thread(command, "orders", "--docker", "--first=200")
    assert done.returncode == 0, done.stderr
    assert services(project) == []


async def test_five_workers_share_the_work_and_one_that_is_killed_loses_no_order(project: Project, mesh: Mesh) -> None:
    seen: set[str] = set()

    def kill_a_worker(summary: Summary) -> None:
        if summary.totals.orders > 1_000 and not seen:
            seen.update(services(project))
            doomed = next(c for c in project.containers() if c.name == "worker-3")
            project.engine.docker("kill", doomed.id)

    run = await run_orders(mesh, workers=5, first=20_000, progress=kill_a_worker)
    assert seen == {"publisher-1", "read-model-1", *(f"worker-{number}" for number in range(1, 6))}
    assert run.totals == totals_of(read_orders(first=20_000))
    assert run.faults == ("worker-3 killed",)


async def test_the_death_of_every_worker_is_a_failure_that_says_so(project: Project, mesh: Mesh) -> None:
    def kill_the_worker(summary: Summary) -> None:
        for container in project.containers():
            if container.service == "worker" and container.status == "running":
                project.engine.docker("kill", container.id)

    with pytest.raises(ProcessEndedError, match="worker-1 ended with code 137"):
        await run_orders(mesh, workers=1, progress=kill_the_worker)
    assert services(project) == []


async def test_orders_from_a_file_are_read_in_the_container(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "orders.txt"
    path.write_text(HEADER + "00001 19970101 1 11.77\n00002 19970112 2 12.00\n")
    tmp_path.chmod(0o755)
    run = await run_orders(mesh, workers=1, file=path)
    assert run.totals == totals_of(read_orders(path))


async def test_compose_alone_runs_the_services_scales_them_and_ends_them_in_good_order(
    project: Project, mesh: Mesh
) -> None:
    up = ["--profile", "orders", "up", "--detach", "--scale=worker=2"]
    await asyncio.to_thread(project.compose, *up)
    client = await mesh.connect()

    async def placed() -> bool:
        return (await _ask(client)) is not None

    await eventually(placed, within=60.0)
    await asyncio.to_thread(project.compose, *up[:-1], "--no-recreate", "--scale=worker=5", "worker")
    assert len([name for name in services(project) if name.startswith("worker-")]) == 5

    async def complete() -> Summary | None:
        summary = await _ask(client)
        return summary if summary is not None and sum(summary.events.values()) >= 3 * EVERYTHING.orders else None

    summary = await eventually(complete, within=120.0, every=0.2)
    assert summary.totals == EVERYTHING
    assert summary.doubled == 0
    for container in project.containers():
        if container.service in SERVICES:
            assert_locked_down(json.loads(project.engine.docker("inspect", container.id))[0])
    project.compose("--profile", "orders", "stop", *SERVICES)
    processed = 0
    for container in project.containers():
        if container.service in SERVICES:
            state = json.loads(project.engine.docker("inspect", "-f", "{{json .State}}", container.id))
            assert state["ExitCode"] == 0, project.engine.logs(container.id)
            report = json.loads(project.engine.docker("logs", "--tail=1", container.id))
            assert report["service"] == container.service
            processed += report.get("processed", 0)
    assert processed >= EVERYTHING.orders
    project.compose("--profile", "orders", "rm", "--force", *SERVICES)


def test_no_password_is_in_an_image(project: Project, tmp_path: Path) -> None:
    project.make_variables()
    project.compose("--profile", "orders", "build", "--quiet", "worker")
    secrets = re.findall(r"PASSWORD=(\S+)", project.variables.read_text())
    image = "mesh-lab-services:0.1.0"
    engine = project.engine
    assert len(secrets) == 3
    said = engine.docker("history", "--no-trunc", image) + engine.docker("image", "inspect", image)
    assert not [secret for secret in secrets if secret in said]
    saved = tmp_path / "image.tar"
    engine.docker("save", "--output", str(saved), image)
    names = set()
    for name, content in _files_of(saved):
        names.add(name)
        assert not [secret for secret in secrets if secret.encode() in content], name
    assert "app/mesh_lab/orders/worker.py" in names, "the layers were looked into"
    ours = {name for name in names if name.startswith("app/")}
    assert not [name for name in ours if re.search(r"\.env$|\.pyc$|servers/|notebook/", name)]
    config = json.loads(engine.docker("image", "inspect", image))[0]["Config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python", "-m", "mesh_lab.orders"]


async def test_down_also_removes_services_that_still_run(project: Project) -> None:
    async with await start_mesh(servers=3, backend="docker"):
        project.compose("--profile", "orders", "up", "--detach", "--no-deps", "worker")
    assert (await asyncio.to_thread(project.down)).startswith("4 containers")
    assert leftovers(project.engine, project.name) == []


def _files_of(saved: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of every layer, packed or not, of an image that `docker save` wrote."""
    with tarfile.open(saved) as whole:
        for member in filter(tarfile.TarInfo.isfile, whole):
            stored = whole.extractfile(member)
            try:
                with tarfile.open(fileobj=stored) as layer:
                    yield from ((f.name, layer.extractfile(f).read()) for f in filter(tarfile.TarInfo.isfile, layer))
            except tarfile.ReadError:  # no layer, but what describes them
                stored.seek(0)
                yield member.name, stored.read()


async def _ask(client) -> Summary | None:
    try:
        return await ask_read_model(client, within=1.0)
    except (nats.errors.NoRespondersError, TimeoutError):
        return None
