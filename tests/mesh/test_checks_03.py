"""The exercises of notebook 03: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio

import pytest
from exercise_cells import ExerciseCells
from nats.js.errors import APIError

from mesh_lab.errors import OrderFormatError
from mesh_lab.notebook.exercises import check
from mesh_lab.orders import decode

CELLS = ExerciseCells("03_keep_orders_in_jetstream", imports=("mesh_lab.", "nats.", "contextlib"))


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct_time_and_again(client, number):
    first, second = [await CELLS.run(CELLS.source(number, "solution")) for _ in range(2)]
    assert first == second
    assert first[0].startswith("correct: ")
    left = {info.config.name for info in await client.jetstream(timeout=5.0).streams_info()}
    assert not left & {"BOARD", "CHECK-3-2", "CHECK-3-3"}


# 3.1

BOARD = {
    "name": "BOARD",
    "subjects": ["board.*"],
    "max_msgs_per_subject": 1,
    "max_age": 30 * 86_400,
    "num_replicas": 3,
    "max_bytes": 1_000_000,
    "discard": "new",
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "SCREEN"}, "no stream BOARD on the server; expected one that listens to board.*"),
        ({"subjects": ["board.>"]}, "subjects of the stream is ['board.>']; expected ['board.*']"),
        ({"max_msgs_per_subject": -1}, "max_msgs_per_subject of the stream is unlimited; expected 1, the newest"),
        ({"max_msgs_per_subject": -1, "max_msgs": 1}, "max_msgs_per_subject of the stream is unlimited; expected 1"),
        ({"max_age": 30 * 86_400 * 10**9}, "it raised BadRequestError"),
        ({"max_age": 30 * 86_400 * 1000}, "max_age of the stream is 2,592,000,000; expected 2,592,000, the seconds"),
        ({"max_age": None}, "max_age of the stream is unlimited; expected 2,592,000, the seconds of 30 days"),
        ({"num_replicas": 1}, "num_replicas of the stream is 1; expected 3"),
        ({"max_bytes": 100_000}, "max_bytes of the stream is 100,000; expected 1,000,000"),
        ({"discard": "old"}, "discard of the stream is old; expected new"),
        ({"discard_new_per_subject": True}, "'paid' was refused while the board shows an earlier event"),
    ],
    ids=str,
)
async def test_a_board_with_other_settings_is_refused(client, changed, said):
    js = client.jetstream(timeout=5.0)

    async def make_board(js):
        settings = {name: value for name, value in (BOARD | changed).items() if value is not None}
        await js.add_stream(**settings)

    verdict = repr(await check("3.1", make_board))
    if changed.get("name"):
        await js.delete_stream(changed["name"])
    assert verdict.startswith("not yet: ")
    assert said in verdict


# 3.2


async def test_a_handler_that_never_answers_is_refused(mesh):
    async def handle(msg, charge):
        await charge(decode(msg.data))

    assert "not yet: a good order was never answered; expected one delivery" in repr(await check("3.2", handle))


async def test_a_handler_that_gives_everything_back_is_refused(mesh):
    async def handle(msg, charge):
        await msg.nak()

    assert "not yet: a good order was delivered again and again" in repr(await check("3.2", handle))


async def test_a_handler_that_acks_without_charging_is_refused(mesh):
    async def handle(msg, charge):
        await msg.ack()

    assert "a good order was acknowledged and never charged" in repr(await check("3.2", handle))


async def test_an_ack_before_the_charge_is_refused(mesh):
    async def handle(msg, charge):
        await msg.ack()
        try:
            await charge(decode(msg.data))
        except ConnectionError:
            return

    assert "the order whose payment failed was given up before it succeeded" in repr(await check("3.2", handle))


async def test_a_nak_without_delay_is_refused(mesh):
    async def handle(msg, charge):
        try:
            await charge(decode(msg.data))
            await msg.ack()
        except ConnectionError:
            await msg.nak()

    verdict = repr(await check("3.2", handle))
    assert "the order whose payment failed came again at once; expected not sooner than 0.2 s" in verdict


async def test_waiting_for_the_redelivery_in_silence_is_refused(mesh):
    async def handle(msg, charge):
        try:
            await charge(decode(msg.data))
            await msg.ack()
        except ConnectionError:
            return

    assert "the order whose payment failed was never answered" in repr(await check("3.2", handle))


async def test_an_error_that_the_handler_lets_out_is_shown_with_its_line(mesh):
    async def handle(msg, charge):
        await charge(decode(msg.data))
        await msg.ack()

    verdict = repr(await check("3.2", handle))
    assert "it raised ConnectionError: the payment provider is away (line" in verdict


def _careful(with_poison):
    async def handle(msg, charge):
        try:
            await charge(decode(msg.data))
        except ConnectionError:
            await msg.nak(delay=0.25)
        except OrderFormatError:
            await with_poison(msg)
        else:
            await msg.ack()

    return handle


@pytest.mark.parametrize(
    ("with_poison", "said"),
    [
        (lambda msg: msg.nak(delay=0.1), "the message that is no order was delivered again and again; expected one"),
        (lambda msg: msg.nak(), "the message that is no order was delivered again and again; expected one"),
        (lambda msg: asyncio.sleep(0), "the message that is no order was never answered; expected one delivery"),
        (lambda msg: msg.ack(), "the message that is no order counts as done; expected terminated"),
    ],
    ids=["nak with delay", "nak", "silence", "ack"],
)
async def test_a_poison_order_that_is_not_terminated_is_refused(mesh, with_poison, said):
    verdict = repr(await check("3.2", _careful(with_poison)))
    assert verdict.startswith("not yet: ")
    assert said in verdict


# 3.3


def _canceller(*, header=True, whole_order=True, tries=10, decide_again=True, result=None):
    async def cancel(js, stream, order):
        shipped = None
        for _ in range(tries):
            last = await js.get_last_msg(stream, f"{order}.*")
            if shipped is None or decide_again:
                shipped = last.subject.endswith(".shipped")
            if shipped:
                return result if result is not None else False
            headers = {"Nats-Expected-Last-Subject-Sequence": str(last.seq if whole_order else 0)} if header else {}
            if whole_order and header:
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = f"{order}.*"
            try:
                await js.publish(f"{order}.cancelled", b"", headers=headers)
            except APIError:
                continue
            return True
        return False

    return cancel


TOO_LATE = (
    "an order that is shipped while you decide reads: placed paid shipped cancelled; expected placed paid shipped"
)


@pytest.mark.parametrize(
    ("canceller", "said"),
    [
        (_canceller(header=False), TOO_LATE),
        (_canceller(whole_order=False), TOO_LATE),
        (_canceller(decide_again=False), TOO_LATE),
        (_canceller(tries=1), "an order with two more events while you decide reads: placed paid; expected"),
        (_canceller(tries=2), "an order with two more events while you decide reads: placed paid packed; expected"),
        (_canceller(result="too late"), "for a shipped order, 'too late' was returned; expected False"),
    ],
    ids=["no header", "only its own subject", "decides once", "one try", "two tries", "no bool"],
)
async def test_a_cancellation_that_ignores_others_is_refused(mesh, canceller, said):
    verdict = repr(await check("3.3", canceller))
    assert verdict.startswith("not yet: ")
    assert said in verdict


async def test_a_cancellation_that_lets_the_conflict_out_is_shown_with_its_line(mesh):
    async def cancel(js, stream, order):
        last = await js.get_last_msg(stream, f"{order}.*")
        if last.subject.endswith(".shipped"):
            return False
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(last.seq),
            "Nats-Expected-Last-Subject-Sequence-Subject": f"{order}.*",
        }
        await js.publish(f"{order}.cancelled", b"", headers=headers)
        return True

    verdict = repr(await check("3.3", cancel))
    assert "it raised BadRequestError" in verdict
    assert "wrong last sequence" in verdict


async def test_a_cancellation_that_expects_the_streams_last_sequence_is_refused(mesh):
    async def cancel(js, stream, order):
        last = await js.get_last_msg(stream, f"{order}.*")
        if last.subject.endswith(".shipped"):
            return False
        headers = {"Nats-Expected-Last-Sequence": str(last.seq)}  # another order's event is the last of the stream
        await js.publish(f"{order}.cancelled", b"", headers=headers)
        return True

    assert "it raised BadRequestError" in repr(await check("3.3", cancel))
