"""The exercises of notebook 04: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from exercise_cells import ExerciseCells, accepted, refused
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

CELLS = ExerciseCells("04_keep_state_and_time", imports=("nats.", "contextlib", "datetime"))


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct_time_and_again(client, number):
    first, second = [await CELLS.run(CELLS.source(number, "solution")) for _ in range(2)]
    assert first == second
    assert first[0].startswith("correct: ")
    left = {info.config.name for info in await client.jetstream(timeout=5.0).streams_info()}
    assert not left & {"KV_CHECK-4-1", "KV_CHECK-4-2", "REMINDERS"}


# 4.1


def seller(*, tries=100, read_again=True, decide_again=True, missing=False, least=0, write="update", result=True):
    """Return an answer to 4.1 that is right, but for what the arguments say."""

    async def sell(stock, title, copies):
        entry = left = None
        for _ in range(tries):
            if entry is None or read_again:
                try:
                    entry = await stock.get(title)
                except KeyNotFoundError:
                    return missing
            if left is None or decide_again:
                left = int(entry.value) - copies
            if left < least:
                return False
            try:
                if write == "update":
                    await stock.update(title, str(left).encode(), last=entry.revision)
                else:
                    await stock.put(title, str(left).encode())
            except KeyWrongLastSequenceError:
                continue
            return result
        return False

    return sell


async def sells_what_is_not_there(stock, title, copies):
    sold = await seller(missing=None)(stock, title, copies)
    if sold is None:
        await stock.create(title, str(-copies).encode())
    return sold is not False


async def raises_without_a_title(stock, title, copies):
    entry = await stock.get(title)
    return await seller()(stock, title, copies) if entry else False


async def notes_every_sale(stock, title, copies):
    sold = await seller()(stock, title, copies)
    if sold:
        await stock.put(f"{title}.sold", str(copies).encode())
    return sold


async def names_the_revision_of_a_second_reading(stock, title, copies):
    try:
        left = int((await stock.get(title)).value) - copies
        if left < 0:
            return False
        await asyncio.sleep(0)
        await stock.update(title, str(left).encode(), last=(await stock.get(title)).revision)
    except (KeyNotFoundError, KeyWrongLastSequenceError):
        return False
    return True


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            seller(write="put"),
            "for the last copy, which another till sells meanwhile, True was returned; expected False",
        ),
        (seller(tries=1), "after two copies of one, when three more are delivered meanwhile, the stock says 5"),
        (seller(tries=10), "after a copy, when others are faster 12 times, the stock says 40; expected 37"),
        (seller(read_again=False), "when three more are delivered meanwhile, the stock says 5; expected 3"),
        (seller(decide_again=False), "for the last copy, which another till sells meanwhile, True was returned"),
        (seller(least=-1), "after two copies of one, the stock says -1; expected 1"),
        (seller(least=1), "after all three of three, the stock says 3; expected 0"),
        (seller(result=None), "for one copy of five, None was returned; expected True"),
        (seller(missing=None), "for a copy of a title that the shop never had, None was returned; expected False"),
        (sells_what_is_not_there, "after a copy of a title that the shop never had, the stock says -1"),
        (raises_without_a_title, "it raised KeyNotFoundError"),
        (notes_every_sale, "after one copy of five, the stock has a key more"),
        (names_the_revision_of_a_second_reading, "the stock says"),
    ],
)
async def test_a_sale_that_goes_wrong_is_refused(mesh, answer, said):
    assert said in await refused("4.1", answer)


async def sells_by_the_stream(stock, title, copies):
    """Sell with the headers of notebook 03."""
    status = await stock.status()
    subject = f"$KV.{status.bucket}.{title}"
    js = stock._js
    while True:
        try:
            last = await js.get_last_msg(f"KV_{status.bucket}", subject)
        except NotFoundError:
            return False
        if (last.headers and "KV-Operation" in last.headers) or int(last.data) < copies:
            return False
        headers = {"Nats-Expected-Last-Subject-Sequence": str(last.seq)}
        with contextlib.suppress(APIError):
            await js.publish(subject, str(int(last.data) - copies).encode(), headers=headers)
            return True


async def sells_by_recursion(stock, title, copies):
    try:
        entry = await stock.get(title)
        if int(entry.value) < copies:
            return False
        await stock.update(title, b"%d" % (int(entry.value) - copies), last=entry.revision)
    except KeyWrongLastSequenceError:
        return await sells_by_recursion(stock, title, copies)
    except KeyNotFoundError:
        return False
    return True


@pytest.mark.parametrize("answer", [sells_by_the_stream, sells_by_recursion])
async def test_a_sale_may_be_made_in_several_ways(mesh, answer):
    await accepted("4.1", answer)


# 4.2


def renewer(*, expected=True, ttl=1.0, lost=None, errors=(10071, 10164), payload=None, result=None):
    """Return an answer to 4.2 that is right, but for what the arguments say."""

    async def renew(js, bucket, key, holder, revision, seconds):
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)} if expected else {}
        msg_ttl = {"msg_ttl": seconds * ttl} if ttl else {}
        try:
            ack = await js.publish(f"$KV.{bucket}.{key}", payload or holder, headers=headers, **msg_ttl)
        except APIError as err:
            if err.err_code not in errors:
                raise
            return lost
        return result or ack.seq

    return renew


async def renews_by_update(js, bucket, key, holder, revision, seconds):
    try:
        return await (await js.key_value(bucket)).update(key, holder, last=revision)
    except KeyWrongLastSequenceError:
        return None


async def gives_back_and_takes_again(js, bucket, key, holder, revision, seconds):
    leases = await js.key_value(bucket)
    try:
        await leases.delete(key, last=revision)
        return await leases.create(key, holder, msg_ttl=seconds)
    except APIError:
        return None


async def takes_what_is_free(js, bucket, key, holder, revision, seconds):
    try:
        await (await js.key_value(bucket)).get(key)
    except KeyNotFoundError:
        return await (await js.key_value(bucket)).create(key, holder, msg_ttl=seconds)
    return await renewer()(js, bucket, key, holder, revision, seconds)


async def looks_whose_it_is(js, bucket, key, holder, revision, seconds):
    try:
        if (await (await js.key_value(bucket)).get(key)).value != holder:
            return None
    except KeyNotFoundError:
        return None
    return (await js.publish(f"$KV.{bucket}.{key}", holder, msg_ttl=seconds)).seq


async def swallows_everything(js, bucket, key, holder, revision, seconds):
    with contextlib.suppress(Exception):
        return await renewer()(js, bucket, key, holder, revision, seconds)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (renews_by_update, "the renewed lease has the TTL none; expected 1"),
        (renewer(ttl=None), "the renewed lease has the TTL none; expected 1"),
        (renewer(ttl=10.0), "the renewed lease has the TTL 10; expected 1"),
        (renewer(expected=False), "for a lease that another holder has meanwhile, something was stored"),
        (renewer(lost=False), "for a lease that another holder has meanwhile, False was returned; expected None"),
        (renewer(errors=()), "it raised BadRequestError"),
        (renewer(payload=b"me"), "the lease holds b'me'; expected b'clerk-0'"),
        (renewer(result=True), "True was returned"),
        (gives_back_and_takes_again, "2 messages were stored for one renewal"),
        (takes_what_is_free, "for a lease that has run out, something was stored"),
        (looks_whose_it_is, "for a lease that its holder has renewed since, something was stored"),
        (swallows_everything, "without a bucket, None was returned; expected the error, for the caller"),
    ],
)
async def test_a_lease_that_is_renewed_wrongly_is_refused(mesh, answer, said):
    assert said in await refused("4.2", answer)


async def renews_by_the_ttl_header(js, bucket, key, holder, revision, seconds):
    headers = {"Nats-TTL": f"{seconds}s", "Nats-Expected-Last-Subject-Sequence": str(revision)}
    try:
        return (await js.publish(f"$KV.{bucket}.{key}", holder, headers=headers)).seq
    except APIError as err:
        if "wrong last sequence" in err.description:
            return None
        raise


async def looks_first(js, bucket, key, holder, revision, seconds):
    leases = await js.key_value(bucket)
    try:
        if (await leases.get(key)).revision != revision:
            return None
    except KeyNotFoundError:
        return None
    return await renewer()(js, bucket, key, holder, revision, seconds)


@pytest.mark.parametrize("answer", [renews_by_the_ttl_header, looks_first])
async def test_a_lease_may_be_renewed_in_several_ways(mesh, answer):
    await accepted("4.2", answer)


# 4.3


def due_in(seconds, *, zone=UTC):
    return f"@at {(datetime.now(zone) + timedelta(seconds=seconds)).isoformat()}"


def postponer(*, expected=True, seconds=None, target=None, payload=None, result=True, gone=False, subject="remind"):
    """Return an answer to 4.3 that is right, but for what the arguments say."""

    async def postpone(js, order, later):
        try:
            waiting = await js.get_last_msg("REMINDERS", f"remind.{order}")
        except NotFoundError:
            return gone
        headers = {"Nats-Schedule": due_in(later if seconds is None else seconds)}
        headers["Nats-Schedule-Target"] = target.format(order) if target else waiting.headers["Nats-Schedule-Target"]
        if expected:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(waiting.seq if subject == "remind" else 0)
        try:
            await js.publish(f"{subject}.{order}", payload or waiting.data, headers=headers)
        except APIError:
            return False
        return result

    return postpone


async def schedules_anew(js, order, seconds):
    headers = {"Nats-Schedule": due_in(seconds), "Nats-Schedule-Target": f"unpaid.{order}"}
    await js.publish(f"remind.{order}", b"please pay", headers=headers)
    return True


async def moves_everything(js, order, seconds):
    moved = await postponer()(js, order, seconds)
    for other in ("000007", "000008"):
        await postponer()(js, other, seconds)
    return moved


async def cancels_first(js, order, seconds):
    try:
        waiting = await js.get_last_msg("REMINDERS", f"remind.{order}")
    except NotFoundError:
        return False
    await js.purge_stream("REMINDERS", subject=f"remind.{order}")
    headers = {"Nats-Schedule": due_in(seconds), "Nats-Schedule-Target": waiting.headers["Nats-Schedule-Target"]}
    await js.publish(f"remind.{order}", waiting.data, headers=headers)
    return True


async def does_nothing(js, order, seconds):
    return await js.get_last_msg("REMINDERS", f"remind.{order}") is not None


async def cancels(js, order, seconds):
    try:
        await js.get_last_msg("REMINDERS", f"remind.{order}")
    except NotFoundError:
        return False
    await js.purge_stream("REMINDERS", subject=f"remind.{order}")
    return order != "paid"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (schedules_anew, "an order without a reminder has a reminder waiting now; expected none"),
        (postponer(expected=False), "an order that is paid while you look has a reminder waiting now; expected none"),
        (cancels_first, "an order that is paid while you look has a reminder waiting now; expected none"),
        (postponer(gone=None), "for an order without a reminder, None was returned; expected False"),
        (postponer(result=None), "for an order whose reminder waits, None was returned; expected True"),
        (does_nothing, "it raised NotFoundError"),
        (postponer(payload=b"please pay"), "the reminder says b'please pay'; expected the payload that it had"),
        (postponer(target="unpaid.{}"), "did not come at dunned.000007; expected it, at the target it had"),
        (postponer(seconds=0.2), "the reminder came at its old time; expected 2 s from the call"),
        (cancels, "did not come at dunned.000007"),
        (moves_everything, "the reminder of another order was moved as well"),
    ],
)
async def test_a_reminder_that_is_moved_wrongly_is_refused(mesh, answer, said):
    assert said in await refused("4.3", answer)


async def moves_by_the_whole_header(js, order, seconds):
    """Send the schedule's own headers back, with another time."""
    try:
        waiting = await js.get_last_msg("REMINDERS", f"remind.{order}")
        headers = {**waiting.headers, "Nats-Schedule": due_in(seconds)}
        headers["Nats-Expected-Last-Subject-Sequence"] = str(waiting.seq)
        await js.publish(f"remind.{order}", waiting.data, headers=headers)
    except APIError:  # NotFoundError is one, too
        return False
    return True


async def looks_among_the_subjects(js, order, seconds):
    info = await js.stream_info("REMINDERS", subjects_filter=f"remind.{order}")
    if not info.state.subjects:
        return False
    return await postponer()(js, order, seconds)


@pytest.mark.parametrize("answer", [moves_by_the_whole_header, looks_among_the_subjects])
async def test_a_reminder_may_be_moved_in_several_ways(mesh, answer):
    await accepted("4.3", answer)
