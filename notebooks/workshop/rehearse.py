"""Rehearse a workshop on this machine: ``python notebooks/workshop/rehearse.py --seats 20 00``.

A hub and a room of their own are opened, as ``mesh-lab seats`` and ``mesh-lab workshop`` open them, and a simulated
participant sits down at each seat. It opens the notebook, reads at the speed that ``pace.py`` states (give or take a
third, everybody at a speed of their own), runs the cells, and answers the exercises: first not at all, then, one time
in two, wrongly, then rightly. Thinking is ``--faster`` than life, twelve times unless you say otherwise; cells are not.
So the machine works about twelve times as hard as in the room.

It prints how long the board takes to show a verdict, asked for every second as the projector's page asks; what failed
that should not have; the memory of a seat; and the time of each section. Ctrl-C ends it early, with what it found so
far. Nothing of it stays.
"""

import argparse
import json
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import NamedTuple, get_args

import pace
import psutil

from mesh_lab.errors import MeshLabError
from mesh_lab.processes import ChildProcess
from mesh_lab.seats.api import HubApi, SeatKernel, memory_bytes
from mesh_lab.seats.start import SEAT_WITHIN_S, Isolation, Workshop, serving, warnings_of

CELL_WITHIN_S, BOARD_WITHIN_S = 180.0, 30.0
LOOK_EVERY_S = 1.0
"""As the projector's page does."""
SPREAD = 0.33
WRONG = {
    "0.1": ("subject = 'orders.eu.>'", "has a wildcard"),
    "0.2": ("async def mine(nc):\n    return await nc.subscribe('orders.eu.>')", "arrived, too"),
    "0.3": ("async def mine(mesh):\n    return await mesh.connect(name='me', to='n1')", "n2 lists none"),
    "1.1": ("mine = {name: 'orders.>' for name in wishes}", "also got"),
    "2.1": (
        "async def mine(nc, msg, shelf):\n    await msg.respond(str(shelf[msg.data.decode()]).encode())",
        "KeyError",
    ),
    "3.2": ("async def mine(msg, charge):\n    await charge(decode(msg.data))\n    await msg.ack()", "expected"),
}
"""For some exercises a usual wrong answer, whose last name is the answer, and words of the check's ``not yet``."""
BOARD_ROW = re.compile(r'<tr><td class="m">(\d\d)</td>(.*?)</tr>')
BOARD_CELL = re.compile(r'title="(\d+\.\d+) [^"]*?: (at it|not yet|solved), (\d+) tr')


class Verdict(NamedTuple):
    """What a check said at a seat, and when."""

    seat: str
    exercise: str
    state: str
    tries: int
    at: float


