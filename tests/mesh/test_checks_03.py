"""The exercises of notebook 03: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import json
import sys

import msgspec
import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from mesh_lab.errors import OrderFormatError
from mesh_lab.notebook.exercises import check
from mesh_lab.orders import decode
from mesh_lab.servers.start import newest_mesh

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
        (
            {"subjects": ["board.*", "screen.*"]},
            "subjects of the stream is ['board.*', 'screen.*']; expected ['board.*']",
        ),
        ({"subjects": ["board.000001"]}, "subjects of the stream is ['board.000001']; expected ['board.*']"),
        ({"max_msgs_per_subject": 2}, "max_msgs_per_subject of the stream is 2; expected 1, the newest of each order"),
        ({"max_age": 31 * 86_400}, "max_age of the stream is 2,678,400; expected 2,592,000"),
        ({"max_bytes": 2**20}, "max_bytes of the stream is 1,048,576; expected 1,000,000"),
        ({"retention": "workqueue"}, "retention of the stream is workqueue; expected limits"),
        ({"retention": "interest"}, "retention of the stream is interest; expected limits"),
        ({"max_msgs": 10}, "max_msgs of the stream is 10; expected unlimited"),
        ({"max_msg_size": 100}, "max_msg_size of the stream is 100; expected unlimited"),
        ({"max_consumers": 1}, "max_consumers of the stream is 1; expected unlimited"),
        ({"no_ack": True}, "no_ack of the stream is True; expected False: who publishes has to hear a refusal"),
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


async def test_a_board_made_by_a_request_of_ones_own_is_right(mesh):
    async def by_request(js):
        config = BOARD | {"max_age": 30 * 86_400 * 10**9, "retention": "limits", "storage": "file"}
        reply = await js._nc.request("$JS.API.STREAM.CREATE.BOARD", json.dumps(config).encode(), timeout=10)
        assert "error" not in json.loads(reply.data)

    async def by_configuration(js):
        await js.add_stream(StreamConfig(**BOARD, storage="memory", description="the newest of each"))

    for answer in (by_request, by_configuration):
        verdict = await check("3.1", answer)
        assert verdict.state == "correct", verdict


# 3.2


async def never_answers(msg, charge):
    await charge(decode(msg.data))


async def gives_everything_back(msg, charge):
    await msg.nak()


async def acks_everything(msg, charge):
    await msg.ack()


async def acks_before_the_charge(msg, charge):
    await msg.ack()
    with contextlib.suppress(ConnectionError):
        await charge(decode(msg.data))


async def lets_the_error_out(msg, charge):
    await charge(decode(msg.data))
    await msg.ack()


def careful(*, poison=None, away=None, errors=ConnectionError, done=None, no_order=OrderFormatError):
    """Return a handler that is right but for what is named here."""

    async def handle(msg, charge):
        try:
            order = decode(msg.data)
        except no_order:
            await (poison(msg) if poison else msg.term())
            return
        try:
            await charge(order)
        except errors:
            await (away(msg) if away else msg.nak(delay=0.25))
        else:
            await (done(msg) if done else msg.ack())

    return handle


def again(delay, *, wait=0.0):
    async def away(msg):
        await asyncio.sleep(wait)  # work
        await msg.nak(delay=delay)

    return away


async def backs_off(msg):
    await msg.nak(delay=0.2 * msg.metadata.num_delivered)


async def gives_up_at_the_third(msg):
    await (msg.term() if msg.metadata.num_delivered >= 3 else msg.nak(delay=0.25))


async def nothing(msg):
    return


async def charges_twice(msg, charge):
    async def both(order):
        await charge(order)
        await charge(order)

    await careful()(msg, both)


async def charges_a_dict(msg, charge):
    async def by_dict(order):
        await charge(json.loads(msg.data))

    await careful()(msg, by_dict)


async def tries_again_itself(msg, charge):
    try:
        order = decode(msg.data)
    except OrderFormatError:
        await msg.term()
        return
    while True:
        try:
            await charge(order)
            break
        except ConnectionError:
            await asyncio.sleep(0.25)  # work
    await msg.ack()


async def charges_another(msg, charge):
    async def charge_another(order):
        await charge(msgspec.structs.replace(order, id="999999"))

    await careful()(msg, charge_another)


async def remembers_who_paid(msg, charge):
    """A second delivery is taken for one that was charged."""

    async def once(order):
        if msg.metadata.num_delivered == 1:
            await charge(order)

    await careful()(msg, once)


async def gives_back_without_a_charge(msg, charge):
    if msg.metadata.num_delivered > 1:
        await msg.nak(delay=0.25)
    else:
        await careful()(msg, charge)


async def gives_up_at_the_fifth(msg, charge):
    await (msg.term() if msg.metadata.num_delivered >= 5 else careful()(msg, charge))


async def looks_at_the_type(msg, charge):
    try:
        await careful(errors=())(msg, charge)
    except ConnectionError as err:
        if type(err) is ConnectionError:
            await msg.nak(delay=0.25)


async def reads_the_words(msg, charge):
    try:
        await careful(errors=())(msg, charge)
    except ConnectionError as err:
        await (msg.nak(delay=0.25) if "away" in str(err) else msg.term())


async def expects_json(msg, charge):
    try:
        json.loads(msg.data)
    except ValueError:
        await msg.term()
        return
    await careful(poison=lambda msg: msg.ack())(msg, charge)


class Now:
    msg = None


async def keeps_the_message_in_a_global(msg, charge):
    async def answer(_, delay=None):
        await (Now.msg.ack() if delay is None else Now.msg.nak(delay=delay))

    Now.msg = msg
    await careful(done=answer, away=lambda msg: answer(msg, 0.25))(msg, charge)


async def hangs(msg, charge):
    await careful()(msg, charge)
    await asyncio.Event().wait()


async def answers_later(msg, charge):
    answers_later.kept = asyncio.create_task(after_a_while(msg, charge))


async def after_a_while(msg, charge):
    await asyncio.sleep(5)  # work
    await careful()(msg, charge)


BACK = "the order whose payment failed was given back"
SILENT = "the order whose payment failed was never answered; expected to come again"
NO_ORDER = "the message that is no order"


@pytest.mark.parametrize(
    ("handle", "said"),
    [
        (never_answers, "a good order was never answered; expected an ack when charge returns"),
        (gives_everything_back, "a good order was given back; expected an ack when charge returns"),
        (acks_everything, "a good order was acknowledged and never charged; expected charge called once"),
        (acks_before_the_charge, "an order was acknowledged before charge returned; expected an answer after it"),
        (charges_twice, "a good order was acknowledged and charged 2 times; expected charge called once"),
        (charges_a_dict, "charge was called with dict; expected the decoded order"),
        (lets_the_error_out, "it raised ConnectionError: the payment provider is away (line"),
        (careful(done=lambda msg: msg.term()), "a good order was terminated; expected an ack"),
        (careful(done=nothing), "a good order was never answered"),
        (careful(done=lambda msg: msg.in_progress()), "a good order was never answered"),
        (hangs, "handle() was still at work 1.5 s after it got a good order"),
        (answers_later, "a good order was never answered"),
        (careful(away=nothing), SILENT),
        (careful(away=lambda msg: msg.nak()), f"{BACK} at once; expected to come again 0.2 to 0.5 s after"),
        (careful(away=again(0.1)), f"{BACK} for 0.1 s; expected"),
        (careful(away=again(0.6)), f"{BACK} for 0.6 s; expected"),
        (careful(away=again(1)), f"{BACK} for 1 s; expected to come again 0.2 to 0.5 s after the failure"),
        (careful(away=again(300)), f"{BACK} for 300 s; expected"),
        (careful(away=again(None, wait=0.9)), f"{BACK} at once after a wait of its own; expected"),
        (careful(away=again(0.4, wait=0.4)), f"{BACK} for 0.4 s after a wait of its own; expected"),
        (careful(away=backs_off), f"{BACK} for 0.6 s; expected"),
        (careful(away=gives_up_at_the_third), "the order whose payment failed was terminated; expected to come again"),
        (careful(away=lambda msg: msg.ack()), "the order whose payment failed was given up before it succeeded"),
        (tries_again_itself, "charge was called 5 times in one delivery of the order whose payment failed"),
        (charges_another, "charge was called with an order that was not delivered; expected the one in the message"),
        (remembers_who_paid, "charge was not called for the order whose payment failed; expected one call for each"),
        (gives_back_without_a_charge, "charge was not called for the order whose payment failed; expected one call"),
        (gives_up_at_the_fifth, "the order whose payment failed was terminated, in the delivery after 4 failures"),
        (looks_at_the_type, SILENT),
        (reads_the_words, "the order whose payment failed was terminated"),
        (careful(errors=(ConnectionRefusedError, ConnectionResetError)), "it raised ConnectionError: the payment"),
        (careful(poison=again(0.1)), f"{NO_ORDER} was given back; expected to be terminated"),
        (careful(poison=lambda msg: msg.nak()), f"{NO_ORDER} was given back; expected to be terminated"),
        (careful(poison=nothing), f"{NO_ORDER} was never answered; expected to be terminated"),
        (careful(poison=lambda msg: msg.ack()), f"{NO_ORDER} counts as done; expected to be terminated"),
        (careful(no_order=json.JSONDecodeError), "it raised OrderFormatError"),
        (expects_json, f"{NO_ORDER} counts as done; expected to be terminated"),
        (keeps_the_message_in_a_global, "it raised MsgAlreadyAckdError"),
    ],
)
async def test_a_handler_that_gives_a_wrong_answer_is_told_which(mesh, handle, said):
    assert said in await refused("3.2", handle)


async def in_bytes(msg, charge):
    async def say(words):
        await msg._client.publish(msg.reply, words)

    nak = b'-NAK {"delay": 500000000}'
    await careful(poison=lambda _: say(b"+TERM no order"), away=lambda _: say(nak), done=lambda _: say(b"+ACK"))(
        msg, charge
    )


async def in_a_task_group(msg, charge):
    async with asyncio.TaskGroup() as group:
        group.create_task(careful(done=lambda msg: msg.ack_sync())(msg, charge))


@pytest.mark.parametrize("handle", [careful(away=again(None, wait=0.3)), in_bytes, in_a_task_group])
async def test_other_ways_to_handle_both_are_right(mesh, handle):
    verdict = await check("3.2", handle)
    assert verdict.state == "correct", verdict


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


def finding(find):
    """Return an answer that finds an order's last event in its own way."""

    async def cancel(js, stream, order):
        while True:
            last = await find(js, stream, order)
            if last.subject.endswith(".shipped"):
                return False
            headers = {
                "Nats-Expected-Last-Subject-Sequence": str(last.seq),
                "Nats-Expected-Last-Subject-Sequence-Subject": f"{order}.*",
            }
            with contextlib.suppress(APIError):
                await js.publish(f"{order}.cancelled", b"", headers=headers)
                return True

    return cancel


