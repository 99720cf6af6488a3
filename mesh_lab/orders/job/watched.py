"""What watching costs: the main job with all on that watches it, in turn with nothing on, on the same servers."""

import asyncio
import contextlib
import os
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rich.console import Console
from rich.table import Column, Table

from mesh_lab.measure.measurement import Measurement
from mesh_lab.measure.processor_time import processor_seconds
from mesh_lab.observe import metrics, snapshot
from mesh_lab.orders.job.run import REPLICAS, run_orders
from mesh_lab.orders.order import STREAM
from mesh_lab.orders.read_model import Summary
from mesh_lab.patterns.wait import cancel_and_join
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

ROUNDS = 5
SCRAPE_EVERY_S, LOOK_EVERY_S = 15.0, 1.0  # as docker/observe/prometheus.yml, and as the live map
OTLP_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
SETTINGS = ("nothing on", "all on")


@contextlib.asynccontextmanager
async def all_on(mesh: Mesh) -> AsyncIterator[Counter[str]]:
    """Watch a mesh in all ways while the block runs, and count how often each did.

    An exporter is scraped, snapshots are taken as for the live map, and services that start meanwhile send spans to a
    collector, of as many orders as is their default.
    """
    done = Counter[str]()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            done["batches of spans"] += 1
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing on the terminal."""

    async def keep(what: str, look: Callable[[], object], every_s: float) -> None:
        while True:
            await asyncio.to_thread(look)
            done[what] += 1
            await asyncio.sleep(every_s)

    monitors = {name: server.monitor for name, server in mesh.servers.items() if server.monitor}
    exporter, collector = metrics.serve(monitors, port=0), ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    scrape = partial(_read, f"http://127.0.0.1:{exporter.server_port}/metrics")
    watching = [
        asyncio.create_task(keep("scrapes", scrape, SCRAPE_EVERY_S)),
        asyncio.create_task(keep("snapshots", partial(snapshot, monitors), LOOK_EVERY_S)),
    ]
    os.environ[OTLP_VARIABLE] = f"http://127.0.0.1:{collector.server_port}"
    try:
        yield done
    finally:
        del os.environ[OTLP_VARIABLE]
        await cancel_and_join(*watching)
        for server in (exporter, collector):
            await asyncio.to_thread(server.shutdown)
            server.server_close()


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=SCRAPE_EVERY_S) as page:  # noqa: S310  # our own exporter
        return bytes(page.read())


async def run_watched(*, workers: int, first: int | None = None, rounds: int = ROUNDS) -> int:
    """Run the main job with all on and with nothing on in turn, on three local servers, and return the exit code.

    It shows what is left of the rate: of events counted, from when the read model knows some, as services have started.

    Raises:
        WrongTotalsError: An order was lost, doubled or changed.
        ProcessEndedError: A service ended with an error.
    """
    console, done, events = Console(), Counter[str](), 0
    elapsed_s: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    used_s: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    async with await start_mesh(servers=REPLICAS, backend="local") as mesh:
        client = await mesh.connect(name="rounds")
        for turn in range(rounds):
            for setting in SETTINGS[:: -1 if turn % 2 else 1]:  # each goes first in its turn
                console.print(f"round {turn + 1} of {rounds}: {setting}")
                counted: list[tuple[float, int]] = []

                def note(summary: Summary, counted: list[tuple[float, int]] = counted) -> None:
                    counted.append((time.monotonic(), sum(summary.events.values())))

                async with contextlib.AsyncExitStack() as stack:
                    watch = await stack.enter_async_context(all_on(mesh)) if setting == "all on" else Counter[str]()
                    used = await stack.enter_async_context(processor_seconds())
                    run = await run_orders(mesh, workers=workers, first=first, progress=note)
                done += watch
                events = run.stages[2].messages
                begun, ended = next(point for point in counted if point[1]), counted[-1]
                share = (ended[1] - begun[1]) / events  # of all events, in the time that was looked at
                elapsed_s[setting].append((ended[0] - begun[0]) / share if share else run.stages[2].median_s)
                used_s[setting].append(sum(used.values()))
                await client.jetstream(timeout=5.0).delete_stream(STREAM)
    numbers = (Column(name, justify="right") for name in ("events a second", "spread", "CPU µs an event"))
    table = Table("watching", *numbers)
    for setting in SETTINGS:
        rate = Measurement(setting, "processed", events, tuple(elapsed_s[setting]))
        processor = statistics.median(used_s[setting]) / events * 1e6
        table.add_row(setting, f"{rate.rate_per_s:,.0f}", f"{rate.spread:.0%}", f"{processor:,.0f}")
    console.print(table)
    left = sorted(off / on for off, on in zip(*elapsed_s.values(), strict=True))
    console.print(f"left of the rate with all on: {statistics.median(left):.0%}, {left[0]:.0%} to {left[-1]:.0%}")
    console.print("Processor time includes that in which the services start, the rate does not.")
    console.print("; ".join(f"{what}: {number}" for what, number in sorted(done.items())))
    return 0
