"""What a service answers over HTTP: ``/livez``, its event loop runs; ``/readyz``, it can do its work; and ``/metrics``.

A lost connection makes a service not ready. It is alive all the same: it connects again by itself, and a restart would
only take from it what it has in hand. What it has done, it counts for Prometheus: for each connection anew, but for
what a worker has processed.
"""

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

from mesh_lab.errors import SettingsError

ASKS_WITHIN_S, LONGEST_LINE = 2.0, 1024
TEXT = "text/plain; version=0.0.4"  # as Prometheus calls its format


@contextlib.asynccontextmanager
async def serve_health(
    address: str | None, ready: Callable[[], bool], counts: Callable[[], Mapping[str, int]]
) -> AsyncIterator[None]:
    """Answer at ``host:port`` for as long as the context lasts, or nothing if there is no address.

    Args:
        address: Where.
        ready: Says whether the service can do its work.
        counts: Returns what it has done so far, by words that end a metric's name.

    Raises:
        SettingsError: The address has no host and port, or nothing can listen there.
    """
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        # Without a host it would be every address of the machine, unasked; and uvloop takes 99999 for another port.
        if not host or not 0 < int(port) < 65_536:
            raise ValueError("it names no host, or no port")
        answer = partial(_answer, ready, counts)
        server = await asyncio.start_server(answer, host.strip("[]"), int(port), limit=LONGEST_LINE)
    except (ValueError, OSError) as err:
        raise SettingsError(
            f"--health: nothing listens at {address!r} ({err}); expected 0.0.0.0:8080 or the like"
        ) from err
    try:
        yield
    finally:
        server.close()


def probe(address: str, path: str, *, within: float = 1.0) -> int | None:
    """Return the status with which a service answers a probe at ``host:port``; ``None`` where no answer comes in time.

    Blocks, for so many seconds at most.
    """
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=within) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as err:
        return err.code
    except OSError:
        return None


async def _answer(
    ready: Callable[[], bool],
    counts: Callable[[], Mapping[str, int]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer one request; whoever asks for nothing soon, or for too much, is hung up on."""
    with contextlib.suppress(OSError, ValueError, TimeoutError), contextlib.closing(writer):
        line = await asyncio.wait_for(reader.readline(), ASKS_WITHIN_S)
        states = {b"/livez": "200 OK", b"/readyz": "200 OK" if ready() else "503 Service Unavailable"}
        _, path, *_ = [*line.split(), b"", b""]
        state, body = states.get(path, "404 Not Found"), ""
        if path == b"/metrics":
            state, body = "200 OK", _metrics({"ready": int(ready())}, "gauge") + _metrics(counts(), "counter")
        head = f"HTTP/1.1 {state}\r\nContent-Type: {TEXT}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(f"{head}{body}".encode())
        await writer.drain()


def _metrics(values: Mapping[str, int], kind: str) -> str:
    names = {f"orders_{name}{'_total' * (kind == 'counter')}": value for name, value in values.items()}
    return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for name, value in names.items())
