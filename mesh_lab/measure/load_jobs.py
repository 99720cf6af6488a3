"""The jobs of a load generator's children, and how such a child communicates with its parent.

A job's fields travel to the child as JSON; the child calls the job, and its result travels back.
"""

import asyncio
import contextlib
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab import processes
from mesh_lab.patterns.connection import flush
from mesh_lab.patterns.jetstream_wait import flush_through, wait_interest
from mesh_lab.patterns.wait import retry
from mesh_lab.patterns.windowed_publisher import WindowedPublisher

HEADER = struct.Struct(">4sI")  # every payload begins with the run's mark and the message's number
ACK_TIMEOUT_S = 10.0
PROBE_EVERY_S = 0.02
QUIET_S = 2.0  # without a message: then a subscriber gives up waiting for the publisher's last one


class Parent:
    """The process that started this one; it says when to go on with an empty line."""

    def __init__(self) -> None:
        self.stage = "the connection"  # what the child waits for, for the error when it waits too long
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        processes.on_input_line(self._lines.put_nowait)

    async def ready(self) -> None:
        """Report that this child is ready, and return when the parent says to go on."""
        self.report_ready()
        await self.wait_for_go()

    async def begin(self) -> int:
        """Return the time at which a job that waits for acknowledgements may begin, in nanoseconds."""
        await self.ready()
        self.stage = "acknowledgements"
        return time.perf_counter_ns()

    def report_ready(self) -> None:
        """Report that this child is ready."""
        sys.stdout.write('{"ready":true}\n')
        sys.stdout.flush()

    async def wait_for_go(self) -> None:
        """Return when the parent says to go on."""
        self.stage = "the other processes"
        await self._lines.get()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """When the first message was published, and the last was published, acknowledged or received; 0 if none was.

    Times are readings of ``time.perf_counter_ns``, a clock that all processes of a machine share.
    """

    began_ns: int = 0
    ended_ns: int = 0
    server_version: str = ""


class Sent(Result, frozen=True, kw_only=True):
    """What a publisher did; ``duplicates`` counts messages that the stream already had."""

    duplicates: int = 0


class Received(Result, frozen=True, kw_only=True):
    """Messages received, duplicates included, and how many different ones of a load they were."""

    received: int = 0
    different: int = 0


R_co = TypeVar("R_co", bound=Result, covariant=True)


