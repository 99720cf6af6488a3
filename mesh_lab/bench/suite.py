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
    """The stream that a case runs on."""

    replicas: int
    """Copies of the stream: 1 or 3."""
    storage: Storage

    def __str__(self) -> str:
        """Return it in short: ``R3 file``."""
        return f"R{self.replicas} {self.storage}"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """All runs of a case on one kind of stream."""

    case: BenchCase
    setup: StreamSetup
    measurement: Measurement
    stored: int
    """Messages in the stream after each run, as the server counts them."""


async def run_suite(
    meshes: dict[int, Mesh],
    cases: Sequence[BenchCase],
    setups: Sequence[StreamSetup],
    *,
    rounds: int,
    warmup: int = 1,
    seed: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[CaseResult]:
    """Run every case on every kind of stream ``rounds`` times.

    Args:
        meshes: A mesh for each number of replicas.
        cases: What to run.
        setups: On which streams.
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
    runs = [(case, setup) for case in cases for setup in setups]
    done: dict[tuple[str, StreamSetup], list[Run]] = {(case.name, setup): [] for case, setup in runs}
    stored: dict[tuple[str, StreamSetup], int] = {}
    for turn in range(warmup + rounds):
        for case, setup in chance.sample(runs, len(runs)):
            if progress is not None:
                progress(f"{case.name}, {setup}")
            run, stored[case.name, setup] = await run_once(meshes[setup.replicas], case, setup)
            if turn >= warmup:
                done[case.name, setup].append(run)
    return [
        CaseResult(
            case,
            setup,
            Measurement.of(f"{case.name}, {setup}", case.kind, done[case.name, setup]),
            stored[case.name, setup],
        )
        for case, setup in runs
    ]


async def run_once(mesh: Mesh, case: BenchCase, setup: StreamSetup) -> tuple[Run, int]:
    """Run one case once and return the run, and the number of messages that the server counts in the stream.

    Raises:
        WrongTotalsError: A count was off.
        ProcessEndedError: A child ended without a result.
    """
    async with await mesh.connect(name="bench") as client:
        js = client.jetstream(timeout=10.0)
        await _remove_streams(js)
        try:
            count = messages_of(case, setup)
            await _prepare(client, js, case, setup, count)
            jobs = _jobs(mesh, case, count)
            [first], workers = await run_children(jobs[:1], jobs[1:], within=WITHIN_S)
            stored = (await js.stream_info(bulk_lane.STREAM if case.bulk else STREAM)).state.messages
            if not case.bulk and stored != count:
                raise WrongTotalsError(
                    f"{case.name}: the stream holds {stored:,} messages, expected {count:,}",
                    differences={"messages": stored - count},
                )
            for result in (first, *workers):
                check_counts(case, count, result)
            ended_ns = max(result.ended_ns for result in (first, *workers))
            elapsed_s, size = (ended_ns - first.began_ns) / 1e9, 0 if case.ladder == "end to end" else PAYLOAD_BYTES
            return Run(count, elapsed_s, payload_bytes=size, server_version=first.server_version), stored
        finally:
            await _remove_streams(js)


def messages_of(case: BenchCase, setup: StreamSetup) -> int:
    """Return how many messages, or orders, a case has on a stream; in the bulk lane, whole repeats of the data set."""
    share = SHARE_OF_REPLICATED if setup.replicas > 1 else 1
    if case.bulk:
        return max(1, round(case.messages / EVERYTHING.orders * share)) * EVERYTHING.orders
    return case.messages if case.ladder == "end to end" else int(case.messages * share)


async def _prepare(client: Client, js: JetStreamContext, case: BenchCase, setup: StreamSetup, count: int) -> None:
    storage = StorageType.FILE if setup.storage == "file" else StorageType.MEMORY
    if case.bulk:
        await bulk_lane.create_bulk_lane(js, replicas=setup.replicas, storage=storage)
        await wait_routable(client, bulk_lane.STREAM)
        return
    settings = {"allow_batched": True} if case.ladder == "consume" else case.stream
    await js.add_stream(
        StreamConfig(name=STREAM, subjects=["bench.*"], storage=storage, num_replicas=setup.replicas, **settings)
    )
    await wait_routable(client, STREAM)
    if case.ladder == "consume":
        await ingest(client, ((f"bench.{n}", bytes(PAYLOAD_BYTES)) for n in range(count)))
    if case.ladder != "publish":
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=case.ack, max_ack_pending=-1))
        await wait_routable(client, STREAM, CONSUMER)


def _jobs(mesh: Mesh, case: BenchCase, count: int) -> list[BenchJob[Any]]:
    options = {**mesh.connect_options(), **({} if case.documented else {"skip_subject_validation": True})}
    common = {
        "options": options,
        "within": WITHIN_S,
        "plain_loop": case.documented,
        "count": count,
        "window": case.window,
    }
    if case.ladder == "publish":
        common["payload_bytes"] = PAYLOAD_BYTES
    return [job(role=f"{case.name} {part}", **common) for part, job in enumerate(case.jobs, 1)]


def check_counts(case: BenchCase, count: int, result: Result) -> None:
    """Return when a child got what it should.

    Raises:
        WrongTotalsError: It did not.
    """
    if isinstance(result, Consumed) and result.received != count:
        raise WrongTotalsError(
            f"{case.name}: {result.received:,} messages received, expected {count:,}",
            differences={"messages": result.received - count},
        )
    if isinstance(result, Counted):
        received = result.totals.orders + result.doubled
        if received != count or result.doubled:
            raise WrongTotalsError(
                f"{case.name}: the worker counted {received:,} orders, {result.doubled:,} of them twice, "
                f"expected {count:,}, each once",
                differences={"orders": received - count, "orders counted twice": result.doubled},
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
