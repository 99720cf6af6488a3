"""Loads nbval, which runs notebooks as tests, without the three seconds that its imports take otherwise.

nbval reads notebooks by nbformat, which imports jsonschema, which compiles the grammar of internationalised addresses
where `rfc3987_syntax` is installed, as it is beside JupyterLab. No notebook's schema asks for such an address. Every
process of the tests would pay for it, so pyproject.toml keeps pytest from loading nbval by itself.
"""

import os
import sys
from pathlib import Path

import pytest

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # an import of it fails, which is suppressed

pytest_plugins = ["nbval.plugin"]

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
