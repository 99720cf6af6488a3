"""Checks of notebook 00: subjects, wildcards, names of connections, and what a client notices of its server's death."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.notebook.trial import LONG_S
from mesh_lab.orders import Event, encode, read_orders
from mesh_lab.patterns import cancel_and_join, flush_through

TENTH = 9
MANY = 2_000
CALLS = 8
CONNECTS_WITHIN_S = 5.0
BOTH = "['lost', 'back']"
NOT_EACH_TIME = "a client lost its server once more, and its news does not tell each time"
IN_TURN = "'lost' and 'back' in turn, however often that happens"
TOKENS = ("orders", "the region in which it was placed", "its id", "the event")


@exercise(
    "0.1",
    title="name the event",
    answer="text",
    expects="the subject of one event of one order",
    hint="orders.<region>.<id>.<event>. The region stands in the order: list(read_orders(first=10))[-1].",
)
async def names_the_event(trial: Trial, answer: Any) -> str:
    """Compare the answer with the subject, token by token."""
    (order,) = islice(read_orders(), TENTH, TENTH + 1)
    wanted = order.subject("paid")
    seen = answer.split(".")
    if {"*", ">"} & set(seen):
        raise NotYet(f"{answer!r} has a wildcard", "a subject without one: who publishes names it in full")
    if len(seen) != len(TOKENS):
        raise NotYet(
            f"{answer!r} has {len(seen)} word{'s' if seen[1:] else ''}", f"{len(TOKENS)} words with dots between them"
        )
    for position, (word, right, what) in enumerate(zip(seen, wanted.split("."), TOKENS, strict=True), start=1):
        if word != right:
            raise NotYet(f"word {position} of {answer!r} is {word!r}", what if position > 1 else "'orders'")
    nc = await trial.client()
    sub = trial.own(await nc.subscribe("orders.*.*.paid"))
    await nc.publish(answer, encode(order))
    await sub.next_msg(timeout=2.0)
    return "a subscriber to orders.*.*.paid got the order on it; case counts, so Paid would be another subject"


@exercise(
    "0.2",
    title="only what Europe buys",
    answer="async function",
    expects="a subscription that gets each order placed in eu, and nothing else",
    hint="Each * stands for one word. Which of the four words must be what, and which may be anything?",
)
async def only_what_europe_buys(trial: Trial, answer: Any) -> str:
    """Let two programs subscribe, publish real orders and their events, and look at what arrives at each."""
    orders = list(read_orders(first=20))
    events: tuple[Event, ...] = ("placed", "paid", "shipped")
    nc, other = await trial.client(), await trial.client()
    subs = [await _subscribed(trial, nc, answer), await _subscribed(trial, other, answer)]
    # Near misses: too few words, too many, another first word, and regions whose names begin like this one.
    near = ["orders.eu.placed", "orders.eu.000001.placed.again", "returns.eu.000001.placed"]
    near += ["orders.eu-north.000001.placed", "orders.EU.000001.placed", "orders.eu.000001.placed-again"]
    subjects = [order.subject(event) for order in orders for event in events]
    await _expect_europe(trial, nc, subs, [*subjects, *near])
    later = [order.subject("placed") for order in read_orders(first=MANY)]  # an answer may stop after some
    await _expect_europe(trial, nc, subs, later)
    in_europe = sum(order.region == "eu" for order in orders)
    return f"{in_europe} of {len(subjects)} events arrived; the server sent no others to you"


async def _subscribed(trial: Trial, client: Client, answer: Any) -> tuple[Client, Subscription]:
    hung = f"it was still subscribing {LONG_S:g} s after it was called"
    sub = await trial.returns(answer(client), hung, "a subscription")
    trial.kind(sub, Subscription, "the subscription that nc.subscribe returns")
    trial.own(sub)
    if sub._cb is not None:
        raise NotYet("the subscription hands its messages to a callback", "one whose messages the check can read")
    if sub not in client._subs.values():
        raise NotYet("the subscription is of another client, or has ended", "one of the client that it was given")
    await flush_through(client)
    return client, sub


async def _expect_europe(
    trial: Trial, nc: Client, subs: Sequence[tuple[Client, Subscription]], subjects: Sequence[str]
) -> None:
    for subject in subjects:
        await nc.publish(subject)
    await flush_through(nc)
    wanted = [subject for subject in subjects if re.fullmatch(r"orders\.eu\.[^.]+\.placed", subject)]
    came = [[msg.subject for msg in await trial.arrived(client, sub)] for client, sub in subs]
    if others := [subject for arrived in came for subject in arrived if subject not in wanted]:
        raise NotYet(f"{others[0]} arrived, too", "nothing but orders placed in eu")
    for where, (_, sub), arrived in zip(("", " while a second program listened, too"), subs, came, strict=True):
        if missing := len(wanted) - len(set(arrived)):
            # Servers deal at random to the members of a queue group: no number then.
            share = "a share" if sub.queue else f"{len(wanted) - missing}"
            raise NotYet(f"{share} of the {len(wanted)} orders placed in eu arrived{where}", "all of them")
        if len(arrived) > len(wanted):
            raise NotYet(f"{len(arrived)} messages arrived for {len(wanted)} orders", "each order once")


@exercise(
    "0.3",
    title="let a server see you",
    answer="async function",
    expects="a client named 'me', connected to n2",
    hint="mesh.connect has arguments for both. With nats.connect: which server does it try first, and can it be told?",
)
async def lets_a_server_see_it(trial: Trial, answer: Any) -> str:
    """Call the answer several times, and ask the server which clients are connected to it."""
    monitor = trial.mesh.servers["n2"].monitor
    assert monitor is not None  # a local server has one, an external mesh has no n2
    names: list[str] = []
    clients: list[Client] = []
    try:
        for _ in range(CALLS):
            hung = f"it was still connecting {CONNECTS_WITHIN_S:g} s after it was called"
            client = await trial.returns(answer(trial.mesh), hung, "a client", within=CONNECTS_WITHIN_S)
            trial.kind(client, Client, "the client that it connected")
            if not client.is_connected:
                raise NotYet("the client that it returned is not connected", "one that is")
            if client in clients:
                raise NotYet("the client of an earlier call was returned", "a new one each time")
            clients.append(client)
            connections = (await asyncio.to_thread(monitor.connz))["connections"]
            names += [one.get("name", "") for one in connections if one["cid"] == _id_at(client, trial.mesh, "n2")]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    if not names:
        raise NotYet("n2 lists none of your clients", "each of them connected to n2")
    if others := [name for name in names if name != "me"]:
        raise NotYet(f"n2 knows your client as {others[0]!r}", "'me'")
    if len(names) < CALLS:
        raise NotYet(f"of {CALLS} clients, some were connected to another server", "each of them connected to n2")
    return "the name costs nothing, and tells whoever looks at a server at night which program that is"


def _id_at(client: Client, mesh: Mesh, server: str) -> int | None:
    """Return the number under which a server lists a client; ``None`` if it is connected elsewhere."""
    url = client.connected_url
    return client.client_id if url is not None and url.port == mesh.servers[server].port else None


@exercise(
    "0.4",
    title="hear that your server died",
    answer="async function",
    expects="a client that notes 'lost' and 'back'",
    hint="nats.connect takes disconnected_cb and reconnected_cb, and mesh.connect passes them on: async functions "
    "without arguments.",
    within=40.0,
)
async def hears_that_its_server_died(trial: Trial, answer: Any) -> str:
    """Kill one server, then all, on a mesh of the check's own, and compare what clients noted with what happened."""
    for server in list(trial.mesh.servers)[:3] * 2:  # first where it costs nothing, and no server need be killed
        await (await _connected(trial, trial.mesh, server, answer)).client.close()
    mesh = await trial.own_mesh(servers=3)
    first, second, third = mesh.servers
    told: dict[str, list[_Told]] = {}
    try:
        for server in (first, second, third) * 2:
            told.setdefault(server, []).append(await _connected(trial, mesh, server, answer))
        await _kill_one(trial, mesh, third, told)
        await mesh.kill(second)
        everybody = [one for some in told.values() for one in some]
        seen = "with two of three servers dead, a client did not move to the third"
        await trial.soon(
            lambda: all(one.at(mesh, first) for one in everybody), seen, "one that connects again", within=15.0
        )
        for one in everybody:  # connected again is not yet told: a kill in between would be news of one loss less
            await trial.soon(one.told_both_each_time, NOT_EACH_TIME, IN_TURN, within=5.0)
        await _kill_the_last(trial, mesh, first, told[first], everybody)
    finally:
        await asyncio.gather(*(one.client.close() for some in told.values() for one in some))
    return "and its subscription moved with it: the order after the kill arrived, with no line of yours for it"


