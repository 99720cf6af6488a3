"""Fetch the official release of nats-server, without root.

Each way writes one program into a directory that the caller gives, and vouches for it: the release by its
SHA256SUMS over HTTPS, the package by Debian's signature, which apt checks.
:func:`mesh_lab.servers.binary.ensure_server` tries the program and puts it in its place.
"""

import os
import platform
import re
import threading
import time
from pathlib import Path

from mesh_lab.errors import BadDownloadError, NoServerBinaryError
from mesh_lab.servers.binary import PROGRAM, Progress, ServerBinary, ensure_server

PINNED_VERSION = "2.15.1"
RELEASES_URL = "https://github.com/nats-io/nats-server/releases/download"
RELEASES_VARIABLE = "MESH_LAB_RELEASES_URL"

_SYSTEMS = {"Linux": "linux", "Darwin": "darwin", "Windows": "windows"}
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

# A download is given up after so long without a byte, and after so long in all: an archive has 7 MB, Debian's
# list 11 MB, and what is slower is as good as dead.
_STALL_S, _LIMIT_S = 20.0, 600.0


def fetch_release(
    directory: Path,
    *,
    progress: Progress | None = None,
    releases_url: str | None = None,
    timeout: float = 5.0,
) -> Path:
    """Write the program of an official release into a directory and return its path.

    Args:
        directory: Where to write; the archive stays beside the program.
        progress: Called with bytes done, bytes in all or None, and the archive's name.
        releases_url: Where the directories of the releases are; None means what ``MESH_LAB_RELEASES_URL`` says,
            and without it GitHub.
        timeout: Seconds for each step of reaching the place; the list of checksums must be there within
            twice that, however many addresses the place has.

    Raises:
        NoServerBinaryError: There is no release for this machine, or it cannot be reached.
        BadDownloadError: The archive is not what its checksum promises, or holds no server.
    """
    base = (releases_url or os.environ.get(RELEASES_VARIABLE) or RELEASES_URL).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise NoServerBinaryError(f"{RELEASES_VARIABLE}: {base!r} is no address that starts with https://")
    system, machine = _SYSTEMS.get(platform.system()), _MACHINES.get(platform.machine().lower())
    if system is None or machine is None:
        raise NoServerBinaryError(f"no release is made for {platform.system()} on {platform.machine()}")
    stem = f"nats-server-v{PINNED_VERSION}-{system}-{machine}"
    # A release has both kinds for every system today; each system's usual one is the likelier to stay.
    names = [f"{stem}.zip", f"{stem}.tar.gz"] if system == "windows" else [f"{stem}.tar.gz", f"{stem}.zip"]

    sums_url, sums = f"{base}/v{PINNED_VERSION}/SHA256SUMS", directory / "SHA256SUMS"
    _download_within(2 * timeout, sums_url, sums, timeout=timeout)
    # sha256sum marks a file that was read in binary mode with a star.
    lines = re.findall(r"(?m)^([0-9a-f]{64}) [ *](\S+)\s*$", sums.read_text(encoding="utf-8", errors="replace"))
    digests = {name: digest for digest, name in lines}
    name = next((name for name in names if name in digests), None)
    if name is None:
        raise NoServerBinaryError(f"{sums_url} has no line for {' or '.join(names)}")

    url, archive = f"{base}/v{PINNED_VERSION}/{name}", directory / name
    found = _download(url, archive, timeout=_STALL_S, progress=progress)
    if found != digests[name]:
        raise BadDownloadError(
            f"{url} has the sha256 {found}, but SHA256SUMS promises {digests[name]}: something on the way "
            f"changed it; try again, or fetch it by hand from {RELEASES_URL}/v{PINNED_VERSION}/{name}"
        )
    return _take_out(archive, f"{stem}/{PROGRAM}", directory / PROGRAM)


def install_with_progress() -> ServerBinary:
    """Return what ``ensure_server()`` returns, and show in the terminal how far an install is.

    Raises:
        NoServerBinaryError: Every way failed; the message lists each with its reason, and what to do.
        BadDownloadError: A release was fetched and is not what its checksum promises.
    """
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[size]}"))
    with bars.Progress(*columns, bars.TimeElapsedColumn()) as display:
        row = display.add_task("", total=None, visible=False, size="")

        def show(done: int, total: int | None, what: str) -> None:
            size = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else ""
            display.update(row, visible=True, description=what, completed=done, total=total, size=size)

        found = ensure_server(progress=show)
        display.update(row, completed=1, total=1)
    return found


def _download_within(seconds: float, url: str, target: Path, *, timeout: float) -> None:
    """Download a small file in a thread and give it up after so many seconds.

    A socket's timeout bounds neither looking a name up nor trying one address after the other.
    """
    outcome: list[NoServerBinaryError | None] = []

    def work() -> None:
        try:
            _download(url, target, timeout=timeout)
            outcome.append(None)
        except NoServerBinaryError as err:
            outcome.append(err)

    # A daemon, so that the interpreter can end while the name server is still being waited for.
    thread = threading.Thread(target=work, daemon=True, name="mesh-lab-download")
    thread.start()
    thread.join(seconds)
    failure = outcome[0] if outcome else NoServerBinaryError(f"{url}: no whole answer within {seconds:g} s")
    if failure is not None:
        raise failure


def _download(url: str, target: Path, *, timeout: float, progress: Progress | None = None) -> str:
    """Write what a URL holds to a file and return its SHA-256; ``timeout`` bounds each wait for bytes."""
    import hashlib
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    digest, done, give_up = hashlib.sha256(), 0, time.monotonic() + _LIMIT_S
    try:
        with urlopen(url, timeout=timeout) as answer, target.open("wb") as file:  # noqa: S310 - http(s) only
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            # read1 returns what has arrived, so that a trickle of bytes cannot hold the loop past its limit.
            while chunk := answer.read1(1 << 16):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total, target.name)
                if time.monotonic() > give_up:
                    raise TimeoutError(f"only {done} bytes came in {_LIMIT_S:g} s")
    except HTTPError as err:
        err.close()
        raise NoServerBinaryError(f"{url} answers {err.code} {err.reason}") from err
    except (OSError, HTTPException, ValueError) as err:
        reason = err.reason if isinstance(err, URLError) else err
        raise NoServerBinaryError(f"{url}: {reason}") from err
    if total is not None and done < total:
        raise NoServerBinaryError(f"{url} ended after {done} of {total} bytes")
    return digest.hexdigest()


def _take_out(archive: Path, member: str, target: Path) -> Path:
    """Write one member of a zip or tar archive to a path of our own; no path in the archive is followed."""
    import tarfile
    import zipfile
    import zlib

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as bundle:
                content = bundle.read(member)
        else:
            with tarfile.open(archive, "r:gz") as tape:
                source = tape.extractfile(member)
                content = source.read() if source else b""
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as err:
        raise BadDownloadError(f"{archive.name} holds no readable {member}: {err}") from err
    target.write_bytes(content)
    return target
