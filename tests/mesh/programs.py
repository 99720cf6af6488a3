"""Programs that a test starts and that end with it."""

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def killed_at_the_end(program: "subprocess.Popen[Any]") -> Iterator["subprocess.Popen[Any]"]:
    """Kill a program when its test is done with it; Popen's own ``with`` waits for ever when a test fails half-way."""
    with program:
        try:
            yield program
        finally:
            program.kill()
