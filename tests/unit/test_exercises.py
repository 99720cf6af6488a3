import asyncio
import contextlib
import re
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from mesh_lab.errors import MeshClosedError, UnknownNameError
from mesh_lab.notebook import answers, exercises
from mesh_lab.notebook.answers import untouched
from mesh_lab.notebook.exercises import NotYet, Verdict, check, exercise, hint, progress


@pytest.fixture(autouse=True)
def lab(monkeypatch, tmp_path):
    """A registry and a home of its own, and a mesh that nobody has to start."""
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))
    monkeypatch.setattr(exercises, "_exercises", {})
    monkeypatch.setattr(exercises, "_load", lambda notebook: None)
    monkeypatch.setattr(exercises, "newest_mesh", lambda: SimpleNamespace(servers={}))


@pytest.fixture
def doubling():
    @exercise(
        "2.2",
        title="double it",
        answer="async function",
        expects="the number doubled",
        hint="Two times.",
        within=0.2,
    )
    async def doubles(trial, answer):
        if (seen := await answer(21)) != 42:
            raise NotYet(f"{seen} for 21", "42")
        return "a queue group needs no such thing"

    return doubles


def _named(value):
    """Return a name that is the same in every process, so without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def empty(): ...


def passing():
    pass


def documented(orders: int = 3) -> None:
    """Say what is to be done."""


async def waiting(sub):
    # drain it here
    ...


async def streaming():
    ...
    yield


@pytest.mark.parametrize(
    "stub",
    [
        ...,
        empty,
        passing,
        documented,
        waiting,
        streaming,
        lambda: ...,
        (..., waiting),
        {"max_age": ..., "storage": ...},
    ],
    ids=_named,
)
async def test_an_untouched_answer_is_not_attempted_and_not_run(doubling, stub):
    assert repr(await check("2.2", stub)) == "not attempted"


async def touched_generator():
    yield 1


class Working:
    def handle(self):
        return 1


@pytest.mark.parametrize(
    "answer",
    [None, 0, "", {}, [], (), (..., 1), {"max_age": 7}, lambda: 1, touched_generator, Working],
    ids=_named,
)
def test_whatever_was_written_is_an_answer(answer):
    assert not untouched(answer)


async def test_a_right_answer_is_correct_with_one_more_thing_to_know(doubling):
    async def double(number):
        return 2 * number

    assert repr(await check("2.2", double)) == "correct: a queue group needs no such thing"


async def test_a_wrong_answer_is_told_what_was_seen_and_what_was_expected(doubling):
    async def triple(number):
        return 3 * number

    assert repr(await check("2.2", triple)) == "not yet: 63 for 21; expected 42"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (42, "the answer is a number, 42"),
        ("drain", "the answer is a text, 'drain'"),
        (None, "the answer is None"),
        (lambda number: 2 * number, "the answer is a plain function (def …)"),
        (touched_generator, "the answer is an async generator (async def … with yield)"),
        (Working, "the answer is a class"),
        ([1, 2], "the answer is of type list: [1, 2]"),
    ],
    ids=_named,
)
async def test_an_answer_of_the_wrong_kind_is_told_so(doubling, answer, said):
    assert repr(await check("2.2", answer)) == f"not yet: {said}; expected an async function (async def …)"


async def test_a_called_function_is_told_so_and_its_coroutine_closed(doubling):
    async def double(number):
        return 2 * number

    verdict = await check("2.2", double(21))
    assert "double(…) was called, and its coroutine handed over" in repr(verdict)


async def test_an_answer_that_raises_is_shown_with_its_line(doubling):
    async def broken(number):
        return number["orders"]

    line = broken.__code__.co_firstlineno + 1
    assert repr(await check("2.2", broken)) == (
        f"not yet: it raised TypeError: 'int' object is not subscriptable (line {line} of its cell); "
        "expected the number doubled"
    )


async def test_an_answer_with_too_few_arguments_is_shown_what_python_says(doubling):
    async def lazy():
        return 42

    assert "it raised TypeError" in repr(await check("2.2", lazy))


async def test_a_value_that_the_check_cannot_use_is_not_blamed_on_the_answer_as_its_own_error():
    @exercise("1.1", title="look", hint="", expects="a number")
    async def looks(trial, answer):
        return f"{float(answer)}"

    assert repr(await check("1.1", None)).startswith("not yet: the check met TypeError: float() argument")


async def test_a_lone_exception_in_a_task_group_is_shown_with_its_group(doubling):
    async def grouped(number):
        async with asyncio.TaskGroup():
            raise ValueError("no such subject\nand more lines")

    assert "it raised ExceptionGroup of ValueError: no such subject (line" in repr(await check("2.2", grouped))


async def test_an_answer_that_raises_or_hangs_is_shown_with_the_case_it_was_tried_in():
    @exercise("2.3", title="raise it", answer="async function", expects="a number", hint="", within=0.2)
    async def raises(trial, answer):
        trial.case = "the stream is empty"
        await answer()
        return "never"

    async def raising():
        raise LookupError("no message found")

    async def hanging():
        await asyncio.Event().wait()

    assert "not yet: the stream is empty, and it raised LookupError: no message" in repr(await check("2.3", raising))
    assert "not yet: the stream is empty, and no answer after 0.2 s" in repr(await check("2.3", hanging))


async def test_an_error_in_a_task_group_of_the_check_is_shown_as_the_answer_raised_it():
    @exercise("1.1", title="look", hint="", expects="a stream")
    async def looks(trial, answer):
        async with asyncio.TaskGroup() as group:
            group.create_task(answer())

    cell: dict[str, Any] = {}
    exec(compile("async def raises():\n    raise ValueError('no such subject')", "<cell>", "exec"), cell)
    verdict = repr(await check("1.1", cell["raises"]))
    assert verdict.startswith("not yet: it raised ValueError: no such subject (line 2")


async def test_an_exception_of_the_check_is_not_blamed_on_the_answer():
    @exercise("1.1", title="look", hint="", expects="a stream")
    async def looks(trial, answer):
        raise LookupError("stream not found")

    assert repr(await check("1.1", 1)) == "not yet: the check met LookupError: stream not found; expected a stream"


async def test_an_answer_that_hangs_is_ended(doubling):
    async def hangs(number):
        await asyncio.Event().wait()

    assert repr(await check("2.2", hangs)) == "not yet: no answer after 0.2 s; expected the number doubled"


async def test_an_answer_that_blocks_the_event_loop_is_ended(doubling):
    async def blocks(number):
        threading.Event().wait(30)

    blocked = "not yet: it blocked the event loop and never gave it a turn; expected the number doubled"
    assert repr(await check("2.2", blocks)) == blocked


async def test_an_answer_that_blocks_the_event_loop_is_ended_long_before_the_check_is(monkeypatch):
    monkeypatch.setattr(answers, "BLOCKED_S", 0.2)

    @exercise("1.1", title="wait", hint="", expects="an end", within=300.0)
    async def waits(trial, answer):
        await asyncio.sleep(0.5)  # work: longer than the loop may be blocked
        await answer()
        return "it ended"

    async def blocks():
        threading.Event().wait(30)

    assert "it blocked the event loop" in repr(await check("1.1", blocks))

    async def takes_its_time():
        for _ in range(6):
            await asyncio.sleep(0.1)  # work

    assert (await check("1.1", takes_its_time)).state == "correct"


async def test_a_method_and_a_function_with_arguments_filled_in_are_shown_with_their_line(doubling):
    async def broken(number, divisor):
        return number / divisor

    assert "it raised ZeroDivisionError: division by zero (line" in repr(await check("2.2", partial(broken, divisor=0)))


async def test_a_timeout_of_the_answer_itself_is_an_exception_like_any_other(doubling):
    async def impatient(number):
        raise TimeoutError("nats: timeout")

    assert "it raised TimeoutError: nats: timeout" in repr(await check("2.2", impatient))


async def test_an_interrupt_passes_through(doubling):
    class Interrupt(BaseException):
        pass

    async def interrupted(number):
        raise Interrupt("by the reader")

    with pytest.raises(Interrupt, match="by the reader"):
        await check("2.2", interrupted)


async def test_a_stub_needs_no_mesh_and_an_answer_does(doubling, monkeypatch):
    def none_open():
        raise MeshClosedError("no mesh is open")

    async def double(number):
        return 2 * number

    monkeypatch.setattr(exercises, "newest_mesh", none_open)
    assert repr(await check("2.2", ...)) == "not attempted"
    with pytest.raises(MeshClosedError, match="no mesh is open"):
        await check("2.2", double)


async def test_an_unknown_number_lists_the_exercises_there_are(doubling):
    for number in ("2.3", "22", "two", ""):
        with pytest.raises(UnknownNameError, match=r"there are 2\.2"):
            await check(number, ...)


def test_a_number_taken_by_another_module_is_refused(doubling):
    async def other(trial, answer):
        return ""

    other.__module__ = "elsewhere"
    with pytest.raises(ValueError, match=r"exercise 2\.2 stands in .*test_exercises already"):
        exercise("2.2", title="", hint="")(other)


def test_a_hint_is_printed(doubling, capsys):
    hint("2.2")
    assert capsys.readouterr().out == "Two times.\n"


async def test_progress_counts_what_the_reader_solved_and_no_solution(doubling):
    async def double(number):
        return 2 * number

    await check("2.2", double, solution=True)
    await check("2.2", ...)
    assert repr(progress()) == "0 of 1 exercises solved\n02 share work in queue groups   0 of 1   open: 2.2"
    await check("2.2", double)
    await check("2.2", ...)
    assert repr(progress()) == "1 of 1 exercises solved\n02 share work in queue groups   1 of 1"
    assert "<td>1 of 1</td><td>2.2 double it</td><td>none</td>" in progress()._repr_html_()


async def test_the_answer_itself_is_not_stored(doubling, tmp_path):
    async def double(number):
        return 2 * number

    await check("2.2", double)
    stored = (tmp_path / "progress.sqlite").read_bytes()
    assert b"2.2" in stored
    assert b"double" not in stored


async def test_a_home_that_cannot_be_written_is_named(doubling, tmp_path, monkeypatch):
    async def double(number):
        return 2 * number

    (tmp_path / "progress.sqlite").write_text("not a database, and long enough that nobody takes it for one")
    with pytest.raises(OSError, match="set MESH_LAB_HOME"):
        await check("2.2", double)


async def test_an_answer_that_catches_everything_is_still_ended(doubling):
    async def stubborn(number):
        with contextlib.suppress(Exception):
            threading.Event().wait(30)
        threading.Event().wait(30)

    assert "it blocked the event loop" in repr(await check("2.2", stubborn))


def test_a_wrong_answer_says_what_was_seen_and_what_was_expected():
    assert str(NotYet("41 orders", "3,000")) == "41 orders; expected 3,000"


async def test_a_verdict_from_a_group_of_tasks_counts():
    @exercise("1.1", title="look", hint="", expects="a stream")
    async def looks(trial, answer):
        async with asyncio.TaskGroup():
            raise NotYet("no stream", "one")

    assert await check("1.1", 1) == Verdict("not yet", "no stream; expected one")


async def test_a_task_that_the_answer_left_is_named_and_ended(doubling):
    left = []

    async def keep_on():
        await asyncio.Event().wait()

    async def double(number):
        left.append(asyncio.create_task(keep_on()))
        return 2 * number

    assert (
        repr(await check("2.2", double)) == "not yet: it left a task running, keep_on(); expected nothing left behind"
    )
    await asyncio.wait(left, timeout=1.0)
    assert left[0].cancelled()


async def test_a_task_that_is_just_ending_is_not_left_behind(doubling):
    async def double(number):
        double.ending = asyncio.create_task(asyncio.sleep(0.05))  # work
        return 2 * number

    assert (await check("2.2", double)).state == "correct"


async def test_a_task_of_the_rest_of_the_notebook_is_not_left_behind(doubling):
    loop, others, asked = asyncio.get_running_loop(), [], asyncio.Event()

    async def other_cell():
        await asked.wait()
        others.append(asyncio.create_task(asyncio.Event().wait()))

    async def double(number):
        asked.set()
        await asyncio.wait({waiting})
        return 2 * number

    waiting = loop.create_task(other_cell())
    assert (await check("2.2", double)).state == "correct"
    assert not others.pop().done()
