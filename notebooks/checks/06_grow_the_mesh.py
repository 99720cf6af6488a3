"""The checks of notebook 06: placement, what a majority waits for, and collecting from the edge."""

import time
from collections.abc import Collection
from functools import partial
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import Placement, StreamConfig, StreamInfo, StreamSource
from nats.js.errors import NotFoundError

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import encode, read_orders
from mesh_lab.patterns import eventually, retry, wait_routable, wait_stream

# Short, because a request that meets an election is never answered; what may be asked twice is, by retry().
API_TIMEOUT_S = 3.0
MAKES_WITHIN_S = 20.0
HOME, AWAY, STORE = "eu", "us", "store-berlin"
FOLLOWED = "ORDERS-EU"
STORE_API = f"$JS.{STORE}.API"

# 6.1


@exercise(
    "6.1",
    title="place it",
    answer="async function",
    expects="a stream BACKUP in us, made with js.add_stream",
    hint="A mirror has no subjects of its own: mirror=StreamSource(name=…). Without a placement, a stream is made in "
    "the cluster of the connection that asks for it.",
    within=60.0,
)
async def places_a_backup(trial: Trial, answer: Any) -> str:
    """Read the stream's configuration from the servers, and wait until it holds what it follows."""
    js = await _context(trial, "BACKUP")
    await _have_followed(trial, js)
    await _made(trial, answer, js)
    info = await _info(js, "BACKUP", "no stream BACKUP on the servers", "one that follows ORDERS-EU")
    if info.config.mirror is None or info.config.mirror.name != FOLLOWED:
        mirrored = info.config.mirror.name if info.config.mirror else None
        seen = f"a mirror of {mirrored}" if mirrored else "sources" if info.config.sources else "no mirror"
        raise NotYet(f"BACKUP has {seen}", f"a mirror of {FOLLOWED}: whole, in order, with the same numbers")
    _expect_whole(info.config.mirror, "BACKUP", ("orders.eu.*.placed", "orders.eu.>", "orders.>"))
    _expect_nothing_dropped(info.config, "BACKUP")
    place = info.cluster.name if info.cluster else None
    if place != AWAY:
        raise NotYet(f"BACKUP lives in {place}", f"{AWAY}: when {HOME} is lost, the copy must not be")
    if info.config.num_replicas != 3:
        raise NotYet(f"BACKUP has {info.config.num_replicas} copy", "3: one server may die there, too")
    wanted = await _held(js, FOLLOWED)

    async def same() -> bool:
        return await _held(js, "BACKUP") >= wanted

    # A mirror whose first request got lost retries after ten seconds.
    await trial.soon(same, "BACKUP does not hold what ORDERS-EU holds", "all of it, moments later", within=30.0)
    return "a mirror is a stream like any other: an update that takes its mirror away makes it one of its own"


async def _have_followed(trial: Trial, js: JetStreamContext) -> None:
    """Have the lesson's stream to follow; where the check runs without the lesson, one is made for it."""
    try:
        await retry(partial(wait_stream, js, FOLLOWED))  # patiently: what the trial makes, it removes before and after
    except NotFoundError:
        client = await trial.client(region=HOME)
        home = Placement(cluster=HOME)
        followed = await trial.stream(client, FOLLOWED, subjects=["orders.eu.*.placed"], num_replicas=3, placement=home)
        for order in read_orders(first=12):
            if order.region == HOME:
                await retry(partial(followed.publish, order.subject("placed"), encode(order)))


def _expect_whole(source: StreamSource, stream: str, every: Collection[str]) -> None:
    """Raise NotYet unless a stream gets all of what it follows; each subject in ``every`` matches all of that."""
    if source.opt_start_seq or source.opt_start_time:
        raise NotYet(f"{stream} leaves out what was stored before a start", "all of it, from the first message on")
    if source.filter_subject and source.filter_subject not in (">", *every):
        raise NotYet(f"{stream} takes only {source.filter_subject}", "all of it, without a filter")
    if source.subject_transforms:
        raise NotYet(f"{stream} takes some subjects, or renames them", "all of it, as it is")


def _expect_nothing_dropped(config: StreamConfig, stream: str) -> None:
    for limit in ("max_msgs", "max_bytes", "max_age", "max_msgs_per_subject", "max_msg_size"):
        if (value := getattr(config, limit)) not in (None, 0, -1):
            raise NotYet(f"{stream} has {limit} {value:g}", "no limit: it is to keep all that it follows")
    if config.retention not in (None, "limits"):
        raise NotYet(f"{stream} has retention {config.retention}", "limits: whoever reads it takes nothing away")


async def _info(js: JetStreamContext, stream: str, seen: str, expected: str) -> StreamInfo:
    """Return the servers' information about a stream that the answer made."""
    try:
        return await retry(partial(wait_stream, js, stream))
    except NotFoundError as err:
        raise NotYet(seen, expected) from err


# 6.2

ASKED_MS = (40.0, 70.0)
CASES: tuple[tuple[float, list[float], float], ...] = (
    (0, [], 0),
    (5, [], 10),
    (0, [10, 40], 20),
    (30, [40, 10], 80),
    (0, [50, 5, 20, 10], 20),
    (10, [3, 80, 70, 90], 160),
    (7, [100, 9, 11, 10], 34),
    (0.25, [3.0, 1.5], 3.5),
    (1, [0, 0], 2),
    (0, [6, 6, 1, 6], 12),
    (0, list(ASKED_MS), 80),
)


