"""Checks of notebook 17: a subject from a stranger's text, a consumer that is not stolen, a message held on to."""

import asyncio
import contextlib
import json
import string
import time
from itertools import pairwise
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.patterns import cancel_and_join, eventually, flush_through, retry, wait_routable

# 17.1

ALLOWED = string.ascii_letters + string.digits + "-_"
FINE = ["1", "000001", "a-b", "A_1", "x" * 32, *ALLOWED, *("aZ9-_"[:n] * 6 for n in range(1, 6))]
BAD = {
    "": "an empty number",
    "1.2": "a dot",
    "1.shipped": "a dot",
    "*": "a star",
    "1*": "a star",
    ">": "a >",
    "1 2": "a space",
    " 1": "a space at the beginning",
    "1 ": "a space at the end",
    "1\t": "a tab",
    "1\n": "a line break at the end",
    "\n1": "a line break at the beginning",
    "1\n2": "a line break",
    "\r\nPUB x 0": "a line of the protocol",
    "x" * 33: "33 characters",
    "x" * 64: "64 characters",
    "1\f": "a form feed",
    "1\u00a0": "a space that does not break",
    "\x00": "a zero byte",
    "\u0661": "a digit that is not ASCII",
    "\u00b2": "a digit that is not ASCII",
    "\uff11": "a digit that is not ASCII",
    "\u00e9": "a letter that is not ASCII",
    "a\u0301": "a letter that is not ASCII",
    "\u017f": "a letter that is not ASCII, the long s",
    "\u212a": "a letter that is not ASCII, the sign of Kelvin",
    "\u200b1": "a space without width",
    "\ud800": "half of a character",
    "a/b": "a slash",
}


def _latin_1() -> dict[str, str]:
    """Return each other character of Latin-1 alone and in three places of a number, each as it is written in Python."""
    others = [chr(code) for code in range(256) if chr(code) not in ALLOWED]
    return {number: repr(number) for one in others for number in (f"1{one}2", one, f"1{one}", f"{one}1")}


@exercise(
    "17.1",
    title="a subject from a stranger's text",
    answer="function",
    expects="a subject of four words, or ValueError",
    hint="re.fullmatch with the characters that you allow is safer than a list of those that you forbid. $ in a "
    "regular expression also matches before a line break at the end.",
)
async def makes_safe_subjects(trial: Trial, answer: Any) -> str:
    """Give it numbers that are fine, and some that are not."""
    for number in FINE:
        trial.case = f"given {number!r}"
        try:
            subject = answer(number)
        except ValueError as err:
            raise NotYet(f"{number!r} was refused", "a subject") from err
        if subject != f"orders.eu.{number}.placed":
            raise NotYet(f"{number!r} became {subject!r}", f"'orders.eu.{number}.placed'")
    for number, content in (BAD | _latin_1() | BAD).items():
        trial.case = f"given {content}"
        try:
            answer(number)
        except ValueError:
            continue
        raise NotYet(f"{content} was let through", "ValueError")
    return "what is allowed is a short list, what is forbidden never ends"


# 17.2

DEFAULT_S = 30.0  # the server's own ack_wait


class _Case(NamedTuple):
    """A consumer that its owner made, and with what somebody else opens it."""

    name: str
    owned: dict[str, Any]
    asked: dict[str, Any]
    same: bool = False


EU: dict[str, Any] = {"filter_subject": "orders.eu.>", "ack_wait": 9.0}
CASES = (
    _Case("opened with another filter_subject", EU, {**EU, "filter_subject": "orders.us.>"}),
    _Case("opened with a wider filter_subject", EU, {**EU, "filter_subject": "orders.>"}),
    _Case("opened without its filter_subject", EU, {"ack_wait": 9.0}),
    _Case("opened with another ack_wait", EU, {**EU, "ack_wait": 10.0}),
    _Case("opened without its ack_wait of 9 s", EU, {"filter_subject": "orders.eu.>"}),
    _Case("opened with another filter_subject and ack_wait", EU, {"filter_subject": "orders.us.>", "ack_wait": 10.0}),
    _Case("opened with a filter_subject that it has not", {"ack_wait": 9.0}, EU),
    _Case("opened with an ack_wait other than its default", {}, {"ack_wait": 10.0}),
    _Case("opened with the ack_wait that is its default", {}, {"ack_wait": DEFAULT_S}, same=True),
    _Case("opened without ack_wait, which is the default", {"ack_wait": DEFAULT_S}, {}, same=True),
    _Case("opened with both as they are", EU, EU, same=True),
    _Case("opened with both as they are, and another max_deliver", {**EU, "max_deliver": 3}, EU, same=True),
)


