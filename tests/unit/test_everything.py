"""What `make test` says at its end."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import everything
from everything import Tally


def tally_of(path: Path, text: str) -> Tally:
    """Run pytest on a file with these tests, and tally its report."""
    (path / "test_it.py").write_text(text)
    report = path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={path}", str(path)]
    subprocess.run([*command, f"--junitxml={report}"], capture_output=True, check=False)
    tally = Tally()
    tally.add(report)
    return tally


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start pytest without plugins, which takes a fraction of the time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


TESTS = """
import pytest

def test_good(): pass

def test_bad(): assert 0

@pytest.fixture
def broken(): raise OSError("no disk")

def test_broken(broken): pass

@pytest.mark.parametrize("n", range(2))
def test_no_browser(n): pytest.skip("no browser: install one")
"""


def test_failures_errors_and_the_reasons_of_what_was_skipped_are_counted(tmp_path: Path) -> None:
    tally = tally_of(tmp_path, TESTS)
    assert str(tally) == "1 passed, 2 failed, 2 skipped"
    assert [name.rpartition("::")[2] for name in tally.failed] == ["test_bad", "test_broken"]
    assert tally.skipped == {"no browser: install one": 2}


NEEDY = """
import pytest

@pytest.fixture
def missing(): pytest.skip("no browser here")

@pytest.mark.needs("browser")
def test_in_a_browser(missing): pass

@pytest.mark.needs("power-cut")
@pytest.mark.skipif(True, reason="not root")
def test_power_cut(): pass
"""


def test_a_skip_is_a_failure_where_what_the_test_needs_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_LAB_REQUIRE", "power-cut, full-disk")
    shutil.copy(Path(everything.__file__).with_name("conftest.py"), tmp_path)
    tally = tally_of(tmp_path, NEEDY)
    assert [name.rpartition("::")[2] for name in tally.failed] == ["test_power_cut"]
    assert tally.skipped == {"no browser here": 1}


@pytest.mark.parametrize("text", [None, "", "<testsuites><testsuite><testcase"])
def test_a_report_that_is_missing_or_cut_off_is_a_failure(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "report.xml").write_text(text)
    tally = Tally()
    tally.add(tmp_path / "report.xml")
    assert len(tally.failed) == 1
    assert "pytest did not come to its end" in tally.failed[0]


def test_any_part_that_fails_fails_all_and_the_other_parts_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {}
    for name in ("first", "broken", "last"):
        path = tmp_path / f"test_{name}.py"
        path.write_text(f"def test_{name}(): assert {name != 'broken'}\n")
        parts[name] = ["-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(path)]
    assert everything.main(parts) == 1
    assert capsys.readouterr().out.endswith("::test_broken\n2 passed, 1 failed, 0 skipped\n")


FAILS_ONCE = """
from pathlib import Path
import pytest

def test_good(): pass

def test_unsteady():
    been_here = Path(__file__).with_name("been_here")
    assert been_here.exists() or been_here.touch()

{broken}
"""


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("", "1 passed, 1 unsteady, 0 failed, 0 skipped"),
        ("def test_broken(): assert 0", "1 passed, 2 failed, 0 skipped"),
        ("@pytest.mark.parametrize('n', range(3))\ndef test_some(n): assert 0", "1 passed, 4 failed"),
    ],
    ids=["passes when tried again", "fails again", "fails again, and more do"],
)
def test_a_few_that_fail_are_tried_once_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    says: str,
) -> None:
    (tmp_path / "test_it.py").write_text(FAILS_ONCE.format(broken=broken))
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nbval.plugin"]\n')
    assert everything.main({"all": [str(tmp_path)]}) == int(bool(broken))
    out = capsys.readouterr().out
    assert says in out.splitlines()[-1]
    assert ("unsteady, it failed" in out) is not bool(broken)
    assert "Tried once more, alone" in out


def test_a_set_up_that_fails_once_is_tried_again_with_all_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_it.py").write_text(
        FAILS_ONCE.format(broken="").replace("def test_unsteady()", "@pytest.fixture(scope='module')\ndef unsteady()")
        + "@pytest.mark.parametrize('n', range(9))\ndef test_each(unsteady, n): pass\n"
    )
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nbval.plugin"]\n')
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    assert everything.main({"all": [str(tmp_path)]}) == 0
    assert capsys.readouterr().out.endswith("1 passed, 9 unsteady, 0 failed, 0 skipped\n")


@pytest.mark.parametrize(("files", "code"), [(3, 0), (4, 1)])
def test_where_many_files_fail_it_is_no_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, code: int
) -> None:
    for number in range(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"test_{number}.py").write_text(FAILS_ONCE.format(broken=""))
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nbval.plugin"]\n')
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    assert everything.main({"all": [str(tmp_path)]}) == code


def notebook_that_fails_once() -> nbformat.NotebookNode:
    """Return one whose second cell needs the first, and fails unless it has run before."""
    cells = [nbformat.v4.new_code_cell(source) for source in (
        "from pathlib import Path\nbeen_here = Path('been_here')",
        "assert been_here.exists() or been_here.touch()",
    )]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def test_a_cell_is_tried_again_with_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nbformat.write(notebook_that_fails_once(), tmp_path / "it.ipynb")
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nbval.plugin"]\n')
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    assert everything.main({"all": ["--nbval", str(tmp_path)]}) == 0
    assert capsys.readouterr().out.endswith("1 passed, 1 unsteady, 0 failed, 0 skipped\n")


SKIPS_THE_SECOND_TIME = """
from pathlib import Path
import pytest

def test_it():
    been_here = Path(__file__).with_name("been_here")
    if been_here.exists():
        pytest.skip("not here")
    been_here.touch()
    assert 0
"""


def test_what_is_skipped_when_it_is_tried_again_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_it.py").write_text(SKIPS_THE_SECOND_TIME)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["nbval.plugin"]\n')
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    assert everything.main({"all": [str(tmp_path)]}) == 1
