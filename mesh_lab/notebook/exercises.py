"""Exercises that check themselves: ``await check("2.2", leave)``, with ``hint`` and ``progress``.

A check stands in the file in ``notebooks/checks/`` that is named as its notebook. It tries the reader's answer, returns
a sentence that adds something to know, and raises :class:`NotYet` where the answer is wrong::

    @exercise("3.1", title="keep a week of orders", answer="async function", expects="a stream WEEK", hint="max_age")
    async def keeps_a_week(trial: Trial, answer: Any) -> str:
        js = await trial.absent(await trial.client(), "WEEK")
        await answer(js)
        kept = {info.config.name: info.config.max_age for info in await js.streams_info()}
        if kept.get("WEEK") != 7 * 86_400:
            raise NotYet(f"streams that keep messages for these seconds: {kept}", "WEEK with 604,800, which is 7 days")
        return "the server drops an order a week after it was stored, read or not"

CONTRIBUTING.md says what else a check has to mind.
"""

import asyncio
import importlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mesh_lab.errors import UnknownNameError
from mesh_lab.notebook import answers
from mesh_lab.notebook.leftovers import Watch, tasks_noted
from mesh_lab.notebook.progress import Progress, note_solved, solved_numbers
from mesh_lab.notebook.seat import report
from mesh_lab.notebook.trial import MachineClock, NotYet, Trial
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import newest_mesh

__all__ = ["MachineClock", "NotYet", "Trial", "Verdict", "check", "exercise", "hint", "progress"]

ANSWER_TIMEOUT_S = 10.0
CHECKOUT = Path(__file__).parents[2] / "notebooks" / "checks"
CHECKS = sys.modules.setdefault("mesh_lab_checks", ModuleType("mesh_lab_checks"))
"""The package of the files with checks, wherever they are."""


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """What a check says of an answer; shows itself as one line of text."""

    state: Literal["not attempted", "correct", "not yet"]
    words: str = ""

    def __repr__(self) -> str:
        """Write ``not attempted``, ``correct: …`` or ``not yet: …; expected …``."""
        return f"{self.state}: {self.words}" if self.words else self.state


