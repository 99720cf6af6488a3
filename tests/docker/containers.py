"""What several container tests look at: a copy of `docker/`, what a project left behind, how a container is locked."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mesh_lab.servers.compose import Engine

ROOT = Path(__file__).parents[2]
SERVICES = ("publisher", "worker", "read-model")
SAGA_SERVICES = ("payment", "stock", "shipping")
SECURE_SERVERS = ("s1", "s2", "s3")
SECURE_SERVICES = ("secure", "secure-deploy", "secure-read-model", *(f"secure-{name}" for name in SAGA_SERVICES))


def copy_of_docker(house: Path, *, name: str) -> Path:
    """Copy what is committed in `docker/`, for a project with another name; the image is built from the original."""
    folder = house / "docker"
    shutil.copytree(ROOT / "docker", folder, ignore=shutil.ignore_patterns(".env", "keys"))
    for path in folder.glob("*compose.yaml"):
        text = path.read_text().replace("name: mesh-lab", f"name: {name}").replace("context: ..", f"context: {ROOT}")
        path.write_text(text)
    return folder


def command(*arguments: str, within: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run `mesh-lab` and return the completed process."""
    whole = [sys.executable, "-m", "mesh_lab.cli", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=within)


def leftovers(engine: Engine, name: str) -> list[str]:
    """Return the containers, networks and volumes of a project."""
    listings = (("ps", "-a"), ("network", "ls"), ("volume", "ls"))
    label = f"label=com.docker.compose.project={name}"
    return [f"{what[0]} {i}" for what in listings for i in engine.docker(*what, "-q", "--filter", label).split()]


def assert_locked_down(seen: dict[str, Any]) -> None:
    """Assert that a container is not root, writes to no root file system, and can gain no privileges."""
    assert seen["Config"]["User"] == "1000:1000"
    assert seen["HostConfig"]["ReadonlyRootfs"] is True
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert seen["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
    assert seen["HostConfig"]["Privileged"] is False
