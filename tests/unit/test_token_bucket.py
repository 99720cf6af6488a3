"""A token bucket lets its rate pass, its burst, and no more."""

import asyncio
import time

import pytest

from mesh_lab.patterns.token_bucket import TokenBucket


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_full_bucket_lets_its_burst_pass_and_says_when_the_next_may() -> None:
    bucket = TokenBucket(10, burst=3, clock=Clock())
    assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take() == pytest.approx(0.1)


def test_refused_tries_cost_no_tokens() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock=clock)
    assert bucket.take() == 0
    for _ in range(5):
        assert bucket.take() == pytest.approx(0.1)
    clock.now += 0.1
    assert bucket.take() == 0


def test_over_a_long_time_what_passes_is_the_rate_and_one_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(50, burst=5, clock=clock)
    passed = 0
    for _ in range(10_000):
        passed += bucket.take() == 0
        clock.now += 0.001
    assert 500 <= passed <= 505


def test_a_bucket_at_rest_saves_up_one_burst_and_no_more() -> None:
    clock = Clock()
    bucket = TokenBucket(10, burst=3, clock=clock)
    clock.now += 3600
    assert sum(bucket.take() == 0 for _ in range(10)) == 3


async def test_waiting_takers_are_served_in_order_at_the_rate() -> None:
    bucket, served = TokenBucket(200), []

    async def take(n: int) -> None:
        await bucket.wait()
        served.append(n)

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for n in range(40):
            tasks.create_task(take(n))
    assert served == list(range(40))
    assert time.monotonic() - began >= 39 / 200 * 0.95


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (10, 0), (10, float("nan"))]
)
def test_a_bucket_that_lets_nothing_or_everything_pass_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match=f"rate_per_s={rate}, burst={burst}: expected a finite rate above 0"):
        TokenBucket(rate, burst=burst)


async def test_who_gives_up_waiting_gives_the_token_back() -> None:
    bucket = TokenBucket(10)
    await bucket.wait()
    for _ in range(100):
        waiting = asyncio.create_task(bucket.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert bucket.take() <= 0.1
