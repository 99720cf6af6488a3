"""Notebooks hold when they are read as people read them: a cell run twice, a start in the middle."""

import nbformat
from habits import Reader, sections, twice
from page import Page, parts
from refresh import NOTEBOOKS

# The one that readers meet first. `make habits` tries all of them, and takes an hour.
TRIED = "00_start_here"


def page_of(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    return Page(nbformat.read(path, as_version=4), path)


async def test_each_cell_may_run_twice():
    faults = await twice(page_of(TRIED))
    assert not faults, "\n".join(["", *faults])


def page_with(tmp_path, *sources):
    cells = [nbformat.v4.new_markdown_cell(s) if s.startswith("#") else nbformat.v4.new_code_cell(s) for s in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return Page(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "99_fail_on_purpose.ipynb")


async def test_cells_that_do_not_hold_are_named(tmp_path):
    page = page_with(tmp_path, "# Fail", "names = ['n1']", "## Take", "[name] = names\nnames.clear()", "## Use", "name")
    assert await twice(page) == [
        "99 [1] '[name] = names', second run: ValueError: not enough values to unpack (expected 1, got 0)"
    ]
    assert await sections(page) == ["99 [2] 'name', from 'Use': NameError: name 'name' is not defined"]


async def test_an_interrupted_cell_is_at_work_when_it_is_interrupted(tmp_path):
    page = page_with(tmp_path, "import time\nseen = 0", "time.sleep(30)  # work\nseen += 1", "assert seen == 0")
    async with Reader(page) as reader:
        await reader.run(page.code[0], "first run")
        await reader.run(page.code[1], "interrupted", interrupt_after=0.3)
        await reader.run(page.code[2], "afterwards")
    assert reader.faults == []


def test_the_set_up_ends_where_the_next_section_begins():
    page = page_of(TRIED)
    setup, rest = parts(page)
    assert [cell.source.partition("\n")[0] for cell in setup] == ["%load_ext mesh_lab"]
    assert sum(len(cells) for _, cells in rest) == len(page.code) - 1