class Job(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What one child has to do; a subclass for each kind of job.

    Attributes:
        role: Name of this child in errors, for example ``"publisher 2"``.
        options: Arguments of ``nats.connect``, as :func:`mesh_lab.tls.pack` returns them.
        within: Seconds until the child must be done.
        survives_reconnect: Whether the job notices what a broken connection lost. For other jobs a broken connection
            is an error: they would count messages as published that never left.
    """

    role: str
    options: dict[str, Any]
    within: float
    survives_reconnect: bool = False

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that the job runs on."""
        return processes.new_event_loop()

    async def __call__(self, client: Client, parent: Parent) -> R_co:
        """Do the job with a connected client and return how it went."""
        raise NotImplementedError


class NumberedJob(Job[R_co], Generic[R_co], frozen=True, kw_only=True):
    """Base of the jobs whose ``count`` messages carry the run's mark (4 bytes) and a number, from ``first`` on."""

    subject: str  # ``{n}`` stands for the message's number
    mark: bytes
    first: int = 0
    count: int
    payload_bytes: int = HEADER.size

    def messages(self) -> Iterator[tuple[str, bytes]]:
        """Yield subject and payload of each message."""
        padding = bytes(self.payload_bytes - HEADER.size)
        before, token, after = self.subject.partition("{n}")
        for n in range(self.first, self.first + self.count):
            yield f"{before}{n}{after}" if token else self.subject, HEADER.pack(self.mark, n) + padding

    async def subscribe(self, client: Client, note: Callable[[int], None]) -> Any:
        """Subscribe, without limits, and note the numbers: what is lost was lost on the way, not in a queue here."""
        run = self.mark

        async def on_message(msg: Msg) -> None:
            if len(msg.data) >= HEADER.size:
                mark, n = HEADER.unpack_from(msg.data)
                if mark == run:  # other messages on the subject are not of this run
                    note(n)

        subject = self.subject.replace("{n}", "*")
        return await client.subscribe(subject, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)


class Publish(NumberedJob[Sent], frozen=True, kw_only=True):
    """Publish to core NATS; the clock stops when a PONG proves that the server has read the last message."""

    controls: list[str] = []  # the subscribers' control subjects

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        parent.stage = "the subscribers' answers"
        for control in self.controls:
            # A subscription on one server reaches the others a moment later, and what is published in that moment is
            # lost. Each control subject is subscribed after its subscriber's real one, and interest travels in order.
            await retry(partial(client.request, control, timeout=1.0), within=self.within, every=PROBE_EVERY_S)
        await parent.ready()
        parent.stage = "the server to read the messages"
        began = time.perf_counter_ns()
        for subject, payload in self.messages():
            await client.publish(subject, payload)
        await flush_through(client, within=self.within)
        ended = time.perf_counter_ns()
        for control in self.controls:
            # Messages of one connection stay in order: behind this one, nothing is on its way.
            await client.publish(control, b"end")
        await flush(client)
        return Sent(began_ns=began, ended_ns=ended)


class PublishAcknowledged(NumberedJob[Sent], frozen=True, kw_only=True):
    """Publish to JetStream once a stream listens: with ``js.publish``, or with a window of more than one message."""

    window: int

    async def __call__(self, client: Client, parent: Parent) -> Sent:
        await wait_interest(client, self.subject)
        if self.window == 1:
            return await publish_one_by_one(client, parent, self.messages())
        mark = self.mark.hex()
        messages = ((*message, f"{mark}-{n}") for n, message in enumerate(self.messages(), self.first))
        return await publish_windowed(client, parent, messages, window=self.window)


class Receive(NumberedJob[Received], frozen=True, kw_only=True):
    """Subscribe, and note which of the run's messages come."""

    control: str  # where the publisher probes this subscriber, and reports that it is done
    survives_reconnect: bool = True

    async def __call__(self, client: Client, parent: Parent) -> Received:
        seen, ended = bytearray(self.count), asyncio.Event()
        received = last_ns = 0

        def note(n: int) -> None:
            nonlocal received, last_ns
            last_ns = time.perf_counter_ns()
            received += 1
            seen[n] = 1

        async def on_control(msg: Msg) -> None:
            if msg.reply:
                await msg.respond(b"here")
            else:
                ended.set()

        subscription = await self.subscribe(client, note)
        await client.subscribe(self.control, cb=on_control)
        await flush(client)
        await parent.ready()  # returns when the publisher is done
        parent.stage = "the last messages"
        while not ended.is_set():
            before = received
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), QUIET_S)
            if received == before:  # the end was lost too, as when the server cuts a slow subscriber off
                break
        await subscription.drain()  # the callback finishes what has arrived
        return Received(ended_ns=last_ns, received=received, different=sum(seen))


async def publish_one_by_one(client: Client, parent: Parent, messages: Iterable[tuple[str, bytes]]) -> Sent:
    """Publish with ``js.publish``, each message when the one before is acknowledged."""
    js = client.jetstream(timeout=ACK_TIMEOUT_S)
    duplicates, began = 0, await parent.begin()
    for subject, payload in messages:
        duplicates += bool((await js.publish(subject, payload)).duplicate)
    return Sent(began_ns=began, ended_ns=time.perf_counter_ns(), duplicates=duplicates)


async def publish_windowed(
    client: Client, parent: Parent, messages: Iterable[tuple[str, bytes, str]], *, window: int
) -> Sent:
    """Publish subjects, payloads and ids with a window of outstanding acknowledgements."""
    async with WindowedPublisher(client, window=window) as publisher:
        began = await parent.begin()
        for subject, payload, msg_id in messages:
            await publisher.publish(subject, payload, msg_id=msg_id)
        await publisher.flush()
        ended = time.perf_counter_ns()
    return Sent(began_ns=began, ended_ns=ended, duplicates=publisher.duplicates)
