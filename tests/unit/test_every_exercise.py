"""Every exercise of a notebook has its check under the heading's own title, and notebook 00 shows them all."""

import re
from pathlib import Path

import nbformat
import pytest

from mesh_lab.notebook.exercises import progress

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HEADING = re.compile(r"^### Exercise (\d+\.\d+): (.+?)\s*$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _nothing_solved(monkeypatch, tmp_path):
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))


def _cells(notebook):
    return nbformat.read(notebook, as_version=4).cells


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_heading_of_an_exercise_is_the_title_of_its_check(notebook):
    headings = [found for cell in _cells(notebook) for found in HEADING.findall(cell.source)]
    _, titles = progress().notebooks.get(notebook.stem.replace("_", " "), ({}, {}))
    assert list(titles.items()) == headings


def test_the_overview_in_notebook_00_shows_the_exercises_that_there_are():
    [cell] = [cell for cell in _cells(NOTEBOOKS[0]) if cell.source.rstrip().endswith("\nprogress()")]
    [shown] = [output.data for output in cell.outputs if output.output_type == "execute_result"]
    assert shown["text/plain"] == repr(progress()), "`make notebook N=00` renews it"
    assert shown["text/html"] == progress()._repr_html_(), "`make notebook N=00` renews it"
