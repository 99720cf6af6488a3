"""What the reader has solved: the fact and its time, in a small database of their own; never the answer.

A database that cannot be read or written is a :class:`~mesh_lab.errors.StoreError`.
"""

import html
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mesh_lab.measure.local_store import open_store

TABLE = "solved (number TEXT PRIMARY KEY, solved_at TEXT NOT NULL)"
Tasks = Mapping[str, str]
"""Titles of exercises by their numbers."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The exercises of the course, by notebook; shows itself as a table."""

    notebooks: Mapping[str, tuple[Tasks, Tasks]]
    """Those that the reader solved and those still open, by the notebook's name in words."""

    def __repr__(self) -> str:
        solved, left = ([number for row in self.notebooks.values() for number in row[at]] for at in (0, 1))
        lines = [f"{_count(solved, left)} exercises solved"]
        width = max(map(len, self.notebooks), default=0)
        for name, (done, todo) in self.notebooks.items():
            still_open = f"   open: {', '.join(todo)}" if todo else ""
            lines.append(f"{name:<{width}}   {_count(done, todo)}{still_open}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cell(tasks: Tasks) -> str:
            return f"<td>{'<br>'.join(html.escape(f'{one} {title}') for one, title in tasks.items()) or 'none'}</td>"

        header = "<tr><th>notebook</th><th>exercises</th><th>solved</th><th>open</th></tr>"
        rows = (
            f"<tr><td>{html.escape(name)}</td><td>{_count(done, todo)}</td>{cell(done)}{cell(todo)}</tr>"
            for name, (done, todo) in self.notebooks.items()
        )
        return f"<table>{header}{''.join(rows)}</table>"


def note_solved(number: str) -> None:
    """Remember that the reader solved an exercise; the first time counts."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with open_store("progress", TABLE) as database:
        database.execute("INSERT OR IGNORE INTO solved (number, solved_at) VALUES (?, ?)", (number, now))


def solved_numbers() -> frozenset[str]:
    """Return the numbers of all exercises that the reader solved on this machine."""
    with open_store("progress", TABLE) as database:
        return frozenset(number for (number,) in database.execute("SELECT number FROM solved"))


def _count(solved: Collection[str], left: Collection[str]) -> str:
    return f"{len(solved)} of {len(solved) + len(left)}"
