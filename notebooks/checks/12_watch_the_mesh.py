"""Checks of notebook 12: the slowest client, an alarm for guessed passwords, the age of the oldest message."""

import asyncio
import contextlib
import datetime
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import eventually, flush_through, wait_routable

# 12.1

LISTED = 1_024  # connz lists no more, unless it is given a limit
SORTS = {
    "cid",
    "start",
    "subs",
    "pending",
    "msgs_to",
    "msgs_from",
    "bytes_to",
    "bytes_from",
    "last",
    "idle",
    "uptime",
    "rtt",
}


class _Monitor:
    """A stand-in for a server's monitor: a /connz that is known, and that heeds sort, limit, offset and state."""

    def __init__(self, *clients: tuple[str, int], closed: Sequence[tuple[str, int]] = ()) -> None:
        self._clients = {"open": self._described(clients), "closed": self._described(closed)}

    @staticmethod
    def _described(clients: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        # Who has little pending has read much: not every number tells who is slow.
        return [
            {"cid": 5 + at, "kind": "Client", "name": name, "pending_bytes": pending, "out_bytes": 10**8 - pending}
            for at, (name, pending) in enumerate(clients)
        ]

    def connz(self, query: str = "") -> dict[str, Any]:
        """Return what a server returns to such a query."""
        asked = dict(parse_qsl(query.lstrip("?")))
        if (sort := asked.get("sort", "cid")) not in SORTS:
            raise ValueError(f"invalid sorting option: {sort}")
        state, offset, limit = asked.get("state", "open"), int(asked.get("offset", 0)), int(asked.get("limit", 0))
        limit = limit if limit > 0 else LISTED
        known = [*self._clients["open"], *self._clients["closed"]] if state == "all" else self._clients[state]
        if sort == "pending":
            known = sorted(known, key=lambda one: -one["pending_bytes"])
        listed = [dict(one) for one in known[offset : offset + limit]]
        found = {"num_connections": len(listed), "total": len(known), "offset": offset, "limit": limit}
        return {**found, "connections": listed}


class _Silent(_Monitor):
    """A stand-in for the monitor of a server that does not answer."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def connz(self, query: str = "") -> dict[str, Any]:
        """Fail as the monitor of a server does that is dead, or hangs."""
        raise self._error


DEAD, FROZEN = _Silent(ConnectionRefusedError(111, "Connection refused")), _Silent(TimeoutError("timed out"))
IDLE = _Monitor(("shop", 0), ("till", 0))
BUSY = _Monitor(("report", 5_000), ("dashboard", 9_000_000))
CROWD = [(f"sensor-{n:04}", 0) for n in range(LISTED + 40)]
READERS: tuple[tuple[str, tuple[_Monitor, ...], str | None], ...] = (
    ("of two servers, the slow one sits on the second", (IDLE, BUSY), "dashboard"),
    ("of two servers, the slow one sits on the first", (BUSY, IDLE), "dashboard"),
    ("both servers have somebody with bytes pending", (_Monitor(("a", 1)), BUSY), "dashboard"),
    ("of three servers, the slow one sits on the second", (IDLE, BUSY, _Monitor(("a", 1))), "dashboard"),
    ("900 bytes are pending for stock and 10,000 for zoë", (_Monitor(("stock", 900), ("zoë", 10_000)),), "zoë"),
    ("one byte is pending for till", (_Monitor(("shop", 0)), _Monitor(("till", 1))), "till"),
    (
        "600 bytes are pending for each of two clients named worker, and 1,000 for report",
        (_Monitor(("worker", 600)), _Monitor(("worker", 600), ("report", 1_000))),
        "report",
    ),
    (
        "of two clients named worker, one has most pending and the other least",
        (_Monitor(("worker", 5_000), ("worker", 5), ("report", 70)), _Monitor(("worker", 1))),
        "worker",
    ),
    ("a server has 1,065 clients, and the slow one came last", (_Monitor(*CROWD, ("report", 7)), IDLE), "report"),
    ("the slow one has left", (_Monitor(("till", 3), closed=[("report", 10_000)]),), "till"),
    ("nobody has anything pending", (IDLE,), None),
    ("nobody is connected", (_Monitor(), _Monitor()), None),
    ("of two servers, the first is dead", (DEAD, BUSY), "dashboard"),
    ("of three servers, the second is frozen", (_Monitor(("a", 1)), FROZEN, BUSY), "dashboard"),
    ("of two servers, the last is dead", (_Monitor(("till", 4)), DEAD), "till"),
    ("one server is dead, and one is frozen", (DEAD, FROZEN), None),
)
STUCK = "lager-süd"
FLOOD_BYTES = 30_000_000  # more than the buffers between a server and a reader hold, less than max_pending


@exercise(
    "12.1",
    title="find the slow one",
    answer="function",
    expects="the name of the client with the most bytes pending, on any server",
    hint='connz("sort=pending")["connections"] is a list of dictionaries with "name" and "pending_bytes", the worst '
    "first (without sort, the oldest 1,024 clients). The worst of all servers is wanted.",
)
async def finds_the_slow_one(trial: Trial, answer: Any) -> str:
    """Ask it about clients that were written down, and about a real one that does not read."""
    for trial.case, monitors, expected in READERS:
        trial.equal(answer(list(monitors)), expected, f"{trial.case}, and ")
    own = await trial.own_mesh()
    shop, [server] = await trial.client(on=own, name="shop"), own.servers.values()
    monitor = server.monitor
    assert monitor is not None  # a local server has one
    # What the server said to a client that has just connected may still be on its way.
    await eventually(lambda: not any(one["pending_bytes"] for one in monitor.connz()["connections"]), within=5.0)
    trial.case = "on a real server nobody has anything pending"
    trial.equal(answer([server.monitor]), None, f"{trial.case}, and ")
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        await reader.readline()  # INFO
        who = own.connect_options()
        login = {"user": who["user"], "pass": who["password"], "name": STUCK, "verbose": False}
        writer.write(f"CONNECT {json.dumps(login)}\r\nSUB flood 1\r\nPING\r\n".encode())
        await reader.readline()  # PONG
        for _ in range(FLOOD_BYTES // 1_000_000):
            await shop.publish("flood", bytes(1_000_000))
        await flush_through(shop)
        trial.case = f"on a real server {STUCK} does not read"
        trial.equal(answer([server.monitor]), STUCK, f"{trial.case}, and ")
    finally:
        writer.close()
    return "the server knows who does not read; it keeps what they have not read"


# 12.2

LIMITS = (3, 2)
REFUSALS = {"anna": 1, "ben": 2, "carl": 7, "Carl": 1, "zoë": 3, "9": 4}
REFUSED = "$SYS.SERVER.*.CLIENT.AUTH.ERR"


@exercise(
    "12.2",
    title="an alarm for guessed passwords",
    answer="async function",
    expects="one alarm for each user name that was refused often",
    hint='A Counter over json.loads(msg.data)["client"]["user"], in a callback; alarm when it reaches the limit.',
    within=40.0,
)
async def hears_guesses(trial: Trial, answer: Any) -> str:
    """Guess passwords of several users, at one server after another, with two watches of different limits."""
    admin = await trial.client(system=True)
    alarms: dict[int, list[object]] = {limit: [] for limit in LIMITS}
    for limit in LIMITS:
        watching = await answer(admin, limit, alarms[limit].append)
        trial.kind(watching, Subscription, "the subscription")
        trial.own(watching)
    await flush_through(admin)
    await _guess_passwords(trial)

    def missing() -> list[tuple[int, str, int]]:
        """Return each alarm that should have come and has not: its limit, its user, how often that user was refused."""
        due = [(limit, user, many) for limit in LIMITS for user, many in REFUSALS.items() if many >= limit]
        return [(limit, user, many) for limit, user, many in due if user not in alarms[limit]]

    with contextlib.suppress(TimeoutError):
        await eventually(lambda: not missing(), within=0.5)
    await flush_through(admin)
    await asyncio.sleep(0.1)  # absence: an alarm too many would come by then
    if complaints := await trial.complaints(admin):
        raise NotYet(f"its callback raised: {complaints[0]}", "a callback that calls alarm(user), a plain function")
    for who in (who for came in alarms.values() for who in came if not isinstance(who, str) or who not in REFUSALS):
        raise NotYet(f"an alarm came for {_shown(who)}", "the names of users who were refused")
    for limit, user, many in missing():
        raise NotYet(f"with a limit of {limit}, {user} was refused {many} times, and no alarm came", "one alarm")
    for limit, came in alarms.items():
        for user, many in REFUSALS.items():
            expected = int(many >= limit)
            if came.count(user) != expected:
                times = f"{many} time{'s' * (many > 1)}, and {came.count(user)} alarm{'s' * (came.count(user) > 1)}"
                raise NotYet(f"with a limit of {limit}, {user} was refused {times} came", "one" if expected else "none")
    return "one error is a typing error, many are somebody who guesses"


def _shown(who: object) -> str:
    if not isinstance(who, str):
        return type(who).__name__
    return "a user who logged in" if who == "lab" else "a user who was refused once" if "probe" in who else repr(who)


async def _guess_passwords(trial: Trial) -> None:
    """Let the users be refused, in turns and at one server after another, and return when that was heard of."""
    ear, heard, urls = await trial.client(system=True), Counter[str](), trial.mesh.urls

    async def note(msg: Msg) -> None:
        heard[json.loads(msg.data)["client"].get("user", "")] += 1

    trial.own(await ear.subscribe(REFUSED, cb=note))
    await flush_through(ear)

    async def quiet(error: Exception) -> None:
        pass

    async def log_in(user: str, password: str, url: str) -> None:
        with contextlib.suppress(nats.errors.Error):  # the refusal
            client = await nats.connect(
                url, user=user, password=password, name="till", allow_reconnect=False, error_cb=quiet
            )
            await client.close()

    probes = (f"probe-{n}" for n in range(1_000))
    for url in urls:  # until the server knows of this listener: then it knows of those that came before

        async def is_heard(url: str = url) -> bool:
            await log_in(probe := next(probes), "", url)
            await asyncio.sleep(0.02)  # pacing: an event takes less
            return bool(heard[probe])

        await eventually(is_heard, within=10.0)
    who = trial.mesh.connect_options()
    left, at = Counter(REFUSALS), 0
    while left := +left:
        for user in left:
            await log_in(user, f"guess-{at}", urls[at % len(urls)])
            left[user] -= 1
            at += 1
        await log_in(who["user"], who["password"], urls[at % len(urls)])
    await eventually(lambda: all(heard[user] == many for user, many in REFUSALS.items()), within=10.0)


# 12.3


def _nows() -> tuple[datetime.datetime, datetime.datetime]:
    """Return two times to come, of two time zones."""
    india = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    now = datetime.datetime.now(datetime.UTC)
    return now + datetime.timedelta(hours=1), now.astimezone(india) + datetime.timedelta(days=3)


@exercise(
    "12.3",
    title="how old is the oldest?",
    answer="async function",
    expects="the age in seconds of the oldest message that is not acknowledged",
    hint="consumer_info has ack_floor.stream_seq: all up to there is acknowledged. get_msg(stream, seq, "
    "subject=…, next=True) is the message at that sequence, or the next one with that subject; its time is a datetime.",
    within=40.0,
)
async def knows_the_oldest(trial: Trial, answer: Any) -> str:
    """Ask before there is anything, while messages wait, while some are in hand, and when all is done."""
    client = await trial.client(on=await trial.own_mesh())
    js = await trial.stream(client, "PARCELS", subjects=["parcels.*", "other"])
    packing = _Packing(trial, client, js, answer)
    await packing.employ(ConsumerConfig(durable_name="desk", ack_wait=60, filter_subject="parcels.*"))
    await packing.expect("desk", None, "the stream is empty")
    await packing.put("other")
    await packing.expect("desk", None, "all that the stream holds is of another subject")
    await packing.put("parcels.a", "parcels.b", "parcels.c")
    await packing.employ(ConsumerConfig(durable_name="all", ack_wait=60))
    await packing.expect("desk", 2, "three messages wait behind one of another subject")
    await packing.expect("all", 1, "four messages wait, and the consumer has no filter_subject")
    first, second, third = [(await packing.take("desk")) for _ in range(3)]
    await packing.expect("desk", 2, "three messages are in hand, and none waits")
    await second.ack_sync()
    await packing.expect("desk", 2, "of three messages in hand the second was acknowledged")
    await first.ack_sync()
    await packing.expect("desk", 4, "of three messages in hand the first two were acknowledged")
    await packing.put("other", "parcels.d")
    await packing.expect("desk", 4, "one message is in hand, and another waits")
    await third.ack_sync()
    await packing.expect("desk", 6, "one message waits behind one of another subject, and none is in hand")
    await (await packing.take("desk")).ack_sync()
    await packing.put("other")
    await packing.expect("desk", None, "all is acknowledged but what another consumer is for")
    await packing.put("parcels.e", "parcels.f")
    await js.delete_msg("PARCELS", 8)
    await packing.expect("desk", 9, "two messages waited, and the first was deleted")
    await packing.employ(ConsumerConfig(durable_name="late", ack_wait=60, deliver_policy=DeliverPolicy.NEW))
    await packing.expect("late", None, "the consumer is for what comes after it, and nothing has come")
    await packing.put("parcels.g")
    await packing.expect("late", 10, "the consumer is for what comes after it, and one message has come")
    return "seconds are what was promised; a count says nothing about them"


class _Packing:
    """A stream of parcels, and consumers with work in hand."""

    def __init__(self, trial: Trial, client: Client, js: JetStreamContext, answer: Any) -> None:
        self._trial, self._client, self._js, self._answer = trial, client, js, answer
        self._desks: dict[str, JetStreamContext.PullSubscription] = {}
        self._subjects: list[str] = []

    async def employ(self, config: ConsumerConfig) -> None:
        """Make a consumer, and bind to it."""
        await self._js.add_consumer("PARCELS", config)
        name = config.durable_name or ""
        await wait_routable(self._client, "PARCELS", name)
        self._desks[name] = self._trial.own(await self._js.pull_subscribe_bind(name, stream="PARCELS"))

    async def put(self, *subjects: str) -> None:
        """Store messages, and return when the consumers know of the last one."""
        for subject in subjects:
            self._subjects.append(subject)
            await asyncio.sleep(0.01)  # pacing: their ages are to differ
            before = {name: await self._waiting(name) for name in self._desks}
            await self._js.publish(subject, b"")
            for name, number in before.items():
                if subject != "other" or name == "all":
                    await self._know(name, number + 1)

    async def _waiting(self, name: str) -> int:
        info = await self._js.consumer_info("PARCELS", name)
        return info.num_pending or 0

    async def _know(self, name: str, number: int) -> None:
        async def knows() -> bool:
            return await self._waiting(name) == number

        await eventually(knows, within=10.0)

    async def take(self, name: str) -> Msg:
        """Return a consumer's next message."""
        [msg] = await self._desks[name].fetch(1, timeout=5)
        return msg

    async def expect(self, name: str, sequence: int | None, case: str) -> None:
        """Expect the age of the message with a sequence number, and 0.0 without one; and a consumer left as it is."""
        self._trial.case = case
        before = await self._state(name)
        for now in _nows():
            returned = await self._answer(self._js, "PARCELS", name, now)
            self._trial.kind(returned, (int, float), "a number of seconds")
            if not math.isclose(returned, await self._age(sequence, now), abs_tol=0.001, rel_tol=0.0):
                seen = await self._named(returned, now)
                raise NotYet(f"{case}, and {seen} was returned", _message(sequence) if sequence else "0.0")
        if await self._state(name) != before:
            raise NotYet("asked for the age, it took messages from the consumer", "that it only looks")

    async def _age(self, sequence: int | None, now: datetime.datetime) -> float:
        if sequence is None:
            return 0.0
        stored_at: Any = (await self._js.get_msg("PARCELS", sequence)).time
        return float((now - stored_at).total_seconds())

    async def _named(self, returned: float, now: datetime.datetime) -> str:
        """Return in words what a wrong age is."""
        for sequence in range(1, len(self._subjects) + 1):
            with contextlib.suppress(nats.errors.Error):  # it was deleted
                if math.isclose(returned, await self._age(sequence, now), abs_tol=0.001, rel_tol=0.0):
                    return _message(sequence)
        return "0" if returned == 0 else "another number"

    async def _state(self, name: str) -> tuple[object, ...]:
        info = await self._js.consumer_info("PARCELS", name)
        return info.delivered, info.ack_floor, info.num_ack_pending, info.num_redelivered, info.num_pending


def _message(sequence: int) -> str:
    return f"the age of message {sequence}"
