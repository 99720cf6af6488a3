"""The exercises of notebook 17: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json
import re

import nats.js.errors
import pytest
from exercise_cells import ExerciseCells, accepted, refused, refused_side_by_side

CELLS = ExerciseCells("17_avoid_the_traps", asyncio=asyncio, nats=nats, re=re)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def placing(pattern, *, matches=re.fullmatch, error=ValueError, subject="orders.eu.{}.placed"):
    def placed(number):
        if not matches(pattern, number):
            raise error(number)
        return subject.format(number)

    return placed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (placing(r".*", matches=lambda pattern, number: True), "an empty number was let through"),
        (placing(r"[^.*> ]+"), "a tab was let through"),
        (placing(r"[^.*>\s]+"), "33 characters was let through"),
        (placing(r"[^.*> \t\r\n]{1,32}"), "a form feed was let through"),
        (placing(r"[\w-]{1,32}"), "a digit that is not ASCII was let through"),
        (placing(r"^[A-Za-z0-9_-]{1,32}$", matches=re.match), "a line break at the end was let through"),
        (placing(r"[A-Za-z0-9_-]{1,32}", matches=re.match), "a dot was let through"),
        (placing(r"[0-9]{1,32}"), "'a-b' was refused"),
        (placing(r"[A-Za-z0-9_-]{1,31}"), "was refused"),
        (placing(r"[A-Za-z0-9_-]{1,32}", subject="orders.{}.placed"), "'1' became 'orders.1.placed'"),
        (placing(r"[A-Za-z0-9_-]{1,32}", error=KeyError), "given an empty number, and it raised KeyError"),
        (placing(r"[A-Za-z0-9_-]{1,64}"), "33 characters was let through"),
        (placing(r"[A-Za-z0-9_-]{0,32}"), "an empty number was let through"),
        (placing(r"(?i)[a-z0-9_-]{1,32}"), "a letter that is not ASCII, the long s was let through"),
        (placing(r"[A-z0-9_-]{1,32}"), "was let through"),
        (placing(r"[A-Za-z0-9_+-]{1,32}"), "'1+2' was let through"),
        (placing(r"[A-Za-z0-9+-_]{1,32}"), "was let through"),
        (placing(r"[A-Za-z0-9_-]{1,32}", matches=lambda p, number: re.fullmatch(p, number.strip())), "was let through"),
        (placing(r"[A-Za-z0-9_-]{2,32}"), "'1' was refused"),
        (placing(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"), "'-' was refused"),
        (placing(r"[a-z0-9_-]{1,32}"), "'A_1' was refused"),
        (placing(r"[A-Za-z0-9-]{1,32}"), "'A_1' was refused"),
        (placing(r"[A-Za-z0-9_-]{1,32}", subject="orders.us.{}.placed"), "'1' became 'orders.us.1.placed'"),
        (lambda number: placing(r"[A-Za-z0-9_-]{1,32}")(number).encode(), "'1' became b'orders.eu.1.placed'"),
        (lambda number: placing(r"[A-Za-z0-9_-]{1,32}")(number[:32]), "33 characters was let through"),
        (lambda number: placing(r"[A-Za-z0-9_-]{1,32}")(number.lower()), "'A_1' became 'orders.eu.a_1.placed'"),
        (lambda number: placing(r"\d{1,32}")(f"{int(number)}"), "'000001' became 'orders.eu.1.placed'"),
        (lambda number: f"orders.eu.{number}.placed" if number.isalnum() else placing("[a-zA-Z0-9_-]+")(number), "33"),
    ],
)
async def test_subjects_that_are_not_safe_are_refused(mesh, answer, said):
    assert said in await refused("17.1", answer)


def by_characters(number):
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    if not 1 <= len(number) <= 32 or set(number) - allowed:
        number.encode("ascii")  # which raises a kind of ValueError, too
        raise ValueError
    return ".".join(["orders", "eu", number, "placed"])


def by_kinds(number):
    plain = number.replace("-", "").replace("_", "")
    if 0 < len(number) < 33 and number.isascii() and (plain.isalnum() or not plain):
        return "orders.eu." + number + ".placed"
    raise UnicodeError(number)


@pytest.mark.parametrize("answer", [by_characters, by_kinds])
async def test_another_way_to_make_subjects_safe_is_accepted(mesh, answer):
    await accepted("17.1", answer)


def opening(
    *,
    differs=lambda there, config: (
        (there.filter_subject, there.ack_wait) != (config.filter_subject, config.ack_wait or 30.0)
    ),
    make=lambda js, stream, config: js.add_consumer(stream, config),
    keep=lambda js, stream, config: asyncio.sleep(0),
    refuse=lambda js, stream, config: asyncio.sleep(0),
    error=ValueError,
    name=lambda config: config.durable_name,
    stream_of=lambda stream: stream,
):
    async def open_consumer(js, stream, config):
        stream = stream_of(stream)
        try:
            there = (await js.consumer_info(stream, name(config))).config
        except nats.js.errors.NotFoundError:
            await make(js, stream, config)
            return
        if not differs(there, config):
            await keep(js, stream, config)
            return
        await refuse(js, stream, config)
        if error:
            raise error("another one")

    return open_consumer


def add(js, stream, config):
    return js.add_consumer(stream, config)


async def make_anew(js, stream, config):
    await js.delete_consumer(stream, config.durable_name)
    await js.add_consumer(stream, config)


async def make_bare(js, stream, config):
    wanted = {"filter_subject": config.filter_subject, "ack_wait": config.ack_wait}
    await js.add_consumer(stream, durable_name=config.durable_name, **wanted)


async def make_two(js, stream, config):
    await js.add_consumer(stream, config)
    await js.add_consumer(stream, config, durable_name=f"{config.durable_name}-2")


async def make_nothing(js, stream, config):
    pass


async def change_and_back(js, stream, config):
    """Find the difference by making the change, and take it back."""
    there = (await js.consumer_info(stream, config.durable_name)).config
    await js.add_consumer(stream, config)
    await js.add_consumer(stream, there, description="back")


async def add_always(js, stream, config):
    await js.add_consumer(stream, config)


async def empty_the_stream(js, stream, config):
    for info in await js.consumers_info(stream):
        await js.delete_consumer(stream, info.name)
    await js.add_consumer(stream, config)


opened: set[str] = set()


async def remembers(js, stream, config):
    if config.durable_name not in opened:
        opened.add(config.durable_name)
        await js.add_consumer(stream, config)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (opening(make=make_nothing), "opened when the stream has no consumer billing, and then it has no consumers"),
        (opening(make=make_bare), "the consumer was made with another"),
        (opening(make=make_two), "and then it has billing, billing-2; expected billing"),
        (opening(make=empty_the_stream), "opened when the stream has no consumer plain, and then it has plain"),
        (add_always, "opened with another filter_subject, the consumer's"),
        (remembers, "opened with another filter_subject, the consumer's"),
        (opening(keep=make_anew), "opened again, the consumer was made anew"),
        (opening(keep=add), "opened with the ack_wait that is its default, the consumer's"),
        (opening(refuse=add), "opened with another filter_subject, the consumer's"),
        (opening(refuse=change_and_back), "opened with another filter_subject, the consumer's description was changed"),
        (opening(refuse=lambda js, stream, config: js.delete_consumer(stream, config.durable_name)), "was removed"),
        (opening(refuse=make_anew), "opened with another filter_subject, the consumer"),
        (opening(differs=lambda there, config: False), "opened with another filter_subject, nothing was raised"),
        (opening(differs=lambda there, config: True), "opened again, and it raised ValueError: another one"),
        (
            opening(differs=lambda there, config: there.filter_subject != config.filter_subject),
            "opened with another ack_wait, nothing was raised; expected ValueError",
        ),
        (
            opening(differs=lambda there, config: there.ack_wait != (config.ack_wait or 30.0)),
            "opened with another filter_subject, nothing was raised; expected ValueError",
        ),
        (opening(differs=lambda there, config: there.ack_wait != config.ack_wait), "it raised ValueError"),
        (
            opening(differs=lambda there, config: (config.ack_wait and there.ack_wait != config.ack_wait) or (
                there.filter_subject != config.filter_subject)),
            "opened without its ack_wait of 9 s, nothing was raised",
        ),
        (
            opening(differs=lambda there, config: there.ack_wait != (config.ack_wait or 30.0) or (
                config.filter_subject and there.filter_subject != config.filter_subject)),
            "opened without its filter_subject, nothing was raised",
        ),
        (
            opening(differs=lambda there, config: there.ack_wait != (config.ack_wait or 30.0) or (
                there.filter_subject and there.filter_subject != config.filter_subject)),
            "opened with a filter_subject that it has not, nothing was raised",
        ),
        (
            opening(differs=lambda there, config: (config.filter_subject, config.ack_wait or 30.0) != (
                there.filter_subject, there.ack_wait) and there.ack_wait != (config.ack_wait or 30.0)),
            "opened with another filter_subject, nothing was raised",
        ),
        (
            opening(differs=lambda there, config: str(there.ack_wait) < str(config.ack_wait or 30.0) or (
                there.filter_subject != config.filter_subject)),
            "opened with another ack_wait, nothing was raised",
        ),
        (
            opening(differs=lambda there, config: there.max_ack_pending != (config.max_ack_pending or 1_000) or (
                there.filter_subject, there.ack_wait) != (config.filter_subject, config.ack_wait or 30.0)),
            "opened with the ack_wait that is its default, ValueError was raised; expected that it returns",
        ),
        (opening(error=None), "opened with another filter_subject, nothing was raised"),
        (opening(error=KeyError), "opened with another filter_subject, and it raised KeyError"),
        (opening(name=lambda config: "billing"), "opened when the stream has no consumer plain, and it raised"),
        (opening(stream_of=lambda stream: "ORDERS"), "it raised NotFoundError"),
    ],
    ids=[
        "makes none", "makes a bare one", "makes two", "empties the stream", "adds always", "remembers", "makes anew",
        "adds again", "adds and raises", "changes and takes back", "deletes and raises", "makes anew and raises",
        "never compares", "always raises", "compares filters", "compares waits", "no default", "no wait is any wait",
        "no filter is any filter", "no filter there is any", "both must differ", "as text", "compares more",
        "says nothing", "another error", "one name", "one stream",
    ],
)  # fmt: skip
async def test_a_consumer_that_is_stolen_is_refused(mesh, own_meshes_kept, answer, said):
    opened.clear()
    assert said in await refused("17.2", answer)


async def opens_in_raw(js, stream, config):
    """With the API's own action, which makes and never changes."""
    request = {"stream_name": stream, "config": config.as_dict(), "action": "create"}
    name = config.durable_name
    reply = await js._nc.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{name}", json.dumps(request).encode())
    if "error" not in json.loads(reply.data):
        return
    there = (await js.consumer_info(stream, name)).config
    if (there.filter_subject, there.ack_wait) != (config.filter_subject, config.ack_wait or 30):
        raise ValueError(name)


