"""The checks of notebook 03: streams, answers to deliveries, expected sequences."""

import asyncio
import json
import time
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from mesh_lab.errors import OrderFormatError
from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.orders import Order, decode, encode, read_orders
from mesh_lab.patterns import flush_through, wait_routable
from mesh_lab.patterns.jetstream_wait import wait_stream

MAKES_WITHIN_S = 15.0
API_TIMEOUT_S = 12.0  # on a busy machine an election can hold up a stream of three replicas for seconds

# 3.1

DAY_S = 86_400
BOARD = "board.*"
WISHES: dict[str, tuple[object, str]] = {
    "subjects": ([BOARD], f"['{BOARD}']"),
    "max_msgs_per_subject": (1, "1, the newest of each order"),
    "max_age": (30.0 * DAY_S, f"{30 * DAY_S:,}, the seconds of 30 days"),
    "num_replicas": (3, "3: with fewer, one server can take the stream along"),
    "max_bytes": (1_000_000, "1,000,000"),
    "discard": ("new", "new: the board forgets no order to make room"),
    "retention": ("limits", "limits: whoever reads the board takes nothing away"),
    "max_msgs": (-1, "unlimited: the exercise names bytes"),
    "max_msg_size": (-1, "unlimited: the exercise names no such limit"),
    "max_consumers": (-1, "unlimited: the exercise names no such limit"),
    "no_ack": (False, "False: who publishes has to hear a refusal"),
    "mirror": (None, "None: the board's events are published to it"),
    "sources": (None, "None: the board's events are published to it"),
}


@exercise(
    "3.1",
    title="a board for the warehouse",
    answer="async function",
    expects="a stream BOARD on board.*, made with js.add_stream",
    hint="js.add_stream takes the fields of nats.js.api.StreamConfig. Those that you need here begin with max_, num_ "
    "and dis. Times are in seconds.",
    within=30.0,
)
async def makes_a_board(trial: Trial, answer: Any) -> str:
    """Read the stream's configuration from the server, then publish several events of one order."""
    client = await trial.client()
    js = await trial.absent(client, "BOARD", api_timeout=API_TIMEOUT_S)
    hung = f"make_board() was still at work {MAKES_WITHIN_S:g} s after it was called"
    await trial.returns(answer(js), hung, "a stream, and an end", within=MAKES_WITHIN_S)
    try:
        config = (await wait_stream(js, "BOARD")).config
    except NotFoundError as err:
        raise NotYet("no stream BOARD on the server", "one that listens to board.*") from err
    for setting, (wanted, in_words) in WISHES.items():
        if (seen := getattr(config, setting) or _UNSET.get(setting, 0)) != wanted and (seen or wanted):
            raise NotYet(f"{setting} of the stream is {_shown(seen)}", in_words)
    await wait_routable(client, "BOARD")
    for event in (b"placed", b"paid", b"shipped"):
        try:
            await js.publish("board.000001", event)
        except APIError as err:
            seen = f"'{event.decode()}' was refused while the board shows an earlier event ({err.description})"
            raise NotYet(seen, "the newer event in place of the older one") from err
    await js.publish("board.000002", b"placed")
    for order, newest in (("board.000001", b"shipped"), ("board.000002", b"placed")):
        try:
            shown = repr((await js.get_last_msg("BOARD", order)).data)
        except NotFoundError:
            shown = "nothing"
        if shown != repr(newest):
            raise NotYet(
                f"after placed, paid and shipped of one order, the board shows {shown} for {order}", f"{newest!r}"
            )
    return "a key-value bucket, as in notebook 04, is a stream with such settings"


# How nats-py shows what was not set, differently from server to server.
_UNSET: dict[str, object] = {
    "retention": "limits",
    "max_msgs": -1,
    "max_msg_size": -1,
    "max_consumers": -1,
    "no_ack": False,
}


