"""The whole mesh at once: two regions, a store at the edge, the saga, a ledger in order, and faults, from one seed."""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nats.aio.client import Client
from nats.js.api import ExternalStream, StreamSource, SubjectTransform

from mesh_lab.errors import NotReadyError, WrongTotalsError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import PLACED, create_event_store, open_event_store
from mesh_lab.orders.job.run import group_is_done
from mesh_lab.orders.job.services import Services
from mesh_lab.orders.ledger import PARTITIONS, Entry, create_ledger, entries_in, lives_in
from mesh_lab.orders.order import STREAM, Order, encode
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.saga import EFFECTS_STREAM, LIVES, SAGA, fate
from mesh_lab.orders.saga_audit import EndTotals, audit_saga, expected_ends
from mesh_lab.patterns.jetstream_api import api_prefix
from mesh_lab.patterns.wait import cancel_and_join, eventually, retry
from mesh_lab.patterns.windowed_publisher import WindowedPublisher
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess
from mesh_lab.security import ROOM, Authority, Keyring, Operator, edge
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh
from mesh_lab.tls import pack

REGIONS, STORE, IN_STORE = {"eu": 3, "us": 3}, "store-berlin", 0.2  # of Europe's orders
HOMES = {"payment": "eu-1", "stock": "eu-2", "shipping": "us-1"}
REPLICAS, MEMBERS = 3, 3
WITHIN_S, LOOK_EVERY_S = 240.0, 0.5


@dataclass(frozen=True, slots=True)
class World:
    """What each part of a run did."""

    parts: tuple[tuple[str, str, str], ...]
    """Part, place, and what it did."""
    ends: tuple[EndTotals, ...]


async def run_world(*, seed: int, first: int = 10_000, tell: Callable[[str], object] = lambda _line: None) -> World:
    """Take orders through a mesh of two regions and an edge store while it is cut and killed, and check every total.

    The event store is in ``eu``, effects and ledger are in ``us``; payment and stock work in ``eu``, shipping in
    ``us``, two of each. Some of Europe's orders are bought in a store: its leaf node keeps them while it is cut off,
    and the event store sources them. The members of a group share the ledger's partitions, and see each order's events
    in their order. On the way, a server, a service and a member are killed. Every connection talks TLS, and whoever
    does something is a user of an account of the orders, with the rights of its role alone; so is the store's server.

    Args:
        seed: Decides which orders are bought in the store, when it is cut off, and who is lost.
        first: Number of orders.
        tell: Called with a line about each step.

    Raises:
        WrongTotalsError: An order was lost, doubled or changed, came to two ends, or its events came in another order.
        ProcessEndedError: A service ended that was not killed.
        NotReadyError: Not every order was through in four minutes.
    """
    chance, orders = random.Random(seed), list(read_orders(first=first))
    bought = [order for order in orders if order.region == "eu" and chance.random() < IN_STORE]
    in_store, before = {order.id for order in bought}, int(len(bought) * chance.uniform(0.2, 0.8))
    elsewhere = {name: [o for o in orders if o.region == name and o.id not in in_store] for name in REGIONS}
    lives, right = {order.id: list(LIVES[fate(order)]) for order in orders}, expected_ends(orders)
    total, operator = sum(map(len, lives.values())), Operator()
    account = operator.account("ORDERS", **ROOM)
    account.edge = edge(STORE)
    starting = start_mesh(regions=REGIONS, leaves=[STORE], tls=Authority(), operator=operator, backend="local")
    async with await starting as mesh:
        keyring = Keyring(account, mesh.directory / "credentials")
        enter = partial(_enter, mesh, keyring)
        await _deploy(*[await enter("deployer", server) for server in ("eu-1", "us-1", STORE)])
        eu, us = [await enter("publisher", f"{region}-1") for region in REGIONS]
        till, auditor = await enter("store", STORE), await enter("auditor", "eu-1")
        tell("two regions and a store are up; streams and consumers stand")
        async with _running(mesh, keyring) as (services, members):

            def entries() -> list[Entry]:
                return [entry for member in members for entry in entries_in(member.log())]

            async def arrived() -> set[str]:
                js = auditor.jetstream()
                state = (await retry(partial(js.stream_info, STREAM, subjects_filter=PLACED[0]))).state
                return in_store & {subject.split(".")[2] for subject in state.subjects or ()}

            placing = asyncio.gather(place_orders(eu, elsewhere["eu"]), place_orders(us, elsewhere["us"]))
            try:
                await _sell(till, bought[:before])
                if before:  # the first of them are here, the last may be under way
                    await eventually(arrived, within=WITHIN_S)
                await mesh.cut(STORE, "eu")
                tell(f"{STORE} is cut off, and sells on")
                await _sell(till, bought[before:])
                servers = [server for server in mesh.servers if server != STORE]
                working = [name for name in services.expendable if not name.startswith("ledger")]
                lost = [chance.choice(some) for some in (servers, working, [member.name for member in members])]
                share = chance.uniform(0.1, 0.5)
                await eventually(lambda: len(entries()) > share * total, within=WITHIN_S, every=LOOK_EVERY_S)
                missing = len(in_store - await arrived())
                server, *others = lost
                for name in others:
                    await services.kill(name)
                await mesh.kill(server)
                tell(f"{', '.join(lost)} are killed")
                await mesh.restart(server)
                await mesh.heal()
                tell(f"{server} is back, and so is the link to {STORE}")
                await placing
                await _through(auditor, services, lambda: len({(e.order, e.event) for e in entries()}) >= total)
            finally:
                await cancel_and_join(placing)
            reports = await services.finish()
            seen, again = lives_in(entries())
        tell("every order is through; the audit reads both streams")
        ends = await audit_saga(auditor, consumer="audit")
    if ends != right or seen != lives:
        wrong = [
            f"{order}: {seen.get(order)}, expected {life}" for order, life in lives.items() if seen.get(order) != life
        ]
        raise WrongTotalsError(
            f"wrong ends: seen {ends}, expected {right}; in the ledger {'; '.join(wrong[:3]) or 'all'}"
        )
    answered = Counter[str]()
    for report in reports:
        answered[str(report["service"])] += int(str(report["processed"]))
    parts = [
        *(("publisher", name, f"placed {len(some):,} orders") for name, some in elsewhere.items()),
        ("store", STORE, f"sold {len(bought):,} orders, {missing:,} of which only the store had while it was cut off"),
    ]
    for role, home in HOMES.items():
        but = f", without those of {lost[1]}" if lost[1].startswith(role) else ""
        parts.append((role, home.partition("-")[0], f"answered {answered[role]:,} events{but}"))
    what = f"{PARTITIONS} partitions: {total:,} events, each order's in their order; {again:,} came again"
    parts += [("ledger", "us", what), ("lost", "", f"{', '.join(lost)}; the server was restarted")]
    parts.append(
        ("locks", "", f"TLS everywhere; {len(keyring.users)} users of one account, each with its role's rights")
    )
    return World(tuple(parts), ends)