@exercise(
    "17.2",
    title="make a consumer, steal none",
    answer="async function",
    expects="a consumer that is made once and never changed",
    hint="js.consumer_info(stream, name) raises nats.js.errors.NotFoundError, or returns what there is: its config has "
    "filter_subject and ack_wait.",
    within=30.0,
)
async def steals_no_consumer(trial: Trial, answer: Any) -> str:
    """Open consumers that are not there, open them again, and open somebody else's with the same and other settings."""
    js = await trial.stream(await trial.client(on=await trial.own_mesh()), "PARCELS", subjects=["orders.>"])
    await _make_and_open_again(trial, js, answer)
    for at, case in enumerate(CASES):
        name = f"owner-{at}"
        owned = ConsumerConfig(durable_name=name, max_ack_pending=7, description="the owner's", **case.owned)
        await js.add_consumer("PARCELS", owned)
        before = (await _consumers(js))[name]
        trial.case, raised = case.name, False
        try:
            await answer(js, "PARCELS", ConsumerConfig(durable_name=name, **case.asked))
        except ValueError:
            raised = True
        now = (await _consumers(js)).get(name)
        if now is None:
            raise NotYet(f"{case.name}, the consumer was removed", "that it is left alone")
        changed = [key for key, value in vars(before.config).items() if getattr(now.config, key) != value]
        if changed:
            raise NotYet(f"{case.name}, the consumer's {changed[0]} was changed", "that it is left alone")
        if now.created != before.created:
            raise NotYet(f"{case.name}, the consumer was made anew", "that it is left alone")
        if raised and case.same:
            raise NotYet(f"{case.name}, ValueError was raised", "that it returns")
        if not raised and not case.same:
            raise NotYet(f"{case.name}, nothing was raised", "ValueError")
    return "a name belongs to whoever made it; others are told"


async def _make_and_open_again(trial: Trial, js: JetStreamContext, answer: Any) -> None:
    settings = {**EU, "max_deliver": 4, "max_ack_pending": 50, "deliver_policy": DeliverPolicy.NEW}
    for name, config in {
        "billing": ConsumerConfig(durable_name="billing", ack_policy=AckPolicy.ALL, **settings),
        "plain": ConsumerConfig(durable_name="plain"),
    }.items():
        others = list(await _consumers(js))
        trial.case = f"opened when the stream has no consumer {name}"
        await answer(js, "PARCELS", config)
        if set(there := await _consumers(js)) != {*others, name}:
            has = ", ".join(sorted(there)) or "no consumers"
            raise NotYet(f"{trial.case}, and then it has {has}", ", ".join([*others, name]))
        made = await js.consumer_info("PARCELS", name)
        for key, value in vars(config).items():
            if value is not None and getattr(made.config, key) != value:
                raise NotYet(f"the consumer was made with another {key}", "all settings of the config")
        trial.case = "opened again"
        await answer(js, "PARCELS", config)
        if (await js.consumer_info("PARCELS", name)).created != made.created:
            raise NotYet(f"{trial.case}, the consumer was made anew", "that it is left alone")
    trial.case = "opened by two at once"
    config = ConsumerConfig(durable_name="shared", **EU)
    await asyncio.gather(*(answer(js, "PARCELS", config) for _ in range(2)))


async def _consumers(js: JetStreamContext) -> dict[str, ConsumerInfo]:
    return {info.name: info for info in await retry(lambda: js.consumers_info("PARCELS"))}


# 17.3

ACK_WAIT_S = 1.0
EVERY_S, SOONEST_S, LATEST_S = 0.3, 0.24, 0.38
LONGEST_GAP_S = 0.6  # what a machine that is not idle makes of one of them
TRIES = 3
PAUSE_S = 0.05  # less than LATEST_S is above EVERY_S: a machine that stalls for longer makes a right answer look late
WORKS_S = {"long": 2.1, "short": 0.75, "fails late": 1.0, "fails at once": 0.0, "done at once": 0.0}
DELAY_S = 0.5


class _NoBoxError(LookupError):
    """What the work raises."""


