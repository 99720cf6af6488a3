"""How rates change with workers, partitions, streams and payload; and what more servers cost to start, hold and watch.

Publishers and workers are child processes on three servers of their own; where they and the servers have no core left,
one more of anything adds nothing.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

import msgspec
from nats.js.api import AckPolicy, ConsumerConfig

from mesh_lab.bench.jobs import STREAM, Share
from mesh_lab.bench.suite import PAYLOAD_BYTES, WITHIN_S
from mesh_lab.errors import WrongTotalsError
from mesh_lab.measure.load import numbered_shares, run_children
from mesh_lab.measure.load_jobs import PublishAcknowledged, Result
from mesh_lab.observe.snapshots import snapshot
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

Axis = Literal["workers", "partitions", "streams", "payload bytes", "servers"]
REPLICAS, MESSAGES, WINDOW = 3, 20_000, 1_000
SIZES: dict[Axis, tuple[int, ...]] = {
    "workers": (1, 2, 4),
    "partitions": (1, 2, 4),
    "streams": (1, 2, 4),
    "payload bytes": (16, 128, 1_024, 8_192),
    "servers": (1, 3, 6, 9, 12),
}
MOST_BYTES = 32 << 20  # of all payloads of a run
TOKENS = max(SIZES["partitions"])
RATE = "messages a second"


class ScalePoint(msgspec.Struct, frozen=True):
    """What was measured at one size.

    Attributes:
        axis: What grows: ``workers`` that share a consumer, ``partitions`` with a consumer and a worker each,
            ``streams`` with a publisher each, ``payload bytes`` of a publisher's messages, ``servers`` in regions of
            three.
        size: How many or how large.
        what: ``messages a second``, acknowledged by all workers or to all publishers; or of servers ``seconds to
            ready``, ``MiB of memory`` and ``seconds for a look at all of them``, as the live map takes one.
        runs: The figure of each run.
        median: The one in the middle.
    """

    axis: Axis
    size: int
    what: str
    runs: list[float]
    median: float


async def run_scale(
    *,
    rounds: int = 3,
    sizes: Mapping[Axis, Collection[int]] = SIZES,
    progress: Callable[[str], object] = lambda _: None,
) -> list[ScalePoint]:
    """Measure at each size of some axes, ``rounds`` times and in a random order, on servers of its own.

    Args:
        rounds: Runs of each.
        sizes: What to measure; partitions are 1, 2 or 4, and servers 1 or a multiple of 3.
        progress: Called with the name of each run before it begins.

    Raises:
        WrongTotalsError: Workers did not get what the stream holds, or it does not hold what was sent.
        ProcessEndedError: A child ended without a result.
    """
    found: dict[tuple[Axis, int, str], list[float]] = {
        (axis, size, RATE): [] for axis in sizes if axis != "servers" for size in sizes[axis]
    }
    if found:
        async with await start_mesh(servers=REPLICAS, backend="local") as mesh:
            await _store(mesh)
            for _ in range(rounds):
                for axis, size, what in random.sample(list(found), len(found)):
                    progress(f"{axis}: {size:,}")
                    measure = _consume if axis in ("workers", "partitions") else _publish
                    found[axis, size, what].append(await measure(mesh, axis, size))
    for size in sizes.get("servers", ()):
        for _ in range(rounds):
            progress(f"servers: {size}")
            for what, figure in (await _servers(size)).items():
                found.setdefault(("servers", size, what), []).append(figure)
    return [ScalePoint(*key, runs, statistics.median(runs)) for key, runs in found.items()]


async def _store(mesh: Mesh) -> None:
    """Store what workers consume, under as many first tokens as there are partitions at most."""
    async with await mesh.connect() as client:
        js = client.jetstream(timeout=10.0)
        await js.add_stream(name=STREAM, subjects=["bench.*.*"], num_replicas=REPLICAS, allow_batched=True)
        await wait_routable(client, STREAM)
        await ingest(client, ((f"bench.{n % TOKENS}.{n}", bytes(PAYLOAD_BYTES)) for n in range(MESSAGES)))


async def _consume(mesh: Mesh, axis: Axis, size: int) -> float:
    """Return how many messages a second workers acknowledge: one consumer for all, or one for each partition."""
    groups = 1 if axis == "workers" else size
    names = [f"group-{group}" for group in range(groups)]
    async with await mesh.connect() as client:
        js = client.jetstream(timeout=10.0)
        for group, name in enumerate(names):
            subjects = [f"bench.{token}.*" for token in range(TOKENS) if token % groups == group]
            config = ConsumerConfig(
                durable_name=name, filter_subjects=subjects, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=-1
            )
            await js.add_consumer(STREAM, config)
            await wait_routable(client, STREAM, name)
        share = partial(Share, options=_options(mesh), within=WITHIN_S, count=MESSAGES, window=WINDOW)
        jobs = [share(role=f"worker {n}", consumer=names[n % groups]) for n in range(size)]
        results, _ = await run_children(jobs, within=WITHIN_S)
        for name in names:
            await js.delete_consumer(STREAM, name)
    _check(f"{size} {axis}", sum(result.received for result in results), MESSAGES)
    return MESSAGES / _elapsed_s(results)


async def _publish(mesh: Mesh, axis: Axis, size: int) -> float:
    """Return how many messages a second are acknowledged to a publisher for each stream."""
    streams, payload_bytes = (size, PAYLOAD_BYTES) if axis == "streams" else (1, size)
    count = min(MESSAGES, MOST_BYTES // payload_bytes) // streams
    names = [f"scale-{n}" for n in range(streams)]
    async with await mesh.connect() as client:
        js, jobs = client.jetstream(timeout=10.0), []
        for name in names:
            await js.add_stream(name=name, subjects=[f"{name}.*"], num_replicas=REPLICAS)
            await wait_routable(client, name)
            [share] = numbered_shares(_options(mesh), f"{name}.{{n}}", count, payload_bytes, 1, WITHIN_S)
            jobs.append(PublishAcknowledged(window=WINDOW, **share))
        results, _ = await run_children(jobs, within=WITHIN_S)
        stored = sum([(await js.stream_info(name)).state.messages for name in names])
        for name in names:
            await js.delete_stream(name)
    _check(f"{size} {axis}", stored, count * streams)
    return stored / _elapsed_s(results)


async def _servers(size: int) -> dict[str, float]:
    began = time.perf_counter()
    regions = {f"region-{n}": 3 for n in range(1, size // 3 + 1)} if size > REPLICAS else None
    mesh = await start_mesh(servers=1 if regions else size, regions=regions, backend="local", links=False, within=60.0)
    async with mesh:
        ready_s = time.perf_counter() - began
        monitors = {name: server.monitor for name, server in mesh.servers.items() if server.monitor}
        memory = sum([(await asyncio.to_thread(monitor.varz))["mem"] for monitor in monitors.values()])
        began = time.perf_counter()
        seen = await asyncio.to_thread(snapshot, monitors)
        look_s = time.perf_counter() - began
    _check(f"{size} servers", len(seen), size)
    return {"seconds to ready": ready_s, "MiB of memory": memory / 2**20, "seconds for a look at all of them": look_s}


def _options(mesh: Mesh) -> dict[str, Any]:
    return mesh.connect_options() | {"skip_subject_validation": True}


def _elapsed_s(results: Collection[Result]) -> float:
    return (max(result.ended_ns for result in results) - min(result.began_ns for result in results)) / 1e9


def _check(name: str, seen: int, expected: int) -> None:
    if seen != expected:
        raise WrongTotalsError(f"{name}: {seen:,}, expected {expected:,}", differences={name: seen - expected})
