"""What a child of :mod:`mesh_lab.measure.paced` does: send each message at its time, and note when it was answered."""

import asyncio
import contextlib
import random
import time
from array import array
from collections.abc import Iterator
from itertools import cycle

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.measure.load_jobs import HEADER, Job, Parent, Report, Task
from mesh_lab.patterns.jetstream_wait import wait_interest

# What became of a message, a byte each.
UNANSWERED, ANSWERED, REFUSED, NOBODY = range(4)
START_S = 0.02  # from the parent's word to the first message


class _Book:
    """When each message is due, after the start; when it was sent and answered, on the machine's clock; 0 for never."""

    def __init__(self, task: Task) -> None:
        self.due_ns = array("q", _schedule(task))
        self.sent_ns = array("q", bytes(8 * task.count))
        self.done_ns = array("q", bytes(8 * task.count))
        self.outcome = bytearray(task.count)
        self.open = task.count
        self.change = asyncio.Event()

    def note(self, n: int, outcome: int) -> None:
        """Note how a message ended; only its first end counts."""
        if self.outcome[n] == UNANSWERED:
            self.done_ns[n] = time.perf_counter_ns()
            self.outcome[n] = outcome
            self.open -= 1
            self.change.set()


def _schedule(task: Task) -> Iterator[int]:
    """Yield when each message is due, in nanoseconds after the first: evenly, or by chance around the same rate."""
    gap_ns = 1e9 / task.rate_per_s
    chance = random.Random(task.seed)  # a load is repeated, not guessed
    at = 0.0
    for _ in range(task.count):
        yield int(at)
        at += chance.expovariate(1 / gap_ns) if task.random_arrivals else gap_ns


async def paced(client: Client, parent: Parent) -> Report:
    """Send messages at their times and wait for the end of each, as long as the task's patience lasts."""
    task = parent.task
    book = _Book(task)
    inbox = client.new_inbox()
    before, token, after = task.subject.partition("{n}")
    payloads = cycle(task.payloads) if task.payloads else None
    padding = bytes(task.payload_bytes - HEADER.size)

    async def on_answer(msg: Msg) -> None:
        book.note(int(msg.subject.rpartition(".")[2]), _outcome(msg, acknowledgement=task.until == "ack"))

    async def on_message(msg: Msg) -> None:
        if len(msg.data) < HEADER.size:
            return
        mark, n = HEADER.unpack_from(msg.data)
        if mark == task.mark:  # anything else on the subject is somebody else's
            book.note(n, ANSWERED)

    async def send(n: int) -> None:
        payload = HEADER.pack(task.mark, n) + padding if payloads is None else next(payloads)
        subject = f"{before}{n}{after}" if token else task.subject
        reply = "" if task.until == "received" else f"{inbox}.{n}"
        book.sent_ns[n] = time.perf_counter_ns()
        with contextlib.suppress(nats.errors.OutboundBufferLimitError):  # no server: it stays unanswered
            await client.publish(subject, payload, reply=reply)

    if task.until == "received":
        heard = task.subject.replace("{n}", "*")
        await client.subscribe(heard, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0)
    else:
        await client.subscribe(f"{inbox}.*", cb=on_answer, pending_msgs_limit=0, pending_bytes_limit=0)
    await client.flush()
    if task.until == "ack":
        await wait_interest(client, task.subject)
    await parent.ready()
    parent.stage = "the answers"
    # From here on nothing is computed for all messages at once: the first ones would be late.
    start_ns = time.perf_counter_ns() + int(START_S * 1e9)
    for n in range(task.count):
        if (wait_ns := start_ns + book.due_ns[n] - time.perf_counter_ns()) > 0:
            await asyncio.sleep(wait_ns / 1e9)
        elif n % 64 == 0:
            await asyncio.sleep(0)  # late: let the answers in all the same
        await send(n)
        while task.closed and book.outcome[n] == UNANSWERED and time.perf_counter_ns() < _last_moment(book, n, task):
            await _change(book, _last_moment(book, n, task))
    while book.open and time.perf_counter_ns() < _last_moment(book, task.count - 1, task):
        await _change(book, _last_moment(book, task.count - 1, task))
    return Report(
        began_ns=start_ns,
        ended_ns=time.perf_counter_ns(),
        due_ns=book.due_ns.tobytes(),
        sent_ns=book.sent_ns.tobytes(),
        done_ns=book.done_ns.tobytes(),
        outcome=bytes(book.outcome),
    )


def _last_moment(book: _Book, n: int, task: Task) -> int:
    return int(book.sent_ns[n] + task.patience * 1e9)


async def _change(book: _Book, until_ns: int) -> None:
    book.change.clear()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(book.change.wait(), max(0.0, (until_ns - time.perf_counter_ns()) / 1e9))


def _outcome(msg: Msg, *, acknowledgement: bool) -> int:
    if msg.headers and msg.headers.get("Status") == "503" and not msg.data:
        return NOBODY
    if acknowledgement:
        return ANSWERED if _stored(msg.data) else REFUSED
    return REFUSED if msg.headers and "Nats-Service-Error-Code" in msg.headers else ANSWERED


class _Ack(msgspec.Struct):
    """What a stream answers: where the message is stored, or why it is not."""

    stream: str
    seq: int
    error: msgspec.Raw = msgspec.Raw()


def _stored(answer: bytes) -> bool:
    """Say whether an answer is a stream's acknowledgement, and not its refusal or a service's reply."""
    try:
        ack = msgspec.json.decode(answer, type=_Ack)
    except msgspec.DecodeError:
        return False
    return ack.seq > 0 and not ack.error


PACED_JOBS: dict[str, Job] = {"paced": paced}
