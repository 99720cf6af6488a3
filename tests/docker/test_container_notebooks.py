"""Notebooks on containers: no cell fails, and the containers are as they were found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from containers import ROOT

from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.servers.compose import Project
from mesh_lab.servers.start import start_mesh


# The others that run on containers take minutes; those that need more run on local servers, as
# tests/mesh/test_servers_of_others.py tries with each set-up cell.
@pytest.mark.parametrize("notebook", ["03_keep_orders_in_jetstream"])
async def test_a_notebook_holds_on_containers_and_leaves_no_stream(project: Project, notebook: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", str(Path("notebooks") / f"{notebook}.ipynb")]
    environment = {**os.environ, "MESH_LAB_BACKEND": "docker"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout
    async with await start_mesh(backend="docker") as mesh, await mesh.connect() as client:
        assert await stream_names(client) == []
