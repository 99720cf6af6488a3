"""Child processes: started, heard, ended; and what the child does on its side."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_lab.errors import ProcessEndedError
from mesh_lab.processes import OWNER_VARIABLE, ChildProcess, output_of

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
# As a child of the package does it: lines to the loop, an end at SIGTERM.
CHILD = """
import asyncio
from mesh_lab.processes import on_input_line, on_stop_signal, run

async def main():
    stop = asyncio.Event()
    on_stop_signal(stop.set)
    on_input_line(lambda line: print(line.decode().upper(), flush=True), at_end={at_end})
    print("ready", type(asyncio.get_running_loop()).__module__, flush=True)
    await stop.wait()
    print("bye", flush=True)

run(main())
"""

# As a shell does it: a job in the background, until fg.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
job = subprocess.Popen([sys.executable, "-c", sys.argv[1]], process_group=0)
input()
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, job.pid)
print("in front", flush=True)
job.wait()
"""


def child(program: str, **options: object) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", program], name="the child", **options)  # type: ignore[arg-type]


@pytest.fixture
def echo() -> Iterator[ChildProcess]:
    process = child(ECHO, stdin=True, stdout=True)
    yield process.start()
    process.close()


def test_a_child_that_was_not_started_is_closed_and_killed_and_read_without_harm() -> None:
    process = child(ECHO, stdin=True, stdout=True)
    process.send(b"word")
    process.request_stop()
    process.kill()
    process.close_input()
    assert (process.pid, process.exit_code, process.log()) == (None, None, "")
    with pytest.raises(ProcessEndedError, match="^the child does not run: it left no message$"):
        process.receive()
    process.close()


def test_a_value_is_sent_as_a_line_and_its_reply_is_a_line(echo: ChildProcess) -> None:
    assert echo.request({"do": "heal", "pairs": [["a", "b"]]}) == {"do": "heal", "pairs": [["a", "b"]]}
    echo.send(b"plain")
    assert echo.receive() == b"plain"


def test_a_child_in_a_session_of_its_own_has_the_mark_of_its_owner() -> None:
    program = f"import os; print(os.environ.get({OWNER_VARIABLE!r}), os.getsid(0) == os.getpid())"
    for owner, seen in (("m-1", b"m-1 True"), ("", b"None True")):
        process = child(program, owner=owner, stdout=True).start()
        assert process.receive() == seen
        process.close()


def test_a_mark_is_inherited_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, "outer")
    process = child(f"import os; print(os.environ[{OWNER_VARIABLE!r}])", stdout=True).start()
    assert process.receive() == b"outer"
    process.close()


def test_a_child_that_is_started_again_has_the_variables_of_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "wrong")
    process = child("import os; print(os.environ['KEY'], os.environ['OWN'])", environment={"OWN": "x"}, stdout=True)
    assert process.start().receive() == b"wrong x"
    process.close()
    monkeypatch.setenv("KEY", "right")
    assert process.start().receive() == b"right x"
    process.close()


def test_the_error_of_a_dead_child_names_exit_code_and_last_line_and_carries_the_log() -> None:
    process = child("import sys; sys.exit('first\\nit broke')", stdin=True, stdout=True).start()
    with pytest.raises(
        ProcessEndedError, match="^the child ended with exit code 1: it broke\nfirst\nit broke$"
    ) as info:
        process.request({})
    assert (info.value.name, info.value.exit_code, info.value.log) == ("the child", 1, "first\nit broke")
    process.close()


def test_the_error_of_a_killed_child_names_the_signal(echo: ChildProcess) -> None:
    echo.kill()
    with pytest.raises(ProcessEndedError, match="^the child was killed by SIGKILL: it left no message$") as info:
        echo.receive()
    assert info.value.exit_code == -signal.SIGKILL
    echo.send(b"nobody reads this")


def test_a_closed_child_ends_what_waits_for_it_with_an_error(echo: ChildProcess) -> None:
    echo.close()
    echo.close()
    with pytest.raises(ProcessEndedError, match="killed by SIGKILL"):
        echo.request({})


def test_the_log_of_a_child_that_another_thread_just_closes_is_empty_and_no_error(echo: ChildProcess) -> None:
    assert echo._unnamed_log is not None
    echo._unnamed_log.close()  # as `close` does, one line before it lets go of the file
    assert echo.log() == ""