@dataclass
class Record:
    """What the participants met; each seat's thread appends to it."""

    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cells: dict[tuple[str, str], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """By notebook and heading, the seconds that its cells took at each seat."""
    memory: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The most that each seat took, in bytes, at the end of a notebook."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when everybody is to leave, however far they are."""


class Watcher:
    """Reads the board as the projector's page does, and remembers when it first showed what."""

    def __init__(self, address: str) -> None:
        """Begin to read."""
        self._address, self._over = f"{address.rstrip('/')}/now", threading.Event()
        self.seen: list[tuple[float, dict[tuple[str, str], tuple[str, int]]]] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._read, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._over.set()
        self._thread.join()

    def shown(self, verdict: Verdict) -> float | None:
        """Return when the board first showed a verdict or a later one of the same seat and exercise."""
        for when, board in self.seen:
            state, tries = board.get((verdict.seat, verdict.exercise), ("", -1))
            if when >= verdict.at and (tries >= verdict.tries or state == "solved"):
                return when
        return None

    def _read(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                with urllib.request.urlopen(self._address, timeout=BOARD_WITHIN_S) as reply:  # noqa: S310  # 127.0.0.1
                    drawn = reply.read().decode()
            except OSError as err:
                self.failures.append(f"the board: {err}")
                continue
            rows = BOARD_ROW.findall(drawn)
            board = {(seat, one): (state, int(n)) for seat, row in rows for one, state, n in BOARD_CELL.findall(row)}
            self.seen.append((time.time(), board))


class Participant:
    """Somebody at a seat, with a speed of their own."""

    def __init__(self, hub: HubApi, seat: str, record: Record, *, faster: float) -> None:
        """Sit down."""
        self._hub, self._seat, self._record, self._number = hub, seat, record, seat.removeprefix("seat-")
        self._chance, self._sessions = random.Random(seat), list[str]()
        self._seconds_a_minute = 60.0 / faster * self._chance.uniform(1 - SPREAD, 1 + SPREAD)

    def go_through(self, number: str, wanted: list[str]) -> None:
        """Do the sections of a notebook with these headings, then its last cell, which closes the mesh."""
        path = pace.notebook(number)
        place, steps = f"notebooks/{path.name}", list(pace.steps(path))
        opened = self._hub.call("GET", f"/user/{self._seat}/api/contents/{place}")
        asked = {"path": place, "type": "notebook", "name": path.name, "kernel": {"name": "python3"}}
        session = self._hub.call("POST", f"/user/{self._seat}/api/sessions", asked)
        self._sessions.append(session["id"])
        with closing(self._hub.connect(self._seat, session["kernel"]["id"])) as kernel:
            heading = ""
            for step in steps:
                if self._record.over.is_set():
                    return
                if step.heading not in wanted:
                    continue
                if step.heading != heading:  # JupyterLab saves every two minutes
                    heading = step.heading
                    saved = {"type": "notebook", "format": "json", "content": opened["content"]}
                    self._hub.call("PUT", f"/user/{self._seat}/api/contents/{place}", saved)
                tags = set(step.cell.metadata.get("tags", ())) if step.cell else set()
                practice = bool(tags & {"exercise", "check", "solution"})
                if not practice or "exercise" in tags:  # half of an exercise's minutes are for a second try
                    self._think(kernel, step.minutes / (2 if practice else 1))
                if step.cell is None:
                    continue
                if "solution" in tags:
                    self._answer(kernel, number, step)
                elif "check" in tags:
                    self._check(kernel, number, step.heading, step.cell.source, "at it", "not attempted", 0)
                else:
                    self._run(kernel, number, step.heading, step.cell.source, raises="raises-exception" in tags)
            used = memory_bytes(self._hub.pid_of(self._seat))
            self._record.memory[self._seat] = max(self._record.memory[self._seat], used)
            last = [step for step in steps if step.cell is not None][-1]
            self._run(kernel, number, last.heading, last.cell.source)

    def leave(self) -> None:
        """End the kernels of all notebooks, which stay open until then, as they do with people."""
        for session in self._sessions:
            self._hub.call("DELETE", f"/user/{self._seat}/api/sessions/{session}")

    def _think(self, kernel: SeatKernel, minutes: float) -> None:
        until = time.monotonic() + minutes * self._seconds_a_minute
        while (left := until - time.monotonic()) > 0 and not self._record.over.is_set():
            kernel.listen(min(left, 1.0))

    def _answer(self, kernel: SeatKernel, number: str, step: pace.Step) -> None:
        exercise, tries = step.heading.split()[1].rstrip(":"), 1
        if self._chance.random() < 0.5:
            mine, words = WRONG.get(exercise, ("mine = object()", "expected"))
            name = re.findall(r"^(?:async def )?(\w+)(?: =|\()", mine, re.MULTILINE)[-1]
            code = f"{mine}\nawait check({exercise!r}, {name})"
            self._check(kernel, number, step.heading, code, "not yet", words, tries)
            tries += 1
        self._think(kernel, pace.EXERCISE_MINUTES / 2)
        right = step.cell.source.replace(", solution=True", "")
        self._check(kernel, number, step.heading, right, "solved", "correct", tries)

    def _check(
        self, kernel: SeatKernel, number: str, heading: str, code: str, state: str, words: str, tries: int
    ) -> None:
        exercise = heading.split()[1].rstrip(":")
        if shown := self._run(kernel, number, heading, code):
            text, at = shown
            if words in text and (state != "not yet" or "not yet" in text):
                self._record.verdicts.append(Verdict(self._number, exercise, state, tries, at))
            else:
                self._record.failures.append(f"{self._seat}, {exercise}: {text!r}; expected {state} and {words!r}")

    def _run(
        self, kernel: SeatKernel, number: str, heading: str, code: str, *, raises: bool = False
    ) -> tuple[str, float] | None:
        began, shown = time.monotonic(), None
        try:
            shown = kernel.run(code, within=CELL_WITHIN_S)
        except MeshLabError as err:
            if not raises:
                self._record.failures.append(f"{self._seat}, notebook {number}, {heading}: {err}")
        seconds = self._record.cells[number, heading]
        seconds[self._seat] = seconds.get(self._seat, 0.0) + time.monotonic() - began
        return shown


def rehearse(hub: HubApi, board: str, seats: list[str], parts: dict[str, list[str]], *, faster: float) -> "Rehearsal":
    """Let participants go through parts of notebooks at seats that run, side by side, and return what came of it.

    Args:
        hub: The hub of the seats.
        board: Address of the page with the board.
        seats: Names of seats that nobody has used.
        parts: Headings by notebook.
        faster: How many times faster than life they think.
    """
    record, began = Record(), time.monotonic()
    psutil.cpu_percent()

    def sit(seat: str) -> None:
        participant = Participant(hub, seat, record, faster=faster)
        for number, wanted in parts.items():
            try:
                participant.go_through(number, wanted)
            except (MeshLabError, OSError) as err:  # what a browser would show as a red bar
                record.failures.append(f"{seat}, notebook {number}: {err!r}")
        participant.leave()

    with closing(Watcher(board)) as watcher:
        with ThreadPoolExecutor(len(seats)) as pool:
            at_work = [pool.submit(sit, seat) for seat in seats]
            try:
                wait(at_work)
            except KeyboardInterrupt:
                record.over.set()
        for each in at_work:
            each.result()
        took, busy = time.monotonic() - began, psutil.cpu_percent()
        deadline = time.monotonic() + BOARD_WITHIN_S
        while any(watcher.shown(one) is None for one in record.verdicts) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
    delays = []
    for verdict in record.verdicts:
        when = watcher.shown(verdict)
        if when is None:
            record.failures.append(f"the board never showed {verdict}")
        else:
            delays.append(when - verdict.at)
    record.failures += watcher.failures
    return Rehearsal(record, delays, took, busy)


class Rehearsal(NamedTuple):
    """What came of a rehearsal."""

    record: Record
    delays_s: list[float]
    """From a check's words in the seat to its sign on the board, for each verdict."""
    took_s: float
    busy: float
    """Share of the machine's cores that was at work, in percent."""

    def lines(self, *, faster: float) -> Iterator[str]:
        """Yield what it found, for people."""
        yield f"{self.took_s:.0f} s of work, thinking {faster:g} times faster than life; cores {self.busy:.0f} % busy"
        if self.delays_s:
            most, middle = max(self.delays_s), median(self.delays_s)
            yield f"the board showed {len(self.delays_s)} verdicts after {middle:.1f} s (median), {most:.1f} s (worst)"
        if used := self.record.memory.values():
            yield f"a seat took {median(used) / 2**20:.0f} MiB (median), {max(used) / 2**20:.0f} MiB (most)"
        for (number, heading), seconds in self.record.cells.items():
            times = sorted(seconds.values())
            thought = sum(step.minutes for step in pace.steps(pace.notebook(number)) if step.heading == heading)
            yield (
                f"  {number} {heading}: {thought:.1f} min to read and think; its cells {median(times):.1f} s (median), "
                f"{times[-1]:.1f} s (worst)"
            )
        yield f"failed: {len(self.record.failures)}"
        yield from (f"  {failure}" for failure in self.record.failures)


@contextmanager
def opened(
    seats: int, isolation: Isolation | None, port: int, tell: Callable[[str], None]
) -> Iterator[tuple[HubApi, str]]:
    """Open a room and a hub with its seats, all of which run, and yield the hub and the board's address."""
    folder = Path(mkdtemp(prefix="mesh-lab-rehearsal-"))
    folder.chmod(0o711)
    lines = folder / "lines"
    command = [sys.executable, "-m", "mesh_lab.cli", "workshop", "--seats", str(seats), "--lines", str(lines)]
    try:
        with closing(ChildProcess(command, name="mesh-lab workshop", stdout=True)) as room:
            room.start()
            said = ""
            while "quit" not in said.rpartition("\n")[2]:  # the last line that it says when the room is open
                said += "\n" + room.receive().decode()
            board = re.findall(r"http://\S+", said)[0]
            workshop = Workshop(seats=seats, folder=folder / "seats", isolation=isolation, port=port, lines=lines)
            for warning in warnings_of(workshop):
                tell(warning)
            began = time.monotonic()
            with serving(workshop) as hub:
                hub.start(*workshop.names, within=SEAT_WITHIN_S)
                tell(f"{seats} seats run, after {time.monotonic() - began:.0f} s; the board: {board}")
                yield hub, board
            room.request_stop()
            room.wait(within=30.0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parts_of(numbers: list[str], *, whole: bool) -> dict[str, list[str]]:
    """Return the headings of notebooks that the handbook's agendas take, or all, where none takes it or asked for."""
    rows = {} if whole else {row[0]: row for row in pace.AGENDA_ROW.findall(pace.HANDBOOK.read_text(encoding="utf-8"))}
    return {
        number: pace.headings(*rows[number]) if number in rows else [t for t, _ in pace.sections(pace.notebook(number))]
        for number in numbers
    }


def store(cells: dict[tuple[str, str], dict[str, float]]) -> None:
    """Write the median seconds of each section's cells where ``pace.py`` finds them."""
    known = json.loads(pace.MEASURED.read_text(encoding="utf-8"))
    for (number, heading), seconds in cells.items():
        known.setdefault(number, {})[heading] = round(median(seconds.values()), 1)
    text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False)
    pace.MEASURED.write_text(f"{text}\n", encoding="utf-8")


def main() -> int:
    """Run the command line and return the exit code: 1 where something failed that should not have."""
    parser = argparse.ArgumentParser(description="Rehearse a workshop with simulated participants.")
    parser.add_argument("notebooks", nargs="+", metavar="NN", help="notebooks, in their order: 00 01")
    parser.add_argument("--seats", type=int, default=20, metavar="N", help="how many participants (default: 20)")
    faster = "how many times faster than life they think (default: 12)"
    parser.add_argument("--faster", type=float, default=12.0, metavar="TIMES", help=faster)
    parser.add_argument("--whole", action="store_true", help="whole notebooks, and not what the agendas take of them")
    parser.add_argument("--isolation", choices=get_args(Isolation), help="as mesh-lab seats has it")
    parser.add_argument("--port", type=int, default=8100, help="the first of three for the hub (default: 8100)")
    parser.add_argument("--record", action="store_true", help="store what the cells took, for pace.py")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the hub and the room end with it

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    parts = parts_of(asked.notebooks, whole=asked.whole)
    try:
        with opened(asked.seats, asked.isolation, asked.port, tell) as (hub, board):
            result = rehearse(hub, board, hub_names(asked.seats), parts, faster=asked.faster)
    except MeshLabError as err:
        sys.stderr.write(f"rehearse.py: {err}\n")
        return 1
    for line in result.lines(faster=asked.faster):
        tell(line)
    if asked.record:
        store(result.record.cells)
    return 1 if result.record.failures else 0


def hub_names(seats: int) -> list[str]:
    """Return the names of the participants' seats."""
    return Workshop(seats=seats, folder=Path()).names


if __name__ == "__main__":
    sys.exit(main())
