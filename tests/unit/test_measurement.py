import dataclasses

import pytest

from mesh_lab.measure.load import deliver_load, publish_load
from mesh_lab.measure.measurement import Measurement, Run, measure, rounded


def result(*elapsed_s, **facts):
    return Measurement(**{"name": "core publish", "kind": "published", "messages": 1_000, **facts}, elapsed_s=elapsed_s)


def test_the_rate_is_that_of_the_run_in_the_middle():
    assert result(1.0, 2.0, 100.0).median_s == 2.0
    assert result(1.0, 2.0, 100.0).rate_per_s == 500


def test_lost_messages_do_not_count_for_the_rate():
    assert result(1.0, 1.0, lost=1_000).rate_per_s == 500


def test_the_spread_is_the_distance_of_the_extremes_over_the_median():
    assert result(0.9, 1.0, 1.2).spread == pytest.approx(0.3)
    assert result(1.0).spread == 0


@pytest.mark.parametrize(
    ("slowest", "noisy", "shown"), [(1.0625, False, "6 %"), (1.099, False, "9 %"), (1.125, True, "12 %")]
)
def test_a_spread_of_ten_percent_is_said_in_words(slowest, noisy, shown):
    measurement = result(1.0, 1.0, slowest)
    assert f"spread {shown}" in repr(measurement)
    assert ("lie far apart" in repr(measurement)) is noisy


def test_one_line_says_everything():
    measurement = result(0.0032, 0.00333, 0.003205, payload_bytes=128)
    assert repr(measurement) == "core publish: 312,000/s published (3 runs, spread 4 %, 128 B, lost 0)"


def test_duplicates_are_shown_where_there_are_any():
    assert "lost 2, duplicates 3)" in repr(result(1.0, lost=2, duplicates=3))
    assert "duplicates" not in repr(result(1.0))


def test_one_run_claims_no_spread():
    assert repr(result(1.0)) == "core publish: 1,000/s published (1 run, 0 B, lost 0)"


def test_readiness_is_a_time_and_not_a_rate():
    measurement = Measurement(name="mesh of three", kind="ready", messages=1, elapsed_s=(0.36, 0.37, 0.372))
    assert repr(measurement) == "mesh of three: 0.370 s (3 runs, spread 3 %)"
    short = Measurement(name="a put", kind="ready", messages=1, elapsed_s=(0.000665,))
    assert repr(short) == "a put: 0.665 ms (1 run)"


def test_versions_fill_themselves_in():
    measurement = result(1.0)
    assert measurement.client_version.startswith("2.")
    assert measurement.python_version.startswith("3.")
    assert measurement.server_version == ""


def test_a_measurement_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError, match="lost"):
        result(1.0).lost = 0


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"elapsed_s": ()}, "has no runs, expected at least 1"),
        ({"elapsed_s": (1.0, 0.0)}, "elapsed_s=0.0, expected a positive number"),
        ({"elapsed_s": (-1.0,)}, "elapsed_s=-1.0, expected a positive number"),
        ({"elapsed_s": (float("nan"),)}, "elapsed_s=nan, expected a positive number"),
        ({"elapsed_s": (float("inf"),)}, "elapsed_s=inf, expected a positive number"),
        ({"messages": 0}, "messages=0, expected at least 1"),
        ({"lost": -1}, "lost=-1, expected 0 or more"),
        ({"lost": 1_001}, "lost=1,001 of 1,000 messages"),
        ({"duplicates": -1}, "duplicates=-1, expected 0 or more"),
        ({"payload_bytes": -1}, "payload_bytes=-1, expected 0 or more"),
        ({"name": " "}, "needs a name"),
        ({"kind": "sent"}, "kind='sent', expected one of published, acknowledged, delivered"),
        ({"kind": "ready"}, "messages=1,000 for kind 'ready', expected 1"),
    ],
)
def test_impossible_results_are_refused(facts, said):
    with pytest.raises(ValueError, match=said):
        Measurement(**{"name": "x", "kind": "published", "messages": 1_000, "elapsed_s": (1.0,), **facts})


def test_impossible_runs_are_refused():
    with pytest.raises(ValueError, match="lost=2 of 1 messages"):
        Run(1, 1.0, lost=2)
    with pytest.raises(ValueError, match="elapsed_s=0, expected a positive number"):
        Run(1, 0)


async def test_warm_up_runs_do_not_count():
    planned = [Run(10, 99.0, lost=5), Run(10, 1.0, 1, 2, 64, "2.15.1"), Run(10, 3.0, 2, 0, 64, "2.15.1")]

    async def run():
        return planned.pop(0)

    measurement = await measure("x", run, kind="delivered", runs=2)
    assert measurement.elapsed_s == (1.0, 3.0)
    assert (measurement.lost, measurement.duplicates) == (3, 2)
    assert (measurement.payload_bytes, measurement.server_version) == (64, "2.15.1")


async def test_runs_of_different_sizes_are_no_measurement():
    planned = [Run(10, 1.0), Run(20, 1.0)]

    async def run():
        return planned.pop(0)

    with pytest.raises(ValueError, match="10 messages of 0 B and 20 messages of 0 B"):
        await measure("x", run, kind="delivered", runs=2, warmup=0)


@pytest.mark.parametrize(("runs", "warmup"), [(0, 1), (1, -1)])
async def test_a_measurement_needs_a_run(runs, warmup):
    async def run():
        raise AssertionError("it must not run")

    with pytest.raises(ValueError, match="expected runs >= 1 and warmup >= 0"):
        await measure("x", run, kind="ready", runs=runs, warmup=warmup)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (311_987.2, "312,000"),
        (0.37249, "0.372"),
        (4_506, "4,510"),
        (99.96, "100.0"),
        (1.0, "1.00"),
        (0, "0"),
        (0.000123456, "0.000123"),
    ],
)
def test_numbers_are_shown_with_three_significant_digits(value, shown):
    assert rounded(value) == shown


def test_what_is_not_a_number_is_not_shown():
    with pytest.raises(ValueError, match="inf is not a number that can be shown"):
        rounded(float("inf"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"payload_bytes": 7}, "payload_bytes=7, expected 8 or more: each payload carries its number"),
        ({"messages": 0}, "publishers=1, messages=0: expected"),
        ({"within": 0}, "within=0, expected a positive number of seconds"),
        ({"subject": "orders.x{n}"}, "must be a token of its own"),
        ({"options": {"tls": object()}}, "connect option 'tls' is a object, which cannot travel"),
    ],
)
@pytest.mark.parametrize("load", [publish_load, deliver_load])
async def test_a_load_that_cannot_be_is_refused_before_it_starts(load, facts, said):
    options = facts.get("options", {})
    with pytest.raises(ValueError, match=said):
        await load(options, **{name: value for name, value in facts.items() if name != "options"})


async def test_a_publisher_needs_a_message():
    with pytest.raises(ValueError, match="publishers=3, messages=2: expected 1 <= publishers <= messages"):
        await publish_load({}, publishers=3, messages=2)


async def test_a_window_without_acknowledgements_is_refused():
    with pytest.raises(ValueError, match="window=10 without acknowledged=True"):
        await publish_load({}, window=10)
    with pytest.raises(ValueError, match="window=0, expected 1 or more"):
        await publish_load({}, window=0, acknowledged=True)


async def test_a_load_needs_a_subscriber():
    with pytest.raises(ValueError, match="subscribers=0, expected 1 or more"):
        await deliver_load({}, subscribers=0)