async def lists_them(js, stream, config):
    [there] = [one.config for one in await js.consumers_info(stream) if one.name == config.durable_name] or [None]
    if there is None:
        await js.add_consumer(stream, config)
    elif (there.filter_subject or "") != (config.filter_subject or "") or there.ack_wait != (config.ack_wait or 30):
        raise ValueError(f"{config.durable_name} is somebody else's")


@pytest.mark.parametrize("answer", [opens_in_raw, lists_them])
async def test_another_way_to_steal_no_consumer_is_accepted(mesh, own_meshes_kept, answer):
    await accepted("17.2", answer)


def holding(
    *,
    every=0.3,
    first=None,
    most=1_000,
    stops=True,
    before=None,
    works=True,
    ack=lambda msg: msg.ack_sync(),
    nak=lambda msg: msg.nak(),
    raised=lambda error: error,
    lingers=False,
    pauses=None,
    catches=BaseException,
):
    async def hold(msg, work):
        ended = asyncio.Event()

        async def keep_saying():
            for n in range(most):
                pause = pauses[n % len(pauses)] if pauses else every
                await asyncio.sleep(first if n == 0 and first is not None else pause)  # pacing
                await msg.in_progress()
                if ended.is_set():
                    return

        if before:
            await before(msg)
        saying = asyncio.create_task(keep_saying())
        try:
            if works:
                await work()
        except catches as error:
            if nak:
                await nak(msg)
            if (again := raised(error)) is error:
                raise
            if again:
                raise again from None
            return
        finally:
            if lingers:
                ended.set()
            elif stops:
                saying.cancel()
        if ack:
            await ack(msg)

    return hold


