"""Keeps what no test needs out of hundreds of processes, and loads nbval, which runs notebooks as tests.

nats-py imports aiohttp where that is installed, as it is beside JupyterHub, and then takes twice as long to import.
No server here is spoken to by WebSocket unless one is named, and a reader's environment does not have it. nbval and
JupyterLab read notebooks by nbformat, which imports jsonschema, which compiles the grammar of internationalised
addresses where `rfc3987_syntax` is installed, for three seconds; no notebook's schema asks for such an address. So
pyproject.toml keeps pytest from loading nbval by itself, before this file has left both out.
"""

import os
import sys
from pathlib import Path

import pytest

if not os.environ.get("MESH_LAB_URL", "").startswith("ws"):
    left_out = str(Path(__file__).parent / "tests" / "left_out")
    paths = [left_out, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # a worker of xdist finds itself there already
    sys.path.insert(0, left_out)
pytest_plugins = ["nbval.plugin", "mesh_lab.testing"]
collect_ignore_glob = ["notebooks/workshop/*.ipynb"]  # it needs a room, which tests/workshop/test_together.py has

ELSEWHERE = bool(os.environ.get("MESH_LAB_BACKEND") or os.environ.get("MESH_LAB_URL"))


def pytest_configure(config: pytest.Config) -> None:
    """Leave out of captions where a mesh runs, if notebooks run on other servers than when their outputs were made."""
    if ELSEWHERE:
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "notebooks" / "elsewhere.cfg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a cell that starts a mesh there say why local servers run instead."""
    for item in items:
        if ELSEWHERE and "start_mesh(" in getattr(getattr(item, "cell", None), "source", ""):
            item.options["check"] = False
