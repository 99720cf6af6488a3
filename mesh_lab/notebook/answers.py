"""Look at a reader's answer: untouched, of the wrong kind, stuck, or raising, and at which line."""

import asyncio
import dis
import inspect
import re
import reprlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Literal

Kind = Literal["async function", "function", "async generator", "text", "dict", "anything"]
"""What a check can ask for."""
SHOWN_CHARACTERS = 200
SEED = re.compile(r"\b(S[AOU])[A-Z2-7]{56}\b")
"""An NKEY's seed, of which a verdict shows the beginning alone."""
MISCALL = re.compile(r"\S+\(\) (takes|missing|got) ")


def untouched(answer: object) -> bool:
    """Return whether nothing was written yet: ``...``, or functions that hold no more than that.

    A tuple, list or dict is untouched when it has members and all of them are; an empty one is an answer.
    """
    if isinstance(answer, FunctionType):
        return _steps(answer.__code__) in STUBS
    members = _members(answer)
    return answer is ... or (bool(members) and all(map(untouched, members)))


def files_of(answer: object) -> frozenset[str]:
    """Return the file names, in a notebook one for each cell, of the code that an answer brings along."""
    while isinstance(answer, partial | MethodType):
        answer = answer.func if isinstance(answer, partial) else answer.__func__
    if isinstance(answer, FunctionType):
        return frozenset({inspect.unwrap(answer).__code__.co_filename, answer.__code__.co_filename})
    return frozenset[str]().union(*map(files_of, _members(answer)))


def _members(answer: object) -> list[object]:
    """Return what a collection holds."""
    if isinstance(answer, dict):
        return list(answer.values())
    return list(answer) if isinstance(answer, tuple | list) else []


def _steps(code: CodeType) -> tuple[tuple[str, object], ...]:
    return tuple((step.opname, step.argval) for step in dis.get_instructions(code) if step.opname != "NOP")


# Stubs, as the running Python compiles them.
STUBS = frozenset(
    _steps(next(code for code in module.co_consts if isinstance(code, CodeType)))
    for kind in ("def", "async def")
    for body in ("...", "return ...", "yield", "yield ...")
    for module in [compile(f"{kind} stub(): {body}", "<stub>", "exec")]
)


def wrong_kind(answer: object, kind: Kind) -> str | None:
    """Return in words what the answer is when it is not of the kind asked for, and ``None`` when it is.

    A coroutine that was handed over by mistake is closed, or Python would warn that it was never awaited.
    """
    if inspect.iscoroutine(answer):
        answer.close()
        return f"{answer.__name__}(…) was called, and its coroutine handed over instead of the function"
    return None if KINDS[kind][1](answer) else f"the answer is {_described(answer)}"


def kind_in_words(kind: Kind) -> str:
    """Return what a check asks for, with its article: ``an async function (async def …)``."""
    return KINDS[kind][0]


def _is_plain_function(answer: object) -> bool:
    return callable(answer) and not (
        inspect.isclass(answer) or inspect.iscoroutinefunction(answer) or inspect.isasyncgenfunction(answer)
    )


# The order matters to _described: the first kind that fits names the answer, also where no check asks for it.
KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "async function": ("an async function (async def …)", inspect.iscoroutinefunction),
    "async generator": ("an async generator (async def … with yield)", inspect.isasyncgenfunction),
    "class": ("a class", inspect.isclass),
    "function": ("a plain function (def …)", _is_plain_function),
    "text": ("a text", lambda answer: isinstance(answer, str)),
    "number": ("a number", lambda answer: isinstance(answer, int | float) and not isinstance(answer, bool)),
    "dict": ("a dict", lambda answer: isinstance(answer, dict)),
    "anything": ("an answer", lambda answer: True),
}


def _described(answer: object) -> str:
    for kind, (words, fits) in KINDS.items():
        if kind != "anything" and fits(answer):
            return words if callable(answer) else f"{words}, {reprlib.repr(answer)}"
    return "None" if answer is None else f"of type {type(answer).__name__}: {reprlib.repr(answer)}"


class StuckError(Exception):
    """The answer blocks the event loop, so that no timeout of asyncio can reach it."""


BLOCKED_S = 8.0  # a check may take longer, and the event loop has its turn all the while


@contextmanager
def interrupted_when_stuck(files: frozenset[str], *, after: float) -> Iterator[None]:
    """Raise :class:`StuckError` inside the answer's own code when it holds the event loop for too long.

    The signal does nothing unless that code is running, so it cannot hit the kernel. Windows has no such signal.

    Args:
        files: What :func:`files_of` says of the answer.
        after: Seconds in all, or :data:`BLOCKED_S` without a turn of the event loop; then again each second, for an
            answer that catches it.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename in files:
                raise StuckError
            frame = frame.f_back

    loop, ends = asyncio.get_running_loop(), time.monotonic() + after
    turn: asyncio.TimerHandle | None = None

    def put_off() -> None:
        nonlocal turn
        if (left := ends - time.monotonic()) > 0:
            signal.setitimer(signal.ITIMER_REAL, min(left, BLOCKED_S), 1.0)
            turn = loop.call_later(BLOCKED_S / 4, put_off)

    before = signal.signal(signal.SIGALRM, on_alarm)
    put_off()
    try:
        yield
    finally:
        if turn is not None:
            turn.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_of(error: BaseException) -> BaseException:
    """Return the first exception of a group, and any other exception as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def is_miscall(error: BaseException) -> bool:
    """Return whether a function was called with arguments it does not take: the caller's line raises that."""
    return isinstance(error, TypeError) and MISCALL.match(str(error)) is not None


def last_line(error: BaseException, files: frozenset[str]) -> tuple[str, int | None]:
    """Return the last line of an exception's traceback, and the line of the answer's ``files`` that it came from."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename in files]
    text = str(error).strip().partition("\n")[0]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    said = SEED.sub(r"\1…", said)
    shown = said if len(said) <= SHOWN_CHARACTERS else f"{said[:SHOWN_CHARACTERS]} …"
    return shown, lines[-1] if lines else None
