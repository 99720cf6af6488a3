"""The checks of notebook 15: a subject from a stranger's text, a consumer that is not stolen, a message held on to."""

import asyncio
import time
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import eventually, retry, wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

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
async def makes_safe_subjects(mesh: Mesh, answer: Any) -> Verdict:
    """Give it numbers that are fine, and some that are not."""
    for number in FINE:
        try:
            subject = answer(number)
        except ValueError:
            return not_yet(f"{number!r} was refused", "a subject")
        if subject != f"orders.eu.{number}.placed":
            return not_yet(f"{number!r} became {subject!r}", f"'orders.eu.{number}.placed'")
    for number, what in BAD.items():
        try:
            answer(number)
        except ValueError:
            continue
        return not_yet(f"{what} was let through", "ValueError")
    return correct("what is allowed is a short list, what is forbidden never ends")


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
async def steals_no_consumer(mesh: Mesh, answer: Any) -> Verdict:
    """Open a consumer that is not there, open it again, and open it with other settings."""
    async with await start_mesh(backend="local") as own:
        js = (await own.connect(name="check 15.2")).jetstream(timeout=3.0)
        await retry(lambda: js.add_stream(name="ORDERS", subjects=["orders.>"]))
        await answer(js, "ORDERS", _consumer())
        names = [info.name for info in await js.consumers_info("ORDERS")]
        if names != ["billing"]:
            return not_yet(f"the stream has {', '.join(names) or 'no consumers'}", "one, called billing")
        made = await _held(js)
        await answer(js, "ORDERS", _consumer())
        if (await _held(js)).created != made.created:
            return not_yet("opened again, the consumer was made anew", "that it is left alone")
        for settings in ({"filter_subject": "orders.us.>"}, {"ack_wait": 5.0}):
            if wrong := await _is_stolen(js, answer, made, settings):
                return wrong
        for _ in range(2):  # the server fills in what it does not name
            await answer(js, "ORDERS", ConsumerConfig(durable_name="plain"))
    return correct("a name belongs to whoever made it; others are told")


async def _held(js: JetStreamContext) -> ConsumerInfo:
    return await retry(lambda: js.consumer_info("ORDERS", "billing"))


async def _is_stolen(js: JetStreamContext, answer: Any, made: ConsumerInfo, settings: dict[str, Any]) -> Verdict | None:
    what = next(iter(settings))
    told = False
    try:
        await answer(js, "ORDERS", _consumer(**settings))
    except ValueError:
        told = True
    now = await _held(js)
    same = (now.config.filter_subject, now.config.ack_wait, now.created)
    if same != (made.config.filter_subject, made.config.ack_wait, made.created):
        return not_yet(f"opened with another {what}, the consumer was changed", "that it is left alone")
    return None if told else not_yet(f"opened with another {what}, nothing was raised", "ValueError")


# 15.3

ACK_WAIT_S = 1.0
AGAIN = not_yet("while the work went on, the message was delivered again", "one delivery")


@exercise(
    "15.3",
    title="hold on to a message",
    answer="async function",
    expects="a message that is delivered once, however long the work takes",
    hint="A task that sleeps and says in_progress, in a loop, beside the work. Cancel it before you acknowledge, and "
    "also when the work raises.",
    within=40.0,
)
async def holds_on(mesh: Mesh, answer: Any) -> Verdict:
    """Let the work take longer than the server waits, let it fail, and look at what is left behind."""
    async with await start_mesh(backend="local") as own:
        client = await own.connect(name="check 15.3")
        js = client.jetstream(timeout=3.0)
        await retry(lambda: js.add_stream(name="WORK", subjects=["work"]))
        await js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=ACK_WAIT_S))
        await wait_routable(client, "WORK", "desk")
        verdict = await _long_work(js, answer)
        if verdict == AGAIN:  # a machine that stands still for ack_wait looks the same, once
            await js.purge_stream("WORK")
            verdict = await _long_work(js, answer)
        return (
            verdict
            or await _failing_work(js, answer)
            or correct("the server waits for as long as it hears that the work goes on")
        )


async def _long_work(js: JetStreamContext, answer: Any) -> Verdict | None:
    worked = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(2.5 * ACK_WAIT_S)
        worked.set()

    await js.publish("work", b"long")
    desk = await js.pull_subscribe_bind("desk", stream="WORK")
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
        return AGAIN
    await holding
    if not worked.is_set():
        return not_yet("it returned before the work was done", "that it waits")

    async def acknowledged() -> bool:
        return not (await retry(lambda: js.consumer_info("WORK", "desk"))).num_ack_pending

    try:
        await eventually(acknowledged, within=ACK_WAIT_S / 2)
    except NotReadyError:
        return not_yet("after the work, the message was not acknowledged", "an acknowledgement")
    await asyncio.sleep(0)
    if any(not task.done() for task in asyncio.all_tasks() - before - {holding}):
        return not_yet("a task of it goes on after it returned", "that it ends everything")
    return None


async def _failing_work(js: JetStreamContext, answer: Any) -> Verdict | None:
    async def work() -> None:
        raise LookupError("no box is large enough")

    await js.publish("work", b"fails")
    desk = await js.pull_subscribe_bind("desk", stream="WORK")
    [msg] = await desk.fetch(1, timeout=5)
    before, failed = asyncio.all_tasks(), time.monotonic()
    try:
        await answer(msg, work)
    except LookupError:
        pass
    else:
        return not_yet("the work raised, and hold returned as if all were well", "the same error")
    try:
        [again] = await desk.fetch(1, timeout=2 * ACK_WAIT_S)
    except TimeoutError:
        return not_yet("the work raised, and the message did not come again", "that it does, at once")
    if time.monotonic() - failed > ACK_WAIT_S / 2:
        return not_yet("the work raised, and the message came again only after ack_wait", "a nak")
    await again.ack_sync()
    await asyncio.sleep(0)
    if any(not task.done() for task in asyncio.all_tasks() - before):
        return not_yet("the work raised, and a task of it goes on", "that it ends everything")
    return None
