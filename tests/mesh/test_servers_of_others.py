"""On servers that others run, a lesson finds its way or says why not, and leaves them as it found them."""

import ast
import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import psutil
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from programs import killed_at_the_end

from mesh_lab.errors import UnsupportedByBackendError, WrongTotalsError
from mesh_lab.notebook.services import Services
from mesh_lab.notebook.trial import Trial
from mesh_lab.orders import read_orders
from mesh_lab.orders.job import run_orders
from mesh_lab.orders.order import totals_of
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.security.accounts import Operator
from mesh_lab.servers import start
from mesh_lab.servers.borrowed import in_use
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ACCOUNTS = ("empty", "full")
MAKES_ONE_AND_ENDS = """
async def main(nc):
    await nc.jetstream(timeout=10).add_stream(name="AT-ONCE", subjects=["at.once"])
"""
MAKES_ONE_WHEN_ASKED = """
async def main(nc):
    async def make(msg):
        await nc.jetstream(timeout=10).create_key_value(bucket=msg.data.decode())
        await msg.respond(b"")
    await nc.subscribe("make", cb=make)
    await asyncio.Event().wait()
"""


@pytest.fixture(scope="module")
def theirs() -> Iterator[Mesh]:
    """Three servers with names of their own, and two accounts."""
    users = "".join(
        f'{name} {{ jetstream: enabled, users: [{{ user: "{name}", password: "p@ss {name}" }}] }}\n'
        for name in ACCOUNTS
    )
    mesh = asyncio.run(start_mesh(regions={"prod": 3}, links=False, backend="local", accounts_config=users))
    yield mesh
    asyncio.run(mesh.close())


@pytest.fixture(scope="module")
def full(theirs: Mesh) -> None:
    """500 messages of somebody's in a stream that lessons would like to call their own."""

    async def fill() -> None:
        async with await _client(theirs, "full") as client:
            js = client.jetstream(timeout=10.0)
            await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
            await wait_routable(client, "ORDERS")
            for number in range(500):
                await js.publish(f"orders.eu.{number}.placed", b"somebody's")

    asyncio.run(fill())


@pytest.fixture
def _lessons() -> Iterator[None]:
    start.begin_lessons()
    yield
    start.begin_lessons(False)


