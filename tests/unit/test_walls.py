"""The walls that hold the house up: who may import whom, how big it may be, and what an import may cost.

Every import counts, those inside functions and those for type checkers alone as well: a circle that a function
hides is still a circle for whoever reads or moves one of its modules.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mesh_lab"
FLOORS = {
    "errors": 0, "processes": 0, "tls": 0,
    "observe": 1, "patterns": 1, "security": 1,
    "measure": 2, "orders": 2, "servers": 2,
    "bench": 3, "chaos": 3, "course": 3, "orders.job": 3, "doctor": 3, "testing": 3, "top": 3, "workshop": 3,
    "notebook": 4, "seats": 4,
    "cli": 5,
}  # fmt: skip
# `mesh_lab/__init__.py` names things of every floor and imports them when they are used.
LAZY = {"__init__"}
PORTABLE = {"orders", "patterns"}
# zstd is Python 3.14's own `compression`, and `backports` before; nkeys, an extra of nats-py, is for credentials files;
# opentelemetry, an extra of ours, is for services that are told where their traces go.
THIRD_PARTY_OF_PORTABLE = {"nats", "msgspec", "uvloop", "backports", "compression", "nkeys", "opentelemetry"}
NOTEBOOK_ONLY = {"IPython", "ipywidgets", "matplotlib", "nest_asyncio2"}
TERMINAL_ONLY = {"rich"}  # tables and progress bars
LOWEST_WITH_TABLES = 3

LINES, FILES = 23_309, 144
NOTEBOOKS_IMPORT_FROM = 14

MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(path: Path) -> str:
    return _part_of("mesh_lab." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def _part_of(module: str) -> str:
    """Return the part of the house that a dotted name belongs to."""
    parts = module.split(".")[1:]
    # The main job starts servers and services; the rest of `orders/` runs without the lab.
    return "orders.job" if parts[:2] == ["orders", "job"] else parts[0]


@cache
def _imports(path: Path) -> frozenset[str]:
    """Return the dotted names that a module imports at any place, names of things in modules included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def _graph() -> dict[str, set[str]]:
    """Return for each module of the package those of the package that it imports."""
    paths = {_name(path): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        named = {found if found in paths else found.rpartition(".")[0] for found in _imports(path)}
        graph[name] = {other for other in named if other in paths and other != name}
    return graph


def _circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield the groups of modules of which each reaches each."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        ahead = [name]
        while ahead:
            new = graph[ahead.pop()] - seen
            seen |= new
            ahead += new
        reached[name] = seen
    shown: set[str] = set()
    for name, others in reached.items():
        if name in others and name not in shown:
            circle = sorted(other for other in others if name in reached[other])
            shown |= set(circle)
            yield circle


def test_a_circle_of_imports_is_found_also_where_it_goes_over_three_modules() -> None:
    assert list(_circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}})) == [["a", "b", "c"]]
    assert list(_circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})) == []


def test_no_two_modules_import_each_other_not_even_inside_a_function() -> None:
    graph = _graph()
    assert [(one, two) for one, two in combinations(graph, 2) if two in graph[one] and one in graph[two]] == []


def test_no_imports_go_in_a_circle() -> None:
    assert list(_circles(_graph())) == []


def test_the_package_keeps_its_budget() -> None:
    """A budget for all of it, and none for a file: a file ends where its idea ends."""
    lines = sum(len(path.read_text().splitlines()) for path in MODULES)
    assert lines <= LINES, f"{lines:,} lines in mesh_lab/; what outgrew its place?"
    assert len(MODULES) <= FILES, f"{len(MODULES)} files in mesh_lab/"


def test_a_module_imports_only_from_its_own_part_and_from_floors_below() -> None:
    for path in MODULES:
        part = _part(path)
        if part in LAZY:
            continue
        for name in _imports(path):
            if name.startswith("mesh_lab."):
                other = _part_of(name)
                if other == "__version__":
                    continue
                allowed = other in (part, "errors") or FLOORS[other] < FLOORS[part]
                assert allowed, f"{path}: floor {FLOORS[part]} imports {name} of floor {FLOORS[other]}"


def test_only_the_notebook_floor_knows_notebooks() -> None:
    for path in MODULES:
        if _part(path) != "notebook" and _part(path) not in LAZY:
            assert not _top_level(path) & NOTEBOOK_ONLY, path


def test_nobody_below_the_third_floor_draws_tables_or_progress_bars() -> None:
    for path in MODULES:
        part = _part(path)
        if part not in LAZY and FLOORS[part] < LOWEST_WITH_TABLES:
            assert not _top_level(path) & TERMINAL_ONLY, path


def test_what_runs_in_production_needs_nats_and_msgspec_only() -> None:
    for path in MODULES:
        if _part(path) in PORTABLE:
            others = _top_level(path) - sys.stdlib_module_names
            assert others <= THIRD_PARTY_OF_PORTABLE | {"mesh_lab"}, path
            inside = {_part_of(name) for name in _imports(path) if name.startswith("mesh_lab.")}
            assert inside <= PORTABLE | {"errors", "processes", "tls"}, path


def _top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}


@cache
def _imported_by_notebooks() -> dict[str, set[str]]:
    """Return for each module of `mesh_lab` the names that notebooks import from it."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            # Below a magic there may be Python as well: a service's body imports, too.
            lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
            try:
                nodes = list(ast.walk(ast.parse("\n".join(lines)))) if cell.cell_type == "code" else []
            except SyntaxError:  # a cell that shows what is no Python
                continue
            for node in nodes:
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mesh_lab":
                    found.setdefault(node.module or "", set()).update(alias.name for alias in node.names)
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        if alias.name.split(".")[0] == "mesh_lab":
                            found.setdefault(alias.name, set())
    return found


def test_notebooks_come_in_by_the_front_doors() -> None:
    modules = _imported_by_notebooks()
    assert len(modules) > 5, "the notebooks' imports were not found"
    assert len(modules) <= NOTEBOOKS_IMPORT_FROM, sorted(modules)


def test_no_notebook_imports_a_private_name() -> None:
    names = {f"{module}.{name}" for module, found in _imported_by_notebooks().items() for name in found or {""}}
    private = {name for name in names if any(p.startswith("_") and p != "__version__" for p in name.split("."))}
    assert private == set()


def test_importing_the_package_loads_neither_ipython_nor_matplotlib() -> None:
    heavy = "{'IPython', 'matplotlib', 'pandas', 'ipywidgets', 'nats', 'asyncio'}"
    program = f"import sys, mesh_lab; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_the_guard_of_a_mesh_starts_without_asyncio() -> None:
    program = "import sys, mesh_lab.servers.guard; print('asyncio' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


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
