"""Run one service of the order mesh: ``python -m mesh_lab.orders worker --url nats://localhost:4222``.

A service ends in good order at SIGTERM or Ctrl-C, also while there is no server, and prints one line of JSON about its
work when it ends. One that runs until it is stopped tolerates that its servers go or refuse it: it says so in a line on
standard error, tries on, and says when it is back. One that has work to do to its end, and is stopped before, exits
with 1: it has to be run again. It takes no JetStream domain: its streams are where it connects to.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import (
    CredentialsError,
    LoginRefusedError,
    MeshLabError,
    NotReadyError,
    OrderFormatError,
    PublishRefusedError,
    SettingsError,
    StreamReplacedError,
)
from mesh_lab.orders.bulk import OrderBatch
from mesh_lab.orders.bulk_lane import BulkCount, batched, count_bulk, create_bulk_lane, send_batches
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import EVENTS, PLAIN, open_event_store
from mesh_lab.orders.health import serve_health
from mesh_lab.orders.ledger import LEDGER, line_of, member_of_ledger
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import serve_read_model
from mesh_lab.orders.replay import dead_letters, replay_letters
from mesh_lab.orders.saga import DUTIES, SAGA
from mesh_lab.orders.worker import WORKER, Worker
from mesh_lab.patterns.addresses import ConnectOptions, CredentialsFile, options_from
from mesh_lab.patterns.connection import close, connect
from mesh_lab.patterns.jetstream_api import Ack, ApiError, is_transient
from mesh_lab.patterns.partition_group import Partition
from mesh_lab.patterns.wait import cancel_and_join, retry, unless_closed
from mesh_lab.processes import CONNECT_VARIABLE, on_stop_signal, run
from mesh_lab.tls import unpack

if TYPE_CHECKING:
    from mesh_lab.orders.tracing import OrderTracer

Report = dict[str, Any]
T = TypeVar("T")
FINISH_S, CANCEL_S = 3.0, 1.0
"""How long a service that has to stop may finish what it has in hand, and may clean up."""
AGAIN_S = 1.0
OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


async def deploy(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Make the streams and consumers where they are missing, and end."""
    deployment = SAGA if options.saga else PLAIN
    info = await _until_stopped(open_event_store(client, replicas=options.replicas, deployment=deployment), stop)
    options.done = info is not None
    return {"service": "deploy", "messages": info.state.messages if info else None}


