"""The command line says what it cannot use, before anything is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh_lab.cli import main


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
            ["orders", "--go", "--kill-one"],
            "--go compares on servers of its own; of the other options",
        ),
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
