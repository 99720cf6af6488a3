"""Unpacking Debian's packages without root: a real apt, a real mirror, a real package."""

import shutil
import subprocess
from pathlib import Path

import pytest
from debian_package import NoPackageError, unpack_debian_packages

pytestmark = [
    pytest.mark.needs("debian-mirror"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get"),
]

# What apt says where the network, not this package, is the reason.
NO_MIRROR = ("Could not resolve", "Could not connect", "Failed to fetch", "no mirror", "no Debian")


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program out of Debian's package, as this user gets it."""
    try:
        return unpack_debian_packages(["busybox-static"], tmp_path_factory.mktemp("debian"))
    except NoPackageError as err:
        if any(words in str(err) for words in NO_MIRROR):
            pytest.skip(f"no Debian mirror answers here: {err}")
        raise


def test_a_package_is_unpacked_and_its_program_runs(busybox: Path) -> None:
    program = next(busybox.rglob("bin/busybox"))
    assert subprocess.run([program, "echo", "it runs"], capture_output=True, text=True).stdout == "it runs\n"


@pytest.mark.usefixtures("busybox")
def test_a_suite_that_the_keyring_did_not_sign_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A machine that takes unsigned packages must not make this apt take them.
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
    with pytest.raises(NoPackageError, match=r"The repository '\S+ sid InRelease' is not signed"):
        unpack_debian_packages(["busybox-static"], directory, keyring=keyring)
    assert list(directory.glob("*.deb")) == []
