"""What every notebook of the course keeps to, as checks that name each fault.

``faults(notebook, path)`` runs them all. Prose and links are looked at in :mod:`prose`; here are the anatomy
of a notebook, its code and its outputs.
"""

import ast
import builtins
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import nbformat
from nbformat import NotebookNode
from page import Page, describe, names_of, output_texts, parts
from prose import PROSE_CHECKS

FILE_NAME = re.compile(r"^\d\d_[a-z0-9]+(_[a-z0-9]+)+\.ipynb$")
TABLE_ROWS = ("You build", "You measure", "You need", "Time")
TAGS = {"exercise", "check", "solution", "raises-exception", "nbval-ignore-output"}
CODE_LINES, SETUP_LINES = 25, 8
CELLS = range(20, 51)
MEDIAN_LINES, WORDS_A_LINE, PICTURES = 8, 7, 2
FILE_BYTES = 300 * 1024
EXERCISES = range(2, 5)
# The first four notebooks teach the words that all others use, so they ask for more practice.
FOUNDATIONS, FOUNDATION_EXERCISES = 4, range(3, 5)

MEASURED = re.compile(r"\d\s?(?:ns|µs|us|ms|s|\w*/s|(?:\w+ )?(?:a|per) second)\b|\b(?:rate_per_s|elapsed_s|p\d+_m?s)\b")
MACHINE = re.compile(
    r"(?<![\w.])/(?:root|home|tmp|work|Users|private|var/folders)/"  # a directory of one machine
    r"|nats://[^\s/]*:\d+|\b\d{1,3}(?:\.\d{1,3}){3}:\d+"  # an address with the port of one run
    r"|\b0x[0-9a-f]{8,}\b"  # the address of an object
)
SECRET = re.compile(
    r"nats://[^\s/:@]+:[^\s/@]+@"  # a password in a URL
    r"|\bS[UAOCNX][A-Z2-7]{56}\b"  # an NKEY seed
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|(?i:\bpass(?:word)?)[\"']?\s*[:=]\s*[\"']?(?=\w*\d)\w{8,}"  # what looks random after `password:`
)
# What IPython and the package's extension put into a notebook.
GIVEN = {*dir(builtins), "display", "get_ipython", "services"}
STAR_IMPORT = re.compile(r"^\s*from\s+\S+\s+import\s+\*", re.MULTILINE)
# Waiting for a while is no condition; sleep(0) only lets others run.
SLEEP = re.compile(r"\bsleep\((?!0\))")


def faults(notebook: NotebookNode, path: Path) -> list[str]:
    """Return every fault of a notebook in words; none is what one wants.

    Args:
        notebook: As nbformat reads it.
        path: Where it lies, or would lie: its name counts, and links start from its directory.
    """
    page = Page(notebook, path)
    return [fault for check in (*CHECKS, *PROSE_CHECKS) for fault in check(page)]


def sections_that_need_others(notebook: NotebookNode, path: Path) -> list[str]:
    """Return in words what sections use that neither they nor the set-up define; one may start at any section."""
    page = Page(notebook, path)
    setup, sections = parts(page)
    known, found = names_of(page, setup).defined | GIVEN, []
    for title, cells in sections:
        used = names_of(page, cells)
        if missing := used.loaded - used.defined - known:
            found.append(
                f"section {title!r} needs {', '.join(sorted(missing))}; neither it nor the set-up defines that"
            )
    return found


def _name_and_title(page: Page) -> Iterator[str]:
    if not FILE_NAME.match(page.path.name):
        yield f"file name {page.path.name!r}; expected two digits, a verb, an object: 03_keep_orders.ipynb"
        return
    words = page.path.stem[3:].replace("_", " ")
    titles = [heading for heading in page.headings if heading.level == 1]
    if [title.text.lower() for title in titles] != [words] or titles[0].position != 0:
        yield f"H1 {[title.text for title in titles]}; expected one, in the first cell: {words.capitalize()!r}"
    rows = [row for row in TABLE_ROWS if not re.search(rf"(?m)^\|\s*\W*{row}\b", page.cells[0].source)]
    if rows:
        yield f"the title cell's table lacks {', '.join(rows)}"


def _setup(page: Page) -> Iterator[str]:
    lines = page.code[0].source.splitlines() if page.code else [""]
    if lines[0] != "%load_ext mesh_lab":
        yield f"the setup cell begins with {lines[0]!r}; expected '%load_ext mesh_lab'"
    if not any(line.startswith("mesh = await start_mesh(") for line in lines):
        yield "the setup cell has no line 'mesh = await start_mesh(…)'"
    if lines[-1] != "mesh":
        yield f"the setup cell ends with {lines[-1]!r}; expected 'mesh', which shows it"
    if len(lines) > SETUP_LINES:
        yield f"the setup cell has {len(lines)} lines; expected {SETUP_LINES} at most"


def _exercises(page: Page) -> Iterator[str]:
    headings = [heading for heading in page.headings if heading.text.startswith("Exercise")]
    expected = FOUNDATION_EXERCISES if page.number < FOUNDATIONS else EXERCISES
    if len(headings) not in expected:
        yield f"{len(headings)} exercises; expected {expected.start} to {expected.stop - 1}"
    for count, heading in enumerate(headings, 1):
        number = f"{page.number}.{count}"
        if heading.level != 3 or not heading.text.startswith(f"Exercise {number}: "):
            yield f"heading {heading.text!r}; expected '### Exercise {number}: …'"
        cells = [cell for cell in page.section(heading) if cell.cell_type == "code"]
        tags = [page.tags(cell) & {"exercise", "check", "solution"} for cell in cells]
        order = [next(iter(tag), "no tag") for tag in tags]
        if list(dict.fromkeys(order)) != ["exercise", "check", "solution"]:
            yield f"exercise {number} has cells tagged {order}; expected exercise, check, solution"
            continue
        checks = [cell for cell in cells if "check" in page.tags(cell)]
        solutions = [cell for cell in cells if "solution" in page.tags(cell)]
        if not any(f'await check("{number}"' in cell.source for cell in checks):
            yield f'the check of exercise {number} lacks await check("{number}", …)'
        if not any("solution=True" in cell.source for cell in solutions):
            yield f"the solution of exercise {number} is not checked with solution=True"
        if page.executed and any("not attempted" not in output_texts(cell) for cell in checks):
            yield f"the check of exercise {number} does not answer 'not attempted'"
        if page.executed and not any("correct: " in text for s in solutions for text in output_texts(s)):
            yield f"the solution of exercise {number} is not 'correct: …'"


def _order_of_parts(page: Page) -> Iterator[str]:
    ends = [h.position for h in page.headings if h.text.startswith("Exercise")][-1:]
    for title in ("What you measured", "In practice"):
        if found := [h.position for h in page.headings if h.level == 2 and h.text == title]:
            ends.append(found[0])
        else:
            yield f"no heading '## {title}'"
    last = page.code[-1] if page.code else None
    if last is None or "await mesh.close()" not in last.source or "\nassert " not in last.source:
        yield "the last code cell does not await mesh.close() and assert that nothing is left behind"
    else:
        ends.append(page.cells.index(last))
    if any(before >= after for before, after in pairwise(ends)):
        yield "parts out of order; expected exercises, What you measured, In practice, teardown"


def _sizes(page: Page) -> Iterator[str]:
    if len(page.cells) not in CELLS:
        yield f"{len(page.cells)} cells; expected {CELLS.start} to {CELLS.stop - 1}"
    if (size := len(nbformat.writes(page.notebook).encode())) > FILE_BYTES:
        yield f"{size / 1024:.0f} KiB; expected {FILE_BYTES // 1024} at most"
    for cell in page.code:
        if (lines := len(cell.source.splitlines())) > CODE_LINES:
            yield f"{describe(page, cell)} has {lines} lines; expected {CODE_LINES} at most"
        if not cell.source.strip():
            yield f"{describe(page, cell)} is empty"


def _pace(page: Page) -> Iterator[str]:
    lines = [len(cell.source.splitlines()) for cell in page.code]
    if (middle := median(lines or [0])) > MEDIAN_LINES:
        yield f"half of the code cells have more than {middle:g} lines; expected {MEDIAN_LINES} at most"
    teaching = sum(
        len(cell.source.splitlines()) for cell in page.code if not page.tags(cell) & {"exercise", "check", "solution"}
    )
    if (words := sum(len(cell.source.split()) for cell in page.prose)) < WORDS_A_LINE * teaching:
        yield f"{words} words for {teaching} lines of code that teach; expected {WORDS_A_LINE} a line at least"
    pictures = sum(cell.source.count("![") for cell in page.prose) + sum(
        any(kind.startswith("image/") for kind in output.get("data", {}))
        for cell in page.code
        for output in cell.outputs
    )
    if page.executed and pictures < PICTURES:
        yield f"{pictures} pictures; expected {PICTURES} at least"


def _execution(page: Page) -> Iterator[str]:
    counts = [cell.execution_count for cell in page.code]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}; expected 1 to {len(counts)}: run `make notebooks`"
    for cell in page.code:
        kinds = {output.get("name", output.output_type) for output in cell.outputs}
        if "stderr" in kinds:
            yield f"{describe(page, cell)} writes to stderr"
        if ("error" in kinds) != ("raises-exception" in page.tags(cell)) and page.executed:
            yield f"{describe(page, cell)} raises, or does not, against its tag raises-exception"


