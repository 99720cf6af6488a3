"""Exercises that check themselves: ``await check("2.2", leave)``, with ``hint`` and ``progress``.

How to write a check
--------------------
A check goes into ``mesh_lab/notebook/checks/``, into the module of its notebook. It gets the open mesh and
the reader's answer, and returns a verdict::

    @exercise(
        "3.1",
        title="keep a week of orders",
        answer="async function",
        expects="a stream WEEK that keeps messages for 7 days",
        hint="StreamConfig has a field max_age, in seconds.",
    )
    async def keeps_a_week(mesh: Mesh, answer: Any) -> Verdict:
        async with await mesh.connect(name="check 3.1") as nc:
            js = nc.jetstream()
            with suppress(NotFoundError):
                await js.delete_stream("WEEK")  # left by an earlier try
            await answer(js)
            kept = {info.config.name: info.config.max_age for info in await js.streams_info()}
            if "WEEK" not in kept:
                return not_yet("no stream WEEK on the server", "one that keeps messages for 7 days")
            await js.delete_stream("WEEK")
        if kept["WEEK"] != 7 * 86_400:
            return not_yet(f"messages kept for {kept['WEEK']:,.0f} s", "604,800 s, which is 7 days")
        return correct("the server drops an order a week after it was stored, read or not")

- Look at what really is: the server's own configuration, the messages that arrived, what the answer returned.
  Never look at the source. Several ways to solve it are right; a wrong one must be told from all of them.
- Begin by removing what an earlier try left, and leave the server as you found it: the reader runs a check many
  times, and the solution's after it. Use names of your own where the lesson's streams must stay.
- Await conditions with a deadline of their own: 10 s are for the whole check, and only for answers that hang.
- Let the answer's exceptions pass: they are shown with the line of the reader's cell. Catch only what is an
  expected wrong answer, such as the stream that is not there, and say it in words.
- What a verdict says is compared strictly from run to run: no times, ports, ids or counts that vary.
- Try it with the stub, the solution, and two wrong answers that a reader would really write.
"""

import asyncio
import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from mesh_lab.errors import UnknownExerciseError
from mesh_lab.notebook import checks
from mesh_lab.notebook.answers import (
    Kind,
    StuckError,
    files_of,
    interrupted_when_stuck,
    kind_in_words,
    last_line,
    untouched,
    wrong_kind,
)
from mesh_lab.notebook.progress import NotebookProgress, Progress, note_solved, solved_numbers
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import newest_mesh

__all__ = ["Verdict", "check", "correct", "exercise", "hint", "not_yet", "progress"]

ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """What a check says of an answer; shows itself as one line of text."""

    state: Literal["not attempted", "correct", "not yet"]
    words: str = ""

    def __repr__(self) -> str:
        """Write ``not attempted``, ``correct: …`` or ``not yet: …; …``."""
        return f"{self.state}: {self.words}" if self.words else self.state


def correct(info: str) -> Verdict:
    """Return the verdict for a right answer, with one sentence that adds something to know."""
    return Verdict("correct", info)


def not_yet(seen: str, expected: str) -> Verdict:
    """Return the verdict for a wrong answer: what was seen, and what was expected instead."""
    return Verdict("not yet", f"{seen}; expected {expected}")


Check = Callable[[Mesh, Any], Awaitable[Verdict]]


@dataclass(frozen=True, slots=True)
class _Exercise:
    number: str
    title: str
    hint: str
    answer: Kind
    expects: str
    within: float
    check: Check


_exercises: dict[str, _Exercise] = {}


def exercise(
    number: str,
    *,
    title: str,
    hint: str,
    answer: Kind = "anything",
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
        _exercises[number] = _Exercise(number, title, hint, answer, expects or kind_in_words(answer), within, function)
        return function

    return register


async def check(number: str, answer: object, *, solution: bool = False) -> Verdict:
    """Try an answer on the open mesh, and say what came of it.

    Args:
        number: The exercise's, ``"2.2"``.
        answer: Whatever the exercise asks for; ``...`` and stubs are not attempted and not run.
        solution: The answer is the course's own, so the exercise does not count as solved.

    Raises:
        UnknownExerciseError: No exercise has that number; the message lists those there are.
        NoMeshError: No mesh is open to try it on.
        StoreError: The answer is right, and that cannot be remembered.
    """
    task = _exercise(number)
    if untouched(answer):
        return Verdict("not attempted")
    if seen := wrong_kind(answer, task.answer):
        return not_yet(seen, kind_in_words(task.answer))
    verdict = await _judge(task, newest_mesh(), answer)
    if verdict.state == "correct" and not solution:
        note_solved(number)
    return verdict


async def _judge(task: _Exercise, mesh: Mesh, answer: object) -> Verdict:
    files = files_of(answer)
    hung = not_yet(f"no answer after {task.within:g} s", task.expects)
    try:
        async with asyncio.timeout(task.within) as deadline:
            # A little later than the deadline, which is the gentler of the two.
            with interrupted_when_stuck(files, after=1.1 * task.within):
                return await task.check(mesh, answer)
    except StuckError:
        return hung
    except Exception as err:  # noqa: BLE001 - whatever the reader's code raises becomes their verdict
        if isinstance(err, TimeoutError) and deadline.expired():
            return hung
        said, line = last_line(err, files)
        if line is not None:
            return not_yet(f"it raised {said} (line {line} of its cell)", task.expects)
        # A wrong number of arguments raises where the check makes the call, outside of the reader's cell.
        return not_yet(f"{'it raised' if isinstance(err, TypeError) else 'the check met'} {said}", task.expects)


def hint(number: str) -> None:
    """Print the hint of an exercise.

    Raises:
        UnknownExerciseError: No exercise has that number; the message lists those there are.
    """
    print(_exercise(number).hint)  # noqa: T201 - a reader asked for it in a cell


def progress() -> Progress:
    """Return which exercises the reader solved, notebook by notebook; running a solution does not count.

    Raises:
        StoreError: The record of solved exercises cannot be read.
    """
    _load_all()
    solved = solved_numbers()
    rows = []
    for notebook, (name, _) in checks.NOTEBOOKS.items():
        tasks = [_exercises[number] for number in _sorted_numbers() if _notebook_of(number) == notebook]
        if tasks:
            done = tuple((task.number, task.title) for task in tasks if task.number in solved)
            left = tuple((task.number, task.title) for task in tasks if task.number not in solved)
            rows.append(NotebookProgress(name.replace("_", " "), done, left))
    return Progress(tuple(rows))


def _exercise(number: str) -> _Exercise:
    _load(_notebook_of(number))
    try:
        return _exercises[number]
    except KeyError as err:
        _load_all()
        known = ", ".join(_sorted_numbers()) or "none"
        raise UnknownExerciseError(f"no exercise {number!r}; there are {known}") from err


def _notebook_of(number: str) -> int:
    head = str(number).partition(".")[0]
    return int(head) if head.isdecimal() else -1


def _sorted_numbers() -> list[str]:
    return sorted(_exercises, key=lambda number: [int(part) for part in number.split(".")])


def _load(notebook: int) -> None:
    if notebook in checks.NOTEBOOKS:
        name = f"{checks.__name__}.{checks.NOTEBOOKS[notebook][1]}"
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def _load_all() -> None:
    for notebook in checks.NOTEBOOKS:
        _load(notebook)