async def _enter(mesh: Mesh, keyring: Keyring, role: str, to: str) -> Client:
    """Return a connection of a role's user, who has its place in the name."""
    name = f"{role}-{to}"
    return await mesh.connect(name=name, to=to, user_credentials=keyring.file(role, name))


async def _deploy(eu: Client, us: Client, till: Client) -> None:
    """Make every stream and consumer; without a placement, a stream is in the region of the client that makes it."""
    await retry(lambda: till.jetstream().add_stream(name="TILL", subjects=["till.*.*.placed"]))
    await retry(
        lambda: create_event_store(
            us.jetstream(), replicas=REPLICAS, name=EFFECTS_STREAM, subjects=SAGA.streams[EFFECTS_STREAM]
        )
    )
    store = await open_event_store(eu, replicas=REPLICAS, deployment=SAGA)
    to = "orders.{{wildcard(1)}}.{{wildcard(2)}}.placed"
    from_till = StreamSource(
        name="TILL",
        external=ExternalStream(api=api_prefix(STORE)),
        subject_transforms=[SubjectTransform(src="till.*.*.placed", dest=to)],
    )
    store.config.sources = [from_till]
    await retry(lambda: eu.jetstream().update_stream(store.config))
    await retry(lambda: create_ledger(us.jetstream(), replicas=REPLICAS))


async def _sell(till: Client, orders: Sequence[Order]) -> None:
    """Keep orders in the store's own stream."""
    async with WindowedPublisher(till) as window:
        for order in orders:
            subject = f"till.{order.region}.{order.id}.placed"
            await window.publish(subject, encode(order), msg_id=order.msg_id("placed"))


@contextlib.asynccontextmanager
async def _running(mesh: Mesh, keyring: Keyring) -> AsyncIterator[tuple[Services, list[ChildProcess]]]:
    """Run two processes of each service of the saga, and the members of the ledger's group, while the context lasts."""
    places = {f"{role}-{number}": home for role, home in HOMES.items() for number in (1, 2)}
    places |= {f"ledger-{number}": f"us-{number}" for number in range(1, MEMBERS + 1)}
    with contextlib.ExitStack() as closing:
        running = {}
        for name, home in places.items():
            role = name.rpartition("-")[0]
            user = {**mesh.connect_options(to=home), "user_credentials": keyring.file(role, name)}
            running[name] = ChildProcess(
                [sys.executable, "-m", "mesh_lab.orders", role, f"--name={name}"],
                name=name,
                owner=mesh.owner,
                environment={CONNECT_VARIABLE: json.dumps(pack(user))},
                # What a member of the ledger wrote stays there when it is killed.
                **({"log": mesh.directory / f"{name}.log"} if role == "ledger" else {"stdout": True}),
            )
            closing.callback(running[name].close)
            running[name].start()
        members = [process for name, process in running.items() if name.startswith("ledger")]
        yield Services(running, (*HOMES, "ledger")), members


async def _through(auditor: Client, services: Services, seen: Callable[[], bool]) -> None:
    """Return when no service has work to do, and every event was seen."""
    deadline = time.monotonic() + WITHIN_S
    while not (all([await group_is_done(auditor, group) for group in SAGA.groups]) and seen()):
        services.check()
        if time.monotonic() > deadline:
            raise NotReadyError(f"not every order was through after {WITHIN_S:g} s; see the groups of stream {STREAM}")
        await asyncio.sleep(LOOK_EVERY_S)