class _Told(NamedTuple):
    """A client of the answer's, and the list into which it writes its news."""

    client: Client
    news: list[str]

    def at(self, mesh: Mesh, server: str) -> bool:
        return self.client.is_connected and _id_at(self.client, mesh, server) is not None

    def is_back_or_gave_up(self) -> bool:
        return self.client.is_closed or self.client.stats["reconnects"] > 0

    def is_cut_off(self) -> bool:
        return not self.client.is_connected

    def told_both_each_time(self) -> bool:
        return self.news == ["lost", "back"] * self.client.stats["reconnects"]

    def tells_each_time(self) -> bool:
        return self.news == ["lost", "back"] * self.client.stats["reconnects"] + ["lost"]

    async def tells(self, trial: Trial, what: str, words: list[str], expected: str, within: float = 1.0) -> None:
        """Wait until the news is these words; what happened stands in the verdict."""
        await trial.soon(lambda: self.news == words, lambda: f"{what} {self.news}", expected, within=within)


async def _connected(trial: Trial, mesh: Mesh, server: str, answer: Any) -> _Told:
    news: list[str] = []
    hung = f"it was still connecting {CONNECTS_WITHIN_S:g} s after it was called"
    client = await trial.returns(answer(mesh, server, news), hung, "a client", within=CONNECTS_WITHIN_S)
    trial.kind(client, Client, "the client that it connected")
    told, words = _Told(client, news), list(news)
    there = told.at(mesh, server)
    if words or not there:
        await client.close()
    if not there:
        raise NotYet("the client is not connected to the server that it was given", "that one, and no other")
    if words:
        raise NotYet(f"before anything happened, news was {words}", "an empty list until the server dies")
    return told


