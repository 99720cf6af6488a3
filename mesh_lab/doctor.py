"""Examine this machine, changing nothing: can the course run here, and what would make it so."""

import importlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
import webbrowser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mesh_lab.errors import MeshLabError
from mesh_lab.servers.binary import MINIMUM_VERSION, find_server, version_text
from mesh_lab.servers.compose import Engine
from mesh_lab.servers.workspace import PortBlock

MEMORY_NEEDED_BYTES = 1_000_000_000  # two regions of three servers under load, the kernel and JupyterLab
DISK_NEEDED_BYTES = 2_000_000_000  # three copies of the biggest streams, in the temporary directory
KERNEL_S, FIRST_CELL = 60.0, "%load_ext mesh_lab"
# Where a container's memory limit stands (cgroup v2); the memory of the whole machine does not show it.
CGROUP = Path("/sys/fs/cgroup")

# What the extra `lab` of pyproject.toml installs to run with, except the server and the event loop's nest-asyncio2.
LAB_PACKAGES = (
    "jupyterlab", "ipywidgets", "pandas", "matplotlib", "hdrhistogram", "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "platformdirs", "prometheus-client", "psutil", "pytest", "pytest-asyncio", "rich", "sidecar", "trustme",
)  # fmt: skip
# Modules whose names do not follow from their packages'.
_MODULES = {
    "hdrhistogram": "hdrh.histogram",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
}
_TEXT_BROWSERS = ("www-browser", "links", "elinks", "lynx", "w3m")
_INSTALL_LAB = 'pip install "mesh-lab[lab]", in a checkout: pip install -e ".[lab]"'


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined, what was found, and what fixes it."""

    what: str
    state: Literal["ok", "fault", "note"]
    """A fault stops the course, a note only a part of it."""
    seen: str
    fix: str = ""


def run() -> int:
    """Show what is found on this machine, as :func:`show`."""
    return show(examine())


def show(findings: Iterable[Finding]) -> int:
    """Show findings on stdout, each as it comes, and return the exit code: 1 if there is a fault, else 0."""
    faults = 0
    for finding in findings:  # plain text: to be read where packages are missing, and pasted into an issue
        fix = f"\n       to do: {finding.fix}" if finding.fix else ""
        sys.stdout.write(f"{finding.state:5}  {finding.what}: {finding.seen}{fix}\n")
        sys.stdout.flush()
        faults += finding.state == "fault"
    return int(faults > 0)


def examine() -> list[Finding]:
    """Return what was found on this machine, in the order in which to fix it."""
    # uvloop is not made for Windows; there, asyncio's own loop is used.
    loops = ["nest-asyncio2"] if sys.platform == "win32" else ["uvloop", "nest-asyncio2"]
    listening = "end programs that listen there, or let the firewall or sandbox allow listening on 127.0.0.1"
    disk = "free some, or set TMPDIR (on Windows TEMP) to a directory on a bigger disk"
    docker = "needed for the parts that run in containers; everything else works without it"
    browser = "install one, or open JupyterLab's address in a browser on another machine through an SSH tunnel"
    return [
        Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}"),
        _finding("event loop", partial(_packages, loops), _INSTALL_LAB),
        _finding("packages", partial(_packages, LAB_PACKAGES), _INSTALL_LAB),
        _finding("kernel", _kernel, "correct what the message names; `mesh-lab lab` starts this kernel"),
        _finding("kernel python3 elsewhere", _other_kernel, "start JupyterLab by `mesh-lab lab`", "note"),
        _finding(f"nats-server {version_text(MINIMUM_VERSION)} or newer", _server, "correct what the message names"),
        _finding("ports", _ports, listening),
        _finding("memory", _memory, "close other programs, or give the container or virtual machine more"),
        _finding("disk", _disk, disk),
        _finding("Docker, Compose 2", _docker, docker, "note"),
        _finding("browser", graphical_browser, browser, "note"),
    ]


def _finding(what: str, look: Callable[[], str], fix: str, level: Literal["fault", "note"] = "fault") -> Finding:
    """Return what an examination found, or the error that it raised."""
    try:
        return Finding(what, "ok", look())
    except (MeshLabError, OSError, webbrowser.Error) as err:
        return Finding(what, level, str(err), fix)


def graphical_browser() -> str:
    """Return the name of a browser that can show JupyterLab.

    Raises:
        webbrowser.Error: There is none, or no display to show one on.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Under WSL this program opens the browser of Windows.
        if (windows := shutil.which("wslview")) is None:
            raise webbrowser.Error("there is no display: neither DISPLAY nor WAYLAND_DISPLAY is set")
        return windows
    name = webbrowser.get().name
    if name in _TEXT_BROWSERS:
        raise webbrowser.Error(f"only {name}, which cannot show JupyterLab")
    return name or "the system's default"


