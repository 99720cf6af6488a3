"""The day before a workshop: can this machine carry the seats? A hub is started, and one seat does its first cell."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from mesh_lab.doctor import Finding, free_memory_bytes
from mesh_lab.errors import MeshLabError, SettingsError
from mesh_lab.seats import start
from mesh_lab.seats.api import HubApi, memory_bytes
from mesh_lab.seats.seat import course
from mesh_lab.seats.start import Workshop

CELL_WITHIN_S = 120.0
# A seat's browser keeps about ten connections open, each of which is two in the proxy; the hub has some of its own.
FILES_EACH, FILES_MORE = 40, 200
MIB = 2**20


def first_cell() -> str:
    """Return the code of the course's first cell, which starts three servers."""
    notebook = json.loads(course()["notebooks/00_start_here.ipynb"])
    return next("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")


def examine(workshop: Workshop) -> Iterator[Finding]:
    """Yield what was found, as it is found; most of it needs a hub, which is ended again and leaves nothing."""
    yield _files(workshop)
    # Beside the seats' own folder, as easy or as hard to reach; without the room, which may not be there yet.
    folder = workshop.folder.with_name(f"{workshop.folder.name}-check")
    trial = replace(workshop, folder=folder, lines=None)
    try:
        start.chosen_isolation(trial)
    except SettingsError as err:
        yield Finding("seats apart", "note", str(err))
        trial = replace(trial, isolation="none")  # the one seat of a check runs the course, and nobody sits there
    try:
        with start.serving(trial) as hub:
            yield Finding("hub", "ok", f"{hub.url} answers")
            for warning in start.warnings_of(trial) if trial.isolation == workshop.isolation else ():
                yield Finding("note well", "note", warning)
            yield from one_seat(hub, trial)
            yield _network(hub.url, trial)
    except (MeshLabError, OSError) as err:
        yield Finding("seats", "fault", str(err), "correct what the message names")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(workshop: Workshop) -> Finding:
    needed = FILES_MORE + FILES_EACH * workshop.seats
    if sys.platform == "win32":
        return Finding("open files", "note", "Windows has no limit to read; JupyterHub does not run there: use WSL")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= needed
    return Finding(
        "open files", "ok" if enough else "fault", f"{soft:,} for a process, {needed:,} needed",
        "" if enough else f"in this shell: ulimit -n {needed}",
    )  # fmt: skip


def one_seat(hub: HubApi, workshop: Workshop) -> Iterator[Finding]:
    """Yield how long the first seat needs to its first three servers, and whether there is memory for all seats."""
    seat, began = workshop.names[0], time.monotonic()
    hub.start(seat, within=start.SEAT_WITHIN_S)
    started = time.monotonic()
    hub.run(seat, first_cell(), within=CELL_WITHIN_S)
    took = f"{started - began:.1f} s to start, {time.monotonic() - started:.1f} s for the first cell, three servers"
    yield Finding("one seat", "ok", took)
    each, own = memory_bytes(hub.pid_of(seat)), memory_bytes(hub.process.pid, without=hub.pid_of(seat))
    needed, free = own + each * workshop.seats, free_memory_bytes() + own + each
    seen = f"{each / MIB:.0f} MiB for a seat with three servers, {own / MIB:.0f} MiB for the hub and its proxy: "
    seen += f"{needed / 2**30:.1f} GiB for {workshop.seats} seats, {free / 2**30:.1f} GiB free"
    fix = "" if needed < free else f"a bigger machine, or {int((free - own) / each)} seats here"
    yield Finding("memory", "fault" if fix else "ok", seen, fix)


def _network(url: str, workshop: Workshop) -> Finding:
    if start.only_here(workshop.address):
        return Finding(
            "network", "note", "only this machine reaches the seats", "--listen with its address in the network"
        )
    ask = f"in a browser of a second machine: {url}/hub/login"
    if not sys.stdin.isatty():
        return Finding("network", "note", f"not tried; while the seats run: {ask}")
    sys.stdout.write(f"Now, {ask}. Then press Enter here; with n and Enter if no page came. ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower().startswith("n"):
        return Finding(
            "network", "fault", "a second machine does not reach it",
            f"let the firewall pass port {workshop.port}, and ask whether the network keeps its machines apart",
        )  # fmt: skip
    return Finding("network", "ok", "a second machine reaches it")
