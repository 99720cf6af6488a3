"""Checks of notebook 16: the damage in a backup, and old events read as new ones."""

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mesh_lab.notebook.exercises import NotYet, Trial, exercise

# 16.1

SAVED = {"stream.tar.s2": b"S2sTwO" + bytes(range(256)) * 2_000, "backup.json": b'{"config": {"name": "ORDERS"}}\n'}
Fault = Callable[[Path], object]


def _change_a_byte(folder: Path) -> None:
    data = bytearray((folder / "stream.tar.s2").read_bytes())
    data[-7] ^= 1
    (folder / "stream.tar.s2").write_bytes(data)


def _cut_off(folder: Path) -> None:
    (folder / "backup.json").write_bytes(SAVED["backup.json"][:-1])


def _change_all(folder: Path) -> None:
    _cut_off(folder)
    _change_a_byte(folder)


# What was done to a backup, and the names that are to be found.
DAMAGES: dict[str, tuple[Fault, list[str]]] = {
    "a backup as it was saved": (lambda folder: None, []),
    "a backup with one byte changed": (_change_a_byte, ["stream.tar.s2"]),
    "a backup with a description that breaks off": (_cut_off, ["backup.json"]),
    "a backup without its data": (lambda folder: (folder / "stream.tar.s2").unlink(), ["stream.tar.s2"]),
    "a backup with nothing as it was": (_change_all, ["backup.json", "stream.tar.s2"]),
    "a backup beside which somebody left a note": (lambda folder: (folder / "note.txt").write_text("hello"), []),
}


@contextmanager
def _backup(damage: Fault, *, more: dict[str, bytes]) -> Iterator[Path]:
    """Give the folder of a backup after something was done to it."""
    with tempfile.TemporaryDirectory(prefix="mesh-lab-backup-") as directory:
        folder = Path(directory) / "ORDERS"
        folder.mkdir()
        files = SAVED | more
        for name, content in files.items():
            (folder / name).write_bytes(content)
        lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()]
        (folder / "SHA256SUMS").write_text("".join(lines))
        damage(folder)
        yield folder


@exercise(
    "16.1",
    title="find the damage",
    answer="function",
    expects="the names of the files that are missing or changed",
    hint="hashlib.file_digest(file, 'sha256') reads an open file in parts. A line is split at the first two blanks: a "
    "name may have some, too.",
)
async def finds_the_damage(trial: Trial, answer: Any) -> str:
    """Show it backups, whole and damaged, of two and of three files."""
    for more in ({}, {"my notes  of May.txt": b"two blanks\n"}):
        for what, (damage, expected) in DAMAGES.items():
            trial.case = what
            with _backup(damage, more=more) as folder:
                before = {path.name: path.read_bytes() for path in folder.iterdir()}
                found = answer(folder)
                if {path.name: path.read_bytes() for path in folder.iterdir()} != before:
                    raise NotYet(f"{what}: its files are others now", "that they are only read")
            if found != expected:
                raise NotYet(f"{what}: {found!r} was returned", repr(expected))
    return "what is not compared may be torn for years before you need it"


# 16.2

# Events as they may lie in the store, by what they show, and what they are in version 3.
EVENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an order of version 1": (
        {"id": "000001", "cents": 1_177},
        {"version": 3, "id": "000001", "price": {"cents": 1_177, "currency": "USD"}},
    ),
    "an order of version 2, in euros": (
        {"version": 2, "id": "000002", "cents": 999, "currency": "EUR"},
        {"version": 3, "id": "000002", "price": {"cents": 999, "currency": "EUR"}},
    ),
    "an order of version 3": (
        {"version": 3, "id": "000003", "price": {"cents": 5, "currency": "JPY"}},
        {"version": 3, "id": "000003", "price": {"cents": 5, "currency": "JPY"}},
    ),
    "an order of version 1 for nothing": (
        {"id": "000004", "cents": 0},
        {"version": 3, "id": "000004", "price": {"cents": 0, "currency": "USD"}},
    ),
    "an order of version 1 with further fields": (
        {"id": "000005", "cents": 7, "cds": 3, "gift": {"to": "Ada"}},
        {"version": 3, "id": "000005", "cds": 3, "gift": {"to": "Ada"}, "price": {"cents": 7, "currency": "USD"}},
    ),
    "an order of version 2 with further fields": (
        {"version": 2, "id": "000006", "cents": 8, "currency": "EUR", "cds": 1},
        {"version": 3, "id": "000006", "cds": 1, "price": {"cents": 8, "currency": "EUR"}},
    ),
}
UNKNOWN = ({"version": 4, "id": "000007", "total": 1}, {"version": 0, "id": "000008", "cents": 1})


@exercise(
    "16.2",
    title="read five years",
    answer="function",
    expects="every event as version 3, and ValueError for a version that is not known",
    hint="Go one version at a time: 1 becomes 2, and 2 becomes 3. dict(event) is a copy, and pop takes a field out.",
)
async def reads_five_years(trial: Trial, answer: Any) -> str:
    """Show it events of all versions, and of some that there are not."""
    for what, (event, expected) in EVENTS.items():
        trial.case = what
        given = copy.deepcopy(event)
        found = answer(given)
        if given != event:
            raise NotYet(f"{what}: the event that was given is {given} now", "that it stays as it is")
        if found != expected:
            raise NotYet(f"{what} became {found!r}", repr(expected))
    for event in UNKNOWN:
        trial.case = what = f"an event of version {event['version']}"
        try:
            found = answer(copy.deepcopy(event))
        except ValueError:
            continue
        raise NotYet(f"{what} became {found!r}", "a ValueError")
    return "the store keeps what was written, and the newest program reads it"
