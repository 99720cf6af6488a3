"""How the tests share two cores: what waits runs side by side, what measures runs alone.

``make test`` calls pytest twice (``tests/everything.py``): with ``-m "not alone"`` in several processes, each of which
takes a whole file or a whole notebook at a time, and with ``-m alone`` in one. This file says which notebooks measure,
and puts the longest first, so that no process works on while the others have long been done.

Notebooks run in nbval: outputs are compared to the letter, except pictures and cells tagged ``nbval-ignore-output``.
Nothing is sanitised, but the kind of servers in a caption where notebooks run on others: what differs between runs or
machines has no place in a cell without that tag, and the hygiene checks say so.

Some tests need what not every machine has, and skip with the reason. Where it can be had, as on a machine of CI, the
variable ``MESH_LAB_REQUIRE`` names it, and then such a skip is a failure: ``MESH_LAB_REQUIRE=power-cut,browser``.
"""

import os
import tempfile
from collections.abc import Iterator

import pytest

# The arguments of the mark `needs`, and what they stand for.
NEEDS = {
    "browser": "a Chromium that JupyterLab is shown in",
    "debian-mirror": "a mirror that a Debian package comes from",
    "go": "Go, and the sources of NATS's client for it",
    "full-disk": "root, and a system that lets it mount a small disk",
    "power-cut": "root on Linux, with loop devices to cut off",
}

# These notebooks compare rates or latencies that another process on the same cores would change.
MEASURING_NOTEBOOKS = {
    "04_measure_without_lying",
    "06_shard_by_subject",
    "07_push_back",
    "08_batch_and_compress",
    "09_lock_the_doors",
    "10_isolate_the_tenants",
    "13_survive_the_worst",
}
# Seconds of two quiet cores, roughly: only the order counts.
LONG = {
    "test_order_services": 150,
    "test_chaos": 200,
    "test_checks_13": 110,
    "test_start_mesh": 95,
    "test_jupyterlab": 80,
    "11_watch_the_mesh": 70,
    "12_process_each_order_once": 70,
    "14_run_the_order_mesh": 70,
    "test_services": 70,
    "test_go_twin": 70,
    "test_checks_15": 65,
    "test_regions": 60,
    "test_checks_12": 60,
    "test_checks_14": 50,
}
NOTEBOOK_S, OTHER_S = 40, 10


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers; give the notebooks' kernels an empty home, as they had when their outputs were made."""
    config.addinivalue_line("markers", "alone: measures, so nothing else may run on this machine meanwhile")
    config.addinivalue_line("markers", "needs(what): skips where the machine lacks it, and fails if it is required")
    if unknown := _required() - set(NEEDS):
        raise pytest.UsageError(f"MESH_LAB_REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}")
    if config.getoption("nbval", default=False):
        home = tempfile.TemporaryDirectory(prefix="mesh-lab-home-")
        config.add_cleanup(home.cleanup)
        os.environ["MESH_LAB_HOME"] = home.name


@pytest.hookimpl(tryfirst=True)  # before `-m alone` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the notebooks that measure, and sort: the longest first."""
    for item in items:
        if item.path.stem in MEASURING_NOTEBOOKS:
            item.add_marker("alone")
    items.sort(key=_seconds, reverse=True)  # stable: files, and the tests in them, stay in their order


def _seconds(item: pytest.Item) -> int:
    return LONG.get(item.path.stem, NOTEBOOK_S if item.path.suffix == ".ipynb" else OTHER_S)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Make a skip a failure where what the test needs is required."""
    report = yield
    required = {mark.args[0] for mark in item.iter_markers("needs")} & _required()
    if report.skipped and required:
        *_, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; MESH_LAB_REQUIRE asks for {', '.join(sorted(required))}"
    return report


def _required() -> set[str]:
    return {what.strip() for what in os.environ.get("MESH_LAB_REQUIRE", "").split(",") if what.strip()}
