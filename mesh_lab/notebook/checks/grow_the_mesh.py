"""The checks of notebook 05: placement, what a majority waits for, and collecting from the edge."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import Placement, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import eventually, retry, wait_routable, wait_stream
from mesh_lab.servers.mesh import Mesh

# Short, because a request that meets an election is never answered; what may be asked twice is, by retry().
API_TIMEOUT_S = 3.0
HOME, AWAY, STORE = "eu", "us", "store-berlin"
FOLLOWED = "ORDERS-EU"
STORE_API = f"$JS.{STORE}.API"

# 5.1


@exercise(
    "5.1",
    title="place it",
    answer="async function",
    expects="a stream BACKUP in us, made with js.add_stream",
    hint="A mirror has no subjects of its own: mirror=StreamSource(name=…). Without a placement, a stream is made in "
    "the cluster of the connection that asks for it.",
    within=60.0,
)
async def places_a_backup(mesh: Mesh, answer: Any) -> Verdict:
    """Read the stream's configuration from the servers, and wait until it holds what it follows."""
    async with _context(mesh, "check 5.1", BACKUP=HOME) as (_, js):
        await _have_followed(js)
        await retry(lambda: answer(js))
        try:
            info = await retry(partial(wait_stream, js, "BACKUP"))
        except NotFoundError:
            return not_yet("no stream BACKUP on the servers", "one that follows ORDERS-EU")
        if info.config.mirror is None or info.config.mirror.name != FOLLOWED:
            mirrored = info.config.mirror.name if info.config.mirror else None
            seen = f"a mirror of {mirrored}" if mirrored else "sources" if info.config.sources else "no mirror"
            return not_yet(f"BACKUP has {seen}", f"a mirror of {FOLLOWED}: whole, in order, with the same numbers")
        place = info.cluster.name if info.cluster else None
        if place != AWAY:
            return not_yet(f"BACKUP lives in {place}", f"{AWAY}: when {HOME} is lost, the copy must not be")
        if info.config.num_replicas != 3:
            return not_yet(f"BACKUP has {info.config.num_replicas} copy", "3: one server may die there, too")
        wanted = await _held(js, FOLLOWED)

        async def same() -> bool:
            return await _held(js, "BACKUP") >= wanted

        try:
            # A mirror whose first question got lost asks again after ten seconds.
            await eventually(same, within=30.0, every=0.1)
        except NotReadyError:
            return not_yet("BACKUP does not hold what ORDERS-EU holds", "all of it, moments later")
    return correct("a mirror is a stream like any other: an update that takes its mirror away makes it one of its own")


async def _have_followed(js: JetStreamContext) -> None:
    """Have the lesson's stream to follow; where the check runs without the lesson, one is made, and stays."""
    with suppress(BadRequestError):  # it is there, with settings of the lesson's
        home = Placement(cluster=HOME)
        await retry(
            lambda: js.add_stream(name=FOLLOWED, subjects=["orders.eu.*.placed"], num_replicas=3, placement=home)
        )


# 5.2

CASES: tuple[tuple[float, list[float], float], ...] = (
    (0, [], 0),
    (5, [], 10),
    (0, [10, 40], 20),
    (30, [40, 10], 80),
    (0, [50, 5, 20, 10], 20),
    (10, [3, 80, 70, 90], 160),
)
ASKED_MS = (40.0, 70.0)


@exercise(
    "5.2",
    title="predict the wait",
    answer="function",
    expects="milliseconds from a publish to its acknowledgement",
    hint="Of three, a majority is two: the leader and one follower. Of five it is three. Sort the followers; which one "
    "completes the majority? And everything goes there and back.",
    within=40.0,
)
async def predicts_the_wait(mesh: Mesh, answer: Any) -> Verdict:
    """Ask for some cases, then slow two links and compare the last answer with the servers'."""
    for to_leader, followers, wanted in CASES:
        said = answer(to_leader, list(followers))
        if not isinstance(said, int | float) or abs(said - wanted) > 1e-6:
            asked = f"{len(followers) + 1} replicas, followers at {followers} ms, leader at {to_leader} ms"
            return not_yet(f"for {asked}, {said!r} was returned", f"{wanted:g}")
    said = answer(0.0, list(ASKED_MS))
    async with _context(mesh, "check 5.2", **{"CHECK-5-2": HOME}) as (_, js):
        place = Placement(cluster=HOME)
        await retry(lambda: js.add_stream(name="CHECK-5-2", subjects=["check52"], num_replicas=3, placement=place))
        leader = await eventually(partial(_leader, js, "CHECK-5-2"), within=10.0)
        others = [name for name in mesh.layout.regions[HOME] if name != leader]
        near = await mesh.connect(name="check 5.2 near", to=leader)
        await wait_routable(near, "CHECK-5-2")
        try:
            for follower, latency in zip(others, ASKED_MS, strict=True):
                await mesh.slow(leader, follower, latency=latency / 1_000)
            taken = await _publish_ms(near.jetstream(timeout=API_TIMEOUT_S))
        finally:
            await mesh.heal()
            await near.close()
    if not 0.9 * said <= taken <= 1.5 * said:
        return not_yet("the servers took something else than predicted", "a busy machine's calmer moment: try again")
    return correct("the servers agree: only the follower that completes the majority counts, there and back")


