"""Seats in containers: the image builds from its lock, a seat runs the course in it, and reaches no other seat.

It fetches the packages of the whole course, which takes minutes: MESH_LAB_TEST_SEAT_IMAGE=1 make test-docker.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import images
import pytest

from mesh_lab.seats.api import HubApi
from mesh_lab.seats.check import first_cell
from mesh_lab.servers.compose import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "workshop"))
from hub import Python, Seats  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
BASE = "mesh-lab-seat-base:test"
WITHIN_S = 180.0

pytestmark = pytest.mark.skipif(
    os.environ.get("MESH_LAB_TEST_SEAT_IMAGE") != "1", reason="minutes long; MESH_LAB_TEST_SEAT_IMAGE=1 asks for it"
)


@pytest.fixture(scope="module")
def hub(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubApi]:
    # Not above: JupyterHub is a tenth of all that the tests' modules import, and few runs ask for these two.
    containers = pytest.importorskip("mesh_lab.seats.containers", reason="dockerspawner is not for this system")
    scratch = tmp_path_factory.mktemp("seat-image")
    images.make_python(BASE, scratch, ROOT / "requirements-workshop.lock")
    build = ["docker", *containers.BUILD.split()[1:-1], "--build-arg", f"PYTHON_IMAGE={BASE}", "."]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    seats = Seats(
        scratch / "seats", Python(Path(sys.executable), {}, False), "--seats", "2", "--isolation", "containers"
    )
    try:
        yield seats.start()
    finally:
        seats.end()
        for name in ("trainer", "seat-01", "seat-02"):
            subprocess.run(["docker", "volume", "rm", "--force", f"mesh-lab-{name}"], capture_output=True)
        subprocess.run(["docker", "network", "rm", containers.NETWORK], capture_output=True)
        subprocess.run(["docker", "image", "rm", "--force", containers.IMAGE, BASE], capture_output=True)


def test_a_seat_in_a_container_runs_the_first_cell_and_keeps_its_files(hub: HubApi) -> None:
    shown = hub.run("seat-01", first_cell() + "\nimport os; print(os.getuid(), os.getcwd())", within=WITHIN_S)
    assert shown.strip().splitlines()[-1] == "1000 /home/seat"
    hub.run("seat-01", "open('kept.txt', 'w').write('an answer')", within=WITHIN_S)
    hub.call("DELETE", "/hub/api/users/seat-01/server")
    deadline = time.monotonic() + WITHIN_S
    while hub.server("seat-01"):
        assert time.monotonic() < deadline, hub.server("seat-01")
        time.sleep(0.2)  # pacing: a loop with a deadline
    hub.start("seat-01", within=WITHIN_S)
    assert "an answer" in hub.run("seat-01", "print(open('kept.txt').read())", within=WITHIN_S)


def test_a_seat_in_a_container_sees_nothing_of_another(hub: HubApi) -> None:
    where = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    address = hub.run("seat-01", where, within=WITHIN_S).strip()
    attack = f"""
import json, os, socket
def tried(attack):
    try:
        return repr(attack())
    except OSError as err:
        return type(err).__name__
print(json.dumps({{
    "the other's server": tried(lambda: socket.create_connection(({address!r}, 8888), timeout=3)),
    "the engine": tried(lambda: os.stat("/var/run/docker.sock")),
    "processes that are not of this seat": sorted(
        pid for pid in os.listdir("/proc") if pid.isdigit() and os.stat("/proc/" + pid).st_uid != 1000
    ),
    "be root": tried(lambda: os.setuid(0)),
}}))
"""
    found = json.loads(hub.run("seat-02", attack, within=WITHIN_S).strip().splitlines()[-1])
    assert found == {
        "the other's server": "TimeoutError",
        "the engine": "FileNotFoundError",
        "processes that are not of this seat": [],
        "be root": "PermissionError",
    }
