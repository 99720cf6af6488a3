"""Put load on a mesh from child processes, and say how it went.

A notebook's kernel that publishes and counts at the same time measures itself: its one event loop has both to
do, and the display besides. Here every publisher and every subscriber is a process of its own under uvloop.
The clocks are in the children; the parent only waits.
"""

import asyncio
import secrets
import sys
import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_
from typing import Any, TypeVar, get_type_hints

import msgspec

from mesh_lab.errors import ProcessEndedError
from mesh_lab.measure.load_jobs import (
    HEADER,
    Job,
    Publish,
    PublishAcknowledged,
    Receive,
    Received,
    Result,
    Sent,
)
from mesh_lab.measure.measurement import Run
from mesh_lab.processes import ChildProcess
from mesh_lab.tls import pack

WORKER = "mesh_lab.measure.load_worker"
GRACE_S = 5.0
S = TypeVar("S", bound=Result)
R = TypeVar("R", bound=Result)

SUBJECT = "orders.eu.{n}.placed"


async def publish_load(
    options: Mapping[str, Any],
    *,
    subject: str = SUBJECT,
    messages: int = 100_000,
    payload_bytes: int = 128,
    publishers: int = 1,
    acknowledged: bool = False,
    window: int = 1,
    within: float = 60.0,
) -> Run:
    """Publish as fast as it goes, and return how long it took until the server had, or had stored, everything.

    Without ``acknowledged`` the clock stops at the PONG that follows the last message: until then, some of the
    messages are only in the client's buffer. With it, it stops at the last message's acknowledgement.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; a token ``{n}`` becomes the message's number, for a subject to each order.
        messages: Messages in all, shared out among the publishers. Below 10,000 on core NATS the run is over in
            some 30 ms, and what is measured is chance.
        payload_bytes: Size of each payload, 8 (its number) or more; the rest is zeros, which compress well.
        publishers: Processes that publish.
        acknowledged: Publish to JetStream; a stream must listen to the subject.
        window: Messages that a publisher may have outstanding; 1 waits for each acknowledgement.
        within: Seconds until all must be done, the children's start included.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        ProcessEndedError: A child ended without a result; the message carries its traceback.
    """
    if window > 1 and not acknowledged:
        raise ValueError(f"window={window:,} without acknowledged=True: core NATS has nothing to wait for")
    if window < 1:
        raise ValueError(f"window={window}, expected 1 or more")
    shares = numbered_shares(options, subject, messages, payload_bytes, publishers, within)
    # The windowed publisher sends again what a broken connection cost.
    stored: dict[str, Any] = {"window": window, "survives_reconnect": window > 1}
    jobs: list[Job[Sent]] = [
        PublishAcknowledged(**share, **stored) if acknowledged else Publish(**share) for share in shares
    ]
    sent, _ = await run_children(jobs, within=within)
    return Run(
        messages=messages,
        elapsed_s=_span(sent, max(result.ended_ns for result in sent)),
        duplicates=sum(result.duplicates for result in sent),
        payload_bytes=payload_bytes,
        server_version=sent[0].server_version,
    )


async def deliver_load(
    options: Mapping[str, Any],
    *,
    subject: str = SUBJECT,
    messages: int = 100_000,
    payload_bytes: int = 128,
    publishers: int = 1,
    subscribers: int = 1,
    queue: str | None = None,
    subscriber_options: Mapping[str, Any] | None = None,
    within: float = 60.0,
) -> Run:
    """Publish to core NATS and subscribe, and return the time from the first publish to the last receive.

    Every message carries its number, so that what is lost or comes twice is counted, not guessed. The run's
    ``messages`` are the deliveries that were due: each message once for a queue group, and once for every
    subscriber without one.

    The publishers are faster than one subscriber. The server keeps what the subscriber has not read yet, slows
    publishers down a little when that is much, and cuts the subscriber off when it is more than ``max_pending``
    (64 MiB). That is how a run loses messages.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; subscribers put ``*`` in the place of a token ``{n}``.
        messages: Messages in all, shared out among the publishers.
        payload_bytes: Size of each payload, 8 (its number) or more.
        publishers: Processes that publish.
        subscribers: Processes that subscribe.
        queue: Name of their queue group; ``None`` gives every message to every subscriber.
        subscriber_options: Where the subscribers connect, if elsewhere than the publishers.
        within: Seconds until all must be done, the children's start included.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        ProcessEndedError: A child ended without a result; the message carries its traceback.
    """
    if subscribers < 1:
        raise ValueError(f"subscribers={subscribers}, expected 1 or more")
    run = secrets.token_hex(8)
    controls = [f"_INBOX.load.{run}.{i}" for i in range(subscribers)]
    shares = numbered_shares(options, subject, messages, payload_bytes, publishers, within)
    receiving = [
        Receive(
            role=f"subscriber {i}",
            options=portable(options if subscriber_options is None else subscriber_options),
            within=within,
            subject=subject,
            mark=shares[0]["mark"],
            count=messages,
            control=control,
            publishers=publishers,
            queue=queue or "",
        )
        for i, control in enumerate(controls, start=1)
    ]
    sent, got = await run_children([Publish(**share, controls=controls) for share in shares], receiving, within=within)
    due, lost, duplicates = count_faults(got, messages=messages, shared=queue is not None)
    # Where nothing came there is no last receive; the time that the publishers took stands in for it.
    last_ns = max(result.ended_ns for result in got) or max(result.ended_ns for result in sent)
    return Run(
        messages=due,
        elapsed_s=_span(sent, last_ns),
        lost=lost,
        duplicates=duplicates,
        payload_bytes=payload_bytes,
        server_version=sent[0].server_version,
    )


