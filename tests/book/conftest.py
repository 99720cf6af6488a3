"""The site of the course, made once, and a server of this machine that shows it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chromium import browser_path, page  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[2]
REPOSITORY = "some-owner/some-course"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the site, made as `make book` does, for a course whose repository is known."""
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, str(ROOT / "notebooks" / "book" / "build.py"), str(folder)]
    environment = {**os.environ, "BOOK_REPOSITORY": REPOSITORY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


class Quiet(SimpleHTTPRequestHandler):
    """Answers without a line for each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where this machine shows the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()
