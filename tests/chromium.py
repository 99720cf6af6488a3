"""A real browser for tests: a fixture for its path, and one for an empty page of it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, sync_playwright

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
