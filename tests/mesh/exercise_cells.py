"""Runs the cells of a notebook's exercises as the notebook would, on whatever mesh a test gives."""

import ast
import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nbformat
import pytest

from mesh_lab.notebook import answers
from mesh_lab.notebook.exercises import Verdict, check

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
Test = Callable[[str], Awaitable[None]]
HEADING = re.compile(r"^### Exercise (\d+\.\d+): ", re.MULTILINE)


async def refused(number: str, answer: object) -> str:
    """Return what a check says to a wrong answer; a check that does not refuse it fails the test."""
    verdict = repr(await check(number, answer))
    assert verdict.startswith("not yet: "), verdict
    return verdict


async def refused_side_by_side(number: str, *wrong: object) -> list[str]:
    """Return what a check says to several wrong answers, tried at the same time: for checks on servers of their own.

    An answer that blocks the event loop has to be tried alone: the alarm that interrupts it is one for all.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "interrupted_when_stuck", lambda files, after: nullcontext())
        return list(await asyncio.gather(*(refused(number, answer) for answer in wrong)))


async def accepted(number: str, answer: object) -> None:
    """Fail the test unless a check accepts a right answer."""
    verdict = repr(await check(number, answer))
    assert verdict.startswith("correct: "), verdict


class ExerciseCells:
    """The exercises of one notebook.

    Attributes:
        numbers: Their numbers, in the notebook's order.
    """

    def __init__(self, notebook: str, *, imports: tuple[str, ...] = (), **names: Any) -> None:
        """Read the notebook.

        Args:
            notebook: Its name without ending.
            imports: How modules begin whose names, imported anywhere in the notebook, its exercises use.
            names: What else they use of earlier cells.
        """
        self._cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
        self._names = {**(self._imported(imports) if imports else {}), **names}
        self._sources: dict[tuple[str, str], list[str]] = {}
        number = ""
        for cell in self._cells:
            number = next(iter(HEADING.findall(cell.source)), number) if cell.cell_type == "markdown" else number
            for tag in cell.metadata.get("tags", []):
                self._sources.setdefault((number, tag), []).append(cell.source)
        self.numbers = list(dict.fromkeys(number for number, _ in self._sources if number))

    def source(self, number: str, tag: str) -> str:
        """Return the code of an exercise's cells with a tag: ``exercise``, ``check`` or ``solution``."""
        return "\n\n".join(self._sources[number, tag])

    async def untouched(self, number: str) -> list[str]:
        """Run an exercise as it stands in the notebook, and return what its check says."""
        return await self.run(f"{self.source(number, 'exercise')}\n\n{self.source(number, 'check')}")

    async def solved(self, number: str, *, times: int = 1) -> None:
        """Run an exercise's solution; twice shows that a check leaves nothing behind that spoils the next one."""
        for _ in range(times):
            [verdict] = await self.run(self.source(number, "solution"))
            assert verdict.startswith("correct: "), verdict

    def tests(self, fixture: str = "mesh", *, twice: Collection[str] = ()) -> tuple[Test, Test]:
        """Return two tests of every exercise: as it stands it is not attempted, and its solution is correct.

        Args:
            fixture: Opens the mesh on which they are tried.
            twice: Exercises whose checks make streams on the lesson's mesh: their solutions are tried again.
        """

        def of_every_exercise(test: Test) -> Test:
            return pytest.mark.usefixtures(fixture)(pytest.mark.parametrize("number", self.numbers)(test))

        async def not_attempted(number: str) -> None:
            verdicts = await self.untouched(number)
            assert verdicts == ["not attempted"], verdicts

        async def correct(number: str) -> None:
            await self.solved(number, times=1 + (number in twice))

        return of_every_exercise(not_attempted), of_every_exercise(correct)

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
