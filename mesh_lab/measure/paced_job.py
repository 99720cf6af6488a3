"""What a child of :mod:`mesh_lab.measure.paced` does: send each message at its time, and note when it was answered."""

import asyncio
import contextlib
import random
import selectors
import time
from array import array
from collections.abc import Iterator
from itertools import cycle

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.measure.load_jobs import HEADER, NumberedJob, Parent, Result
from mesh_lab.patterns.jetstream_api import PublishReply
from mesh_lab.patterns.jetstream_wait import wait_interest

# What became of a message, a byte each.
UNANSWERED, ANSWERED, REFUSED, NOBODY = range(4)
START_S = 0.02  # from the parent's signal to the first message


class PacedResult(Result, frozen=True, kw_only=True):
    """When each message was due (after the first), sent and answered (0 if not): 8 bytes of nanoseconds each."""

    due_ns: bytes
    sent_ns: bytes
    done_ns: bytes
    outcome: bytes


class Paced(NumberedJob[PacedResult], frozen=True, kw_only=True):
    """Send messages at a given rate; :func:`mesh_lab.measure.paced.paced_load` says what each field means."""

    rate_per_s: float
    until: str
    closed: bool
    random_arrivals: bool
    seed: int
    payloads: list[bytes]
    patience: float
    survives_reconnect: bool = True

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        # select counts in microseconds; epoll, kqueue under asyncio and uvloop's timers count in milliseconds.
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    def schedule(self) -> Iterator[int]:
        # When each message is due, in nanoseconds after the first: evenly, or by chance around the same rate.
        gap_ns = 1e9 / self.rate_per_s
        chance = random.Random(self.seed)  # a load is repeated, not guessed
        at = 0.0
        for _ in range(self.count):
            yield int(at)
            at += chance.expovariate(1 / gap_ns) if self.random_arrivals else gap_ns

    async def __call__(self, client: Client, parent: Parent) -> PacedResult:
        due_ns = array("q", self.schedule())
        sent_ns, done_ns = array("q", bytes(8 * self.count)), array("q", bytes(8 * self.count))
        outcomes, unanswered, change = bytearray(self.count), self.count, asyncio.Event()
        inbox = client.new_inbox()
        run, before, token, after = self.mark, *self.subject.partition("{n}")
        payloads = cycle(self.payloads) if self.payloads else None
        padding = bytes(self.payload_bytes - HEADER.size)

        def note(n: int, outcome: int) -> None:
            nonlocal unanswered
            if outcomes[n] == UNANSWERED:  # only a message's first end counts
                done_ns[n] = time.perf_counter_ns()
                outcomes[n] = outcome
                unanswered -= 1
                change.set()

        async def on_answer(msg: Msg) -> None:
            note(int(msg.subject.rpartition(".")[2]), _outcome(msg, acknowledgement=self.until == "ack"))

        async def on_message(msg: Msg) -> None:
            if len(msg.data) < HEADER.size:
                return
            mark, n = HEADER.unpack_from(msg.data)
            if mark == run:  # other messages on the subject are not of this run
                note(n, ANSWERED)

        async def send(n: int) -> None:
            payload = HEADER.pack(run, n) + padding if payloads is None else next(payloads)
            subject = f"{before}{n}{after}" if token else self.subject
            reply = "" if self.until == "received" else f"{inbox}.{n}"
            sent_ns[n] = time.perf_counter_ns()
            with contextlib.suppress(nats.errors.OutboundBufferLimitError):  # no server: it stays unanswered
                await client.publish(subject, payload, reply=reply)

        async def wait_while_patient(n: int) -> bool:
            """Wait for the end of any message as long as there is patience for message n; return whether there was."""
            left_s = self.patience - (time.perf_counter_ns() - sent_ns[n]) / 1e9
            change.clear()
            if left_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(change.wait(), left_s)
            return left_s > 0

        if self.until == "received":
            await self.subscribe(client, on_message)
        else:
            await client.subscribe(f"{inbox}.*", cb=on_answer, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.flush()
        if self.until == "ack":
            await wait_interest(client, self.subject)
        await parent.ready()
        parent.stage = "the answers"
        # From here on nothing is computed for all messages at once: the first ones would be late.
        start_ns = time.perf_counter_ns() + int(START_S * 1e9)
        for n in range(self.count):
            if (wait_ns := start_ns + due_ns[n] - time.perf_counter_ns()) > 0:
                await asyncio.sleep(wait_ns / 1e9)
            elif n % 64 == 0:
                await asyncio.sleep(0)  # late: let the answers in all the same
            await send(n)
            while self.closed and outcomes[n] == UNANSWERED and await wait_while_patient(n):
                pass
        while unanswered and await wait_while_patient(self.count - 1):
            pass
        return PacedResult(
            began_ns=start_ns,
            ended_ns=time.perf_counter_ns(),
            due_ns=due_ns.tobytes(),
            sent_ns=sent_ns.tobytes(),
            done_ns=done_ns.tobytes(),
            outcome=bytes(outcomes),
        )


def _outcome(msg: Msg, *, acknowledgement: bool) -> int:
    if msg.headers and msg.headers.get("Status") == "503" and not msg.data:
        return NOBODY
    if acknowledgement:
        return ANSWERED if _stored(msg.data) else REFUSED
    return REFUSED if msg.headers and "Nats-Service-Error-Code" in msg.headers else ANSWERED


def _stored(answer: bytes) -> bool:
    """Return whether an answer is a stream's acknowledgement, and not its refusal or a service's reply."""
    try:
        reply = msgspec.json.decode(answer, type=PublishReply)
    except msgspec.DecodeError:
        return False
    return reply.stream != "" and reply.seq > 0 and reply.error is None
