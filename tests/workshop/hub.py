"""The command `mesh-lab seats` for tests: started as a trainer would, on ports of its own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

from mesh_lab.processes import ChildProcess
from mesh_lab.seats.api import HubApi
from mesh_lab.seats.start import FIRST_UIDS
from mesh_lab.servers.binary import find_server
from mesh_lab.servers.workspace import PortBlock

ROOT = Path(__file__).parents[2]
AS_ROOT = sys.platform.startswith("linux") and os.geteuid() == 0
IMPORTS = "import zmq, traitlets, mesh_lab.course"  # compiled ones among them


@dataclass(frozen=True)
class Python:
    """A Python that runs a hub, and whether users other than this one can run it, too."""

    path: Path
    variables: dict[str, str]
    for_all: bool


class Seats:
    """A folder of seats, and the command that serves them."""

    def __init__(self, folder: Path, python: Python, *options: str) -> None:
        self.folder, self.ports = folder, PortBlock.reserve()
        port = self.ports.take()  # the next two are of the same block, so nobody's either
        arguments = ["seats", "--folder", str(folder), "--port", str(port), *options]
        command = [str(python.path), "-m", "mesh_lab.cli", *arguments]
        self.process = ChildProcess(command, name="mesh-lab seats", environment=python.variables, stdout=True)
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> HubApi:
        """Start it, wait until all seats run, and return how the trainer commands it."""
        self.began = time.monotonic()
        self.process.start()
        while b"Ctrl-C ends them" not in self.process.receive():
            pass
        settings = json.loads((self.folder / "hub" / "settings.json").read_text())
        self.uid = settings["SeatSpawner"]["first_uid"]
        self.codes = settings["CodeAuthenticator"]["codes"]
        return HubApi(self.url, settings["JupyterHub"]["services"][0]["api_token"], self.process, None)

    def end(self) -> None:
        """End it as Ctrl-C does."""
        self.process.request_stop()
        ended = self.process.wait(within=60.0)
        self.process.close()
        self.ports.release()
        assert ended, "it did not end by itself"


@contextmanager
def python_for_all() -> Iterator[Python]:
    """Yield a Python that every user of this machine can run, or the one that runs the tests where there can be none.

    Where that one lies in a folder of root's, it is a copy of it without its packages, which are found where they are.
    """
    own = Python(Path(sys.executable), {"PYTHONPATH": str(ROOT)}, for_all=True)
    if not AS_ROOT or _everybody_runs(own):
        yield replace(own, for_all=AS_ROOT)
        return
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    place = Path(mkdtemp(prefix="mesh-lab-python-"))
    try:
        place.chmod(0o755)
        library = Path(sysconfig.get_path("stdlib"))
        left_out = shutil.ignore_patterns("site-packages", "test", "idlelib", "config-*", "lib2to3", "ensurepip")
        shutil.copytree(library, place / "lib" / library.name, ignore=left_out)
        for data in ("share", "etc"):  # JupyterLab's page, and which extensions are on
            (place / data).symlink_to(Path(sys.prefix, data))
        (place / "bin").mkdir()
        copy = Path(shutil.copy2(base, place / "bin" / base.name))
        paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
        variables = {"PYTHONPATH": paths, "MESH_LAB_NATS_SERVER": str(find_server().path)}
        shared = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "none")
        if shared.suffix != ".a" and shared.is_file():
            shutil.copy2(shared, place / "lib")
            variables["LD_LIBRARY_PATH"] = str(place / "lib")
        found = Python(copy, variables, for_all=True)
        yield found if _everybody_runs(found) else replace(own, for_all=False)
    finally:
        shutil.rmtree(place)


def _everybody_runs(python: Python) -> bool:
    other = FIRST_UIDS[-1]
    try:
        subprocess.run(
            [python.path, "-c", IMPORTS], user=other, group=other, extra_groups=(), cwd="/", check=True,
            capture_output=True, env={**os.environ, **python.variables},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return True
