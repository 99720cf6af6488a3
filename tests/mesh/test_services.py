"""Services are processes: they are ready when they say so, end as they are told, and leave nothing behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import MeshClosedError, NotReadyError, ProcessEndedError, UnknownNameError
from mesh_lab.notebook import service_host
from mesh_lab.notebook import services as services_module
from mesh_lab.notebook.service_cell import service_magic
from mesh_lab.notebook.services import Service, Services
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import OWNER_VARIABLE
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

ECHO = """
async def main(nc):
    sub = await nc.subscribe("echo.in")
    async for msg in sub.messages:
        if msg.data == b"crash":
            {}["no such key"]
        await nc.publish("echo.out", f"{os.environ['SERVICE_NAME']} {msg.data.decode()}".encode())
"""


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.stop_all()


def run(services: Services, line: str, cell: str) -> Service:
    """Run a cell as the magic does; its first line stands on line 2."""
    return service_magic(services)(line, cell.removeprefix("\n"))


async def collect(client: Client, subject: str) -> list[str]:
    received: list[str] = []

    async def note(msg: Msg) -> None:
        if not msg.subject.startswith("$JS."):  # the servers' own, of what other tests left behind
            received.append(msg.data.decode())

    await client.subscribe(subject, cb=note)
    await client.flush()
    return received


def owned(owner: str) -> list[psutil.Process]:
    def carries_the_mark(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(OWNER_VARIABLE) == owner
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if carries_the_mark(process)]


async def test_a_message_published_on_any_server_reaches_every_replica_as_soon_as_the_cell_returns(
    mesh: Mesh, services: Services
) -> None:
    clients = [await mesh.connect(to=server) for server in mesh.servers]
    received = await collect(clients[0], "echo.out")
    for turn in range(8):
        run(services, "echo --replicas 4", ECHO) if turn == 0 else services.scale("echo", 4)
        for client in clients:
            await client.publish("echo.in", b"%d" % turn)
        await eventually(lambda: len(received) == 12, within=5.0)
        assert sorted(received) == sorted(f"echo-{n} {turn}" for n in (1, 2, 3, 4) for _ in clients)
        received.clear()
        services.scale("echo", 0)
    for client in clients:
        await client.close()


async def test_what_main_asks_of_jetstream_before_it_subscribes_is_waited_for(mesh: Mesh, services: Services) -> None:
    cell = """
    async def main(nc):
        js = nc.jetstream()
        for name in ("ONE", "TWO", "THREE"):
            await js.add_stream(name=name, subjects=[f"{name}.>"], num_replicas=3)
            await js.delete_stream(name)
        sub = await nc.subscribe("late.in")
        async for msg in sub.messages:
            await nc.publish("late.out", msg.data)
    """
    async with await mesh.connect() as client:
        received = await collect(client, "late.out")
        run(services, "late", textwrap.dedent(cell))
        await client.publish("late.in", b"in time")
        await eventually(lambda: received == ["in time"], within=5.0)


async def test_the_report_of_being_ready_is_not_repeated_afterwards(mesh: Mesh, services: Services) -> None:
    async with await mesh.connect() as client:
        everything = await collect(client, ">")
        run(services, "echo --replicas 3", ECHO)
        await client.flush()
        await eventually(lambda: everything.count("") >= 3, within=5.0)

        async def is_quiet() -> bool:  # one may be on its way
            everything.clear()
            await asyncio.sleep(4 * service_host.ANNOUNCE_EVERY_S)  # absence: of further reports
            return not everything

        await eventually(is_quiet, within=5.0)
        await client.publish("echo.in", b"x")
        await eventually(lambda: len(everything) >= 4, within=5.0)
        assert sorted(everything) == ["echo-1 x", "echo-2 x", "echo-3 x", "x"]


def test_the_cell_says_how_many_processes_run(mesh: Mesh, services: Services) -> None:
    assert repr(run(services, "echo --replicas 3", ECHO)) == "echo: 3 processes running"
    assert repr(services.scale("echo", 1)) == "echo: 1 process running"
    assert repr(services.scale("echo", 0)) == "echo: no processes"


def test_scaling_down_takes_the_highest_numbers_and_scaling_up_brings_back_the_killed(
    mesh: Mesh, services: Services
) -> None:
    run(services, "echo --replicas 4", ECHO)
    services.scale("echo", 3)
    assert services["echo"].states == {1: "running", 2: "running", 3: "running"}
    assert repr(services.kill("echo", 1)) == "echo: 2 processes running, 1 killed"
    services.scale("echo", 4)
    assert services["echo"].states == dict.fromkeys((1, 2, 3, 4), "running")


def test_a_replica_that_could_not_be_started_does_not_count(
    mesh: Mesh, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(services, "echo", ECHO)
    popen = subprocess.Popen

    def refused(*arguments: object, **options: object) -> object:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(BlockingIOError):
        services.scale("echo", 2)
    assert services["echo"].states.get("echo-2") != "running"
    monkeypatch.setattr(subprocess, "Popen", popen)
    services.scale("echo", 2)
    assert list(services["echo"].states.values()) == ["running", "running"]


async def test_a_killed_replica_stays_dead_and_the_others_go_on(mesh: Mesh, services: Services) -> None:
    async with await mesh.connect() as client:
        received = await collect(client, "echo.out")
        run(services, "echo --replicas 3", ECHO)
        services.kill("echo", 2)
        await client.publish("echo.in", b"x")
        await eventually(lambda: len(received) == 2, within=5.0)
    assert sorted(received) == ["echo-1 x", "echo-3 x"]
    assert services["echo"].states == {1: "running", 2: "killed", 3: "running"}
    assert services.unreported_crashes() == ""


async def test_a_crash_is_shown_once_with_the_line_of_the_cell(mesh: Mesh, services: Services) -> None:
    run(services, "echo --replicas 2", ECHO)
    async with await mesh.connect() as client:
        await client.publish("echo.in", b"crash")
    await eventually(lambda: set(services["echo"].states.values()) == {"crashed"}, within=5.0)
    assert services.unreported_crashes() == textwrap.dedent("""\
        echo-1 and echo-2 crashed:
        Traceback (most recent call last):
          File "<service echo>", line 6, in main
            {}["no such key"]
        KeyError: 'no such key'""")
    assert services.unreported_crashes() == ""
    assert repr(services).splitlines()[0] == "echo-1  crashed   KeyError: 'no such key'"
    assert "KeyError: &#x27;no such key&#x27;" in services._repr_html_()
    assert "line 6, in main" in services.logs("echo", 1)


async def test_a_crash_before_it_is_ready_fails_the_cell_and_leaves_no_sibling(mesh: Mesh, services: Services) -> None:
    cell = "async def main(nc):\n    int('a number')\n"
    with pytest.raises(ProcessEndedError, match=r"worker-1, worker-2 and worker-3 crashed:\n(.|\n)*line 3, in main"):
        run(services, "worker --replicas 3", cell)
    one_fails = (
        "async def main(nc):\n    assert os.environ['SERVICE_NAME'] != 'worker-2'\n    await asyncio.Event().wait()\n"
    )
    with pytest.raises(ProcessEndedError, match=r"^worker-2 crashed:\n(.|\n)*AssertionError$") as crashed:
        run(services, "worker --replicas 3", one_fails)
    assert (crashed.value.name, crashed.value.exit_code) == ("worker-2", 1)
    assert services["worker"].states == {1: "stopped", 2: "crashed", 3: "stopped"}
    assert services.unreported_crashes() == "", "the cell's error said it already"


def test_a_cell_that_fails_before_main_shows_its_line(mesh: Mesh, services: Services) -> None:
    with pytest.raises(ProcessEndedError, match=r'File "<service worker>", line 2, in <module>\n(.|\n)*no_such_thing'):
        run(services, "worker", "import no_such_thing\nasync def main(nc):\n    pass\n")


def test_a_main_that_does_not_come_to_wait_is_told_with_its_log(
    mesh: Mesh, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = "import time\nasync def main(nc):\n    print('busy')\n    time.sleep(60)\n"  # hangs
    for limit in (2.0, 6.0, 20.0):  # until one is longer than a process takes to begin on this machine
        monkeypatch.setattr(services_module, "READY_S", limit)
        said = rf"worker-1 not ready after {limit + 0.5} s: its main\(nc\) did not come to wait; its last log lines:\n"
        with pytest.raises(NotReadyError, match=said) as told:
            run(services, "worker", cell)
        assert services["worker"].states == {1: "stopped"}
        if not str(told.value).endswith("(none)"):
            break
    assert str(told.value).endswith("\nbusy")


def test_a_main_that_returns_is_finished(mesh: Mesh, services: Services) -> None:
    run(services, "closer", "async def main(nc):\n    await nc.drain()\n    await asyncio.sleep(0.2)\n")  # work
    assert services["closer"].states == {1: "finished"}
    assert repr(run(services, "seed --replicas 2", "async def main(nc):\n    await nc.flush()\n")) == (
        "seed: 2 processes finished"
    )
    assert services.unreported_crashes() == ""


async def test_a_crash_without_a_traceback_and_one_of_a_group_are_told_in_a_line(
    mesh: Mesh, services: Services
) -> None:
    gone = """
    async def leave(msg):
        os._exit(7)

    async def main(nc):
        print("so long")
        await nc.subscribe("crash", cb=leave)
        await asyncio.Event().wait()
    """
    run(services, "gone", textwrap.dedent(gone))
    group = """
    async def fail(sub):
        await sub.next_msg(timeout=None)
        raise KeyError("k")

    async def main(nc):
        sub = await nc.subscribe("crash")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(sub))
    """
    run(services, "group", textwrap.dedent(group))
    async with await mesh.connect() as client:
        await client.publish("crash")
        await eventually(lambda: repr(services).count("crashed") == 2, within=10.0)
    assert repr(services) == "gone-1   crashed   exited with code 7\ngroup-1  crashed   KeyError: 'k'"
    crashes = services.unreported_crashes()
    assert crashes.startswith("gone-1 crashed:\nexited with code 7; its last log lines:\nso long\ngroup-1 crashed:\n")
    assert 'File "<service group>", line 4, in fail' in crashes


async def test_running_the_cell_again_replaces_the_processes(mesh: Mesh, services: Services) -> None:
    async with await mesh.connect() as client:
        received = await collect(client, "echo.out")
        first = run(services, "echo --replicas 3", ECHO)
        second = run(services, "echo --replicas 2", ECHO.replace("crash", "other"))
        await client.publish("echo.in", b"crash")
        await eventually(lambda: len(received) == 2, within=5.0)
    assert sorted(received) == ["echo-1 crash", "echo-2 crash"]
    assert set(first.states.values()) == {"stopped"}
    assert list(services.values()) == [second]


MARK = """
async def mark(nc):
    async def answer(msg):
        await nc.publish("marked")
    await nc.subscribe("mark", cb=answer)
