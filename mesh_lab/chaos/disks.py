"""Disks of the servers' own: file systems in image files, which can be rolled back and filled up.

What was written and not synced is in the system's memory and not in the image: the image at one moment is the disk
after a power cut at that moment. It takes Linux and the right to mount.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from mesh_lab.errors import NoPowerCutError, ProcessEndedError
from mesh_lab.patterns.wait import run_shielded
from mesh_lab.processes import output_of
from mesh_lab.servers.mesh import Mesh

IMAGE_BYTES = 512 * 1024 * 1024  # sparse: it takes only the space that was written
BLOCK_BYTES = 4096
COPIES_TRIED = 10
TOOL_WITHIN_S = 60.0
READY_WITHIN_S = 60.0
UNMOUNT_AFTER_S = (0.0, 0.2, 0.5, 1.0)
_TOOLS = ("mkfs.ext4", "mount", "umount", "losetup")
_PREFIX, _LOCK, _BALLAST = "mesh-lab-disks-", "lock", "ballast"


def why_not() -> str | None:
    """Return what this machine lacks for a power cut, or ``None``."""
    if sys.platform != "linux":
        return f"{sys.platform}, expected Linux"
    if os.geteuid() != 0:
        return "not root, and only root may mount"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {missing[0]} on the path"
    with _place() as place:
        try:
            with contextlib.closing(Disk(place, place / "mnt")) as disk:
                disk.mount()
        except NoPowerCutError as err:
            return str(err)
    return None


class Disk:
    """A file system in an image file; an operation that fails raises :class:`NoPowerCutError`."""

    def __init__(self, place: Path, mount_point: Path) -> None:
        """Make an image in a directory; it is not mounted yet."""
        self._image, self._mount_point = place / f"{mount_point.name}.img", mount_point
        self._lock = threading.Lock()
        self._mounted = self._closed = False
        mount_point.mkdir(mode=0o700, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(IMAGE_BYTES)
        # Write the inode tables now, not in the background while the servers run.
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))

    def mount(self) -> None:
        """Show the image's files at the mount point."""
        with self._lock:
            if self._closed:
                raise NoPowerCutError("this disk was closed; make another one")
            _run("mount", "-o", "loop", str(self._image), str(self._mount_point))
            self._mounted = True
            self._mount_point.chmod(0o700)

    def snapshot(self) -> None:
        """Keep a copy of what is in the image now; made again where the system wrote to it meanwhile."""
        copy = self._image.with_suffix(".cut")
        for _ in range(COPIES_TRIED):
            before = self._image.stat().st_mtime_ns
            _run("cp", "--sparse=always", "--reflink=auto", str(self._image), str(copy))
            if self._image.stat().st_mtime_ns == before:
                return
        raise NoPowerCutError(f"{self._image.name} was written to during each of {COPIES_TRIED} copies of it")

    def roll_back(self) -> None:
        """Put the copy that :meth:`snapshot` made in the image's place: what was written later is lost."""
        with self._lock:
            self._unmount()
        self._image.with_suffix(".cut").replace(self._image)
        self.mount()

    def fill(self) -> None:
        """Take up all the space that is left, as somebody's log files do; :meth:`drain` gives it back."""
        if sys.platform != "linux":
            raise NoPowerCutError(str(why_not()))
        with (self._mount_point / _BALLAST).open("wb") as ballast:
            size = IMAGE_BYTES
            while size >= BLOCK_BYTES:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), size)
                except OSError as err:
                    if err.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def drain(self) -> None:
        """Give back what :meth:`fill` took; nothing, if that was nothing."""
        (self._mount_point / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it for good; closing twice does nothing."""
        with self._lock:
            self._closed = True
            self._unmount()

    def _unmount(self) -> None:
        if self._mounted:
            _unmount(str(self._mount_point))
            self._mounted = False


@contextlib.asynccontextmanager
async def own_disks(mesh: Mesh) -> AsyncIterator[dict[str, Disk]]:
    """Yield a disk for each server of a mesh that holds nothing yet, and unmount them all at the end.

    Raises:
        NoPowerCutError: This machine does not allow it; the message says what is missing.
        NotReadyError: The servers were not ready again in time.
    """
    if missing := await asyncio.to_thread(why_not):
        raise NoPowerCutError(f"no power cut or full disk here: {missing}; in a container, it takes --privileged")
    disks: dict[str, Disk] = {}
    closing = contextlib.ExitStack()
    with _place() as place:
        await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))
        try:
            for name in mesh.servers:
                disks[name] = closing.enter_context(contextlib.closing(Disk(place, mesh.directory / name)))
                await run_shielded(asyncio.to_thread(disks[name].mount))
            for server in mesh.servers.values():
                closing.callback(server.kill)  # called first of all: what a server uses cannot be taken away
            await start_all(mesh)
            yield disks
        finally:
            await run_shielded(asyncio.to_thread(closing.close))


async def freeze(mesh: Mesh, disks: Mapping[str, Disk]) -> None:
    """Freeze all servers, and keep what is on their disks at that moment; the first half of a power cut."""
    await asyncio.gather(*(mesh.pause(name) for name in mesh.servers))
    for disk in disks.values():
        await run_shielded(asyncio.to_thread(disk.snapshot))


async def lose_power(mesh: Mesh, disks: Mapping[str, Disk]) -> None:
    """Kill all servers, and put back what was on their disks when they froze; they are not started again."""
    await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))
    for disk in disks.values():
        await run_shielded(asyncio.to_thread(disk.roll_back))


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """Yield a directory for images, locked for as long as its process lives, and remove it at the end."""
    if sys.platform != "linux":
        raise NoPowerCutError(str(why_not()))
    import fcntl

    place = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}"))
    with (place / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = place.rename(place.with_name(place.name.removeprefix("new-")))
        try:
            yield place
        finally:
            shutil.rmtree(place)


async def start_all(mesh: Mesh) -> None:
    """Start all servers that do not run, together: one alone would wait for a majority for ever.

    Raises:
        NotReadyError: They were not ready in time.
        ServerExitedError: One ended at its start.
    """
    for server in mesh.servers.values():
        if server.state not in ("running", "paused"):
            await asyncio.to_thread(server.start)
    await mesh.ready(within=READY_WITHIN_S)


def clear_leftovers() -> int:
    """Unmount and remove the disks of runs that were killed, and return how many there were."""
    if sys.platform != "linux" or why_not() is not None:
        return 0
    import fcntl

    cleared = 0
    for place in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (place / _LOCK).open("rb") as lock:  # locked: its run is alive
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for image in place.glob("*.img"):
                for device in _run("losetup", "--noheadings", "--output", "NAME", "--associated", str(image)).split():
                    if f"{device} " in Path("/proc/mounts").read_text():
                        _unmount(device)
                    with contextlib.suppress(NoPowerCutError):  # gone with its mount
                        _run("losetup", "--detach", device)
                cleared += 1
            shutil.rmtree(place)
    return cleared


def _unmount(place: str) -> None:
    for patience_s in UNMOUNT_AFTER_S:
        time.sleep(patience_s)
        with contextlib.suppress(NoPowerCutError):  # busy: a process that was killed is still being taken down
            _run("umount", place)
            return
    _run("umount", "--lazy", place)


def _run(*command: str) -> str:
    try:
        return output_of(command, within=TOOL_WITHIN_S)
    except ProcessEndedError as err:
        raise NoPowerCutError(str(err)) from err
