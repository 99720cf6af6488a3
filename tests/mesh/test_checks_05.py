"""The exercises of notebook 05: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import time

import numpy as np
import pytest
from exercise_cells import ExerciseCells, refused

from mesh_lab.notebook.exercises import check
from mesh_lab.patterns import eventually

CELLS = ExerciseCells("05_measure_without_lying", imports=("mesh_lab.patterns",), asyncio=asyncio, time=time)


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    stub = CELLS.source(number, "exercise").partition("\n\n\n")[0]  # without what it shows of earlier cells
    assert await CELLS.run(f"{stub}\n\n{CELLS.source(number, 'check')}") == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct(mesh, number):
    await CELLS.solved(number)


# 5.1


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
    answers, began, *_, came = await ask_all(nc, subject, payloads)
    return len(answers) / (came[-1] - began)


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


def rated(rate):
    """Return an answer that does all the work, and returns what a function makes of count and seconds."""

    async def processed_per_s(nc, subject, payloads):
        answers, began, _, _, came = await ask_all(nc, subject, payloads)
        return rate(sum(not answer.headers for answer in answers), came[-1] - began)

    return processed_per_s


async def takes_half(nc, subject, payloads):
    _, began, _, _, came = await ask_all(nc, subject, payloads)
    return len(payloads) / 2 / (came[-1] - began)


async def knows_one_code(nc, subject, payloads):
    answers, began, _, _, came = await ask_all(nc, subject, payloads)
    refused = [one for one in answers if (one.headers or {}).get("Nats-Service-Error-Code") == "422"]
    return (len(answers) - len(refused)) / (came[-1] - began)


async def looks_at_the_payload(nc, subject, payloads):
    answers, began, _, _, came = await ask_all(nc, subject, payloads)
    return sum(answer.data == b"" for answer in answers) / 2 / (came[-1] - began)


async def sends_twice(nc, subject, payloads):
    return await rated(lambda count, seconds: count / seconds)(nc, subject, [*payloads, *payloads])


async def sends_its_own(nc, subject, payloads):
    return await rated(lambda count, seconds: count / seconds)(nc, subject, [b"%d" % n for n in range(len(payloads))])


async def stays_subscribed(nc, subject, payloads):
    await nc.subscribe(nc.new_inbox())
    return await rated(lambda count, seconds: count / seconds)(nc, subject, payloads)


RESULTS = []


async def remembers_the_first(nc, subject, payloads):
    if len(RESULTS) == 0:
        RESULTS.append(0.0)
        RESULTS[0] = await rated(lambda count, seconds: count / seconds)(nc, subject, payloads)
    else:
        await ask_all(nc, subject, payloads)
    return RESULTS[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (rated(lambda count, seconds: 1_000 * seconds / count), "the rate is far below what the worker did"),
        (rated(lambda count, seconds: seconds / count), "the rate is far below what the worker did"),
        (rated(lambda count, seconds: count), "the rate is far below what the worker did"),
        (rated(lambda count, seconds: float("nan")), "nan orders a second; expected a rate above 0"),
        (rated(lambda count, seconds: -count / seconds), "a rate below 0; expected a rate above 0"),
        (rated(lambda count, seconds: float("inf")), "the rate is many times what the worker can do"),
        (rated(lambda count, seconds: None), "None was returned; expected a number of orders a second"),
        (rated(lambda count, seconds: 3.0), "the rate is far below what the worker did"),
        (takes_half, "the rate is"),
        (knows_one_code, "refused orders count as processed; expected only answers without the header"),
        (looks_at_the_payload, "the rate is"),
        (
            sends_twice,
            "it returned before|the worker got 120 orders for 60 payloads, or others; expected each payload, once",
        ),
        (sends_its_own, "the worker got 60 orders for 60 payloads, or others; expected each payload, once"),
        (stays_subscribed, "it left an inbox subscribed; expected nothing left behind"),
        (remembers_the_first, "the rate is|refused orders count as processed"),  # by how fast the first was
    ],
)
async def test_a_benchmark_that_works_and_tells_something_else_is_refused(mesh, answer, said):
    verdict = await refused("5.1", answer)
    assert any(words in verdict for words in said.split("|")), verdict


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
    assert said in await refused("5.1", answer)


@pytest.mark.parametrize("answer", [starts_with_the_first_answer, stops_with_the_last_processed])
async def test_a_clock_that_starts_late_or_stops_early_is_told_so(mesh, answer):
    # A first answer that is held up makes it so far off that no clock explains it.
    assert "the rate is above what the worker did" in await refused("5.1", answer)


async def test_requests_side_by_side_with_their_own_timeout_tell_it_as_well(mesh):
    async def side_by_side(nc, subject, payloads):
        began = time.perf_counter()
        replies = await asyncio.gather(*(nc.request(subject, payload, timeout=2) for payload in payloads))
        return sum(not reply.headers for reply in replies) / (time.perf_counter() - began)

    verdict = await check("5.1", side_by_side)
    assert verdict.state == "correct", verdict


async def test_a_closed_loop_tells_the_rate_of_one_worker_as_well(mesh):
    async def one_at_a_time(nc, subject, payloads):
        began, processed = time.perf_counter(), 0
        for payload in payloads:
            reply = await nc.request(subject, payload, timeout=5)
            processed += not reply.headers
        return processed / (time.perf_counter() - began)

    verdict = await check("5.1", one_at_a_time)
    assert verdict.state == "correct", verdict


# 5.2


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


def counts_from_1(sent_s, latency_s, rate_per_s):
    return [
        sent + latency - (n + 1) / rate_per_s for n, (sent, latency) in enumerate(zip(sent_s, latency_s, strict=True))
    ]


def knows_the_rate(sent_s, latency_s, rate_per_s):
    return right(sent_s, latency_s, 10)


def rounds_the_interval(sent_s, latency_s, rate_per_s):
    return [
        sent + latency - n * (1 // rate_per_s) for n, (sent, latency) in enumerate(zip(sent_s, latency_s, strict=True))
    ]


def sorts_them(sent_s, latency_s, rate_per_s):
    return sorted(right(sent_s, latency_s, rate_per_s))


def adds_up_what_went_before(sent_s, latency_s, rate_per_s):
    return [sum(latency_s[: n + 1]) for n in range(len(latency_s))]


def subtracts_the_answer(sent_s, latency_s, rate_per_s):
    return [sent - latency - n / rate_per_s for n, (sent, latency) in enumerate(zip(sent_s, latency_s, strict=True))]


def never_less_than_measured(sent_s, latency_s, rate_per_s):
    return [max(one, 3 * latency) for one, latency in zip(right(sent_s, latency_s, rate_per_s), latency_s, strict=True)]


def needs_one(sent_s, latency_s, rate_per_s):
    return right(sent_s, latency_s, rate_per_s) if sent_s[0] is not None else []


def rounds_to_tenths(sent_s, latency_s, rate_per_s):
    return [round(one, 1) for one in right(sent_s, latency_s, rate_per_s)]


def returns_nothing_at_all(sent_s, latency_s, rate_per_s):
    right(sent_s, latency_s, rate_per_s)


def yields_them(sent_s, latency_s, rate_per_s):
    return iter(right(sent_s, latency_s, rate_per_s))


def writes_them(sent_s, latency_s, rate_per_s):
    return [f"{one:.3f}" for one in right(sent_s, latency_s, rate_per_s)]


def returns_a_mean(sent_s, latency_s, rate_per_s):
    return sum(right(sent_s, latency_s, rate_per_s)) / len(sent_s)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (leaves_them, "the latencies are those since the questions were sent; expected those since they were due"),
        (gives_milliseconds, "the latencies are in milliseconds; expected seconds"),
        (
            multiplies,
            "-9.35 s was returned where question 1, due at 0.1 s, left at 0.6 s and took 0.05 s; expected 0.55 s",
        ),
        (
            forgets_the_answer,
            "0.3 s was returned where question 0, due at 0 s, left at 0.3 s and took 0.25 s; expected 0.55",
        ),
        (
            counts_from_1,
            "0.45 s was returned where question 0, due at 0 s, left at 0.3 s and took 0.25 s; expected 0.55",
        ),
        (knows_the_rate, "s was returned where question 1, due at 0.5 s, left at 0.5 s and took 0.2 s; expected 0.2 s"),
        (rounds_the_interval, "0.65 s was returned where question 1, due at 0.1 s"),
        (sorts_them, "0.52 s was returned where question 0, due at 0 s"),
        (adds_up_what_went_before, "0.25 s was returned where question 0, due at 0 s"),
        (subtracts_the_answer, "0.05 s was returned where question 0, due at 0 s"),
        (never_less_than_measured, "0.75 s was returned where question 0, due at 0 s"),
        (needs_one, "it raised IndexError"),
        (rounds_to_tenths, "s was returned where question"),
        (returns_nothing_at_all, "None was returned; expected a list of seconds"),
        (yields_them, "a list_iterator was returned; expected a list of seconds"),
        (writes_them, "a list was returned; expected a list of seconds"),
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
    assert said in await refused("5.2", answer)


async def test_other_ways_to_mend_a_record_are_right(mesh):
    def as_a_tuple(sent_s, latency_s, rate_per_s):
        answered = [sum(pair) for pair in zip(sent_s, latency_s, strict=True)]
        return tuple(at - due for at, due in zip(answered, (n / rate_per_s for n in range(len(sent_s))), strict=True))

    def with_numpy(sent_s, latency_s, rate_per_s):
        return list(np.array(sent_s) + np.array(latency_s) - np.arange(len(sent_s)) / rate_per_s)

    for answer in (as_a_tuple, with_numpy):
        verdict = await check("5.2", answer)
        assert verdict.state == "correct", verdict


async def test_an_answer_that_changes_its_arguments_is_not_compared_with_them(mesh):
    def in_place(sent_s, latency_s, rate_per_s):
        for n, sent in enumerate(sent_s):
            latency_s[n] += sent - n / rate_per_s
        return latency_s

    assert (await check("5.2", in_place)).state == "correct"


# 5.3


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


def share(table, limit=0.020):
    return ((table["outcome"] == "answered") & (since_due(table) <= limit)).mean()


def counts_the_first_100(table):
    return share(table.head(100)) >= 0.99


def knows_the_size(table):
    return share(table) * len(table) >= 198


def says_it_in_words(table):
    return "yes" if share(table) >= 0.99 else "no"


def takes_the_time_of_day(table):
    return ((table["outcome"] == "answered") & (table["done_s"] <= table["due_s"].rank() / 100 + 0.01)).mean() >= 0.99


def returns_a_column(table):
    return (table["outcome"] == "answered") & (since_due(table) <= 0.020)


def leaves_out_the_unanswered(table):
    answered = table[table["done_s"].notna()]
    return share(answered) >= 0.99


def by_another_percentile(table):
    return since_due(table).fillna(9).where(table["outcome"] == "answered", 9).quantile(0.98) <= 0.020


def forgives_the_slowest(table):
    ends = since_due(table).where(table["outcome"] == "answered", 9).fillna(9).sort_values()
    return ends.iloc[:-2].max() <= 0.020


async def test_other_ways_to_judge_a_promise_are_right(mesh):
    def row_by_row(table):
        in_time = [row.outcome == "answered" and row.done_s - row.due_s <= 0.020 for row in table.itertuples()]
        return 100 * sum(in_time) >= 99 * len(in_time)

    def by_those_who_waited(table):
        late = table.query("outcome != 'answered' or done_s - due_s > 0.020")
        return np.bool_(len(late) <= len(table) // 100)

    for answer in (row_by_row, by_those_who_waited):
        verdict = await check("5.3", answer)
        assert verdict.state == "correct", verdict


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
        (lambda table: share(table, 0.050) >= 0.99, "True for all answered after 30 ms; expected False"),
        (lambda table: share(table, 0.025) >= 0.99, "True for all answered after 20.1 ms; expected False"),
        (lambda table: share(table, 0.019) >= 0.99, "False for all answered after 19.5 ms; expected True"),
        (lambda table: share(table, 20) >= 0.99, "True for all answered after 30 ms; expected False"),
        (lambda table: share(table) >= 0.98, "True for 3 of 200 answered after 500 ms, the rest after 1 ms"),
        (counts_the_first_100, "of 200 answered after"),
        (
            knows_the_size,
            "True for 10 of 1,000|True for 11 of 1,000 never answered, the rest after 10 ms; expected False",
        ),
        (says_it_in_words, "'yes' was returned for one table; expected True or False"),
        (takes_the_time_of_day, "False for all answered after"),
        (returns_a_column, "was returned for one table; expected True or False"),
        (leaves_out_the_unanswered, "True for 5 of 200 never answered"),
        (by_another_percentile, "True for 3 of 200 answered after 500 ms"),
        (forgives_the_slowest, "False for 10 of 1,000 never answered|True for"),
        (always, "True for all answered after 30 ms; expected False"),
        (returns_a_share, "1 was returned for one table; expected True or False"),
    ],
)
async def test_a_promise_that_is_judged_wrongly_is_told_whom_it_forgot(mesh, answer, said):
    verdict = await refused("5.3", answer)
    assert any(words in verdict for words in said.split("|")), verdict
