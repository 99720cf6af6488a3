"""Put load on a mesh from child processes, and return how it went.

A notebook's kernel that publishes and counts at the same time measures itself. Here every publisher and every
subscriber is a process of its own under uvloop, with its own clock; the parent only waits.
"""

import asyncio
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar, get_type_hints

import msgspec

from mesh_lab.errors import ProcessEndedError
from mesh_lab.measure.load_jobs import HEADER, Job, Publish, PublishAcknowledged, Receive, Result, Sent
from mesh_lab.measure.measurement import Run
from mesh_lab.processes import ChildProcess
from mesh_lab.tls import pack

WORKER = "mesh_lab.measure.load_worker"
GRACE_S = 5.0
SUBJECT = "orders.eu.{n}.placed"
S = TypeVar("S", bound=Result)
R = TypeVar("R", bound=Result)


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
    """Publish as fast as possible, and return how long it took until the server had, or had stored, everything.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; a token ``{n}`` becomes the message's number.
        messages: Messages in all, shared out among the publishers; below 10,000 on core NATS, the result is noise.
        payload_bytes: Size of each payload, 8 (its number) or more; the rest is zeros.
        publishers: Processes that publish.
        acknowledged: Publish to JetStream until the last acknowledgement; a stream must listen to the subject. Without,
            the clock stops at the PONG behind the last message, which until then may be in the client's buffer.
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
    # The windowed publisher sends again what a broken connection lost.
    stored = partial(PublishAcknowledged, window=window, survives_reconnect=window > 1)
    job: Callable[..., Job[Sent]] = stored if acknowledged else Publish
    sent, _ = await run_children([job(**share) for share in shares], within=within)
    duplicates = sum(result.duplicates for result in sent)
    return Run(messages, _elapsed_s(sent, sent), 0, duplicates, payload_bytes, sent[0].server_version)


async def deliver_load(
    options: Mapping[str, Any],
    *,
    subject: str = SUBJECT,
    messages: int = 100_000,
    payload_bytes: int = 128,
    subscribers: int = 1,
    within: float = 60.0,
) -> Run:
    """Publish to core NATS and subscribe, and return the time from the first publish to the last receive.

    The run's ``messages`` are the deliveries that were due: each message once for every subscriber. The server cuts off
    a subscriber that has more than ``max_pending`` (64 MiB) to read.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; subscribers put ``*`` in the place of a token ``{n}``.
        messages: Messages that one process publishes.
        payload_bytes: Size of each payload, 8 (its number) or more.
        subscribers: Processes that subscribe.
        within: Seconds until all must be done, the children's start included.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        ProcessEndedError: A child ended without a result; the message carries its traceback.
    """
    if subscribers < 1:
        raise ValueError(f"subscribers={subscribers}, expected 1 or more")
    inbox = f"_INBOX.load.{secrets.token_hex(8)}"
    controls = {f"subscriber {i + 1}": f"{inbox}.{i}" for i in range(subscribers)}
    [share] = numbered_shares(options, subject, messages, payload_bytes, 1, within)
    receiving = [Receive(**share | {"role": role, "control": control}) for role, control in controls.items()]
    publishing = Publish(**share, controls=list(controls.values()))
    sent, got = await run_children([publishing], receiving, within=within)
    due, different = messages * subscribers, sum(result.different for result in got)
    duplicates = sum(result.received for result in got) - different
    # Where nothing came there is no last receive; the time that the publisher took stands in for it.
    elapsed_s = _elapsed_s(sent, got if any(result.ended_ns for result in got) else sent)
    return Run(due, elapsed_s, due - different, duplicates, payload_bytes, sent[0].server_version)


async def run_children(
    publishers: Sequence[Job[S]], subscribers: Sequence[Job[R]] = (), *, within: float
) -> tuple[list[S], list[R]]:
    """Run a load and return the results of the publishers and of the subscribers, in the jobs' order.

    Publishers begin when every child is ready; subscribers run until they are done and nothing more arrives. A load
    that is not done after ``within`` seconds is killed 5 s later.

    Raises:
        ProcessEndedError: A child ended without a result, or was not done in time.
    """
    jobs = [*subscribers, *publishers]
    children = []
    for job in jobs:
        command = [sys.executable, "-m", WORKER, f"{type(job).__module__}:{type(job).__qualname__}"]
        children.append(ChildProcess(command, name=f"load child {job.role!r}", stdin=True, stdout=True))
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
            # Subscribers' output is read from the beginning, so that the death of one is noticed at once.
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
    return list(map(_result, publishers, sent)), list(map(_result, subscribers, got))


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
        expected = "expected 1 <= publishers <= messages < 2**32"
        raise ValueError(f"publishers={publishers:,}, messages={messages:,}: {expected}")
    if payload_bytes < (least := HEADER.size):
        raise ValueError(f"payload_bytes={payload_bytes}, expected {least} or more: each payload carries its number")
    if within <= 0:
        raise ValueError(f"within={within}, expected a positive number of seconds")
    if any("{n}" in part and part != "{n}" for part in subject.split(".")):
        raise ValueError(f"subject {subject!r}: {{n}} must be a token of its own, as in 'orders.eu.{{n}}.placed'")
    bounds = [messages * i // publishers for i in range(publishers + 1)]
    run = {"options": portable(options), "within": within, "subject": subject, "payload_bytes": payload_bytes}
    run["mark"] = secrets.token_bytes(4)
    shares = enumerate(pairwise(bounds), 1)
    return [run | {"role": f"publisher {i}", "first": begin, "count": end - begin} for i, (begin, end) in shares]


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options if they can travel to another process, as :func:`mesh_lab.tls.unpack` takes them."""
    packed = pack(options)
    for name, value in packed.items():
        try:
            msgspec.json.encode(value)
        except TypeError as err:
            option = f"connect option {name!r} is a {type(value).__name__}, which cannot travel to a child process"
            raise ValueError(f"{option}; leave it out, or give it as text or a number") from err
    return packed


def _elapsed_s(begun: Sequence[Result], ended: Sequence[Result]) -> float:
    """Return the seconds from the first publish of some to the last end of others."""
    return (max(result.ended_ns for result in ended) - min(result.began_ns for result in begun)) / 1e9
