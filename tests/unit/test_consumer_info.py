"""Which subjects a filter delivers, how long a message may be held, and what a bucket's entries decode to."""

import logging

import pytest

from mesh_lab.patterns.consumer_info import ConsumerSettings, matches
from mesh_lab.patterns.group_bucket import Claim, Presence, _decoded
from mesh_lab.patterns.pull_consumer import Outage


@pytest.mark.parametrize(
    ("subject", "pattern", "verdict"),
    [
        ("jobs.dead", "jobs.dead", True),
        ("jobs.dead", ">", True),
        ("jobs", ">", True),
        ("jobs.dead", "jobs.>", True),
        ("jobs.dead.x", "jobs.>", True),
        ("jobs", "jobs.>", False),
        ("jobs.dead", "jobs.*", True),
        ("jobs.dead.x", "jobs.*", False),
        ("jobs.dead", "*.dead", True),
        ("jobs.x.dead", "jobs.*.dead", True),
        ("jobs.dead", "*.*.>", False),
        ("jobs.dead", "jobs.deadly", False),
        ("dead", "jobs.dead", False),
        ("jobs.dead", "Jobs.dead", False),
    ],
)
def test_a_filter_delivers_what_its_tokens_match(subject: str, pattern: str, verdict: bool) -> None:
    assert matches(subject, pattern) is verdict


def test_the_shortest_wait_is_that_of_the_backoff_too() -> None:
    assert ConsumerSettings(ack_wait=30 * 10**9).shortest_wait_s == 30.0
    assert ConsumerSettings(ack_wait=30 * 10**9, backoff=[10**9, 5 * 10**9]).shortest_wait_s == 1.0


@pytest.mark.parametrize(
    ("headers", "data"),
    [
        ({"KV-Operation": "DEL"}, b""),
        ({"KV-Operation": "PURGE"}, b'{"here":true}'),
        ({"Nats-Marker-Reason": "MaxAge"}, b""),
        (None, b""),
        (None, b"hello"),
        ({}, b"\xff"),
        ({}, b'{"here":5,"owner":5}'),
        ({}, b"[]"),
        ({}, b"null"),
    ],
)
def test_what_is_no_entry_counts_as_deleted(headers: dict[str, str] | None, data: bytes) -> None:
    assert _decoded(headers, data, Presence) is None
    assert _decoded(headers, data, Claim) is None


def test_an_entry_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    assert _decoded({}, b'{"here":true,"since":7}', Presence) == Presence(here=True)
    assert _decoded({}, b'{"owner":"a","done":7,"shard":"b"}', Claim) == Claim("a", done=7)


def test_an_interruption_is_told_once_when_it_lasts_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh_lab.patterns.pull_consumer.TELL_AFTER_S", 0.0)
    with caplog.at_level(logging.WARNING):
        outage = Outage("stream 'S'")
        outage.over()
        for _ in range(3):
            outage.goes_on("503 No Responders")
        outage.over()
        outage.over()
    first, second = caplog.messages
    assert first.startswith("stream 'S': nothing for 0 s (503 No Responders)")
    assert second.startswith("stream 'S': back after")
