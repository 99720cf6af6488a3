"""The command line says what it cannot use, before anything is started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mesh_lab.cli import main
from mesh_lab.notebook import exercises
from mesh_lab.notebook.progress import note_solved


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chaos", "--power-cut", "--seed", "5"], "are for runs of faults; --power-cut is one of its own"),
        (["chaos", "--power-cut", "--fault", "kill"], "are for runs of faults; --power-cut is one of its own"),
        (["chaos", "--fault", "kill-all,earthquake"], "'earthquake', expected some of kill, stop, step down"),
        (["chaos", "--minutes", "1", "--seconds", "60"], "--seconds and --minutes both say how long; give one"),
        (["chaos", "--campaign", "2", "--seed", "5"], "--campaign chooses seeds and lengths itself"),
        (["chaos", "--seconds", "2"], "--seconds 2, expected 3 or more: no fault fits into less"),
        (["orders", "--file", "/"], "'/', expected a file that is there"),
        (
            ["orders", "--watched", "--saga"],
            "--watched compares on servers of its own; of the other options",
        ),
        (
            ["orders", "--go", "--kill-one"],
            "--go compares on servers of its own; of the other options",
        ),
        (["orders", "--world", "--saga"], "--world has all of it on servers of its own"),
        (["orders", "--seed", "3"], "--seed is for it alone"),
        (["orders", "--workers", "0"], "'0', expected a whole number from 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("psutil", ["doctor"]),
        ("psutil", ["lab"]),
        ("psutil", ["status"]),
        ("rich", ["orders", "--first", "5"]),
        ("nats", ["chaos", "--seconds", "3"]),
        ("jupyter_core", ["lab", "--no-browser"]),
    ],
)
def test_an_install_without_its_extra_is_told_in_a_line(tmp_path: Path, missing: str, arguments: list[str]) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None; from mesh_lab.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mesh-lab: the package {missing}")
    assert 'pip install "mesh-lab[lab]"' in line


def test_the_lab_s_own_kernel_comes_first_and_its_sockets_are_private(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: called.append(command))
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.setenv("JUPYTER_PATH", "/mine")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/tmp/" + "x" * 60)
    main(["lab", "--no-browser"])
    (command,) = called
    first, second = os.environ["JUPYTER_PATH"].split(os.pathsep)
    assert (Path(first) / "kernels" / "python3" / "kernel.json").is_file()
    assert second == "/mine"
    if sys.platform != "win32":
        assert "--KernelManager.transport=ipc" in command
        private = Path(os.environ["JUPYTER_RUNTIME_DIR"])
        assert (len(str(private)) < 50, private.stat().st_mode & 0o777) == (True, 0o700)
        private.rmdir()


def test_progress_is_shown_in_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path / "home"))
    note_solved("1.2")
    assert main(["progress"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 of \d\d exercises solved", first)
    assert "01 publish and subscribe        1 of 3   open: 1.1, 1.3" in lines


def test_progress_says_where_the_exercises_are_when_it_finds_none(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(exercises, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["progress"]) == 1
    assert "run it in the folder notebooks/ that you cloned" in capsys.readouterr().err