"""
BY_ITERATION = """
async def main(nc):
    js = nc.jetstream()
    await mark(nc)
    sub = await nc.subscribe("work", queue="workers")
    async for msg in sub.messages:
        await asyncio.sleep(0.002)  # work
        await js.publish("done.1", msg.data)
"""
BY_CALLBACK = """
async def main(nc):
    js = nc.jetstream()
    await mark(nc)
    async def handle(msg):
        await asyncio.sleep(0.002)  # work
        await js.publish("done.1", msg.data)
    await nc.subscribe("work", queue="workers", cb=handle)
    await asyncio.Event().wait()
"""
BY_HAND = """
async def main(nc):
    js = nc.jetstream()
    await mark(nc)
    sub = await nc.subscribe("work", queue="workers")
    while True:
        msg = await sub.next_msg(timeout=None)
        await asyncio.sleep(0.002)  # work
        await js.publish("done.1", msg.data)
"""


@pytest.mark.parametrize("cell", [BY_ITERATION, BY_CALLBACK, BY_HAND], ids=["iteration", "callback", "by hand"])
async def test_a_graceful_stop_loses_no_message_that_was_received(cell: str, mesh: Mesh, services: Services) -> None:
    async with await mesh.connect() as client:
        js = client.jetstream()
        await js.add_stream(name="DONE", subjects=["done.>"])
        await wait_routable(client, "DONE")
        run(services, "worker --replicas 2", MARK + cell)
        marked = await collect(client, "marked")
        for number in range(200):
            await client.publish("work", b"%d" % number)
        # What is still on its way between two servers when the last worker leaves, nobody has received.
        await client.publish("mark")
        await eventually(lambda: len(marked) == 2, within=5.0)
        started = time.monotonic()
        services.stop("worker")
        took = time.monotonic() - started
        stored = (await js.stream_info("DONE")).state.messages
        await js.delete_stream("DONE")
    assert stored == 200
    assert took < service_host.FINISH_S, "it waited for the deadline, not for the work"
    assert services["worker"].states == {1: "stopped", 2: "stopped"}


# A fetch that came upon what an earlier one left is one that nats-py does not drain.
@pytest.mark.parametrize(("timeout", "in_vain"), [("30", 0), ("0.2", 6)], ids=["the first fetch", "a later one"])
async def test_a_service_that_waits_for_a_consumer_stops_at_once(
    mesh: Mesh, services: Services, timeout: str, in_vain: int
) -> None:
    cell = """
    async def main(nc):
        js = nc.jetstream()
        sub = await js.pull_subscribe_bind("workers", stream="TODO")
        while True:
            try:
                for msg in await sub.fetch(10, timeout=TIMEOUT):
                    await msg.ack_sync()
            except TimeoutError:
                await nc.publish("nothing.came")
    """
    async with await mesh.connect() as client:
        js = client.jetstream()
        await js.add_stream(name="TODO", subjects=["todo.>"])
        await js.add_consumer("TODO", durable_name="workers", ack_policy="explicit")
        await wait_routable(client, "TODO", "workers")
        nothing_came = await client.subscribe("nothing.came")
        await flush_through(client)
        run(services, "worker --replicas 2", textwrap.dedent(cell.replace("TIMEOUT", timeout)))
        for _ in range(in_vain):
            await nothing_came.next_msg(timeout=10)
        started = time.monotonic()
        services.stop("worker")
        assert time.monotonic() - started < service_host.FINISH_S
        assert services["worker"].states == {1: "stopped", 2: "stopped"}
        await js.delete_stream("TODO")


def test_main_may_clean_up_when_it_is_cancelled(mesh: Mesh, services: Services) -> None:
    cell = """
    async def main(nc):
        try:
            await asyncio.Event().wait()
        finally:
            await nc.flush()
            print("closed in good order")
    """
    run(services, "worker", textwrap.dedent(cell))
    services.stop("worker")
    assert services.logs("worker") == "worker-1 | closed in good order"


def test_a_process_that_ignores_its_end_is_killed(
    mesh: Mesh, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = "import time\nasync def main(nc):\n    await asyncio.sleep(0.5)\n    time.sleep(60)\n"  # hangs
    replica = run(services, "worker", cell).replica(1)
    replica.request_stop()
    replica.wait(within=1.0)
    assert replica.state == "stopped"


async def test_logs_show_prints_and_what_callbacks_raised(mesh: Mesh, services: Services) -> None:
    cell = """
    async def main(nc):
        async def handle(msg):
            print("got", msg.data.decode(), "grüße")
            msg.no_such_thing
        await nc.subscribe("in", cb=handle)
        await asyncio.Event().wait()
    """
    run(services, "worker --replicas 2", textwrap.dedent(cell))
    async with await mesh.connect() as client:
        await client.publish("in", b"it")
    await eventually(lambda: services.logs("worker").count("AttributeError") == 2, within=5.0)
    lines = services.logs("worker", 1).splitlines()
    assert lines[0] == "got it grüße"
    assert "line 5, in handle" in services.logs("worker", 1)
    assert services.logs("worker", last=1).splitlines() == [f"worker-{n} | {lines[-1]}" for n in (1, 2)]
    assert services["worker"].states == {1: "running", 2: "running"}, "nats-py goes on after a callback's error"


async def test_a_service_knows_its_name_and_neither_password_nor_jupyter(mesh: Mesh, services: Services) -> None:
    cell = """
    import json, sys

    async def main(nc):
        modules = [m for m in ("IPython", "ipywidgets", "matplotlib", "pandas", "psutil") if m in sys.modules]
        loop = type(asyncio.get_running_loop()).__module__
        facts = {"name": nc.options["name"], "modules": modules, "loop": loop, "environment": dict(os.environ)}
        await nc.publish("facts", json.dumps(facts).encode())
        await asyncio.Event().wait()
    """
    async with await mesh.connect() as client:
        received = await collect(client, "facts")
        run(services, "worker", textwrap.dedent(cell))
        await eventually(lambda: received, within=5.0)
    facts = json.loads(received[0])
    assert (facts["name"], facts["environment"]["SERVICE_NAME"]) == ("worker-1", "worker-1")
    assert facts["modules"] == []
    assert facts["loop"] == ("uvloop" if sys.platform != "win32" else "asyncio.windows_events")
    assert mesh.connect_options()["password"] not in received[0]


def test_what_is_shown_holds_no_process_ids_and_no_ports(mesh: Mesh, services: Services) -> None:
    run(services, "echo --replicas 2", ECHO)
    services.kill("echo", 2)
    assert repr(services) == "echo-1  running\necho-2  killed"
    assert services._repr_html_() == (
        "<table><tr><th>service</th><th>replica</th><th>state</th><th>last error</th></tr>"
        "<tr><td>echo</td><td>echo-1</td><td>running</td><td></td></tr>"
        "<tr><td>echo</td><td>echo-2</td><td>killed</td><td></td></tr></table>"
    )


def test_unknown_names_and_numbers_are_told_with_those_there_are(mesh: Mesh, services: Services) -> None:
    run(services, "echo --replicas 2", ECHO)
    with pytest.raises(UnknownNameError, match="no service 'worker'; there are echo"):
        services.scale("worker", 2)
    with pytest.raises(UnknownNameError, match="no replica 3 of service 'echo'; there are 1, 2"):
        services.kill("echo", 3)
    with pytest.raises(ValueError, match="65 replicas asked for, expected 0 to 64"):
        services.scale("echo", 65)
    assert services["echo"].states == {1: "running", 2: "running"}


async def test_a_service_starts_while_a_server_is_down(services: Services) -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n2")
        async with await mesh.connect(to="n3") as client:
            received = await collect(client, "echo.out")
            run(services, "echo --replicas 2", ECHO)
            await client.publish("echo.in", b"x")
            await eventually(lambda: len(received) == 2, within=5.0)
        for server in ("n1", "n3"):
            await mesh.kill(server)
        with pytest.raises(NotReadyError, match=r"no server of the mesh runs, expected one at least"):
            services.scale("echo", 3)


SILENT = """
async def main(nc):
    async def reply(msg):
        await nc.publish("echo.out", os.environ["SERVICE_NAME"].encode())
    await nc.subscribe("echo.in", cb=reply)
    await asyncio.Event().wait()