def _metadata(page: Page) -> Iterator[str]:
    for cell in page.cells:
        if unknown := page.tags(cell) - TAGS:
            yield f"{describe(page, cell)} has tags {sorted(unknown)}; there are {sorted(TAGS)}"
        hidden = bool(cell.metadata.get("jupyter", {}).get("source_hidden"))
        if hidden != (cell.cell_type == "code" and "solution" in page.tags(cell)):
            yield f"{describe(page, cell)}: source_hidden belongs to solutions, and to nothing else"


def _code(page: Page) -> Iterator[str]:
    defined: dict[str, NotebookNode] = {}
    for cell in page.code:
        if STAR_IMPORT.search(cell.source):
            yield f"{describe(page, cell)} has a star import"
        for line in cell.source.splitlines():
            if SLEEP.search(line) and "# work" not in line:
                yield f"{describe(page, cell)} sleeps: {line.strip()!r}; await a condition, or mark it '# work'"
        if cell.source.startswith("%%"):
            continue  # the body of a service runs in other processes, where each has its own main
        try:
            names = list(_defined(cell.source))
        except SyntaxError as err:
            if "raises-exception" not in page.tags(cell):
                yield f"{describe(page, cell)} is not Python: {err}"
            continue
        for name in names:
            if name in defined:
                yield f"{describe(page, cell)} defines {name} again, after {describe(page, defined[name])}"
            defined[name] = cell


def _defined(source: str) -> Iterator[str]:
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _outputs(page: Page) -> Iterator[str]:
    for cell in page.code:
        ignored = "nbval-ignore-output" in page.tags(cell)
        texts = output_texts(cell)
        for text in texts:
            if found := SECRET.search(text):
                yield f"{describe(page, cell)} shows a secret: {found[0][:12]}…"
            if not ignored and (found := MACHINE.search(text)):
                yield f"{describe(page, cell)} shows {found[0]!r}, which differs from machine to machine"
            # A verdict quotes numbers of the task, which are the same in every run.
            verdict = page.tags(cell) & {"check", "solution"}
            if not (ignored or verdict) and (found := MEASURED.search(text)):
                yield f"{describe(page, cell)} shows a measurement ({found[0]!r}): tag it nbval-ignore-output"
        if found := SECRET.search(cell.source):
            yield f"{describe(page, cell)} holds a secret: {found[0][:12]}…"


CHECKS: tuple[Callable[[Page], Iterator[str]], ...] = (
    _name_and_title,
    _setup,
    _exercises,
    _order_of_parts,
    _sizes,
    _pace,
    _execution,
    _metadata,
    _code,
    _outputs,
)