async def in_a_group(msg, work):
    async def keep_saying():
        while True:
            await asyncio.sleep(0.3)  # pacing
            await msg.in_progress()

    try:
        async with asyncio.TaskGroup() as group:
            saying = group.create_task(keep_saying())
            await work()
            saying.cancel()
    except BaseException:
        await msg.nak()
        raise
    await msg.ack_sync()


shared = asyncio.Event()


async def stops_by_a_global(msg, work):
    shared.clear()

    async def keep_saying():
        while not shared.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shared.wait(), 0.3)
            if not shared.is_set():
                await msg.in_progress()

    saying = asyncio.create_task(keep_saying())
    try:
        await work()
    except LookupError:
        await msg.nak()
        raise
    finally:
        shared.set()
        await saying
    await msg.ack_sync()


async def waits_for_its_pause(msg, work):
    working = asyncio.ensure_future(work())
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=0.3)
            if not working.done():
                await msg.in_progress()
        await working
    except BaseException:
        await msg.nak()
        raise
    await msg.ack()


async def works_in_the_background(msg, work):
    working = asyncio.create_task(holding()(msg, work))
    working.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.sleep(0)


async def idle():
    await asyncio.sleep(2.0)  # work: none, but it is there, also when a busy machine comes late to look


left: list[asyncio.Task[None]] = []


async def leaves_a_task(msg, work):
    await holding()(msg, work)
    left.append(asyncio.create_task(idle()))