async def the_last_that_begins_so(js, stream, order):
    last = (await js.stream_info(stream)).state.last_seq
    events = [await js.get_msg(stream, seq=seq) for seq in range(1, last + 1)]
    return [event for event in events if event.subject.startswith(order)][-1]


async def the_last_of_that_id(js, stream, order):
    return await js.get_last_msg(stream, f"*.*.{order.rpartition('.')[2]}.*")


async def the_last_of_all(js, stream, order):
    return await js.get_last_msg(stream, ">")


async def of_the_lesson(js, stream, order):
    return await js.get_last_msg("ORDERS", f"{order}.*")


async def of_the_order(js, stream, order):
    return await js.get_last_msg(stream, f"{order}.*")


async def by_another_connection(js, stream, order):
    async with await newest_mesh().connect(name="mine") as mine:
        return await finding(of_the_order)(mine.jetstream(), stream, order)


async def tells_of_a_refusal(js, stream, order):
    if not await finding(of_the_order)(js, stream, order):
        await js.publish(f"{order}.refused")
        return False
    return True


async def tells_the_other_region(js, stream, order):
    done = await finding(of_the_order)(js, stream, order)
    await js.publish(f"{order.replace('.eu.', '.us.')}.cancelled")
    return done


async def counts(js, stream, order):
    return int(await finding(of_the_order)(js, stream, order))


