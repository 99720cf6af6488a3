"""The checks of notebook 08: the end of every message, an atomic batch by hand, batches by size or by time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from mesh_lab.notebook.checks.common import LONG_S
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import wait_routable
from mesh_lab.servers.mesh import Mesh

API_TIMEOUT_S = 12.0

# 8.1

LARGEST_BYTES = 100
LOAD = [(f"id-{n}", f"check81.{n}", bytes(LARGEST_BYTES + 1 if n in (3, 11) else 50)) for n in range(20)]
REPEATED = ("id-5", "check81.5", bytes(50))
TRUTH = {msg_id: "stored" if len(payload) <= LARGEST_BYTES else "refused" for msg_id, _, payload in LOAD}


@exercise(
    "8.1",
    title="say what became of each",
    answer="async function",
    expects="a dict that says 'stored' or 'refused' for the id of every message",
    hint="publish() of the windowed publisher takes two callbacks, on_stored and on_failed, and with the second one it "
    "raises no longer. A message that the stream has already is acknowledged.",
    within=30.0,
)
async def says_what_became_of_each(mesh: Mesh, answer: Any) -> Verdict:
    """Publish messages of which two are too large for the stream, and one comes twice."""
    async with _stream_of(mesh, "check 8.1", "CHECK-8-1", subjects=["check81.*"], max_msg_size=LARGEST_BYTES) as (
        client,
        js,
    ):
        async with _outstanding(client, "check81.") as counts:
            told = await answer(client, [*LOAD, REPEATED])
        held = (await js.stream_info("CHECK-8-1")).state.messages
    wanted = list(TRUTH.values()).count("stored")
    if held < wanted:
        return not_yet(f"{held} messages in the stream", f"{wanted}: one that is refused does not stop the others")
    if held > wanted:
        return not_yet(f"{held} messages in the stream, one of them twice", f"{wanted}: ids keep a second copy out")
    if not isinstance(told, dict):
        return not_yet(f"{type(told).__name__} was returned", "a dict with a word for each id")
    if missing := [msg_id for msg_id in TRUTH if msg_id not in told]:
        return not_yet(f"nothing was said of {missing[0]}", "a word for each id")
    for msg_id, word in TRUTH.items():
        if told[msg_id] != word:
            return not_yet(f"{msg_id} was called {told[msg_id]!r}", f"{word!r}, as the server said")
    if max(counts) < 2:
        return not_yet("each message waited for the answer to the one before", "several that are outstanding at once")
    return correct("whoever knows the end of each message can carry on with the others, and come back to the rest")


# 8.2

CASES: tuple[tuple[str, list[tuple[str, bytes, dict[str, str]]], bool], ...] = (
    ("three messages", [("check82.a", b"1", {}), ("check82.b", b"2", {}), ("check82.c", b"3", {})], True),
    (
        "a condition in the second that does not hold",
        [
            ("check82.d", b"1", {}),
            ("check82.a", b"2", {"Nats-Expected-Last-Subject-Sequence": "99"}),
            ("check82.e", b"3", {}),
        ],
        False,
    ),
    ("a single message", [("check82.f", b"1", {})], True),
)


@exercise(
    "8.2",
    title="a batch by hand",
    answer="async function",
    expects="all messages stored as one batch and True, or none and False",
    hint="Three headers: Nats-Batch-Id on all, Nats-Batch-Sequence counted from 1, Nats-Batch-Commit: 1 on the last. "
    "Publish the others without a reply, ask with the last one by nc.request, and look into the JSON that comes back.",
    within=30.0,
)
async def stores_a_batch_by_hand(mesh: Mesh, answer: Any) -> Verdict:
    """Let the answer store batches, and look at the headers of what the stream holds."""
    async with _stream_of(mesh, "check 8.2", "CHECK-8-2", subjects=["check82.*"], allow_atomic=True) as (client, js):
        expected = 0
        for what, messages, stored in CASES:
            told = await answer(client, messages)
            held = (await js.stream_info("CHECK-8-2")).state.messages
            if not stored and held > expected:
                return not_yet(f"with {what}, {held - expected} of {len(messages)} messages were stored", "none")
            if stored and held != expected + len(messages):
                return not_yet(f"{held - expected} messages were stored of {what}", f"{len(messages)}")
            if stored:
                for place in range(1, len(messages) + 1):
                    headers = (await js.get_msg("CHECK-8-2", expected + place)).headers or {}
                    if headers.get("Nats-Batch-Sequence") != str(place):
                        return not_yet(
                            f"message {place} of {what} was stored by itself", "all of them as one batch, with its id"
                        )
                expected = held
            if told is not stored:
                return not_yet(f"for {what}, {told!r} was returned", repr(stored))
    return correct("readers see the whole batch or nothing of it; a batch that stands still is dropped after 10 s")


# 8.3

PATIENCE_S, TRICKLE_S = 0.4, 0.2


@exercise(
    "8.3",
    title="full, or late",
    answer="async generator",
    expects="batches that leave when they are full, or when their first order has waited long enough",
    hint="Two waits in turn: for the first order of a batch without a limit, for each further one with what is left of "
    "the batch's own time. asyncio.timeout_at takes a moment on the loop's clock, loop.time() + patience, and a moment "
    "does not move when another order comes.",
    within=20.0,
)
async def leaves_full_or_late(mesh: Mesh, answer: Any) -> Verdict:
    """Feed orders quickly, then one by one, and end in the middle of a batch."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    async with aclosing(answer(queue, 3, 60.0)) as batches:
        for order in range(7):
            queue.put_nowait(order)
        got = [await _soon(anext(batches)) for _ in range(2)]
        if got != [[0, 1, 2], [3, 4, 5]]:
            return not_yet(f"of seven orders at once, {got} left", "[0, 1, 2] and [3, 4, 5] at once: they are full")
        queue.put_nowait(None)
        if (rest := await _soon(anext(batches, "the end"))) != [6]:
            return not_yet(f"at the end came {rest}", "[6], the orders of the batch that was begun")
        if (more := await _soon(anext(batches, "the end"))) != "the end":
            return not_yet(f"after the end came {more}", "nothing, and no empty batch")

    queue = asyncio.Queue()
    queue.put_nowait(0)
    async with aclosing(answer(queue, 3, PATIENCE_S)) as batches:
        if (alone := await _soon(anext(batches))) != [0]:
            return not_yet(f"of an order that came alone: {alone}", "[0], when its patience is over")

    queue = asyncio.Queue()
    feeding = asyncio.create_task(_trickle(queue, 10))
    try:
        trickled = [batch async for batch in answer(queue, 100, PATIENCE_S)]
    finally:
        feeding.cancel()
    if [order for batch in trickled for order in batch] != list(range(10)):
        return not_yet("of ten orders that came one by one, not all left in their order", "each once")
    if len(trickled) < 3:
        seen = f"ten orders, one every {TRICKLE_S:g} s, left in {len(trickled)} batch" + "es" * (len(trickled) > 1)
        return not_yet(seen, f"one at least every {PATIENCE_S:g} s: the first order's clock does not start anew")
    if len(trickled) == 10:
        return not_yet("every order left by itself", f"the orders of {PATIENCE_S:g} s together")
    return correct("size sets the rate, patience the longest wait: say both, and say which of them you give up first")


