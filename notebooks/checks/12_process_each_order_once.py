"""The checks of notebook 12: paying once, a circuit breaker, undoing steps in reverse order."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from nats.js import JetStreamContext

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import Order
from mesh_lab.patterns import retry

WINDOW_S = 0.2
# Three calls at once now and then miss each other between looking and publishing; of ten orders, some meet.
ORDERS_AT_ONCE = 10


class _Bank:
    """Notes the key of each charge, or raises while it is away."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.keys: list[object] = []

    async def charge(self, key: object = None) -> None:
        if self.away:
            raise ConnectionError("the bank is away")
        self.keys.append(key)
        await asyncio.sleep(0)


@exercise(
    "12.1",
    title="pay once",
    answer="async function",
    expects="one charge and one event for each order, whenever and however often it is called",
    hint='A header says "only if the subject holds nothing yet": Nats-Expected-Last-Subject-Sequence, with "0". The '
    "refusal that means it was done before has err_code 10071; other refusals are errors.",
    within=30.0,
)
async def pays_once(trial: Trial, answer: Any) -> str:
    """Call it with a bank that is away, at the same time, again, late, and with a stream that takes nothing more."""
    client = await trial.own_client()
    js = await trial.stream(client, "PAID", subjects=["orders.*.*.paid"], duplicate_window=WINDOW_S)
    first, second, third, *others = (
        Order(f"{77_700 + n:06}", "eu", 1, datetime.date(1997, 1, 1), 1, 999) for n in range(3 + ORDERS_AT_ONCE)
    )
    await _pay_while_the_bank_is_away(js, answer, first)
    await _pay_again_and_again(js, answer, first)
    for order in others:
        await _pay_at_once(js, answer, order)
    await _pay_another_order(js, answer, first, second)
    await _pay_when_the_stream_is_sealed(js, answer, third)
    return "the effect knows its key, the stream its condition; so any of it may be repeated"


async def _pay_while_the_bank_is_away(js: JetStreamContext, answer: Any, order: Order) -> None:
    try:
        await answer(js, order, _Bank(away=True).charge)
    except ConnectionError:
        if await _stored(js):
            raise NotYet("the bank was away, and paid was published", "no event") from None
    else:
        raise NotYet("the bank was away, and pay returned as if all were well", "that it raises")


async def _pay_again_and_again(js: JetStreamContext, answer: Any, order: Order) -> None:
    bank = await _pay_at_once(js, answer, order)
    if not bank.keys:
        raise NotYet("the customer was not charged", "one charge")
    await asyncio.sleep(2 * WINDOW_S)  # pacing: until the stream has forgotten ids
    await answer(js, order, bank.charge)
    await asyncio.gather(*(answer(js, order, bank.charge) for _ in range(3)))
    info = await retry(lambda: js.stream_info("PAID"))
    if info.state.last_seq != 1:
        raise NotYet("called again, it stored a second paid event", "one for each order")
    if len(set(map(str, bank.keys))) != 1 or bank.keys[0] is None:
        raise NotYet("the bank got different keys for one order, and charged for each", "the same key")


async def _pay_at_once(js: JetStreamContext, answer: Any, order: Order) -> _Bank:
    bank, before = _Bank(), await _stored(js)
    await asyncio.gather(*(answer(js, order, bank.charge) for _ in range(3)))
    if (stored := await _stored(js) - before) != 1:
        raise NotYet(f"called three times at once, it stored {stored} paid events", "one")
    return bank


async def _pay_another_order(js: JetStreamContext, answer: Any, first: Order, second: Order) -> None:
    banks = _Bank(), _Bank()
    await answer(js, first, banks[0].charge)
    await answer(js, second, banks[1].charge)
    if set(banks[0].keys) & set(banks[1].keys):
        raise NotYet("two orders were charged under one key, so the bank charges one of them", "a key for each order")


async def _pay_when_the_stream_is_sealed(js: JetStreamContext, answer: Any, order: Order) -> None:
    config = (await retry(lambda: js.stream_info("PAID"))).config
    await retry(lambda: js.update_stream(config, sealed=True))
    try:
        await answer(js, order, _Bank().charge)
    except Exception:  # noqa: BLE001 - any error is right
        return
    raise NotYet("the stream was sealed and refused the event, and pay returned as if all were well", "that it raises")


async def _stored(js: JetStreamContext) -> int:
    return (await retry(lambda: js.stream_info("PAID"))).state.messages


# 12.2

