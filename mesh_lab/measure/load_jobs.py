"""What the children of a load generator can do, and what they and their parent say to each other."""

import asyncio
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.jetstream_wait import wait_interest

HEADER = struct.Struct(">4sI")
"""Every payload begins with the run's mark and the message's number, so that each one can be told apart."""
PROBE_EVERY_S = 0.02
QUIET_S = 2.0


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one child has to do."""

    job: str
    """Name in :data:`JOBS`, or ``package.module:function`` of one that stands elsewhere."""
    role: str
    """How people call this child, for example ``"publisher 2"``."""
    options: dict[str, Any]
    """Arguments of ``nats.connect``."""
    subject: str
    """Where messages go; ``{n}`` stands for the message's number."""
    mark: bytes
    """Mark of the run, 4 bytes."""
    first: int = 0
    """Number of this child's first message."""
    count: int
    """Number of messages to publish, or of different messages to expect."""
    payload_bytes: int
    """Size of each payload."""
    within: float
    """Seconds until the child must be done."""
    window: int = 1
    """Messages that may wait for their acknowledgement at a time."""
    queue: str = ""
    """Queue group of a subscriber."""
    controls: list[str]
    """Subjects on which publishers talk to subscribers: all of them, or the subscriber's own."""
    publishers: int = 1
    """Number of publishers that a subscriber hears."""
    plain_loop: bool = False
    """Run on asyncio's own event loop, as a program does that did nothing about it."""
    # Of paced jobs; :func:`mesh_lab.measure.paced.paced_load` says what each means.
    rate_per_s: float = 0.0
    until: str = ""
    closed: bool = False
    random_arrivals: bool = False
    seed: int = 0
    payloads: list[bytes] = []
    patience: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How it went."""

    began_ns: int = 0
    """When the first message was published."""
    ended_ns: int = 0
    """When the last message was published, acknowledged or received; 0 if none was."""
    received: int = 0
    """Messages that a subscriber got, duplicates included."""
    seen: bytes = b""
    """A byte for each number, 1 if that message came; compressed."""
    duplicates: int = 0
    """Publishes that the stream had already."""
    server_version: str = ""
    """Version of the server at the other end."""
    totals: dict[str, int] = {}
    """What the orders of a benchmark came to, by the fields of :class:`mesh_lab.orders.totals.Totals`."""
    # Of paced jobs: eight bytes of nanoseconds for each message, in the machine's own order, and a byte of outcome.
    due_ns: bytes = b""
    sent_ns: bytes = b""
    done_ns: bytes = b""
    outcome: bytes = b""


class Parent:
    """The process that started this one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.stage = "the connection"
        """What the child waits for, for the error when it waits too long."""
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        # Unbuffered: a buffered standard input that a daemon thread reads cannot be closed at exit.
        with open(0, "rb", buffering=0, closefd=False) as pipe:
            while line := pipe.readline():
                self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        os._exit(1)  # nobody wants the result any more, and the loop may be too busy to end in good order

    async def ready(self) -> None:
        """Say that this child could begin, and wait until it may."""
        say(b'{"ready":true}')
        await self.told()

    async def told(self) -> None:
        """Wait for the parent's next word."""
        self.stage = "the other processes"
        await self._lines.get()


Job = Callable[[Client, Parent], Awaitable[Report]]


async def publish(client: Client, parent: Parent) -> Report:
    """Publish to core NATS; the clock stops when a PONG proves that the server has read the last message."""
    task = parent.task
    padding = bytes(task.payload_bytes - HEADER.size)
    numbers = range(task.first, task.first + task.count)
    before, token, after = task.subject.partition("{n}")
    subjects = (f"{before}{n}{after}" for n in numbers) if token else repeat(task.subject)
    await _find_subscribers(client, parent)
    await parent.ready()
    parent.stage = "the server to read the messages"
    began = time.perf_counter_ns()
    for n, subject in zip(numbers, subjects, strict=False):
        await client.publish(subject, HEADER.pack(task.mark, n) + padding)
    # nats-py 2.16 writes its PING past the messages that it still buffers (Client._send_ping). The first PONG comes
    # when they are on their way, the second one when they are read.
    for _ in range(2):
        await client.flush(timeout=task.within)  # type: ignore[arg-type]  # annotated int, takes any seconds
    ended = time.perf_counter_ns()
    for control in task.controls:
        # Messages of one connection stay in order: when a subscriber gets this, nothing is on its way behind it.
        await client.publish(control, b"end")
    await client.flush()
    return Report(began_ns=began, ended_ns=ended)


