"""Get nats-server as Debian's own package, without root: apt checks the signatures, nothing is set up system-wide."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from mesh_lab.errors import NoServerBinaryError
from mesh_lab.servers.binary import Progress

APT_LIMIT_S = 600.0

# Debian renamed the file; the old name is a link on new systems.
_DEBIAN_KEYRINGS = tuple(f"/usr/share/keyrings/debian-archive-keyring.{ending}" for ending in ("pgp", "gpg"))


def fetch_debian_package(directory: Path, *, progress: Progress | None = None, keyring: Path | None = None) -> Path:
    """Write the program of Debian's newest nats-server package into a directory and return its path.

    Args:
        directory: Where apt may write about 150 MB.
        progress: Called with bytes done, bytes in all or None, and what is being fetched.
        keyring: Keys that the suite must be signed with; None means Debian's own, from this machine.

    Raises:
        NoServerBinaryError: This is no Debian, no mirror has the suite, or a signature is not right.
    """
    return unpack_debian_package("nats-server", directory, progress=progress, keyring=keyring) / "usr/sbin/nats-server"


def unpack_debian_package(
    package: str, directory: Path, *, progress: Progress | None = None, keyring: Path | None = None
) -> Path:
    """Unpack Debian's newest version of a package below a directory and return where its files are.

    The package comes from the suite sid, through a private apt that leaves the system's own lists, cache and
    packages alone. Its mirror is the one that this machine is set up with.

    Args:
        package: Name of the package; nothing that it depends on comes along.
        directory: Where apt may write about 150 MB.
        progress: Called with bytes done, bytes in all or None, and what is being fetched.
        keyring: Keys that the suite must be signed with; None means Debian's own, from this machine.

    Raises:
        NoServerBinaryError: This is no Debian, no mirror has the suite, or a signature is not right.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoServerBinaryError("this machine has no apt-get and dpkg")
    keyring = keyring or next((Path(ring) for ring in _DEBIAN_KEYRINGS if Path(ring).is_file()), None)
    if keyring is None:
        raise NoServerBinaryError(f"this is no Debian: {' and '.join(_DEBIAN_KEYRINGS)} are missing")
    mirrors = _debian_mirrors()
    if not mirrors:
        raise NoServerBinaryError("apt is set up with no mirror that could be Debian's")
    report = progress or (lambda done, total, what: None)
    architecture = _run("dpkg", "--print-architecture").strip()
    config = _private_apt(directory)
    reasons: list[str] = []
    # Where the first three do not have the package, one more will not have it.
    for mirror in mirrors[:3]:
        # target=Packages: with apt-file or a software centre installed, apt would fetch their indexes too.
        options = f"arch={architecture} target=Packages signed-by={keyring}"
        (directory / "sources.list").write_text(f"deb [{options}] {mirror} sid main\n", encoding="utf-8")
        try:
            report(0, None, "Debian's list of packages")
            _run("apt-get", "-q", "update", config=config)
            report(0, None, f"Debian's {package}")
            _run("apt-get", "-q", "download", package, config=config)
        except NoServerBinaryError as err:
            reasons.append(f"{mirror}: {err}")
            continue
        archive = next(directory.glob(f"{package}_*.deb"))
        _run("dpkg", "-x", str(archive), str(directory / "unpacked"))
        return directory / "unpacked"
    # A mirror's address may carry a password; what people show each other should not.
    raise NoServerBinaryError(re.sub(r"//[^/@\s]+@", "//", "; ".join(reasons)))


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
        # A machine may be set up to take packages without a signature; this install is not.
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
    """Return what a command prints; its errors, in English, become the reason of a NoServerBinaryError."""
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
        raise NoServerBinaryError(f"`{' '.join(command)}` did not end within {APT_LIMIT_S:g} s") from err
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:", "dpkg"))]
        raise NoServerBinaryError(f"`{' '.join(command)}`: {' '.join(said[:3]) or done.returncode}")
    return done.stdout