async def says_nothing(js, stream, order):
    await finding(of_the_order)(js, stream, order)


async def expects_the_orders_last_to_be_the_streams(js, stream, order):
    while True:
        last = await js.get_last_msg(stream, f"{order}.*")
        if last.subject.endswith(".shipped"):
            return False
        with contextlib.suppress(APIError):
            await js.publish(f"{order}.cancelled", b"", headers={"Nats-Expected-Last-Sequence": str(last.seq)})
            return True


async def expects_the_streams_last(js, stream, order):
    while True:
        stored = (await js.stream_info(stream)).state.last_seq
        if (await js.get_last_msg(stream, f"{order}.*")).subject.endswith(".shipped"):
            return False
        with contextlib.suppress(APIError):
            await js.publish(f"{order}.cancelled", b"", headers={"Nats-Expected-Last-Sequence": str(stored)})
            return True


async def by_requests(js, stream, order):
    nc = js._nc
    while True:
        asked = json.dumps({"last_by_subj": f"{order}.*"}).encode()
        last = json.loads((await nc.request(f"$JS.API.STREAM.MSG.GET.{stream}", asked, timeout=5)).data)["message"]
        if last["subject"].endswith(".shipped"):
            return False
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(last["seq"]),
            "Nats-Expected-Last-Subject-Sequence-Subject": f"{order}.*",
        }
        if "error" not in json.loads((await nc.request(f"{order}.cancelled", b"", 5, headers=headers)).data):
            return True
        await asyncio.sleep(0.02)  # pacing


