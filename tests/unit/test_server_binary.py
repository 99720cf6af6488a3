"""Finding and installing nats-server, with releases that a web server on 127.0.0.1 hands out."""

import hashlib
import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mesh_lab.errors import BadDownloadError, NoServerBinaryError
from mesh_lab.servers import binary, install
from mesh_lab.servers.binary import ensure_server, look_for_server, read_version

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the programs that stand in for a server are shell scripts"
)

VERSION = install.PINNED_VERSION
STEMS = [
    f"nats-server-v{VERSION}-{system}-{machine}" for system in ("linux", "darwin") for machine in ("amd64", "arm64")
]


def script(says: str) -> str:
    return f"#!/bin/sh\necho '{says}'\n"


def program(directory: Path, text: str, *, name: str = "nats-server") -> Path:
    """Write a program that can be run, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def empty_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any nats-server, without apt, and with a directory on PATH to put programs into."""
    for variable in (binary.SERVER_VARIABLE, install.RELEASES_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(binary, "USUAL_DIRECTORIES", ())
    return tmp_path / "bin"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Releases:
    """A web server that hands out what a test put into ``files``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.before_answer: Callable[[str], object] = lambda name: None
        self.cut_after: int | None = None
        self.over = threading.Event()
        releases = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                releases.before_answer(name)
                content = releases.files.get(name) if self.path == f"/mirror/v{VERSION}/{name}" else None
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                cut_after = releases.cut_after if name != "SHA256SUMS" else None
                self.wfile.write(content[:cut_after])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # so that closing waits for the answers under way
        self.url = f"http://127.0.0.1:{self.server.server_port}/mirror"

    def publish(self, text: str, *, kind: str = "tar.gz", extra: dict[str, str] | None = None) -> None:
        """Put a release out whose server is a script, for every system and machine."""
        for stem in STEMS:
            members = {**(extra or {}), f"{stem}/README.md": "read me", f"{stem}/nats-server": text}
            pack = pack_zip if kind == "zip" else pack_tar
            self.files[f"{stem}.{kind}"] = pack(members)
        self.sign()

    def sign(self) -> None:
        lines = [
            f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            for name, content in self.files.items()
            if name != "SHA256SUMS"
        ]
        self.files["SHA256SUMS"] = "".join(lines).encode()


def pack_tar(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tape:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tape.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def pack_zip(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, text in members.items():
            bundle.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def releases() -> Iterator[Releases]:
    place = Releases()
    thread = threading.Thread(target=place.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield place
    place.over.set()
    place.server.shutdown()
    thread.join()
    place.server.server_close()


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


# What a program says about itself


@pytest.mark.parametrize(
    "line",
    ["nats-server: v2.15.1", "nats-server: v2.15.1-RC.1", "nats-server: v2.15.1-dev", "hm\nnats-server: v2.15.1"],
)
def test_each_form_of_the_version_line_is_read(tmp_path: Path, line: str) -> None:
    assert read_version(program(tmp_path, script(line))) == (2, 15, 1)


@pytest.mark.parametrize("line", ["hello", "", "nats-server: vX.1.2", "other-nats-server: v2.15.1"])
def test_another_program_of_that_name_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(NoServerBinaryError, match=rf"said '{line}' with exit code 0, not 'nats-server: v"):
        read_version(program(tmp_path, script(line)))


def test_a_program_that_fails_is_refused_whatever_it_says(tmp_path: Path) -> None:
    failing = program(tmp_path, script("nats-server: v2.15.1") + "exit 3\n")
    with pytest.raises(NoServerBinaryError, match="exit code 3"):
        read_version(failing)


def test_a_program_that_hangs_is_given_up(tmp_path: Path) -> None:
    hanging = program(tmp_path, "#!/bin/sh\nexec /bin/sleep 60\n")
    with pytest.raises(NoServerBinaryError, match=r"did not answer --version within 0\.2 s"):
        read_version(hanging, timeout=0.2)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nats-server"
    path.write_text("not a program")
    with pytest.raises(NoServerBinaryError, match="cannot be run: Permission denied"):
        read_version(path)


# Where a server is looked for


def test_the_variable_comes_first(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path, tmp_path: Path, cache: Path
) -> None:
    program(empty_machine, script("nats-server: v2.15.0"))
    named = program(tmp_path / "own", script("nats-server: v2.14.0"))
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", str(named))

    found = look_for_server(cache=cache).found

    assert found == binary.ServerBinary(named, (2, 14, 0), "MESH_LAB_NATS_SERVER")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "does not exist"),
        ("directory", "is not a file"),
        ("old", r"is version 2\.9\.10, older than 2\.14\.0"),
        ("other", "--version said 'hello'"),
    ],
)
def test_a_wrong_variable_is_an_error_although_path_has_a_server(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path, tmp_path: Path, cache: Path, name: str, reason: str
) -> None:
    program(empty_machine, script("nats-server: v2.15.1"))
    (tmp_path / "directory").mkdir()
    program(tmp_path, script("nats-server: v2.9.10"), name="old")
    program(tmp_path, script("hello"), name="other")
    monkeypatch.setenv("MESH_LAB_NATS_SERVER", str(tmp_path / name))

    for look in (look_for_server, ensure_server):
        with pytest.raises(NoServerBinaryError, match=rf"MESH_LAB_NATS_SERVER is set, but .*{name} {reason}"):
            look(cache=cache)


def test_an_old_server_on_path_is_passed_over_and_named(
    monkeypatch: pytest.MonkeyPatch, empty_machine: Path, tmp_path: Path, cache: Path
) -> None:
    old = program(empty_machine, script("nats-server: v2.10.27"))
    new = program(tmp_path / "further", script("nats-server: v2.15.1"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(old.parent), str(new.parent)]))

    search = look_for_server(cache=cache)

    assert search.found == binary.ServerBinary(new, (2, 15, 1), "PATH")
    assert search.tried[-1] == f"PATH: {old} is version 2.10.27, older than 2.14.0"


def test_a_server_outside_of_path_is_found_where_package_managers_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(binary, "USUAL_DIRECTORIES", ("~/go/bin",))
    path = program(tmp_path / "go" / "bin", script("nats-server: v2.15.1"))
    found = look_for_server(cache=cache).found
    assert found is not None
    assert found.path == path


def test_a_server_in_the_current_directory_is_never_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    program(tmp_path, script("nats-server: v2.15.1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([".", ""]))
    assert look_for_server(cache=cache).found is None


def test_an_earlier_install_is_found_in_the_cache(cache: Path) -> None:
    path = program(cache, script("nats-server: v2.15.1"))
    assert look_for_server(cache=cache).found == binary.ServerBinary(path, (2, 15, 1), "cache")


def test_looking_installs_nothing(cache: Path) -> None:
    assert look_for_server(cache=cache).found is None
    assert not cache.exists()


# Installing a release


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_release_is_installed_and_found_again(releases: Releases, cache: Path, kind: str) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"), kind=kind)
    seen: list[tuple[int, int | None, str]] = []

    installed = ensure_server(cache=cache, releases_url=releases.url, progress=lambda *report: seen.append(report))

    assert installed.source == "release"
    assert installed.path == cache / "nats-server"
    assert stat.S_IMODE(installed.path.stat().st_mode) == 0o755
    assert left_in(cache) == ["nats-server"]
    done, total, what = seen[-1]
    assert done == total == len(releases.files[what])
    again = look_for_server(cache=cache).found
    assert again is not None
    assert again.source == "cache"


def test_the_variable_names_a_mirror(monkeypatch: pytest.MonkeyPatch, releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    monkeypatch.setenv("MESH_LAB_RELEASES_URL", releases.url + "/")
    assert ensure_server(cache=cache).source == "release"


def test_a_damaged_cache_is_replaced(releases: Releases, cache: Path) -> None:
    program(cache, "")
    releases.publish(script(f"nats-server: v{VERSION}"))
    assert ensure_server(cache=cache, releases_url=releases.url).source == "release"
    assert read_version(cache / "nats-server") == (2, 15, 1)


def test_an_install_shows_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], releases: Releases, cache: Path
) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    monkeypatch.setenv("MESH_LAB_RELEASES_URL", releases.url)
    monkeypatch.setattr(binary, "cache_directory", lambda: cache)
    assert install.install_with_progress().source == "release"
    assert "nats-server-v" in capsys.readouterr().out


def test_a_wrong_checksum_stops_everything(releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    for name in releases.files:
        if name != "SHA256SUMS":
            releases.files[name] += b"one byte more than was promised"
    with pytest.raises(BadDownloadError, match=r"has the sha256 \w{64}, but SHA256SUMS promises \w{64}"):
        ensure_server(cache=cache, releases_url=releases.url)
    assert left_in(cache) == []


def test_a_path_in_an_archive_is_never_followed(releases: Releases, cache: Path, tmp_path: Path) -> None:
    evil = {"../../../evil": "evil", f"{tmp_path}/evil": "evil", "../nats-server": script("evil")}
    releases.publish(script(f"nats-server: v{VERSION}"), kind="zip", extra=evil)
    assert ensure_server(cache=cache, releases_url=releases.url).version == (2, 15, 1)
    assert left_in(cache) == ["nats-server"]
    assert list(tmp_path.rglob("evil")) == []


@pytest.mark.parametrize("pack", [pack_tar, pack_zip])
def test_an_archive_without_a_server_is_refused(
    releases: Releases, cache: Path, pack: Callable[[dict[str, str]], bytes]
) -> None:
    kind = "zip" if pack is pack_zip else "tar.gz"
    for stem in STEMS:
        releases.files[f"{stem}.{kind}"] = pack({"elsewhere/nats-server": script("hello")})
    releases.sign()
    with pytest.raises(BadDownloadError, match=r"holds no readable nats-server-v.*/nats-server"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_an_archive_that_is_none_is_refused(releases: Releases, cache: Path) -> None:
    for stem in STEMS:
        releases.files[f"{stem}.tar.gz"] = b"no archive"
    releases.sign()
    with pytest.raises(BadDownloadError, match="holds no readable"):
        ensure_server(cache=cache, releases_url=releases.url)


# Ways that fail


def test_a_release_without_a_checksum_is_not_fetched(releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    releases.files["SHA256SUMS"] = b"<html>sign in to this network first</html>"
    with pytest.raises(NoServerBinaryError, match=r"SHA256SUMS has no line for nats-server-v\S+\.tar\.gz or"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_place_without_the_release_is_named(releases: Releases, cache: Path) -> None:
    with pytest.raises(NoServerBinaryError, match=r"release: http://127\S+/SHA256SUMS answers 404 Not Found"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_place_that_nothing_listens_at_is_named(cache: Path) -> None:
    with pytest.raises(NoServerBinaryError, match=r"release: \S+ .*[Rr]efused"):
        ensure_server(cache=cache, releases_url="http://127.0.0.1:9")


def test_a_place_that_never_answers_is_given_up(releases: Releases, cache: Path) -> None:
    releases.before_answer = lambda name: wait_until_over(releases.over)
    with pytest.raises(NoServerBinaryError, match=r"release: .*SHA256SUMS: timed out"):
        ensure_server(cache=cache, releases_url=releases.url, timeout=1.0)


def test_a_name_that_nobody_resolves_is_given_up(
    monkeypatch: pytest.MonkeyPatch, releases: Releases, cache: Path
) -> None:
    # A name server that is silent blocks the look-up, which no socket timeout ends.
    def resolve(*arguments: object) -> None:
        wait_until_over(releases.over)
        raise socket.gaierror("the name server was silent")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    with pytest.raises(NoServerBinaryError, match=r"release: .*no whole answer within 0\.2 s"):
        ensure_server(cache=cache, releases_url="http://silent.invalid", timeout=0.1)


def test_a_download_that_ends_early_is_refused(releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    releases.cut_after = 10
    with pytest.raises(NoServerBinaryError, match=r"release: .* ended after 10 of \d+ bytes"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_download_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch, releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    releases.before_answer = lambda name: None if name == "SHA256SUMS" else wait_until_over(releases.over)
    monkeypatch.setattr(install, "_STALL_S", 0.2)
    with pytest.raises(NoServerBinaryError, match=r"release: .*\.tar\.gz: timed out"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_download_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch, releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    monkeypatch.setattr(install, "_LIMIT_S", 0.0)
    with pytest.raises(NoServerBinaryError, match=r"release: .* only \d+ bytes came in 0 s"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_release_that_does_not_run_here_never_reaches_the_cache(releases: Releases, cache: Path) -> None:
    releases.publish("#!/bin/sh\necho 'version GLIBC_2.34 not found'\nexit 1\n")
    with pytest.raises(NoServerBinaryError, match=r"release: .*GLIBC_2\.34 not found"):
        ensure_server(cache=cache, releases_url=releases.url)
    assert left_in(cache) == []


@pytest.mark.parametrize(
    ("system", "machine", "archives"),
    [
        ("Linux", "aarch64", r"linux-arm64\.tar\.gz or .*linux-arm64\.zip"),
        ("Darwin", "arm64", r"darwin-arm64\.tar\.gz or .*darwin-arm64\.zip"),
        ("Darwin", "x86_64", r"darwin-amd64\.tar\.gz or .*darwin-amd64\.zip"),
        ("Windows", "AMD64", r"windows-amd64\.zip or .*windows-amd64\.tar\.gz"),
    ],
)
def test_each_system_asks_for_its_own_archive(
    monkeypatch: pytest.MonkeyPatch, releases: Releases, cache: Path, system: str, machine: str, archives: str
) -> None:
    releases.sign()
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(NoServerBinaryError, match=rf"no line for nats-server-v{VERSION}-{archives}"):
        ensure_server(cache=cache, releases_url=releases.url)


def test_a_machine_without_a_release_is_named(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(NoServerBinaryError, match=r"release: no release is made for \w+ on riscv64"):
        ensure_server(cache=cache)


def test_an_address_of_another_kind_is_refused(cache: Path) -> None:
    with pytest.raises(NoServerBinaryError, match="'file:///srv' is no address that starts with https://"):
        ensure_server(cache=cache, releases_url="file:///srv")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoServerBinaryError, match=r"cannot install into .*file/cache: .*Not a directory"):
        ensure_server(cache=tmp_path / "file" / "cache")


def test_a_user_without_a_home_needs_a_server_on_path(monkeypatch: pytest.MonkeyPatch, empty_machine: Path) -> None:
    def no_home(*arguments: object, **options: object) -> None:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    with pytest.raises(NoServerBinaryError, match="release: there is no place for a cache: could not"):
        ensure_server()
    program(empty_machine, script("nats-server: v2.15.1"))
    assert ensure_server().source == "PATH"


def test_the_last_error_lists_every_way_and_what_to_do(empty_machine: Path, releases: Releases, cache: Path) -> None:
    old = program(empty_machine, script("nats-server: v2.10.27"))
    with pytest.raises(NoServerBinaryError, match=r"no nats-server 2\.14\.0 or newer could be") as caught:
        ensure_server(cache=cache, releases_url=releases.url)
    ways = [line.strip() for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert ways[:5] == [
        "- MESH_LAB_NATS_SERVER: not set",
        f"- PATH: {old} is version 2.10.27, older than 2.14.0",
        f"- cache: {cache / 'nats-server'} does not exist",
        f"- release: {releases.url}/v{VERSION}/SHA256SUMS answers 404 Not Found",
        "- Debian package: this machine has no apt-get and dpkg",
    ]
    assert all(
        word in " ".join(ways[5:]) for word in ("brew", "apt install", "go install", "download", "MESH_LAB_NATS_SERVER")
    )


# Costs and company


def test_two_processes_install_at_once(releases: Releases, cache: Path) -> None:
    releases.publish(script(f"nats-server: v{VERSION}"))
    # Neither gets its archive before both have asked for theirs, so the two installs do overlap.
    both = threading.Barrier(2, timeout=20)
    releases.before_answer = lambda name: None if name == "SHA256SUMS" else both.wait()
    code = (
        "import sys; from pathlib import Path; from mesh_lab.servers.binary import ensure_server;"
        "print(ensure_server(cache=Path(sys.argv[1]), releases_url=sys.argv[2]).source)"
    )
    command = [sys.executable, "-c", code, str(cache), releases.url]
    installs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [install.communicate(timeout=30)[0] for install in installs]
    assert said == ["release\n", "release\n"]
    assert left_in(cache) == ["nats-server"]
    assert read_version(cache / "nats-server") == (2, 15, 1)


def test_looking_loads_no_code_for_downloads() -> None:
    heavy = ["urllib.request", "http.client", "ssl", "rich", "tarfile", "mesh_lab.servers.install"]
    code = f"import sys, mesh_lab.servers.binary; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def wait_until_over(over: threading.Event) -> None:
    """Keep the caller waiting until its test is over."""
    assert over.wait(timeout=20)
