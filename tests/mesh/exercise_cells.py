"""Runs the cells of a notebook's exercises as the notebook would, on whatever mesh a test gives."""

import ast
import inspect
from pathlib import Path
from typing import Any

import nbformat

from mesh_lab.notebook.exercises import Verdict, check

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


class ExerciseCells:
    """The exercises of one notebook."""

    def __init__(self, notebook: str, *, imports: tuple[str, ...] = (), **names: Any) -> None:
        """Read the notebook.

        Args:
            notebook: Its name without ending.
            imports: How modules begin whose names, imported anywhere in the notebook, its exercises use.
            names: What else they use of earlier cells.
        """
        self._cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
        self._names = {**(self._imported(imports) if imports else {}), **names}

    def tagged(self, tag: str) -> list[str]:
        """Return the sources of the cells with a tag, in the order of the exercises."""
        return [cell.source for cell in self._cells if tag in cell.metadata.get("tags", [])]

    def _imported(self, packages: tuple[str, ...]) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for cell in self._cells:
            if cell.cell_type == "code" and not cell.source.startswith("%"):
                found = [node for node in ast.parse(cell.source).body if isinstance(node, ast.ImportFrom)]
                wanted = [node for node in found if node.module and node.module.startswith(packages)]
                exec(compile(ast.Module(wanted, []), "<imports>", "exec"), names)
        return names

    async def run(self, source: str) -> list[str]:
        """Run a cell and return the verdicts of its checks."""
        verdicts: list[str] = []

        async def noting_check(number: str, answer: object, *, solution: bool = False) -> Verdict:
            verdict = await check(number, answer, solution=solution)
            verdicts.append(repr(verdict))
            return verdict

        names = {**self._names, "check": noting_check}
        code = compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.iscoroutine(running := eval(code, names)):
            await running
        return verdicts