@pytest.fixture
async def use(theirs: Mesh, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """What the environment says of the empty account; its streams are removed."""
    monkeypatch.setenv("MESH_LAB_URL", _url(theirs, "empty"))
    yield
    async with await _client(theirs, "empty") as client:
        for name in await stream_names(client):
            await client.jetstream().delete_stream(name)


def _url(theirs: Mesh, account: str) -> str:
    return theirs.urls[0].replace("://", f"://{account}:p%40ss%20{account}@")


async def _client(theirs: Mesh, account: str, **options: Any) -> Client:
    return await nats.connect(theirs.urls[0], user=account, password=f"p@ss {account}", **options)


async def _held(theirs: Mesh, account: str) -> dict[str, int]:
    async with await _client(theirs, account) as client:
        infos = await client.jetstream(timeout=10.0).streams_info()
        return {info.config.name: info.state.messages for info in infos}


def _setups() -> dict[str, str]:
    """Return the set-up cell of each notebook, once for those that start the same mesh."""
    import nbformat

    found: dict[str, str] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cell = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        lines = cell.source.splitlines()[1:]  # without %load_ext
        line = next(line for line in lines if line.startswith("mesh = await start_mesh("))
        found.setdefault(line, "\n".join(line for line in lines if line != "mesh"))
    return found


async def _run(source: str) -> Mesh:
    names: dict[str, Mesh] = {}
    code = compile(source, "set-up", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, names)
    if inspect.isawaitable(running):
        await running
    return names["mesh"]


@pytest.mark.usefixtures("_lessons", "full")
@pytest.mark.parametrize("setup", _setups())
async def test_a_lesson_runs_on_servers_of_its_own_where_others_have_streams_or_cannot_do_it(
    theirs: Mesh, setup: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_LAB_URL", _url(theirs, "full"))
    mesh = await _run(_setups()[setup])
    try:
        said = capsys.readouterr().out
        assert (mesh.backend, said.count("\n")) == ("local", 1)
        assert said.startswith("Local servers run here, not those of MESH_LAB_URL: ")
        assert "asked for, but" in said or "holds streams that this lesson did not make (ORDERS)" in said
    finally:
        await mesh.close()
    assert await _held(theirs, "full") == {"ORDERS": 500}


@pytest.mark.usefixtures("_lessons", "use")
async def test_a_lesson_takes_with_it_what_it_made_and_nothing_else(theirs: Mesh) -> None:
    mesh = await start_mesh(servers=3)
    assert sorted(mesh.servers) == ["prod-1", "prod-2", "prod-3"], "each under its own name"
    here, there, *_ = mesh.servers
    near, far = await mesh.connect(to=here), await mesh.connect(to=there)
    await near.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
    await far.jetstream().create_key_value(bucket="STOCK")
    await far.jetstream().add_stream(name="REPLACED", subjects=["replaced"])
    async with await _client(theirs, "empty") as somebody:
        js = somebody.jetstream()
        await js.add_stream(name="THEIRS", subjects=["theirs"])
        await js.delete_stream("REPLACED")
        await js.add_stream(name="REPLACED", subjects=["theirs.too"])
    await mesh.close()  # before the last audits are here
    assert mesh.borrowed is not None
    assert set(mesh.borrowed.made) == {"ORDERS", "KV_STOCK", "REPLACED"}
    assert set(await _held(theirs, "empty")) == {"THEIRS", "REPLACED"}


@pytest.mark.usefixtures("_lessons", "use")
async def test_a_lesson_takes_with_it_what_its_services_made_and_not_what_a_namesake_of_theirs_did(
    theirs: Mesh,
) -> None:
    mesh, services = await start_mesh(servers=3), Services()
    try:
        services.run("once", MAKES_ONE_AND_ENDS)
        services.run("maker", MAKES_ONE_WHEN_ASKED, replicas=2)
        client = await mesh.connect()
        await client.request("make", b"WHEN-ASKED", timeout=10.0)
        async with await _client(theirs, "empty", name="maker-1") as namesake:
            await namesake.jetstream(timeout=10.0).add_stream(name="THEIRS", subjects=["theirs"])
    finally:
        services.stop_all()
        await mesh.close()
    assert set(await _held(theirs, "empty")) == {"THEIRS"}


@pytest.mark.usefixtures("_lessons", "use")
async def test_the_set_up_cell_runs_again_and_finds_the_account_empty(theirs: Mesh) -> None:
    first = await start_mesh(servers=3)
    await (await first.connect()).jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    async with await start_mesh(servers=3) as second:
        assert (first.closed, second.backend) == (True, "external")
        assert await _held(theirs, "empty") == {}


@pytest.mark.usefixtures("use")
async def test_a_lesson_does_not_join_another_one() -> None:
    async with await start_mesh() as other:
        start.forget(other)  # as if another process had it
        await other.borrow()
        start.begin_lessons()
        try:
            with pytest.raises(UnsupportedByBackendError, match="another lesson, or a run of the main job, works in"):
                await start_mesh(backend="external")
        finally:
            start.begin_lessons(False)


@pytest.mark.usefixtures("_lessons", "full")
async def test_a_backend_that_is_named_is_refused_and_not_replaced(theirs: Mesh, monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_URL", _url(theirs, "full"))
    for asked, said in (
        ({}, r"holds streams that this lesson did not make \(ORDERS\)"),
        ({"needs": "kill"}, "servers that may be killed and paused asked for, but.*backend='local'"),
        ({"servers": 5}, r"5 servers asked for, but MESH_LAB_URL reaches 3 \(prod-\d, prod-\d, prod-\d\)"),
    ):
        with pytest.raises(UnsupportedByBackendError, match=said):
            await start_mesh(backend="external", **asked)


@pytest.mark.usefixtures("_lessons")
async def test_an_account_without_jetstream_is_left_alone(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    bare = "BARE { users: [{ user: bare, password: bare }] }"
    async with await start_mesh(backend="local", accounts_config=bare) as single:
        monkeypatch.setenv("MESH_LAB_URL", single.urls[0].replace("://", "://bare:bare@"))
        async with await start_mesh() as mesh:
            assert mesh.backend == "local"
    assert "JetStream does not serve the account there: JetStream not enabled for account" in capsys.readouterr().out


@pytest.mark.usefixtures("full")
async def test_a_check_does_not_remove_a_stream_of_somebody_s(theirs: Mesh, monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_URL", _url(theirs, "full"))
    async with await start_mesh(backend="external") as mesh:  # no lesson, so that others' streams are there
        trial = Trial("3.1", mesh)
        with pytest.raises(UnsupportedByBackendError, match="makes a stream ORDERS, and the account holds one that"):
            await trial.stream(await trial.client(), "ORDERS", subjects=["orders.>"])
        await trial.close()
    assert await _held(theirs, "full") == {"ORDERS": 500}


@pytest.mark.usefixtures("full")
async def test_the_main_job_stores_nothing_where_orders_of_others_are(theirs: Mesh, monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_URL", _url(theirs, "full"))
    async with await start_mesh() as mesh:
        for keep in (True, False):
            with pytest.raises(WrongTotalsError, match="would mix with the run's: ORDERS takes their name"):
                await run_orders(mesh, first=10, keep=keep)
    assert await _held(theirs, "full") == {"ORDERS": 500}


@pytest.mark.usefixtures("use")
async def test_the_main_job_stores_nothing_where_other_streams_take_its_name_or_subjects(theirs: Mesh) -> None:
    async with await _client(theirs, "empty") as somebody:
        await somebody.jetstream().add_stream(name="EUROPE", subjects=["orders.eu.>"])
        await somebody.jetstream().add_stream(name="ORDERS", subjects=["something.else"])
    async with await start_mesh() as mesh:
        with pytest.raises(UnsupportedByBackendError, match="3 external servers, expected 3 that may be killed"):
            await run_orders(mesh, first=10, kill_one=True)
        with pytest.raises(WrongTotalsError, match="would mix with the run's: EUROPE, ORDERS takes their name"):
            await run_orders(mesh, first=10)
    assert await _held(theirs, "empty") == {"EUROPE": 0, "ORDERS": 0}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mesh_lab.cli", *arguments]


@pytest.mark.usefixtures("use")
async def test_the_main_job_is_exact_on_servers_with_other_names(theirs: Mesh) -> None:
    for _ in range(2):  # whichever server leads the stream
        done = await asyncio.to_thread(
            subprocess.run, _command("orders", "--first=500"), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stdout.split())
        assert f"exact: {totals_of(read_orders(first=500))}" in said
        assert "servers: 3, ready" in said
        assert "replicas: 3; workers: 2" in said
    assert await _held(theirs, "empty") == {}


async def test_the_main_job_is_exact_on_one_server_that_a_credentials_file_opens(monkeypatch, tmp_path: Path) -> None:
    operator = Operator("theirs")
    async with await start_mesh(backend="local", operator=operator) as single:
        monkeypatch.setenv("MESH_LAB_URL", single.urls[0])
        monkeypatch.setenv("MESH_LAB_CREDS", single.connect_options()["user_credentials"])
        done = await asyncio.to_thread(
            subprocess.run, _command("orders", "--first=50"), capture_output=True, text=True, timeout=60
        )
        assert "servers: 1, ready" in done.stdout, done.stderr
        assert "replicas: 1;" in " ".join(done.stdout.split())
        start.begin_lessons()
        try:
            async with await start_mesh() as mesh:
                assert mesh.backend == "external"
        finally:
            start.begin_lessons(False)


@pytest.mark.usefixtures("use")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_run_that_was_ended_is_not_in_the_way_of_the_next(theirs: Mesh, how: signal.Signals) -> None:
    command = subprocess.Popen(_command("orders"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with killed_at_the_end(command):
        await eventually(lambda: _is_filled(theirs), within=30.0)
        with contextlib.suppress(NotFoundError):
            async with await _client(theirs, "empty") as client:
                assert await in_use(client)
        services = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(how)
        assert await asyncio.to_thread(command.wait, 30.0) == (130 if how == signal.SIGTERM else -signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, services, 10)  # they would place orders among the next run's
    assert alive == []
    assert set(await _held(theirs, "empty")) == (set() if how == signal.SIGTERM else {"ORDERS"})
    async with await start_mesh() as mesh:
        assert (await run_orders(mesh, first=10, keep=False)).totals == totals_of(read_orders(first=10))
    assert await _held(theirs, "empty") == {}


async def _is_filled(theirs: Mesh) -> bool:
    return (await _held(theirs, "empty")).get("ORDERS", 0) > 100


@pytest.mark.usefixtures("use")
async def test_what_a_killed_kernel_left_is_removed_when_somebody_says_so(theirs: Mesh) -> None:
    async with await _client(theirs, "empty") as client:
        for name in ("ONE", "TWO"):
            await client.jetstream().add_stream(name=name, subjects=[name])

    def clear(*arguments: str, answer: str = "") -> tuple[int, str]:
        command = _command("clear", *arguments)
        done = subprocess.run(command, input=answer, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    code, said = clear("THREE")
    assert (code, "stream not found" in said) == (1, True)
    code, said = clear()
    assert (code, said.startswith("ONE: 0 messages, ONE\nTWO: 0 messages, TWO\nRemove")) == (0, True)
    assert set(await _held(theirs, "empty")) == {"ONE", "TWO"}
    assert clear("ONE", answer="y\n")[0] == 0
    assert set(await _held(theirs, "empty")) == {"TWO"}
    assert clear("--yes")[1].endswith("removed TWO\n")
    assert clear("--yes") == (0, "nothing to clear: the account holds no streams\n")


def test_local_servers_leave_nothing_to_clear() -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MESH_LAB_URL", "MESH_LAB_BACKEND")
    }
    done = subprocess.run(_command("clear"), env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.startswith("nothing to clear: local servers")) == (0, True)


def _cells(notebook: str, first: int | None = None) -> list[str]:
    """Return pytest's names of a notebook's first code cells, without exercises and what measures: both take long."""
    import nbformat

    path = NOTEBOOKS / f"{notebook}.ipynb"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [
        f"notebooks/{path.name}::Cell {number}"
        for number, cell in enumerate(cells[:first])
        if not {"exercise", "check", "solution"} & set(cell.metadata.get("tags", [])) and "measure(" not in cell.source
    ]


@pytest.mark.usefixtures("use")
async def test_notebooks_hold_on_servers_of_others_one_after_another_and_leave_no_stream(theirs: Mesh) -> None:
    cells = [*_cells("02_share_work_in_queue_groups", first=11), *_cells("03_keep_orders_in_jetstream")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", *cells]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=NOTEBOOKS.parent, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, f"{len(cells)} passed" in done.stdout) == (0, True), done.stdout
    assert await _held(theirs, "empty") == {}
