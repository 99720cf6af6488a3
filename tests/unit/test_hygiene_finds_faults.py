"""Each fault that the notebooks' hygiene looks for is planted into a good notebook, and must be found."""

import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))
from hygiene import faults
from refresh import is_normal, main, normalise, written

PICTURE = {"image/png": "iVBORw0KGgo="}
NAME = "02_share_work_in_queue_groups.ipynb"
TITLE = """\
# Share work in queue groups

You end with a worker that scales.

| You build | the worker |
|---|---|
| You measure | throughput |
| You need | Python |
| Time | 20 minutes |"""
SETUP = """\
%load_ext mesh_lab
from mesh_lab import start_mesh

mesh = await start_mesh(servers=3)
mesh"""


def shown(source, text=None, *, tags=(), data=None):
    """A code cell that was run, and the text or data that it shows."""
    cell = new_code_cell(source)
    if text or data:
        cell.outputs = [new_output("execute_result", data={"text/plain": text or "chart"} | (data or {}))]
    if tags:
        cell.metadata.tags = list(tags)
    if "solution" in tags:
        cell.metadata.jupyter = {"source_hidden": True}
    return cell


def exercise(number):
    name = f"task_{number.replace('.', '_')}"
    return [
        new_markdown_cell(f"### Exercise {number}: take a worker away\n\nMake `worker-2` leave."),
        shown(f"async def {name}(sub):\n    ...", tags=["exercise"]),
        shown(f'await check("{number}", {name})', "not attempted", tags=["check"]),
        shown(
            f'def solved_{name}(): return 1\nawait check("{number}", solved_{name}, solution=True)',
            "correct: drain waits for what is buffered, up to 30 s",
            tags=["solution"],
        ),
    ]


@pytest.fixture
def place(tmp_path):
    """A directory with the notebooks before and after, and where this one would lie."""
    for name in (NAME, "03_keep_orders_in_jetstream.ipynb", "README.md"):
        (tmp_path / name).touch()
    before = new_notebook(cells=[new_markdown_cell("## Why `flush(5)`?")])
    (tmp_path / "01_publish_and_subscribe.ipynb").write_text(written(before))
    return tmp_path / NAME


@pytest.fixture
def notebook():
    cells = [
        new_markdown_cell(TITLE),
        shown(SETUP, "Mesh(n1 ready, n2 ready, n3 ready)"),
        new_markdown_cell(
            "## A queue group hands each order to one worker\n\nGuess: `n!` or [more](README.md)? " + "word " * 60
        ),
        shown("%%service worker --replicas 3\nasync def main(nc):\n    await asyncio.sleep(0.01)  # work"),
        shown("async def main():\n    await asyncio.sleep(0)"),
        new_markdown_cell(
            "The chart comes [next](01_publish_and_subscribe.ipynb#Why-flush(5)?).\n\n"
            "*Picture: three bars of nearly the same length.*"
        ),
        shown("bars(share)", data=PICTURE),
        shown("rate", "12,345 orders/s at nats://127.0.0.1:4222", tags=["nbval-ignore-output"]),
        *exercise("2.1"),
        *exercise("2.2"),
        *exercise("2.3"),
        new_markdown_cell("## What you measured\n\n*Picture: three bars again.*"),
        shown("len(share)", "3", data=PICTURE),
        new_markdown_cell("## In practice\n\nRead the [documentation](https://docs.nats.io)."),
        shown("await mesh.close()\nassert mesh.closed"),
        new_markdown_cell(
            "[previous](01_publish_and_subscribe.ipynb) | [contents](README.md) | "
            "[next](03_keep_orders_in_jetstream.ipynb)"
        ),
    ]
    made = new_notebook(cells=cells)
    for cell in cells:
        cell.setdefault("outputs", []) if cell.cell_type == "code" else None
    cells[1].execution_count = 1
    normalise(made)
    return made


def test_the_good_notebook_has_no_faults(notebook, place):
    assert faults(notebook, place) == []


def cell_of(notebook, words):
    return next(cell for cell in notebook.cells if words in cell.source)


def write(words, old, new):
    """Return a fault: the cell with these words says something else."""

    def plant(notebook):
        cell = cell_of(notebook, words)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return plant


def show(words, text):
    """Return a fault: the cell with these words shows something else."""

    def plant(notebook):
        cell_of(notebook, words).outputs = [new_output("stream", text=text)]

    return plant


def add(source, text=None):
    """Return a fault: one code cell more, before the teardown."""

    def plant(notebook):
        notebook.cells.insert(-2, shown(source, text))
        normalise(notebook)

    return plant


