"""The exercises of notebook 04: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import time

import pytest
from exercise_cells import ExerciseCells, refused

from mesh_lab.notebook.exercises import check
from mesh_lab.patterns import eventually

CELLS = ExerciseCells("04_measure_without_lying", imports=("mesh_lab.patterns",), asyncio=asyncio, time=time)


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    stub = CELLS.source(number, "exercise").partition("\n\n\n")[0]  # without what it shows of earlier cells
    assert await CELLS.run(f"{stub}\n\n{CELLS.source(number, 'check')}") == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct(mesh, number):
    await CELLS.solved(number)


# 4.1


async def ask_all(nc, subject, payloads):
    """Publish, wait for all answers, and return them, when the run began, handed over and ended, and when each came."""
    answers, came, inbox = [], [], nc.new_inbox()

    async def on_answer(msg):
        answers.append(msg)
        came.append(time.perf_counter())

    replies = await nc.subscribe(inbox, cb=on_answer)
    began = time.perf_counter()
    for payload in payloads:
        await nc.publish(subject, payload, reply=inbox)
    handed_over = time.perf_counter()
    await eventually(lambda: len(answers) == len(payloads), within=30)
    ended = time.perf_counter()
    await replies.unsubscribe()
    return answers, began, handed_over, ended, came


async def times_the_buffer(nc, subject, payloads):
    began = time.perf_counter()
    for payload in payloads:
        await nc.publish(subject, payload)
    return len(payloads) / (time.perf_counter() - began)


async def times_the_flush(nc, subject, payloads):
    began = time.perf_counter()
    for payload in payloads:
        await nc.publish(subject, payload)
    await nc.flush()
    return len(payloads) / (time.perf_counter() - began)


async def waits_and_times_the_buffer(nc, subject, payloads):
    answers, began, handed_over, *_ = await ask_all(nc, subject, payloads)
    return sum(not answer.headers for answer in answers) / (handed_over - began)


async def counts_refusals(nc, subject, payloads):
    answers, began, _, ended, _ = await ask_all(nc, subject, payloads)
    return len(answers) / (ended - began)


async def counts_only_refusals_of_half_the_time(nc, subject, payloads):
    answers, began, _, ended, _ = await ask_all(nc, subject, payloads)
    return sum(not answer.headers for answer in answers) / (3 * (ended - began))


async def stops_at_the_first_answer(nc, subject, payloads):
    began = time.perf_counter()
    await nc.request(subject, payloads[0], timeout=5)
    return 1 / (time.perf_counter() - began)


async def returns_the_time(nc, subject, payloads):
    _, began, _, ended, _ = await ask_all(nc, subject, payloads)
    return f"{ended - began} s"


async def returns_nothing(nc, subject, payloads):
    await ask_all(nc, subject, payloads)
    return 0


async def starts_with_the_first_answer(nc, subject, payloads):
    answers, _, _, _, times = await ask_all(nc, subject, payloads)
    return sum(not answer.headers for answer in answers) / (times[-1] - times[0])


async def stops_with_the_last_processed(nc, subject, payloads):
    answers, began, _, _, times = await ask_all(nc, subject, payloads)
    processed = [at for at, answer in zip(times, answers, strict=True) if not answer.headers]
    return len(processed) / (processed[-1] - began)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (times_the_buffer, "it returned before the worker had done its last order; expected a clock that stops with"),
        (times_the_flush, "it returned before the worker had done its last order"),
        (stops_at_the_first_answer, "it returned before the worker had done its last order"),
        (waits_and_times_the_buffer, "the rate is many times what the worker can do; expected the clock to stop with"),
        (counts_refusals, "refused orders count as processed; expected only answers without the header"),
        (counts_only_refusals_of_half_the_time, "the rate is far below what the worker did"),
        (returns_the_time, "str was returned; expected a number"),
        (returns_nothing, "0 orders a second; expected a rate above 0"),
    ],
)
async def test_a_benchmark_that_still_lies_is_told_how(mesh, answer, said):
    assert said in await refused("4.1", answer)


@pytest.mark.parametrize("answer", [starts_with_the_first_answer, stops_with_the_last_processed])
async def test_a_clock_that_starts_late_or_stops_early_is_told_so(mesh, answer):
    seen = "the rate is above what the worker did; expected a clock from the first publish"
    assert seen in await refused("4.1", answer)


async def test_requests_side_by_side_with_their_own_timeout_tell_it_as_well(mesh):
    async def side_by_side(nc, subject, payloads):
        began = time.perf_counter()
        replies = await asyncio.gather(*(nc.request(subject, payload, timeout=2) for payload in payloads))
        return sum(not reply.headers for reply in replies) / (time.perf_counter() - began)

    verdict = await check("4.1", side_by_side)
    assert verdict.state == "correct", verdict


async def test_a_closed_loop_tells_the_rate_of_one_worker_as_well(mesh):
    async def one_at_a_time(nc, subject, payloads):
        began, processed = time.perf_counter(), 0
        for payload in payloads:
            reply = await nc.request(subject, payload, timeout=5)
            processed += not reply.headers
        return processed / (time.perf_counter() - began)

    verdict = await check("4.1", one_at_a_time)
    assert verdict.state == "correct", verdict


# 4.2


def right(sent_s, latency_s, rate_per_s):
    return [sent + latency - n / rate_per_s for n, (sent, latency) in enumerate(zip(sent_s, latency_s, strict=True))]


def leaves_them(sent_s, latency_s, rate_per_s):
    return latency_s


def gives_milliseconds(sent_s, latency_s, rate_per_s):
    return [1_000 * one for one in right(sent_s, latency_s, rate_per_s)]


def multiplies(sent_s, latency_s, rate_per_s):
    return [sent + latency - n * rate_per_s for n, (sent, latency) in enumerate(zip(sent_s, latency_s, strict=True))]


def forgets_the_answer(sent_s, latency_s, rate_per_s):
    return [sent - n / rate_per_s for n, sent in enumerate(sent_s)]


def begins_with_the_first(sent_s, latency_s, rate_per_s):
    return [one - sent_s[0] for one in right(sent_s, latency_s, rate_per_s)]


def makes_answers_up(sent_s, latency_s, rate_per_s):
    made_up = []
    for latency in latency_s:
        while latency > 0:
            made_up.append(latency)
            latency -= 1 / rate_per_s
    return made_up


def keeps_the_bad_ones(sent_s, latency_s, rate_per_s):
    return [one for one in right(sent_s, latency_s, rate_per_s) if one > 0.1]


def returns_a_mean(sent_s, latency_s, rate_per_s):
    return sum(right(sent_s, latency_s, rate_per_s)) / len(sent_s)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (leaves_them, "the latencies are those since the questions were sent; expected those since they were due"),
        (gives_milliseconds, "the latencies are in milliseconds; expected seconds"),
        (multiplies, "an answer came before its question was due; expected question n due at n / rate_per_s"),
        (forgets_the_answer, "some latencies differ from those since the questions were due"),
        (
            begins_with_the_first,
            "0 is where the first question left, which was 0.3 s late",
        ),
        (makes_answers_up, "more latencies than questions; expected one for each"),
        (keeps_the_bad_ones, "fewer latencies than questions; expected one for each"),
        (returns_a_mean, "a float was returned; expected a list of seconds"),
    ],
)
async def test_a_record_that_is_mended_badly_is_told_how(mesh, answer, said):
    assert said in await refused("4.2", answer)


async def test_an_answer_that_changes_its_arguments_is_not_compared_with_them(mesh):
    def in_place(sent_s, latency_s, rate_per_s):
        for n, sent in enumerate(sent_s):
            latency_s[n] += sent - n / rate_per_s
        return latency_s

    assert (await check("4.2", in_place)).state == "correct"


# 4.3


def since_due(table):
    return table["done_s"] - table["due_s"]


def by_the_mean(table):
    return since_due(table).mean() <= 0.020


def by_the_median(table):
    return since_due(table).median() <= 0.020


def by_the_longest(table):
    return since_due(table).max() <= 0.020


def by_a_percentile_of_the_answered(table):
    return since_due(table)[table["outcome"] == "answered"].quantile(0.989) <= 0.020


def counts_refusals_as_answers(table):
    return (since_due(table) <= 0.020).mean() >= 0.99


def counts_since_sent(table):
    in_time = (table["outcome"] == "answered") & (table["done_s"] - table["sent_s"] <= 0.020)
    return in_time.mean() >= 0.99


def counts_whoever_was_not_refused(table):
    return ((table["outcome"] != "refused") & (since_due(table) <= 0.020)).mean() >= 0.99


def asks_for_more(table):
    in_time = (table["outcome"] == "answered") & (since_due(table) <= 0.020)
    return in_time.mean() > 0.99


def always(table):
    return True


def returns_a_share(table):
    return ((table["outcome"] == "answered") & (since_due(table) <= 0.020)).mean()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (by_the_mean, "True for 5 of 200 answered after 200 ms, and a mean of 6 ms; expected False"),
        (by_the_median, "True for 5 of 200 answered after 200 ms"),
        (by_the_longest, "False for 2 of 200 answered after 5 s, the rest after 15 ms; expected True: 198 of 200"),
        (asks_for_more, "False for 2 of 200 answered after 5 s"),
        (by_a_percentile_of_the_answered, "True for 5 of 200 never answered, the rest after 10 ms; expected False"),
        (counts_refusals_as_answers, "True for 5 of 200 refused after 1 ms"),
        (counts_whoever_was_not_refused, "True for 5 of 200 found nobody there"),
        (counts_since_sent, "True for all answered 5 ms after they left, which was 25 ms after they were due"),
        (always, "True for all answered after 30 ms; expected False"),
        (returns_a_share, "0.975"),
    ],
)
async def test_a_promise_that_is_judged_wrongly_is_told_whom_it_forgot(mesh, answer, said):
    assert said in await refused("4.3", answer)
