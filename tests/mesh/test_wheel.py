"""The wheel works in an empty folder: it carries the course, and fetches nothing."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from contextlib import suppress
from pathlib import Path

import pytest

from mesh_lab.servers.binary import find_server

ROOT = Path(__file__).parents[2]
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"
NOBODY = "http://127.0.0.1:9"  # a proxy that is not there: whoever asks for something from elsewhere fails


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of a new environment, into which pip installed the wheel that was built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=120, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / SCRIPTS / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "--quiet",
    ]
    subprocess.run([*install, "--no-index", "--no-deps", str(wheel)], capture_output=True, timeout=120, check=True)
    # The wheel's dependencies are those that run this test. What makes this tree importable is not among them: a line
    # of a .pth file leads to a folder, and not to the .pth files in it.
    (site,) = (folder / "env").rglob("site-packages")
    (site / "dependencies.pth").write_text(os.path.dirname(os.path.dirname(pytest.__file__)))
    (python.parent / "jupyter-lab").write_text(f"#!{python}\nfrom jupyterlab.labapp import main\nmain()\n")
    (python.parent / "jupyter-lab").chmod(0o755)
    return python.parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a reader who has the wheel and no network."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MESH_LAB_HOME")}
    homes = {name: str(tmp_path / name) for name in ("MESH_LAB_HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOBODY)
    shared = {
        # JupyterLab's own page and the server belong to the environment that runs this test.
        "JUPYTERLAB_DIR": str(Path(sys.prefix, "share", "jupyter", "lab")),
        "MESH_LAB_NATS_SERVER": str(find_server().path),
        "NO_PROXY": "127.0.0.1",
    }
    return kept | homes | proxies | shared


def test_the_installed_lab_opens_its_own_course_in_an_empty_folder(
    programs: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    here, log = tmp_path / "empty", tmp_path / "log"
    here.mkdir()
    with log.open("w") as out:
        command = [str(programs / "mesh-lab"), "lab", "--no-browser"]
        lab = subprocess.Popen(command, cwd=here, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline, model = time.monotonic() + 60, None
        while model is None and time.monotonic() < deadline and lab.poll() is None:
            time.sleep(0.1)  # pacing: a loop with a deadline
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab/tree/(\S+)\?token=(\w+)", log.read_text()):
                address = f"{found[1]}/api/contents/{found[2]}?token={found[3]}"
                # JupyterLab says where it listens a moment before it does.
                with suppress(urllib.error.URLError), urllib.request.urlopen(address, timeout=20) as answer:
                    model = json.load(answer)
        assert model is not None, log.read_text()
    finally:
        lab.terminate()
        lab.wait(30)
    assert model["content"]["cells"][0]["source"].startswith("# Start here")
    course = here / "mesh-lab-course"
    for folder, pattern in (
        ("notebooks", "*.ipynb"),
        ("notebooks", "*.md"),
        ("notebooks/checks", "*.py"),
        (".", "*.md"),
    ):
        own = {path.name: path.read_bytes() for path in (course / folder).glob(pattern)}
        there = {
            p.name: p.read_bytes() for p in (ROOT / folder).glob(pattern) if folder != "." or p.name == "README.md"
        }
        assert own == there
    assert str(course) in log.read_text()


def test_the_installed_command_processes_orders_and_says_its_version(
    programs: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [str(programs / "mesh-lab"), "orders", "--first", "200"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 orders" in done.stdout
    program = "import mesh_lab; print(mesh_lab.__file__, mesh_lab.__version__)"
    command = [str(programs / "python"), "-c", program]
    said = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.startswith(str(programs.parent))
