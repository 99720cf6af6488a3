"""A notebook as the hygiene checks look at it: cells, headings and sections."""

import ast
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

import nbformat
from nbformat import NotebookNode

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*$", re.MULTILINE)
HTML_TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True, slots=True)
class Heading:
    """One heading, and the position of its cell."""

    level: int
    text: str
    position: int

    @property
    def anchor(self) -> str:
        """What stands behind ``#`` in a link to it: JupyterLab takes the text as it shows, with dashes for blanks."""
        return re.sub("[`*]", "", self.text).replace(" ", "-")


@dataclass(frozen=True)
class Page:
    """A notebook and the place where it lies."""

    notebook: NotebookNode
    path: Path
    cells: list[NotebookNode] = field(init=False)
    code: list[NotebookNode] = field(init=False)
    prose: list[NotebookNode] = field(init=False)
    headings: list[Heading] = field(init=False)

    def __post_init__(self) -> None:
        cells = self.notebook.cells
        derived = {
            "cells": cells,
            "code": [cell for cell in cells if cell.cell_type == "code"],
            "prose": [cell for cell in cells if cell.cell_type == "markdown"],
            "headings": [
                Heading(len(marks), text, position)
                for position, cell in enumerate(cells)
                if cell.cell_type == "markdown"
                for marks, text in HEADING.findall(FENCE.sub("", cell.source))
            ],
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def number(self) -> int:
        """The digits of the file name; 99 if there are none."""
        return int(self.path.name[:2]) if self.path.name[:2].isdigit() else 99

    @property
    def executed(self) -> bool:
        """Whether any cell was run, so that outputs can be asked for."""
        return any(cell.execution_count for cell in self.code)

    def tags(self, cell: NotebookNode) -> set[str]:
        """Return the tags of a cell."""
        return set(cell.metadata.get("tags", []))

    def section(self, heading: Heading) -> list[NotebookNode]:
        """Return the cells below a heading, up to the cell with the next heading."""
        ends = [other.position for other in self.headings if other.position > heading.position]
        return self.cells[heading.position + 1 : min(ends, default=len(self.cells))]


@cache
def anchors(path: Path) -> dict[str, Heading]:
    """Return the headings of the notebook in a file, by what a link says to lead there."""
    return {heading.anchor: heading for heading in Page(nbformat.read(path, as_version=4), path).headings}


def describe(page: Page, cell: NotebookNode) -> str:
    """Name a cell by its position and its first words."""
    return f"cell {page.cells.index(cell) + 1} ({cell.source.strip().partition(chr(10))[0][:40]!r})"


def output_texts(cell: NotebookNode) -> list[str]:
    """Return what a cell shows, as a reader sees it: streams, texts, HTML without its tags, error messages."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(f"{output.ename}: {output.evalue}")
        else:
            for kind, data in output.data.items():
                if kind == "text/html":
                    texts.append(HTML_TAG.sub(" ", data))
                elif kind.startswith("text/"):
                    texts.append(data)
    return texts


def without_code(markdown: str) -> str:
    """Return prose without fenced blocks and code spans, in which anything may stand."""
    return CODE_SPAN.sub("`…`", FENCE.sub("", markdown))


def parts(page: Page) -> tuple[list[NotebookNode], list[tuple[str, list[NotebookNode]]]]:
    """Return the code cells of the set-up, up to the next section's heading, and those of each section after it."""
    first = page.cells.index(page.code[0]) if page.code else 0
    starts = [heading for heading in page.headings if heading.level == 2 and heading.position > first]
    ends = [*(heading.position for heading in starts), len(page.cells)]
    code = [[cell for cell in page.cells[a:b] if cell.cell_type == "code"] for a, b in pairwise([0, *ends])]
    return code[0], [(h.text, cells) for h, cells in zip(starts, code[1:], strict=True) if cells]


@dataclass(frozen=True, slots=True)
class Names:
    """What some cells load and define, at whatever depth."""

    loaded: set[str]
    defined: set[str]


def names_of(page: Page, cells: list[NotebookNode]) -> Names:
    """Return the names that cells use; a cell that is no Python has none, nor has one that runs in another process."""
    names = Names(set(), set())
    for cell in cells:
        if cell.source.startswith("%%") or "raises-exception" in page.tags(cell):
            continue
        lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines()]
        with suppress(SyntaxError):
            for node in ast.walk(ast.parse("\n".join(lines))):
                _note(node, names)
    return names


def _note(node: ast.AST, names: Names) -> None:
    if isinstance(node, ast.Name):
        (names.loaded if isinstance(node.ctx, ast.Load) else names.defined).add(node.id)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names.defined.add(node.name)
    elif isinstance(node, ast.arg):
        names.defined.add(node.arg)
    elif isinstance(node, ast.alias):
        names.defined.add((node.asname or node.name).partition(".")[0])
    elif isinstance(node, ast.ExceptHandler) and node.name:
        names.defined.add(node.name)
