"""Which places of the package and the notebooks work around which fault of NATS's client or server."""

import ast
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
Test = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Workaround:
    """A fault that is not ours, and where we mind it."""

    fault: str
    places: tuple[str, ...]
    """Each ``path:what``: in a module the qualified name of what stands there, elsewhere words that stand there."""
    issue: str | None = None
    """Where the fault is reported in public; ``None`` if no report was found."""


WORKAROUNDS: list[Workaround] = []


def works_around(fault: str, *places: str, issue: str | None = None) -> Callable[[Test], Test]:
    """Return a decorator for a test that fails on the day the fault is repaired, and then names what can go."""
    WORKAROUNDS.append(Workaround(fault, places, issue))

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def runs(*args: object, **kwargs: object) -> None:
            try:
                await test(*args, **kwargs)
            except AssertionError as err:
                about = f" ({issue})" if issue else ""
                where = ", ".join(places)
                pytest.fail(f"no longer so: {fault}{about}. If it is repaired, the work-around can go: {where}\n{err}")

        return runs

    return decorate


def stands(place: str) -> bool:
    """Return whether a place is there.

    ``mesh_lab/x.py:Kind.method`` is a name that a module defines, ``mesh_lab/x:words`` are words in a module of a
    folder, for code that names no single function, and ``x.ipynb:words`` are words in a cell.
    """
    name, _, what = place.partition(":")
    path = ROOT / name
    if path.suffix == ".ipynb":
        return any(what in cell.source for cell in nbformat.read(path, as_version=4).cells)
    if path.is_dir():
        return any(what in module.read_text() for module in path.rglob("*.py"))
    return what in set(_names(ast.parse(path.read_text()))) if path.suffix == ".py" else what in path.read_text()


def _names(node: ast.AST, prefix: str = "") -> list[str]:
    found: list[str] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found += [prefix + child.name, *_names(child, f"{prefix}{child.name}.")]
        elif isinstance(child, ast.Assign):
            names = [one for target in child.targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            found += [prefix + one.id for one in names]
    return found
