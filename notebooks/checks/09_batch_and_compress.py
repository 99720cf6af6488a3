"""Checks of notebook 09: the end of every message, an atomic batch by hand, batches by size or by time."""

import asyncio
from contextlib import aclosing
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.patterns import cancel_and_join, flush_through, retry

API_TIMEOUT_S = 12.0

# 9.1

LARGEST_BYTES = 100  # headers count, too
Message = tuple[str, str, bytes]
STREAM = "CHECK-8-1"


def _load(name: str, messages: int, too_large: dict[int, int]) -> tuple[list[Message], dict[str, str]]:
    """Return messages, of which some are empty and some too large, and the word for each id."""
    load = [(f"{name}-{n}", f"check81.{n}", bytes(too_large.get(n, 20 * (n % 3)))) for n in range(messages)]
    return load, {msg_id: "refused" if n in too_large else "stored" for n, (msg_id, _, _) in enumerate(load)}


LOAD, ENDS = _load("id", 200, {3: 101, 11: 90, 150: 300})
LOAD.insert(9, ("id-again", "check81.5", b"another order on a subject"))
ENDS["id-again"] = "stored"
LOAD.append(LOAD[5])
# More than fit into the windowed publisher's window: one that stops at a refusal has not sent them all by then.
FLOOD, FLOOD_ENDS = _load("flood", 4_500, {3: 101, 4_498: 90})
UNANSWERED = [("a", "check81.a", b"1"), ("b", "check81silent.b", b"2"), ("c", "check81.c", b"3")]
WITHIN_S, SILENT_WITHIN_S = 20.0, 35.0  # the windowed publisher gives up after 30 s unless told otherwise


@exercise(
    "9.1",
    title="say what became of each",
    answer="async function",
    expects="a dict that says 'stored', 'refused' or 'unknown' for the id of every message",
    hint="publish() of the windowed publisher takes two callbacks, on_stored and on_failed, and with the second one it "
    "raises no longer. A message that the stream has already is acknowledged. retry_for says when it gives up.",
    within=60.0,
)
async def says_what_became_of_each(trial: Trial, answer: Any) -> str:
    """Publish messages of which some are too large and one comes twice, and then one that nobody answers."""
    client = await trial.client()
    config = {"subjects": ["check81.*"], "max_msg_size": LARGEST_BYTES}
    js = await trial.stream(client, STREAM, api_timeout=API_TIMEOUT_S, **config)
    sent = await _watch(trial, client)
    hangs = f"publish_all did not return in {WITHIN_S:g} s", "a word for each id"
    ends = await trial.returns(answer(client, list(LOAD)), *hangs, within=WITHIN_S)
    await flush_through(client)
    trial.kind(ends, dict, "a dict with a word for each id")
    sent.expect_asked()
    await _expect_stored(trial, js, ENDS)
    _expect_words(ends, ENDS)
    if sent.most < 2:
        raise NotYet("each message waited for the answer to the one before", "several that are outstanding at once")
    await trial.end_own()  # of many messages, only the ends count
    ends = await trial.returns(answer(client, list(FLOOD)), *hangs, within=WITHIN_S)
    await flush_through(client)
    trial.kind(ends, dict, "a dict with a word for each id")
    await _expect_stored(trial, js, ENDS | FLOOD_ENDS)
    # A machine under load answers late, so that some may be unknown.
    known = {msg_id: FLOOD_ENDS.get(msg_id) if end == "unknown" else end for msg_id, end in ends.items()}
    _expect_words(known, FLOOD_ENDS)

    async def ignore(msg: Msg) -> None:
        """Take the message and say nothing, as a stream whose leader has just died."""

    await trial.serve(client, ignore, UNANSWERED[1][1])
    hangs = f"one of three messages got no answer, and publish_all did not return in {SILENT_WITHIN_S:g} s", "'unknown'"
    ends = await trial.returns(answer(client, list(UNANSWERED)), *hangs, within=SILENT_WITHIN_S)
    trial.kind(ends, dict, "a dict with a word for each id")
    _expect_words(ends, {"a": "stored", "b": "unknown", "c": "stored"})
    return "whoever knows the end of each message can carry on with the others, and come back to the rest"