def lengthen(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code" and len(cell.source.splitlines()) < 8 and not cell.source.startswith("%load"):
            cell.source += "\n" * (9 - len(cell.source.splitlines())) + "#"


def prose(text):
    """Return a fault: one sentence more at the end of a prose cell."""
    return write("## A queue group", "## A queue group", f"{text}\n\n## A queue group")


def plant_stderr(notebook):
    cell_of(notebook, "len(share)").outputs = [new_output("stream", name="stderr", text="a warning")]


def plant_error(notebook):
    cell_of(notebook, "len(share)").outputs = [new_output("error", ename="KeyError", evalue="'n2'")]


def plant_count(notebook):
    cell_of(notebook, "len(share)").execution_count = 40


def plant_tag(words, tag):
    def plant(notebook):
        cell_of(notebook, words).metadata.tags = [tag]

    return plant


def open_solution(notebook):
    del cell_of(notebook, "solved_task_2_2():").metadata["jupyter"]


def hide_a_cell(notebook):
    cell_of(notebook, "len(share)").metadata.jupyter = {"source_hidden": True}


def drop(first, last):
    def plant(notebook):
        del notebook.cells[first:last]

    return plant


def swap_parts(notebook):
    cells = notebook.cells
    measured = cells.index(cell_of(notebook, "What you measured"))
    cells[measured], cells[measured + 2] = cells[measured + 2], cells[measured]


def crowd(notebook):
    notebook.cells[5:5] = [new_markdown_cell("One more.") for _ in range(40)]


def fatten(notebook):
    cell_of(notebook, "bars(").outputs[0].data["image/png"] = "A" * 400_000


def untitle(notebook):
    del cell_of(notebook, "bars(").outputs[0].data["text/plain"]


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (write("# Share", "# Share work", "# Sharing work"), "H1 ['Sharing work in queue groups']"),
        (write("# Share", "| Time |", "| Duration |"), "table lacks Time"),
        (write("%load_ext", "%load_ext mesh_lab", "import mesh_lab"), "setup cell begins with 'import mesh_lab'"),
        (write("%load_ext", "\n\n", "\nimport a\nimport b\nimport c\nimport d\nimport e\n"), "setup cell has 9 lines"),
        (write("%load_ext", "=3)\nmesh", "=3)\nmesh.urls"), "ends with 'mesh.urls'"),
        (write("%load_ext", "await start_mesh", "await open_mesh"), "no line 'mesh = await start_mesh"),
        (write("Exercise 2.2", "2.2", "2.4"), "expected '### Exercise 2.2"),
        (write("Exercise 2.2", "###", "##"), "expected '### Exercise 2.2"),
        (drop(16, 20), "2 exercises; expected 3 to 4"),
        (plant_tag('check("2.2", task', "exercise"), "exercise 2.2 has cells tagged"),
        (write('check("2.2", task', '"2.2"', '"2.1"'), 'lacks await check("2.2"'),
        (show('check("2.2", task', "not yet: 41 orders"), "exercise 2.2 does not answer 'not attempted'"),
        (show("solved_task_2_2():", "not yet: 41 orders"), "solution of exercise 2.2 is not 'correct"),
        (write("solved_task_2_2():", ", solution=True", ""), "not checked with solution=True"),
        (open_solution, "source_hidden belongs to solutions"),
        (hide_a_cell, "source_hidden belongs to solutions"),
        (write("What you measured", "measured", "saw"), "no heading '## What you measured'"),
        (write("In practice", "In practice", "Practice"), "no heading '## In practice'"),
        (swap_parts, "parts out of order"),
        (write("mesh.close", "assert mesh.closed", "mesh.closed"), "does not await mesh.close() and assert"),
        (write("[previous]", "01_publish_and_subscribe", "README"), "lacks the previous notebook"),
        (write("[previous]", "[contents]", "[home]"), "no link 'contents'"),
        (write("[previous]", " | [next]", "\n[next]"), "last cell is not the navigation"),
        (drop(2, 8), "19 cells; expected 20 to 50"),
        (crowd, "65 cells; expected 20 to 50"),
        (lengthen, "half of the code cells have more than 9 lines; expected 8 at most"),
        (add("\n".join(f"print({i})" for i in range(25))), "lines of code that teach; expected 7 a line at least"),
        (show("bars(share)", "no picture"), "1 pictures; expected 2 at least"),
        (fatten, "KiB; expected 300 at most"),
        (add("\n".join(f"print({i})" for i in range(26))), "has 26 lines; expected 25 at most"),
        (prose("word " * 121), "words; expected 120 at most"),
        (plant_count, "execution counts"),
        (plant_stderr, "writes to stderr"),
        (plant_error, "against its tag raises-exception"),
        (plant_tag("len(share)", "raises-exception"), "against its tag raises-exception"),
        (plant_tag("len(share)", "nbval-ignore-outputs"), "has tags ['nbval-ignore-outputs']"),
        (add("from nats import *"), "star import"),
        (add("import time\ntime.sleep(1)"), "sleeps: 'time.sleep(1)'"),
        (add("await asyncio.sleep(0.5)"), "sleeps: 'await asyncio.sleep(0.5)'"),
        (add("def main():\n    return 2"), "defines main again"),
        (add("main = lambda: 2"), "defines main again"),
        (add("for x in"), "is not Python"),
        (show("len(share)", "12,345 orders/s"), "shows a measurement"),
        (show("len(share)", "took 1.5 ms"), "shows a measurement"),
        (show("len(share)", "rate_per_s  12345"), "shows a measurement"),
        (show("len(share)", "stored in /tmp/mesh-lab-x/n1"), "differs from machine to machine"),
        (show("len(share)", "nats://localhost:40123"), "differs from machine to machine"),
        (show("len(share)", "127.0.0.1:40123"), "differs from machine to machine"),
        (show("len(share)", "<Client object at 0x7f3c2a1b9d10>"), "differs from machine to machine"),
        (show("rate", '"pass": "9f86d081884c7d65"'), "shows a secret"),
        (show("rate", "nats://lab:9f86d081@127.0.0.1:4222"), "shows a secret"),
        (add('password = "9f86d081884c7d65"'), "holds a secret"),
        (prose("This is <b>bold</b>."), "raw HTML: '<b>'"),
        (prose(":::{note}\nNote.\n:::"), "MyST directive"),
        (prose("See {ref}`there`."), "MyST directive"),
        (prose("You simply subscribe."), "says 'simply'"),
        (prose("It is lost! Look."), "exclamation mark"),
        (prose("TODO say why."), "says 'TODO'"),
        (prose("Well done \U0001f389."), "has an emoji"),
        (prose("Read [this](04_gone.ipynb)."), "links to 04_gone.ipynb"),
        (prose("Read [this](01_publish_and_subscribe.ipynb#Why)."), "links to 01_publish_and_subscribe.ipynb#Why"),
        (prose("![](README.md)"), "image without alt text"),
        (write("*Picture:", "*Picture:", "Picture:"), "expected a line '*Picture: …*'"),
        (untitle, "a picture without a text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_fault_is_found_and_alone(notebook, place, plant, said):
    plant(notebook)
    found = faults(notebook, place)
    assert any(said in fault for fault in found), found
    assert len(found) <= 3, found


def test_a_file_name_out_of_the_pattern_is_found(notebook, place):
    (fault,) = (fault for fault in faults(notebook, place.with_name("queues.ipynb")) if "file name" in fault)
    assert "two digits, a verb, an object" in fault


def test_a_notebook_in_another_form_is_found_without_running_it(notebook, place, capsys):
    place.write_text(written(notebook))
    assert is_normal(place)
    assert main(["--check", str(place)]) == 0
    notebook.cells[3].metadata.collapsed = True
    place.write_text(written(notebook))
    assert main(["--check", str(place)]) == 1
    assert "NOT normalised" in capsys.readouterr().out
    place.write_text("{}")
    assert not is_normal(place)


def test_normalising_twice_changes_nothing_more(notebook):
    once = written(notebook)
    normalise(notebook)
    assert written(notebook) == once


def test_titles_questions_and_pictures_are_slides(notebook):
    cell_of(notebook, "A queue group hands").source += "**Who gets the next one?**"
    normalise(notebook)
    shown = {cell.source.split("\n")[0]: cell.metadata.slideshow.slide_type for cell in notebook.cells}
    assert {source: kind for source, kind in shown.items() if kind != "skip"} == {
        "# Share work in queue groups": "slide",
        "## A queue group hands each order to one worker": "slide",
        "bars(share)": "subslide",
        "len(share)": "subslide",
    }


def test_normalising_removes_what_differs_between_runs():
    cell = new_code_cell("1 + 1", execution_count=7, metadata={"collapsed": True, "trusted": True})
    cell.outputs = [
        new_output("stream", text="a\n"),
        new_output("stream", text="b\n"),
        new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480>"}),
        new_output("execute_result", data={"text/plain": "2"}, execution_count=7),
        new_output("error", ename="KeyError", evalue="'n2'"),
    ]
    cell.outputs[-1].traceback = ["\x1b[31mKeyError\x1b[0m", "File \x1b[32m/lib/nats.py\x1b[0m:3", "KeyError: 'n2'"]
    notebook = new_notebook(cells=[cell, new_code_cell("1 + 1", execution_count=9)])
    normalise(notebook)
    assert [c.id for c in notebook.cells] == ["1-1", "1-1-2"]
    assert [c.execution_count for c in notebook.cells] == [1, 2]
    assert cell.metadata == {"slideshow": {"slide_type": "subslide"}}
    stream, picture, result, error = cell.outputs
    assert stream.text == "a\nb\n"
    assert set(picture.data) == {"image/png"}
    assert result.execution_count == 1
    assert error.traceback == ["KeyError", "KeyError: 'n2'"]
