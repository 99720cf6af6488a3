"""What a paced run says, against values computed by hand; and what cannot be asked of the generator."""

import itertools
import math

import pytest

from mesh_lab.measure.paced import ANSWERED, NOBODY, REFUSED, UNANSWERED, Paced, PacedRun, _stored, paced_load

MS = 1_000_000
COLUMNS = {"due_ns": [0, 10 * MS], "sent_ns": [0, 10 * MS], "done_ns": [MS, 11 * MS], "outcome": bytes([ANSWERED] * 2)}


def stalled(**facts):
    """Ten messages, due every 100 ms; the answer to the third takes 500 ms, and the next four leave behind it."""
    due = [100 * MS * n for n in range(10)]
    sent = [*due[:3], 700 * MS, 701 * MS, 702 * MS, 703 * MS, *due[7:]]
    done = [at + MS for at in sent]
    done[2] = 700 * MS
    columns = {"due_ns": due, "sent_ns": sent, "done_ns": done, "outcome": bytes([ANSWERED] * 10)}
    return PacedRun(**{"offered_per_s": 10, **columns, **facts})


def all_answered(latencies_ms, *, gap_ms=10):
    due = [gap_ms * MS * n for n in range(len(latencies_ms))]
    done = [at + round(latency * MS) for at, latency in zip(due, latencies_ms, strict=True)]
    return PacedRun(1_000 / gap_ms, due, due, done, bytes([ANSWERED] * len(due)))


def test_latency_since_due_has_the_wait_that_latency_since_sent_hides():
    assert stalled().latencies_ms() == [1, 1, 500, 401, 302, 203, 104, 1, 1, 1]
    assert stalled().latencies_ms(since="sent") == [1, 1, 500, 1, 1, 1, 1, 1, 1, 1]


def test_a_percentile_is_the_smallest_latency_that_enough_messages_do_not_exceed():
    run = stalled()
    ranked = [1, 1, 1, 1, 1, 104, 203, 302, 401, 500]
    assert [run.percentile_ms(10 * n) for n in range(1, 11)] == ranked
    assert run.percentile_ms(50.1) == 104
    assert run.percentile_ms(0.001) == 1


def test_a_percentile_does_not_stumble_over_what_a_float_cannot_hold():
    run = all_answered(range(1, 1_001))
    assert [run.percentile_ms(p) for p in (99.9, 99.8, 70, 29, 58)] == [999, 998, 700, 290, 580]


def test_a_histogram_agrees_with_the_latencies_to_three_digits_and_adds_up():
    run, other = stalled(), all_answered([0.0004, 900_000])
    histogram = run.histogram()
    assert histogram.get_total_count() == 10
    for percent in (50, 90, 100):
        assert histogram.get_value_at_percentile(percent) == pytest.approx(1_000 * run.percentile_ms(percent), rel=1e-3)
    histogram.add(other.histogram())
    assert histogram.get_total_count() == 12
    assert histogram.get_min_value() == 1  # what is shorter or longer than it can hold goes to its ends
    assert histogram.get_max_value() == pytest.approx(600e6, rel=1e-3)


def test_what_was_refused_or_lost_has_no_latency_and_is_in_no_share():
    outcome = bytes([ANSWERED, UNANSWERED, REFUSED, NOBODY, *[ANSWERED] * 6])
    run = stalled(outcome=outcome)
    assert (run.messages, run.answered, run.refused, run.lost) == (10, 7, 1, 2)
    assert run.latencies_ms() == [1, 302, 203, 104, 1, 1, 1]
    assert run.histogram().get_total_count() == 7
    assert run.share_within(1) == 0.4
    assert run.share_within(302) == 0.7
    assert run.share_within(0.5) == 0


def test_a_frame_has_a_row_for_each_message_and_no_time_for_what_never_ended():
    outcome = bytes([ANSWERED, UNANSWERED, REFUSED, NOBODY, *[ANSWERED] * 6])
    table = stalled(outcome=outcome, done_ns=[5 * MS, 0, *[9 * MS] * 8]).frame()
    assert list(table["outcome"][:5]) == ["answered", "unanswered", "refused", "nobody there", "answered"]
    assert table["due_s"].tolist() == [n / 10 for n in range(10)]
    assert table["sent_s"][3] == 0.7
    assert table["done_s"][0] == 0.005
    assert math.isnan(table["done_s"][1])
    assert not math.isnan(table["done_s"][2])


def test_lateness_is_the_generators_own():
    assert all_answered([5] * 100).lateness_ms(100) == 0
    assert stalled().lateness_ms(100) == 400
    assert stalled().lateness_ms(60) == 0