def _expect_words(ends: dict[Any, Any], wanted: dict[str, str]) -> None:
    if missing := [msg_id for msg_id in wanted if msg_id not in ends]:
        raise NotYet(f"nothing was said of {missing[0]}", "a word for each id")
    why = {"unknown": "since no answer came", "stored": "as the server said", "refused": "as the server said"}
    for msg_id, end in wanted.items():
        if ends[msg_id] != end:
            raise NotYet(f"{msg_id} was called {ends[msg_id]!r}", f"{end!r}, {why[end]}")
    if len(ends) > len(wanted):
        raise NotYet("there are words for ids that no message has", "one for each id")


async def _expect_stored(trial: Trial, js: JetStreamContext, ends: dict[str, str]) -> None:
    wanted = list(ends.values()).count("stored")

    async def stored() -> int:
        return (await retry(lambda: js.stream_info(STREAM))).state.messages

    async def all_stored() -> bool:
        return await stored() >= wanted

    wrong = "some messages that the stream takes are not in it", "one that is refused does not stop the others"
    await trial.soon(all_stored, *wrong, within=LONG_S)
    if await stored() > wanted:
        raise NotYet("one message is in the stream twice", f"{wanted:,} messages: ids keep a second copy out")


class _Sent:
    """What a client sends, as its server passes it on."""

    def __init__(self) -> None:
        self.most = 0
        """How many messages had no reply yet, at most."""
        self.asked = self.silent = 0
        self.other_id = ""
        self._ids = {(subject, payload, msg_id) for msg_id, subject, payload in (*LOAD, *FLOOD, *UNANSWERED)}
        self._waiting = set[str]()

    async def note(self, msg: Msg) -> None:
        """Count a message, or a reply.

        One subscription receives both, in the order in which the client's server passes them on: a message that the
        client sends after a reply came comes, at that server, after the reply.
        """
        if msg.subject.startswith("check81."):
            if msg.reply:
                self._waiting.add(msg.reply)
                self.asked += 1
                self.most = max(self.most, len(self._waiting))
            else:
                self.silent += 1
            msg_id = (msg.headers or {}).get("Nats-Msg-Id", "")
            if (msg.subject, msg.data, msg_id) not in self._ids:
                self.other_id = f"a message was sent {'under another Nats-Msg-Id' if msg_id else 'without Nats-Msg-Id'}"
        self._waiting.discard(msg.subject)

    def expect_asked(self) -> None:
        if self.other_id:
            raise NotYet(self.other_id, "each as it was given, under its id")
        if self.silent:
            what = "some messages were" if self.asked else "the messages were"
            raise NotYet(f"{what} sent without a subject for the reply", "an answer for each")


async def _watch(trial: Trial, client: Client) -> _Sent:
    sent = _Sent()
    await trial.serve(client, sent.note, ">")
    return sent


# 9.2

LAST_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
Batch = list[tuple[str, bytes, dict[str, str]]]


def _batch(*letters: str, **more: dict[str, str]) -> Batch:
    return [(f"check82.{letter}", f"order {letter}".encode(), more.get(letter, {})) for letter in letters]


CASES: tuple[tuple[str, Batch, bool], ...] = (
    ("three messages", _batch("b", "a", "c"), True),
    ("a condition in the second that does not hold", _batch("d", "a", "e", a={LAST_SEQUENCE: "99"}), False),
    ("a condition in the first that does not hold", _batch("a", "d", "e", a={LAST_SEQUENCE: "99"}), False),
    ("a condition in the last that does not hold", _batch("d", "e", "a", a={LAST_SEQUENCE: "99"}), False),
    ("a condition that holds", _batch("d", "e", e={LAST_SEQUENCE: "0", "Colour": "blue"}), True),
    ("a single message", _batch("f"), True),
    ("twelve messages", [*_batch(*"ghijklmnopq"), ("check82.r", b"", {})], True),
    ("one message that is too long", [*_batch("s"), ("check82.t", bytes(1_001), {}), *_batch("u")], False),
)


