"""How the tests share two cores: what waits runs side by side, what measures runs alone.

``make test`` calls pytest three times (``tests/everything.py``): in several processes, each of which takes a whole file
or a whole notebook at a time, for what does not measure; with ``-m in_pairs`` in two, and with ``-m alone`` in one.
This file says which notebooks measure, and puts the longest first, so that no process works on while the others have
long been done.

Notebooks run in nbval: outputs are compared to the letter, except pictures and cells tagged ``nbval-ignore-output``.
Nothing is sanitised, but the kind of servers in a caption where notebooks run on others: what differs between runs or
machines has no place in a cell without that tag, and the hygiene checks say so.

Some tests need what not every machine has, and skip with the reason. Where it can be had, as on a machine of CI, the
variable ``MESH_LAB_REQUIRE`` names it, and then such a skip is a failure: ``MESH_LAB_REQUIRE=power-cut,browser``.
"""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# The arguments of the mark `needs`, and what they stand for.
NEEDS = {
    "browser": "a Chromium that JupyterLab is shown in",
    "debian-mirror": "a mirror that a Debian package comes from",
    "go": "Go, and the sources of NATS's client for it",
    "full-disk": "root, and a system that lets it mount a small disk",
    "older-server": "an older nats-server, named by MESH_LAB_OLDER_NATS_SERVER",
    "power-cut": "root on Linux, with loop devices to cut off",
}

# Notebooks that compare rates or latencies, which several processes on the same cores would change, by their mark.
MEASURING = {
    # They mostly wait, since their load is paced or their work is a sleep: two of them leave each other the cores.
    "in_pairs": {
        "07_shard_by_subject",
        "08_push_back",
        "11_isolate_the_tenants",
        "14_survive_the_worst",
    },
    # They keep the cores busy, or compare how long single messages took.
    "alone": {"05_measure_without_lying", "09_batch_and_compress", "10_lock_the_doors"},
}
# Seconds beside five others on two cores, roughly: only the order counts.
LONG = {
    "test_chaos": 190,
    "test_order_services": 150,
    "test_jupyterlab": 120,
    "test_seats": 115,
    "test_servers_of_others": 110,
    "test_book": 85,
    "test_start_mesh": 75,
    "02_share_work_in_queue_groups": 70,
    "15_run_the_order_mesh": 65,
    "03_keep_orders_in_jetstream": 62,
    "test_together": 60,
    "06_grow_the_mesh": 60,
    "test_checks_14": 60,
    "16_keep_it_running": 60,
    "test_world": 55,
    "13_process_each_order_once": 50,
    "12_watch_the_mesh": 50,
    "test_checks_17": 45,
    "test_habits": 42,
    "test_room": 40,
    "test_services": 40,
    "test_alarms": 38,
    "test_go_twin": 38,
    "test_checks_02": 36,
    "test_service_ends": 34,
    "test_bench": 34,
    "test_checks_04": 34,
    "test_checks_15": 32,
    "test_saga": 30,
    "test_partition_group": 28,
    "test_checks_00": 28,
    "test_checks_03": 26,
    "test_checks_09": 26,
    "test_upgrade": 24,
}
NOTEBOOK_S, OTHER_S = 35, 10


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers; give the notebooks' kernels an empty home, as they had when their outputs were made."""
    config.addinivalue_line("markers", "alone: measures, so nothing else may run on this machine meanwhile")
    config.addinivalue_line(
        "markers", "in_pairs: measures while it mostly waits, so one other of them may run meanwhile"
    )
    config.addinivalue_line("markers", "needs(what): skips where the machine lacks it, and fails if it is required")
    if unknown := _required() - set(NEEDS):
        raise pytest.UsageError(f"MESH_LAB_REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}")
    if config.getoption("nbval", default=False):
        home = tempfile.TemporaryDirectory(prefix="mesh-lab-home-")
        config.add_cleanup(home.cleanup)
        os.environ["MESH_LAB_HOME"] = home.name


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files out that have nothing of the one mark that is asked for: to read all of them takes seconds."""
    mark = config.option.markexpr
    if mark not in MEASURING or collection_path.is_dir():
        return None
    has_some = collection_path.stem in MEASURING[mark] or f"pytest.mark.{mark}" in collection_path.read_text("utf-8")
    return None if has_some else True  # None: as pytest would have it


@pytest.hookimpl(tryfirst=True)  # before `-m alone` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the notebooks that measure, and sort: the longest first."""
    for item in items:
        for mark, notebooks in MEASURING.items():
            if item.path.stem in notebooks:
                item.add_marker(mark)
    items.sort(key=_seconds, reverse=True)  # stable: files, and the tests in them, stay in their order


def _seconds(item: pytest.Item) -> int:
    return LONG.get(item.path.stem, NOTEBOOK_S if item.path.suffix == ".ipynb" else OTHER_S)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Make a skip a failure where what the test needs is required; collect garbage before a failure is shown."""
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        # To show it, pytest parses its source. A task that is collected meanwhile, and complains of its error, has a
        # line parsed as well, and Python 3.11 breaks both off: "AST constructor recursion depth mismatch".
        gc.collect()
    report = yield
    required = {mark.args[0] for mark in item.iter_markers("needs")} & _required()
    if report.skipped and required:
        *_, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; MESH_LAB_REQUIRE asks for {', '.join(sorted(required))}"
    return report


def _required() -> set[str]:
    return {what.strip() for what in os.environ.get("MESH_LAB_REQUIRE", "").split(",") if what.strip()}
