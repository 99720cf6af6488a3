"""Checks of notebook 15: a subject from a stranger's text, a consumer that is not stolen, a message held on to."""

import asyncio
import time
from collections.abc import Collection
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo

from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.patterns import retry, wait_routable

# 15.1

FINE = ["1", "000001", "a-b", "A_1", "x" * 32]
BAD = {
    "": "an empty number",
    "1.2": "a dot",
    "1.shipped": "a dot",
    "*": "a star",
    "1*": "a star",
    ">": "a >",
    "1 2": "a space",
    "1\t": "a tab",
    "1\n": "a line break at the end",
    "\r\nPUB x 0": "a line of the protocol",
    "x" * 33: "33 characters",
    "1\f": "a form feed",
    "1\u00a0": "a space that does not break",
    "\x00": "a zero byte",
    "\u0661": "a digit that is not ASCII",
    "a/b": "a slash",
}


@exercise(
    "15.1",
    title="a subject from a stranger's text",
    answer="function",
    expects="a subject of four words, or ValueError",
    hint="re.fullmatch with the characters that you allow is safer than a list of those that you forbid. $ in a "
    "regular expression also matches before a line break at the end.",
)
async def makes_safe_subjects(trial: Trial, answer: Any) -> str:
    """Give it numbers that are fine, and some that are not."""
    for number in FINE:
        try:
            subject = answer(number)
        except ValueError as err:
            raise NotYet(f"{number!r} was refused", "a subject") from err
        if subject != f"orders.eu.{number}.placed":
            raise NotYet(f"{number!r} became {subject!r}", f"'orders.eu.{number}.placed'")
    for number, content in BAD.items():
        try:
            answer(number)
        except ValueError:
            continue
        raise NotYet(f"{content} was let through", "ValueError")
    return "what is allowed is a short list, what is forbidden never ends"


# 15.2


def _consumer(**settings: Any) -> ConsumerConfig:
    return ConsumerConfig(durable_name="billing", **{"filter_subject": "orders.eu.>", "ack_wait": 30.0, **settings})


@exercise(
    "15.2",
    title="make a consumer, steal none",
    answer="async function",
    expects="a consumer that is made once and never changed",
    hint="js.consumer_info(stream, name) raises nats.js.errors.NotFoundError, or returns what there is: its config has "
    "filter_subject and ack_wait.",
    within=30.0,
)
async def steals_no_consumer(trial: Trial, answer: Any) -> str:
    """Open a consumer that is not there, open it again, and open it with other settings."""
    js = await trial.stream(await trial.own_client(), "ORDERS", subjects=["orders.>"])
    await answer(js, "ORDERS", _consumer())
    names = [info.name for info in await js.consumers_info("ORDERS")]
    if names != ["billing"]:
        raise NotYet(f"the stream has {', '.join(names) or 'no consumers'}", "one, called billing")
    made = await _billing(js)
    await answer(js, "ORDERS", _consumer())
    if (await _billing(js)).created != made.created:
        raise NotYet("opened again, the consumer was made anew", "that it is left alone")
    for setting, other in {"filter_subject": "orders.us.>", "ack_wait": 5.0}.items():
        await _open_another(js, answer, made, setting, other)
    for _ in range(2):  # the server fills in what it does not name
        await answer(js, "ORDERS", ConsumerConfig(durable_name="plain"))
    return "a name belongs to whoever made it; others are told"


async def _billing(js: JetStreamContext) -> ConsumerInfo:
    return await retry(lambda: js.consumer_info("ORDERS", "billing"))


async def _open_another(js: JetStreamContext, answer: Any, made: ConsumerInfo, setting: str, other: object) -> None:
    raised = False
    try:
        await answer(js, "ORDERS", _consumer(**{setting: other}))
    except ValueError:
        raised = True
    now = await _billing(js)
    same = (now.config.filter_subject, now.config.ack_wait, now.created)
    if same != (made.config.filter_subject, made.config.ack_wait, made.created):
        raise NotYet(f"opened with another {setting}, the consumer was changed", "that it is left alone")
    if not raised:
        raise NotYet(f"opened with another {setting}, nothing was raised", "ValueError")


