"""JupyterLab in a real browser, on a copy of the notebooks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import browser_path, page  # noqa: F401 - fixtures
from hosted import lab


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that JupyterLab has its notebooks and its log."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def jupyter(browser_path: str, lab_folder: Path) -> Iterator[str]:  # noqa: F811 - the fixture
    """Address, token included, of a JupyterLab as `make lab` starts it, on copies that may be changed."""
    with lab([sys.executable, "-m", "mesh_lab.cli", "lab", "--no-browser"], lab_folder) as address:
        yield address
