"""``eventually`` waits for what is true, not for time to pass, and says what it last saw."""

import asyncio
import contextlib
import time

import nats.errors
import nats.js.errors
import pytest

from mesh_lab.errors import NotReadyError
from mesh_lab.patterns.wait import SHOWN_CHARACTERS, cancel_and_join, eventually, retry, run_shielded


async def test_it_returns_the_first_true_value() -> None:
    values = iter([0, "", [], "there", "never asked for"])
    assert await eventually(lambda: next(values), within=5.0, every=0) == "there"


async def test_the_condition_may_be_async() -> None:
    asked = []

    async def third_time() -> bool:
        asked.append(None)
        return len(asked) == 3

    assert await eventually(third_time, within=5.0)
    assert len(asked) == 3


async def test_too_late_says_what_was_seen_last() -> None:
    with pytest.raises(NotReadyError, match=r"^condition not met within 0\.05 s \(it last returned \[\]\), expected"):
        await eventually(lambda: [], within=0.05)


async def test_a_condition_is_asked_once_even_without_time() -> None:
    assert await eventually(lambda: 7, within=0.0) == 7
    with pytest.raises(NotReadyError, match="it last returned None"):
        await eventually(lambda: None, within=0.0)


async def test_a_condition_that_hangs_is_cut_off() -> None:
    cut_off = asyncio.Event()

    async def hangs() -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()
        return True

    started = time.monotonic()
    with pytest.raises(NotReadyError, match=r"within 0\.1 s \(it never returned\)"):
        await eventually(hangs, within=0.1)
    assert cut_off.is_set()
    assert time.monotonic() - started < 5.0


async def test_what_the_condition_raises_ends_the_wait() -> None:
    async def fails() -> bool:
        raise TimeoutError("my own")

    with pytest.raises(KeyError, match="name"):
        await eventually(lambda: {}["name"], within=5.0)
    with pytest.raises(TimeoutError, match="my own"):
        await eventually(fails, within=5.0)


async def test_a_long_value_is_shortened() -> None:
    with pytest.raises(NotReadyError, match="…") as told:
        await eventually(lambda: Falsy(), within=0.0)
    assert len(str(told.value)) < SHOWN_CHARACTERS + 100


class Falsy:
    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "x" * 10_000


async def test_a_task_that_loses_its_cancellation_is_ended_all_the_same() -> None:
    loop = asyncio.get_running_loop()
    answer, went_on = loop.create_future(), asyncio.Event()

    async def ask_and_wait() -> None:
        # As of Python 3.12, wait_for keeps the cancellation; the except plays what it does before.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(answer, 5)
        went_on.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ask_and_wait())
    await asyncio.sleep(0)
    answer.set_result("in the same moment")
    await cancel_and_join(task, again_after=0.01)
    assert went_on.is_set()
    assert task.cancelled()


async def test_tasks_that_are_over_stay_as_they_are() -> None:
    async def fail() -> None:
        raise OSError("the provider is away")

    task = asyncio.create_task(fail())
    await asyncio.wait({task})
    await cancel_and_join(task)
    assert isinstance(task.exception(), OSError)


async def test_work_that_must_end_ends_however_often_its_owner_is_cancelled() -> None:
    went_on, done = asyncio.Event(), []

    async def work() -> None:
        await went_on.wait()
        done.append(1)

    owner = asyncio.create_task(run_shielded(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        owner.cancel()
    await asyncio.sleep(0.01)  # absence: cancelled for good, it would be over at the next turn
    assert not owner.done()
    went_on.set()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert done == [1]


async def test_what_ended_badly_meanwhile_is_the_cause() -> None:
    async def work() -> None:
        await asyncio.sleep(0.01)  # work
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        await run_shielded(work())
    owner = asyncio.create_task(run_shielded(work()))
    await asyncio.sleep(0)
    owner.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await owner
    assert "no space left" in str(cancelled.value.__cause__)


# retry


async def test_a_request_is_repeated_while_its_error_is_transient() -> None:
    errors = [TimeoutError(), nats.errors.NoRespondersError(), nats.js.errors.ServiceUnavailableError()]

    async def request() -> str:
        if errors:
            raise errors.pop()
        return "info"

    assert await retry(request, within=5.0, every=0.001) == "info"
    assert not errors


async def test_an_error_that_is_not_transient_is_raised_at_once() -> None:
    calls = []

    async def request() -> None:
        calls.append(None)
        raise nats.js.errors.NotFoundError(code=404, err_code=10059, description="stream not found")

    with pytest.raises(nats.js.errors.NotFoundError, match="stream not found"):
        await retry(request, within=5.0)
    assert len(calls) == 1


async def test_the_caller_may_say_what_is_transient_and_the_last_error_is_raised_when_time_is_up() -> None:
    calls = []

    async def request() -> None:
        calls.append(None)
        raise KeyError(f"call {len(calls)}")

    with pytest.raises(KeyError, match=r"call \d+") as last:
        await retry(request, within=0.05, every=0.01, transient=lambda err: isinstance(err, KeyError))
    assert len(calls) > 1
    assert f"call {len(calls)}" in str(last.value)
