"""Run the notebooks and compare every output with the one in the file.

::

    pytest --nbval --nbval-current-env --nbval-cell-timeout 120 tests/notebooks notebooks

The first directory brings the hygiene checks and this file along, the second the notebooks. Outputs are
compared to the letter, except pictures and cells tagged ``nbval-ignore-output``. Nothing is sanitised: what
differs between runs or machines has no place in a cell without that tag, and the hygiene checks say so.
"""

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give the notebooks' kernels an empty home, as they had when their outputs were made."""
    if config.getoption("nbval", default=False):
        home = tempfile.TemporaryDirectory(prefix="mesh-lab-home-")
        config.add_cleanup(home.cleanup)
        os.environ["MESH_LAB_HOME"] = home.name