def test_one_line_says_everything_and_warns_of_a_generator_that_was_late():
    assert repr(all_answered([2.0] * 10)) == (
        "10 messages at 100/s, open loop: answered 10, refused 0, lost 0; p50 2 ms, p99 2 ms, longest 2 ms since due"
    )
    assert "1 left 400 ms late or more" in repr(stalled())
    assert "late" not in repr(stalled(closed=True))
    assert "closed loop" in repr(stalled(closed=True))
    lost = PacedRun(100, **{**COLUMNS, "outcome": bytes([UNANSWERED] * 2)})
    assert repr(lost) == "2 messages at 100/s, open loop: answered 0, refused 0, lost 2"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.percentile_ms(0), "percent=0 of 10 answered"),
        (lambda run: run.percentile_ms(100.1), "percent=100.1 of 10 answered"),
        (lambda run: run.lateness_ms(0), "percent=0, expected above 0"),
        (lambda run: run.latencies_ms(since="then"), "since='then', expected one of due, sent"),
        (lambda run: stalled(outcome=bytes([UNANSWERED] * 10)).percentile_ms(50), "of 0 answered messages"),
    ],
)
def test_what_a_run_cannot_say_is_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask(stalled())


def schedule(**facts):
    usual = {"role": "a", "options": {}, "within": 1, "subject": "a", "mark": b"mark", "count": 1_000}
    pace = {"rate_per_s": 200.0, "random_arrivals": False, "seed": 1}
    rest = {"until": "reply", "closed": False, "payloads": [], "patience": 1.0}
    return list(Paced(**{**usual, **pace, **rest, **facts}).schedule())


def test_steady_messages_are_due_at_even_distances():
    assert schedule(count=4) == [0, 5 * MS, 10 * MS, 15 * MS]
    assert schedule(count=400_001, rate_per_s=3_000.0)[-1] == pytest.approx(400_000 / 3_000 * 1e9, abs=1e3)


def test_random_messages_are_due_at_the_same_rate_and_the_seed_says_when():
    times = schedule(random_arrivals=True, seed=7, count=20_000)
    assert times == schedule(random_arrivals=True, seed=7, count=20_000)
    assert times != schedule(random_arrivals=True, seed=8, count=20_000)
    assert times[0] == 0
    assert times == sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(5 * MS, rel=0.05)
    # Without memory: as many gaps exceed the mean as 1 in e, and they vary by as much as their mean.
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(1 / math.e, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        (b'{"stream":"ORDERS", "seq":3}', True),
        (b'{"stream":"error", "seq":3, "duplicate": true}', True),
        (b'{"error":{"code":400,"err_code":10077},"stream":"ORDERS","seq":0}', False),
        (b'{"error":{"code":400,"err_code":10077},"stream":"ORDERS","seq":3}', False),
        (b'{"error":{"code":503}}', False),
        (b"3 copies", False),
        (b"", False),
        (b"[]", False),
    ],
)
def test_an_acknowledgement_is_told_from_a_refusal_and_from_a_services_reply(answer, stored):
    assert _stored(answer) is stored


LOAD = {"subject": "prices.ask", "rate_per_s": 100.0, "seconds": 1.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate_per_s": 0}, "rate_per_s=0, expected a positive number"),
        ({"rate_per_s": -1, "seconds": -1}, "rate_per_s=-1, expected a positive"),
        ({"rate_per_s": math.inf}, "rate_per_s=inf, expected a positive"),
        ({"rate_per_s": math.nan}, "rate_per_s=nan, expected a positive"),
        ({"seconds": 0}, "seconds=0, expected a positive"),
        ({"seconds": 0.001}, "no message is due"),
        ({"patience": 0}, "patience=0, expected a positive"),
        ({"until": "answered"}, "until='answered', expected one of reply, ack, received"),
        ({"arrivals": "poisson"}, "arrivals='poisson', expected one of steady, random"),
        ({"payloads": []}, "0 payloads until 'reply': expected 1 or more"),
        ({"payloads": [b"a"], "until": "received"}, "1 payloads until 'received': expected 1 or more, and not"),
        ({"subject": "prices.{n}a"}, "must be a token of its own"),
        ({"options": {"tls": object()}}, "connect option 'tls' is a object, which cannot travel"),
    ],
)
async def test_what_cannot_be_measured_is_refused_before_a_process_starts(wrong, said):
    with pytest.raises(ValueError, match=said):
        await paced_load(**{"options": {}, **LOAD, **wrong})
