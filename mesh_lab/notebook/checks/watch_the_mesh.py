"""The checks of notebook 11: the slowest client, an alarm for guessed passwords, the age of the oldest message."""

import asyncio
import datetime
from typing import Any

import nats
import nats.errors
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from mesh_lab.errors import NotReadyError
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import eventually, flush_through, retry, wait_routable
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

# 11.1


class _Monitor:
    """What a server's /connz said, kept, so that the answer is known."""

    def __init__(self, **pending: int) -> None:
        clients = [{"name": name, "pending_bytes": many, "cid": at} for at, (name, many) in enumerate(pending.items())]
        self.clients: list[dict[str, Any]] = clients

    def connz(self, query: str = "") -> dict[str, Any]:
        """Return the clients, the one with the most pending first if that was asked for."""
        listed = sorted(self.clients, key=lambda one: -one["pending_bytes"]) if "pending" in query else self.clients
        return {"connections": listed}


@exercise(
    "11.1",
    title="find the slow one",
    answer="function",
    expects="the name of the client with the most bytes pending, on any server",
    hint='connz("sort=pending")["connections"] is a list of dictionaries with "name" (not everybody has one) and '
    '"pending_bytes"; the worst of all servers is wanted.',
)
async def finds_the_slow_one(mesh: Mesh, answer: Any) -> Verdict:
    """Ask it about answers of servers that were written down, and about the lesson's own servers."""
    quick, busy, none = _Monitor(shop=0, till=0), _Monitor(report=5_000, dashboard=9_000_000), _Monitor()
    nameless = _Monitor(desk=10)
    nameless.clients.append({"pending_bytes": 5, "cid": 9})
    for monitors, expected, wrong in (
        ([quick, busy], "dashboard", "of two servers, the slow one sits on the second"),
        ([busy, quick], "dashboard", "of two servers, the slow one sits on the first"),
        ([_Monitor(a=1), busy], "dashboard", "both servers have somebody with bytes pending"),
        ([quick], None, "nobody has anything pending"),
        ([none, none], None, "nobody is connected"),
        ([nameless], "desk", "one client has no name"),
    ):
        found = answer(monitors)
        if found != expected:
            return not_yet(f"{wrong}, and {found!r} was returned", repr(expected))
    real = [server.monitor for server in mesh.servers.values() if server.monitor is not None]
    answer(real)
    return correct("the server knows who does not read; it keeps what they have not read")


# 11.2

LIMIT = 3


@exercise(
    "11.2",
    title="an alarm for guessed passwords",
    answer="async function",
    expects="one alarm for each user name that was refused often",
    hint='A Counter over json.loads(msg.data)["client"]["user"], in a callback; alarm when it reaches the limit.',
    within=40.0,
)
async def hears_guesses(mesh: Mesh, answer: Any) -> Verdict:
    """Guess passwords of several users, on a server of the check's own."""
    async with await start_mesh(backend="local") as own:
        admin, alarms = await own.connect(name="check 11.2", system=True), list[object]()
        watching = await answer(admin, LIMIT, alarms.append)
        if not isinstance(watching, Subscription):
            return not_yet(f"{type(watching).__name__} was returned", "the subscription")
        await flush_through(admin)
        for user, times in (("anna", LIMIT - 1), ("ben", LIMIT), ("carl", LIMIT + 2), ("anna", 0)):
            for _ in range(times):
                await _guess(own, user)
        try:
            await eventually(lambda: len(alarms) >= 2, within=5.0)
        except NotReadyError:
            return not_yet(
                f"ben was refused {LIMIT} times and carl {LIMIT + 2}, alarms came for {alarms}", "ben and carl"
            )
        await asyncio.sleep(0.3)  # time for an alarm too many
        if alarms != ["ben", "carl"]:
            return not_yet(f"with a limit of {LIMIT}, alarms came for {alarms}", "['ben', 'carl']")
        await watching.unsubscribe()
    return correct("one error is a typing error, many are somebody who guesses")


async def _guess(own: Mesh, user: str) -> None:
    async def ignore(error: Exception) -> None:
        """It is refused; that is what it is for."""

    login = {"user": user, "password": "guessed"}
    try:
        await nats.connect(own.urls, allow_reconnect=False, error_cb=ignore, **login)
    except nats.errors.Error:
        return


# 11.3


@exercise(
    "11.3",
    title="how old is the oldest?",
    answer="async function",
    expects="the age in seconds of the oldest message that is not acknowledged",
    hint="consumer_info has ack_floor.stream_seq: all up to there is acknowledged. get_msg(stream, seq, "
    "subject=…, next=True) is the message at that sequence, or the next one with that subject; its time is a datetime.",
    within=40.0,
)
async def knows_the_oldest(mesh: Mesh, answer: Any) -> Verdict:
    """Ask before there is anything, while messages wait, while one is in hand, and when all is done."""
    async with await start_mesh(backend="local") as own:
        client = await own.connect(name="check 11.3")
        js = client.jetstream(timeout=3.0)
        await retry(lambda: js.add_stream(name="WORK", subjects=["work", "other"]))
        await js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=60, filter_subject="work"))
        await wait_routable(client, "WORK", "desk")
        return await _ages(js, answer) or correct("seconds are what was promised; a count says nothing about them")


async def _ages(js: JetStreamContext, answer: Any) -> Verdict | None:
    async def age(of: int | None) -> float:
        """How old a message is that was stored as that number, 0 for none; and asked an hour later."""
        found = await answer(js, "WORK", "desk", later)
        expected = 0.0 if of is None else (later - (await js.get_msg("WORK", of)).time).total_seconds()  # type: ignore[operator]
        return abs(float(found) - expected)

    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    if await age(None) > 0.001:
        return not_yet("the stream is empty, and an age was returned", "0.0")
    for subject in ("work", "work", "work"):
        await js.publish(subject, b"")
        await asyncio.sleep(0.05)  # so that their ages differ
    if await age(1) > 0.001:
        return not_yet("three messages wait, and the age is not that of the first", "the oldest one's")
    desk = await js.pull_subscribe_bind("desk", stream="WORK")
    first, second = await desk.fetch(1, timeout=2), await desk.fetch(1, timeout=2)
    if await age(1) > 0.001:
        return not_yet(
            "two messages are in hand, and the age is not that of the first", "the oldest that is not acknowledged"
        )
    await first[0].ack_sync()
    if await age(2) > 0.001:
        return not_yet("the first is acknowledged, and the age is not that of the second", "the oldest that is left")
    await second[0].ack_sync()
    for msg in await desk.fetch(1, timeout=2):
        await msg.ack_sync()
    await js.publish("other", b"")
    if await age(None) > 0.001:
        return not_yet(
            "all is acknowledged, and an age was returned", "0.0: what else the stream holds is not this consumer's"
        )

    async def one_waits() -> bool:
        return bool((await js.consumer_info("WORK", "desk")).num_pending == 1)

    await asyncio.sleep(0.05)
    await js.publish("work", b"")
    await eventually(one_waits, within=10.0)  # the consumer hears of a message after its publisher does
    if await age(5) > 0.001:
        return not_yet(
            "a message waits behind one of another subject, and the age is not its own",
            "the oldest that matches the consumer's filter_subject",
        )
    return None
