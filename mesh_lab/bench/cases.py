"""The cases of the benchmark: what is run, on which stream, how much of it, and what it is called."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from nats.js.api import AckPolicy

from mesh_lab.bench import jobs
from mesh_lab.measure.measurement import Kind

Ladder = Literal["publish", "consume", "end to end"]
Storage = Literal["memory", "file"]


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One way of doing it."""

    name: str
    """Its name in tables."""
    ladder: Ladder
    kind: Kind
    """What stops the clock."""
    jobs: tuple[Callable[..., jobs.BenchJob[Any]], ...]
    """The job that is timed, or publisher and worker."""
    messages: int
    """Messages on a file stream of one copy, about a second's worth; orders for ``end to end``."""
    window: int = 1
    """Messages outstanding, in a batch or prefetched; orders in a message of the bulk lane."""
    documented: bool = False
    """As the client's documentation shows it: asyncio's own loop, default options. The others use uvloop."""
    ack: AckPolicy = AckPolicy.EXPLICIT
    """How the consumer is acknowledged."""
    bulk: bool = False
    """Whether one message holds many orders."""
    stream: dict[str, Any] = field(default_factory=dict)
    """Further settings of the stream."""
    quick: bool = False
    """Whether ``--quick`` runs it."""


BATCHED = {"allow_batched": True}
PUBLISH = (
    BenchCase("js.publish, one at a time", "publish", "acknowledged", (jobs.OneByOne,), 3_000, documented=True,
         quick=True),
    BenchCase("js.publish_async", "publish", "acknowledged", (jobs.Async,), 60_000, documented=True, quick=True),
    BenchCase("js.publish_async, bounded wait", "publish", "acknowledged", (partial(jobs.Async, stall_limit_s=10.0),),
         20_000, documented=True),
    BenchCase("atomic batches of 500", "publish", "acknowledged", (jobs.Atomic,), 60_000, window=500,
         stream={"allow_atomic": True}),
    BenchCase("windowed publisher", "publish", "acknowledged", (jobs.Windowed,), 100_000, window=4_000, quick=True),
    BenchCase("fast ingest", "publish", "acknowledged", (jobs.FastIngest,), 200_000, stream=BATCHED, quick=True),
)  # fmt: skip
CONSUME = (
    BenchCase("fetch(500), an ack each", "consume", "processed", (jobs.FetchAndAckEach,), 40_000, documented=True,
         quick=True),
    BenchCase("continuous, an ack each", "consume", "processed", (jobs.Consume,), 120_000, window=5_000, quick=True),
    BenchCase("continuous, ack all", "consume", "processed", (partial(jobs.Consume, ack_all=True),), 200_000,
         window=10_000, ack=AckPolicy.ALL, quick=True),
    BenchCase("ordered reader, no ack", "consume", "processed", (jobs.ReadInOrder,), 200_000, window=10_000),
)  # fmt: skip
END_TO_END = (
    BenchCase("single lane, windowed, an ack each", "end to end", "processed", (jobs.Windowed, jobs.Work), 69_659,
         window=4_000, quick=True),
    BenchCase("single lane, fast ingest, ack all", "end to end", "processed",
         (jobs.FastIngest, partial(jobs.Work, ack_all=True)), 69_659, window=10_000, ack=AckPolicy.ALL, stream=BATCHED),
    BenchCase("bulk lane, 256 orders a message", "end to end", "processed", (jobs.BulkOrders, jobs.BulkWork),
         15 * 69_659, window=256, bulk=True, quick=True),
    BenchCase("bulk lane, 1,024 orders, zstd", "end to end", "processed",
         (partial(jobs.BulkOrders, compression="zstd"), jobs.BulkWork), 15 * 69_659, window=1_024, bulk=True),
)  # fmt: skip
CASES = (*PUBLISH, *CONSUME, *END_TO_END)
