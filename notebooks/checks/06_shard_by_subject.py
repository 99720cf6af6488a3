"""The checks of notebook 06: the hash behind a partition, a stream spread by customer, a store with fences."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import SubjectTransform
from nats.js.errors import NoStreamResponseError, NotFoundError
from nats.js.kv import KeyValue

from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import retry, wait_routable, wait_stream

# 6.1

# One of them is not ASCII: the servers hash bytes, not characters.
KEYS = ("000001", "000002", "a", "reseller-7", "Zürich", "069659")
COUNTS = (1, 7, 64)


@exercise(
    "6.1",
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
            trial.equal(answer(key, count), theirs[key], f"for {key!r} of {count} partitions ")
    return "nobody has to be asked where a key lives: publisher, servers and workers compute the same"


async def _partitions(trial: Trial, client: Client, count: int) -> dict[str, int]:
    """Return the partition of each key, as the servers see it."""
    transform = SubjectTransform(src="check61.*", dest=f"check61.{{{{partition({count},1)}}}}.{{{{wildcard(1)}}}}")
    js = await trial.stream(client, "CHECK-6-1", subjects=["check61.*"], subject_transform=transform)
    for key in KEYS:
        await js.publish(f"check61.{key}", b"")
    stored = await _subjects(js, "CHECK-6-1")
    return {subject.split(".")[2]: int(subject.split(".")[1]) for subject in stored}


# 6.2

PARTITIONS = 6
RETURNS = [("eu" if n % 2 else "us", f"{1 + n % 9}", f"{n:06d}") for n in range(36)]


@exercise(
    "6.2",
    title="keep each customer's returns together",
    answer="async function",
    expects="a stream RETURNS, spread over 6 partitions by customer",
    hint="In returns.*.*.* the customer is the second wildcard. A SubjectTransform has src and dest; the partition is "
    "one token of dest, and each of the three wildcards another one.",
    within=30.0,
)
async def keeps_customers_together(trial: Trial, answer: Any) -> str:
    """Publish returns of nine customers in two regions and look at the subjects under which they are stored."""
    client = await trial.client()
    js = await trial.absent(client, "RETURNS")
    await retry(lambda: answer(js))
    try:
        await retry(partial(wait_stream, js, "RETURNS"))
    except NotFoundError as err:
        raise NotYet("no stream RETURNS on the servers", "one for returns.*.*.*") from err
    await wait_routable(client, "RETURNS")
    for region, customer, order in RETURNS:
        with suppress(NoStreamResponseError):  # the verdict says so
            await js.publish(f"returns.{region}.{customer}.{order}", b"a CD")
    _expect_by_customer(await _subjects(js, "RETURNS"))
    return "whoever owns a partition sees all returns of its customers, from every region, in order"


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
        partitions.setdefault(rest.split(".")[1], set()).add(number)
    if len(stored) != len(wanted):
        raise NotYet(f"{len(stored)} returns are stored", f"all {len(wanted)}")
    if torn := [customer for customer, numbers in partitions.items() if len(numbers) > 1]:
        customer = min(torn)
        raise NotYet(
            f"the returns of customer {customer} are in partitions {', '.join(sorted(partitions[customer]))}", "in one"
        )
    theirs = {customer: int(numbers.pop()) for customer, numbers in partitions.items()}
    ours = {customer: _fnv1a(customer) % PARTITIONS for customer in theirs}
    if theirs != ours:
        used = len(set(theirs.values()))
        raise NotYet(
            f"nine customers are spread over {used} partition{'s' * (used > 1)}, not as {PARTITIONS} would do it",
            f"partition({PARTITIONS},…) of the customer alone",
        )


def _fnv1a(key: str) -> int:
    number = 2_166_136_261
    for byte in key.encode():
        number = (number ^ byte) * 16_777_619 % 2**32
    return number


# 6.3


@exercise(
    "6.3",
    title="refuse yesterday's owner",
    answer="async function",
    expects="True when it was stored, False when a larger fence was there",
    hint="get() gives the value and its revision; update(…, last=revision) writes only if nothing was written since, "
    "and last=0 only if there is nothing yet. If it fails, look again: who was it?",
    within=30.0,
)
async def refuses_yesterdays_owner(trial: Trial, answer: Any) -> str:
    """Save one after the other, then with another owner who writes between the answer's read and its write."""
    client = await trial.client()
    js = await trial.absent(client, "KV_CHECK-6-3")
    bucket = await js.create_key_value(bucket="CHECK-6-3")
    await wait_routable(client, "KV_CHECK-6-3")
    await _in_turn(trial, bucket, answer)
    await _at_once(trial, js, bucket, answer)
    return "a worker that slept through its own replacement can say what it likes; the store knows better"


async def _in_turn(trial: Trial, bucket: KeyValue, answer: Any) -> None:
    steps = ((1, True, "a first entry"), (1, True, "the same fence again"), (4, True, "a larger fence"))
    for fence, wanted, what in (*steps, (3, False, "a smaller fence"), (4, True, "the largest fence again")):
        text = f"{what}, {fence}"
        trial.equal(await answer(bucket, "order", fence, text), wanted, f"{what}: ")
        held = await _entry(bucket, "order")
        if wanted and held != {"fence": fence, "text": text}:
            raise NotYet(f"{what}: the key holds {held!r}", f"{ {'fence': fence, 'text': text}!r}")
        if not wanted and held.get("fence") != 4:
            raise NotYet(f"{what} was stored", "nothing stored, and False")


async def _at_once(trial: Trial, js: JetStreamContext, bucket: KeyValue, answer: Any) -> None:
    for key, before, between, fence in (
        ("new", None, 9, 5),
        ("late", 1, 9, 5),
        ("first", 1, 3, 5),
        ("fresh", None, 3, 5),
    ):
        if before is not None:
            await bucket.put(key, json.dumps({"fence": before, "text": "before"}).encode())
        writes = partial(bucket.put, key, json.dumps({"fence": between, "text": "between"}).encode())
        said = await answer(_interrupted(await js.key_value("CHECK-6-3"), writes), key, fence, "mine")
        held = await _entry(bucket, key)
        newest = max(fence, between)
        if held.get("fence") != newest:
            raise NotYet(
                f"an owner with fence {between} wrote between the read and the write of fence {fence}, and the key "
                f"holds fence {held.get('fence')}",
                f"{newest}",
            )
        trial.equal(said, fence > between, f"fence {between} was written just before fence {fence}: ")


def _interrupted(bucket: KeyValue, write: Callable[[], Awaitable[object]]) -> KeyValue:
    """Have another owner write once, right after the bucket was read for the first time."""
    read, pending = bucket.get, [write]

    async def get(*args: Any, **kwargs: Any) -> KeyValue.Entry:
        try:
            return await read(*args, **kwargs)
        finally:
            if pending:
                await pending.pop()()

    bucket.get = get  # type: ignore[method-assign]
    return bucket


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