@exercise(
    "6.2",
    title="predict the wait",
    answer="function",
    expects="milliseconds from a publish to its acknowledgement",
    hint="Of three, a majority is two: the leader and one follower. Of five it is three. Sort the followers; which one "
    "completes the majority? And everything goes there and back.",
    within=40.0,
)
async def predicts_the_wait(trial: Trial, answer: Any) -> str:
    """Ask for some cases, then slow two links and compare the last answer with the servers'."""
    for to_leader, followers, wanted in CASES:
        said = answer(to_leader, list(followers))
        if not isinstance(said, int | float) or not abs(said - wanted) <= 1e-6:
            copies = f"{len(followers) + 1} replicas" if followers else "1 replica"
            asked = f"{copies}, followers at {followers} ms, leader at {to_leader} ms"
            raise NotYet(f"for {asked}, {said!r} was returned", f"{wanted:g}")
    said = answer(0.0, list(ASKED_MS))
    js = await _context(trial, "CHECK-5-2")
    place = Placement(cluster=HOME)
    await retry(lambda: js.add_stream(name="CHECK-5-2", subjects=["check52"], num_replicas=3, placement=place))
    leader = await eventually(partial(_leader, js, "CHECK-5-2"), within=10.0)
    near = await trial.client(name="check 6.2 near", to=leader)
    await wait_routable(near, "CHECK-5-2")
    others = [name for name in trial.mesh.layout.regions[HOME] if name != leader]
    try:
        for follower, latency in zip(others, ASKED_MS, strict=True):
            await trial.mesh.slow(leader, follower, latency=latency / 1_000)
        taken = await _publish_ms(near.jetstream(timeout=API_TIMEOUT_S))
    finally:
        await trial.mesh.heal()
    if not 0.9 * said <= taken <= 1.5 * said:
        which = "less" if taken < said else "more"
        expected = "a prediction that they keep; if the machine is busy, try again"
        raise NotYet(f"the servers took {which} than the {said:g} ms predicted", expected)
    return "the servers agree: only the follower that completes the majority counts, there and back"


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


# 6.3


@exercise(
    "6.3",
    title="collect from the edge",
    answer="async function",
    expects="a stream ALL-RETURNS in the regions, which follows the store's RETURNS",
    hint="A source in another domain is named with external=ExternalStream(api=…); the API of a domain is below "
    "$JS.<domain>.API.",
    within=90.0,
)
async def collects_from_the_edge(trial: Trial, answer: Any) -> str:
    """Store something at the edge before and after, and wait for it in the regions."""
    await trial.mesh.ready()
    till = await trial.client(name="check 5.3 store", to=STORE)
    store = await trial.stream(till, "RETURNS", subjects=["returns.*"])
    js = await _context(trial, "ALL-RETURNS")
    for number in range(3):
        await store.publish(f"returns.{number}", b"a CD")
    await _made(trial, answer, js)
    info = await _info(
        js, "ALL-RETURNS", "no stream ALL-RETURNS in the regions", "one that follows the store's RETURNS"
    )
    source = _followed(info.config)
    _expect_whole(source, "ALL-RETURNS", ("returns.*", "returns.>"))
    _expect_nothing_dropped(info.config, "ALL-RETURNS")
    if info.config.subjects:
        listened = ", ".join(info.config.subjects)
        raise NotYet(f"ALL-RETURNS listens to {listened} itself, too", "what the store has stored, each once")
    if info.config.num_replicas != 3:
        raise NotYet(f"ALL-RETURNS has {info.config.num_replicas} copy", "3")
    for number in range(3, 6):
        await store.publish(f"returns.{number}", b"a CD")
    came = 0

    async def all_came() -> bool:
        nonlocal came
        came = await _held(js, "ALL-RETURNS")
        return came == 6

    expected = "all of them, those from before included, each once"
    await trial.soon(all_came, lambda: f"{came or 'none'} of 6 returns arrived", expected, within=25.0)
    return "the store needs no permission and no wait to sell; the headquarters asks when it can be heard"


def _followed(config: StreamConfig) -> StreamSource:
    """Return the source or the mirror that leads to the store's stream."""
    named = [one for one in [*(config.sources or []), config.mirror] if one and one.name == "RETURNS"]
    apis = [one.external.api if one.external else "a stream RETURNS of the regions" for one in named]
    if apis != [STORE_API]:
        others = sorted(set(apis) - {STORE_API})
        seen = others[0] if others else "the store's RETURNS twice" if apis else "no stream RETURNS"
        raise NotYet(f"ALL-RETURNS follows {seen}", f"RETURNS by the API of the store's domain, {STORE_API}, once")
    if config.sources and len(config.sources) > 1:
        raise NotYet(f"ALL-RETURNS has {len(config.sources)} sources", "one: the store's RETURNS")
    return named[0]


# What they share


async def _made(trial: Trial, answer: Any, js: JetStreamContext) -> None:
    """Call an answer that makes a stream, again where the servers elect."""
    hung = f"it was still at work {MAKES_WITHIN_S:g} s after it was called"
    making = retry(lambda: answer(js), within=MAKES_WITHIN_S / 2)
    await trial.returns(making, hung, "a stream, and an end", within=MAKES_WITHIN_S)


async def _held(js: JetStreamContext, stream: str) -> int:
    return (await retry(partial(wait_stream, js, stream))).state.messages


async def _context(trial: Trial, *absent: str) -> JetStreamContext:
    """Return a context in the first region; the streams named are not there before, and not afterwards."""
    await trial.mesh.ready()  # the lesson, or the exercise before, cut and slowed its links
    return await trial.absent(await trial.client(region=HOME), *absent)
