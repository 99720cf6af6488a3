"""A test waits for a condition; where it sleeps all the same, it says what the sleep stands for."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `sleep(0)` lets others run, and takes no time.
SLEEP = re.compile(r"\bsleep\((?!0\))")
# Work that takes its time; the rhythm or the moment that the test is about; the time in which what must not happen
# would have happened; a program that does not come to its end.
STANDS_FOR = re.compile(r"# (work|pacing|absence|hangs)\b")
# They speak of sleeps in notebooks.
ABOUT_SLEEPS = {"hygiene.py", "test_hygiene_finds_faults.py", Path(__file__).name}


def bare_sleeps(text: str) -> list[str]:
    """Return the lines that sleep, and neither say there nor in the line above what for."""
    lines = ["", *text.splitlines()]
    sleeping = [(above + line, line) for above, line in pairwise(lines) if SLEEP.search(line)]
    return [line.strip() for both, line in sleeping if not STANDS_FOR.search(both)]


@pytest.mark.parametrize("text", ["await asyncio.sleep(0.5)", "time.sleep(wait)  # a while"])
def test_a_sleep_that_stands_for_nothing_is_found(text: str) -> None:
    assert bare_sleeps(text) == [text]
    assert bare_sleeps("await asyncio.sleep(0)\n\nawait asyncio.sleep(0.5)  # absence: it would come by then") == []


def test_each_sleep_in_a_test_or_check_says_what_it_stands_for() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "notebooks" / "checks").glob("*.py")]
    found = {path.name: bare_sleeps(path.read_text()) for path in files if path.name not in ABOUT_SLEEPS}
    assert {name: sleeps for name, sleeps in found.items() if sleeps} == {}
