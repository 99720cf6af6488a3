"""What `mesh-lab lab` adds to Jupyter: a notebook that is opened and stored again stays as it was."""

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from ipykernel.ipkernel import IPythonKernel
from nbformat.v4 import new_markdown_cell, new_notebook

from mesh_lab.notebook.contents import LabContents


@pytest.fixture
def contents(tmp_path: Path) -> Iterator[LabContents]:
    made = LabContents(root_dir=str(tmp_path))
    yield made
    made.notary.store.close()  # Jupyter's database of trusted notebooks, whose end newer Pythons ask for


NOTEBOOK = new_notebook(metadata={"language_info": {"name": "python"}}, cells=[new_markdown_cell("a", id="a")])


async def test_a_notebook_is_opened_with_the_kernels_language_and_stored_without_its_version(
    tmp_path: Path, contents: LabContents
) -> None:
    file = tmp_path / "a.ipynb"
    nbformat.write(NOTEBOOK, file)
    before = file.read_text()

    model = await contents.get("a.ipynb")
    assert model["content"]["metadata"]["language_info"] == IPythonKernel.language_info
    assert "version" in IPythonKernel.language_info
    await contents.save(model, "a.ipynb")
    assert file.read_text() == before


async def test_another_language_stays_as_it_is(tmp_path: Path, contents: LabContents) -> None:
    file = tmp_path / "a.ipynb"
    other = {"name": "R", "version": "4.5"}
    file.write_text(json.dumps({**NOTEBOOK, "metadata": {"language_info": other}}))
    model = await contents.get("a.ipynb")
    assert model["content"]["metadata"]["language_info"] == other
    await contents.save(model, "a.ipynb")
    assert json.loads(file.read_text())["metadata"]["language_info"] == other


async def test_files_and_folders_are_jupyters_own(tmp_path: Path, contents: LabContents) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert (await contents.get("a.txt"))["content"] == "text"
    assert [entry["name"] for entry in (await contents.get(""))["content"]] == ["a.txt"]
    assert (await contents.get("", content=False))["content"] is None
