"""Find a nats-server that is new enough, and install one where there is none.

Looked at in this order, and the first good one is taken:

1. the program that ``MESH_LAB_NATS_SERVER`` names; if that one is wrong, it is an error at once,
2. ``nats-server`` in the directories of ``PATH``, then where package managers put it outside of ``PATH``,
3. the user's own cache, where an earlier install left it,
4. an install into that cache: the official release, then Debian's package (:mod:`mesh_lab.servers.install`).

Everything here blocks, an install for as long as the download takes: a coroutine calls it with
``await asyncio.to_thread(ensure_server)``.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mesh_lab.errors import MeshLabError, NoServerBinaryError

# 2.14.0 is the first with fast ingest (ADR-50), which the course measures, and closes two bypasses of
# authorization (advisories.nats.io, 2026-16 and 2026-18); 2026-26 needs 2.14.3, but only where MQTT is open.
MINIMUM_VERSION = (2, 14, 0)

SERVER_VARIABLE = "MESH_LAB_NATS_SERVER"
PROGRAM = "nats-server.exe" if sys.platform == "win32" else "nats-server"

# Often not on PATH: Debian's package, Homebrew under a Jupyter started from the desktop, `go install`.
USUAL_DIRECTORIES = ("/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin", "~/go/bin")

# `nats-server: v2.15.1`, `v2.15.1-RC.1` or `v2.15.0-dev`; a candidate counts as the version that it becomes.
_VERSION_LINE = re.compile(r"^nats-server: v(\d+)\.(\d+)\.(\d+)", re.MULTILINE)

Version: TypeAlias = tuple[int, int, int]
# Called with the bytes done so far, the bytes in all (None while unknown) and what is being fetched.
Progress: TypeAlias = Callable[[int, int | None, str], None]


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A nats-server program that answered ``--version`` and is new enough."""

    path: Path
    """Where the program is."""
    version: Version
    """Its version, for example ``(2, 15, 1)``."""
    source: str
    """How it was found: ``MESH_LAB_NATS_SERVER``, ``PATH``, ``cache``, ``release`` or ``Debian package``."""


@dataclass(frozen=True, slots=True)
class Search:
    """What looking around this machine came to."""

    found: ServerBinary | None
    """The program to use, or None."""
    tried: tuple[str, ...]
    """Each way that led nowhere, with its reason."""


def version_text(version: Version) -> str:
    """Return a version as people write it, for example ``"2.15.1"``."""
    return ".".join(map(str, version))


def cache_directory() -> Path:
    """Return the directory that this user's installs go to, on this platform.

    Raises:
        NoServerBinaryError: This user has no home, as in some containers.
    """
    # Part of the lab extra: imported here so that `mesh-lab doctor` can run, and say so, where it is missing.
    from platformdirs import user_cache_path

    try:
        return user_cache_path("mesh-lab", appauthor=False)
    except RuntimeError as err:
        raise NoServerBinaryError(f"there is no place for a cache: {err}") from err


