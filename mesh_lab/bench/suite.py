"""Run the cases: each in child processes on a stream of its own, in rounds, each round in an order of its own.

The rounds are what makes the cases comparable. A machine grows warm, a neighbour begins to compile: what happens in
one minute happens to all cases, and not to the one that was measured then. What is stored and what is received is
counted after each run, and a count that is off is an error and no figure.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StorageType, StreamConfig

from mesh_lab.bench.cases import BenchCase, Storage
from mesh_lab.bench.jobs import CONSUMER, STREAM, BenchJob, Consumed, Counted
from mesh_lab.errors import WrongTotalsError
from mesh_lab.measure.load import run_children
from mesh_lab.measure.load_jobs import Result
from mesh_lab.measure.measurement import Measurement, Run
from mesh_lab.orders import bulk_lane
from mesh_lab.orders.dataset import EVERYTHING
from mesh_lab.orders.totals import Totals, check_totals
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.servers.mesh import Mesh

WITHIN_S = 120.0
PAYLOAD_BYTES = 128
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
class CaseResult:
    """All runs of a case at a place."""

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
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[CaseResult]:
    """Run every rung at every place ``rounds`` times.

    Args:
        meshes: A mesh for each number of replicas.
        rungs: What to run.
        places: Where to run it.
        rounds: Runs that count.
        warmup: Rounds before those, which do not count: servers that have just started are slower.
        seed: Chooses the order of the runs; ``None`` for any.
        progress: Called with the name of each run before it begins.

    Raises:
        ValueError: ``rounds`` is below 1, or ``warmup`` below 0.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        ProcessEndedError: A child ended without a result.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds}, warmup={warmup}: expected rounds >= 1 and warmup >= 0")
    chance = random.Random(seed)
    runs = [(rung, place) for rung in rungs for place in places]
    done: dict[tuple[str, StreamSetup], list[Run]] = {(rung.name, place): [] for rung, place in runs}
    stored: dict[tuple[str, StreamSetup], int] = {}
    for turn in range(warmup + rounds):
        for rung, place in chance.sample(runs, len(runs)):
            if progress is not None:
                progress(f"{rung.name}, {place}")
            run, stored[rung.name, place] = await run_once(meshes[place.replicas], rung, place)
            if turn >= warmup:
                done[rung.name, place].append(run)
    return [
        CaseResult(
            rung,
            place,
            Measurement.of(f"{rung.name}, {place}", rung.kind, done[rung.name, place]),
            stored[rung.name, place],
        )
        for rung, place in runs
    ]


async def run_once(mesh: Mesh, rung: BenchCase, place: StreamSetup) -> tuple[Run, int]:
    """Run one case once and return the run, and the number of messages that the server counts in the stream.

    Raises:
        WrongTotalsError: A count was off.
        ProcessEndedError: A child ended without a result.
    """
    async with await mesh.connect(name="bench") as client:
        js = client.jetstream(timeout=10.0)
        await _remove_streams(js)
        try:
            count = messages_of(rung, place)
            await _prepare(client, js, rung, place, count)
            jobs = _jobs(mesh, rung, count)
            [first], workers = await run_children(jobs[:1], jobs[1:], within=WITHIN_S)
            stored = (await js.stream_info(bulk_lane.STREAM if rung.bulk else STREAM)).state.messages
            if not rung.bulk and stored != count:
                raise WrongTotalsError(f"{rung.name}: the stream holds {stored:,} messages, expected {count:,}")
            for result in (first, *workers):
                check_counts(rung, count, result)
            ended_ns = max(result.ended_ns for result in (first, *workers))
            elapsed_s, size = (ended_ns - first.began_ns) / 1e9, 0 if rung.ladder == "end to end" else PAYLOAD_BYTES
            return Run(count, elapsed_s, payload_bytes=size, server_version=first.server_version), stored
        finally:
            await _remove_streams(js)


def messages_of(rung: BenchCase, place: StreamSetup) -> int:
    """Return how many messages, or orders, a case has at a place; whole repeats of the real orders in the bulk lane."""
    share = SHARE_OF_REPLICATED if place.replicas > 1 else 1
    if rung.bulk:
        return max(1, round(rung.messages / EVERYTHING.orders * share)) * EVERYTHING.orders
    return rung.messages if rung.ladder == "end to end" else int(rung.messages * share)


async def _prepare(client: Client, js: JetStreamContext, rung: BenchCase, place: StreamSetup, count: int) -> None:
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
        await ingest(client, ((f"bench.{n}", bytes(PAYLOAD_BYTES)) for n in range(count)))
    if rung.ladder != "publish":
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=rung.ack, max_ack_pending=-1))
        await wait_routable(client, STREAM, CONSUMER)


def _jobs(mesh: Mesh, rung: BenchCase, count: int) -> list[BenchJob[Any]]:
    options = {**mesh.connect_options(), **({} if rung.documented else {"skip_subject_validation": True})}
    common = {
        "options": options,
        "within": WITHIN_S,
        "plain_loop": rung.documented,
        "count": count,
        "window": rung.window,
    }
    if rung.ladder == "publish":
        common["payload_bytes"] = PAYLOAD_BYTES
    return [job(role=f"{rung.name} {part}", **common) for part, job in enumerate(rung.jobs, 1)]


def check_counts(rung: BenchCase, count: int, result: Result) -> None:
    """Return when a child got what it should.

    Raises:
        WrongTotalsError: It did not.
    """
    if isinstance(result, Consumed) and result.received != count:
        raise WrongTotalsError(f"{rung.name}: {result.received:,} messages received, expected {count:,}")
    if isinstance(result, Counted):
        received = result.totals.orders + result.doubled
        if received != count or result.doubled:
            raise WrongTotalsError(
                f"{rung.name}: the worker counted {received:,} orders, {result.doubled:,} of them twice, "
                f"expected {count:,}, each once"
            )
        repeats = count // EVERYTHING.orders
        if count == repeats * EVERYTHING.orders:
            orders, customers, cds, cents = msgspec.structs.astuple(EVERYTHING)
            check_totals(result.totals, Totals(orders * repeats, customers, cds * repeats, cents * repeats))


async def _remove_streams(js: JetStreamContext) -> None:
    for name in (STREAM, bulk_lane.STREAM, bulk_lane.REJECTED_STREAM):
        try:
            await js.delete_stream(name)
        except nats.js.errors.NotFoundError:
            continue
