"""What a notebook has of a workshop's room, where this machine is a seat in one: its reports, its hand, its news.

Everywhere else, nothing of the room is loaded.
"""

import sys
from typing import TYPE_CHECKING

from mesh_lab.errors import StoreError
from mesh_lab.measure.local_store import data_dir

if TYPE_CHECKING:
    from mesh_lab.workshop.protocol import State
    from mesh_lab.workshop.seat import Reporter

STATES: "dict[str, State]" = {"not attempted": "at it", "not yet": "not yet", "correct": "solved"}
"""What the room is told of a verdict."""


def report(number: str, state: str, words: str) -> None:
    """Report the verdict on an answer; returns at once and never raises."""
    if (room := _reporter()) is not None:
        room.note(number, STATES[state], words)


def show_news(_cell: object = None) -> None:
    """Print the trainer's hints, and once that the room is away."""
    if (room := _reporter()) is not None:
        sys.stdout.writelines(f"{said}\n" for said in room.news())


def hand(words: str = "", *, down: bool = False) -> None:
    """Raise the seat's hand, ``hand("which inbox is it?")``, or lower it, ``hand(down=True)``."""
    if (room := _reporter()) is None:
        sys.stdout.write("This machine is no seat of a workshop; mesh-lab join makes it one.\n")
        return
    room.note("hand", "down" if down else "up", "" if down else words)
    sys.stdout.write("Your hand is down.\n" if down else "Your hand is up; hand(down=True) lowers it.\n")


def guess(words: object) -> None:
    """Send what you expect to the room, ``guess(0)``, before it happens; the board shows how many guess what."""
    if (room := _reporter()) is None:
        sys.stdout.write("This machine is no seat of a workshop; mesh-lab join makes it one.\n")
        return
    room.note("guess", "up", str(words))
    sys.stdout.write(f"Your guess: {words}; another one replaces it.\n")


def _reporter() -> "Reporter | None":
    try:
        joined = (data_dir() / "room.json").exists()
    except StoreError:  # whatever stores something says so
        return None
    if not joined:
        return None
    from mesh_lab.workshop.seat import reporter

    return reporter()
