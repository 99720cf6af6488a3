"""Unpack packages of Debian without root: apt checks the signatures, and nothing is set up system-wide."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

APT_LIMIT_S = 600.0

# Debian renamed the file; the old name is a link on new systems.
_DEBIAN_KEYRINGS = tuple(f"/usr/share/keyrings/debian-archive-keyring.{ending}" for ending in ("pgp", "gpg"))


class NoPackageError(Exception):
    """This is no Debian, no mirror has the package, or a signature is not right."""


def unpack_debian_packages(packages: Sequence[str], directory: Path, *, keyring: Path | None = None) -> Path:
    """Unpack Debian's newest versions of packages below a directory and return where their files are.

    The packages come from the suite sid, through a private apt that leaves the system's own lists, cache and
    packages alone. Its mirror is the one that this machine is set up with.

    Args:
        packages: Names of the packages; nothing that they depend on comes along.
        directory: Where apt may write about 150 MB.
        keyring: Keys that the suite must be signed with; None means Debian's own, from this machine.

    Raises:
        NoPackageError: This is no Debian, no mirror has the suite, or a signature is not right.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoPackageError("this machine has no apt-get and dpkg")
    keyring = keyring or next((Path(ring) for ring in _DEBIAN_KEYRINGS if Path(ring).is_file()), None)
    if keyring is None:
        raise NoPackageError(f"this is no Debian: {' and '.join(_DEBIAN_KEYRINGS)} are missing")
    mirrors = _debian_mirrors()
    if not mirrors:
        raise NoPackageError("apt is set up with no mirror that could be Debian's")
    architecture = _run("dpkg", "--print-architecture").strip()
    config = _private_apt(directory)
    reasons: list[str] = []
    # Where the first three do not have the packages, one more will not have them.
    for mirror in mirrors[:3]:
        # target=Packages: with apt-file or a software centre installed, apt would fetch their indexes too.
        options = f"arch={architecture} target=Packages signed-by={keyring}"
        (directory / "sources.list").write_text(f"deb [{options}] {mirror} sid main\n", encoding="utf-8")
        try:
            _run("apt-get", "-q", "update", config=config)
            _run("apt-get", "-q", "download", *packages, config=config)
        except NoPackageError as err:
            reasons.append(f"{mirror}: {err}")
            continue
        for package in packages:
            archive = next(directory.glob(f"{package}_*.deb"))
            _run("dpkg", "-x", str(archive), str(directory / "unpacked"))
        return directory / "unpacked"
    # A mirror's address may carry a password, which belongs in no message.
    raise NoPackageError(re.sub(r"//[^/@\s]+@", "//", "; ".join(reasons)))


def _debian_mirrors() -> list[str]:
    """Return the addresses of this machine's Debian mirrors, the likeliest first."""
    shape = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    # The second way is for machines whose lists were deleted, as in most containers: there apt knows no
    # origins, and the signature alone tells Debian's mirror from another.
    for more in ((), ("--no-release-info",)):
        listed = _run("apt-get", "indextargets", *more, "--format", shape)
        rows = [row for line in listed.splitlines() if len(row := line.split("|")) == 4]
        uris = {
            uri
            for uri, release, component, origin in rows
            if component == "main" and (more or origin == "Debian")
            if not release.endswith("-security") and not uri.startswith("cdrom:")
        }
        if uris:
            # By convention the archive is in a directory of this name, whoever serves it.
            return sorted(uris, key=lambda uri: (not uri.rstrip("/").endswith("/debian"), uri))
    return []


def _private_apt(directory: Path) -> Path:
    """Return a configuration under which apt works in a directory alone and reaches the network as always."""
    for name in ("lists", "archives"):
        (directory / name / "partial").mkdir(parents=True)
    # Proxies, certificates and the like come along; hooks, pinning and further sources do not.
    network = [line for line in _run("apt-config", "dump").splitlines() if line.startswith("Acquire::")]
    own = {
        "Dir::Etc": directory,
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::netrc": "/etc/apt/auth.conf",
        "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
        "Dir::State": directory,
        "Dir::State::status": "/dev/null",
        "Dir::Cache": directory,
        # Without it, root's apt would want to work as a user who cannot enter root's cache.
        "APT::Sandbox::User": "root",
        # Without it, an update that reached nothing counts as a success.
        "APT::Update::Error-Mode": "any",
        # A machine may be set up to take packages without a signature; these packages are not taken so.
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": "5",
        "Acquire::https::Timeout": "5",
    }
    config = directory / "private.conf"
    lines = [*network, *(f'{key} "{value}";' for key, value in own.items()), ""]
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def _run(*command: str, config: Path | None = None) -> str:
    """Return what a command prints; its errors, in English, become the reason of a NoPackageError."""
    environment = {**os.environ, "LC_ALL": "C", **({"APT_CONFIG": str(config)} if config else {})}
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=config and config.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise NoPackageError(f"`{' '.join(command)}` did not end within {APT_LIMIT_S:g} s") from err
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:", "dpkg"))]
        raise NoPackageError(f"`{' '.join(command)}`: {' '.join(said[:3]) or done.returncode}")
    return done.stdout
