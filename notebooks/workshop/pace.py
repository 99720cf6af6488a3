"""How many minutes a notebook takes a participant, section by section: ``python notebooks/workshop/pace.py 03``.

Without a number it writes the minutes into the handbook.

A first measure, by the rates below, and no substitute for a room of people: it counts what there is to read, to guess
and to write. ``rehearse.py`` adds what the cells take, as simulated participants have measured it.
"""

import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import nbformat

NOTEBOOKS, HANDBOOK = Path(__file__).parents[1], Path(__file__).with_name("handbook.md")
MEASURED = Path(__file__).with_name("measured.json")
"""Seconds that the cells of each section took, by notebook and heading; ``rehearse.py --record`` writes it."""
WORDS_A_MINUTE, LINES_A_MINUTE, GUESS_MINUTES, EXERCISE_MINUTES = 150, 12, 1, 8
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)
AGENDA_ROW = re.compile(r"^\| [?\d]+ \| (\d\d) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
GUESS = re.compile(r"\*\*[^*]*\?[^*]*\*\*")


class Step(NamedTuple):
    """What a participant does below a heading: thinks for some minutes, then runs a cell if there is one."""

    heading: str
    minutes: float
    cell: nbformat.NotebookNode | None = None


def steps(path: Path) -> Iterator[Step]:
    """Yield what a notebook asks of a participant, in its order."""
    heading = ""
    for cell in nbformat.read(path, as_version=4).cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code":
            read = 0.0 if tags & {"exercise", "check", "solution"} else _lines(cell.source) / LINES_A_MINUTE
            yield Step(heading, EXERCISE_MINUTES if "exercise" in tags else read, cell)
            continue
        _, *parts = re.split(HEADING, f"\n{cell.source}")
        before = cell.source if not parts else cell.source.partition(f"# {parts[0]}")[0].rstrip("#\n ")
        yield Step(heading, _reading(before))
        for title, text in zip(parts[::2], parts[1::2], strict=True):
            heading = title.replace("`", "")
            yield Step(heading, _reading(text))


def sections(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the headings of a notebook and the whole minutes, at least one, of what stands below each."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8")).get(path.stem[:2], {})
    for heading, below in groupby(steps(path), key=lambda step: step.heading):
        if heading:
            yield heading, max(1, round(sum(step.minutes for step in below) + measured.get(heading, 0.0) / 60))


def minutes(path: Path) -> int:
    """Return the minutes of a whole notebook, rounded to five."""
    return 5 * round(sum(count for _, count in sections(path)) / 5)


def filled(handbook: str) -> str:
    """Return the handbook with the minutes of every notebook and of every row of the agendas.

    A row has minutes, the notebook's number, sections and exercises. *to A* are all sections down to A without
    exercises; further ones follow behind semicolons.

    Raises:
        ValueError: A row names a section or an exercise that its notebook does not have.
    """
    rows = [f"| {path.stem[:2]} {_name(path)} | {minutes(path)} |" for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]
    table = "\n".join(["<!-- minutes -->", "", "| notebook | minutes |", "|---|---|", *rows, "", "<!-- /minutes -->"])
    handbook = re.sub(r"<!-- minutes -->.*<!-- /minutes -->", table, handbook, flags=re.DOTALL)
    return AGENDA_ROW.sub(lambda row: f"| {_block(*row.groups())} | {' | '.join(row.groups())} |", handbook)


def headings(number: str, named: str, practised: str) -> list[str]:
    """Return the headings that an agenda's row takes from its notebook, in the notebook's order.

    Raises:
        ValueError: It names a section or an exercise that the notebook does not have.
    """
    path = notebook(number)
    titles, taken = [title for title, _ in sections(path)], set[str]()
    for part in named.split(";"):
        title = part.strip().removeprefix("to ").strip("*")
        if title not in titles:
            raise ValueError(f"{path.name} has no section {title!r}, which the handbook's agenda names")
        first, last = (0 if part.startswith("to ") else titles.index(title)), titles.index(title)
        taken.update(one for one in titles[first : last + 1] if not one.startswith("Exercise "))
    for exercise in practised.split(", "):
        found = [one for one in titles if one.startswith(f"Exercise {exercise}:")]
        if not found:
            raise ValueError(f"{path.name} has no exercise {exercise}, which the handbook's agenda names")
        taken.update(found)
    return [title for title in titles if title in taken]


def notebook(number: str) -> Path:
    """Return the notebook with a number.

    Raises:
        ValueError: There is none.
    """
    [*found] = NOTEBOOKS.glob(f"{number}_*.ipynb")
    if len(found) != 1:
        raise ValueError(f"no notebook {number!r}; expected two digits, such as 03")
    return found[0]


def _block(number: str, named: str, practised: str) -> int:
    taken = headings(number, named, practised)
    return 5 * round(sum(count for title, count in sections(notebook(number)) if title in taken) / 5)


def _name(path: Path) -> str:
    return next(sections(path))[0]


def _reading(text: str) -> float:
    return len(text.split()) / WORDS_A_MINUTE + GUESS_MINUTES * len(GUESS.findall(text))


def _lines(source: str) -> int:
    return len([line for line in source.splitlines() if line.strip()])


if __name__ == "__main__":
    for found in map(notebook, sys.argv[1:]):
        for title, count in sections(found):
            print(f"{count:4} min  {title}")  # noqa: T201
        print(f"{minutes(found):4} min  {_name(found)}, in all")  # noqa: T201
    if not sys.argv[1:]:
        HANDBOOK.write_text(filled(HANDBOOK.read_text(encoding="utf-8")), encoding="utf-8")