"""


@pytest.mark.parametrize("cell", [SILENT, ECHO], ids=["waits", "iterates"])
async def test_a_replica_whose_user_is_removed_says_so_and_works_again_when_it_is_restored(
    services: Services, cell: str
) -> None:
    user = '{ user: service, password: "s3cret" }'
    async with await start_mesh(servers=1, users_config=user) as mesh:
        client = await mesh.connect()
        heard = await collect(client, "echo.out")
        mesh._credentials.update(user="service", password="s3cret")
        run(services, "echo --replicas 2", cell)
        await mesh.reload(users_config="")
        # The server's last word reaches the client or not: it is closed for good, or refused when it reconnects.
        said = ("main(nc) begins again", "the servers refuse the login")
        await eventually(lambda: all(any(s in services.logs("echo", n) for s in said) for n in (1, 2)), within=10.0)
        assert services["echo"].states == {1: "running", 2: "running"}
        before = mesh.logs("n1", last=None).count("authentication error")
        await asyncio.sleep(3.0)  # pacing: several attempts of each
        assert mesh.logs("n1", last=None).count("authentication error") - before <= 20
        await mesh.reload(users_config=user)

        async def both_reply() -> bool:
            heard.clear()
            await client.publish("echo.in", b"x")
            await asyncio.sleep(0.2)  # pacing: the replies
            return len(heard) == 2

        await eventually(both_reply, within=10.0)
        assert len(services.logs("echo", 1).splitlines()) <= 2
        services.stop_all()
        assert services["echo"].states == {1: "stopped", 2: "stopped"}
        assert services.unreported_crashes() == ""


async def test_a_replica_without_a_server_says_so_once_and_stops_at_once(services: Services) -> None:
    async with await start_mesh(servers=1) as mesh:
        run(services, "echo", ECHO)
        await mesh.kill("n1")
        await eventually(lambda: "no server" in services.logs("echo"), within=10.0)
        await asyncio.sleep(1.5)  # pacing: several attempts
        assert len(services.logs("echo", 1).splitlines()) == 1
        began = time.monotonic()
        services.stop_all()
        assert time.monotonic() - began < services_module.STOP_S
        assert services["echo"].states == {1: "stopped"}
        services.scale("echo", 0)


async def test_closing_the_mesh_ends_its_services_without_a_word(services: Services) -> None:
    mesh = await start_mesh(servers=1)
    owner = mesh.owner
    run(services, "echo --replicas 2", ECHO)
    # This one fails as soon as its server is gone, before the mesh comes to end it.
    asking = "async def main(nc):\n    while nc.is_connected:\n        await asyncio.sleep(0)\n    raise OSError\n"
    run(services, "asking", asking)
    await mesh.close()
    assert owned(owner) == []
    assert repr(services) == "echo-1    stopped\necho-2    stopped\nasking-1  stopped"
    assert services.unreported_crashes() == ""
    with pytest.raises(MeshClosedError, match=r"the mesh of service 'echo' was closed; start another one and run"):
        services.scale("echo", 3)


OWNER_PROGRAM = """
import asyncio, os, sys
from mesh_lab import start_mesh
from mesh_lab.notebook.services import Services
from mesh_lab.patterns.jetstream_wait import wait_routable

