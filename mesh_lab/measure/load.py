"""Put load on a mesh from child processes, and say how it went.

A notebook's kernel that publishes and counts at the same time measures itself: its one event loop has both to
do, and the display besides. Here every publisher and every subscriber is a process of its own under uvloop.
The clocks are in the children; the parent only waits.
"""

import secrets
import zlib
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from mesh_lab.errors import LoadFailedError
from mesh_lab.measure.load_children import run_children
from mesh_lab.measure.load_jobs import HEADER, Report, Task
from mesh_lab.measure.measurement import Run
from mesh_lab.tls import pack

__all__ = ["LoadFailedError", "count_faults", "deliver_load", "publish_load"]

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
        LoadFailedError: A child ended without a result; the message carries its traceback.
    """
    if window > 1 and not acknowledged:
        raise ValueError(f"window={window:,} without acknowledged=True: core NATS has nothing to wait for")
    if window < 1:
        raise ValueError(f"window={window}, expected 1 or more")
    job = "publish" if not acknowledged else "publish acknowledged" if window == 1 else "publish windowed"
    tasks = publisher_tasks(
        job, options, subject, messages, payload_bytes, publishers, within, controls=[], window=window
    )
    sent, _ = await run_children(tasks, within=within)
    return Run(
        messages=messages,
        elapsed_s=_span(sent, max(report.ended_ns for report in sent)),
        duplicates=sum(report.duplicates for report in sent),
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
        LoadFailedError: A child ended without a result; the message carries its traceback.
    """
    if subscribers < 1:
        raise ValueError(f"subscribers={subscribers}, expected 1 or more")
    run = secrets.token_hex(8)
    controls = [f"_INBOX.load.{run}.{i}" for i in range(subscribers)]
    sending = publisher_tasks(
        "publish", options, subject, messages, payload_bytes, publishers, within, controls=controls
    )
    receiving = [
        msgspec.structs.replace(
            sending[0],
            job="receive",
            role=f"subscriber {i}",
            options=portable(options if subscriber_options is None else subscriber_options),
            count=messages,
            queue=queue or "",
            controls=[control],
            publishers=publishers,
        )
        for i, control in enumerate(controls, start=1)
    ]
    sent, got = await run_children(sending, receiving, within=within)
    due, lost, duplicates = count_faults(got, messages=messages, shared=queue is not None)
    # Where nothing came there is no last receive; the time that the publishers took stands in for it.
    last_ns = max(report.ended_ns for report in got) or max(report.ended_ns for report in sent)
    return Run(
        messages=due,
        elapsed_s=_span(sent, last_ns),
        lost=lost,
        duplicates=duplicates,
        payload_bytes=payload_bytes,
        server_version=sent[0].server_version,
    )


def count_faults(reports: Sequence[Report], *, messages: int, shared: bool) -> tuple[int, int, int]:
    """Return how many deliveries were due, how many were lost, and how many came a further time.

    Args:
        reports: One for each subscriber.
        messages: Different messages that were published.
        shared: Whether the subscribers are one queue group, in which each message is due once.

    Raises:
        ValueError: There are no reports.
    """
    if not reports:
        raise ValueError("no subscriber reported anything")
    # One byte to a message, 1 if it came: as numbers, their union is an "or" and their size a count of bits.
    seen = [int.from_bytes(zlib.decompress(report.seen), "little") for report in reports]
    groups = [reduce(or_, seen)] if shared else seen
    due = messages * len(groups)
    different = sum(group.bit_count() for group in groups)
    return due, due - different, sum(report.received for report in reports) - different


def publisher_tasks(
    job: str,
    options: Mapping[str, Any],
    subject: str,
    messages: int,
    payload_bytes: int,
    publishers: int,
    within: float,
    *,
    controls: list[str],
    window: int = 1,
) -> list[Task]:
    """Return the tasks of all publishers, each with its share of the numbers."""
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
    mark = secrets.token_bytes(4)
    return [
        Task(
            job=job,
            role=f"publisher {i + 1}",
            options=portable(options),
            subject=subject,
            mark=mark,
            first=first[i],
            count=first[i + 1] - first[i],
            payload_bytes=payload_bytes,
            within=within,
            window=window,
            controls=controls,
        )
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


def _span(sent: Sequence[Report], ended_ns: int) -> float:
    """Return the seconds from the first publish to ``ended_ns``."""
    return (ended_ns - min(report.began_ns for report in sent)) / 1e9