def read_version(path: Path, *, timeout: float = 10.0) -> Version:
    """Return the version that the program at a path says it has.

    Args:
        path: The program; it is started once with ``--version``.
        timeout: Seconds until it is killed; the default leaves room for a virus scanner at the first start.

    Raises:
        NoServerBinaryError: It is missing, cannot be run, does not end or is another program.
    """
    if not os.path.isfile(path):
        raise NoServerBinaryError(f"{path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise NoServerBinaryError(f"{path} did not answer --version within {timeout:g} s") from err
    except OSError as err:
        raise NoServerBinaryError(f"{path} cannot be run: {err.strerror or err}") from err
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    match = _VERSION_LINE.search(said)
    if done.returncode != 0 or match is None:
        ending = f"with exit code {done.returncode}, not 'nats-server: v…'"
        raise NoServerBinaryError(f"{path} --version said {said[:200]!r} {ending}")
    major, minor, patch = map(int, match.groups())
    return major, minor, patch


def look_for_server(*, cache: Path | None = None) -> Search:
    """Return what this machine has, and why each place before it was passed over; install nothing.

    Args:
        cache: Directory of earlier installs; None means the user's own.

    Raises:
        NoServerBinaryError: ``MESH_LAB_NATS_SERVER`` is set and does not name a server that is new enough.
    """
    if named := os.environ.get(SERVER_VARIABLE):
        try:
            return Search(_accept(Path(os.path.expanduser(named)).absolute(), SERVER_VARIABLE), ())
        except NoServerBinaryError as err:
            fix = f"let it name a nats-server {version_text(MINIMUM_VERSION)} or newer, or unset it"
            raise NoServerBinaryError(f"{SERVER_VARIABLE} is set, but {err}; {fix}") from err
    tried = [f"{SERVER_VARIABLE}: not set"]
    programs = _programs_on_path()
    if not programs:
        tried.append(f"PATH: no {PROGRAM} in its directories, nor in {', '.join(USUAL_DIRECTORIES)}")
    for path in programs:
        try:
            return Search(_accept(path, "PATH"), tuple(tried))
        except NoServerBinaryError as err:
            tried.append(f"PATH: {err}")
    try:
        return Search(_accept((cache or cache_directory()) / PROGRAM, "cache"), tuple(tried))
    except NoServerBinaryError as err:
        return Search(None, (*tried, f"cache: {err}"))


def ensure_server(
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    releases_url: str | None = None,
    timeout: float = 5.0,
) -> ServerBinary:
    """Return the server that this machine has, after installing one if it has none.

    Several processes may do this at once: each fetches for itself, and the last one's file stays.

    Args:
        progress: Called while something is fetched, with bytes done, bytes in all or None, and what it is.
        cache: Directory to install into; None means the user's own.
        releases_url: Where the directories of the releases are, for a mirror; None means what
            ``MESH_LAB_RELEASES_URL`` says, and without it GitHub.
        timeout: Seconds in which the place of the releases must have been reached.

    Raises:
        NoServerBinaryError: Every way failed; the message lists each with its reason, and what to do.
        BadDownloadError: A release is not what its checksum promises; no further way is tried then.
    """
    search = look_for_server(cache=cache)
    if search.found is not None:
        return search.found
    # Loaded only now: nearly every start finds a server and needs no code for downloads.
    from mesh_lab.servers.debian import fetch_debian_package
    from mesh_lab.servers.install import fetch_release

    release = partial(fetch_release, releases_url=releases_url, timeout=timeout)
    tried = list(search.tried)
    for source, fetch in (("release", release), ("Debian package", fetch_debian_package)):
        try:
            return _install(partial(fetch, progress=progress), source, cache)
        except NoServerBinaryError as err:
            tried.append(f"{source}: {err}")
            failure = err
    raise NoServerBinaryError(_advice(tried)) from failure


def _accept(path: Path, source: str) -> ServerBinary:
    """Return the program at a path as a ServerBinary if it is new enough."""
    version = read_version(path)
    if version < MINIMUM_VERSION:
        versions = f"version {version_text(version)}, older than {version_text(MINIMUM_VERSION)}"
        raise NoServerBinaryError(f"{path} is {versions}")
    return ServerBinary(path, version, source)


def _programs_on_path() -> list[Path]:
    """Return every nats-server in the directories of PATH and in the usual ones."""
    # A relative entry would start whatever lies in the current directory, and so would shutil.which on Windows.
    directories = map(os.path.expanduser, [*os.get_exec_path(), *USUAL_DIRECTORIES])
    paths = dict.fromkeys(Path(directory) / PROGRAM for directory in directories if os.path.isabs(directory))
    # Not path.is_file(): that raises where PATH names a directory that this user may not enter.
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def _install(fetch: Callable[[Path], Path], source: str, cache: Path | None) -> ServerBinary:
    """Fetch a server so that the cache holds a whole program that ran, or is as it was."""
    cache = (cache or cache_directory()).absolute()
    target = cache / PROGRAM
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the last step is a rename on one file system.
        with TemporaryDirectory(prefix="install-", dir=cache, ignore_cleanup_errors=True) as directory:
            fresh = fetch(Path(directory))
            fresh.chmod(0o755)
            version = _accept(fresh, source).version
            try:
                fresh.replace(target)
            except PermissionError:
                # Windows does not replace a program that runs: another process installed and started it.
                version = _accept(target, source).version
    except MeshLabError:
        raise
    except OSError as err:
        raise NoServerBinaryError(f"cannot install into {cache}: {err}") from err
    return ServerBinary(target, version, source)


def _advice(tried: list[str]) -> str:
    """Return the message for a person who has no server: each way with its reason, and what to do."""
    ways = "".join(f"\n  - {way}" for way in tried)
    return (
        f"no nats-server {version_text(MINIMUM_VERSION)} or newer could be found or installed. Tried:{ways}\n"
        "Do one of these, then try again:\n"
        "  - install one: `brew install nats-server`, `apt install nats-server` where Debian has one that is "
        "new enough, or `go install github.com/nats-io/nats-server/v2@latest`\n"
        "  - download the archive for this machine from https://github.com/nats-io/nats-server/releases, "
        f"unpack it, and set {SERVER_VARIABLE} to the path of its {PROGRAM}\n"
        "  - behind a proxy, set HTTPS_PROXY; with a mirror of the releases, MESH_LAB_RELEASES_URL; without a "
        "home that can be written, XDG_CACHE_HOME"
    )