async def main():
    mesh = await start_mesh(servers=3)
    services = Services()
    services.run("worker", "async def main(nc):\\n    await asyncio.Event().wait()\\n", replicas=3)
    print(mesh.owner, mesh.directory, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_kernel_leaves_no_process_and_no_directory() -> None:
    kernel = subprocess.Popen(  # nothing else runs in this loop
        [sys.executable, "-c", OWNER_PROGRAM], stdout=subprocess.PIPE, text=True
    )
    assert kernel.stdout is not None
    try:
        owner, directory = kernel.stdout.readline().split()
        assert len(owned(owner)) == 6, "three servers and three replicas"
    finally:  # also when that fails: nobody else would end it
        kernel.kill()
        kernel.wait()
        kernel.stdout.close()
    await eventually(lambda: not owned(owner) and not Path(directory).exists(), within=5.0)


def test_an_interrupt_while_a_service_starts_leaves_no_process(mesh: Mesh, services: Services) -> None:
    before = {process.pid for process in owned(mesh.owner)}

    def interrupt() -> None:
        until = time.monotonic() + 8.0
        while len({process.pid for process in owned(mesh.owner)} - before) < 2 and time.monotonic() < until:
            time.sleep(0.05)  # pacing: it looks again
        os.kill(os.getpid(), signal.SIGINT)

    # A kernel hears it; a pytest that a shell started in the background ignores it unless told otherwise.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            run(services, "worker --replicas 2", "import time\nasync def main(nc):\n    time.sleep(60)\n")  # hangs
    finally:
        signal.signal(signal.SIGINT, heard)
    assert {process.pid for process in owned(mesh.owner)} == before