async def _kill_one(trial: Trial, mesh: Mesh, server: str, told: Mapping[str, Sequence[_Told]]) -> None:
    """Kill a server, expect news of its clients alone, and an order after the kill at each of them."""
    order = next(read_orders(first=1))
    everybody = [one for some in told.values() for one in some]
    subs = [trial.own(await one.client.subscribe(order.subject("placed"))) for one in everybody]
    for one in everybody:
        await flush_through(one.client)
    await mesh.kill(server)
    died = "the server died, and news is"
    for one in told[server]:
        await trial.soon(one.is_back_or_gave_up, partial(f"{died} {{}}".format, one.news), BOTH, within=15.0)
        if one.client.is_closed:
            raise NotYet(f"the client gave up, and news is {one.news}", f"one that connects again, and {BOTH}")
        await one.tells(trial, died, ["lost", "back"], BOTH)
    for one in everybody:
        if one not in told[server] and one.news:
            raise NotYet(f"the server of another client died, and news is {one.news}", "an empty list for each call")
    for one in everybody:
        await flush_through(one.client)
    shop = told[server][0].client
    await shop.publish(order.subject("placed"), encode(order))
    for sub in subs:
        await sub.next_msg(timeout=5.0)


async def _kill_the_last(
    trial: Trial, mesh: Mesh, server: str, told: Sequence[_Told], everybody: Sequence[_Told]
) -> None:
    """Kill the last server, so that nobody can connect again until it is back."""
    await mesh.kill(server)
    for one in told:
        await trial.soon(
            one.is_cut_off, "the server is dead, and the client says that it is connected", "no", within=5.0
        )
        await one.tells(trial, "no server was alive, and news was", ["lost"], "['lost'], before the client is back")
    for one in everybody:  # some moved before, once or twice
        await trial.soon(one.tells_each_time, NOT_EACH_TIME, IN_TURN)
    restarting = asyncio.create_task(mesh.restart(server))
    try:
        for one in told:
            await one.tells(trial, "the server was back, and news is", ["lost", "back"], BOTH, within=15.0)
    finally:
        await cancel_and_join(restarting)
