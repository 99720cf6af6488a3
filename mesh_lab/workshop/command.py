"""The commands ``mesh-lab workshop``, which the trainer runs, and ``mesh-lab join``, which a seat runs."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import nats.errors

from mesh_lab.errors import MeshLabError, SettingsError
from mesh_lab.processes import on_input_line, on_stop_signal
from mesh_lab.security.certificates import write_private
from mesh_lab.servers.start import LOOPBACK
from mesh_lab.workshop.board import Page, clock
from mesh_lab.workshop.plan import Plan
from mesh_lab.workshop.room import Room
from mesh_lab.workshop.seat import join, leave

FAULTS = ("cut", "double", "kill", "noise")
HELP = """\
  hint 07 words …    to one seat, shown with its next cell; hint all words … to everybody
  open 03            open a chapter for all
  begin 09:30        let the agenda begin then, or now: begin
  lower 07           take a raised hand as seen
  reset 07           clear a seat, put out whoever has it, and print its new line
  ask words …        ask everybody for a guess; closed by cut, double, kill and noise
  sell 5             each seat's store sells 5 orders a second; double: twice as many; sell 0: none
  kill n2, back n2   one of the room's servers
  cut 07, mend 07    the link of a seat's store
  work 300           hand out 300 orders to pack to the stores' queue group
  noise 07, limit 20 one store sells 500 a second, until sell; at most 20 orders of each wait at the intake
  check count        of everybody together: count, share or noise
  quit               close the room