async def publish_acknowledged(client: Client, parent: Parent) -> Report:
    """Publish to JetStream with ``js.publish``: the next message leaves when the one before is stored."""
    task = parent.task
    padding = bytes(task.payload_bytes - HEADER.size)
    js = client.jetstream()
    duplicates = 0
    await wait_interest(client, task.subject)
    await parent.ready()
    parent.stage = "acknowledgements"
    began = time.perf_counter_ns()
    for n in range(task.first, task.first + task.count):
        ack = await js.publish(task.subject.replace("{n}", str(n)), HEADER.pack(task.mark, n) + padding)
        duplicates += bool(ack.duplicate)
    return Report(began_ns=began, ended_ns=time.perf_counter_ns(), duplicates=duplicates)


async def publish_windowed(client: Client, parent: Parent) -> Report:
    """Publish to JetStream with many acknowledgements outstanding."""
    from mesh_lab.patterns.windowed_publisher import WindowedPublisher

    task = parent.task
    padding = bytes(task.payload_bytes - HEADER.size)
    mark = task.mark.hex()
    await wait_interest(client, task.subject)
    async with WindowedPublisher(client, window=task.window) as publisher:
        await parent.ready()
        parent.stage = "acknowledgements"
        began = time.perf_counter_ns()
        for n in range(task.first, task.first + task.count):
            payload = HEADER.pack(task.mark, n) + padding
            await publisher.publish(task.subject.replace("{n}", str(n)), payload, msg_id=f"{mark}-{n}")
        await publisher.flush()
        ended = time.perf_counter_ns()
    return Report(began_ns=began, ended_ns=ended, duplicates=publisher.duplicates)


async def receive(client: Client, parent: Parent) -> Report:
    """Subscribe, and note which of the run's messages come."""
    task = parent.task
    seen = bytearray(task.count)
    received = last_ns = ends = 0
    all_ended = asyncio.Event()

    async def on_message(msg: Msg) -> None:
        nonlocal received, last_ns
        if len(msg.data) < HEADER.size:
            return
        mark, n = HEADER.unpack_from(msg.data)
        if mark == task.mark and n < task.count:  # anything else on the subject is somebody else's
            last_ns = time.perf_counter_ns()
            received += 1
            seen[n] = 1

    async def on_control(msg: Msg) -> None:
        nonlocal ends
        if msg.reply:
            await msg.respond(b"here")
            return
        ends += 1
        if ends >= task.publishers:
            all_ended.set()

    # Without limits of its own: what is lost was lost on the way here, not in this program's queue.
    subscription = await client.subscribe(
        task.subject.replace("{n}", "*"),
        queue=task.queue,
        cb=on_message,
        pending_msgs_limit=0,
        pending_bytes_limit=0,
    )
    await client.subscribe(task.controls[0], cb=on_control)
    await client.flush()
    await parent.ready()  # returns when the publishers are done
    parent.stage = "the last messages"
    while not all_ended.is_set():
        before = received
        try:
            await asyncio.wait_for(all_ended.wait(), QUIET_S)
        except TimeoutError:
            if received == before:  # the end was lost too, as when the server cuts a slow subscriber off
                break
    await subscription.drain()  # type: ignore[no-untyped-call]  # the callback finishes what has arrived
    return Report(ended_ns=last_ns, received=received, seen=zlib.compress(seen, 1))


JOBS: dict[str, Job] = {
    "publish": publish,
    "publish acknowledged": publish_acknowledged,
    "publish windowed": publish_windowed,
    "receive": receive,
}
"""Every job that a :class:`Task` can name."""

SURVIVES_RECONNECT = frozenset({"publish windowed", "receive"})
"""Jobs that notice what a broken connection cost: one sends it again, the other counts it as lost.

For the others a broken connection is an error: they would count as published what never left.
"""


async def _find_subscribers(client: Client, parent: Parent) -> None:
    """Return when this client's server knows of every subscriber.

    A subscription on one server reaches the others a moment later, and what is published in that moment is lost.
    Each subscriber's control subject is subscribed after its real one, and interest travels in order.
    """
    parent.stage = "the subscribers' answers"
    for control in parent.task.controls:
        while True:
            try:
                await client.request(control, timeout=1.0)
                break
            except nats.errors.NoRespondersError:
                await asyncio.sleep(PROBE_EVERY_S)
            except nats.errors.TimeoutError:
                continue


def say(line: bytes) -> None:
    """Hand one line to the parent."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