def test_a_wait_returns_whether_the_child_ended_by_itself() -> None:
    obedient = child("import time; print('up', flush=True); time.sleep(60)", stdout=True).start()  # hangs
    stubborn = child(
        # hangs
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
        stdout=True,
    ).start()
    for process in (obedient, stubborn):
        process.receive()
        process.request_stop()
    assert obedient.wait(within=20)
    assert not stubborn.wait(within=0.2)
    assert (obedient.exit_code, stubborn.exit_code) == (-signal.SIGTERM, -signal.SIGKILL)
    for process in (obedient, stubborn):
        process.close()


def test_the_log_goes_on_when_a_child_is_started_again(tmp_path: Path) -> None:
    process = child("print('one\\ntwo')", log=tmp_path / "child.log")
    for _ in range(2):
        process.start().wait(within=20)
    assert process.log() == "one\ntwo\none\ntwo"
    assert process.log(last=1) == "two"
    assert process.log(last=0) == ""


def test_the_rest_is_what_a_child_prints_until_it_ends(echo: ChildProcess) -> None:
    echo.send(b"last words")
    with pytest.raises(TimeoutError, match="the child did not end within 0.1 s"):
        echo.rest(within=0.1)
    echo.close_input()
    assert echo.rest(within=20) == b"last words\n"


def test_a_child_hears_lines_and_ends_in_good_order_at_sigterm() -> None:
    process = child(CHILD.format(at_end="stop.set"), stdin=True, stdout=True).start()
    assert process.receive().startswith(b"ready ")
    process.send(b"word")
    assert process.receive() == b"WORD"
    process.request_stop()
    assert process.receive() == b"bye"
    assert process.wait(within=20)
    assert process.exit_code == 0
    process.close()


@pytest.mark.parametrize(("at_end", "code", "last"), [("stop.set", 0, b"bye\n"), ("None", 1, b"")])
def test_a_child_follows_the_end_of_its_input(at_end: str, code: int, last: bytes) -> None:
    process = child(CHILD.format(at_end=at_end), stdin=True, stdout=True).start()
    process.receive()
    process.close_input()
    assert process.rest(within=20) == last
    assert process.exit_code == code
    process.close()


def test_a_child_without_standard_input_reads_no_other_file_in_its_place() -> None:
    command = [sys.executable, "-c", CHILD.format(at_end="stop.set")]
    process = child(f"import os\nos.close(0)\nos.execv({sys.executable!r}, {command})", stdout=True).start()
    process.receive()
    assert process.rest(within=20) == b"bye\n"
    process.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of a terminal")
def test_a_child_in_the_background_of_a_terminal_goes_on_and_hears_lines_in_the_front() -> None:
    terminal, its_side = os.openpty()
    command = [sys.executable, "-c", SHELL, CHILD.format(at_end="stop.set")]
    shell = subprocess.Popen(command, stdin=its_side, stdout=its_side, stderr=its_side, start_new_session=True)
    os.close(its_side)
    said = b""
    try:
        for typed, expected in ((b"", b"ready "), (b"fg\n", b"in front"), (b"word\n", b"WORD"), (b"\x03", b"bye")):
            os.write(terminal, typed)
            deadline = time.monotonic() + 20
            while expected not in said:
                assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], (expected, said)
                said += os.read(terminal, 1_000)
    finally:
        os.close(terminal)  # hangs up, which ends both
        shell.wait(20)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop on Windows")
def test_a_child_runs_under_uvloop_where_there_is_one() -> None:
    process = child(CHILD.format(at_end="None"), stdin=True, stdout=True).start()
    assert process.receive() == b"ready uvloop"
    process.close()


def test_the_output_of_a_command_is_returned() -> None:
    program = "import os; print(os.environ['WORD'])"
    assert output_of([sys.executable, "-c", program], within=20, environment={"WORD": "x"}) == "x\n"


def test_a_command_that_fails_raises_with_its_code_and_its_words() -> None:
    with pytest.raises(ProcessEndedError, match="ended with code 3: no$") as info:
        output_of([sys.executable, "-c", "import sys; sys.stderr.write('no\\n'); sys.exit(3)"], within=20)
    assert (info.value.exit_code, info.value.log) == (3, "no")


def test_a_command_that_hangs_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(ProcessEndedError, match="was not done after 0.2 s") as info:
        output_of([sys.executable, "-c", "import time; time.sleep(60)"], within=0.2)  # hangs
    assert info.value.exit_code is None
    assert time.monotonic() - began < 30
