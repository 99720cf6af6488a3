"""What a service of the order mesh does without its servers, without its rights, and at its end."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nats.js.errors
import pytest
from programs import killed_at_the_end

from mesh_lab.errors import ProcessEndedError, PublishRefusedError
from mesh_lab.orders.__main__ import _found_again
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import WORKERS, create_event_store, open_event_store
from mesh_lab.orders.job.services import Services
from mesh_lab.orders.ledger import create_ledger, entries_in
from mesh_lab.orders.order import STREAM
from mesh_lab.orders.publisher import place_orders
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.processes import ChildProcess
from mesh_lab.security.accounts import Operator
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

SHOP = '{ user: "shop/1", password: "p%?#@word" }'
LOGIN = "shop%2F1:p%25%3F%23%40word"


class Program:
    """A service that runs; ``said`` is its standard error so far."""

    def __init__(self, process: "subprocess.Popen[str]", errors: Path) -> None:
        self.process, self._errors = process, errors

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def end(self, *, within: float = 9.0, code: int = 0) -> dict[str, Any]:
        """Send SIGTERM, and return the report."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=within)
        assert self.process.returncode == code, self.said
        assert "Traceback" not in self.said
        (line,) = out.splitlines()
        return json.loads(line)


PROGRAM = ("-m", "mesh_lab.orders")


@contextlib.contextmanager
def service(tmp_path: Path, *arguments: str, program: tuple[str, str] = PROGRAM, **variables: str) -> Iterator[Program]:
    errors = tmp_path / f"{arguments[0]}-{len(list(tmp_path.iterdir()))}.txt"
    command = [sys.executable, *program, *arguments]
    with (
        errors.open("w") as stderr,
        killed_at_the_end(
            subprocess.Popen(command, env={**os.environ, **variables}, text=True, stdout=subprocess.PIPE, stderr=stderr)
        ) as process,
    ):
        yield Program(process, errors)


def address(mesh: Mesh, server: str, login: str = LOGIN) -> str:
    return mesh.servers[server].url.replace("://", f"://{login}@")


def home(mesh: Mesh, name: str) -> list[str]:
    """Return the servers to which clients of that name are connected and subscribed, of those that run."""
    found = []
    for server in mesh.servers.values():
        if server.observe() == "running":
            with contextlib.suppress(OSError):
                connections = server.monitor.connz("subs=1")["connections"]
                found += [server.name for c in connections if c.get("name") == name and c.get("subscriptions", 0) >= 2]
    return found


@pytest.fixture
async def three() -> AsyncIterator[Mesh]:
    async with await start_mesh(servers=3, users_config=SHOP) as mesh:
        yield mesh


@pytest.fixture
async def one() -> AsyncIterator[Mesh]:
    async with await start_mesh(servers=1, users_config=SHOP) as mesh:
        yield mesh


async def test_the_user_in_one_address_lets_a_service_move_to_servers_that_it_discovers(
    three: Mesh, tmp_path: Path
) -> None:
    with service(tmp_path, "worker", "--replicas=3", NATS_URL=address(three, "n1")) as worker:
        await eventually(lambda: home(three, "worker") == ["n1"], within=20.0, every=0.1)
        await three.kill("n1")
        await eventually(lambda: home(three, "worker"), within=5.0, every=0.1)
        assert not any("authentication error" in three.logs(name, last=None) for name in ("n2", "n3"))
        client = await three.connect()
        await place_orders(client, read_orders(first=20))

        async def done() -> bool:
            info = await retry(lambda: client.jetstream(timeout=1.0).consumer_info(STREAM, WORKERS), within=10.0)
            return not (info.num_pending or info.num_ack_pending)

        await eventually(done, within=20.0, every=0.2)
        assert worker.end() == {"service": "worker", "processed": 20, "rejected": 0}
        assert "refuse the login" not in worker.said