Check = Callable[[Trial, Any], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class _Exercise:
    number: str
    title: str
    hint: str
    answer: answers.Kind
    expects: str
    within: float
    check: Check


_exercises: dict[str, _Exercise] = {}


def exercise(
    number: str,
    *,
    title: str,
    hint: str,
    answer: answers.Kind = "anything",
    expects: str = "",
    within: float = ANSWER_TIMEOUT_S,
) -> Callable[[Check], Check]:
    """Register a check under its exercise's number.

    Args:
        number: Notebook and exercise, ``"2.2"``.
        title: The words of the exercise's heading, after the number; :func:`progress` shows them.
        hint: What :func:`hint` prints: a pointer, not the solution.
        answer: What the reader hands over; something of another kind is refused without running it.
        expects: What a right answer does, in a few words, for verdicts on answers that raise or hang.
        within: Seconds for the whole check, at course size.

    Raises:
        ValueError: Another module has an exercise of that number.
    """

    def register(function: Check) -> Check:
        known = _exercises.get(number)
        if known is not None and known.check.__module__ != function.__module__:
            raise ValueError(f"exercise {number} stands in {known.check.__module__} already")
        words = expects or answers.kind_in_words(answer)
        _exercises[number] = _Exercise(number, title, hint, answer, words, within, function)
        return function

    return register


async def check(number: str, answer: object, *, solution: bool = False) -> Verdict:
    """Try an answer on the open mesh, and return the verdict.

    Args:
        number: The exercise's, ``"2.2"``.
        answer: Whatever the exercise asks for; ``...`` and stubs are not attempted and not run.
        solution: The answer is the course's own, so the exercise does not count as solved.

    Raises:
        UnknownNameError: No exercise has that number; the message lists those there are.
        MeshClosedError: No mesh is open to try it on.
        StoreError: The answer is right, but the progress cannot be stored.
    """
    task = _exercise(number)
    verdict = await _verdict(task, answer)
    if verdict.state == "correct" and not solution:
        note_solved(number)
    if not solution:
        report(number, verdict.state, verdict.words)
    return verdict


async def _verdict(task: _Exercise, answer: object) -> Verdict:
    if answers.untouched(answer):
        return Verdict("not attempted")
    try:
        if seen := answers.wrong_kind(answer, task.answer):
            raise NotYet(seen, answers.kind_in_words(task.answer))
        return Verdict("correct", await _tried(task, newest_mesh(), answer))
    except NotYet as err:
        return Verdict("not yet", str(err))


async def _tried(task: _Exercise, mesh: Mesh, answer: object) -> str:
    """Return the sentence that a right answer earns; raise NotYet for one that fails, hangs or leaves something."""
    files, deadline = answers.files_of(answer), asyncio.timeout(task.within)
    trial, watch = Trial(task.number, mesh), Watch(mesh)
    try:
        await watch.begin()
        with tasks_noted() as began:
            try:
                # A little later than the deadline, which is the gentler of the two.
                async with deadline:
                    with answers.interrupted_when_stuck(files, after=1.1 * task.within):
                        words = await task.check(trial, answer)
                await trial.end_own()
                await watch.look_inside(trial.clients, began, files)
            finally:
                await trial.close()
        await watch.look_around(began)
        return words
    except Exception as raised:  # noqa: BLE001 - whatever the reader's code raises becomes their verdict
        error = answers.first_of(raised)
        if isinstance(error, NotYet):
            raise error from None
        situation = f"{trial.case}, and " if trial.case else ""
        if isinstance(error, answers.StuckError):
            raise NotYet(f"{situation}it blocked the event loop and never gave it a turn", task.expects) from error
        if isinstance(error, TimeoutError) and deadline.expired():
            raise NotYet(f"{situation}no answer after {task.within:g} s", task.expects) from error
        said, line = answers.last_line(error, files)
        if error is not raised and answers.last_line(raised, files)[1] is not None:
            said = f"{type(raised).__name__} of {said}"  # whoever awaits the answer gets the group, not what is in it
        by = "it raised" if line is not None or answers.is_miscall(error) else "the check met"
        where = f" (line {line} of its cell)" if line is not None else ""
        raise NotYet(f"{situation}{by} {said}{where}", task.expects) from error


def hint(number: str) -> None:
    """Print the hint of an exercise.

    Raises:
        UnknownNameError: No exercise has that number; the message lists those there are.
    """
    print(_exercise(number).hint)  # noqa: T201 - a reader asked for it in a cell


def titles() -> dict[str, str]:
    """Return the titles of all exercises by number, in the course's order."""
    _load_all()
    return {number: _exercises[number].title for number in _sorted_numbers()}


def progress() -> Progress:
    """Return which exercises the reader solved, notebook by notebook; running a solution does not count.

    Raises:
        StoreError: The record of solved exercises cannot be read.
    """
    _load_all()
    solved, rows = solved_numbers(), {}
    for notebook, file in _files().items():
        tasks = {number: _exercises[number].title for number in _sorted_numbers() if _notebook_of(number) == notebook}
        if tasks:
            done = {number: title for number, title in tasks.items() if number in solved}
            left = {number: title for number, title in tasks.items() if number not in solved}
            rows[file.stem.replace("_", " ")] = done, left
    return Progress(rows)


def _exercise(number: str) -> _Exercise:
    _load(_notebook_of(number))
    if number not in _exercises:
        _load_all()
        raise UnknownNameError(f"no exercise {number!r}; there are {', '.join(_sorted_numbers()) or 'none'}")
    return _exercises[number]


def _notebook_of(number: str) -> str:
    return str(number).partition(".")[0].zfill(2)


def _sorted_numbers() -> list[str]:
    return sorted(_exercises, key=lambda number: [int(part) for part in number.split(".")])


def _files() -> dict[str, Path]:
    """Return the files of checks by their notebook's number: those beside the running notebook, or the checkout's."""
    files = [file for folder in (CHECKOUT, Path("checks")) for file in folder.glob("[0-9][0-9]_*.py")]
    return dict(sorted((file.name[:2], file) for file in files))


def _load(notebook: str) -> None:
    """Run the file with the checks of a notebook, once."""
    if file := _files().get(notebook):
        CHECKS.__path__ = [str(file.parent)]
        importlib.import_module(f"{CHECKS.__name__}.{file.stem}")


def _load_all() -> None:
    for notebook in _files():
        _load(notebook)
