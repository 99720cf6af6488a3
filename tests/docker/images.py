"""Images for a machine that reaches no registry, made of what the machine itself has and tagged as the files want them.

They stand in for two: NATS's own (the server that is installed here, with busybox for its health check) and
Python's (the Python that runs the tests). The second carries the locked wheels in place of a network, so that
`services.Dockerfile` is built for real, hashes checked.
"""

import importlib.util
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from debian_package import unpack_debian_packages

from mesh_lab.servers.binary import find_server

ROOT = Path(__file__).parents[2]
LIBRARIES = "usr/local/lib/of-the-machine"
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "__pycache__"}
LEFT_OUT |= {"site-packages", "dist-packages", "EXTERNALLY-MANAGED"}


class Image:
    """A root file system under construction."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in load()
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 - closed in load()
        self._there: set[str] = set()
        for directory, mode in (("tmp", 0o1777), ("etc", 0o755), ("bin", 0o755)):
            self._directory(directory, mode)

    def add(self, source: Path, target: str) -> None:
        """Add a file, or a directory with what is in it."""
        self._tar.add(source.resolve(), target, filter=_plain)

    def write(self, target: str, text: str) -> None:
        """Add a program text."""
        entry = tarfile.TarInfo(target)
        entry.mode, entry.size = 0o755, len(text.encode())
        self._tar.addfile(entry, io.BytesIO(text.encode()))

    def link(self, name: str, to: str) -> None:
        """Add a symbolic link."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, to
        self._tar.addfile(entry)

    def libraries_of(self, *programs: Path) -> None:
        """Add the shared libraries that programs and extension modules need, and their loader."""
        for program in programs:
            listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
            for path in re.findall(r"(/\S+) \(0x", listed):
                name = Path(path).name
                if name not in self._there:
                    self._there.add(name)
                    # The loader is asked for by its path, everything else by its name.
                    self.add(Path(path), path.lstrip("/") if name.startswith("ld-") else f"{LIBRARIES}/{name}")

    def load(self, tag: str, **variables: str) -> None:
        """Give the image to the engine under a tag."""
        self._tar.close()
        self._file.seek(0)
        variables = {"PATH": "/usr/local/bin:/bin", "LD_LIBRARY_PATH": f"/{LIBRARIES}", **variables}
        changes = [f"--change=ENV {name}={value}" for name, value in variables.items()]
        subprocess.run(["docker", "import", *changes, "-", tag], stdin=self._file, capture_output=True, check=True)
        self._file.close()

    def _directory(self, name: str, mode: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(entry)


def make_nats(tag: str, scratch: Path) -> None:
    """Make the image of the servers: the binary that local meshes use, and busybox's wget for the health check."""
    image = Image()
    server = find_server().path
    image.add(server, "usr/local/bin/nats-server")
    image.libraries_of(server)
    _add_busybox(image, scratch)
    image.load(tag)


def make_python(tag: str, scratch: Path, lock: Path = ROOT / "docker" / "services.lock") -> None:
    """Make the base of an image: this Python with pip, and the wheels that the lock names, the services' by default."""
    image = Image()
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    target = f"usr/local/lib/{library.name}"
    image.add(python, "usr/local/bin/python")
    image.add(library, target)
    # Into the standard library, which is found wherever a distribution puts its site-packages.
    image.add(Path(importlib.util.find_spec("pip").origin).parent, f"{target}/pip")
    image.write("usr/local/bin/pip", '#!/bin/sh\nexec python -m pip "$@"\n')
    wheels = scratch / lock.stem
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--require-hashes", "-r", lock, "-d", wheels], check=True)
    # With which pip builds what has no wheel.
    setuptools = re.findall(r"(?m)^setuptools==\S+", (ROOT / "requirements-workshop.lock").read_text())
    subprocess.run([*command, *setuptools, "-d", wheels], check=True)
    image.add(wheels, "wheels")
    image.libraries_of(python, *library.rglob("*.so"))
    _add_busybox(image, scratch)
    image.load(tag, PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")


def _add_busybox(image: Image, scratch: Path) -> None:
    found = scratch / "busybox" / "unpacked"
    if not found.is_dir():
        found.parent.mkdir()
        unpack_debian_packages(["busybox-static"], found.parent)
    image.add(next(path for path in found.rglob("bin/busybox")), "bin/busybox")
    for applet in ("sh", "wget"):
        image.link(f"bin/{applet}", "busybox")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what no service needs, and let root own what is left, for anybody to read."""
    name = Path(entry.name).name
    if name in LEFT_OUT or name.startswith("config-") or name.endswith((".a", ".pyc")):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode |= 0o755 if entry.isdir() or entry.mode & 0o100 else 0o444
    return entry
