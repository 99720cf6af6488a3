"""Checks of notebook 14: an audit that finds what is wrong, and servers replaced while orders flow."""

import asyncio
from contextlib import suppress
from typing import Any, NamedTuple

from mesh_lab import Mesh
from mesh_lab.chaos import Attempt, Outcome, Stored, Writers, audit, caught_up, read_stream
from mesh_lab.notebook.exercises import MachineClock, NotYet, Trial, exercise
from mesh_lab.orders import STREAM, open_event_store
from mesh_lab.patterns import cancel_and_join, eventually, wait_routable

# 14.1

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
    "000010": ("refused", 1),
    "000011": ("refused", 2),
    "000012": ("unknown", 2),
}
STRANGERS = {"999998": 1, "999999": 2, "9": 1}
ORDERS_ON_A_LONG_DAY = 2_000


class _Day(NamedTuple):
    """What became of each order, how often strangers' are stored, and whether the first copies come first."""

    name: str
    orders: dict[str, tuple[Outcome, int]]
    strangers: dict[str, int]
    backwards: bool = False

    def wrong(self) -> dict[str, set[str]]:
        """Return what there is to find."""
        copies = {**{id_: number for id_, (_, number) in self.orders.items()}, **self.strangers}
        return {
            "lost": {id_ for id_, (outcome, number) in self.orders.items() if outcome == "stored" and not number},
            "unexpected": set(self.strangers),
            "doubled": {id_ for id_, number in copies.items() if number > 1},
        }

    def told(self) -> tuple[list[Attempt], list[Stored]]:
        """Return the attempts, of two writers, and the messages, with what came again after what came once."""
        attempts = [
            Attempt(f"w{at % 2}", at // 2, id_, at * 1.0, at + 0.5, outcome)
            for at, (id_, (outcome, _)) in enumerate(self.orders.items())
        ]
        numbers = {**{id_: number for id_, (_, number) in self.orders.items()}, **self.strangers}
        copies = [id_ for again in range(max(numbers.values(), default=0)) for id_ in numbers if numbers[id_] > again]
        if self.backwards:
            copies, attempts = copies[::-1], attempts[::-1]
        return attempts, [Stored(seq, id_) for seq, id_ in enumerate(copies, start=1)]

    def story(self, id_: str) -> str:
        """Return in words what is known of an order."""
        if id_ not in self.orders:
            return f"never sent, stored {self._times(self.strangers.get(id_, 0))}"
        outcome, copies = self.orders[id_]
        return f"{outcome}, says its writer; in the stream {self._times(copies)}"

    @staticmethod
    def _times(number: int) -> str:
        return "once" if number == 1 else f"{number} times"


def _renamed(orders: dict[str, tuple[Outcome, int]]) -> dict[str, tuple[Outcome, int]]:
    return {f"kühl-{10 - at}": of for at, of in enumerate(orders.values())}


DAYS = (
    _Day("on a quiet day", {"000001": ("stored", 1), "000009": ("stored", 1)}, {}),
    _Day("on a bad day", BAD_DAY, STRANGERS),
    _Day("on another bad day", _renamed(BAD_DAY), {"fremd": 3}, backwards=True),
    _Day("on a day on which nothing was sent", {}, {**STRANGERS, "000001": 1}),
    _Day("on a day after which the stream is empty", {id_: (of, 0) for id_, (of, _) in BAD_DAY.items()}, {}),
    _Day("on a day without orders", {}, {}),
    _Day(
        "on a long day",
        {f"{n:06}": ("stored", int(n not in (7, 1_999)) + (n == 1_500)) for n in range(ORDERS_ON_A_LONG_DAY)},
        {},
    ),
)


@exercise(
    "14.1",
    title="find what is wrong",
    answer="function",
    expects="the ids that are lost, unexpected and doubled",
    hint="Only stored is a promise. Of an order whose outcome is unknown, there may be a copy or none; two are one too "
    "many. collections.Counter counts.",
)
async def finds_what_is_wrong(trial: Trial, answer: Any) -> str:
    """Show it quiet days and bad ones."""
    for day in DAYS:
        trial.case = day.name
        attempts, stored = day.told()
        found, wrong = answer(attempts, stored), day.wrong()
        if not isinstance(found, dict) or set(found) != set(wrong):
            kind = "None" if found is None else type(found).__name__
            seen = f"a dictionary with {sorted(map(str, found))}" if isinstance(found, dict) else kind
            raise NotYet(f"{day.name}, {seen} was returned", "a dictionary with lost, unexpected and doubled")
        for kind, expected in wrong.items():
            if not isinstance(found[kind], set | frozenset):
                raise NotYet(f"{kind} is a {type(found[kind]).__name__}", "a set of ids")
            if missing := sorted(expected - found[kind]):
                raise NotYet(f"{day.name}, {missing[0]} is not among {kind}: {day.story(missing[0])}", "it there")
            if more := sorted(map(str, found[kind] - expected)):
                raise NotYet(f"{day.name}, {more[0]} is among {kind}: {day.story(more[0])}", "it elsewhere, or nowhere")
    return "what nobody was promised cannot be lost"


# 14.2

LONGEST_GAP_S = 3.0
TRIES = 3
PAUSE_S = 0.1  # far more than the few messages of a hand-over take
ROLLED_WITHIN_S = 60.0
PACE_S = 0.003  # orders enough to find a gap, few enough to read them all


@exercise(
    "14.2",
    title="replace every server",
    answer="async function",
    expects="all three servers restarted, nothing lost, and no gap of more than 3 s",
    hint="One after the other, and the next one only when all are well again: await mesh.ready() says when.",
    within=180.0,
)
async def replaces_every_server(trial: Trial, answer: Any) -> str:
    """Let two writers write to a mesh while it is rolled.

    A leader that hands over while the machine stalls may find no peer that listens, and then it takes an election:
    such a gap is no verdict, and the servers are replaced again; unless the answer left it nobody to hand over to.
    """
    for _ in range(TRIES):
        with MachineClock() as clock:
            gap_s, how = await _longest_gap_s(trial, answer)
        if gap_s <= LONGEST_GAP_S:
            return "three servers are new, and no order waited for an election"
        if how or clock.longest_pause_s < PAUSE_S:
            break
    seen = f"{how}for more than {LONGEST_GAP_S:.0f} s nothing was acknowledged"
    raise NotYet(seen, "servers that hand over before they go, one at a time")


async def _longest_gap_s(trial: Trial, answer: Any) -> tuple[float, str]:
    """Return for how long at most nothing was acknowledged, and what the answer did that no server can hand over in."""
    async with await trial.own_mesh(servers=3) as own:
        client = await trial.client(on=own)
        await open_event_store(client, replicas=3)
        await wait_routable(client, STREAM)
        before = await asyncio.to_thread(_starts, own)
        seen = list[frozenset[str]]()
        async with Writers(own, number=2, pace=PACE_S) as writing:
            await eventually(lambda: len(writing.history) >= 100, within=30.0)
            looking = asyncio.create_task(_look_on(own, seen))
            try:
                await trial.returns(answer(own), "roll did not return", "that it does", within=ROLLED_WITHIN_S)
            finally:
                await cancel_and_join(looking)
            after = await asyncio.to_thread(_starts, own)  # at once: what is done later was not done
            gone = [name for name, server in own.servers.items() if server.state != "running"]
            if not gone:
                done = len(writing.history)
                await eventually(lambda: len(writing.history) >= done + 100, within=40.0)
            await writing.stop(wait=not gone)
        if gone:
            raise NotYet(f"{gone[0]} is {own.servers[gone[0]].state} in the end", "that it runs again")
        if same := [name for name in own.servers if after[name] in (before[name], "")]:
            how = "is the same process as before" if after[same[0]] else "did not reply when roll returned"
            raise NotYet(f"{same[0]} {how}", "that each was restarted")
        await own.ready()
        await caught_up(own, writing.history)
        found = audit(writing.history, await read_stream(client, STREAM))
        if found.broken:
            raise NotYet(f"orders are {' and '.join(found.broken)}", "each acknowledged order stored once")
        longest_s = max((gap.length_s for gap in writing.history.gaps()), default=0.0)
        return longest_s, _in_words(_was_killed(own), most_down=max(map(len, seen), default=0))


async def _look_on(mesh: Mesh, seen: list[frozenset[str]]) -> None:
    """Note which servers do not run."""
    while True:
        seen.append(frozenset(name for name, one in mesh.servers.items() if one.state != "running"))
        await asyncio.sleep(0.01)  # pacing


def _in_words(killed: bool, *, most_down: int) -> str:
    return "servers were killed, and " if killed else "several servers were down at once, and " * (most_down > 1)


def _was_killed(mesh: Mesh) -> bool:
    """Return whether a server that was started again had not said that it exits."""
    logs = [mesh.logs(name, last=None) for name in mesh.servers]
    return any(log.count("Starting nats-server") > 1 + log.count("Server Exiting") for log in logs)


def _starts(mesh: Mesh) -> dict[str, str]:
    """Return when each server's process was started, as it says itself; "" for one that does not reply."""
    starts = dict.fromkeys(mesh.servers, "")
    for name, server in mesh.servers.items():
        with suppress(OSError):
            if server.monitor:
                starts[name] = server.monitor.varz()["start"]
    return starts