async def _leader(js: JetStreamContext, stream: str) -> str:
    cluster = (await retry(partial(wait_stream, js, stream))).cluster
    return (cluster.leader if cluster else None) or ""


async def _publish_ms(js: JetStreamContext) -> float:
    taken = []
    for _ in range(6):
        began = time.perf_counter()
        await js.publish("check52", b"an order")
        taken.append(1_000 * (time.perf_counter() - began))
    return min(taken[1:])  # a busy machine only adds


# 5.3


@exercise(
    "5.3",
    title="collect from the edge",
    answer="async function",
    expects="a stream ALL-RETURNS in the regions, which sources the store's RETURNS",
    hint="A source in another domain is named with external=ExternalStream(api=…); the API of a domain is below "
    "$JS.<domain>.API.",
    within=90.0,
)
async def collects_from_the_edge(mesh: Mesh, answer: Any) -> Verdict:
    """Store something at the edge before and after, and wait for it in the regions."""
    async with (
        _context(mesh, "check 5.3 store", at=STORE, RETURNS=STORE) as (till, store),
        _context(mesh, "check 5.3", **{"ALL-RETURNS": HOME}) as (_, js),
    ):
        await retry(lambda: store.add_stream(name="RETURNS", subjects=["returns.*"]))
        await wait_routable(till, "RETURNS")
        for number in range(3):
            await store.publish(f"returns.{number}", b"a CD")
        await retry(lambda: answer(js))
        try:
            info = await retry(partial(wait_stream, js, "ALL-RETURNS"))
        except NotFoundError:
            return not_yet("no stream ALL-RETURNS in the regions", "one that sources RETURNS")
        if (api := _source_api(info.config)) != STORE_API:
            return not_yet(f"ALL-RETURNS sources {api}", f"RETURNS by the API of the store's domain, {STORE_API}")
        for number in range(3, 6):
            await store.publish(f"returns.{number}", b"a CD")
        came = "none"

        async def all_came() -> bool:
            nonlocal came
            held = await _held(js, "ALL-RETURNS")
            came = str(held or "none")
            return held == 6

        try:
            await eventually(all_came, within=25.0, every=0.1)
        except NotReadyError:
            return not_yet(f"{came} of 6 returns arrived", "all of them, those from before included, each once")
        if info.config.num_replicas != 3:
            return not_yet(f"ALL-RETURNS has {info.config.num_replicas} copy", "3")
    return correct("the store needs no permission and no wait to sell; the headquarters asks when it can be heard")


def _source_api(config: StreamConfig) -> str:
    sources = [source for source in config.sources or [] if source.name == "RETURNS"]
    if not sources:
        return "no stream RETURNS"
    external = sources[0].external
    return external.api if external else "a stream RETURNS of the regions"


# What they share


async def _held(js: JetStreamContext, stream: str) -> int:
    return (await retry(partial(wait_stream, js, stream))).state.messages


@asynccontextmanager
async def _context(
    mesh: Mesh, name: str, *, at: str | None = None, **streams: str
) -> AsyncIterator[tuple[Client, JetStreamContext]]:
    """Yield a client and its context; the streams named are not there before, and not afterwards."""
    await mesh.ready()  # the lesson, or the exercise before, cut and slowed its links
    region = None if at else HOME
    async with await mesh.connect(name=name, to=at, region=region) as client:
        js = client.jetstream(timeout=API_TIMEOUT_S)
        for stream in streams:
            with suppress(NotFoundError):
                await retry(partial(js.delete_stream, stream))
        try:
            yield client, js
        finally:
            for stream in streams:
                with suppress(NotFoundError):
                    await retry(partial(js.delete_stream, stream))