async def leaves_a_task_when_it_fails(msg, work):
    try:
        await holding()(msg, work)
    except LookupError:
        left.append(asyncio.create_task(idle()))
        raise


async def acknowledges_first(msg, work):
    await msg._client.publish(msg.reply, b"")
    try:
        await work()
    except LookupError:
        await msg.nak()
        raise


# They mostly wait: a few are tried side by side, each on a server of its own.
NOT_HELD = [
    (holding(every=10), "while the work went on, the message was delivered again"),
    (holding(most=1), "the message was delivered again"),
    (holding(every=0.7), "it said in_progress less often than every 0.3 s"),
    (holding(every=0.5), "it said in_progress less often than every 0.3 s"),
    (holding(every=0.15), "it said in_progress more often than every 0.3 s"),
    (holding(pauses=(0.01, 0.5)), "it said in_progress"),
    # Longer than is allowed, and far from the second after which it would be delivered again.
    (holding(first=0.65), "it said in_progress less often than every 0.3 s"),
    (holding(most=4, every=0.34), "it said in_progress less often than every 0.3 s"),
    (holding(works=False), "it returned before the work was done"),
    (works_in_the_background, "it returned before the work was done"),
    (holding(before=lambda msg: msg.ack(), ack=None, nak=None), "it said ack before the work was done"),
    (acknowledges_first, "it said ack before the work was done; expected that it waits"),
    (holding(ack=None), "after the work, the message was not acknowledged; expected an acknowledgement"),
    (holding(ack=lambda msg: msg.nak()), "after the work, it said nak; expected ack, once"),
    (holding(nak=None), "the work raised, and the message came again only after ack_wait; expected a nak"),
    (holding(nak=lambda msg: msg.ack()), "the work raised, it said ack; expected nak"),
    (holding(nak=lambda msg: msg.term()), "the work raised, it said term; expected nak"),
    (holding(nak=lambda msg: msg.nak(delay=300)), "it said nak with a delay of more than 0.5 s; expected nak"),
    (holding(raised=lambda error: None), "the work raised, and hold returned as if all were well"),
    (holding(raised=lambda error: RuntimeError("x")), "the work raised, and hold raised RuntimeError; expected"),
    (holding(raised=lambda error: type(error)(*error.args)), "hold raised a copy of the error"),
    (in_a_group, "the work raised, and hold raised ExceptionGroup with the error in it; expected the same error"),
    (holding(stops=False), "it said in_progress after ack; expected that this ends first"),
    (holding(lingers=True), "it said in_progress after ack; expected that this ends first"),
    (holding(catches=ValueError), "the message came again only after ack_wait"),
    (stops_by_a_global, "the message was delivered again"),
]


@pytest.mark.parametrize("wrong", [NOT_HELD[at::6] for at in range(6)])
async def test_a_message_that_is_not_held_is_refused(mesh, wrong):
    verdicts = await refused_side_by_side("17.3", *(answer for answer, _ in wrong))
    for (_, said), verdict in zip(wrong, verdicts, strict=True):
        assert said in verdict


# Not beside others: a busy loop would delay them, and their tasks would be taken for one that was left.
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (holding(every=0), "it said in_progress more often than every 0.3 s"),
        (leaves_a_task, "a task of it goes on after it returned; expected that it ends everything"),
        (leaves_a_task_when_it_fails, "the work raised, and a task of it goes on after it returned"),
    ],
)
async def test_an_answer_that_works_too_much_or_goes_on_is_refused(mesh, answer, said):
    assert said in await refused("17.3", answer)


async def in_a_group_that_is_opened(msg, work):
    async def keep_saying():
        await msg.in_progress()
        while True:
            await asyncio.sleep(0.3)  # pacing
            await msg.in_progress()

    try:
        async with asyncio.TaskGroup() as group:
            saying = group.create_task(keep_saying())
            try:
                await work()
            finally:
                saying.cancel()
    except* LookupError as raised:
        await msg.nak()
        error = raised.exceptions[0]
    else:
        await msg.ack_sync()
        return
    raise error


async def in_raw(msg, work):
    client, ended = msg._client, asyncio.Event()

    async def keep_saying():
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), 0.3)
                return
            await client.publish(msg.reply, b"+WPI")

    saying = asyncio.ensure_future(keep_saying())
    try:
        await work()
        word = b"+ACK"
    except Exception:
        word = b"-NAK"
        raise
    finally:
        ended.set()
        await saying
        await client.publish(msg.reply, word)


@pytest.mark.parametrize("answer", [in_a_group_that_is_opened, in_raw, waits_for_its_pause])
async def test_another_way_to_hold_a_message_is_accepted(mesh, answer):
    await accepted("17.3", answer)