def count_faults(results: Sequence[Received], *, messages: int, shared: bool) -> tuple[int, int, int]:
    """Return how many deliveries were due, how many were lost, and how many came a further time.

    Args:
        results: One for each subscriber.
        messages: Different messages that were published.
        shared: Whether the subscribers are one queue group, in which each message is due once.
    """
    # One byte to a message, 1 if it came: as numbers, their union is an "or" and their size a count of bits.
    seen = [int.from_bytes(zlib.decompress(result.seen), "little") for result in results]
    groups = [reduce(or_, seen)] if shared else seen
    due = messages * len(groups)
    different = sum(group.bit_count() for group in groups)
    return due, due - different, sum(result.received for result in results) - different


async def run_children(
    publishers: Sequence[Job[S]], subscribers: Sequence[Job[R]] = (), *, within: float
) -> tuple[list[S], list[R]]:
    """Run a load: every child ready, publishers off together, then the signal to subscribers that all was sent.

    Args:
        publishers: Jobs that begin when every child is ready.
        subscribers: Jobs that run until the publishers are done and nothing more arrives.
        within: Seconds until the children must be done; 5 s later they are killed.

    Returns:
        The results of the publishers and those of the subscribers, in the jobs' order.

    Raises:
        ProcessEndedError: A child ended without a result, or was not done in time.
    """
    jobs = [*subscribers, *publishers]
    children = [
        ChildProcess(
            [sys.executable, "-m", WORKER, f"{type(job).__module__}:{type(job).__qualname__}"],
            name=f"load child {job.role!r}",
            stdin=True,
            stdout=True,
        )
        for job in jobs
    ]
    receiving, sending = children[: len(subscribers)], children[len(subscribers) :]
    loop = asyncio.get_running_loop()
    # Threads of its own: the loop's default ones are few, and a child that is slow would hold up all others.
    threads = ThreadPoolExecutor(len(jobs), thread_name_prefix="load")
    stopping = threading.Event()

    def start() -> None:
        for child, job in zip(children, jobs, strict=True):
            if not stopping.is_set():
                child.start().send(msgspec.json.encode(job))

    async def receive(some: Sequence[ChildProcess]) -> list[bytes]:
        return await asyncio.gather(*(loop.run_in_executor(threads, child.receive) for child in some))

    async def lead() -> list[bytes]:
        for child in sending:
            child.send()
        lines = await receive(sending)
        for child in receiving:
            child.send()
        return lines

    try:
        async with asyncio.timeout(within + GRACE_S):
            await loop.run_in_executor(threads, start)
            await receive(children)
            # Subscribers are listened to from the beginning, so that the death of one is noticed at once.
            sent, got = await asyncio.gather(lead(), receive(receiving))
    except TimeoutError as err:
        raise ProcessEndedError(f"the load was not done after {within + GRACE_S:g} s; its children hang") from err
    finally:
        stopping.set()
        for child in children:
            child.close()
        threads.shutdown()
        for child in children:  # one that was just being started
            child.close()
    return [_result(*one) for one in zip(publishers, sent, strict=True)], [
        _result(*one) for one in zip(subscribers, got, strict=True)
    ]


def _result(job: Job[R], line: bytes) -> R:
    """Return what a child wrote, as the kind of result that its job returns."""
    result: R = msgspec.json.decode(line, type=get_type_hints(type(job).__call__)["return"])
    return result


def numbered_shares(
    options: Mapping[str, Any], subject: str, messages: int, payload_bytes: int, publishers: int, within: float
) -> list[dict[str, Any]]:
    """Return the fields of each publisher's :class:`~mesh_lab.measure.load_jobs.NumberedJob`: its share of the numbers.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
    """
    if not 1 <= publishers <= messages < 2**32:
        raise ValueError(
            f"publishers={publishers:,}, messages={messages:,}: expected 1 <= publishers <= messages < 2**32"
        )
    if payload_bytes < HEADER.size:
        raise ValueError(
            f"payload_bytes={payload_bytes}, expected {HEADER.size} or more: each payload carries its number"
        )
    if within <= 0:
        raise ValueError(f"within={within}, expected a positive number of seconds")
    if any("{n}" in part and part != "{n}" for part in subject.split(".")):
        raise ValueError(f"subject {subject!r}: {{n}} must be a token of its own, as in 'orders.eu.{{n}}.placed'")
    first = [messages * i // publishers for i in range(publishers + 1)]
    run = {
        "options": portable(options),
        "within": within,
        "subject": subject,
        "mark": secrets.token_bytes(4),
        "payload_bytes": payload_bytes,
    }
    return [
        {**run, "role": f"publisher {i + 1}", "first": first[i], "count": first[i + 1] - first[i]}
        for i in range(publishers)
    ]


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options if they can travel to another process, as :func:`mesh_lab.tls.unpack` takes them."""
    packed = pack(options)
    for name, value in packed.items():
        try:
            msgspec.json.encode(value)
        except TypeError as err:
            raise ValueError(
                f"connect option {name!r} is a {type(value).__name__}, which cannot travel to a child process; "
                "leave it out, or give it as text or a number"
            ) from err
    return packed


def _span(sent: Sequence[Result], ended_ns: int) -> float:
    """Return the seconds from the first publish to ``ended_ns``."""
    return (ended_ns - min(result.began_ns for result in sent)) / 1e9
