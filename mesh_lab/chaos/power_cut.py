"""A power cut: what only the operating system's memory held is lost, which killing a server alone never does.

Each server's store lies in a file system of its own, in an image file. What was written and not synced is in memory and
not in the image: the image at one moment is the disk after a power cut at that moment. So the servers are frozen, the
images copied, everything killed, and the copies mounted in the images' place. It models the system's memory, not what a
disk itself may hold back, and needs Linux and the right to mount.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from mesh_lab.chaos.run import ChaosRun, audit_after_faults
from mesh_lab.chaos.schedule import InjectedFault, PlannedFault, start_all
from mesh_lab.chaos.writers import Writers
from mesh_lab.errors import NoPowerCutError, ProcessEndedError
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.order import STREAM
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import run_shielded
from mesh_lab.processes import output_of
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

IMAGE_BYTES = 512 * 1024 * 1024  # sparse: it takes only the space that was written
COPIES_TRIED = 10
TOOL_WITHIN_S = 60.0
UNMOUNT_AFTER_S = (0.0, 0.2, 0.5, 1.0)
_TOOLS = ("mkfs.ext4", "mount", "umount", "losetup")


def why_not() -> str | None:
    """Return what this machine lacks for a power cut, or ``None``."""
    if sys.platform != "linux":
        return f"{sys.platform}, expected Linux"
    if os.geteuid() != 0:
        return "not root, and only root may mount"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {missing[0]} on the path"
    with tempfile.TemporaryDirectory(prefix="mesh-lab-disk-") as place:
        try:
            with contextlib.closing(Disk(Path(place), Path(place) / "mnt")) as disk:
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

    def close(self) -> None:
        """Unmount it for good; closing twice does nothing."""
        with self._lock:
            self._closed = True
            self._unmount()

    def _unmount(self) -> None:
        for patience_s in UNMOUNT_AFTER_S:
            with contextlib.suppress(NoPowerCutError):  # busy: a process that was killed is still being taken down
                if self._mounted:
                    time.sleep(patience_s)
                    _run("umount", str(self._mount_point))
                    self._mounted = False
        if self._mounted:
            _run("umount", "--lazy", str(self._mount_point))
            self._mounted = False


async def power_cut(*, sync_interval: str | None = None, seconds: float = 8.0) -> ChaosRun:
    """Write orders to three servers, cut the power of all, and return what is left when they are back.

    Args:
        sync_interval: How long what is acknowledged may stay in memory alone: ``"1s"``, or ``"always"`` for not at
            all. ``None``: nats-server's own default, two minutes.
        seconds: From the first order to the cut.

    Raises:
        NoPowerCutError: This machine does not allow it; the message says what is missing.
        NotReadyError: The servers were not ready again in time.
    """
    if missing := await asyncio.to_thread(why_not):
        raise NoPowerCutError(f"no power cut here: {missing}; in a container, it takes --privileged")
    setting = "" if sync_interval is None else f"sync_interval: {sync_interval}"
    async with await start_mesh(servers=3, backend="local", jetstream_config=setting) as mesh, _disks(mesh) as disks:
        client = await mesh.connect(name="power-cut")
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        async with Writers(mesh, number=8) as working:
            await asyncio.sleep(seconds)
            began_s = working.now_s
            await asyncio.gather(*(mesh.pause(name) for name in mesh.servers))
            for disk in disks:
                await run_shielded(asyncio.to_thread(disk.snapshot))
            history = await working.stop(wait=False)
        await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))
        for disk in disks:
            await run_shielded(asyncio.to_thread(disk.roll_back))
        await start_all(mesh)
        fault = InjectedFault(PlannedFault(seconds, "kill all", "all", 0.0), "all", began_s, working.now_s)
        return await audit_after_faults(mesh, history, [fault])


@contextlib.asynccontextmanager
async def _disks(mesh: Mesh) -> AsyncIterator[list[Disk]]:
    """Yield a disk for each server of a mesh that holds nothing yet, and unmount them all at the end."""
    disks: list[Disk] = []
    closing = contextlib.ExitStack()
    with tempfile.TemporaryDirectory(prefix="mesh-lab-disks-") as place:
        await asyncio.gather(*(mesh.kill(name) for name in mesh.servers))
        try:
            for name in mesh.servers:
                disks.append(closing.enter_context(contextlib.closing(Disk(Path(place), mesh.directory / name))))
                await run_shielded(asyncio.to_thread(disks[-1].mount))
            for server in mesh.servers.values():
                closing.callback(server.kill)  # called first of all: what a server uses cannot be taken away
            await start_all(mesh)
            yield disks
        finally:
            await run_shielded(asyncio.to_thread(closing.close))


def _run(*command: str) -> None:
    try:
        output_of(command, within=TOOL_WITHIN_S)
    except ProcessEndedError as err:
        raise NoPowerCutError(str(err)) from err