async def publish(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Place the orders of the data set, or of a file in its format, and end."""
    orders = list(read_orders(options.file, first=options.first))
    await open_event_store(client, replicas=options.replicas, deployment=EVENTS)
    started, counts = time.perf_counter(), Counter[str]()

    def note(stored: int, duplicates: int) -> None:
        counts.update(stored=stored, duplicates=duplicates)

    placed = await _until_stopped(place_orders(client, orders, on_stored=note, tracer=options.tracer), stop)
    options.done, options.processed = placed is not None, counts["stored"]
    return _published("publisher", counts["stored"], counts["duplicates"], time.perf_counter() - started)


async def work(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Run one worker of a group until stopped."""
    duty = DUTIES.get(options.service, WORKER)
    wanted = PLAIN if duty is WORKER else SAGA._replace(groups={duty.group: SAGA.groups[duty.group]})
    await open_event_store(client, replicas=options.replicas, deployment=wanted)
    options.opened = True
    worker = Worker(client, duty, tracer=options.tracer)
    options.workers.append(worker)  # one for each connection
    await _until_stopped(worker.run(stop=stop), stop, within=FINISH_S)
    return {"service": options.service, **_worked(options)}


def _worked(options: argparse.Namespace) -> dict[str, int]:
    return {what: sum(getattr(worker, what) for worker in options.workers) for what in ("processed", "rejected")}


async def read(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Serve the read model until stopped."""
    await open_event_store(client, replicas=options.replicas, deployment=EVENTS)
    options.opened = True
    reading = serve_read_model(client, consumer=options.consumer, tracer=options.tracer)
    await _until_stopped(reading, stop)
    return {"service": "read-model"}


async def keep_ledger(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Keep the ledger as one member of its group until stopped, and print a line for each event.

    What is no event of an order is passed over and counted as ``rejected``, the first with a line on standard error.
    """
    try:
        member = member_of_ledger(client, options.name or options.service)
    except ValueError as err:
        raise SettingsError(f"--name, or SERVICE_NAME: {err}") from err
    await unless_closed(client, retry(partial(client.jetstream(timeout=3.0).stream_info, LEDGER)))
    options.opened = True

    async def enter(msg: Msg, partition: Partition) -> None:
        try:
            line = line_of(msg, partition)
        except OrderFormatError as err:  # whoever owned the partition next would end of it as well
            if not options.rejected:
                why = " ".join(str(err).split())  # it may quote what came
                _log(options, f"message {msg.metadata.sequence.stream} on {msg.subject} is passed over: {why}")
            options.rejected += 1
            return
        sys.stdout.write(line)
        sys.stdout.flush()  # before it counts as done
        options.processed += 1

    await _until_stopped(member.run(enter, stop=stop), stop, within=FINISH_S)
    return {"service": options.service, "processed": options.processed, "rejected": options.rejected}


async def publish_bulk(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Send the orders in the bulk lane, many to a message, and end."""
    batches = list(batched(read_orders(options.file, first=options.first)))
    await create_bulk_lane(client.jetstream(timeout=10.0), replicas=options.replicas)
    started, counts = time.perf_counter(), Counter[bool]()  # by whether they are duplicates

    def note(ack: Ack, batch: OrderBatch) -> None:
        counts[ack.duplicate] += len(batch)

    sent = await _until_stopped(send_batches(client, batches, compression="zstd", on_stored=note), stop)
    options.done, options.processed = sent is not None, counts.total()
    return _published("bulk-publisher", counts.total(), counts[True], time.perf_counter() - started)


def _published(service: str, acknowledged: int, duplicates: int, elapsed_s: float) -> Report:
    if duplicates:
        words = "orders were in the stream already, under the same ids, and are not stored again"
        sys.stderr.write(f"{service}: {duplicates:,} of {acknowledged:,} {words}\n")
    return {"service": service, "acknowledged": acknowledged, "duplicates": duplicates, "elapsed_s": elapsed_s}


async def read_bulk(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Count the orders of the bulk lane until there are enough, or until stopped."""
    await create_bulk_lane(client.jetstream(timeout=10.0), replicas=options.replicas)
    options.opened = True
    count = BulkCount()
    await _until_stopped(count_bulk(client, count, until=options.until), stop)
    found = {**msgspec.structs.asdict(count.totals), "doubled": count.doubled, "rejected": count.rejected}
    return {"service": "bulk-reader", **found}


async def replay(client: Client, options: argparse.Namespace, stop: asyncio.Event) -> Report:
    """Tell what the event store holds that is no order; or, from a file, store the repaired ones, and end."""
    if options.file is None:
        letters = await _until_stopped(dead_letters(client, consumer=options.consumer), stop)
        options.done = letters is not None
        return {"service": "replay", "letters": msgspec.to_builtins(letters or [])}
    replayed = await _until_stopped(replay_letters(client, options.file.read_bytes()), stop)
    options.done, (stored, before) = replayed is not None, replayed or (0, 0)
    return {"service": "replay", "stored": stored, "before": before}


async def _until_stopped(service: Coroutine[Any, Any, T], stop: asyncio.Event, *, within: float = 0.0) -> T | None:
    """Return what a service returns, or nothing if it is stopped before: then it has ``within`` seconds to end itself.

    After that it is cancelled, and left alone where it waits for a server that does not answer.
    """
    serving, stopping = asyncio.create_task(service), asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait({serving}, timeout=within)
    await asyncio.wait({asyncio.ensure_future(cancel_and_join(serving, stopping))}, timeout=CANCEL_S)
    if not serving.done() or serving.cancelled():
        return None
    error = serving.exception()
    if stop.is_set() and error and (_is_transient(error) or isinstance(error, nats.errors.ConnectionClosedError)):
        return None  # it has to end without its servers; what it has not acknowledged is not done
    return serving.result()


def _is_transient(err: BaseException) -> bool:
    """Return whether it may succeed later: also a message that nobody took for long, as without a quorum."""
    return is_transient(ApiError(err.code, err.err_code) if isinstance(err, PublishRefusedError) else err)


def _found_again(err: Exception, client: Client) -> bool:
    """Return whether a service may find again what it lost; what it has not acknowledged comes again."""
    if isinstance(err, PublishRefusedError) and not client.is_connected:
        return True  # perhaps it was never sent, for which there is no code
    gone = isinstance(err, nats.js.errors.NotFoundError | StreamReplacedError)
    return client.is_closed or _is_transient(err) or gone


SERVICES = {"deploy": deploy, "publisher": publish, "worker": work, "read-model": read, "ledger": keep_ledger}
SERVICES |= {"bulk-publisher": publish_bulk, "bulk-reader": read_bulk, "replay": replay, **dict.fromkeys(DUTIES, work)}
LASTING = {"worker", "read-model", "ledger", "bulk-reader", *DUTIES}
"""Those that run until they are stopped, and may begin again; what places orders has placed some of them."""


async def _run(options: argparse.Namespace) -> Report:
    options.tracer = _tracer(options.service)
    try:
        ready, counts = lambda: options.opened and options.client.is_connected, partial(_counts, options)
        async with serve_health(options.health, ready, counts):
            return await _serve(options)
    finally:
        if options.tracer:
            options.tracer.close()


def _counts(options: argparse.Namespace) -> dict[str, int]:
    """Return what ``/metrics`` shows: of the connection, and of what a worker or a member of a group has done."""
    done = {what: number for what in ("processed", "rejected") if (number := getattr(options, what))}
    return {**(options.client.stats if options.client else {}), **(_worked(options) if options.workers else done)}


def _tracer(service: str) -> "OrderTracer | None":
    """Return what follows orders through this service, if OpenTelemetry's own variables say where to."""
    if not (setting := next((name for name in OTLP_VARIABLES if os.environ.get(name)), None)):
        return None
    try:
        from mesh_lab.orders.tracing import OrderTracer
    except ImportError as err:
        raise SettingsError(
            f"{setting} is set, and {err.name} is not installed: pip install 'mesh-lab[traces]'"
        ) from err
    return OrderTracer(service)


async def _serve(options: argparse.Namespace) -> Report:
    stop = asyncio.Event()
    on_stop_signal(stop.set)
    where = _where(options)
    while not stop.is_set():
        client = await _until_stopped(_connect(where, options), stop)
        if client is None:
            break
        options.client = client
        try:
            service = SERVICES[options.service](client, options, stop)
            report = await _until_stopped(service, stop, within=FINISH_S + 2 * CANCEL_S)
            return report or {"service": options.service}
        except Exception as err:
            if not (_found_again(err, client) and options.opened and options.service in LASTING):
                raise
            # nats-py 2.16 closes for good when a server says why it hangs up, as for a user that was removed.
            why = client.last_error if client.is_closed else None
            _log(options, f"lost its {'stream' if client.is_connected else 'connection'}: {why or err!r}; trying on")
        finally:
            await close(client)
    return {"service": options.service}


def _where(options: argparse.Namespace) -> ConnectOptions:
    """Return where to connect; what a person set is checked, and an error names what it was set by."""
    if packed := os.environ.pop(CONNECT_VARIABLE, None):  # from the mesh that started this
        where = cast(ConnectOptions, unpack(json.loads(packed)))
    else:
        by_hand = options.url is not None
        url = options.url if by_hand else os.environ.get("NATS_URL") or "nats://127.0.0.1:4222"
        where = options_from(url, setting="--url" if by_hand else "NATS_URL")
        if creds := options.creds or os.environ.get("NATS_CREDS"):
            CredentialsFile(creds, setting="--creds" if options.creds else "NATS_CREDS")
            where["user_credentials"] = creds
    where["name"] = options.name or options.service
    return where


async def _connect(where: ConnectOptions, options: argparse.Namespace) -> Client:
    """Return a client; one that had its servers before waits for them, others raise what :func:`connect` does."""
    while True:
        if options.opened:
            await asyncio.sleep(AGAIN_S)
        try:
            # The first address is dialled first; and ids were validated when the order was decoded.
            fixed = {"dont_randomize": True, "skip_subject_validation": True}
            client = await connect(where, log=partial(_log, options), **fixed)
        except (LoginRefusedError, CredentialsError, NotReadyError):
            if not options.opened:
                raise
        else:
            if options.opened:
                _log(options, "connected again")
            return client


def _log(options: argparse.Namespace, line: str) -> None:
    sys.stderr.write(f"{options.service}: {line}\n")
    sys.stderr.flush()


def _from_zero(text: str) -> int:
    """Return a whole number from 0, or let argparse say in a line that it is none."""
    try:
        if (number := int(text)) >= 0:
            return number
    except ValueError:
        pass  # also of more digits than Python reads
    raise argparse.ArgumentTypeError(f"{text[:20]!r}, expected a whole number from 0")


def main(arguments: list[str] | None = None) -> int:
    """Run the service that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mesh_lab.orders", description=__doc__)
    parser.add_argument("service", choices=SERVICES)
    urls = "servers, nearest first, separated by commas; or NATS_URL, which other users of the machine cannot see"
    parser.add_argument("--url", help=urls)
    parser.add_argument("--creds", help="credentials file, or NATS_CREDS")
    parser.add_argument("--name", default=os.environ.get("SERVICE_NAME"), help="name of the connection")
    parser.add_argument("--replicas", type=int, default=1, help="copies of the stream, if it has to be made")
    parser.add_argument(
        "--saga", action="store_true", help="deploy: for payment, stock and shipping instead of workers"
    )
    parser.add_argument("--first", type=_from_zero, help="publisher: place only so many orders")
    files = "publisher: a file in the format of the data set; replay: what it printed, repaired"
    parser.add_argument("--file", type=Path, help=files)
    one = "read-model, replay: name of its consumer, where its user may make that one alone"
    parser.add_argument("--consumer", help=one)
    parser.add_argument("--until", type=int, help="bulk-reader: end when so many orders are counted")
    parser.add_argument("--health", metavar="HOST:PORT", help="answer probes there, /livez and /readyz, and /metrics")
    # What a service notes on its way.
    parser.set_defaults(opened=False, done=False, client=None, processed=0, rejected=0, workers=[])
    options = parser.parse_args(arguments)
    try:
        report = run(_run(options))
    except (MeshLabError, nats.errors.Error, OSError) as err:
        sys.stderr.write(f"{options.service}: {err}\n")
        return 1
    sys.stdout.write(json.dumps(report) + "\n")
    if options.done or options.service in LASTING:
        return 0
    how_far = f"after {options.processed:,} orders" if options.processed else "before it was done"
    _log(options, f"stopped {how_far}; run it again")  # and 0 would tell Kubernetes that its job is complete
    return 1


if __name__ == "__main__":
    sys.exit(main())
