"""Run the ladder: every rung in child processes on a stream of its own, in rounds, each in an order of its own.

The rounds are what makes the rungs comparable. A machine grows warm, a neighbour begins to compile: what happens in
one minute happens to all rungs, and not to the one that was measured then. What is stored and what is received is
counted after each run, and a count that is off is an error and no figure.
"""

import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StorageType, StreamConfig

from mesh_lab.bench.cases import JOBS, BenchCase, Storage
from mesh_lab.bench.jobs import CONSUMER, STREAM
from mesh_lab.errors import WrongTotalsError
from mesh_lab.measure.load_children import run_children
from mesh_lab.measure.load_jobs import Report, Task
from mesh_lab.measure.measurement import Measurement
from mesh_lab.orders import bulk_lane
from mesh_lab.orders.dataset import EVERYTHING
from mesh_lab.orders.totals import Totals, check_totals
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.servers.mesh import Mesh

WITHIN_S = 120.0
# Three copies cost three servers' work on the same cores: a third of the messages takes about as long.
SHARE_OF_REPLICATED = 0.4


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """Where a rung runs."""

    replicas: int
    """Copies of the stream: 1 or 3."""
    storage: Storage

    def __str__(self) -> str:
        """Write it as people do: ``R3 file``."""
        return f"R{self.replicas} {self.storage}"


@dataclass(frozen=True, slots=True)
class Result:
    """All runs of a rung at a place."""

    rung: BenchCase
    place: StreamSetup
    measurement: Measurement
    stored: int
    """Messages in the stream after each run, as the server counts them."""


