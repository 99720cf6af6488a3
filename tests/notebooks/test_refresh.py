import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from refresh import NOTEBOOKS, is_normal, main, renew_overview

HOME = "import os\nfrom pathlib import Path\nassert not list(Path(os.environ['MESH_LAB_HOME']).iterdir())"


@pytest.fixture
def write(tmp_path):
    """Write a notebook that was never run, with these code cells."""

    def written(*cells):
        path = tmp_path / "00_start_here.ipynb"
        nbformat.write(new_notebook(cells=[new_markdown_cell("# Start here"), *cells]), path)
        return path

    return written


def test_a_refresh_runs_in_an_empty_home_and_a_second_one_changes_nothing(write, capsys):
    raising = new_code_cell("{}['n2']", metadata={"tags": ["raises-exception"]})
    path = write(new_code_cell(HOME), new_code_cell("print('a')\nprint('b')\n6 * 7"), raising)
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path.name}: refreshed\n{path.name}: unchanged\n"
    assert is_normal(path)
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells[1:]] == [1, 2, 3]
    assert [output.get("text") for output in cells[2].outputs] == ["a\nb\n", None]
    assert cells[3].outputs[0].evalue == "'n2'"


@pytest.mark.parametrize(
    ("source", "tags", "said"),
    [
        ("mesh = 1\nmesh.kill('n2')", [], "AttributeError: 'int' object has no attribute 'kill'"),
        ("import sys\nprint('a warning', file=sys.stderr)", [], "code cell 1 wrote to stderr"),
        ("6 * 7", ["raises-exception"], "code cell 1 should have raised and did not"),
    ],
)
def test_a_notebook_that_does_not_run_as_it_must_is_left_alone(write, capsys, source, tags, said):
    path = write(new_code_cell(source, metadata={"tags": tags}))
    before = path.read_bytes()
    assert main([str(path)]) == 1
    told = capsys.readouterr().out
    assert said in told
    assert source.partition("\n")[0] in told
    assert path.read_bytes() == before


def test_the_overview_of_exercises_is_renewed_without_running_its_notebook(tmp_path):
    stored = (NOTEBOOKS / "00_start_here.ipynb").read_text()
    path = tmp_path / "00_start_here.ipynb"
    path.write_text(stored.replace("open: 0.1, 0.2,", "open: 0.1,").replace("<td>0 of 4</td>", "<td>0 of 3</td>"))
    assert path.read_text() != stored
    assert renew_overview(path)
    assert path.read_text() == stored
