"""A breaker opens after failures in a row, rests, tries once, and closes or rests again."""

import asyncio

import pytest

from mesh_lab.errors import CircuitOpenError
from mesh_lab.patterns.circuit_breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def well() -> str:
    return "answer"


async def badly() -> str:
    raise TimeoutError("no answer")


async def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError, match="no answer"):
            await breaker.call(badly)


async def test_it_lets_calls_through_until_enough_in_a_row_failed() -> None:
    breaker = CircuitBreaker(failures=3, rest=5.0, clock=Clock())
    await fail(breaker, 2)
    assert await breaker.call(well) == "answer"
    await fail(breaker, 2)
    assert breaker.state == "closed"
    await fail(breaker, 1)
    assert breaker.state == "open"


async def test_open_it_refuses_without_trying_and_says_when_to_come_back() -> None:
    clock = Clock()
    breaker, tried = CircuitBreaker(failures=1, rest=5.0, clock=clock), []
    await fail(breaker, 1)
    clock.now = 2.0

    async def work() -> None:
        tried.append(1)

    with pytest.raises(CircuitOpenError, match="1 calls in a row failed; try again in 3.0 s") as refused:
        await breaker.call(work)
    assert refused.value.retry_after == pytest.approx(3.0)
    assert not tried


async def test_after_its_rest_one_call_decides() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=2, rest=5.0, clock=clock)
    await fail(breaker, 2)
    clock.now = 5.0
    assert breaker.state == "half open"
    await fail(breaker, 1)
    assert breaker.state == "open"
    clock.now = 9.9
    assert breaker.state == "open"
    clock.now = 10.0
    assert await breaker.call(well) == "answer"
    assert breaker.state == "closed"
    await fail(breaker, 1)
    assert breaker.state == "closed"


async def test_while_one_call_is_tried_the_others_are_refused() -> None:
    clock, gate = Clock(), asyncio.Event()
    breaker = CircuitBreaker(failures=1, rest=1.0, clock=clock)
    await fail(breaker, 1)
    clock.now = 1.0
    trial = asyncio.create_task(breaker.call(gate.wait))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpenError, match="try again in 1.0 s"):  # not at once, for as long as the trial takes
        await breaker.call(well)
    gate.set()
    await trial
    assert await breaker.call(well) == "answer"


async def test_a_call_from_before_it_opened_does_not_end_the_trial() -> None:
    clock, slow, gate = Clock(), asyncio.Event(), asyncio.Event()
    breaker = CircuitBreaker(failures=1, rest=1.0, clock=clock)
    early = asyncio.create_task(breaker.call(slow.wait))
    await asyncio.sleep(0)
    await fail(breaker, 1)
    clock.now = 1.0
    trial = asyncio.create_task(breaker.call(gate.wait))
    await asyncio.sleep(0)
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    assert breaker.state == "open", "the trial is still under way"
    gate.set()
    await trial
    assert breaker.state == "closed"


async def test_a_cancelled_call_says_nothing_about_the_service() -> None:
    breaker = CircuitBreaker(failures=1, rest=1.0, clock=Clock())
    task = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert breaker.state == "closed"


@pytest.mark.parametrize("settings", [{"failures": 0}, {"rest": 0}, {"rest": -1.0}, {"rest": float("nan")}])
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(ValueError, match="expected 1 or more, and above 0"):
        CircuitBreaker(**settings)


async def test_a_call_that_began_before_it_opened_changes_nothing() -> None:
    clock, go_on = Clock(), {"well": asyncio.Event(), "badly": asyncio.Event()}
    breaker = CircuitBreaker(failures=1, rest=5.0, clock=clock)

    async def late(how: str) -> None:
        await go_on[how].wait()
        if how == "badly":
            raise TimeoutError("no answer")

    early = {how: asyncio.create_task(breaker.call(lambda how=how: late(how))) for how in go_on}
    await asyncio.sleep(0)
    await fail(breaker, 1)
    go_on["well"].set()
    await early["well"]
    assert breaker.state == "open"
    clock.now = 4.0
    go_on["badly"].set()
    with pytest.raises(TimeoutError, match="no answer"):
        await early["badly"]
    clock.now = 5.0
    assert breaker.state == "half open", "a late failure does not make the rest longer"


async def test_a_call_that_hung_while_it_opened_and_closed_again_opens_it_no_more() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=2, rest=5.0, clock=clock)
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def hang() -> None:
        await answer

    hanging = [asyncio.create_task(breaker.call(hang)) for _ in range(3)]
    await asyncio.sleep(0)
    await fail(breaker, 2)
    clock.now = 6.0
    assert await breaker.call(well) == "answer"
    answer.set_exception(TimeoutError("no answer, at last"))
    ends = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(end) for end in ends] == [TimeoutError] * 3
    assert breaker.state == "closed"
