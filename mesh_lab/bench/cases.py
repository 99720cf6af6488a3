"""The rungs of the ladder: what is run, on which stream, how much of it, and what it is called."""

from dataclasses import dataclass, field
from typing import Any, Literal

from nats.js.api import AckPolicy

from mesh_lab.measure.measurement import Kind

Ladder = Literal["publish", "consume", "end to end"]
Storage = Literal["memory", "file"]
JOBS = "mesh_lab.bench.jobs"


@dataclass(frozen=True, slots=True)
class BenchCase:
    """One way of doing it."""

    name: str
    """As people call it."""
    ladder: Ladder
    kind: Kind
    """What stops the clock."""
    jobs: tuple[str, ...]
    """Functions in :mod:`mesh_lab.bench.jobs`: the one that is timed, or publisher and worker."""
    messages: int
    """Messages on a file stream of one copy, about a second's worth; orders for ``end to end``."""
    window: int = 1
    """Messages outstanding or asked for ahead; orders in a batch for the bulk lane."""
    documented: bool = False
    """As the client's documentation shows it: asyncio's own loop, default options. The others use uvloop."""
    ack: AckPolicy = AckPolicy.EXPLICIT
    """How the consumer wants its acknowledgements."""
    bulk: bool = False
    """Whether one message holds many orders."""
    compression: str = ""
    """Of the bulk lane's messages."""
    stream: dict[str, Any] = field(default_factory=dict)
    """Further settings of the stream."""
    quick: bool = False
    """Whether ``--quick`` runs it."""


BATCHED = {"allow_batched": True}
PUBLISH = (
    BenchCase("js.publish, one at a time", "publish", "acknowledged", ("publish_one_by_one",), 3_000, documented=True,
         quick=True),
    BenchCase("js.publish_async", "publish", "acknowledged", ("publish_async",), 60_000, documented=True, quick=True),
    BenchCase("js.publish_async, bounded wait", "publish", "acknowledged", ("publish_async_bounded",), 20_000,
         documented=True),
    BenchCase("atomic batches of 500", "publish", "acknowledged", ("publish_atomically",), 60_000, window=500,
         stream={"allow_atomic": True}),
    BenchCase("windowed publisher", "publish", "acknowledged", ("publish_windowed",), 100_000, window=4_000,
         quick=True),
    BenchCase("fast ingest", "publish", "acknowledged", ("publish_fast",), 200_000, stream=BATCHED, quick=True),
)  # fmt: skip
CONSUME = (
    BenchCase("fetch(500), an ack each", "consume", "processed", ("fetch_and_ack_each",), 40_000, documented=True,
         quick=True),
    BenchCase("continuous, an ack each", "consume", "processed", ("consume_and_ack_each",), 120_000, window=5_000,
         quick=True),
    BenchCase("continuous, ack all", "consume", "processed", ("consume_and_ack_all",), 200_000, window=10_000,
         ack=AckPolicy.ALL, quick=True),
    BenchCase("ordered reader, no ack", "consume", "processed", ("read_all",), 200_000, window=10_000),
)  # fmt: skip
END_TO_END = (
    BenchCase("single lane, windowed, an ack each", "end to end", "processed", ("place_singly", "work_singly"), 69_659,
         window=4_000, quick=True),
    BenchCase("single lane, fast ingest, ack all", "end to end", "processed", ("place_fast", "work_singly_ack_all"),
         69_659, window=10_000, ack=AckPolicy.ALL, stream=BATCHED),
    BenchCase("bulk lane, 256 orders a message", "end to end", "processed", ("place_in_bulk", "count_in_bulk"),
         15 * 69_659, window=256, bulk=True, quick=True),
    BenchCase("bulk lane, 1,024 orders, zstd", "end to end", "processed", ("place_in_bulk", "count_in_bulk"),
         15 * 69_659, window=1_024, bulk=True, compression="zstd"),
)  # fmt: skip
CASES = (*PUBLISH, *CONSUME, *END_TO_END)
