"""The checks of notebook 03: streams, answers to deliveries, expected sequences."""

import time
from collections import Counter
from itertools import pairwise
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, PubAck
from nats.js.errors import APIError, NotFoundError

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import Order, encode, read_orders
from mesh_lab.patterns import wait_routable

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
    await answer(js)
    try:
        config = (await js.stream_info("BOARD")).config
    except NotFoundError as err:
        raise NotYet("no stream BOARD on the server", "one that listens to board.*") from err
    for setting, (wanted, in_words) in WISHES.items():
        if (seen := getattr(config, setting)) != wanted:
            raise NotYet(f"{setting} of the stream is {_shown(seen)}", in_words)
    await wait_routable(client, "BOARD")
    for event in (b"placed", b"paid", b"shipped"):
        try:
            await js.publish("board.000001", event)
        except APIError as err:
            seen = f"'{event.decode()}' was refused while the board shows an earlier event ({err.description})"
            raise NotYet(seen, "the newer event in place of the older one") from err
    if (newest := (await js.get_last_msg("BOARD", "board.000001")).data) != b"shipped":
        raise NotYet(f"after placed, paid and shipped the board shows {newest!r}", "b'shipped'")
    return "a key-value bucket, further down, is a stream with such settings"


def _shown(value: object) -> str:
    if isinstance(value, int | float):
        return "unlimited" if value in (0, -1) else f"{value:,.0f}"
    return str(value)


# 3.2

PAUSE_S, MOST_DELIVERIES = 0.2, 3
GOOD, LATER, POISON = "a good order", "the order whose payment failed", "the message that is no order"


class _Till:
    """Charges orders; the provider is away for the first two tries of one of them."""

    def __init__(self, away_for: str) -> None:
        self.away_for = away_for
        self.tries: dict[str, list[float]] = {}

    async def charge(self, order: Order) -> None:
        tries = self.tries.setdefault(order.id, [])
        tries.append(time.monotonic())
        if order.id == self.away_for and len(tries) <= 2:
            raise ConnectionError("the payment provider is away")


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
    """Publish two orders and then a message that is none, and look at deliveries, charges and the server's words."""
    good, later = list(read_orders(first=2))
    stream, till = "CHECK-3-2", _Till(later.id)
    deliveries: Counter[str] = Counter()
    client = await trial.client()
    js = await trial.stream(client, stream, subjects=["check32.*"], api_timeout=API_TIMEOUT_S)
    terminated = trial.own(await client.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{stream}.*"))
    config = ConsumerConfig(ack_wait=60.0)  # silence is no answer: it brings nothing back while the check looks
    reader = trial.own(await js.pull_subscribe("check32.*", durable="till", stream=stream, config=config))
    await wait_routable(client, stream, "till")

    async def work(within: float) -> bool:
        """Hand over what is delivered until all of it is settled; return whether that was so in time."""
        deadline = time.monotonic() + within
        while True:
            try:
                (msg,) = await reader.fetch(1, timeout=0.05)
            except TimeoutError:
                info = await reader.consumer_info()
                if info.num_pending == info.num_ack_pending == 0:
                    return True
            else:
                deliveries[msg.subject] += 1
                await answer(msg, till.charge)
            if time.monotonic() > deadline or max(deliveries.values(), default=0) > MOST_DELIVERIES:
                return False

    await js.publish("check32.good", encode(good))
    if not await work(3.0):
        raise _unanswered(GOOD, deliveries["check32.good"], "one delivery, and an ack when charge returns")
    if len(till.tries.get(good.id, [])) != 1:
        raise NotYet(f"{GOOD} was acknowledged and never charged", "charge called with the decoded order")
    await js.publish("check32.later", encode(later))
    answered, tries = await work(5.0), till.tries.get(later.id, [])
    if any(after - before < PAUSE_S for before, after in pairwise(tries)):
        raise NotYet(f"{LATER} came again at once", "not sooner than 0.2 s after the failure")
    if not answered:
        raise _unanswered(LATER, deliveries["check32.later"], "to come again, and an ack when charge returns")
    if len(tries) != 3:
        raise NotYet(f"{LATER} was given up before it succeeded", "a third try, which succeeds")
    await js.publish("check32.poison", b"one CD, please")
    if not await work(3.0) or deliveries["check32.poison"] > 1:
        raise _unanswered(POISON, deliveries["check32.poison"], "one delivery and never another")
    try:
        await terminated.next_msg(timeout=1.0)
    except nats.errors.TimeoutError as err:
        raise NotYet(f"{POISON} counts as done", "terminated, which the server reports in an advisory") from err
    return "term stops the deliveries; the message itself stays in the stream, for whoever has to look into it"


def _unanswered(what: str, deliveries: int, expected: str) -> NotYet:
    seen = "was delivered again and again" if deliveries > 1 else "was never answered"
    return NotYet(f"{what} {seen}", expected)


# 3.3


class _Rivalled(JetStreamContext):
    """A JetStream context of a client that is always a moment too late: a rival publishes before it does."""

    def __init__(self, client: Client, rivals: list[str]) -> None:
        super().__init__(client, timeout=API_TIMEOUT_S)
        self._rivals = rivals
        self._plain = client.jetstream(timeout=API_TIMEOUT_S)

    async def publish(self, subject: str, *arguments: Any, **options: Any) -> PubAck:
        if self._rivals:
            await self._plain.publish(self._rivals.pop(0))
        return await super().publish(subject, *arguments, **options)


# What happened before, what rivals store meanwhile, what is returned, and how the order's life reads then.
MANY = " checked" * 12
CASES: dict[str, tuple[str, str, bool, str]] = {
    "a paid order": ("placed paid", "", True, "placed paid cancelled"),
    "a shipped order": ("placed paid shipped", "", False, "placed paid shipped"),
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
)
async def cancels_in_time(trial: Trial, answer: Any) -> str:
    """Let a rival write between the answer's reading and its writing, and read the orders' lives afterwards."""
    stream = "CHECK-3-3"
    client = await trial.client()
    js = await trial.stream(client, stream, subjects=["check33.*.*.*"], api_timeout=API_TIMEOUT_S)
    for number, (what, (before, rivals, wanted, life)) in enumerate(CASES.items(), 1):
        order = f"check33.eu.{number:06d}"
        for event in before.split():
            await js.publish(f"{order}.{event}")
        await js.publish(f"check33.us.{number:06d}.placed")  # another order's sequence is none of its business
        racing = _Rivalled(client, [f"{order}.{event}" for event in rivals.split()])
        returned = await answer(racing, stream, order)
        if (seen := await _life(js, stream, order)) != life:
            raise NotYet(f"{what} reads: {seen}", life)
        trial.equal(returned, wanted, f"for {what}, ")
    return "whoever loses the race loses a round trip, and nobody ever waited for a lock"


async def _life(js: JetStreamContext, stream: str, order: str) -> str:
    """Return an order's events, oldest first, in one line."""
    last = (await js.stream_info(stream)).state.last_seq
    subjects = [(await js.get_msg(stream, seq=seq)).subject or "" for seq in range(1, last + 1)]
    return " ".join(subject.rpartition(".")[2] for subject in subjects if subject.startswith(f"{order}."))
