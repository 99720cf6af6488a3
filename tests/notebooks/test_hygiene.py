import nbformat
import pytest
from hygiene import faults, sections_that_need_others
from refresh import NOTEBOOKS, is_normal

EVERY_NOTEBOOK = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


@EVERY_NOTEBOOK
def test_a_notebook_has_no_faults(path):
    found = faults(nbformat.read(path, as_version=4), path)
    assert not found, "\n".join(["", *found])


@EVERY_NOTEBOOK
def test_a_notebook_is_in_the_form_that_refresh_writes(path):
    assert is_normal(path), f"run `make notebooks`, or: python tests/notebooks/refresh.py {path.name}"


@EVERY_NOTEBOOK
def test_a_reader_may_start_at_any_section_after_the_set_up(path):
    found = sections_that_need_others(nbformat.read(path, as_version=4), path)
    assert not found, "\n".join(["", *found])


def test_a_section_that_needs_another_one_is_named(tmp_path):
    sources = ["x = 1", "## Take", "y = x", "## Use", "def f(z):\n    return x + y + z"]
    cells = [nbformat.v4.new_markdown_cell(s) if s[0] == "#" else nbformat.v4.new_code_cell(s) for s in sources]
    assert sections_that_need_others(nbformat.v4.new_notebook(cells=cells), tmp_path / "99_fail.ipynb") == [
        "section 'Use' needs y; neither it nor the set-up defines that"
    ]
