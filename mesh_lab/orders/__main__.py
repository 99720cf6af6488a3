"""Run one service of the order mesh: ``python -m mesh_lab.orders worker --url nats://localhost:4222``.

A service ends in good order at SIGTERM or Ctrl-C, and prints one line of JSON about its work when it ends.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import MeshLabError
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, create_bulk_lane, send_batches
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import open_event_store
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import serve_read_model
from mesh_lab.orders.worker import Worker
from mesh_lab.patterns.connection import ConnectOptions, connect
from mesh_lab.patterns.jetstream_api import Ack
from mesh_lab.patterns.wait import cancel_and_join
from mesh_lab.processes import CONNECT_VARIABLE, on_stop_signal, run
from mesh_lab.tls import unpack

Report = dict[str, Any]
T = TypeVar("T")


async def publish(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Place the orders of the data set, or of a file in its format, and end."""
    orders = list(read_orders(options.file, first=options.first))
    await open_event_store(client, replicas=options.replicas)
    started, stored = time.perf_counter(), list[Ack]()
    await _until_stopped(place_orders(client, orders, on_stored=stored.append), stop)
    return {"service": "publisher", "acknowledged": len(stored), "elapsed_s": time.perf_counter() - started}


async def work(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Run one worker of the group until stopped."""
    await open_event_store(client, replicas=options.replicas)
    worker = Worker(client)
    await worker.run(stop=stop)
    return {"service": "worker", "processed": worker.processed, "rejected": worker.rejected}


async def read(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Serve the read model until stopped."""
    await open_event_store(client, replicas=options.replicas)
    await _until_stopped(serve_read_model(client), stop)
    return {"service": "read-model"}


async def publish_bulk(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Send the orders in the bulk lane, many to a message, and end."""
    batches = list(batched(read_orders(options.file, first=options.first)))
    await create_bulk_lane(client.jetstream(timeout=10.0), replicas=options.replicas)
    started = time.perf_counter()
    sent = await _until_stopped(send_batches(client, batches, compression="zstd"), stop)
    return {"service": "bulk-publisher", "acknowledged": sent, "elapsed_s": time.perf_counter() - started}


async def read_bulk(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Count the orders of the bulk lane until there are enough, or until stopped."""
    await create_bulk_lane(client.jetstream(timeout=10.0), replicas=options.replicas)
    count = BulkCount()
    await _until_stopped(count_bulk(client, count, until=options.until), stop)
    found = {**msgspec.structs.asdict(count.totals), "doubled": count.doubled, "rejected": count.rejected}
    return {"service": "bulk-reader", **found}


async def _until_stopped(service: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return what a service returns, or nothing if it is stopped before: it cleans up, on a connection that stands."""
    serving, stopping = asyncio.create_task(service), asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await cancel_and_join(serving, stopping)
    return None if serving.cancelled() else serving.result()


SERVICES = {"publisher": publish, "worker": work, "read-model": read}
SERVICES |= {"bulk-publisher": publish_bulk, "bulk-reader": read_bulk}


async def _run(options: argparse.Namespace) -> Report:
    stop = asyncio.Event()
    on_stop_signal(stop.set)
    if packed := os.environ.pop(CONNECT_VARIABLE, None):  # from the mesh that started this
        where = cast(ConnectOptions, unpack(json.loads(packed)))
    else:
        where = ConnectOptions(servers=options.url.split(","))
        if options.creds:
            where["user_credentials"] = options.creds
    where["name"] = options.name or options.service
    # The first address is dialled first; and ids were validated when the order was decoded.
    client = await connect(where, dont_randomize=True, skip_subject_validation=True)
    try:
        return await SERVICES[options.service](client, options, stop)
    finally:
        await client.close()


def main(arguments: list[str] | None = None) -> int:
    """Run the service that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mesh_lab.orders", description=__doc__)
    parser.add_argument("service", choices=SERVICES)
    urls = "servers, nearest first, separated by commas; or NATS_URL, which other users of the machine cannot see"
    parser.add_argument("--url", default=os.environ.get("NATS_URL") or "nats://127.0.0.1:4222", help=urls)
    parser.add_argument("--creds", default=os.environ.get("NATS_CREDS"), help="credentials file, or NATS_CREDS")
    parser.add_argument("--name", default=os.environ.get("SERVICE_NAME"), help="name of the connection")
    parser.add_argument("--replicas", type=int, default=1, help="copies of the stream, if it has to be made")
    parser.add_argument("--first", type=int, help="publisher: place only so many orders")
    parser.add_argument("--file", type=Path, help="publisher: a file in the format of the data set")
    parser.add_argument("--until", type=int, help="bulk-reader: end when so many orders are counted")
    options = parser.parse_args(arguments)
    try:
        report = run(_run(options))
    except (MeshLabError, nats.errors.Error, OSError) as err:
        sys.stderr.write(f"{options.service}: {err}\n")
        return 1
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