@exercise(
    "9.2",
    title="a batch by hand",
    answer="async function",
    expects="all messages stored as one batch and True, or none and False",
    hint="Three headers: Nats-Batch-Id on all, Nats-Batch-Sequence counted from 1, Nats-Batch-Commit: 1 on the last. "
    "Publish the others without a reply, ask with the last one by nc.request, and look into the JSON that comes back.",
    within=30.0,
)
async def stores_a_batch_by_hand(trial: Trial, answer: Any) -> str:
    """Let the answer store batches, one by one and two at the same time, and look at what the stream holds."""
    client, stream = await trial.client(), "CHECK-8-2"
    config = {"subjects": ["check82.*"], "allow_atomic": True, "max_msg_size": 1_000}
    js = await trial.stream(client, stream, api_timeout=API_TIMEOUT_S, **config)
    before, ids = 0, set[str]()
    for case, messages, wanted in CASES:
        returned = await answer(client, [(subject, payload, dict(more)) for subject, payload, more in messages])
        stored = (await js.stream_info(stream)).state.messages - before
        if not wanted and stored > 0:
            raise NotYet(f"with {case}, {stored} of {len(messages)} messages were stored", "none")
        if wanted and stored != len(messages):
            raise NotYet(f"{stored} messages were stored of {case}", f"{len(messages)}")
        if wanted:
            batch = await _expect_a_batch(js, stream, before, case, messages)
            if batch in ids:
                raise NotYet("two batches were sent under the same Nats-Batch-Id", "an id that no other batch has")
            ids.add(batch)
        before += stored
        trial.equal(returned, wanted, f"for {case}, ")
    await _expect_two_at_once(trial, js, client, answer)
    return "readers see the whole batch or nothing of it; a batch that stands still is dropped after 10 s"


async def _expect_a_batch(js: JetStreamContext, stream: str, before: int, case: str, messages: Batch) -> str:
    """Compare what the stream holds behind a sequence number with a batch, and return the batch's id."""
    ids = set[str]()
    for place, (subject, payload, more) in enumerate(messages, start=1):
        message = await js.get_msg(stream, before + place)
        headers = message.headers or {}
        if headers.get("Nats-Batch-Sequence") != str(place):
            raise NotYet(f"message {place} of {case} was stored by itself", "all of them as one batch, with its id")
        ids.add(headers.get("Nats-Batch-Id", ""))
        if (message.subject, message.data or b"") != (subject, payload):
            raise NotYet(f"message {place} of {case} is stored with another subject or payload", "as it was given")
        if lost := [name for name, value in more.items() if headers.get(name) != value]:
            raise NotYet(
                f"message {place} of {case} is stored without its header {lost[0]}", "the headers it came with"
            )
    if len(ids) > 1 or "" in ids:
        raise NotYet(f"{case} are not stored under one Nats-Batch-Id", "one batch")
    return ids.pop()


async def _expect_two_at_once(trial: Trial, js: JetStreamContext, client: Client, answer: Any) -> None:
    before = (await js.stream_info("CHECK-8-2")).state.messages
    batches = _batch("v", "w", "x"), _batch("y", "z")
    returned = await asyncio.gather(*(answer(client, batch) for batch in batches))
    what = "two batches at the same time"
    if (stored := (await js.stream_info("CHECK-8-2")).state.messages - before) != 5:
        raise NotYet(f"of {what}, {stored} of 5 messages were stored", "both, each under an id that no other batch has")
    trial.equal(returned, [True, True], f"for {what}, ")


# 9.3

EARLY_S, LATE_S = 0.03, 0.25
STALL_S, TRIES = 0.1, 3
END = None


class _Feed(NamedTuple):
    what: str
    size: int
    patience: float
    orders: list[tuple[float, Any]]
    """When each of them comes, in seconds, and the end."""


