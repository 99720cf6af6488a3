"""JupyterLab in a real browser, on a copy of the notebooks."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, sync_playwright

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
# Nothing of the browser's own goes out: it loads pages of this machine only.
QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-gpu"]  # fmt: skip


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Path of a browser, from the variable MESH_LAB_BROWSER or from the path."""
    if chosen := os.environ.get("MESH_LAB_BROWSER"):
        assert Path(chosen).is_file(), f"MESH_LAB_BROWSER names {chosen}, and no file is there"
        return chosen
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path; install one, or set MESH_LAB_BROWSER")
    return found


@pytest.fixture(scope="session")
def jupyter(browser_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address, token included, of a JupyterLab as `make lab` starts it, on copies that may be changed."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    # All cells stay in the page, those out of view as well, so that a test can ask for any of them.
    _set(root / "settings", "notebook-extension/tracker", '{"windowingMode": "none"}')
    environment = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "MESH_LAB_HOME": str(root / "home"),
        "JUPYTER_CONFIG_DIR": str(root / "config"),
        "JUPYTER_DATA_DIR": str(root / "data"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
    }
    log = root / "jupyter.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh_lab.cli", "lab", "--no-browser"],
            cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield _address(log, process)
    finally:
        process.terminate()
        process.wait(30)


def _set(directory: Path, plugin: str, settings: str) -> None:
    path = directory / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings)


def _address(log: Path, process: subprocess.Popen) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.1)  # pacing: a loop with a deadline
    raise AssertionError(f"JupyterLab did not say where it listens:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(browser_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """An empty page of a new browser; what it showed last is kept as a picture beside pytest's other files."""
    arguments = [*QUIET, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else QUIET
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=browser_path, args=arguments)
        except Error as err:
            pytest.fail(f"{browser_path} does not start: {err}")
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        yield opened
        opened.screenshot(path=tmp_path_factory.mktemp("page") / "last.png")
        browser.close()
