"""Run the notebooks in clean kernels and write them back in the one form that the repository keeps.

``python tests/notebooks/refresh.py [notebook …]`` executes, normalises and writes; without names it takes all
of ``notebooks/``. ``--check`` runs nothing and says which files are not in that form. ``--record`` lets the
kernels see this machine's own ledger and progress instead of an empty home, to export a reference run. The list of
all exercises that notebook 00 shows is renewed with every run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
CELL_TIMEOUT_S = 120
KERNEL_STARTUP_S = 60
SLUG_CHARACTERS = 48
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
OVERVIEW = """
import json
from mesh_lab.notebook.exercises import progress
shown = progress()
print(json.dumps({"text/html": shown._repr_html_(), "text/plain": repr(shown)}))
"""
QUESTION = re.compile(r"\*\*[^*]*\?[^*]*\*\*")  # the guess that a section asks for
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookFailedError(Exception):
    """A notebook did not run as it must; the message names the cell and shows what it said."""


def execute(notebook: NotebookNode, *, home: str | None = None) -> None:
    """Run every cell in a new kernel, with ``notebooks/`` as its working directory.

    Args:
        notebook: Changed in place: outputs and execution counts become those of this run.
        home: Directory that the kernel uses as ``MESH_LAB_HOME``; ``None`` for the user's own.

    Raises:
        NotebookFailedError: A cell raised, hung, wrote to stderr, or did not raise although it is tagged
            ``raises-exception``.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        startup_timeout=KERNEL_STARTUP_S,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    environment = dict(os.environ)
    if home is not None:
        environment["MESH_LAB_HOME"] = home
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as err:
        raise NotebookFailedError(ANSI.sub("", str(err))) from err
    for number, cell in enumerate(_code_cells(notebook), 1):
        kinds = [output.get("name", output["output_type"]) for output in cell.outputs]
        if "stderr" in kinds:
            said = "".join(output["text"] for output in cell.outputs if output.get("name") == "stderr")
            raise NotebookFailedError(f"code cell {number} wrote to stderr:\n{cell.source}\n---\n{said}")
        if "raises-exception" in cell.metadata.get("tags", []) and "error" not in kinds:
            raise NotebookFailedError(f"code cell {number} should have raised and did not:\n{cell.source}")


def normalise(notebook: NotebookNode) -> None:
    """Bring a notebook into the repository's form, in place; doing it twice changes nothing more."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    taken: set[str] = set()
    for position, cell in enumerate(notebook.cells):
        cell.source = cell.source.rstrip()
        cell.metadata = _cell_metadata(cell)
        cell.metadata.slideshow = NotebookNode(slide_type=_slide_type(cell, first=position == 0))
        cell.id = _unique_slug(cell.source, taken)
        cell.pop("attachments", None)
    # A notebook that has not run keeps no counts at all; one that ran counts from 1.
    executed = any(cell.execution_count for cell in _code_cells(notebook))
    for number, cell in enumerate(_code_cells(notebook), 1):
        cell.execution_count = number if executed else None
        cell.outputs = list(_outputs(cell.outputs, cell.execution_count))


def written(notebook: NotebookNode) -> str:
    """Return the text of the file: keys sorted, one newline at the end."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def is_normal(path: Path) -> bool:
    """Say whether a file is, to the byte, what :func:`normalise` would make of it."""
    text = path.read_text(encoding="utf-8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbformat warns of what the comparison will find
            notebook = nbformat.reads(text, as_version=4)
            normalise(notebook)
            return written(notebook) == text
    except (nbformat.reader.NotJSONError, nbformat.ValidationError):
        return False


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def _cell_metadata(cell: NotebookNode) -> NotebookNode:
    kept = NotebookNode()
    if tags := list(dict.fromkeys(cell.metadata.get("tags", []))):
        kept.tags = tags
    if cell.metadata.get("jupyter", {}).get("source_hidden"):
        kept.jupyter = NotebookNode(source_hidden=True)
    return kept


def _slide_type(cell: NotebookNode, *, first: bool) -> str:
    """Say what `make slides` shows: the title, what a room is asked, and pictures; the rest is for reading."""
    if cell.cell_type == "markdown":
        return "slide" if first or QUESTION.search(cell.source) or "![" in cell.source else "skip"
    shows = any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))
    return "subslide" if shows else "skip"