FEEDS = (
    _Feed("of seven orders at once", 3, 60.0, [*((0.0, n) for n in range(7)), (0.2, END), (0.2, "after the end")]),
    _Feed("of an order that came alone", 3, 0.4, [(0.25, 0), (1.1, 1), (1.8, END)]),
    _Feed("of orders that came one by one", 100, 0.4, [*((0.1 + 0.15 * n, n) for n in range(9)), (1.5, END)]),
    _Feed("with nothing but the end", 3, 0.2, [(0.1, END)]),
    _Feed("of four orders at once", 2, 60.0, [*((0.0, n) for n in range(4)), (0.1, END)]),
    _Feed("of three orders with size 1", 1, 60.0, [*((0.0, n) for n in range(3)), (0.1, END)]),
    _Feed("when nothing had come for a while", 3, 0.2, [(0.9, 0), (1.0, END)]),
    _Feed("of orders that are empty", 5, 60.0, [*((0.0, order) for order in (0, "", b"", (), False)), (0.1, END)]),
    _Feed("of an order that may wait longer", 3, 0.9, [(0.0, 0), (1.5, END)]),
    _Feed("of orders that became enough", 3, 0.9, [(0.0, 0), (0.1, 1), (0.3, 2), (0.5, 3), (0.6, 4), (1.0, END)]),
)


@exercise(
    "9.3",
    title="full, or late",
    answer="async generator",
    expects="batches that leave when they are full, or when their first order has waited long enough",
    hint="Two waits in turn: for the first order of a batch without a limit, for each further one with what is left of "
    "the batch's own time. asyncio.timeout_at takes a moment on the loop's clock, loop.time() + patience, and a moment "
    "does not move when another order comes.",
    within=20.0,
)
async def leaves_full_or_late(trial: Trial, answer: Any) -> str:
    """Feed orders in several ways, all at the same time, and look at what leaves when."""
    for attempt in range(TRIES):
        with MachineClock() as clock:
            feeds = [asyncio.create_task(_feed(answer, feed)) for feed in FEEDS]
            try:
                for feed in feeds:  # the first one that is wrong decides
                    await feed
            except NotYet:
                if clock.longest_pause_s < STALL_S or attempt == TRIES - 1:
                    raise
                continue  # the machine's fault, perhaps
            finally:
                await cancel_and_join(*feeds)
        break
    return "size sets the rate, patience the longest wait: say both, and say which of them you give up first"


async def _feed(answer: Any, feed: _Feed) -> None:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    loop, due = asyncio.get_running_loop(), _due(feed)
    began = loop.time()

    def put(at: float) -> None:
        for due_at, order in feed.orders:
            if due_at == at:
                queue.put_nowait(order)

    for at in {at for at, _ in feed.orders}:
        loop.call_at(began + at, put, at)
    ends_at = next(at for at, order in feed.orders if order is END)
    async with aclosing(answer(queue, feed.size, feed.patience)) as batches:
        for wanted, at, why in due:
            left = await _next(batches, began + at + LATE_S)
            early = loop.time() < began + at - EARLY_S
            expected = f"{wanted} {why}"
            if left == []:
                raise NotYet(f"{feed.what}, an empty list left", expected)
            if left != wanted:
                raise NotYet(f"{feed.what}, {left} left", expected)
            if early:
                raise NotYet(f"{feed.what}, {left} left too early", expected)
        if (more := await _next(batches, began + ends_at + LATE_S)) != "the end":
            raise NotYet(f"{feed.what}, after all others {more} left", "the end, and no empty list")


def _due(feed: _Feed) -> list[tuple[list[Any], float, str]]:
    """Return the lists that should leave, with the time and the reason."""
    due: list[tuple[list[Any], float, str]] = []
    filled: list[Any] = []
    late = 0.0
    for at, order in feed.orders:
        if filled and at > late:
            due.append((filled, late, f"{feed.patience:g} s after its first order came"))
            filled = []
        if order is END:
            return [*due, (filled, at, "at the end")] if filled else due
        late = late if filled else at + feed.patience
        filled = [*filled, order]
        if len(filled) == feed.size:
            due.append((filled, at, "as soon as it is full"))
            filled = []
    return due


async def _next(batches: Any, until: float) -> Any:
    """Return the next batch, or in words that none came in time or that there is none."""
    try:
        async with asyncio.timeout_at(until):
            return await anext(batches, "the end")
    except TimeoutError:
        return "nothing in time"
