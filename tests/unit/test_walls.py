"""The walls that hold the house up: who may import whom, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mesh_lab"
FLOORS = {
    "errors": 0, "processes": 0,
    "observe": 1, "patterns": 1, "security": 1,
    "measure": 2, "orders": 2, "servers": 2,
    "bench": 3, "chaos": 3, "orders.job": 3, "doctor": 3, "cli": 4,
    "notebook": 4,
}  # fmt: skip
# The notebook's own words, below: `mesh_lab/__init__.py` names things of every floor and imports them when used.
LAZY = {"__init__"}
PORTABLE = {"orders", "patterns"}
THIRD_PARTY_OF_PORTABLE = {
    "nats",
    "msgspec",
    "uvloop",
    "backports",
    "compression",
}  # zstd, which Python 3.14 has itself
NOTEBOOK_ONLY = {"IPython", "ipywidgets", "matplotlib", "nest_asyncio2"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return _part_of("mesh_lab." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def _part_of(module: str) -> str:
    """Return the part of the house that a dotted name belongs to."""
    parts = module.split(".")[1:]
    # The main job starts servers and services; the rest of `orders/` runs without the lab.
    return "orders.job" if parts[:2] == ["orders", "job"] else parts[0]


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_part_and_from_floors_below(path: Path) -> None:
    part = _part(path)
    if part in LAZY:
        return
    for name in _imports(path):
        if name.startswith("mesh_lab."):
            other = _part_of(name)
            if other == "__version__":
                continue
            allowed = other in (part, "errors") or FLOORS[other] < FLOORS[part]
            assert allowed, f"{part} (floor {FLOORS[part]}) imports {name} (floor {FLOORS[other]})"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_notebook_floor_knows_notebooks(path: Path) -> None:
    top = {name.split(".")[0] for name in _imports(path)}
    if _part(path) != "notebook" and _part(path) not in LAZY | {"doctor"}:
        assert not top & NOTEBOOK_ONLY


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_runs_in_production_needs_nats_and_msgspec_only(path: Path) -> None:
    if _part(path) in PORTABLE:
        others = {name.split(".")[0] for name in _imports(path)} - sys.stdlib_module_names
        assert others <= THIRD_PARTY_OF_PORTABLE | {"mesh_lab"}
        inside = {_part_of(name) for name in _imports(path) if name.startswith("mesh_lab.")}
        assert inside <= PORTABLE | {"errors", "processes"}


def test_importing_the_package_loads_neither_ipython_nor_matplotlib() -> None:
    heavy = "{'IPython', 'matplotlib', 'pandas', 'ipywidgets', 'nats', 'asyncio'}"
    program = f"import sys, mesh_lab; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_starting_a_mesh_needs_neither_ipython_nor_matplotlib() -> None:
    heavy = "{'IPython', 'matplotlib', 'pandas', 'ipywidgets'}"
    program = f"import sys; from mesh_lab import start_mesh; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_importing_the_package_costs_less_than_importing_the_client() -> None:
    # A relation inside one run: both are timed by the same interpreter, in processes of their own.
    def seconds(module: str) -> float:
        program = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        return min(float(subprocess.check_output([sys.executable, "-c", program], text=True)) for _ in range(3))

    assert seconds("mesh_lab") < seconds("nats")