@exercise(
    "17.3",
    title="hold on to a message",
    answer="async function",
    expects="a message that is delivered once, however long the work takes",
    hint="A task that sleeps and says in_progress, in a loop, beside the work. Cancel it before you acknowledge, and "
    "also when the work raises.",
    within=40.0,
)
async def holds_on(trial: Trial, answer: Any) -> str:
    """Let messages be held side by side, while work is long, short or fails; then two alone; and hear what is said."""
    own = await trial.own_mesh()
    client, ear = await trial.client(on=own), await trial.client(on=own)
    js = await trial.stream(client, "WORK", subjects=["work.*"])
    for at in range(TRIES):
        try:
            with MachineClock() as clock:
                await _Desk(trial, js, answer, f"desk-{at}").work(ear)
            break
        except NotYet:
            # While the machine stands still, no answer can say anything.
            if clock.longest_pause_s < PAUSE_S or at == TRIES - 1:
                raise
    return "the server waits for as long as it hears that the work goes on"


class _Held:
    """A message that is held: when its work began and ended, and what was said of it on the wire, and when."""

    def __init__(self, name: str, msg: Msg) -> None:
        self.name, self.msg = name, msg
        self.fails = name.startswith("fails")
        self.error = _NoBoxError("no box is large enough")
        self.raised: BaseException | None = None
        self.began = self.ended = self.returned = 0.0
        self.said: list[tuple[float, str]] = []

    async def work(self) -> None:
        """Take a while, and fail if that is what it is for."""
        self.began = time.monotonic()
        await asyncio.sleep(WORKS_S.get(self.name, EVERY_S * 1.2))  # work
        self.ended = time.monotonic()
        if self.fails:
            raise self.error

    @property
    def answers(self) -> list[tuple[float, str]]:
        """What was said but that the work goes on."""
        return [(at, said) for at, said in self.said if not said.startswith("+WPI")]

    def judge(self) -> None:
        """Raise what is wrong with how it was held."""
        case = "the work raised" if self.fails else "after the work"
        if self.raised is not None and not (self.fails and self.ended):
            raise self.raised
        if not 0 < self.ended <= self.returned:
            raise NotYet("it returned before the work was done", "that it waits")
        if self.answers and self.answers[0][0] < self.ended:
            raise NotYet(f"it said {_named(self.answers[0][1])} before the work was done", "that it waits")
        self._judge_raised()
        if not self.answers:
            expected = "a nak" if self.fails else "an acknowledgement"
            seen = "came again only after ack_wait" if self.fails else "was not acknowledged"
            raise NotYet(f"{case}, {'and ' * self.fails}the message {seen}", expected)
        said = [_named(said) for _, said in self.answers]
        if said != ["nak" if self.fails else "ack"]:
            raise NotYet(f"{case}, it said {' and '.join(said)}", "nak" if self.fails else "ack, once")
        self._judge_pace()

    def _judge_raised(self) -> None:
        if not self.fails:
            return
        if self.raised is None:
            raise NotYet("the work raised, and hold returned as if all were well", "the same error")
        if self.raised is not self.error:
            name = type(self.raised).__name__
            if isinstance(self.raised, BaseExceptionGroup):
                name = f"{name} with the error in it"
            elif isinstance(self.raised, _NoBoxError):
                name = "a copy of the error"
            raise NotYet(f"the work raised, and hold raised {name}", "the same error")

    def judge_number(self, *, until: float) -> None:
        """Raise that it said too often that the work goes on."""
        times = [at for at, said in self.said if said.startswith("+WPI")]
        if len(times) > (until - self.began) / EVERY_S + 1.5:
            raise NotYet("it said in_progress more often than every 0.3 s", "every 0.3 s")

    def _judge_pace(self) -> None:
        """Look at the pauses between what was said: one may be longer or shorter, the one in the middle is not."""
        times = [at for at, said in self.said if said.startswith("+WPI")]
        if times and times[-1] > self.answers[0][0]:
            raise NotYet(f"it said in_progress after {_named(self.answers[0][1])}", "that this ends first")
        self.judge_number(until=self.ended)
        gaps = [after - before for before, after in pairwise([self.began, *times])]
        middle = sorted(gaps[1:])[(len(gaps) - 1) // 2] if len(gaps) > 2 else EVERY_S
        if middle < SOONEST_S:
            raise NotYet("it said in_progress more often than every 0.3 s", "every 0.3 s")
        if max([*gaps, self.ended - (times or [self.began])[-1]]) > LONGEST_GAP_S or middle > LATEST_S:
            raise NotYet("it said in_progress less often than every 0.3 s", "every 0.3 s, as long as the work goes on")


def _named(said: str) -> str:
    """Return the word for what is sent to the subject of a message's reply."""
    if said.startswith("-NAK"):
        delay_s = json.loads(said.removeprefix("-NAK") or "{}").get("delay", 0) / 1e9
        return "nak" if delay_s <= DELAY_S else f"nak with a delay of more than {DELAY_S} s"
    return {"": "ack", "+ACK": "ack", "+TERM": "term", "+WPI": "in_progress"}.get(said.split(" ")[0], "something else")


class _Desk:
    """A consumer with a name of its own, and the messages of it that are held."""

    def __init__(self, trial: Trial, js: JetStreamContext, answer: Any, name: str) -> None:
        self._trial, self._js, self._answer, self._name = trial, js, answer, name
        self._held: dict[str, _Held] = {}
        self._came_again = asyncio.Event()

    async def work(self, ear: Client) -> None:
        """Let it hold messages, and raise what is wrong with how it does."""
        await self._js.purge_stream("WORK")
        await self._js.add_consumer("WORK", ConsumerConfig(durable_name=self._name, ack_wait=ACK_WAIT_S))
        await wait_routable(ear, "WORK", self._name)

        async def note(msg: Msg) -> None:
            if (held := self._held.get(msg.subject)) is not None:
                held.said.append((time.monotonic(), msg.data.decode()))

        hearing = await ear.subscribe("$JS.ACK.>", cb=note)
        await flush_through(ear)
        try:
            await self._hold(*WORKS_S)
            await self._judge()
            before = asyncio.all_tasks()
            for name in ("alone", "fails alone"):
                await self._hold(name)
                await asyncio.sleep(0)
                if any(not task.done() for task in asyncio.all_tasks() - before):
                    case = "the work raised, and " if name.startswith("fails") else ""
                    raise NotYet(f"{case}a task of it goes on after it returned", "that it ends everything")
            await self._judge()
        finally:
            await hearing.unsubscribe()

    async def _hold(self, *names: str) -> None:
        """Let it hold new messages, side by side, while somebody else waits for messages."""
        pulled = await self._js.pull_subscribe_bind(self._name, stream="WORK")
        msgs: list[Msg] = []
        for name in names:
            await self._js.publish(f"work.{name.replace(' ', '-')}", b"")
            msgs += await pulled.fetch(1, timeout=5)
        all_held = [_Held(name, msg) for name, msg in zip(names, msgs, strict=True)]
        self._held |= {held.msg.reply: held for held in all_held}
        self._trial.case = ""
        waiting = asyncio.create_task(self._wait_for_more(pulled))
        again: asyncio.Future[Any] = asyncio.create_task(self._came_again.wait())
        holding = [asyncio.create_task(self._hold_one(held)) for held in all_held]
        done: asyncio.Future[Any] = asyncio.gather(*holding)
        try:
            await asyncio.wait({done, again}, return_when=asyncio.FIRST_COMPLETED)
            if again.done():
                for held in all_held:
                    held.judge_number(until=time.monotonic())
                raise NotYet("while the work went on, the message was delivered again", "one delivery")
            await done
        finally:
            await cancel_and_join(waiting, again, *holding, done)
            await pulled.unsubscribe()

    async def _hold_one(self, held: _Held) -> None:
        call = self._answer(held.msg, held.work)
        seen = f"the work took {WORKS_S.get(held.name, EVERY_S * 1.2):.1f} s, and hold did not return"
        try:
            await self._trial.returns(call, seen, "that it does", within=WORKS_S.get(held.name, EVERY_S) + 2.0)
        except NotYet:
            raise
        except Exception as err:  # noqa: BLE001 - which error it is, is what the check looks at
            held.raised = err
        finally:
            held.returned = time.monotonic()

    async def _wait_for_more(self, pulled: JetStreamContext.PullSubscription) -> None:
        """Take what comes; but for a message that was given back, that is one too many."""
        while True:
            with contextlib.suppress(TimeoutError):
                for msg in await pulled.fetch(1, timeout=5):
                    [held] = [one for one in self._held.values() if one.msg.subject == msg.subject]
                    if not held.ended:
                        self._came_again.set()
                    await msg.ack()

    async def _judge(self) -> None:
        """Judge each message when all was answered for, or some time after which it would have been."""

        def all_answered() -> bool:
            return all(held.answers for held in self._held.values())

        with contextlib.suppress(TimeoutError):
            await eventually(all_answered, within=ACK_WAIT_S / 2)
        for held in self._held.values():
            held.judge()
