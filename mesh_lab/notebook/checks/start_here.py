"""Checks of notebook 00: subjects, wildcards, names of connections, and what a client hears of its server's death."""

import asyncio
import contextlib
from itertools import islice
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.orders import Event, encode, read_orders
from mesh_lab.patterns import eventually
from mesh_lab.servers.mesh import Mesh

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
async def names_the_event(mesh: Mesh, answer: Any) -> Verdict:
    """Compare the answer with the subject, token by token."""
    (order,) = islice(read_orders(), TENTH, TENTH + 1)
    wanted = order.subject("paid")
    seen = answer.split(".")
    if {"*", ">"} & set(seen):
        return not_yet(f"{answer!r} has a wildcard", "a subject without one: who publishes names it in full")
    if len(seen) != len(TOKENS):
        return not_yet(
            f"{answer!r} has {len(seen)} word{'s' if seen[1:] else ''}", f"{len(TOKENS)} words with dots between them"
        )
    for position, (word, right, what) in enumerate(zip(seen, wanted.split("."), TOKENS, strict=True), start=1):
        if word != right:
            return not_yet(f"word {position} of {answer!r} is {word!r}", what if position > 1 else "'orders'")
    async with await mesh.connect(name="check 0.1") as nc:
        sub = await nc.subscribe("orders.*.*.paid")
        await nc.publish(answer, encode(order))
        await sub.next_msg(timeout=2.0)
    return correct("a subscriber to orders.*.*.paid got the order on it; case counts, so Paid would be another subject")


@exercise(
    "0.2",
    title="only what Europe buys",
    answer="async function",
    expects="a subscription that gets each order placed in eu, and nothing else",
    hint="Each * stands for one word. Which of the four words must be what, and which may be anything?",
)
async def only_what_europe_buys(mesh: Mesh, answer: Any) -> Verdict:
    """Publish real orders and their events, and look at what arrives."""
    orders = list(read_orders(first=20))
    events: tuple[Event, ...] = ("placed", "paid", "shipped")
    async with await mesh.connect(name="check 0.2") as nc:
        sub = await answer(nc)
        if not isinstance(sub, Subscription):
            return not_yet(f"the function returned {_described(sub)}", "the subscription that nc.subscribe returns")
        if sub._cb is not None:
            return not_yet("the subscription hands its messages to a callback", "one whose messages the check can read")
        marker = await nc.subscribe(nc.new_inbox())
        for order in orders:
            for event in events:
                await nc.publish(order.subject(event), encode(order))
        # Near misses: too few words, too many, and another first word.
        for decoy in ("orders.eu.placed", "orders.eu.000001.placed.again", "returns.eu.000001.placed"):
            await nc.publish(decoy)
        # Messages of one connection stay in order: when this one is here, so is everything before it.
        await nc.publish(marker.subject)
        await marker.next_msg(timeout=5.0)
        arrived = [(await sub.next_msg(timeout=1.0)).subject for _ in range(sub.pending_msgs)]
    wanted = [order.subject("placed") for order in orders if order.region == "eu"]
    missing = [subject for subject in wanted if subject not in arrived]
    others = [subject for subject in arrived if subject not in wanted]
    if others:
        return not_yet(f"{others[0]} arrived, too", "nothing but orders placed in eu")
    if missing:
        return not_yet(f"{len(arrived)} of the {len(wanted)} orders placed in eu arrived", "all of them")
    if len(arrived) > len(wanted):
        return not_yet(f"{len(arrived)} messages arrived for {len(wanted)} orders", "each order once")
    return correct(f"{len(wanted)} of {len(orders) * len(events)} events arrived; the server sent no others to you")


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


@exercise(
    "0.3",
    title="let a server see you",
    answer="async function",
    expects="a client named 'me', connected to n2",
    hint="mesh.connect has arguments for both. With nats.connect: which server does it try first, and can it be told?",
)
async def lets_a_server_see_it(mesh: Mesh, answer: Any) -> Verdict:
    """Call the answer several times, and ask the server who is connected to it."""
    monitor = mesh.servers["n2"].monitor
    assert monitor is not None  # noqa: S101  # a local server has one, an external mesh has no n2
    names: list[str] = []
    clients: list[Client] = []
    try:
        for _ in range(CALLS):
            client = await answer(mesh)
            if not isinstance(client, Client):
                return not_yet(f"the function returned {_described(client)}", "the client that it connected")
            if not client.is_connected:
                return not_yet("the client that it returned is not connected", "one that is")
            clients.append(client)
            connections = (await asyncio.to_thread(monitor.connz))["connections"]
            names += [one.get("name", "") for one in connections if one["cid"] == _id_at(client, mesh, "n2")]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    if not names:
        return not_yet("n2 lists none of your clients", "each of them connected to n2")
    if set(names) != {"me"}:
        return not_yet(f"n2 knows your client as {names[-1]!r}", "'me'")
    if len(names) < CALLS:
        return not_yet(f"of {CALLS} clients, some were connected to another server", "each of them connected to n2")
    return correct("the name costs nothing, and tells whoever looks at a server at night which program that is")


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
async def hears_that_its_server_died(mesh: Mesh, answer: Any) -> Verdict:
    """Kill the client's server, and compare what it noted with what happened."""
    server = await _any_but_the_leader(mesh)
    news: list[str] = []
    client = await answer(mesh, server, news)
    if not isinstance(client, Client):
        return not_yet(f"the function returned {_described(client)}", "the client that it connected")
    try:
        return await _kill_and_listen(mesh, server, client, news)
    finally:
        await client.close()
        if mesh.servers[server].state != "running":
            await mesh.restart(server)
        await eventually(mesh.is_healthy, within=20.0)


async def _any_but_the_leader(mesh: Mesh) -> str:
    """Return n2 or n1, and not the one without which the others need an election, which takes seconds."""
    monitor = mesh.servers["n3"].monitor
    assert monitor is not None  # noqa: S101  # as above

    async def leader() -> str:
        return str((await asyncio.to_thread(monitor.jsz))["meta_cluster"].get("leader") or "")

    return "n1" if await eventually(leader, within=10.0) == "n2" else "n2"


async def _kill_and_listen(mesh: Mesh, server: str, client: Client, news: list[str]) -> Verdict:
    url = client.connected_url
    if url is None or url.port != mesh.servers[server].port:
        return not_yet("the client is not connected to the server that it was given", "that one, and no other")
    if news:
        return not_yet(f"before anything happened, news was {news}", "an empty list until the server dies")
    order = next(read_orders(first=1))
    sub = await client.subscribe(order.subject("placed"))
    await mesh.kill(server)
    with contextlib.suppress(NotReadyError):
        await eventually(lambda: client.is_closed or client.stats["reconnects"] > 0, within=8.0)
    if client.is_closed:
        return not_yet(f"the client gave up, and news is {news}", "one that connects again, and ['lost', 'back']")
    with contextlib.suppress(NotReadyError):
        await eventually(lambda: news == ["lost", "back"], within=1.0)
    if news != ["lost", "back"]:
        return not_yet(f"the server died, and news is {news}", "['lost', 'back']")
    await client.publish(order.subject("placed"), encode(order))
    await sub.next_msg(timeout=2.0)
    return correct("and its subscription moved with it: the order after the kill arrived, with no line of yours for it")