def _shown(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "unlimited" if value in (0, -1) else f"{value:,.0f}"
    return str(value)


# 3.2

SOONEST_S, LATEST_S = 0.2, 0.5
SLACK_S = 0.15  # for the handler's own way, and the check's look at its clock
GOOD, LATER, POISON = "a good order", "the order whose payment failed", "the message that is no order"
NO_ORDERS = (b"one CD, please", b"", b"\xff\xfe", b"{}", b'{"id":"*","region":"eu","customer":1}', b"null", b"[1]")
AWAY = (
    ConnectionError("the payment provider is away"),
    ConnectionRefusedError(111, "refused"),
    ConnectionResetError(),
    BrokenPipeError(32, "broken pipe"),
)


class _Answer(NamedTuple):
    """What a handler told the server about one delivery, first of all."""

    kind: str
    delay_s: float = 0.0


class _Till:
    """Charges orders, unless the provider is away, and sees on the wire what is said of them meanwhile."""

    def __init__(self, trial: Trial, client: Client) -> None:
        self._trial, self._client = trial, client
        self._said: dict[str, _Answer] = {}
        self._delivery_of: dict[str, str] = {}
        self.charged: list[str] = []
        self.away_for: dict[str, int] = {}
        self.failed_at = 0.0
        self.complaint: NotYet | None = None

    async def charge(self, order: Order) -> None:
        if not isinstance(order, Order):
            self.complaint = NotYet(f"charge was called with {type(order).__name__}", "the decoded order")
            raise self.complaint
        if order.id not in self._delivery_of:
            self.complaint = NotYet("charge was called with an order that was not delivered", "the one in the message")
            raise self.complaint
        self.charged.append(order.id)
        await asyncio.sleep(0.01)  # work
        away = self.away_for.get(order.id, 0)
        await flush_through(self._client)
        if said := self.said_of(self._delivery_of[order.id]):
            self.complaint = NotYet(f"an order was {said.kind} before charge returned", "an answer after it")
        if away:
            self.away_for[order.id] -= 1
            self.failed_at = time.monotonic()
            raise AWAY[-away]

    async def note(self, msg: Msg) -> None:
        """Note what is said of a delivery; its subject is the one to which answers go."""
        word, _, options = msg.data.partition(b" ")
        if word != b"+WPI":  # no answer, but a word that one will come
            delay_ns = json.loads(options)["delay"] if word == b"-NAK" and options else 0
            self._said.setdefault(msg.subject, _Answer(WORDS.get(word, "acknowledged"), delay_ns / 1e9))

    def said_of(self, delivery: str) -> _Answer | None:
        """Return the first that was said of a delivery: servers listen to no other."""
        return self._said.get(delivery)

    async def handle(self, answer: Any, msg: Msg, what: str) -> tuple[_Answer, int]:
        """Hand a message over; return what was said of it, and how often charge was called."""
        with suppress(OrderFormatError):
            self._delivery_of[decode(msg.data).id] = msg.reply
        before, self._trial.case = len(self.charged), f"it got {what}"
        hung = f"handle() was still at work {LONG_S:g} s after it got {what}"
        await self._trial.returns(answer(msg, self.charge), hung, "an answer to the message, and an end")
        self.returned_at = time.monotonic()
        if self.complaint:
            raise self.complaint
        said = await self._trial.soon(partial(self.said_of, msg.reply), f"{what} was never answered", EXPECTED[what])
        return said, len(self.charged) - before


WORDS = {b"-NAK": "given back", b"+TERM": "terminated"}
EXPECTED = {
    GOOD: "an ack when charge returns",
    LATER: "to come again 0.2 to 0.5 s later, and an ack when charge returns",
    POISON: "to be terminated: no other delivery, and not done",
}


@exercise(
    "3.2",
    title="a poison order and a bad moment",
    answer="async function",
    expects="each message answered: acknowledged, or given back with a delay, or terminated",
    hint="decode raises OrderFormatError. Of the answers in the table above, one means never again, and one means "
    "again, but not now.",
    within=30.0,
)
async def handles_poison_and_bad_moments(trial: Trial, answer: Any) -> str:
    """Hand over orders and messages that are none, and read on the wire what the answer says of each."""
    stream = "CHECK-3-2"
    client = await trial.client()
    js = await trial.stream(client, stream, subjects=["check32.*"], api_timeout=API_TIMEOUT_S)
    till = _Till(trial, client)
    await trial.serve(client, till.note, "$JS.ACK.>")
    config = ConsumerConfig(ack_wait=60.0)  # silence is no answer: it brings nothing back while the check looks
    reader = trial.own(await js.pull_subscribe("check32.*", durable="till", stream=stream, config=config))
    await wait_routable(client, stream, "till")

    async def delivered(*payloads: bytes, within: float = 5.0) -> list[Msg]:
        for payload in payloads:
            await js.publish("check32.orders", payload)
        msgs: list[Msg] = []
        while len(msgs) < (len(payloads) or 1):
            msgs += await reader.fetch(1, timeout=within)
        return msgs

    first, second, later, *three = list(read_orders(first=6))
    for good in (first, second):
        (msg,) = await delivered(encode(good))
        _expect_charged(*await till.handle(answer, msg, GOOD))
    till.away_for[later.id] = len(AWAY)
    (msg,) = await delivered(encode(later))
    for _ in AWAY:
        with MachineClock() as clock:
            said, charges = await till.handle(answer, msg, LATER)
            slept = till.returned_at - till.failed_at
        _expect_given_back(said, charges, slept, clock.longest_pause_s)
        (msg,) = await delivered()
    _expect_charged(*await till.handle(answer, msg, LATER), what=LATER)
    for payload in NO_ORDERS:
        (msg,) = await delivered(payload)
        _expect_terminated(*await till.handle(answer, msg, POISON))
    till.away_for[three[0].id] = 1
    msgs = await delivered(*[encode(order) for order in three], b"one CD, please")
    kinds = (LATER, GOOD, GOOD, POISON)
    async with asyncio.TaskGroup() as group:
        at_once = [group.create_task(till.handle(answer, msg, what)) for msg, what in zip(msgs, kinds, strict=True)]
    for what, handled in zip(kinds, at_once, strict=True):
        said, _ = handled.result()
        wanted = {LATER: "given back", GOOD: "acknowledged", POISON: "terminated"}[what]
        if said.kind != wanted:
            raise NotYet(f"{what} was {said.kind}, with others at work at the same time", EXPECTED[what])
    return "term stops the deliveries; the message itself stays in the stream, for whoever has to look into it"


def _expect_charged(said: _Answer, charges: int, what: str = GOOD) -> None:
    if said.kind != "acknowledged":
        again = f", in the delivery after {len(AWAY)} failures" if what == LATER else ""
        raise NotYet(f"{what} was {said.kind}{again}", EXPECTED[what])
    if charges != 1:
        times = f"charged {charges} times" if charges else "never charged"
        raise NotYet(f"{what} was acknowledged and {times}", "charge called once, with the decoded order")


def _expect_given_back(said: _Answer, charges: int, slept: float, stalled: float) -> None:
    """Raise NotYet unless an order comes again in time: so long the handler waited itself, so long the server is to."""
    if charges != 1:
        called = f"called {charges} times in one delivery of" if charges else "not called for"
        raise NotYet(f"charge was {called} {LATER}", "one call for each delivery: the order is delivered again")
    if said.kind == "acknowledged":
        raise NotYet(f"{LATER} was given up before it succeeded", EXPECTED[LATER])
    if said.kind == "terminated":
        raise NotYet(f"{LATER} was terminated", EXPECTED[LATER])
    pause = said.delay_s + slept
    if pause < SOONEST_S or said.delay_s > LATEST_S or pause > LATEST_S + SLACK_S + stalled:
        given = "at once" if not said.delay_s else f"for {said.delay_s:g} s"
        waited = " after a wait of its own" if slept > SLACK_S + stalled else ""
        raise NotYet(f"{LATER} was given back {given}{waited}", "to come again 0.2 to 0.5 s after the failure")


def _expect_terminated(said: _Answer, charges: int) -> None:
    if charges:
        raise NotYet(f"{POISON} was charged", EXPECTED[POISON])
    if said.kind == "acknowledged":
        raise NotYet(f"{POISON} counts as done", EXPECTED[POISON])
    if said.kind != "terminated":
        raise NotYet(f"{POISON} was {said.kind}", EXPECTED[POISON])


# 3.3


HUNG_S = 20.0  # an answer may pause after each of many conflicts
# What happened before, what rivals store meanwhile, what is returned, and how the order's life reads then.
MANY = " checked" * 25
CASES: dict[str, tuple[str, str, bool, str]] = {
    "a paid order": ("placed paid", "", True, "placed paid cancelled"),
    "a shipped order": ("placed paid shipped", "", False, "placed paid shipped"),
    "an order that was just placed": ("placed", "", True, "placed cancelled"),
    "an order that is shipped while you decide": ("placed paid", "shipped", False, "placed paid shipped"),
    "an order with two more events while you decide": ("placed", "paid packed", True, "placed paid packed cancelled"),
    "an order that is never left alone": ("placed", f"paid{MANY}", True, f"placed paid{MANY} cancelled"),
}


@exercise(
    "3.3",
    title="cancel, unless it is too late",
    answer="async function",
    expects="True with the order cancelled, or False with nothing stored",
    hint="Read, decide, append with both headers. A refusal with err_code 10071 means that your decision is out of "
    "date: begin again with reading. How often can that happen?",
    within=60.0,
)
async def cancels_in_time(trial: Trial, answer: Any) -> str:
    """Let a rival write before whatever the answer stores, and read the orders' lives afterwards."""
    stream = "CHECK-3-3"
    client = await trial.client()
    js = await trial.stream(client, stream, subjects=["check33.*.*.*"], api_timeout=API_TIMEOUT_S)
    for number, (what, (before, rivals, wanted, life)) in enumerate(CASES.items(), 1):
        order = f"check33.eu.{number:06d}"
        for event in before.split():
            await js.publish(f"{order}.{event}")
        # Other orders, of the same id or of one that begins like it, are none of its business, and mislead.
        event = "shipped" if wanted else "placed"
        await js.publish(f"check33.us.{number:06d}.{event}")
        await js.publish(f"{order}0.{event}")
        trial.case = f"it got {what}"
        to_come, stored = rivals.split(), (await js.stream_info(stream)).state.messages

        async def rival(subject: str, order: str = order, to_come: list[str] = to_come) -> None:
            if to_come and subject.startswith(f"{order}."):
                await js.publish(f"{order}.{to_come.pop(0)}")

        late = (await trial.rivalled(rival)).jetstream(timeout=API_TIMEOUT_S)
        hung = f"cancel() was still at work {HUNG_S:g} s after it got {what}"
        returned = await trial.returns(answer(late, stream, order), hung, "True or False", within=HUNG_S)
        if to_come and (await _life(js, stream, order)).endswith("cancelled"):
            raise NotYet(f"{what} was cancelled by another connection than that of js", "a publish with the js given")
        if (seen := await _life(js, stream, order)) != life:
            raise NotYet(f"{what} reads: {seen}", life)
        trial.equal(returned, wanted, f"for {what}, ")
        new = (await js.stream_info(stream)).state.messages - stored
        if new != (due := len(life.split()) - len(before.split())):
            raise NotYet(f"for {what}, {new - due} events of other orders were stored", "none")
    return "whoever loses the race loses a round trip, and nobody ever waited for a lock"


async def _life(js: JetStreamContext, stream: str, order: str) -> str:
    """Return an order's events, oldest first, in one line."""
    last = (await js.stream_info(stream)).state.last_seq
    subjects = [(await js.get_msg(stream, seq=seq)).subject or "" for seq in range(1, last + 1)]
    return " ".join(subject.rpartition(".")[2] for subject in subjects if subject.startswith(f"{order}."))
