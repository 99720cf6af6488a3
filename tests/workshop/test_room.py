"""A room on real servers: seats join, report, ask and are told; what the trainer does; a room that goes on."""

import asyncio
import contextlib
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from queue import Queue

import psutil
import pytest
import pytest_asyncio
from jupyter_client.manager import start_new_async_kernel

from mesh_lab.errors import LoginRefusedError, SettingsError, UnknownNameError
from mesh_lab.measure.local_store import HOME_VARIABLE
from mesh_lab.notebook import exercises
from mesh_lab.notebook.board import board
from mesh_lab.notebook.seat import hand
from mesh_lab.patterns.wait import eventually
from mesh_lab.workshop import seat as seats
from mesh_lab.workshop.board import Page
from mesh_lab.workshop.room import Room, Seat
from mesh_lab.workshop.seat import Card, Reporter, card, join, leave, reporter

EXERCISES = {"2.1": "answer it", "2.2": "leave in peace", "3.1": "keep a week"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room() -> AsyncIterator[Room]:
    opened = await Room.open(seats=9, exercises=EXERCISES, name="Room <1>")
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A seat's own directory; what reported from there ends with the test."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    yield tmp_path
    if seats._reporter is not None:
        seats._reporter.end()
        seats._reporter = None


async def _sit(room: Room, number: str, name: str = "") -> tuple[Seat, Reporter]:
    await join(room.lines[int(number) - 1], name=name)
    found = reporter()
    assert found is not None
    await eventually(lambda: room.seats[number].heard is not None, within=10.0)
    return room.seats[number], found


def _state(seat: Seat, number: str) -> tuple[str, str, int] | None:
    report = seat.reports.get(number)
    return None if report is None else (report.state, report.words, report.tries)


async def test_a_seat_joins_with_its_line_and_its_seed_stays_in_a_file_of_its_own(room: Room, home: Path) -> None:
    seat, _ = await _sit(room, "01", "Ada\u202e \n Lovelace")
    assert (seat.name, card()) == ("Ada Lovelace", Card("01", "Ada Lovelace", "Room <1>", card().servers, room.leaves))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir() if path.name.startswith("room.")}
    assert modes == {**dict.fromkeys(("room.json", "room.creds", "room.crt", "room.key"), 0o600)} | {
        "room.sqlite": modes["room.sqlite"]
    }
    assert (home / "room.key").read_text() not in room.lines[0]
    broken = f"{room.lines[0][:70]}\n  {room.lines[0][70:]}\n"  # as a mail breaks it
    assert (await join(broken)).seat == "01"


