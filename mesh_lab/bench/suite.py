"""The cases of the benchmark, each run in child processes on a stream of its own, in rounds whose order is random.

The rounds make the cases comparable: what happens to the machine in one minute happens to all of them. What is stored
and what is received is counted after each run, and a wrong count raises an error instead of giving a figure.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import msgspec
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from mesh_lab.bench import jobs
from mesh_lab.bench.jobs import CONSUMER, STREAM, BenchJob, Counted
from mesh_lab.errors import WrongTotalsError
from mesh_lab.measure.go_twin import GoTwin
from mesh_lab.measure.load import run_children
from mesh_lab.measure.load_jobs import Received, Result, Sent
from mesh_lab.measure.measurement import Kind, Measurement, Run
from mesh_lab.orders import bulk_lane
from mesh_lab.orders.dataset import EVERYTHING
from mesh_lab.orders.order import Totals, check_totals
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.servers.mesh import Mesh

WITHIN_S = 120.0
PAYLOAD_BYTES = 128
# Three copies cost three servers' work on the same cores: 40 % of the messages take about as long.
SHARE_OF_REPLICATED = 0.4


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One way of publishing, of consuming, or of both.

    Attributes:
        jobs: The job that is timed, or publisher and worker; none where Go does it.
        messages: Messages on a file stream of one copy, about a second's worth; orders for ``end to end``.
        window: Messages outstanding, in a batch or prefetched; orders in a message of the bulk lane.
        ack: How a consumer acknowledges; ``None`` for a reader that does not.
        documented: Whether it runs as nats-py's documentation shows it: asyncio's own loop, default options, no uvloop.
        bulk: Whether one message holds many orders.
        stream: Further settings of the stream.
        go: Command of the Go twin that does it.
    """

    name: str
    ladder: Literal["publish", "consume", "end to end"]
    jobs: tuple[Callable[..., BenchJob[Any]], ...]
    messages: int
    window: int = 1
    documented: bool = False
    ack: AckPolicy | None = AckPolicy.EXPLICIT
    bulk: bool = False
    stream: dict[str, Any] = field(default_factory=dict)
    quick: bool = False
    go: str = ""

    @property
    def task(self) -> tuple[object, ...]:
        """What Python's way and Go's must have in common to be compared."""
        return self.ladder, self.ack, self.bulk

    @property
    def kind(self) -> Kind:
        """What stops the clock."""
        return "acknowledged" if self.ladder == "publish" else "processed"


BATCHED = {"allow_batched": True}
PUBLISH = (
    BenchCase("js.publish, one at a time", "publish", (jobs.OneByOne,), 3_000, documented=True, quick=True),
    BenchCase("js.publish_async", "publish", (jobs.Async,), 60_000, documented=True, quick=True),
    BenchCase("js.publish_async, bounded wait", "publish", (partial(jobs.Async, stall_limit_s=10.0),), 20_000,
         documented=True),
    BenchCase("atomic batches of 500", "publish", (jobs.Atomic,), 60_000, window=500, stream={"allow_atomic": True}),
    BenchCase("windowed publisher", "publish", (jobs.Windowed,), 100_000, window=4_000, quick=True),
    BenchCase("fast ingest", "publish", (jobs.FastIngest,), 200_000, stream=BATCHED, quick=True),
)  # fmt: skip
CONSUME = (
    BenchCase("fetch(500), an ack each", "consume", (jobs.FetchAndAckEach,), 40_000, documented=True, quick=True),
    BenchCase("continuous, an ack each", "consume", (jobs.Consume,), 120_000, window=5_000, quick=True),
    BenchCase("continuous, ack all", "consume", (partial(jobs.Consume, ack_all=True),), 200_000, window=10_000,
         ack=AckPolicy.ALL, quick=True),
    BenchCase("ordered reader, no ack", "consume", (jobs.ReadInOrder,), 200_000, window=10_000, ack=None),
)  # fmt: skip
END_TO_END = (
    BenchCase("single lane, windowed, an ack each", "end to end", (jobs.Windowed, jobs.Work), 69_659, window=4_000,
         quick=True),
    BenchCase("single lane, fast ingest, an ack each", "end to end", (jobs.FastIngest, jobs.Work), 69_659, window=4_000,
         stream=BATCHED),
    BenchCase("single lane, fast ingest, ack all", "end to end", (jobs.FastIngest, partial(jobs.Work, ack_all=True)),
         69_659, window=10_000, ack=AckPolicy.ALL, stream=BATCHED),
    BenchCase("bulk lane, 256 orders a message", "end to end", (jobs.BulkOrders, jobs.BulkWork), 15 * 69_659,
         window=256, bulk=True, quick=True),
    BenchCase("bulk lane, 1,024 orders, zstd", "end to end",
         (partial(jobs.BulkOrders, compression="zstd"), jobs.BulkWork), 15 * 69_659, window=1_024, bulk=True),
)  # fmt: skip
CASES = (*PUBLISH, *CONSUME, *END_TO_END)
GO = (
    BenchCase("Go: async publish", "publish", (), 200_000, window=4_000, quick=True, go="publish"),
    BenchCase("Go: continuous, an ack each", "consume", (), 120_000, window=5_000, quick=True, go="consume"),
    BenchCase("Go: continuous, ack all", "consume", (), 200_000, window=10_000, ack=AckPolicy.ALL, quick=True,
         go="consume"),
    BenchCase("Go: single lane, an ack each", "end to end", (), 69_659, window=4_000, quick=True, go="end-to-end"),
    BenchCase("Go: single lane, ack all", "end to end", (), 69_659, window=10_000, ack=AckPolicy.ALL,
         go="end-to-end"),
    BenchCase("Go: bulk lane, 256 orders as JSON", "end to end", (), 5 * 69_659, window=256, bulk=True, quick=True,
         go="end-to-end"),
)  # fmt: skip
_GO_RESULTS: dict[str, type[Result]] = {"publish": Sent, "consume": Received, "end to end": Counted}