async def _trickle(queue: "asyncio.Queue[Any]", orders: int) -> None:
    for order in range(orders):
        queue.put_nowait(order)
        await asyncio.sleep(TRICKLE_S)  # the customers' own time
    queue.put_nowait(None)


async def _soon(coming: Any) -> Any:
    try:
        async with asyncio.timeout(LONG_S):
            return await coming
    except TimeoutError:
        return "nothing in time"
    except StopAsyncIteration:
        return "the end"


# What they share


@asynccontextmanager
async def _outstanding(client: Client, prefix: str) -> AsyncIterator[list[int]]:
    """Yield how many of a client's messages were without their answer, each time that it sent another one.

    One subscription sees both, in the order in which the client's server passes them on: who sends a message after it
    got an answer sends it, to that server, after the answer.
    """
    waiting, counts = set[str](), [0]

    async def see(msg: Msg) -> None:
        if msg.subject.startswith(prefix) and msg.reply:
            waiting.add(msg.reply)
            counts.append(len(waiting))
        waiting.discard(msg.subject)

    watching = await client.subscribe(">", cb=see)
    await client.flush()
    try:
        yield counts
        await client.flush()
    finally:
        await watching.unsubscribe()


@asynccontextmanager
async def _stream_of(
    mesh: Mesh, name: str, stream: str, **settings: Any
) -> AsyncIterator[tuple[Client, JetStreamContext]]:
    """Yield a client and its context, with a stream that is new, and gone afterwards."""
    async with await mesh.connect(name=name) as client:
        js = client.jetstream(timeout=API_TIMEOUT_S)
        with suppress(NotFoundError):
            await js.delete_stream(stream)
        await js.add_stream(name=stream, **settings)
        await wait_routable(client, stream)
        try:
            yield client, js
        finally:
            with suppress(NotFoundError):
                await js.delete_stream(stream)
