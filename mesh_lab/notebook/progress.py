"""What the reader has solved: the fact and its time, in a small database of their own; never the answer."""

import html
from dataclasses import dataclass
from datetime import UTC, datetime

from mesh_lab.measure.local_store import open_store

TABLE = "solved (number TEXT PRIMARY KEY, solved_at TEXT NOT NULL)"


@dataclass(frozen=True, slots=True)
class NotebookProgress:
    """The exercises of one notebook."""

    notebook: str
    """Its name in words: ``02 share work in queue groups``."""
    solved: tuple[tuple[str, str], ...]
    """Number and title of each exercise that the reader solved."""
    open: tuple[tuple[str, str], ...]
    """The same for each that is still open."""

    @property
    def count(self) -> str:
        """How many are solved: ``1 of 3``."""
        return f"{len(self.solved)} of {len(self.solved) + len(self.open)}"


@dataclass(frozen=True, slots=True)
class Progress:
    """The exercises of the course, by notebook; shows itself as a table."""

    notebooks: tuple[NotebookProgress, ...]

    def __repr__(self) -> str:
        """Write one line for each notebook."""
        solved = sum(len(row.solved) for row in self.notebooks)
        total = solved + sum(len(row.open) for row in self.notebooks)
        lines = [f"{solved} of {total} exercises solved"]
        width = max((len(row.notebook) for row in self.notebooks), default=0)
        for row in self.notebooks:
            left = f"   open: {', '.join(number for number, _ in row.open)}" if row.open else ""
            lines.append(f"{row.notebook:<{width}}   {row.count}{left}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def cell(exercises: tuple[tuple[str, str], ...]) -> str:
            return f"<td>{'<br>'.join(html.escape(f'{number} {title}') for number, title in exercises) or 'none'}</td>"

        header = "<tr><th>notebook</th><th>exercises</th><th>solved</th><th>open</th></tr>"
        rows = (
            f"<tr><td>{html.escape(row.notebook)}</td><td>{row.count}</td>{cell(row.solved)}{cell(row.open)}</tr>"
            for row in self.notebooks
        )
        return f"<table>{header}{''.join(rows)}</table>"


def note_solved(number: str) -> None:
    """Remember that the reader solved an exercise; the first time counts.

    Raises:
        StoreError: The database cannot be written.
    """
    with open_store("progress", TABLE) as database:
        database.execute(
            "INSERT OR IGNORE INTO solved (number, solved_at) VALUES (?, ?)",
            (number, datetime.now(UTC).isoformat(timespec="seconds")),
        )


def solved_numbers() -> frozenset[str]:
    """Return the numbers of all exercises that the reader solved on this machine.

    Raises:
        StoreError: The database cannot be read.
    """
    with open_store("progress", TABLE) as database:
        return frozenset(number for (number,) in database.execute("SELECT number FROM solved"))
