"""The checks of notebook 12: paying once, a circuit breaker, undoing in good order."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.orders import Order
from mesh_lab.patterns import retry, wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

# 12.1

WINDOW_S = 0.2


class _Bank:
    """Charges once for each key; is away when it is told to be."""

    def __init__(self) -> None:
        self.away = False
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
async def pays_once(mesh: Mesh, answer: Any) -> Verdict:
    """Call it with a bank that is away, at the same time, again, late, and with a stream that takes nothing more."""
    async with await start_mesh(backend="local") as own:
        client = await own.connect(name="check 12.1")
        js = client.jetstream(timeout=3.0)
        paid = StreamConfig(name="PAID", subjects=["orders.*.*.paid"], duplicate_window=WINDOW_S)
        await retry(lambda: js.add_stream(paid))
        await wait_routable(client, "PAID")
        first, second, third = (Order(f"00077{n}", "eu", 1, datetime.date(1997, 1, 1), 1, 999) for n in (7, 8, 9))
        return (
            await _bank_is_away(js, answer, first)
            or await _is_called_again(js, answer, first)
            or await _key_is_the_order_s(js, answer, first, second)
            or await _stream_is_sealed(js, answer, paid, third)
            or correct("the effect knows its key, the stream its condition; so any of it may be repeated")
        )


async def _held(js: JetStreamContext) -> int:
    return (await retry(lambda: js.stream_info("PAID"))).state.messages


async def _bank_is_away(js: JetStreamContext, answer: Any, order: Order) -> Verdict | None:
    bank = _Bank()
    bank.away = True
    try:
        await answer(js, order, bank.charge)
    except ConnectionError:
        return not_yet("the bank was away, and paid was published", "no event") if await _held(js) else None
    return not_yet("the bank was away, and pay returned as if all were well", "that it raises")


async def _is_called_again(js: JetStreamContext, answer: Any, order: Order) -> Verdict | None:
    bank = _Bank()
    await asyncio.gather(*(answer(js, order, bank.charge) for _ in range(3)))
    if not bank.keys:
        return not_yet("the customer was not charged", "one charge")
    if (held := await _held(js)) != 1:
        return not_yet(f"called three times at once, it stored {held} paid events", "one")
    await asyncio.sleep(2 * WINDOW_S)  # until the stream has forgotten ids
    await answer(js, order, bank.charge)
    await asyncio.gather(*(answer(js, order, bank.charge) for _ in range(3)))
    info = await retry(lambda: js.stream_info("PAID"))
    if info.state.last_seq != 1:
        return not_yet("called again, it stored a second paid event", "one for each order")
    if len(set(map(str, bank.keys))) != 1 or bank.keys[0] is None:
        return not_yet("the bank got different keys for one order, and charged for each", "the same key")
    return None


async def _key_is_the_order_s(js: JetStreamContext, answer: Any, first: Order, second: Order) -> Verdict | None:
    banks = _Bank(), _Bank()
    await answer(js, first, banks[0].charge)
    await answer(js, second, banks[1].charge)
    if set(banks[0].keys) & set(banks[1].keys):
        return not_yet("two orders were charged under one key, so the bank charges one of them", "a key for each order")
    return None


async def _stream_is_sealed(js: JetStreamContext, answer: Any, paid: StreamConfig, order: Order) -> Verdict | None:
    paid.sealed = True
    await retry(lambda: js.update_stream(paid))
    bank = _Bank()
    try:
        await answer(js, order, bank.charge)
    except Exception:  # noqa: BLE001 (any error is what was asked for)
        return None
    return not_yet(
        "the stream was sealed and refused the event, and pay returned as if all were well", "that it raises"
    )


# 12.2

# Time, what is asked or told, and what it has to say.
SCRIPT: tuple[tuple[float, str, bool | None, str], ...] = (
    (0.0, "may call", True, "a new breaker refused a call"),
    (0.0, "failed", None, ""),
    (1.0, "may call", True, "one failure of three opened it"),
    (1.0, "failed", None, ""),
    (1.5, "may call", True, "two failures of three opened it"),
    (1.5, "well", None, ""),
    (2.0, "may call", True, "failures were counted across a success"),
    (2.0, "failed", None, ""),
    (2.2, "may call", True, "failures were counted across a success"),
    (2.2, "failed", None, ""),
    (2.5, "may call", True, "failures were counted across a success"),
    (3.0, "failed", None, ""),
    (3.0, "may call", False, "three failures in a row did not open it"),
    (7.9, "may call", False, "it let a call through before its rest was over"),
    (8.0, "may call", True, "it let no call through after its rest"),
    (8.1, "may call", False, "it let a second call through while the first was tried"),
    (9.0, "failed", None, ""),
    (9.1, "may call", False, "it did not rest again when the trial failed"),
    (13.5, "may call", False, "its second rest did not begin at the failure of the trial"),
    (14.0, "may call", True, "it let no call through after its second rest"),
    (14.5, "well", None, ""),
    (14.6, "may call", True, "a good trial did not close it"),
    (14.6, "failed", None, ""),
    (14.7, "may call", True, "after it closed, fewer than three failures opened it"),
    (14.7, "failed", None, ""),
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
async def breaks_and_closes(mesh: Mesh, answer: Any) -> Verdict:
    """Play a script of calls against it, with times of the script's own."""
    made = answer(3, 5.0)
    if not isinstance(made, tuple) or len(made) != 2 or not all(map(callable, made)):
        return not_yet(f"{type(made).__name__} was returned", "two functions")
    may_call, ended = made
    for now, what, expected, wrong in SCRIPT:
        if what == "may call":
            if bool(may_call(now)) != expected:
                return not_yet(f"at {now:.1f} s, {wrong}", f"{expected} of make_breaker(3, 5.0)")
        else:
            ended(now, what == "well")
    other, _ = answer(1, 1.0)
    if not other(0.0):
        return not_yet("two breakers share what they remember", "that each has its own")
    return correct("a service that is down is asked once in a while, and told so at once in between")


# 12.3

Step = Callable[[], Awaitable[None]]


class _Shop:
    """Steps that note what was done, and fail when they are told to."""

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
        try:
            await asyncio.wait_for(answer([self.step(name) for name in names]), 5.0)
        except Exception as err:  # noqa: BLE001 (which error it is, is what the check looks at)
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
async def undoes_in_order(mesh: Mesh, answer: Any) -> Verdict:
    """Let all go well, then let a step fail, then let undoing fail for a while."""
    well = _Shop()
    if error := await well.run(answer, "reserve", "charge", "ship"):
        raise error
    if well.noted != ["reserve", "charge", "ship"]:
        return not_yet(
            f"nothing failed, and this was done: {', '.join(well.noted) or 'nothing'}", "three steps in order"
        )
    for undo_fails in (0, 4, 5):
        shop = _Shop("ship", undo_fails)
        error = await shop.run(answer, "reserve", "charge", "ship", "tell")
        seen = f"ship failed{f', undoing failed {undo_fails} times' if undo_fails else ''}, and this was done: "
        # After five tries of the first undo, the others are not forgotten.
        expected = ["reserve", "charge", *(["undo charge"] if undo_fails < 5 else []), "undo reserve"]
        if shop.noted != expected:
            return not_yet(seen + ", ".join(shop.noted), ", ".join(expected))
        if not isinstance(error, LookupError):
            return not_yet(f"{seen.split(',')[0]}, and {type(error).__name__} was raised", "the error of the step")
    return correct("what cannot be finished is undone, from its end, and whoever asked learns of it")
