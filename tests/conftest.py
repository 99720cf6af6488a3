"""How the tests share two cores: what waits runs side by side, what measures runs alone.

``make test`` calls pytest twice (see :mod:`everything`): with ``-m "not alone"`` in several processes, and with
``-m alone`` in one. This file says which tests and notebooks are which, keeps together what shares a kernel or a
mesh, and puts the longest first, so that no process works on while the others have long been done.
"""

import os
import tempfile
from pathlib import Path

import pytest

# These notebooks compare rates or latencies that another process on the same cores would change.
MEASURING_NOTEBOOKS = {
    "04_measure_without_lying",
    "06_shard_by_subject",
    "07_push_back",
    "08_batch_and_compress",
}
# A test with one of these uses servers that its file started, or that all files of a process use one after the other.
SHARED = {"mesh", "client", "jupyter"}
# Seconds, roughly: only the order counts.
LONG = {
    "test_order_services": 150,
    "test_checks_13": 60,
    "13_survive_the_worst": 60,
    "regions": 55,
    "test_bench": 50,
    "test_services": 50,
    "test_partitioning": 45,
    "test_start_mesh": 40,
}
NOTEBOOK_S, OTHER_S = 40, 10


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker; give the notebooks' kernels an empty home, as they had when their outputs were made."""
    config.addinivalue_line("markers", "alone: measures, so nothing else may run on this machine meanwhile")
    if config.getoption("nbval", default=False):
        home = tempfile.TemporaryDirectory(prefix="mesh-lab-home-")
        config.add_cleanup(home.cleanup)
        os.environ["MESH_LAB_HOME"] = home.name


@pytest.hookimpl(tryfirst=True)  # before `-m alone` chooses, and before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark notebooks that measure, group what belongs together, and sort: the longest first."""
    for item in items:
        if item.path.suffix == ".ipynb" and item.path.stem in MEASURING_NOTEBOOKS:
            item.add_marker("alone")
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: -_seconds(item))  # stable: files, and the tests in them, stay in their order


def _group(item: pytest.Item) -> str | None:
    """Return what must run in one process, in its order; ``None`` for a test that starts all that it needs."""
    names = set(getattr(item, "fixturenames", ()))
    if "regions" in names:
        return "regions"  # seven servers: one process has them
    if item.path.suffix == ".ipynb" or item.path.parent.name != "mesh" or names & SHARED or _has_wide_fixture(item):
        return item.path.stem
    return None


def _has_wide_fixture(item: pytest.Item) -> bool:
    """Say whether a test uses a fixture of its own module that lives longer than one test."""
    info = getattr(item, "_fixtureinfo", None)
    found = [defs[-1] for defs in info.name2fixturedefs.values()] if info else []
    return any(one.scope == "module" for one in found)


def _seconds(item: pytest.Item) -> int:
    group = _group(item)
    if group in LONG:
        return LONG[group]
    if item.path.suffix == ".ipynb":
        return NOTEBOOK_S
    return LONG.get(Path(item.path).stem, OTHER_S)
