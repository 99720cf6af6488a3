"""The checks of notebook 07: the hash behind a partition, a stream spread by customer, a store with fences."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from numbers import Integral
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StreamConfig, SubjectTransform
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError
from nats.js.kv import KeyValue

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import retry, wait_routable, wait_stream

# 7.1

# Some are not ASCII: the servers hash bytes, not characters; one begins with a capital, one is long.
KEYS = (
    "000001",
    "000002",
    "a",
    "reseller-7",
    "Zürich",
    "069659",
    "Zu\u0308rich",
    "\U0001f4bf",
    "order-" + 9 * "0123456789",
)
COUNTS = (1, 7, 10, 64, 1_000)


@exercise(
    "7.1",
    title="find the partition yourself",
    answer="function",
    expects="the number that the servers write for a key",
    hint="key.encode() gives the bytes; ^ is the exclusive or; the lowest 32 bits are the remainder of a division by "
    "2**32. The order matters: first the exclusive or, then the product.",
    within=30.0,
)
async def finds_the_partition(trial: Trial, answer: Any) -> str:
    """Have the servers spread some keys, and compare."""
    client = await trial.client()
    for count in COUNTS:
        theirs = await _partitions(trial, client, count)
        for key in KEYS:
            ours = answer(key, count)
            trial.kind(ours, Integral, "the number of a partition")
            trial.equal(ours, theirs[key], f"for {key!r} of {count} partitions ")
    return "nobody has to be asked where a key lives: publisher, servers and workers compute the same"


async def _partitions(trial: Trial, client: Client, count: int) -> dict[str, int]:
    """Return the partition of each key, as the servers see it."""
    transform = SubjectTransform(src="check61.*", dest=f"check61.{{{{partition({count},1)}}}}.{{{{wildcard(1)}}}}")
    js = await trial.stream(client, "CHECK-6-1", subjects=["check61.*"], subject_transform=transform)
    for key in KEYS:
        await js.publish(f"check61.{key}", b"")
    stored = await _subjects(js, "CHECK-6-1")
    return {subject.split(".")[2]: int(subject.split(".")[1]) for subject in stored}


# 7.2

PARTITIONS = 6
CUSTOMERS = (*(str(number) for number in range(1, 11)), "reseller-7", "Zürich")
RETURNS = [
    (region, customer, f"{3 * place + number:06d}")
    for place, customer in enumerate(CUSTOMERS)
    for number, region in enumerate(("eu", "us", "asia"))
]


@exercise(
    "7.2",
    title="keep each customer's returns together",
    answer="async function",
    expects="a stream RETURNS, spread over 6 partitions by customer",
    hint="In returns.*.*.* the customer is the second wildcard. A SubjectTransform has src and dest; the partition is "
    "one token of dest, and each of the three wildcards another one.",
    within=30.0,
)
async def keeps_customers_together(trial: Trial, answer: Any) -> str:
    """Publish returns of customers in three regions and look at the subjects under which they are stored."""
    client = await trial.client()
    js = await trial.absent(client, "RETURNS")
    await retry(lambda: answer(js))
    try:
        await retry(partial(wait_stream, js, "RETURNS"))
    except NotFoundError as err:
        raise NotYet("no stream RETURNS on the servers", "one for returns.*.*.*") from err
    if (await retry(lambda: js.stream_info("RETURNS"))).config.no_ack:
        raise NotYet("the stream acknowledges nothing (no_ack)", "an answer that a return is stored")
    await wait_routable(client, "RETURNS")
    for region, customer, order in (*RETURNS, RETURNS[0]):  # one order comes back in two parcels
        subject = f"returns.{region}.{customer}.{order}"
        try:
            with suppress(NoStreamResponseError):  # the verdict says so
                await js.publish(subject, b"a CD")
        except APIError as err:
            raise NotYet(f"a return was refused: {err.description}", "every return stored") from err
    _expect_by_customer(await _subjects(js, "RETURNS"))
    await _expect_to_be_kept(js)
    return "whoever owns a partition sees all returns of its customers, from every region, in order"


async def _expect_to_be_kept(js: JetStreamContext) -> None:
    """Look for limits by which a refund would not see all earlier returns."""
    info = await retry(lambda: js.stream_info("RETURNS"))
    if info.state.messages != len(RETURNS) + 1:
        seen = f"of two returns of one order, {info.state.messages - len(RETURNS) + 1} is kept"
        raise NotYet(seen, "both: a refund sees all earlier returns")
    config: StreamConfig = info.config
    limits = {"max_age": config.max_age, "max_msgs": config.max_msgs, "max_bytes": config.max_bytes}
    if dropping := [name for name, limit in limits.items() if (limit or 0) > 0]:
        raise NotYet(f"the stream has a limit, {dropping[0]}, and drops returns", "all earlier returns kept")
    if config.retention != RetentionPolicy.LIMITS:
        raise NotYet("a return is gone when it was read once", "all earlier returns kept")


def _expect_by_customer(stored: list[str]) -> None:
    wanted = {f"{region}.{customer}.{order}" for region, customer, order in RETURNS}
    if not stored:
        raise NotYet("nothing that was published on returns.<region>.<customer>.<order> is stored", "all of it")
    partitions: dict[str, set[str]] = {}
    for subject in stored:
        name, _, rest = subject.partition(".")
        number, _, rest = rest.partition(".")
        if name != "returns" or rest not in wanted:
            raise NotYet(f"a return is stored as {subject}", "returns.<partition>.<region>.<customer>.<order>")
        wanted.discard(rest)
        partitions.setdefault(rest.split(".")[1], set()).add(number)
    if wanted:
        kept = f"{len(RETURNS) - len(wanted)} of {len(RETURNS)} returns are stored"
        raise NotYet(f"{kept}, and returns.{min(wanted)} is not", "all of them")
    if torn := [customer for customer, numbers in partitions.items() if len(numbers) > 1]:
        customer = min(torn)
        raise NotYet(
            f"the returns of customer {customer} are in partitions {', '.join(sorted(partitions[customer]))}", "in one"
        )
    theirs = {customer: numbers.pop() for customer, numbers in partitions.items()}
    ours = {customer: str(_fnv1a(customer) % PARTITIONS) for customer in theirs}
    if theirs != ours:
        used = len(set(theirs.values()))
        raise NotYet(
            f"{len(theirs)} customers are spread over {used} partition{'s' * (used > 1)}, "
            f"not as {PARTITIONS} would do it",
            f"partition({PARTITIONS},…) of the customer alone",
        )


def _fnv1a(key: str) -> int:
    number = 2_166_136_261
    for byte in key.encode():
        number = (number ^ byte) * 16_777_619 % 2**32
    return number


# 7.3

SAVED_WITHIN_S = 3.0
BUCKETS = ("CHECK-6-3", "CHECK-6-3-b")


@exercise(
    "7.3",
    title="refuse yesterday's owner",
    answer="async function",
    expects="True when it was stored, False when a larger fence was there",
    hint="get() gives the value and its revision; update(…, last=revision) writes only if nothing was written since, "
    "and last=0 only if there is nothing yet. If it fails, look again: who was it?",
    within=30.0,
)
async def refuses_yesterdays_owner(trial: Trial, answer: Any) -> str:
    """Save one after the other, then while another owner writes just before, then side by side."""
    client, rival = await trial.client(), await trial.client()
    js = await trial.absent(rival, *(f"KV_{name}" for name in BUCKETS))
    for name in BUCKETS:
        await js.create_key_value(bucket=name)
        await wait_routable(rival, f"KV_{name}")
        await _in_turn(_Store(name, js, await client.jetstream(timeout=3.0).key_value(name), answer))
    async with _gate(trial) as (gated, gate):
        store = _Store(BUCKETS[1], js, await gated.jetstream(timeout=3.0).key_value(BUCKETS[1]), answer)
        await _just_before(store, gate)
        await _at_once(store)
    return "a worker that slept through its own replacement can say what it likes; the store knows better"


class _Gate:
    """A way to the first server on which a write to a key-value bucket waits until a rival's has been made."""

    def __init__(self, trial: Trial) -> None:
        self._server = next(iter(trial.mesh.servers.values()))
        self.rivals: list[Callable[[], Awaitable[object]]] = []
        """What happens before the next write, before the one after that, and so on, on another connection."""
        self.connections: list[asyncio.Task[None]] = []

    def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._carry_both_ways(reader, writer)))

    async def _carry_both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(self._server.host, self._server.port)
        await asyncio.gather(self._carry_up(reader, there), _carry(back, writer))

    async def _carry_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what the client sends, a line or a message at a time."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # it has hung up
            while True:
                line = await reader.readuntil(b"\r\n")
                verb, *words = line.split()
                if verb in (b"PUB", b"HPUB"):
                    line += await reader.readexactly(int(words[-1]) + 2)
                    if words[0].startswith(b"$KV.") and self.rivals:
                        await self.rivals.pop(0)()
                writer.write(line)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def _gate(trial: Trial) -> AsyncIterator[tuple[Client, _Gate]]:
    """Yield a client that is connected by way of a gate."""
    gate = _Gate(trial)
    async with await asyncio.start_server(gate.join, "127.0.0.1", 0) as listener:
        client = await trial.client(servers=[f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"])
        try:
            yield client, gate
        finally:
            await client.close()
            await asyncio.gather(*gate.connections)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


class _Store:
    """A bucket, with the answer that saves into it."""

    def __init__(self, name: str, js: JetStreamContext, bucket: KeyValue, answer: Any) -> None:
        self.bucket = bucket
        self._name, self._js, self._answer = name, js, answer

    async def save(self, key: str, fence: int, text: str, what: str) -> Any:
        seen = f"{what}: save did not return in {SAVED_WITHIN_S:g} s"
        call = self._answer(self.bucket, key, fence, text)
        return await Trial.returns(call, seen, "True or False", within=SAVED_WITHIN_S)

    async def writes(self) -> int:
        """Return how often anything was written to the bucket."""
        return int((await retry(lambda: self._js.stream_info(f"KV_{self._name}"))).state.last_seq)

    async def rival(self, key: str, fence: int | None) -> None:
        """Write an entry as another worker would, or delete the key."""
        text = json.dumps({"fence": fence, "text": "another's"}).encode() if fence else b""
        headers = None if fence else {"KV-Operation": "DEL"}
        await retry(lambda: self._js.publish(f"$KV.{self._name}.{key}", text, headers=headers))


async def _in_turn(store: _Store) -> None:
    text = 'Zoë\'s order: "2 CDs"'
    await store.rival("other", 99)  # another key's fence does not count
    for fence, wanted, what in (
        (1, True, "a first entry"),
        (1, True, "the same fence again"),
        (4, True, "a larger fence"),
        (3, False, "a smaller fence"),
        (4, True, "the largest fence again"),
        (9, True, "fence 9 after 4"),
        (10, True, "fence 10 after 9"),
        (9, False, "fence 9 after 10"),
        (1_000_000, True, "a much larger fence"),
        (999_999, False, "a fence smaller by one"),
    ):
        before, mine = await store.writes(), f"{text} {what}"
        held = await _entry(store.bucket, "order.7")
        Trial.equal(await store.save("order.7", fence, mine, what), wanted, f"{what}: ")
        expected = {"fence": fence, "text": mine} if wanted else held
        if (holds := await _entry(store.bucket, "order.7")) != expected:
            raise NotYet(f"{what}: the key holds {holds!r}", f"{expected!r}")
        if (added := await store.writes() - before) != wanted:
            raise NotYet(f"{what}: {added} entries were written", "one" if wanted else "nothing stored, and False")
    await store.rival("order.7", None)
    Trial.equal(await store.save("order.7", 2, text, ""), True, "a key that was deleted, which holds no fence: ")


async def _just_before(store: _Store, gate: _Gate) -> None:
    """Let others write just before the answer's own write reaches the server, once and more than once."""
    cases: tuple[tuple[str, int | None, list[int | None], int], ...] = (
        ("new", None, [9], 5),
        ("late", 1, [9], 5),
        ("first", 1, [3], 5),
        ("fresh", None, [3], 5),
        ("same", 1, [5], 5),
        ("text", 8, [9], 10),
        ("often", 1, [2, 3, 4], 5),
        ("too-often", 1, [2, 3, 9], 5),
        ("deleted", 1, [None], 5),
    )
    for key, before, rivals, fence in cases:
        if before is not None:
            await store.rival(key, before)
        gate.rivals[:] = [partial(store.rival, key, rival) for rival in rivals]
        names = [f"fence {rival}" if rival else "nothing, for it deleted the key," for rival in rivals]
        what = f"another owner wrote {' and then '.join(names)} just before fence {fence} was to be written"
        said = await store.save(key, fence, "mine", what)
        newest = max(fence, *(rival or 0 for rival in rivals))
        holds = await _entry(store.bucket, key)
        if holds.get("fence") != newest or (holds.get("text") == "mine") is not (newest == fence):
            raise NotYet(f"{what}: the key holds {holds!r}", f"fence {newest}")
        Trial.equal(said, newest == fence, f"{what}: ")


async def _at_once(store: _Store) -> None:
    fences, before = (7, 10, 8, 12, 9, 11), await store.writes()
    calls = [store.save("busy", fence, f"of {fence}", "six owners at the same time") for fence in fences]
    said = await asyncio.gather(*calls)
    what, holds = "six owners saved at the same time", await _entry(store.bucket, "busy")
    if holds != {"fence": 12, "text": "of 12"}:
        raise NotYet(f"{what}: the key holds {holds!r}", "the largest fence, 12")
    if not all(isinstance(one, bool) for one in said) or not said[fences.index(12)]:
        raise NotYet(f"{what}: the one with the largest fence was not told True", "True for what was stored")
    if said.count(True) != await store.writes() - before:
        raise NotYet(f"{what}: more were told True than entries were written", "True for what was stored")


async def _entry(bucket: KeyValue, key: str) -> dict[str, Any]:
    try:
        held = json.loads((await bucket.get(key)).value or b"")
    except (NotFoundError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


# What they share


async def _subjects(js: JetStreamContext, stream: str) -> list[str]:
    state = (await retry(lambda: js.stream_info(stream, subjects_filter=">"))).state
    return sorted(state.subjects or {})