@pytest.mark.parametrize("answer", [expects_the_streams_last, by_requests, finding(of_the_order)])
async def test_other_ways_to_cancel_in_time_are_right(mesh, answer):
    verdict = await check("3.3", answer)
    assert verdict.state == "correct", verdict


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(the_last_that_begins_so), "a paid order reads: placed paid; expected placed paid cancelled"),
        (finding(the_last_of_that_id), "a paid order reads: placed paid; expected placed paid cancelled"),
        (finding(the_last_of_all), "a paid order reads: placed paid; expected placed paid cancelled"),
        (finding(of_the_lesson), "it raised NotFoundError"),
        (by_another_connection, "an order that is shipped while you decide was cancelled by another connection"),
        (tells_of_a_refusal, "a shipped order reads: placed paid shipped refused; expected placed paid shipped"),
        (tells_the_other_region, "for a paid order, 1 events of other orders were stored; expected none"),
        (counts, "for a paid order, 1 was returned; expected True"),
        (says_nothing, "for a paid order, None was returned; expected True"),
    ],
)
async def test_a_cancellation_that_looks_at_others_is_refused(mesh, answer, said):
    assert said in await refused("3.3", answer)


async def test_a_cancellation_that_never_gets_its_turn_is_told_when(mesh, monkeypatch):
    await check("3.3", says_nothing)  # loads the checks
    monkeypatch.setattr(sys.modules["mesh_lab_checks.03_keep_orders_in_jetstream"], "HUNG_S", 0.5)
    verdict = await refused("3.3", expects_the_orders_last_to_be_the_streams)
    assert "cancel() was still at work 0.5 s after it got a paid order; expected True or False" in verdict


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
        (_canceller(tries=20), "an order that is never left alone reads: placed paid checked"),
        (_canceller(tries=2), "an order with two more events while you decide reads: placed paid packed; expected"),
        (_canceller(result="too late"), "for a shipped order, 'too late' was returned; expected False"),
    ],
    ids=["no header", "only its own subject", "decides once", "one try", "twenty tries", "two tries", "no bool"],
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
