"""Checks of notebook 13: an audit that finds what is wrong, and servers replaced while orders flow."""

import asyncio
from typing import Any

from mesh_lab import Mesh
from mesh_lab.chaos import Attempt, Outcome, Stored, Writers, audit, caught_up, read_stream
from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.orders import STREAM, open_event_store
from mesh_lab.patterns import eventually, wait_routable

# 13.1

# What became of each order, as its writer knows it, and how often it is stored.
BAD_DAY: dict[str, tuple[Outcome, int]] = {
    "000001": ("stored", 1),
    "000002": ("stored", 0),
    "000003": ("unknown", 0),
    "000004": ("unknown", 1),
    "000005": ("refused", 0),
    "000006": ("stored", 2),
    "000007": ("unknown", 3),
    "000008": ("stored", 0),
    "000009": ("stored", 1),
}
STRANGERS = {"999998": 1, "999999": 2}
WRONG = {
    "lost": {"000002", "000008"},
    "unexpected": {"999998", "999999"},
    "doubled": {"000006", "000007", "999999"},
}
QUIET_DAY = {"000001", "000009"}


def _story(id_: str) -> str:
    """Return in words what is known of an order."""
    if id_ not in BAD_DAY:
        return f"never sent, stored {STRANGERS.get(id_, 0)} times"
    outcome, copies = BAD_DAY[id_]
    return f"{outcome}, says its writer; in the stream {copies} times"


@exercise(
    "13.1",
    title="find what is wrong",
    answer="function",
    expects="the ids that are lost, unexpected and doubled",
    hint="Only stored is a promise. Of an order whose outcome is unknown, there may be a copy or none; two are one too "
    "many. collections.Counter counts.",
)
async def finds_what_is_wrong(trial: Trial, answer: Any) -> str:
    """Show it a quiet day and a bad one."""
    attempts = [
        Attempt("w1", number, id_, number * 1.0, number + 0.5, outcome)
        for number, (id_, (outcome, _)) in enumerate(BAD_DAY.items())
    ]
    numbers = {**{id_: copies for id_, (_, copies) in BAD_DAY.items()}, **STRANGERS}
    # The first copies of all, then the second ones: what came again came later.
    copies = [id_ for again in range(max(numbers.values())) for id_, number in numbers.items() if number > again]
    stored = [Stored(seq, id_) for seq, id_ in enumerate(copies, start=1)]
    quiet = [a for a in attempts if a.id in QUIET_DAY], [s for s in stored if s.id in QUIET_DAY]
    _expect_findings(answer, "on a quiet day", *quiet, {kind: set() for kind in WRONG})
    _expect_findings(answer, "on a bad day", attempts, stored, WRONG)
    return "what nobody was promised cannot be lost"


def _expect_findings(
    answer: Any, day: str, attempts: list[Attempt], stored: list[Stored], wrong: dict[str, set[str]]
) -> None:
    found = answer(list(attempts), list(stored))
    if not isinstance(found, dict) or set(found) != set(wrong):
        seen = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise NotYet(f"{day}, {seen} was returned", "a dictionary with lost, unexpected and doubled")
    for kind, expected in wrong.items():
        if not isinstance(found[kind], set):
            raise NotYet(f"{kind} is a {type(found[kind]).__name__}", "a set of ids")
        if missing := sorted(expected - found[kind]):
            raise NotYet(f"{day}, {missing[0]} is not among {kind}: {_story(missing[0])}", "it there")
        if more := sorted(map(str, found[kind] - expected)):
            raise NotYet(f"{day}, {more[0]} is among {kind}: {_story(more[0])}", "it elsewhere, or nowhere")


# 13.2

LONGEST_GAP_S = 3.0
TRIES = 3
PAUSE_S = 0.1  # far more than the few messages of a hand-over take


@exercise(
    "13.2",
    title="replace every server",
    answer="async function",
    expects="all three servers restarted, nothing lost, and no gap of more than 3 s",
    hint="One after the other, and the next one only when all are well again: await mesh.ready() says when.",
    within=180.0,
)
async def replaces_every_server(trial: Trial, answer: Any) -> str:
    """Let two writers write to a mesh while it is rolled.

    A leader that hands over while the machine stalls may find no peer that listens, and then it takes an election:
    such a gap is no verdict, and the servers are replaced again.
    """
    for _ in range(TRIES):
        with MachineClock() as clock:
            gap_s = await _longest_gap_s(trial, answer)
        if gap_s <= LONGEST_GAP_S:
            return "three servers are new, and no order waited for an election"
        if clock.longest_pause_s < PAUSE_S:
            break
    seen = f"for more than {LONGEST_GAP_S:.0f} s nothing was acknowledged"
    raise NotYet(seen, "servers that hand over before they go")


async def _longest_gap_s(trial: Trial, answer: Any) -> float:
    """Return for how long at most nothing was acknowledged, when the answer did replace every server."""
    async with await trial.own_mesh(servers=3) as own:
        client = await trial.client(on=own)
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        before = await asyncio.to_thread(_starts, own)
        async with Writers(own, number=2) as writing:
            await eventually(lambda: len(writing.history) >= 100, within=30.0)
            await answer(own)
            gone = [name for name, server in own.servers.items() if server.state != "running"]
            if not gone:
                done = len(writing.history)
                await eventually(lambda: len(writing.history) >= done + 100, within=40.0)
            await writing.stop(wait=not gone)
        if gone:
            raise NotYet(f"{gone[0]} is {own.servers[gone[0]].state} in the end", "that it runs again")
        await own.ready()
        after = await asyncio.to_thread(_starts, own)
        if same := [name for name in own.servers if after[name] == before[name]]:
            raise NotYet(f"{same[0]} is the same process as before", "that each was restarted")
        await caught_up(own, writing.history)
        found = audit(writing.history, await read_stream(client, STREAM))
        if found.broken:
            raise NotYet(f"orders are {' and '.join(found.broken)}", "each acknowledged order stored once")
        return max((gap.length_s for gap in writing.history.gaps()), default=0.0)


def _starts(mesh: Mesh) -> dict[str, str]:
    """Return when each server's process was started, as it says itself."""
    return {name: server.monitor.varz()["start"] for name, server in mesh.servers.items() if server.monitor}