def _packages(packages: Sequence[str]) -> str:
    faults = []
    for package in packages:
        try:
            with warnings.catch_warnings(action="ignore"):
                importlib.import_module(_MODULES.get(package, package.replace("-", "_")))
        except Exception as err:  # noqa: BLE001 - whatever a broken package raises is the finding
            faults.append(f"{package}: {type(err).__name__}: {err}")
    if faults:
        raise MeshLabError("; ".join(faults))
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def before(path: str | None) -> str:
    """Return a search path of Jupyter's with the package's own folder in front, where its kernel and settings are."""
    return os.pathsep.join(filter(None, [str(Path(__file__).with_name("notebook") / "jupyter"), path]))


def _kernel() -> str:
    """Start the kernel of `mesh-lab lab`, and do in it what a first cell does; return whose Python it is."""
    path = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = before(path)
    try:
        from jupyter_client.manager import start_new_kernel

        manager, client = start_new_kernel(KERNEL_S, "python3", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asks = {"python": "__import__('sys').executable"}
            found = client.execute(FIRST_CELL, user_expressions=asks, reply=True, timeout=KERNEL_S)["content"]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    except Exception as err:
        raise MeshLabError(f"it does not start: {type(err).__name__}: {err}") from err
    finally:
        os.environ.pop("JUPYTER_PATH") if path is None else os.environ.update(JUPYTER_PATH=path)
    if found["status"] != "ok":
        raise MeshLabError(f"{FIRST_CELL} ends with {found['ename']}: {found['evalue']}")
    return str(found["user_expressions"]["python"]["data"]["text/plain"])


def _other_kernel() -> str:
    """Return which Python the kernel `python3` has in a JupyterLab that was not started by `mesh-lab lab`."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager

        spec = KernelSpecManager().get_kernel_spec("python3")
        python = shutil.which(sys.executable if spec.argv[0] in ("python", "python3") else spec.argv[0]) or spec.argv[0]
    except Exception as err:
        raise MeshLabError(f"it cannot be read: {type(err).__name__}: {err}") from err
    if os.path.abspath(python) != os.path.abspath(sys.executable):
        raise MeshLabError(f"{python}, named by {spec.resource_dir}, is not this Python")
    return python


def _server() -> str:
    found = find_server()
    return f"{version_text(found.version)} at {found.path}, from {found.source}"


def _ports() -> str:
    socket.create_server(("127.0.0.1", 0)).close()
    block = PortBlock.reserve()
    first = block.take()
    block.release()
    return f"can listen on 127.0.0.1; a block is free at {first}"


def _memory() -> str:
    try:
        free = free_memory_bytes()
    except ImportError as err:
        raise MeshLabError(f"cannot be measured, see packages: {err}") from err
    return _enough(free, MEMORY_NEEDED_BYTES, "available")


def free_memory_bytes() -> float:
    """Return how much memory programs may still take, a container's limit counted; needs psutil."""
    import psutil

    return min(psutil.virtual_memory().available, _free_in_container())


def _free_in_container() -> float:
    """Return the bytes left below a container's limit, infinity where there is none."""
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Files that were read once count as used, and are given up first.
        return limit - used + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # no cgroup v2, or "max": no limit
        return float("inf")


def _disk() -> str:
    place = tempfile.gettempdir()
    return _enough(shutil.disk_usage(place).free, DISK_NEEDED_BYTES, f"free in {place}")


def _enough(free: float, needed: int, what: str) -> str:
    seen = f"{free / 1e9:.1f} GB {what}, {needed / 1e9:.0f} GB needed"
    if free < needed:
        raise MeshLabError(seen)
    return seen


def _docker() -> str:
    engine = Engine.find()
    version = engine.docker("version", "--format", "{{.Server.Version}}").strip()
    return f"{version}, {' '.join(engine.compose_command)}"
