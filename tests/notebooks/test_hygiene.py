import nbformat
import pytest
from hygiene import faults
from refresh import NOTEBOOKS, is_normal

EVERY_NOTEBOOK = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


@EVERY_NOTEBOOK
def test_a_notebook_has_no_faults(path):
    found = faults(nbformat.read(path, as_version=4), path)
    assert not found, "\n".join(["", *found])


@EVERY_NOTEBOOK
def test_a_notebook_is_in_the_form_that_refresh_writes(path):
    assert is_normal(path), f"run `make notebooks`, or: python tests/notebooks/refresh.py {path.name}"