async def test_a_line_that_was_used_is_refused_for_another_key_and_good_for_the_same(
    room: Room, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _sit(room, "02", "Grace")
    assert (await join(room.lines[1])).name == "Grace"
    monkeypatch.setenv(HOME_VARIABLE, str(home / "thief"))
    with pytest.raises(
        LoginRefusedError, match=r"seat 02 was taken at \d\d:\d\d with another key, by 'Grace'; if that"
    ):
        await join(room.lines[1])
    assert card() is None


@pytest.mark.parametrize(
    "cut", [lambda line: line[:-40], lambda line: line[1:], lambda line: "", lambda line: "room.x"]
)
async def test_what_is_no_line_is_told_so(room: Room, cut: Callable[[str], str]) -> None:
    with pytest.raises(SettingsError, match="no seat's line, or not all of one; expected the trainer's"):
        await join(cut(room.lines[0]))


async def test_a_verdict_comes_to_the_board_with_its_words_and_what_is_solved_stays_solved(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, _ = await _sit(room, "03", "<script>alert(1)</script>")
    monkeypatch.setattr(exercises, "_exercises", {})
    monkeypatch.setattr(exercises, "_load", lambda notebook: None)

    @exercises.exercise("2.2", title="leave in peace", hint="", answer="text")
    async def leaves(trial: object, answer: object) -> str:
        if answer != "drain":
            raise exercises.NotYet("<b>2 lost</b>", "none")
        return "it drained"

    monkeypatch.setattr(exercises, "_tried", lambda task, mesh, answer: task.check(None, answer))
    monkeypatch.setattr(exercises, "newest_mesh", lambda: None)
    for answer, expected in (
        (..., ("at it", "", 0)),
        (5, ("not yet", "the answer is a number, 5; expected a text", 1)),
        ("close", ("not yet", "<b>2 lost</b>; expected none", 2)),
        ("drain", ("solved", "it drained", 3)),
    ):
        await exercises.check("2.2", answer)
        await eventually(lambda expected=expected: _state(seat, "2.2") == expected, within=10.0)
    await exercises.check("2.2", "drain", solution=True)
    await exercises.check("2.2", "close")
    # What comes later has come later.
    reporter().note("2.1", "not yet", "<b>none</b>")
    await eventually(lambda: _state(seat, "2.1"), within=10.0)
    assert _state(seat, "2.2") == ("solved", "it drained", 3)

    page = Page(room)
    try:
        shown = await asyncio.to_thread(_read, f"{page.address}now")
        assert "&lt;script&gt;alert(1)" in shown
        assert "&lt;b&gt;none&lt;/b&gt;" in shown
        assert "<script" not in shown
        assert "<b>Room &lt;1&gt;</b>" in shown
        for wrong in ("/", "/now", f"{page.address[:-3]}x/now"):
            address = wrong if wrong.startswith("http") else page.address[: page.address.index("/", 8)] + wrong
            with pytest.raises(urllib.error.HTTPError, match="404"):
                await asyncio.to_thread(_read, address)
        widget = board(page.address)
        await eventually(lambda: "&lt;script&gt;" in widget.children[0].value, within=10.0)
        widget.close()
    finally:
        page.close()


def _read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as reply:
        return reply.read().decode()


async def test_hints_come_to_one_seat_or_to_all_and_are_shown_once(room: Room) -> None:
    _, seat = await _sit(room, "05")
    await room.hint("look at the inbox", "05")
    await room.hint("not for you", "06")
    await room.open_chapter("3")
    await eventually(lambda: len(seat._hints) == 2, within=10.0)
    assert seat.news() == ["From the trainer: look at the inbox", "From the trainer: Chapter 03 is open."]
    assert seat.news() == []
    seat._shown = 0  # as in another kernel of the seat
    assert seat.news() == []
    assert room.opened == "03"
    with pytest.raises(UnknownNameError, match="no chapter '09'; there are 02, 03"):
        await room.open_chapter("9")
    with pytest.raises(UnknownNameError, match="no seat '99'; there are 01, 02"):
        await room.hint("hello", "99")


async def test_a_hand_goes_up_and_the_trainer_takes_it_as_seen(room: Room) -> None:
    seat, own = await _sit(room, "06")
    hand("which one?")
    await eventually(lambda: seat.hand == "which one?", within=10.0)
    with pytest.raises(UnknownNameError, match="seat 05 has no hand up; with one up: 06"):
        await room.lower("05")
    await room.lower("06")
    assert seat.hand is None
    own.note("hand", "up", "and now?")
    await eventually(lambda: seat.hand == "and now?", within=10.0)
    hand(down=True)
    await eventually(lambda: seat.hand is None, within=10.0)


async def test_a_seat_that_is_reset_is_out_until_it_joins_with_the_new_line(room: Room) -> None:
    _, own = await _sit(room, "07", "Edsger")
    own.note("2.1", "solved", "well")
    await eventually(lambda: _state(room.seats["07"], "2.1"), within=10.0)
    old = room.lines[6]
    new = await room.reset("07")
    assert (room.seats["07"].reports, room.seats["07"].name, room.lines[6]) == ({}, "", new)
    assert new != old
    with pytest.raises(LoginRefusedError, match="no server let us in"):
        await join(old)
    # It says so, and goes on once it has joined; what it solved is there again.
    await eventually(lambda: "lets this seat in no more" in own._trouble, within=15.0)
    assert (await join(new)).name == "Edsger"
    await eventually(lambda: reporter() and _state(room.seats["07"], "2.1"), within=15.0)


async def test_a_kernel_reports_also_while_a_cell_blocks_it_and_shows_hints_with_the_next_cell(
    room: Room, home: Path
) -> None:
    seat = room.seats["09"]
    await join(room.lines[8])
    manager, kernel = await start_new_async_kernel(kernel_name="python3")

    async def cell(code: str) -> str:
        said: list[str] = []
        await kernel.execute_interactive(code, timeout=60, output_hook=lambda one: said.append(str(one)))
        return "".join(said)

    async def hinted() -> bool:
        return "From the trainer: look again" in await cell("1")

    try:
        await cell("%load_ext mesh_lab\nfrom mesh_lab.notebook.exercises import check")
        await cell("import asyncio, time\nfrom pathlib import Path")
        assert "not yet" in await cell("asyncio.run(asyncio.sleep(0))\nawait check('2.1', 5)")
        await eventually(lambda: _state(seat, "2.1"), within=15.0)
        assert "Your hand is up" in await cell("hand('which one?')")
        await eventually(lambda: seat.hand == "which one?", within=15.0)
        # work: a cell that does not let go of its loop
        blocking = asyncio.create_task(cell(f"while not Path({str(home / 'over')!r}).exists(): time.sleep(0.05)"))
        heard = seat.heard
        await eventually(lambda: seat.heard > heard + 3.0, within=20.0)
        await room.hint("look again", "09")
        (home / "over").touch()
        await blocking
        await eventually(hinted, within=15.0, every=0.2)
    finally:
        kernel.stop_channels()
        await manager.shutdown_kernel(now=True)


async def test_who_leaves_reports_no_more(room: Room, home: Path) -> None:
    _, own = await _sit(room, "08")
    leave()
    assert reporter() is None
    assert not own.alive
    assert [path.name for path in home.iterdir() if path.name.startswith("room")] == []


async def test_a_seat_is_expected_late_lost_and_back() -> None:
    seat = Seat("01")
    assert [seat.presence(0.0, now) for now in (0.0, 601.0)] == ["expected", "late"]
    seat.key = "U"
    assert seat.presence(0.0, 601.0) == "joined"
    seat.heard = 700.0
    assert [seat.presence(0.0, now) for now in (705.0, 711.0)] == ["here", "lost"]
    seat.heard = seat.back = 720.0
    assert seat.presence(0.0, 721.0) == "back"
    seat.heard = 790.0
    assert seat.presence(0.0, 791.0) == "here"


class Trainer:
    """``mesh-lab workshop`` in a process of its own."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.lines = folder / "lines"
        command = [sys.executable, "-m", "mesh_lab.cli", "workshop", "--keep", str(folder / "room"), *more]
        self.process = subprocess.Popen(
            [*command, "--lines", str(self.lines)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    async def hears(self, words: str) -> str:
        """Return the first line with these words."""
        while words not in (line := await asyncio.to_thread(self.said.get, timeout=60.0)):
            assert self.process.poll() is None, line
        return line

    def type(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    async def ends(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = await asyncio.to_thread(self.process.wait, 30)
        self.process.stdin.close()
        return code

    def _read(self) -> None:
        with self.process.stdout:
            for line in self.process.stdout:
                self.said.put(line)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
async def test_a_trainer_who_is_killed_goes_on_with_the_same_room_and_nothing_is_lost(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "AWAY_AFTER_S", 0.0)
    agenda = home / "agenda.md"
    agenda.write_text("| 0 | 02 | to the end | 2.2 |\n")
    trainer = Trainer(home, "--seats", "2", "--name", "Monday", "--agenda", str(agenda))
    try:
        address = re.search(r"http://\S+", await trainer.hears("board:"))[0]
        await trainer.hears("lines:")
        assert stat.S_IMODE(trainer.lines.stat().st_mode) == 0o600
        line = trainer.lines.read_text().splitlines()[0]
        assert (await join(line, name="Ada")).room == "Monday"
        own = reporter()
        own.note("2.1", "not yet", "first words")
        await eventually(lambda: _shows(address, "first words"), within=15.0)
        trainer.type("hint 1 look again")
        await trainer.hears("sent to seat 01")
        await eventually(lambda: "From the trainer: look again" in own.news(), within=15.0)
        assert _shows(address, "the agenda has not begun")
        trainer.type("begin 25:00")
        await trainer.hears("begin 25:00: expected hours and minutes, such as begin 09:30")
        trainer.type("begin 00:00")
        await trainer.hears("the agenda begins at 00:00")
        trainer.type("hop")
        await trainer.hears("'hop' is not understood; there are:")

        assert await trainer.ends(signal.SIGKILL) == -signal.SIGKILL
        own.note("2.2", "solved", "alone")
        said = await eventually(own.news, within=20.0)
        assert said == ["The room does not answer; what you solve is kept here and sent later."]
        assert own.news() == []
        own.end()  # and its kernel with it; what it could not send is for the next one
        assert reporter() is not own

        trainer = Trainer(home, "--agenda", str(agenda))
        address = re.search(r"http://\S+", await trainer.hears("board:"))[0]
        assert trainer.lines.read_text().splitlines()[0] == line
        await eventually(lambda: _shows(address, "2.2 solved"), within=30.0)
        assert _shows(address, "first words")
        assert _shows(address, "1 of 2 joined")
        assert _shows(address, "agenda: median 1 of 1, 1 due, on time")
        monkeypatch.setenv(HOME_VARIABLE, str(home / "thief"))
        with pytest.raises(LoginRefusedError, match="with another key, by 'Ada'"):
            await join(line)
        trainer.type("quit")
        assert await trainer.ends() == 0
    finally:
        await trainer.ends(signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
async def test_a_trainers_laptop_that_sleeps_is_told_afterwards_what_was_solved_meanwhile(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "AWAY_AFTER_S", 0.0)
    trainer, asleep = Trainer(home, "--seats", "1"), list[psutil.Process]()
    try:
        address = re.search(r"http://\S+", await trainer.hears("board:"))[0]
        await trainer.hears("lines:")
        await join(trainer.lines.read_text().strip(), name="Ada")
        own = reporter()
        own.note("2.1", "not yet", "first words")
        await eventually(lambda: _shows(address, "first words"), within=15.0)

        # The address is there and takes connections, and nobody answers.
        desk = psutil.Process(trainer.process.pid)
        asleep += [desk, *desk.children(recursive=True)]
        assert [one.name() for one in asleep].count("nats-server") == 3
        for one in asleep:
            one.suspend()
        own.note("2.2", "solved", "alone")
        said = await eventually(own.news, within=20.0)
        assert said == ["The room does not answer; what you solve is kept here and sent later."]

        for one in asleep:
            one.resume()
        await eventually(lambda: _shows(address, "2.2 solved"), within=30.0)
        assert _shows(address, "first words")
        await eventually(lambda: not own._trouble, within=15.0)
        assert own.alive
    finally:
        for one in asleep:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
        await trainer.ends(signal.SIGKILL)


def _shows(address: str, words: str) -> bool:
    return words in _read(f"{address}now")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seats": 100}, "100 seats asked for, expected 1 to 99"),
        ({"listen": "0.0.0.0"}, "opens every network; expected the one address"),
        ({"keep": Path(__file__).parent}, "holds other things than a room"),
    ],
)
async def test_a_room_that_cannot_be_is_not_opened(given: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        await Room.open(exercises=EXERCISES, **given)


async def test_a_room_opens_to_other_machines_at_the_address_asked_for_and_there_alone(home: Path) -> None:
    # Another address of this machine, which no other machine reaches.
    if sys.platform != "linux":
        pytest.skip("only Linux has all of 127.0.0.0/8")
    opened = await Room.open(seats=1, exercises=EXERCISES, listen="127.0.0.2")
    try:
        assert [url.startswith("nats://127.0.0.2:") for url in opened.mesh.urls] == [True] * 3
        assert (await join(opened.lines[0])).servers[0].startswith("tls://127.0.0.2:")
        port = opened.mesh.servers["n1"].port
        with pytest.raises(ConnectionRefusedError, match="127.0.0.1"):
            await asyncio.open_connection("127.0.0.1", port)
    finally:
        await opened.close()