# For each call of the breaker's two functions: when, which one or with what result, what may_call() has to return,
# and what is wrong if it returns the opposite.
SCRIPT: tuple[tuple[float, Literal["may call", "failed", "well"], bool, str], ...] = (
    (0.0, "may call", True, "a new breaker refused a call"),
    (0.0, "failed", False, ""),
    (1.0, "may call", True, "one failure of three opened it"),
    (1.0, "failed", False, ""),
    (1.5, "may call", True, "two failures of three opened it"),
    (1.5, "well", False, ""),
    (2.0, "may call", True, "failures were counted across a success"),
    (2.0, "failed", False, ""),
    (2.2, "may call", True, "failures were counted across a success"),
    (2.2, "failed", False, ""),
    (2.5, "may call", True, "failures were counted across a success"),
    (3.0, "failed", False, ""),
    (3.0, "may call", False, "three failures in a row did not open it"),
    (7.9, "may call", False, "it let a call through before its rest was over"),
    (8.0, "may call", True, "it let no call through after its rest"),
    (8.1, "may call", False, "it let a second call through while the first was tried"),
    (9.0, "failed", False, ""),
    (9.1, "may call", False, "it did not rest again when the trial failed"),
    (13.5, "may call", False, "its second rest did not begin at the failure of the trial"),
    (14.0, "may call", True, "it let no call through after its second rest"),
    (14.5, "well", False, ""),
    (14.6, "may call", True, "a good trial did not close it"),
    (14.6, "failed", False, ""),
    (14.7, "may call", True, "after it closed, fewer than three failures opened it"),
    (14.7, "failed", False, ""),
    (14.8, "may call", True, "after it closed, fewer than three failures opened it"),
)


@exercise(
    "12.2",
    title="a breaker of your own",
    answer="function",
    expects="two functions that together are a circuit breaker",
    hint="Three things to remember, as nonlocal variables: failures in a row, when the last one was, and whether a "
    "trial is under way.",
)
async def breaks_and_closes(trial: Trial, answer: Any) -> str:
    """Play a script of calls against it, with times of the script's own."""
    breaker = answer(3, 5.0)
    if not isinstance(breaker, tuple) or len(breaker) != 2 or not all(map(callable, breaker)):
        raise NotYet(f"{type(breaker).__name__} was returned", "two functions")
    may_call, ended = breaker
    for now, call, expected, wrong in SCRIPT:
        if call != "may call":
            ended(now, call == "well")
        elif bool(may_call(now)) != expected:
            raise NotYet(f"at {now:.1f} s, {wrong}", f"{expected} of make_breaker(3, 5.0)")
    other_may_call, _ = answer(1, 1.0)
    if not other_may_call(0.0):
        raise NotYet("two breakers share what they remember", "that each has its own")
    return "a service that is down is asked once in a while, and told so at once in between"


# 12.3

Step = Callable[[], Awaitable[None]]


class _Shop:
    """Notes which steps were done and undone; one step fails, and so do the first tries to undo."""

    def __init__(self, fails: str = "", undo_fails: int = 0) -> None:
        self.fails = fails
        self.undo_fails = undo_fails
        self.noted: list[str] = []

    def step(self, name: str) -> tuple[Step, Step]:
        async def do() -> None:
            if name == self.fails:
                raise LookupError(f"{name} failed")
            self.noted.append(name)

        async def undo() -> None:
            if self.undo_fails:
                self.undo_fails -= 1
                raise TimeoutError("no answer")
            self.noted.append(f"undo {name}")

        return do, undo

    async def run(self, answer: Any, *names: str) -> Exception | None:
        """Return what the answer raised when it was given these steps."""
        try:
            await asyncio.wait_for(answer([self.step(name) for name in names]), 5.0)
        except Exception as err:  # noqa: BLE001 - which error it is, is what the check looks at
            return err
        return None


@exercise(
    "12.3",
    title="undo in good order",
    answer="async function",
    expects="all steps done, or all that were done undone",
    hint="Collect the undo of each step that is done. In an except clause, call them in reversed order, each in a loop "
    "of five tries with growing pauses, and end with a bare raise.",
    within=30.0,
)
async def undoes_in_order(trial: Trial, answer: Any) -> str:
    """Let all go well, then let a step fail, then let undoing fail for a while."""
    shop = _Shop()
    if error := await shop.run(answer, "reserve", "charge", "ship"):
        raise error
    if shop.noted != ["reserve", "charge", "ship"]:
        done = ", ".join(shop.noted) or "nothing"
        raise NotYet(f"nothing failed, and this was done: {done}", "three steps in order")
    for undo_fails in (0, 4, 5):
        shop = _Shop("ship", undo_fails)
        error = await shop.run(answer, "reserve", "charge", "ship", "tell")
        case = f"ship failed{f', undoing failed {undo_fails} times' if undo_fails else ''}"
        # After five tries of the first undo, the others are not forgotten.
        expected = ["reserve", "charge", *(["undo charge"] if undo_fails < 5 else []), "undo reserve"]
        if shop.noted != expected:
            raise NotYet(f"{case}, and this was done: {', '.join(shop.noted)}", ", ".join(expected))
        if not isinstance(error, LookupError):
            raised = type(error).__name__ if error else "nothing"
            raise NotYet(f"ship failed, and {raised} was raised", "the error of the step")
    return "what cannot be finished is undone, from its end, and whoever asked learns of it"
