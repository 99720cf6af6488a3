"""A JupyterLab of a test's own, and a proxy before it, as hosts have one."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def lab(command: Sequence[str], root: Path, **more: str) -> Iterator[str]:
    """Start JupyterLab on a copy of the notebooks, and yield its address with the token."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns("book"))
    # All cells stay in the page, those out of view as well, so that a test can ask for any of them.
    _set(root / "settings", "notebook-extension/tracker", '{"windowingMode": "none"}')
    environment = {
        **os.environ,
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "MESH_LAB_HOME": str(root / "home"),
        "JUPYTER_CONFIG_DIR": str(root / "config"),
        "JUPYTER_DATA_DIR": str(root / "data"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
        **more,
    }
    log = root / "jupyter.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
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
        if (found := re.search(r"http://127\.0\.0\.1:(\d+)/\S*token=[\w.]+", log.read_text())) and _listens(found[1]):
            return found[0]
        time.sleep(0.1)  # pacing: a loop with a deadline
    raise AssertionError(f"JupyterLab did not say where it listens:\n{log.read_text()}")


def _listens(port: str) -> bool:
    """Say whether a port takes connections: Jupyter writes its address a moment before."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


@contextmanager
def proxy(port: int) -> Iterator[int]:
    """Hand every request on to a port, as a proxy does that speaks TLS to the browser; yield the proxy's own port."""

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            behind, before = await asyncio.open_connection("127.0.0.1", port)
            if b"\r\nupgrade: websocket" not in head.lower():  # one request a connection, so that each head passes here
                head = re.sub(rb"(?i)\r\nconnection: [^\r]*", b"\r\nConnection: close", head)
            before.write(head[:-2] + b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n")
            await asyncio.gather(_copy(reader, before), _copy(behind, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the browser opened a connection that it has no use for
        finally:
            writer.close()

    listens: Future[tuple[int, Callable[[], object]]] = Future()

    async def serve() -> None:
        stopped = asyncio.Event()
        server = await asyncio.start_server(each, "127.0.0.1", 0)
        stop = partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)
        listens.set_result((server.sockets[0].getsockname()[1], stop))
        await stopped.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    own, stop = listens.result(10)
    try:
        yield own
    finally:
        stop()
        thread.join(10)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while received := await reader.read(65_536):
            writer.write(received)
            await writer.drain()
    finally:
        writer.close()