async def test_services_end_in_good_order_while_there_is_no_server(one: Mesh, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        programs = {
            what: stack.enter_context(service(tmp_path, what, "--url", address(one, "n1")))
            for what in ("worker", "read-model", "bulk-reader")
        }
        await eventually(lambda: all(home(one, what) for what in programs), within=20.0, every=0.1)
        await one.kill("n1")
        await eventually(lambda: all("no server" in program.said for program in programs.values()), within=10.0)
        await asyncio.sleep(0.5)  # pacing: in the middle of their attempts
        for what, program in programs.items():
            assert program.end(within=7.0)["service"] == what
            assert len(program.said.splitlines()) == 1


async def test_a_service_ends_in_good_order_while_its_server_hangs(one: Mesh, tmp_path: Path) -> None:
    with service(tmp_path, "worker", "--url", address(one, "n1")) as worker:
        await eventually(lambda: home(one, "worker"), within=20.0, every=0.1)
        client = await one.connect()
        await place_orders(client, read_orders(first=2_000))
        await one.pause("n1")
        try:
            assert worker.end()["service"] == "worker"
        finally:
            await one.resume("n1")


@pytest.mark.parametrize(
    ("what", "code"), [("worker", 0), ("deploy", 1), ("publisher", 1), ("bulk-publisher", 1), ("replay", 1)]
)
async def test_a_service_that_is_stopped_before_it_finds_a_server_ends_at_once(
    tmp_path: Path, what: str, code: int
) -> None:
    dialled = asyncio.Event()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.set()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as nobody:
        port = nobody.sockets[0].getsockname()[1]
        with service(tmp_path, what, "--url", f"nats://127.0.0.1:{port}") as program:
            await asyncio.wait_for(dialled.wait(), 20.0)
            assert (await asyncio.to_thread(program.end, within=3.0, code=code))["service"] == what
            assert program.said == (f"{what}: stopped before it was done; run it again\n" if code else "")


@pytest.mark.parametrize("what", ["deploy", "publisher"])
async def test_a_service_that_has_done_its_work_ends_with_0(one: Mesh, tmp_path: Path, what: str) -> None:
    with service(tmp_path, what, "--url", address(one, "n1"), "--first=50") as program:
        out, _ = await asyncio.to_thread(program.process.communicate, timeout=20.0)
        assert (program.process.returncode, program.said) == (0, "")
        assert json.loads(out)["service"] == what


async def test_a_publisher_that_is_stopped_in_the_middle_says_how_far_it_came(one: Mesh, tmp_path: Path) -> None:
    js = (await one.connect()).jetstream(timeout=5.0)
    await create_event_store(js, subjects="orders.eu.*.*")  # for those of us, it tries for half a minute

    async def begun() -> bool:
        return (await js.stream_info(STREAM)).state.messages > 500

    with service(tmp_path, "publisher", "--url", address(one, "n1")) as publisher:
        await eventually(begun, within=20.0, every=0.1)
        report = await asyncio.to_thread(publisher.end, code=1)
        assert (await js.stream_info(STREAM)).state.messages >= report["acknowledged"] > 0
        assert publisher.said == f"publisher: stopped after {report['acknowledged']:,} orders; run it again\n"


IMPATIENT = """
import sys
from functools import partial
from mesh_lab.orders import worker
from mesh_lab.orders.__main__ import main
worker.WindowedPublisher = partial(worker.WindowedPublisher, retry_for=2.0)  # and not half a minute
sys.exit(main())
"""


async def test_a_worker_whose_events_nobody_takes_for_long_tries_on(one: Mesh, tmp_path: Path) -> None:
    client = await one.connect()
    js = client.jetstream(timeout=5.0)
    await open_event_store(client)
    config = (await js.stream_info(STREAM)).config
    config.subjects = ["orders.*.*.placed"]
    await js.update_stream(config)
    await place_orders(client, read_orders(first=5))

    async def through() -> bool:
        return (await js.stream_info(STREAM)).state.messages == 15

    program = ("-c", IMPATIENT)
    with service(tmp_path, "worker", "--url", address(one, "n1"), program=program) as worker:
        await eventually(lambda: "nobody took the subject in 2 s" in worker.said, within=20.0)
        assert "trying on" in worker.said
        config.subjects = ["orders.*.*.*"]
        await js.update_stream(config)
        await eventually(through, within=20.0)
        assert await asyncio.to_thread(worker.end) == {"service": "worker", "processed": 5, "rejected": 0}


@pytest.mark.parametrize(
    ("code", "err_code", "connected", "again"),
    [
        (503, 0, True, True),  # nobody takes the subject
        (429, 0, True, True),
        (500, 10008, True, True),
        (503, 10077, True, False),  # the stream is full
        (400, 10071, True, False),
        (0, 0, True, False),  # too large
        (0, 0, False, True),  # not sent in half a minute
    ],
)
def test_a_refusal_that_may_pass_lets_a_service_begin_again(
    code: int, err_code: int, connected: bool, again: bool
) -> None:
    refused = PublishRefusedError("x", code=code, err_code=err_code)
    assert _found_again(refused, SimpleNamespace(is_connected=connected, is_closed=False)) is again


async def test_a_ledger_passes_over_what_is_no_order(one: Mesh, tmp_path: Path) -> None:
    client = await one.connect()
    js = client.jetstream(timeout=5.0)
    await open_event_store(client)
    await create_ledger(js)
    for payload in (b"junk", b'{"two\\nlines": 1}'):
        await js.publish("orders.eu.000001.placed", payload)  # before others of its partition
    await place_orders(client, read_orders(first=20))
    with service(tmp_path, "ledger", "--url", address(one, "n1"), "--name=ledger-1") as ledger:
        assert ledger.process.stdout is not None
        lines = [await asyncio.to_thread(ledger.process.stdout.readline) for _ in range(20)]
        assert sorted(entry.order for entry in entries_in("".join(lines))) == [o.id for o in read_orders(first=20)]
        report = await asyncio.to_thread(ledger.end)
        assert report == {"service": "ledger", "processed": 20, "rejected": 2}
        (line,) = ledger.said.splitlines()
        assert line.startswith("ledger: message ")
        assert ".eu.000001.placed is passed over: not an order: " in line


async def test_a_ledger_whose_name_is_none_says_so(one: Mesh) -> None:
    arguments = ("--url", address(one, "n1"), "--name", "my ledger")
    line = await asyncio.to_thread(refusal, *arguments, what="ledger")
    assert line.startswith("ledger: --name, or SERVICE_NAME: member 'my ledger', expected 1 to 32 letters")


async def test_services_whose_user_is_removed_say_so_and_are_back_when_it_is_restored(
    one: Mesh, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        programs = {
            what: stack.enter_context(service(tmp_path, what, "--url", address(one, "n1")))
            for what in ("worker", "read-model")
        }
        await eventually(lambda: all(home(one, what) for what in programs), within=20.0, every=0.1)
        before = one.logs("n1", last=None).count("authentication error")
        await one.reload(users_config="{ user: other, password: x }")

        def all_say(words: str) -> bool:
            return all(words in program.said.lower() for program in programs.values())

        await eventually(lambda: all_say("authorization violation"), within=10.0)
        await asyncio.sleep(1.5)  # pacing: several attempts
        refused = one.logs("n1", last=None).count("authentication error") - before
        assert len(programs) <= refused <= 20 * len(programs)
        assert all(len(program.said.splitlines()) <= 2 for program in programs.values())
        await one.reload(users_config=SHOP)
        await eventually(lambda: all(home(one, what) for what in programs), within=10.0, every=0.1)
        await eventually(lambda: all_say("connected again"), within=5.0)
        client = await one.connect()
        await place_orders(client, read_orders(first=5))
        for what, program in programs.items():
            assert program.end()["service"] == what


async def test_a_service_that_is_refused_by_a_server_that_comes_back_says_so_once_and_ends(
    one: Mesh, tmp_path: Path
) -> None:
    with service(tmp_path, "worker", "--url", address(one, "n1")) as worker:
        await eventually(lambda: home(one, "worker"), within=20.0, every=0.1)
        await one.kill("n1")
        config = one.servers["n1"].config_file
        config.write_text(config.read_text().replace("p%?#@word", "another"))
        for file in config.parent.glob("*"):
            if file.is_file() and "p%?#@word" in file.read_text(errors="replace"):
                file.write_text(file.read_text().replace("p%?#@word", "another"))
        await one.restart("n1")
        await eventually(lambda: "refuse the login" in worker.said, within=10.0)
        assert worker.said.count("refuse the login") == 1
        assert worker.end()["service"] == "worker"


async def test_a_service_whose_stream_is_deleted_makes_it_again_and_goes_on(one: Mesh, tmp_path: Path) -> None:
    with service(tmp_path, "worker", "--url", address(one, "n1")) as worker:
        await eventually(lambda: home(one, "worker"), within=20.0, every=0.1)
        client = await one.connect()
        js = client.jetstream(timeout=5.0)
        await place_orders(client, read_orders(first=5))

        async def through(orders: int) -> bool:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                return (await js.stream_info(STREAM)).state.messages == 3 * orders
            return False

        await eventually(lambda: through(5), within=10.0)
        await js.delete_stream(STREAM)
        await eventually(lambda: "lost its stream" in worker.said, within=15.0)
        await eventually(lambda: through(0), within=15.0)
        await place_orders(client, read_orders(first=7))
        await eventually(lambda: through(7), within=15.0)
        assert worker.end() == {"service": "worker", "processed": 12, "rejected": 0}


async def test_credentials_that_are_spoilt_and_restored(tmp_path: Path) -> None:
    operator = Operator()
    async with await start_mesh(servers=1, operator=operator) as mesh:
        options = mesh.connect_options()
        creds = tmp_path / "x.creds"
        good = Path(options["user_credentials"]).read_text()
        creds.touch(mode=0o600)
        creds.write_text(good)
        with service(tmp_path, "worker", "--url", mesh.urls[0], "--creds", str(creds)) as worker:
            await eventually(lambda: home(mesh, "worker"), within=20.0, every=0.1)
            creds.write_text("")
            await mesh.restart("n1")
            await eventually(lambda: "holds no user's token" in worker.said, within=10.0)
            creds.write_text(good)
            await eventually(lambda: home(mesh, "worker"), within=10.0, every=0.1)
            assert worker.said.count("holds no user's token") == 1
            assert worker.end()["service"] == "worker"


def refusal(*arguments: str, what: str = "worker", within: float = 8.0, **variables: str) -> str:
    """Return the one line with which a service ends that cannot begin."""
    command = [sys.executable, "-m", "mesh_lab.orders", what, *arguments]
    done = subprocess.run(command, env={**os.environ, **variables}, text=True, capture_output=True, timeout=within)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_settings_that_cannot_be_used_end_a_service_with_a_line_before_it_dials(tmp_path: Path) -> None:
    bad, missing = tmp_path / "bad.creds", tmp_path / "none.creds"
    bad.write_text("hello\n")
    url = "nats://127.0.0.1:9"
    assert refusal("--url", url, "--creds", str(bad)).startswith(f"worker: --creds: {bad}: holds no user's token")
    assert refusal("--url", url, NATS_CREDS=str(missing)).startswith(f"worker: NATS_CREDS: {missing}: no file is there")
    assert refusal("--url", url, "--creds", str(tmp_path)).startswith(
        f"worker: --creds: {tmp_path}: is no regular file"
    )
    assert refusal("--url", "http://x").startswith("worker: --url: 'http://x' is no address of a server")


@pytest.mark.parametrize("what", ["publisher", "bulk-publisher"])
@pytest.mark.parametrize("number", ["-3", "1.5", "9" * 5_001])
def test_a_number_of_orders_that_makes_no_sense_is_refused(what: str, number: str) -> None:
    command = [sys.executable, "-m", "mesh_lab.orders", what, f"--first={number}"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=20.0)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.endswith(f"argument --first: '{number[:20]}', expected a whole number from 0\n")


async def test_a_password_that_is_wrong_is_said_at_once(one: Mesh) -> None:
    line = await asyncio.to_thread(refusal, "--url", address(one, "n1", "lab:wrong"))
    assert line.startswith("worker: no server let us in: Error(\"nats: 'Authorization Violation'\"); check the user")
    assert 1 <= one.logs("n1", last=None).count("authentication error") <= 3  # and not for 10 s
    line = await asyncio.to_thread(refusal, "--url", address(one, "n1", "no-token"))
    assert "Authorization Violation" in line


async def test_a_service_waits_for_a_server_that_is_about_to_start(one: Mesh, tmp_path: Path) -> None:
    await one.kill("n1")
    with service(tmp_path, "read-model", "--url", address(one, "n1")) as program:
        await asyncio.sleep(2.0)  # pacing: it dials meanwhile
        await one.restart("n1")
        await eventually(lambda: home(one, "read-model"), within=10.0, every=0.1)
        assert program.said == ""
        assert program.end() == {"service": "read-model"}


@pytest.fixture
def starting() -> Iterator[ChildProcess]:
    """A process that does not listen for signals yet."""
    with contextlib.closing(
        ChildProcess([sys.executable, "-c", "input()"], name="worker", stdin=True, stdout=True)
    ) as it:
        yield it.start()


async def test_a_worker_that_is_stopped_before_it_has_begun_has_no_report_and_is_no_failure(
    starting: ChildProcess,
) -> None:
    assert await Services({"worker-1": starting}, ["worker"]).finish() == []
    assert starting.exit_code not in (0, None)


async def test_a_worker_that_ends_by_a_signal_that_nobody_sent_is_a_failure(starting: ChildProcess) -> None:
    starting.request_stop()
    assert starting.wait(within=9.0)
    services = Services({"worker-1": starting}, ["worker"])
    with pytest.raises(ProcessEndedError, match="worker-1 ended with code"):
        services.check()
    with pytest.raises(ProcessEndedError, match="worker-1 ended with code"):
        await services.finish()