# 15.3

ACK_WAIT_S = 1.0
TRIES = 2
PAUSE_S = 0.2  # an answer that says in_progress twice in ack_wait tolerates more than this


@exercise(
    "15.3",
    title="hold on to a message",
    answer="async function",
    expects="a message that is delivered once, however long the work takes",
    hint="A task that sleeps and says in_progress, in a loop, beside the work. Cancel it before you acknowledge, and "
    "also when the work raises.",
    within=40.0,
)
async def holds_on(trial: Trial, answer: Any) -> str:
    """Let the work take longer than the server waits, let it fail, and look at what is left behind."""
    client = await trial.own_client()
    js = await trial.stream(client, "WORK", subjects=["work"])
    await js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=ACK_WAIT_S))
    await wait_routable(client, "WORK", "desk")
    for _ in range(TRIES):
        await js.purge_stream("WORK")
        with MachineClock() as clock:
            held = await _work_long(trial, js, answer)
        if held or clock.longest_pause_s < PAUSE_S:  # while the machine stands still, no answer can say anything
            break
    if not held:
        raise NotYet("while the work went on, the message was delivered again", "one delivery")
    await _work_and_fail(trial, js, answer)
    return "the server waits for as long as it hears that the work goes on"


async def _work_long(trial: Trial, js: JetStreamContext, answer: Any) -> bool:
    """Return whether a message was delivered once, though the work took longer than the server waits."""
    worked = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(2.5 * ACK_WAIT_S)  # work
        worked.set()

    await js.publish("work", b"long")
    desk = trial.own(await js.pull_subscribe_bind("desk", stream="WORK"))
    [msg] = await desk.fetch(1, timeout=5)
    before = asyncio.all_tasks()
    holding = asyncio.ensure_future(answer(msg, work))
    while not holding.done():
        try:
            await desk.fetch(1, timeout=0.5)
        except TimeoutError:
            continue
        holding.cancel()
        await asyncio.wait({holding}, timeout=ACK_WAIT_S)
        return False
    await holding
    if not worked.is_set():
        raise NotYet("it returned before the work was done", "that it waits")

    async def acknowledged() -> bool:
        return not (await retry(lambda: js.consumer_info("WORK", "desk"))).num_ack_pending

    seen = "after the work, the message was not acknowledged"
    await trial.soon(acknowledged, seen, "an acknowledgement", within=ACK_WAIT_S / 2)
    await _expect_no_task({*before, holding}, "a task of it goes on after it returned")
    return True


async def _work_and_fail(trial: Trial, js: JetStreamContext, answer: Any) -> None:
    async def work() -> None:
        raise LookupError("no box is large enough")

    await js.publish("work", b"fails")
    desk = trial.own(await js.pull_subscribe_bind("desk", stream="WORK"))
    [msg] = await desk.fetch(1, timeout=5)
    before, failed = asyncio.all_tasks(), time.monotonic()
    try:
        await answer(msg, work)
    except LookupError:
        pass
    else:
        raise NotYet("the work raised, and hold returned as if all were well", "the same error")
    try:
        [again] = await desk.fetch(1, timeout=2 * ACK_WAIT_S)
    except TimeoutError as err:
        raise NotYet("the work raised, and the message did not come again", "that it does, at once") from err
    if time.monotonic() - failed > ACK_WAIT_S / 2:
        raise NotYet("the work raised, and the message came again only after ack_wait", "a nak")
    await again.ack_sync()
    await _expect_no_task(before, "the work raised, and a task of it goes on")


async def _expect_no_task(before: "Collection[asyncio.Task[Any]]", seen: str) -> None:
    """Refuse a task that goes on now; when the harness looks at the end, one that ends by itself may have ended."""
    await asyncio.sleep(0)
    if any(not task.done() for task in asyncio.all_tasks().difference(before)):
        raise NotYet(seen, "that it ends everything")
