"""The exercises of notebook 14: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
from itertools import pairwise

import pytest
from exercise_cells import ExerciseCells, accepted, refused, refused_side_by_side

CELLS = ExerciseCells("14_survive_the_worst")


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


right = finding()


def as_numbers(attempts, stored):
    """Compare 9 and 000009 as one order."""
    found = right(attempts, stored)
    known = {int(attempt.id) for attempt in attempts}
    return {**found, "unexpected": {id_ for id_ in found["unexpected"] if int(id_) not in known}}


def needs_messages(attempts, stored):
    assert stored[-1].seq == len(stored)
    return right(attempts, stored)


def needs_attempts(attempts, stored):
    assert max(attempt.ended_s for attempt in attempts) > 0
    return right(attempts, stored)


sent_ever: set[str] = set()


def remembers(attempts, stored):
    sent_ever.update(attempt.id for attempt in attempts)
    found = right(attempts, stored)
    return {**found, "unexpected": {message.id for message in stored} - sent_ever}


def in_their_order(attempts, stored):
    """Take it that what came again came last, and that strangers come after all others."""
    ids = [message.id for message in stored]
    first = len(set(ids))
    return {**right(attempts, stored), "doubled": set(ids[first:])}


def of_text(attempts, stored):
    """Read the id as six digits."""
    found = right(attempts, stored)
    return {kind: {id_ for id_ in ids if len(id_) == 6 and id_.isdigit()} for kind, ids in found.items()}


def empties(attempts, stored):
    found = right(attempts, stored)
    return {kind: ids for kind, ids in found.items() if ids}


def counts_strangers_once(attempts, stored):
    found = right(attempts, stored)
    return {**found, "doubled": found["doubled"] - found["unexpected"]}


def lost_is_not_stored(attempts, stored):
    found, there = right(attempts, stored), {message.id for message in stored}
    return {**found, "lost": {attempt.id for attempt in attempts if attempt.outcome != "unknown"} - there}


def first_thousand(attempts, stored):
    return right(attempts[:1_000], stored[:1_000])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(promised=("stored", "unknown")), "000003 is among lost: unknown, says its writer"),
        (finding(promised=("stored", "unknown", "refused")), "000003 is among lost"),
        (finding(promised=()), "000002 is not among lost"),
        (finding(sent=("stored",)), "000004 is among unexpected: unknown, says its writer; in the stream once"),
        (finding(doubled_of=("stored",)), "000007 is not among doubled"),
        (finding(doubled_of=("stored", "unknown", "refused")), "999999 is not among doubled"),
        (finding(twice=lambda ids, id_: ids.count(id_) == 2), "000007 is not among doubled"),
        (finding(twice=lambda ids, id_: (id_, id_) in pairwise(ids)), "000006 is not among doubled"),
        (finding(kind=sorted), "lost is a list"),
        (finding(names=("lost", "doubled")), "a dictionary with ['doubled', 'lost'] was returned"),
        (finding(kind=None), "expected a plain function"),
        (lambda attempts, stored: len(attempts) - len(stored), "int was returned"),
        (
            finding(sent=("stored", "unknown")),
            "on a bad day, 000010 is among unexpected: refused, says its writer; in the stream once",
        ),
        (finding(doubled_of=("stored", "unknown")), "000011 is not among doubled: refused, says its writer"),
        (finding(twice=lambda ids, id_: ids.count(id_) > 2), "000006 is not among doubled"),
        (as_numbers, "on a bad day, "),
        (needs_messages, "on a day after which the stream is empty, and it raised IndexError"),
        (needs_attempts, "on a day on which nothing was sent, and it raised ValueError"),
        (remembers, "nothing was sent, 000001 is not among unexpected: never sent, stored once"),
        (in_their_order, "on another bad day, "),
        (of_text, "on a bad day, 9 is not among unexpected"),
        (empties, "on a quiet day, a dictionary with [] was returned"),
        (counts_strangers_once, "on a bad day, 999999 is not among doubled: never sent, stored 2 times"),
        (lost_is_not_stored, "on a bad day, 000005 is among lost: refused, says its writer; in the stream 0 times"),
        (first_thousand, "on a long day, "),
        (lambda attempts, stored: right(attempts, stored) and None, "on a quiet day, None was returned"),
    ],
    ids=[
        "unknown is lost", "all are lost", "none is lost", "unknown is unexpected", "doubled of stored",
        "doubled of sent", "exactly two", "neighbours only", "lists", "two keys", "async", "a number",
        "refused is unexpected", "refused is not doubled", "three and more", "ids as numbers", "needs messages",
        "needs attempts", "remembers", "in their order", "six digits", "no empty sets", "strangers once",
        "refused is lost", "the first thousand", "none",
    ],
)  # fmt: skip
async def test_other_findings_are_refused(mesh, answer, said):
    assert said in await refused("14.1", answer)


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
    await asyncio.sleep(0.05)  # work: all are down
    for server in mesh.servers.values():
        server.start()
    await mesh.ready()


async def only_pauses(mesh):
    for name in mesh.servers:
        await mesh.pause(name)
        await mesh.resume(name)


async def rolls_one_three_times(mesh):
    for _ in mesh.servers:
        await mesh.restart("n1")
        await mesh.ready()


async def reloads(mesh):
    await mesh.reload(users_config="")


async def rolls_later(mesh):
    rolling = asyncio.create_task(rolls_and_says_so(mesh))
    rolling.add_done_callback(lambda task: task.cancelled() or task.exception())


async def rolls_and_says_so(mesh):
    for name in mesh.servers:
        await mesh.restart(name)


async def leaves_the_last_stopped(mesh):
    for name in ("n1", "n2"):
        await mesh.restart(name)
        await mesh.ready()
    await asyncio.to_thread(mesh.servers["n3"].stop)


# A few side by side, each on servers of its own.
@pytest.mark.parametrize(
    "wrong",
    [
        {
            rolls_none: "n1 is the same process as before",
            rolls_two: "n3 is the same process as before",
            only_pauses: "n1 is the same process as before",
        },
        {
            rolls_one_three_times: "n2 is the same process as before",
            reloads: "n1 is the same process as before",
            rolls_later: "n",
        },
        {
            kills_one_by_one: "servers were killed, and for more than 3 s nothing was acknowledged",
            kills_and_leaves: "n1 is killed in the end",
        },
        {
            rolls_all_at_once: "several servers were down at once, and for more than 3 s nothing was acknowledged",
            leaves_the_last_stopped: "n3 is stopped in the end; expected that it runs again",
        },
    ],
    ids=["too few", "one, none, later", "killed", "all at once, and one left stopped"],
)
async def test_another_way_to_replace_servers_is_refused(mesh, wrong):
    verdicts = await refused_side_by_side("14.2", *wrong)
    for said, verdict in zip(wrong.values(), verdicts, strict=True):
        assert said in verdict


async def test_servers_stopped_and_started_by_themselves_in_another_order_are_accepted(mesh):
    async def rolls_backwards(mesh):
        for server in reversed(mesh.servers.values()):
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await mesh.ready()

    await accepted("14.2", rolls_backwards)


@pytest.mark.parametrize("kind", [set, frozenset])
async def test_other_ways_to_find_what_is_wrong_are_accepted(mesh, kind):
    def findings(attempts, stored):
        outcomes = {attempt.id: attempt.outcome for attempt in attempts}
        once, again = set(), set()
        for message in stored:
            (again if message.id in once else once).add(message.id)
        lost = [id_ for id_, outcome in outcomes.items() if outcome == "stored" and id_ not in once]
        return {"doubled": kind(again), "unexpected": kind(once.difference(outcomes)), "lost": kind(lost)}

    await accepted("14.1", findings)