def _unique_slug(source: str, taken: set[str]) -> str:
    """Name a cell by its first words, so that a diff shows which cell changed and not a random id."""
    words = re.findall(r"[a-z0-9]+", next(iter(source.strip().lower().splitlines()), ""))
    slug = words[0][:SLUG_CHARACTERS] if words else "cell"
    for word in words[1:7]:
        if len(slug) + 1 + len(word) > SLUG_CHARACTERS:
            break
        slug += f"-{word}"
    name, number = slug, 1
    while name in taken:
        number += 1
        name = f"{slug}-{number}"
    taken.add(name)
    return name


def _outputs(outputs: list[NotebookNode], count: int | None) -> Iterator[NotebookNode]:
    """Yield the outputs without what differs between runs; neighbouring pieces of a stream become one."""
    stream: NotebookNode | None = None
    for output in outputs:
        output.pop("transient", None)
        if output.output_type == "stream":
            if stream is not None and stream.name == output.name:
                stream.text += output.text
                continue
            stream = output
        else:
            stream = None
        if output.output_type in ("display_data", "execute_result"):
            output.metadata = NotebookNode()
            output.data = _data(output.data)
        if output.output_type == "execute_result":
            output.execution_count = count
        if output.output_type == "error":
            frames = [ANSI.sub("", frame) for frame in output.traceback]
            # Frames inside libraries quote their source, which differs between versions.
            output.traceback = [frame for frame in frames if not frame.startswith("File ")]
        yield output


def _data(data: NotebookNode) -> NotebookNode:
    """Keep what can be shown from the file alone."""
    if len(data) > 1:
        data.pop(WIDGET_VIEW, None)  # refers to a kernel that is gone
        if data.get("text/plain", "").startswith("<Figure size") and "image/png" in data:
            del data["text/plain"]
    return data


@contextmanager
def _home(record: bool) -> Iterator[str | None]:
    if record:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mesh-lab-home-") as directory:
        yield directory


def refresh(path: Path, *, record: bool = False) -> bool:
    """Run one notebook, normalise it, and write it if that changed it.

    Args:
        path: The ``.ipynb`` file; it stays as it was when a cell fails.
        record: Use this machine's own home directory, so that the results stay in its ledger.

    Raises:
        NotebookFailedError: It did not run as it must.
    """
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    with _home(record) as home:
        execute(notebook, home=home)
    normalise(notebook)
    text = written(notebook)
    if text != before:
        path.write_text(text, encoding="utf-8", newline="\n")
    return text != before


def renew_overview(path: Path) -> bool:
    """Put the exercises that there are into the overview that a notebook stores, without running it.

    Args:
        path: Notebook 00, whose cell ends with ``progress()``: another notebook may have got an exercise.
    """
    before = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    cells = [cell for cell in _code_cells(notebook) if cell.source.endswith("\nprogress()")]
    shown = [output for cell in cells for output in cell.outputs if output.output_type == "execute_result"]
    if not shown:
        return False
    with tempfile.TemporaryDirectory(prefix="mesh-lab-home-") as home:
        environment = {**os.environ, "MESH_LAB_HOME": home}
        overview = subprocess.check_output([sys.executable, "-c", OVERVIEW], env=environment, cwd=NOTEBOOKS)
    for output in shown:
        output.data = NotebookNode(json.loads(overview))
    text = written(notebook)
    if text != before:
        path.write_text(text, encoding="utf-8", newline="\n")
    return text != before


def main(arguments: list[str] | None = None) -> int:
    """Refresh or check the notebooks; 1 if one of them is not as it must be."""
    parser = argparse.ArgumentParser(prog="refresh.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--check", action="store_true", help="execute nothing; say which are not normalised")
    parser.add_argument("--record", action="store_true", help="keep results in this machine's own ledger")
    options = parser.parse_args(arguments)
    failed = False
    notebooks = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in notebooks:
        if options.check:
            word = "normalised" if (good := is_normal(path)) else "NOT normalised; run `make notebooks`"
            failed = failed or not good
        else:
            try:
                word = "refreshed" if refresh(path, record=options.record) else "unchanged"
            except NotebookFailedError as err:
                failed, word = True, f"FAILED\n{err}"
        print(f"{path.name}: {word}", flush=True)  # noqa: T201 - what the command is for
    beside = {first for path in notebooks for first in path.parent.glob("00_*.ipynb")}
    for first in () if options.check else beside:
        if renew_overview(first):
            print(f"{first.name}: shows the exercises that there are now")  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