"""
NO_INPUT = "Standard input has ended: nothing can be typed any more; the room stays open until SIGTERM or Ctrl-C.\n"


def run_workshop(*, lines: Path | None, agenda: Path | None, **given: Any) -> int:
    """Open a room, and do what the trainer types until ``quit``, Ctrl-C or SIGTERM; return the exit code.

    Args:
        lines: File for the seats' lines, one for each seat; ``None``: they are printed.
        agenda: File with a table as the trainer's handbook has them, for the board; ``None`` for no plan.
        given: Arguments of :meth:`~mesh_lab.workshop.room.Room.open`.
    """

    async def until_closed() -> None:
        over = asyncio.Event()
        on_stop_signal(over.set)
        plan = None if agenda is None else _plan(agenda, given["exercises"])
        room = await Room.open(plan=plan, **given)
        page = Page(room)
        typed: asyncio.Queue[str] = asyncio.Queue()
        try:
            _say(_opened(room, page, given["keep"], lines))
            on_input_line(lambda line: typed.put_nowait(line.decode(errors="replace")), at_end=lambda: _say(NO_INPUT))
            obeying = asyncio.create_task(_obey(room, typed, over, lines))
            await over.wait()
            obeying.cancel()
        finally:
            page.close()
            await room.close()
        stays = "nothing is kept" if given["keep"] is None else "the same command goes on with it"
        _say(f"{room.name!r} is closed; {stays}.\n")

    asyncio.run(until_closed())
    return 0


def _plan(agenda: Path, exercises: Collection[str]) -> Plan:
    try:
        return Plan.read(agenda.read_text(encoding="utf-8"), exercises)
    except OSError as err:
        raise SettingsError(
            f"the agenda {agenda} cannot be read: {err}; copy a table of the trainer's handbook"
        ) from err


def run_join(text: str, *, name: str, leaving: bool) -> int:
    """Join the room of a line, or leave the one that was joined; print what was done, and return the exit code."""
    if leaving:
        leave()
        _say("This machine is no seat any more; what you solved stays in mesh-lab progress.\n")
        return 0
    card = asyncio.run(join(text, name=name))
    _say(
        f"You are {card.name!r}, seat {card.seat} of {card.room!r}. Restart the kernels that run: then checks report.\n"
    )
    return 0


def _opened(room: Room, page: Page, keep: Path | None, lines: Path | None) -> str:
    here = all(LOOPBACK in url for url in room.mesh.urls)
    reach = "this machine alone" if here else "every machine that reaches this address, with TLS and a seat's line only"
    stays = "nothing is kept" if keep is None else f"kept in {keep}, with the keys of all seats"
    told = [
        f"{room.name!r} is open: {len(room.seats)} seats, {stays}.",
        f"servers:  {', '.join(room.mesh.urls)}, for {reach}",
        f"stores:   {', '.join(room.leaves)}, for leaf nodes of the same, each with its seat's key",
    ]
    told.append(f"board:    {page.address}  (this machine alone; who has this address can read it)")
    if lines is not None:
        _write(room, lines)
        told.append(f"lines:    {lines}, one for each seat; each is a secret until its seat has joined")
    else:
        told += [f"seat {number}:  mesh-lab join {line}" for number, line in zip(room.seats, room.lines, strict=True)]
    return "\n".join(told) + f"\n{HELP}"


async def _obey(room: Room, typed: "asyncio.Queue[str]", over: asyncio.Event, lines: Path | None) -> None:
    """Do what the trainer types, one line after the other, and say of each what came of it."""
    while True:
        verb, _, rest = (await typed.get()).strip().partition(" ")
        if verb == "quit":
            over.set()
        elif verb:
            try:
                _say(f"{await _done(room, verb, rest.strip(), lines)}\n")
            except (MeshLabError, nats.errors.Error, OSError) as err:
                _say(f"{str(err) or repr(err)}\n")


async def _done(room: Room, verb: str, rest: str, lines: Path | None) -> str:
    whom, _, words = rest.partition(" ")
    seat = whom.zfill(2)
    if verb == "hint" and words.strip():
        await room.hint(words, None if whom == "all" else seat)
        return f"sent to {'all' if whom == 'all' else f'seat {seat}'}"
    if verb == "begin":
        await room.begin(_moment(whom))
        return f"the agenda {'begins' if room.plan else 'would begin, with --agenda,'} at {clock(room.began)}"
    if verb == "reset" and whom:
        line = await room.reset(seat)
        if lines is None:
            return f"seat {seat} is free again:  mesh-lab join {line}"
        _write(room, lines)
        return f"seat {seat} is free again; its new line is in {lines}"
    if (told := await _together(room, verb, rest)) is not None:
        return told
    acts: dict[str, Callable[[str], Awaitable[None]]] = {"open": room.open_chapter, "lower": room.lower}
    if verb in acts and whom:
        await acts[verb](seat)
        return f"{verb} {seat}: done"
    if usage := [line for line in HELP.splitlines() if verb in line[:21].replace(",", "").split()]:
        return f"{verb!r} needs more, or something else:\n" + "\n".join(usage)
    return f"{verb!r} is not understood; there are:\n{HELP}".rstrip()


async def _together(room: Room, verb: str, rest: str) -> str | None:
    """Do what the seats do together, and return what came of it; ``None`` if the line is about something else."""
    seat = rest.zfill(2)
    if verb in FAULTS:
        room.guessing = False
    if verb in ("kill", "back") and rest:
        await (room.mesh.kill if verb == "kill" else room.revive)(rest)
    elif verb in ("cut", "mend") and rest:
        await room.cut(seat, mend=verb == "mend")
    elif verb == "ask" and rest:
        await room.ask(rest)
    elif verb == "check" and rest:
        return await (await room.begin_together()).check(rest)
    elif verb in ("sell", "work", "limit") and rest.isdecimal():
        together = await room.begin_together()
        if verb == "limit":
            await together.limit(int(rest))
        else:
            (together.sell if verb == "sell" else together.hand_out)(int(rest))
    elif verb == "double":
        together = await room.begin_together()
        together.sell(2 * together.told.pace)
        return f"double: {together.told.pace:g} orders a second of each store"
    elif verb == "noise" and rest:
        (await room.begin_together()).make_noise(room.taken(seat).number)
    else:
        return None
    return f"{verb} {rest}".strip() + ": done"


def _moment(typed: str) -> float:
    """Return the moment of today that a trainer typed, ``09:30``; now, if nothing was typed."""
    if not typed:
        return time.time()
    try:
        hour = time.strptime(typed, "%H:%M")
    except ValueError as err:
        raise SettingsError(f"begin {typed}: expected hours and minutes, such as begin 09:30") from err
    return time.mktime((*time.localtime()[:3], hour.tm_hour, hour.tm_min, 0, 0, 0, -1))


def _write(room: Room, lines: Path) -> None:
    write_private(lines, ("\n".join(room.lines) + "\n").encode())


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
