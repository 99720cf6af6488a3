"""The exercises of notebook 16: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import hashlib

import pytest
from exercise_cells import ExerciseCells, accepted, refused

CELLS = ExerciseCells("16_keep_it_running")


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


async def test_the_solutions_in_the_notebook_are_correct(mesh):
    for number in CELLS.numbers:
        await CELLS.solved(number)


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listed(folder):
    return [line.split("  ", 1) for line in (folder / "SHA256SUMS").read_text().splitlines()]


def only_missing(folder):
    return sorted(name for _, name in listed(folder) if not (folder / name).exists())


def stumbles_over_missing(folder):
    return sorted(
        name for wanted, name in listed(folder) if (folder / name).exists() and checksum(folder / name) != wanted
    )


def in_the_order_of_the_list(folder):
    return [n for wanted, n in listed(folder) if not (folder / n).exists() or checksum(folder / n) != wanted]


def all_files_that_are_not_listed_too(folder):
    known = {wanted for wanted, _ in listed(folder)}
    there = [path.name for path in folder.iterdir() if path.name != "SHA256SUMS" and checksum(path) not in known]
    return sorted({*there, *only_missing(folder)})


def cuts_names_at_blanks(folder):
    pairs = [line.split()[:2] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    return sorted(n for wanted, n in pairs if not (folder / n).exists() or checksum(folder / n) != wanted)


def clears_up(folder):
    found = sorted(in_the_order_of_the_list(folder))
    for name in found:
        (folder / name).unlink(missing_ok=True)
    return found


def compares_sizes(folder):
    sizes = {"stream.tar.s2": 512_006, "backup.json": 31}
    there = {path.name: path.stat().st_size for path in folder.iterdir()}
    return sorted(name for _, name in listed(folder) if there.get(name) != sizes.get(name, 11))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (only_missing, "a backup with one byte changed: [] was returned; expected ['stream.tar.s2']"),
        (stumbles_over_missing, "a backup without its data: [] was returned"),
        (in_the_order_of_the_list, "nothing as it was: ['stream.tar.s2', 'backup.json'] was returned"),
        (all_files_that_are_not_listed_too, "somebody left a note: ['note.txt'] was returned; expected []"),
        (cuts_names_at_blanks, "a backup as it was saved: ['my'] was returned; expected []"),
        (clears_up, "its files are others now; expected that they are only read"),
        (compares_sizes, "one byte changed: [] was returned"),
    ],
)
async def test_a_look_that_misses_damage_is_refused(mesh, answer, said):
    assert said in await refused("16.1", answer)


def reads_all_at_once(folder):
    return sorted(in_the_order_of_the_list(folder))


def as_a_set_of_missing_and_changed(folder):
    missing = set(only_missing(folder))
    return sorted(missing | {n for wanted, n in listed(folder) if n not in missing and checksum(folder / n) != wanted})


async def test_another_way_to_find_the_damage_is_accepted(mesh):
    await accepted("16.1", reads_all_at_once)
    await accepted("16.1", as_a_set_of_missing_and_changed)


def upcasting(*, default="USD", keep=True, in_place=False, unknown=True, version=3, falsy=False):
    def upcast(event):
        event = event if in_place else dict(event)
        found = event.pop("version", 1)
        if found not in (1, 2, 3) and unknown:
            raise ValueError(found)
        if found in (1, 2):
            cents, currency = event.pop("cents"), event.pop("currency", default)
            if falsy and not cents:
                cents = None
            event["price"] = {"cents": cents, "currency": currency}
        if not keep:
            event = {"id": event["id"], "price": event["price"]}
        return event | ({"version": version} if version else {})

    return upcast


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (upcasting(default="EUR"), "an order of version 1 became"),
        (upcasting(keep=False), "an order of version 1 with further fields became"),
        (upcasting(in_place=True), "the event that was given is"),
        (upcasting(unknown=False), "an event of version 4 became"),
        (upcasting(version=None), "an order of version 1 became {'id': '000001', 'price'"),
        (upcasting(falsy=True), "an order of version 1 for nothing became"),
        (lambda event: None if event["id"] != "000001" else upcasting()(event), "version 2, in euros became None"),
    ],
)
async def test_a_reader_that_changes_or_loses_something_is_refused(mesh, answer, said):
    assert said in await refused("16.2", answer)


def all_at_once(event):
    if event.get("version", 1) not in (1, 2, 3):
        raise ValueError("unknown version")
    if event.get("version") == 3:
        return event
    rest = {name: value for name, value in event.items() if name not in ("cents", "currency")}
    return {**rest, "version": 3, "price": {"cents": event["cents"], "currency": event.get("currency", "USD")}}


async def test_another_way_to_read_five_years_is_accepted(mesh):
    await accepted("16.2", upcasting())
    await accepted("16.2", all_at_once)
