"""Installing Debian's nats-server without root: a real apt, a real mirror, a real package."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import mesh_lab
from mesh_lab.errors import NoServerBinaryError
from mesh_lab.servers.binary import MINIMUM_VERSION, read_version
from mesh_lab.servers.debian import fetch_debian_package

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")

NOBODY = 65534
run_as_nobody = partial(subprocess.run, user=NOBODY, group=NOBODY, extra_groups=[])

# What apt says where the network, not this package, is the reason.
_NO_MIRROR = ("Could not resolve", "Could not connect", "Failed to fetch", "no mirror", "no Debian")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program out of Debian's package, as this user gets it."""
    try:
        return fetch_debian_package(tmp_path_factory.mktemp("debian"))
    except NoServerBinaryError as err:
        if any(words in str(err) for words in _NO_MIRROR):
            pytest.skip(f"no Debian mirror answers here: {err}")
        raise


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any user of this machine can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_the_package_holds_a_server_that_is_new_enough(package: Path) -> None:
    assert read_version(package) >= MINIMUM_VERSION


@pytest.mark.usefixtures("package")
def test_an_unprivileged_user_of_a_fresh_container_can_install(open_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; as this one, the test before has done it")
    # The checkout and this Python may lie where another user may not look.
    source = Path(mesh_lab.__file__).parent
    for name in (
        "__init__.py",
        "errors.py",
        "servers/__init__.py",
        "servers/binary.py",
        "servers/debian.py",
        "servers/install.py",
    ):
        target = open_directory / "mesh_lab" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target)
        target.chmod(0o644)
    # Containers come without package lists, and then apt knows no origins.
    (open_directory / "no-lists").mkdir()
    (open_directory / "apt.conf").write_text(f'Dir::State::lists "{open_directory}/no-lists";\n')
    home = open_directory / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    # No release answers at port 9, so that Debian's way is taken.
    code = (
        "import json, os; from pathlib import Path; from mesh_lab.servers.binary import ensure_server;"
        "found = ensure_server(cache=Path('cache').absolute(), releases_url='http://127.0.0.1:9');"
        "print(json.dumps([os.geteuid(), found.source, found.version, str(found.path), os.listdir('cache')]))"
    )
    python = _python_for_nobody()
    done = run_as_nobody(
        [python, "-c", code],
        cwd=home,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "de_DE.UTF-8",
            "PYTHONPATH": str(open_directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "APT_CONFIG": str(open_directory / "apt.conf"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    user, source_name, version, path, left = json.loads(done.stdout)
    assert user == NOBODY
    assert source_name == "Debian package"
    assert tuple(version) >= MINIMUM_VERSION
    assert left == ["nats-server"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def _python_for_nobody() -> str:
    """Return a Python that another user may start."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if run_as_nobody(command, capture_output=True, check=False, cwd="/").returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip("no Python 3.11 that an unprivileged user may start")


@pytest.mark.usefixtures("package")
def test_a_suite_that_the_keyring_did_not_sign_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine that takes unsigned packages must not talk this install into it.
    loose = tmp_path / "loose.conf"
    loose.write_text(
        'Acquire::AllowInsecureRepositories "true";\n'
        'Acquire::AllowWeakRepositories "true";\n'
        'Acquire::AllowDowngradeToInsecureRepositories "true";\n'
        'APT::Get::AllowUnauthenticated "true";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(loose))
    # Keys that were Debian's once, where this machine has them; else a keyring without keys.
    keyring = Path("/usr/share/keyrings/debian-archive-removed-keys.gpg")
    if not keyring.is_file():
        keyring = tmp_path / "empty.gpg"
        keyring.touch()
    directory = tmp_path / "install"
    directory.mkdir()
    with pytest.raises(NoServerBinaryError, match=r"The repository '\S+ sid InRelease' is not signed"):
        fetch_debian_package(directory, keyring=keyring)
    assert list(directory.glob("*.deb")) == []
