"""Checks of notebook 00: subjects, wildcards, names of connections, and what a client notices of its server's death."""

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import Event, encode, read_orders
from mesh_lab.patterns import eventually

TENTH = 9
CALLS = 8
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
    """Publish real orders and their events, and look at what arrives."""
    orders = list(read_orders(first=20))
    events: tuple[Event, ...] = ("placed", "paid", "shipped")
    nc = await trial.client()
    sub = await answer(nc)
    trial.kind(sub, Subscription, "the subscription that nc.subscribe returns")
    trial.own(sub)
    if sub._cb is not None:
        raise NotYet("the subscription hands its messages to a callback", "one whose messages the check can read")
    for order in orders:
        for event in events:
            await nc.publish(order.subject(event), encode(order))
    # Near misses: too few words, too many, and another first word.
    for decoy in ("orders.eu.placed", "orders.eu.000001.placed.again", "returns.eu.000001.placed"):
        await nc.publish(decoy)
    arrived = [msg.subject for msg in await trial.arrived(nc, sub)]
    wanted = [order.subject("placed") for order in orders if order.region == "eu"]
    missing = [subject for subject in wanted if subject not in arrived]
    others = [subject for subject in arrived if subject not in wanted]
    if others:
        raise NotYet(f"{others[0]} arrived, too", "nothing but orders placed in eu")
    if missing:
        raise NotYet(f"{len(arrived)} of the {len(wanted)} orders placed in eu arrived", "all of them")
    if len(arrived) > len(wanted):
        raise NotYet(f"{len(arrived)} messages arrived for {len(wanted)} orders", "each order once")
    return f"{len(wanted)} of {len(orders) * len(events)} events arrived; the server sent no others to you"


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
            client = await answer(trial.mesh)
            trial.kind(client, Client, "the client that it connected")
            if not client.is_connected:
                raise NotYet("the client that it returned is not connected", "one that is")
            clients.append(client)
            connections = (await asyncio.to_thread(monitor.connz))["connections"]
            names += [one.get("name", "") for one in connections if one["cid"] == _id_at(client, trial.mesh, "n2")]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    if not names:
        raise NotYet("n2 lists none of your clients", "each of them connected to n2")
    if set(names) != {"me"}:
        raise NotYet(f"n2 knows your client as {names[-1]!r}", "'me'")
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
    """Kill the client's server, and compare what it noted with what happened."""
    mesh = trial.mesh
    server = await _any_but_the_leader(mesh)
    news: list[str] = []
    client = await answer(mesh, server, news)
    trial.kind(client, Client, "the client that it connected")
    try:
        await _kill_and_listen(trial, server, client, news)
    finally:
        await client.close()
        if mesh.servers[server].state != "running":
            await mesh.restart(server)
        await mesh.ready(within=20.0)
    return "and its subscription moved with it: the order after the kill arrived, with no line of yours for it"


async def _any_but_the_leader(mesh: Mesh) -> str:
    """Return n2 or n1, and not the one without which the others need an election, which takes seconds."""
    monitor = mesh.servers["n3"].monitor
    assert monitor is not None  # as above

    async def leader() -> str:
        return str((await asyncio.to_thread(monitor.jsz))["meta_cluster"].get("leader") or "")

    return "n1" if await eventually(leader, within=10.0) == "n2" else "n2"


async def _kill_and_listen(trial: Trial, server: str, client: Client, news: list[str]) -> None:
    url = client.connected_url
    if url is None or url.port != trial.mesh.servers[server].port:
        raise NotYet("the client is not connected to the server that it was given", "that one, and no other")
    if news:
        raise NotYet(f"before anything happened, news was {news}", "an empty list until the server dies")
    order = next(read_orders(first=1))
    sub = await client.subscribe(order.subject("placed"))
    await trial.mesh.kill(server)
    died: tuple[Callable[[], str], str] = lambda: f"the server died, and news is {news}", "['lost', 'back']"
    await trial.soon(lambda: client.is_closed or client.stats["reconnects"] > 0, *died, within=8.0)
    if client.is_closed:
        raise NotYet(f"the client gave up, and news is {news}", "one that connects again, and ['lost', 'back']")
    await trial.soon(lambda: news == ["lost", "back"], *died, within=1.0)
    await client.publish(order.subject("placed"), encode(order))
    await sub.next_msg(timeout=2.0)
