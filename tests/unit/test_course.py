"""An installed package lays its course out beside what the reader made of it, and never over it."""

import json
from pathlib import Path

import pytest

from mesh_lab import course
from mesh_lab.course import carried, lay_out
from mesh_lab.errors import StoreError

FIRST = {"README.md": b"read", "notebooks/00.ipynb": b"first", "notebooks/01.ipynb": b"second"}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != course.RECORD
    }


def test_a_first_start_writes_all_and_a_second_one_nothing(tmp_path: Path) -> None:
    assert lay_out(tmp_path / "new", FIRST).written == sorted(FIRST)
    assert files(tmp_path / "new") == FIRST
    assert lay_out(tmp_path / "new", FIRST) == ([], [])


def test_a_new_version_renews_what_is_unchanged_and_leaves_what_is_yours(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST)
    (tmp_path / "notebooks/01.ipynb").write_bytes(b"mine")
    (tmp_path / "notebooks/notes.ipynb").write_bytes(b"notes")
    newer = {name: text + b" again" for name, text in FIRST.items()}
    for _ in range(2):  # the second time, it must not have forgotten whose they are
        assert lay_out(tmp_path, newer).kept == ["notebooks/01.ipynb"]
        assert files(tmp_path) == newer | {"notebooks/01.ipynb": b"mine", "notebooks/notes.ipynb": b"notes"}


def test_what_was_put_aside_is_written_again(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST)
    (tmp_path / "notebooks/01.ipynb").write_bytes(b"mine")
    (tmp_path / "notebooks/01.ipynb").rename(tmp_path / "notebooks/my_01.ipynb")
    assert lay_out(tmp_path, FIRST).written == ["notebooks/01.ipynb"]
    assert files(tmp_path) == FIRST | {"notebooks/my_01.ipynb": b"mine"}


def test_a_notebook_that_was_renumbered_does_not_stay_under_both_numbers_unless_it_is_yours(tmp_path: Path) -> None:
    lay_out(tmp_path, FIRST)
    (tmp_path / "notebooks/00.ipynb").write_bytes(b"mine")
    lay_out(tmp_path, {"README.md": b"read", "notebooks/02.ipynb": b"second"})
    assert files(tmp_path) == {
        "README.md": b"read",
        "notebooks/00.ipynb": b"mine",
        "notebooks/02.ipynb": b"second",
    }


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"of another project")
    assert lay_out(tmp_path, FIRST).kept == ["README.md"]
    assert (tmp_path / "README.md").read_bytes() == b"of another project"


@pytest.mark.parametrize("spoil", ["no folder", "no record"])
def test_a_folder_that_cannot_be_used_is_told_with_its_name(tmp_path: Path, spoil: str) -> None:
    if spoil == "no folder":
        (tmp_path / "notebooks").write_bytes(b"")
    else:
        (tmp_path / course.RECORD).write_text(json.dumps("x")[:-1])
    with pytest.raises(StoreError, match=f"cannot write the course into {tmp_path}: .+; run mesh-lab lab in another"):
        lay_out(tmp_path, FIRST)


def test_a_copy_of_the_package_alone_says_that_it_has_no_notebooks() -> None:
    with pytest.raises(StoreError, match="there are no notebooks in .+; run it in the folder that you cloned"):
        carried()
