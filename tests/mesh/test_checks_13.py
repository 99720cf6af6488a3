"""The exercises of notebook 13: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
from itertools import pairwise

import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("13_survive_the_worst")


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


async def test_the_solutions_in_the_notebook_are_correct(mesh):
    for number in CELLS.numbers:
        await CELLS.solved(number)


def finding(
    *,
    promised=("stored",),
    sent=("stored", "unknown", "refused"),
    doubled_of=None,
    twice=lambda ids, id_: ids.count(id_) > 1,
    kind=set,
    names=None,
):
    async def at_all(attempts, stored):
        raise AssertionError("only its shape matters")

    def findings(attempts, stored):
        known = {attempt.id for attempt in attempts if attempt.outcome in sent}
        copies = [message.id for message in stored]
        of = {attempt.id for attempt in attempts if doubled_of is None or attempt.outcome in doubled_of}
        found = {
            "lost": kind({attempt.id for attempt in attempts if attempt.outcome in promised} - set(copies)),
            "unexpected": kind(set(copies) - known),
            "doubled": kind({id_ for id_ in copies if twice(copies, id_) and (doubled_of is None or id_ in of)}),
        }
        return {name: found[name] for name in names or found}

    return at_all if kind is None else findings


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(promised=("stored", "unknown")), "000003 is among lost: unknown, says its writer"),
        (finding(promised=("stored", "unknown", "refused")), "000003 is among lost"),
        (finding(promised=()), "000002 is not among lost"),
        (finding(sent=("stored",)), "000004 is among unexpected: unknown, says its writer; in the stream 1 times"),
        (finding(doubled_of=("stored",)), "000007 is not among doubled"),
        (finding(doubled_of=("stored", "unknown", "refused")), "999999 is not among doubled"),
        (finding(twice=lambda ids, id_: ids.count(id_) == 2), "000007 is not among doubled"),
        (finding(twice=lambda ids, id_: (id_, id_) in pairwise(ids)), "000006 is not among doubled"),
        (finding(kind=sorted), "lost is a list"),
        (finding(names=("lost", "doubled")), "['doubled', 'lost'] was returned"),
        (finding(kind=None), "expected a plain function"),
        (lambda attempts, stored: len(attempts) - len(stored), "int was returned"),
    ],
    ids=[
        "unknown is lost", "all are lost", "none is lost", "unknown is unexpected", "doubled of stored",
        "doubled of sent", "exactly two", "neighbours only", "lists", "two keys", "async", "a number",
    ],
)  # fmt: skip
async def test_other_findings_are_refused(mesh, answer, said):
    assert said in await refused("13.1", answer)


async def rolls_none(mesh):
    await mesh.ready()


async def rolls_two(mesh):
    for name in ("n1", "n2"):
        await mesh.restart(name)


async def kills_one_by_one(mesh):
    for name in mesh.servers:
        await mesh.kill(name)
        await mesh.restart(name)
        await mesh.ready()


async def kills_and_leaves(mesh):
    for name in mesh.servers:
        await mesh.kill(name)


async def rolls_all_at_once(mesh):
    await asyncio.gather(*(asyncio.to_thread(server.stop) for server in mesh.servers.values()))
    for server in mesh.servers.values():
        server.start()
    await mesh.ready()


async def only_pauses(mesh):
    for name in mesh.servers:
        await mesh.pause(name)
        await mesh.resume(name)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (rolls_none, "n1 is the same process as before"),
        (rolls_two, "n3 is the same process as before"),
        (kills_one_by_one, "for more than 3 s nothing was acknowledged"),
        (kills_and_leaves, "n1 is killed in the end"),
        (rolls_all_at_once, "for more than 3 s nothing was acknowledged"),
        (only_pauses, "n1 is the same process as before"),
    ],
    ids=["none", "two of three", "killed", "killed and left", "all at once", "paused"],
)
async def test_another_way_to_replace_servers_is_refused(mesh, answer, said):
    assert said in await refused("13.2", answer)
