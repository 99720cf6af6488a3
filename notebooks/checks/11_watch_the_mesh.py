"""Checks of notebook 11: the slowest client, an alarm for guessed passwords, the age of the oldest message."""

import asyncio
import contextlib
import datetime
from typing import Any

import nats.errors
from nats.aio.subscription import Subscription
from nats.js.api import ConsumerConfig

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import eventually, flush_through, wait_routable

# 11.1


class _Monitor:
    """A stand-in for a server's monitor, with a /connz that is known."""

    def __init__(self, **pending: int) -> None:
        clients = [{"name": name, "pending_bytes": many, "cid": at} for at, (name, many) in enumerate(pending.items())]
        self.clients: list[dict[str, Any]] = clients

    def connz(self, query: str = "") -> dict[str, Any]:
        """Return the clients, the one with the most pending first if the query sorts by it."""
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
async def finds_the_slow_one(trial: Trial, answer: Any) -> str:
    """Ask it about clients that were written down, and about the lesson's own servers."""
    quick, busy, none = _Monitor(shop=0, till=0), _Monitor(report=5_000, dashboard=9_000_000), _Monitor()
    nameless = _Monitor(desk=10)
    nameless.clients.append({"pending_bytes": 5, "cid": 9})
    for monitors, expected, case in (
        ([quick, busy], "dashboard", "of two servers, the slow one sits on the second"),
        ([busy, quick], "dashboard", "of two servers, the slow one sits on the first"),
        ([_Monitor(a=1), busy], "dashboard", "both servers have somebody with bytes pending"),
        ([quick], None, "nobody has anything pending"),
        ([none, none], None, "nobody is connected"),
        ([nameless], "desk", "one client has no name"),
    ):
        trial.equal(answer(monitors), expected, f"{case}, and ")
    answer([server.monitor for server in trial.mesh.servers.values() if server.monitor is not None])
    return "the server knows who does not read; it keeps what they have not read"


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
async def hears_guesses(trial: Trial, answer: Any) -> str:
    """Guess passwords of several users, on a server of the check's own."""
    own, alarms = await trial.own_mesh(), list[object]()
    admin = await trial.client(on=own, system=True)
    watching = await answer(admin, LIMIT, alarms.append)
    trial.kind(watching, Subscription, "the subscription")
    trial.own(watching)
    await flush_through(admin)
    for user, times in {"anna": LIMIT - 1, "ben": LIMIT, "carl": LIMIT + 2}.items():
        login = {"user": user, "password": "guessed"}
        for _ in range(times):
            with contextlib.suppress(nats.errors.Error):  # the refusal
                await trial.enter(own, **login)
    await trial.soon(
        lambda: len(alarms) >= 2,
        lambda: f"ben was refused {LIMIT} times and carl {LIMIT + 2}, alarms came for {alarms}",
        "ben and carl",
        within=5.0,
    )
    await asyncio.sleep(0.3)  # absence: an alarm too many would come by then
    if alarms != ["ben", "carl"]:
        raise NotYet(f"with a limit of {LIMIT}, alarms came for {alarms}", "['ben', 'carl']")
    return "one error is a typing error, many are somebody who guesses"


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
async def knows_the_oldest(trial: Trial, answer: Any) -> str:
    """Ask before there is anything, while messages wait, while one is in hand, and when all is done."""
    client = await trial.own_client()
    js = await trial.stream(client, "WORK", subjects=["work", "other"])
    await js.add_consumer("WORK", ConsumerConfig(durable_name="desk", ack_wait=60, filter_subject="work"))
    await wait_routable(client, "WORK", "desk")
    desk = trial.own(await js.pull_subscribe_bind("desk", stream="WORK"))
    an_hour_later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

    async def expect_age(sequence: int | None, seen: str, expected: str) -> None:
        """Expect the age that the message with a sequence number will have in an hour, and 0 without one."""
        returned, age = float(await answer(js, "WORK", "desk", an_hour_later)), 0.0
        if sequence is not None:
            stored_at: Any = (await js.get_msg("WORK", sequence)).time
            age = (an_hour_later - stored_at).total_seconds()
        if abs(returned - age) > 0.001:
            raise NotYet(seen, expected)

    await expect_age(None, "the stream is empty, and an age was returned", "0.0")
    for _ in range(3):
        await js.publish("work", b"")
        await asyncio.sleep(0.05)  # pacing: their ages are to differ
    await expect_age(1, "three messages wait, and the age is not that of the first", "the oldest one's")
    first, second = await desk.fetch(1, timeout=2), await desk.fetch(1, timeout=2)
    seen = "two messages are in hand, and the age is not that of the first"
    await expect_age(1, seen, "the oldest that is not acknowledged")
    await first[0].ack_sync()
    seen = "the first is acknowledged, and the age is not that of the second"
    await expect_age(2, seen, "the oldest that is left")
    await second[0].ack_sync()
    for msg in await desk.fetch(1, timeout=2):
        await msg.ack_sync()
    await js.publish("other", b"")
    seen = "all is acknowledged, and an age was returned"
    await expect_age(None, seen, "0.0: what else the stream holds is not this consumer's")

    async def one_waits() -> bool:
        return bool((await js.consumer_info("WORK", "desk")).num_pending == 1)

    await asyncio.sleep(0.05)  # pacing: their ages are to differ
    await js.publish("work", b"")
    await eventually(one_waits, within=10.0)  # the consumer hears of a message after its publisher does
    seen = "a message waits behind one of another subject, and the age is not its own"
    await expect_age(5, seen, "the oldest that matches the consumer's filter_subject")
    return "seconds are what was promised; a count says nothing about them"
