"""Checks of notebook 08: the end of every message, an atomic batch by hand, batches by size or by time."""

import asyncio
from contextlib import aclosing
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S

API_TIMEOUT_S = 12.0

# 8.1

LARGEST_BYTES = 100
LOAD = [(f"id-{n}", f"check81.{n}", bytes(LARGEST_BYTES + 1 if n in (3, 11) else 50)) for n in range(20)]
REPEATED = ("id-5", "check81.5", bytes(50))
ENDS = {msg_id: "stored" if len(payload) <= LARGEST_BYTES else "refused" for msg_id, _, payload in LOAD}


@exercise(
    "8.1",
    title="say what became of each",
    answer="async function",
    expects="a dict that says 'stored' or 'refused' for the id of every message",
    hint="publish() of the windowed publisher takes two callbacks, on_stored and on_failed, and with the second one it "
    "raises no longer. A message that the stream has already is acknowledged.",
    within=30.0,
)
async def says_what_became_of_each(trial: Trial, answer: Any) -> str:
    """Publish messages of which two are too large for the stream, and one comes twice."""
    client, stream = await trial.client(), "CHECK-8-1"
    config = {"subjects": ["check81.*"], "max_msg_size": LARGEST_BYTES}
    js = await trial.stream(client, stream, api_timeout=API_TIMEOUT_S, **config)
    outstanding = await _count_outstanding(trial, client, "check81.")
    ends = await answer(client, [*LOAD, REPEATED])
    await client.flush()
    stored, wanted = (await js.stream_info(stream)).state.messages, list(ENDS.values()).count("stored")
    if stored < wanted:
        raise NotYet(f"{stored} messages in the stream", f"{wanted}: one that is refused does not stop the others")
    if stored > wanted:
        raise NotYet(f"{stored} messages in the stream, one of them twice", f"{wanted}: ids keep a second copy out")
    trial.kind(ends, dict, "a dict with a word for each id")
    if missing := [msg_id for msg_id in ENDS if msg_id not in ends]:
        raise NotYet(f"nothing was said of {missing[0]}", "a word for each id")
    for msg_id, end in ENDS.items():
        if ends[msg_id] != end:
            raise NotYet(f"{msg_id} was called {ends[msg_id]!r}", f"{end!r}, as the server said")
    if max(outstanding) < 2:
        raise NotYet("each message waited for the answer to the one before", "several that are outstanding at once")
    return "whoever knows the end of each message can carry on with the others, and come back to the rest"


async def _count_outstanding(trial: Trial, client: Client, prefix: str) -> list[int]:
    """Return a list that gets, with each message that a client sends, how many of them have no reply yet.

    One subscription receives messages and replies, in the order in which the client's server passes them on: a message
    that the client sends after a reply came comes, at that server, after the reply.
    """
    waiting, counts = set[str](), [0]

    async def count(msg: Msg) -> None:
        if msg.subject.startswith(prefix) and msg.reply:
            waiting.add(msg.reply)
            counts.append(len(waiting))
        waiting.discard(msg.subject)

    await trial.serve(client, count, ">")
    return counts


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
async def stores_a_batch_by_hand(trial: Trial, answer: Any) -> str:
    """Let the answer store batches, and look at the headers of what the stream holds."""
    client, stream = await trial.client(), "CHECK-8-2"
    js = await trial.stream(client, stream, api_timeout=API_TIMEOUT_S, subjects=["check82.*"], allow_atomic=True)
    before = 0
    for case, messages, wanted in CASES:
        returned = await answer(client, messages)
        stored = (await js.stream_info(stream)).state.messages - before
        if not wanted and stored > 0:
            raise NotYet(f"with {case}, {stored} of {len(messages)} messages were stored", "none")
        if wanted and stored != len(messages):
            raise NotYet(f"{stored} messages were stored of {case}", f"{len(messages)}")
        for place in range(1, stored + 1):
            headers = (await js.get_msg(stream, before + place)).headers or {}
            if headers.get("Nats-Batch-Sequence") != str(place):
                seen = f"message {place} of {case} was stored by itself"
                raise NotYet(seen, "all of them as one batch, with its id")
        before += stored
        trial.equal(returned, wanted, f"for {case}, ")
    return "readers see the whole batch or nothing of it; a batch that stands still is dropped after 10 s"


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
async def leaves_full_or_late(trial: Trial, answer: Any) -> str:
    """Feed orders quickly, then one by one, and end in the middle of a batch."""
    queue: asyncio.Queue[Any] = asyncio.Queue()
    async with aclosing(answer(queue, 3, 60.0)) as batches:
        for order in range(7):
            queue.put_nowait(order)
        full = [await _next(batches) for _ in range(2)]
        if full != [[0, 1, 2], [3, 4, 5]]:
            raise NotYet(f"of seven orders at once, {full} left", "[0, 1, 2] and [3, 4, 5] at once: they are full")
        queue.put_nowait(None)
        if (rest := await _next(batches)) != [6]:
            raise NotYet(f"at the end came {rest}", "[6], the orders of the batch that was begun")
        if (more := await _next(batches)) != "the end":
            raise NotYet(f"after the end came {more}", "nothing, and no empty batch")

    queue = asyncio.Queue()
    queue.put_nowait(0)
    async with aclosing(answer(queue, 3, PATIENCE_S)) as batches:
        if (alone := await _next(batches)) != [0]:
            raise NotYet(f"of an order that came alone: {alone}", "[0], when its patience is over")

    queue = asyncio.Queue()
    feeding = asyncio.create_task(_trickle(queue, 10))
    try:
        trickled = [batch async for batch in answer(queue, 100, PATIENCE_S)]
    finally:
        feeding.cancel()
    if [order for batch in trickled for order in batch] != list(range(10)):
        raise NotYet("of ten orders that came one by one, not all left in their order", "each once")
    if len(trickled) < 3:
        seen = f"ten orders, one every {TRICKLE_S:g} s, left in {len(trickled)} batch" + "es" * (len(trickled) > 1)
        raise NotYet(seen, f"one at least every {PATIENCE_S:g} s: the first order's clock does not start anew")
    if len(trickled) == 10:
        raise NotYet("every order left by itself", f"the orders of {PATIENCE_S:g} s together")
    return "size sets the rate, patience the longest wait: say both, and say which of them you give up first"


async def _trickle(queue: "asyncio.Queue[Any]", orders: int) -> None:
    for order in range(orders):
        queue.put_nowait(order)
        await asyncio.sleep(TRICKLE_S)  # pacing: the customers' own time
    queue.put_nowait(None)


async def _next(batches: Any) -> Any:
    """Return the next batch, or in words that none came in time or that there is none."""
    try:
        async with asyncio.timeout(LONG_S):
            return await anext(batches, "the end")
    except TimeoutError:
        return "nothing in time"