@dataclass(frozen=True, slots=True)
class StreamSetup:
    """The stream that a case runs on: copies (1 or 3), and where they are kept."""

    replicas: int
    storage: Literal["memory", "file"]

    def __str__(self) -> str:
        return f"R{self.replicas} {self.storage}"


@dataclass(frozen=True, slots=True)
class CaseResult:
    """All runs of a case on one kind of stream, which held ``stored`` messages after each."""

    case: BenchCase
    setup: StreamSetup
    measurement: Measurement
    stored: int


async def run_suite(
    meshes: dict[int, Mesh],
    cases: Sequence[BenchCase],
    setups: Sequence[StreamSetup],
    *,
    rounds: int,
    warmup: int = 1,
    seed: int | None = None,
    twin: GoTwin | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[CaseResult]:
    """Run every case on every kind of stream ``rounds`` times, in an order that the seed chooses.

    Args:
        meshes: A mesh for each number of replicas.
        cases: What to run.
        setups: On which streams.
        rounds: Runs that count.
        warmup: Rounds before those, which do not count: servers that have just started are slower.
        seed: ``None`` for any order.
        twin: For the cases of :data:`GO`.
        progress: Called with the name of each run before it begins.

    Raises:
        ValueError: ``rounds`` is below 1, or ``warmup`` below 0.
        WrongTotalsError: A stream did not hold, or a worker did not get, what was sent.
        ProcessEndedError: A child ended without a result.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds}, warmup={warmup}: expected rounds >= 1 and warmup >= 0")
    chance = random.Random(seed)
    runs = {f"{case.name}, {setup}": (case, setup) for case in cases for setup in setups}
    done: dict[str, list[Run]] = {name: [] for name in runs}
    stored: dict[str, int] = {}
    for turn in range(warmup + rounds):
        for name in chance.sample(list(runs), len(runs)):
            progress(name)
            case, setup = runs[name]
            run, stored[name] = await run_once(meshes[setup.replicas], case, setup, twin)
            if turn >= warmup:
                done[name].append(run)
    return [
        CaseResult(case, setup, Measurement.of(name, case.kind, done[name]), stored[name])
        for name, (case, setup) in runs.items()
    ]


async def run_once(mesh: Mesh, case: BenchCase, setup: StreamSetup, twin: GoTwin | None = None) -> tuple[Run, int]:
    """Run one case once, as :func:`run_suite`, and return the run and the number of messages in the stream."""
    async with await mesh.connect(name="bench") as client:
        js = client.jetstream(timeout=10.0)
        await _remove_streams(js)
        try:
            count = messages_of(case, setup)
            await _prepare(client, js, case, setup, count)
            results: Sequence[Result]
            if case.go and twin is not None:
                results = [await asyncio.to_thread(_run_go, twin, mesh, case, count)]
            else:
                children = _jobs(mesh, case, count)
                [first], workers = await run_children(children[:1], children[1:], within=WITHIN_S)
                results = (first, *workers)
            stored = (await js.stream_info(bulk_lane.STREAM if case.bulk else STREAM)).state.messages
            if not case.bulk and stored != count:
                message = f"{case.name}: the stream holds {stored:,} messages, expected {count:,}"
                raise WrongTotalsError(message, differences={"messages": stored - count})
            for result in results:
                check_counts(case, count, result)
            elapsed_s = (max(result.ended_ns for result in results) - results[0].began_ns) / 1e9
            size = 0 if case.ladder == "end to end" else PAYLOAD_BYTES
            return Run(count, elapsed_s, payload_bytes=size, server_version=results[0].server_version), stored
        finally:
            await _remove_streams(js)


def messages_of(case: BenchCase, setup: StreamSetup) -> int:
    """Return how many messages, or orders, a case has on a stream; in the bulk lane, whole repeats of the data set."""
    share = SHARE_OF_REPLICATED if setup.replicas > 1 else 1
    if case.bulk:
        return max(1, round(case.messages / EVERYTHING.orders * share)) * EVERYTHING.orders
    return case.messages if case.ladder == "end to end" else int(case.messages * share)


async def _prepare(client: Client, js: JetStreamContext, case: BenchCase, setup: StreamSetup, count: int) -> None:
    replicas, storage = setup.replicas, StorageType(setup.storage)
    if case.bulk:
        await bulk_lane.create_bulk_lane(js, replicas=replicas, storage=storage)
        await wait_routable(client, bulk_lane.STREAM)
        return
    more = BATCHED if case.ladder == "consume" else case.stream
    await js.add_stream(StreamConfig(STREAM, subjects=["bench.*"], storage=storage, num_replicas=replicas, **more))
    await wait_routable(client, STREAM)
    if case.ladder == "consume":
        await ingest(client, ((f"bench.{n}", bytes(PAYLOAD_BYTES)) for n in range(count)))
    if case.ladder != "publish" and case.ack is not None:
        await js.add_consumer(STREAM, ConsumerConfig(durable_name=CONSUMER, ack_policy=case.ack, max_ack_pending=-1))
        await wait_routable(client, STREAM, CONSUMER)


def _jobs(mesh: Mesh, case: BenchCase, count: int) -> list[BenchJob[Any]]:
    options = mesh.connect_options() | ({} if case.documented else {"skip_subject_validation": True})
    common = {"options": options, "within": WITHIN_S, "plain_loop": case.documented}
    common |= {"count": count, "window": case.window}
    if case.ladder == "publish":
        common["payload_bytes"] = PAYLOAD_BYTES
    return [job(role=f"{case.name} {part}", **common) for part, job in enumerate(case.jobs, 1)]


def _run_go(twin: GoTwin, mesh: Mesh, case: BenchCase, count: int) -> Result:
    flags = [f"-count={count}", f"-window={bulk_lane.WINDOW if case.bulk else case.window}"]
    flags += [f"-batch={case.window}"] if case.bulk else []
    flags += ["-ack-all"] if case.ack == AckPolicy.ALL else []
    where = mesh.connect_options()
    return twin.run(case.go, *flags, options=where, owner=mesh.owner, result=_GO_RESULTS[case.ladder])


def check_counts(case: BenchCase, count: int, result: Result) -> None:
    """Raise :class:`WrongTotalsError` when a child did not get what it should."""
    if isinstance(result, Received) and result.received != count:
        message = f"{case.name}: {result.received:,} messages received, expected {count:,}"
        raise WrongTotalsError(message, differences={"messages": result.received - count})
    if isinstance(result, Counted):
        received, doubled = result.totals.orders + result.doubled, result.doubled
        if received != count or doubled:
            seen = f"{received:,} orders, {doubled:,} of them twice"
            message = f"{case.name}: the worker counted {seen}, expected {count:,}, each once"
            raise WrongTotalsError(message, differences={"orders": received - count, "orders counted twice": doubled})
        repeats = count // EVERYTHING.orders
        if count == repeats * EVERYTHING.orders:
            orders, customers, cds, cents = msgspec.structs.astuple(EVERYTHING)
            check_totals(result.totals, Totals(orders * repeats, customers, cds * repeats, cents * repeats))


async def _remove_streams(js: JetStreamContext) -> None:
    for name in (STREAM, bulk_lane.STREAM, bulk_lane.REJECTED_STREAM):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await js.delete_stream(name)