async def run_suite(
    meshes: dict[int, Mesh],
    rungs: Sequence[BenchCase],
    places: Sequence[StreamSetup],
    *,
    rounds: int,
    warmup: int = 1,
    payload_bytes: int = 128,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Result]:
    """Run every rung at every place ``rounds`` times.

    Args:
        meshes: A mesh for each number of replicas.
        rungs: What to run.
        places: Where to run it.
        rounds: Runs that count.
        warmup: Rounds before those, which do not count: servers that have just started are slower.
        payload_bytes: Size of a message; real orders have their own.
        seed: Chooses the order of the runs; ``None`` for any.
        progress: Called with the name of each run before it begins.

    Raises:
        ValueError: ``rounds`` is below 1, or ``warmup`` below 0.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        LoadFailedError: A child ended without a result.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds}, warmup={warmup}: expected rounds >= 1 and warmup >= 0")
    chance = random.Random(seed)
    runs = [(rung, place) for rung in rungs for place in places]
    elapsed: dict[tuple[str, StreamSetup], list[float]] = {(rung.name, place): [] for rung, place in runs}
    stored: dict[tuple[str, StreamSetup], int] = {}
    version = ""
    for turn in range(warmup + rounds):
        for rung, place in chance.sample(runs, len(runs)):
            if progress is not None:
                progress(f"{rung.name}, {place}")
            seconds, stored[rung.name, place], version = await run_once(
                meshes[place.replicas], rung, place, payload_bytes=payload_bytes
            )
            if turn >= warmup:
                elapsed[rung.name, place].append(seconds)
    return [
        Result(rung, place, _measurement(rung, place, elapsed[rung.name, place], payload_bytes, version),
               stored[rung.name, place])
        for rung, place in runs
    ]  # fmt: skip


async def run_once(
    mesh: Mesh, rung: BenchCase, place: StreamSetup, *, payload_bytes: int = 128
) -> tuple[float, int, str]:
    """Run one rung once and return its seconds, the number of messages that were stored, and the server's version.

    Raises:
        WrongTotalsError: A count was off.
        LoadFailedError: A child ended without a result.
    """
    async with await mesh.connect(name="bench") as client:
        js = client.jetstream(timeout=10.0)
        await _remove_streams(js)
        try:
            count = messages_of(rung, place)
            await _prepare(client, js, rung, place, count, payload_bytes)
            sent, got = await _run(mesh, rung, count, payload_bytes)
            stored = (await js.stream_info(bulk_lane.STREAM if rung.bulk else STREAM)).state.messages
            _check(rung, count, stored, got)
            if rung.ladder == "consume" and sent[0].received != count:
                raise WrongTotalsError(f"{rung.name}: {sent[0].received:,} messages received, expected {count:,}")
            ended = max(report.ended_ns for report in [*sent, *got])
            return (ended - sent[0].began_ns) / 1e9, stored, sent[0].server_version
        finally:
            await _remove_streams(js)


def messages_of(rung: BenchCase, place: StreamSetup) -> int:
    """Return how many messages, or orders, a rung has at a place; whole repeats of the real orders in the bulk lane."""
    if rung.bulk:
        return _repeats(rung, place) * EVERYTHING.orders
    if rung.ladder == "end to end":
        return rung.messages
    return int(rung.messages * (SHARE_OF_REPLICATED if place.replicas > 1 else 1))


def _repeats(rung: BenchCase, place: StreamSetup) -> int:
    return max(1, round(rung.messages / EVERYTHING.orders * (SHARE_OF_REPLICATED if place.replicas > 1 else 1)))


async def _prepare(
    client: Client, js: JetStreamContext, rung: BenchCase, place: StreamSetup, count: int, payload_bytes: int
) -> None:
    storage = StorageType.FILE if place.storage == "file" else StorageType.MEMORY
    if rung.bulk:
        await bulk_lane.create_bulk_lane(js, replicas=place.replicas, storage=storage)
        await wait_routable(client, bulk_lane.STREAM)
        return
    settings = {"allow_batched": True} if rung.ladder == "consume" else rung.stream
    await js.add_stream(
        StreamConfig(name=STREAM, subjects=["bench.*"], storage=storage, num_replicas=place.replicas, **settings)
    )
    await wait_routable(client, STREAM)
    if rung.ladder == "consume":
        await ingest(client, ((f"bench.{n}", bytes(payload_bytes)) for n in range(count)))
    if rung.ladder != "publish":
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=rung.ack, max_ack_pending=-1))
        await wait_routable(client, STREAM, CONSUMER)


async def _run(mesh: Mesh, rung: BenchCase, count: int, payload_bytes: int) -> tuple[list[Report], list[Report]]:
    options = {**mesh.connect_options(), **({} if rung.documented else {"skip_subject_validation": True})}
    tasks = [
        Task(
            job=f"{JOBS}:{job}",
            role=job.replace("_", " "),
            options=options,
            subject="",
            mark=secrets.token_bytes(4),
            first=count // EVERYTHING.orders,
            count=count,
            payload_bytes=payload_bytes,
            within=WITHIN_S,
            window=rung.window,
            queue=rung.compression,
            controls=[],
            plain_loop=rung.documented,
        )
        for job in rung.jobs
    ]
    return await run_children(tasks[:1], tasks[1:], within=WITHIN_S)


def _check(rung: BenchCase, count: int, stored: int, got: Iterable[Report]) -> None:
    if not rung.bulk and stored != count:
        raise WrongTotalsError(f"{rung.name}: the stream holds {stored:,} messages, expected {count:,}")
    for report in got:
        if report.received != count or report.duplicates:
            raise WrongTotalsError(
                f"{rung.name}: the worker counted {report.received:,} orders, {report.duplicates:,} of them twice, "
                f"expected {count:,}, each once"
            )
        repeats = count // EVERYTHING.orders
        if count == repeats * EVERYTHING.orders:
            check_totals(
                Totals(**report.totals),
                Totals(
                    EVERYTHING.orders * repeats, EVERYTHING.customers, EVERYTHING.cds * repeats,
                    EVERYTHING.cents * repeats,
                ),
            )  # fmt: skip


def _measurement(
    rung: BenchCase, place: StreamSetup, elapsed: list[float], payload_bytes: int, version: str
) -> Measurement:
    return Measurement(
        name=f"{rung.name}, {place}",
        kind=rung.kind,
        messages=messages_of(rung, place),
        elapsed_s=tuple(elapsed),
        payload_bytes=0 if rung.ladder == "end to end" else payload_bytes,
        server_version=version,
    )


async def _remove_streams(js: JetStreamContext) -> None:
    for name in (STREAM, bulk_lane.STREAM, bulk_lane.REJECTED_STREAM):
        try:
            await js.delete_stream(name)
        except nats.js.errors.NotFoundError:
            continue
