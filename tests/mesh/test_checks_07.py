"""The exercises of notebook 07: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import json
from functools import cache

import pytest
from exercise_cells import ExerciseCells, accepted, refused
from nats.js.api import StorageType, StreamConfig, SubjectTransform
from nats.js.errors import APIError, KeyNotFoundError, KeyWrongLastSequenceError

CELLS = ExerciseCells("07_shard_by_subject", json=json, SubjectTransform=SubjectTransform)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests(
    twice=("7.1", "7.2", "7.3")
)


def fnv(key, *, first="xor", codes=lambda key: key.encode(), bits=32):
    number = 2_166_136_261
    for code in codes(key):
        number = (number ^ code) * 16_777_619 if first == "xor" else (number * 16_777_619) ^ code
        number %= 2**bits
    return number


def going_on():
    number = 2_166_136_261

    def partition(key, partitions):
        nonlocal number
        for byte in key.encode():
            number = (number ^ byte) * 16_777_619 % 2**32
        return number % partitions

    return partition


def remembering():
    """What was found for a key is said again, whatever the number of partitions."""
    known = {}
    return lambda key, partitions: known.setdefault(key, fnv(key) % partitions)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda key, partitions: fnv(key, first="times") % partitions, "was returned; expected"),
        (lambda key, partitions: fnv(key, codes=lambda key: map(ord, key)) % partitions, "for 'Zürich'"),
        (lambda key, partitions: fnv(key, codes=lambda key: key.encode("utf-16-le")) % partitions, "for '000001'"),
        (
            lambda key, partitions: fnv(key, codes=lambda key: key.encode("ascii", "ignore")) % partitions,
            "rich' of 7",
        ),
        (lambda key, partitions: fnv(key.lower()) % partitions, "for 'Zürich'"),
        (lambda key, partitions: fnv(key[:64]) % partitions, "for 'order-0123456789"),
        (lambda key, partitions: fnv(key.lstrip("0")) % partitions, "for '000001'"),
        (lambda key, partitions: fnv(key, bits=64) % partitions, "was returned; expected"),
        (lambda key, partitions: fnv(key), "of 1 partitions"),
        (lambda key, partitions: fnv(key) & (partitions - 1), "of 7 partitions"),
        (lambda key, partitions: fnv(key) % min(partitions, 256), "of 1000 partitions"),
        (lambda key, partitions: str(fnv(key) % partitions), "str was returned; expected the number of a partition"),
        (lambda key, partitions: float(fnv(key) % partitions), "float was returned"),
        (lambda key, partitions: fnv(key) % partitions + 1, "1 was returned; expected 0"),
        (lambda key, partitions: hash(key) % partitions, "was returned; expected"),
        (going_on(), "for '000001' of 7 partitions"),
        (remembering(), "of 7 partitions"),
    ],
    ids=[
        *(
            "FNV-1",
            "characters",
            "UTF-16",
            "ASCII",
            "small letters",
            "64 letters",
            "no noughts",
            "64 bits",
            "no modulo",
        ),
        *("a mask", "up to 256", "text", "a float", "from one", "Python's own hash", "goes on", "remembers"),
    ],
)
async def test_another_hash_is_refused(mesh, answer, said):
    assert said in await refused("7.1", answer)


def masked(key, partitions):
    number = 0x811C9DC5
    for byte in bytearray(key, "utf-8"):
        number ^= byte
        number = (number + (number << 1) + (number << 4) + (number << 7) + (number << 8) + (number << 24)) & 0xFFFFFFFF
    return number % partitions


@pytest.mark.parametrize(
    "answer",
    [masked, lambda key, partitions: fnv(key, bits=4_096) % 2**32 % partitions, cache(masked)],
    ids=["shifts", "cut off at the end", "cached"],
)
async def test_another_way_to_the_same_hash_is_accepted(mesh, answer):
    await accepted("7.1", answer)


def returns_to(dest, *, sources=("returns.*.*.*",), name="RETURNS", **config):
    async def make(js):
        transform = SubjectTransform(src="returns.*.*.*", dest=dest) if dest else None
        await js.add_stream(name=name, subjects=list(sources), subject_transform=transform, **config)

    return make


REST = "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}"
RIGHT = f"returns.{{{{partition(6,2)}}}}.{REST}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (returns_to(f"returns.{{{{partition(6,1)}}}}.{REST}"), "are in partitions"),
        (returns_to(f"returns.{{{{partition(6,3)}}}}.{REST}"), "are in partitions"),
        (returns_to(f"returns.{{{{partition(6,1,2)}}}}.{REST}"), "are in partitions"),
        (returns_to(f"returns.{{{{partition(3,2)}}}}.{REST}"), "not as 6 would do it"),
        (returns_to(f"returns.{{{{partition(12,2)}}}}.{REST}"), "not as 6 would do it"),
        (returns_to(f"returns.0.{REST}"), "spread over 1 partition, not as 6"),
        (returns_to(f"{{{{partition(6,2)}}}}.returns.{REST}"), "is stored as"),
        (returns_to("returns.{{partition(6,2)}}.{{wildcard(2)}}.{{wildcard(1)}}.{{wildcard(3)}}"), "is stored as"),
        (returns_to("returns.{{partition(6,2)}}.{{wildcard(2)}}.{{wildcard(3)}}"), "is stored as"),
        (returns_to(None), "a return is stored as returns."),
        (
            returns_to(RIGHT, sources=("returns.eu.*.*", "returns.us.*.*")),
            "24 of 36 returns are stored, and returns.asia.1.000002 is not",
        ),
        (returns_to(RIGHT, max_msgs=30), "30 of 36 returns are stored"),
        (returns_to(RIGHT, max_msgs=1_000), "the stream has a limit, max_msgs, and drops returns"),
        (returns_to(RIGHT, max_age=3_600), "the stream has a limit, max_age, and drops returns"),
        (returns_to(RIGHT, max_msgs_per_subject=1), "of two returns of one order, 1 is kept"),
        (returns_to(RIGHT, max_msg_size=2), "a return was refused: message size exceeds maximum allowed"),
        (returns_to(RIGHT, retention="workqueue"), "a return is gone when it was read once"),
        (returns_to(RIGHT, retention="interest"), "nothing that was published"),
        (returns_to(RIGHT, no_ack=True), "the stream acknowledges nothing"),
    ],
    ids=[
        *("region", "order", "both", "three", "twelve", "one", "in front", "another order", "no region"),
        *("no transform", "two regions", "thirty", "a limit", "an hour", "one for each order", "none so large"),
        *("read once", "while somebody reads", "says nothing"),
    ],
)
async def test_returns_that_are_spread_otherwise_are_refused(mesh, make, said):
    assert said in await refused("7.2", make)


async def by_the_api(js):
    transform = {"src": "returns.*.*.*", "dest": RIGHT}
    config = {"name": "RETURNS", "subjects": ["returns.>"], "subject_transform": transform, "storage": "memory"}
    await js._nc.request("$JS.API.STREAM.CREATE.RETURNS", json.dumps(config).encode(), timeout=3)


async def makes_it_and_then_updates_it(js):
    config = StreamConfig(name="RETURNS", subjects=["returns.*.*.*"], storage=StorageType.FILE, num_replicas=3)
    await js.add_stream(config)
    await js.update_stream(config.evolve(subject_transform=SubjectTransform(src="returns.*.*.*", dest=RIGHT)))


@pytest.mark.parametrize("make", [by_the_api, makes_it_and_then_updates_it])
async def test_a_stream_of_returns_made_otherwise_is_accepted(mesh, make):
    await accepted("7.2", make)


async def test_a_stream_for_returns_that_is_not_there_or_hears_nothing_is_refused(mesh):
    async def forget(js):
        await js.account_info()

    assert "no stream RETURNS" in await refused("7.2", forget)
    assert "nothing that was published" in await refused("7.2", returns_to(None, sources=["return.*.*.*"]))
    assert "no stream RETURNS" in await refused("7.2", returns_to(RIGHT, name="RETURNED"))


def text_of(fence, text):
    return json.dumps({"fence": fence, "text": text}).encode()


async def held(bucket, key):
    """Return the fence that a key holds, and the revision to update."""
    try:
        entry = await bucket.get(key)
    except KeyNotFoundError as err:
        return -1, err.entry.revision if err.entry else 0
    return json.loads(entry.value)["fence"], entry.revision


def saving(
    *,
    blocks=lambda there, fence: there > fence,
    tries=100,
    content=text_of,
    refused=False,
    stored=True,
    deleted=True,
    key_of=lambda key: key,
    gives_up=False,
):
    """A store that differs from the solution in one way."""

    async def save(bucket, key, fence, text):
        for _ in range(tries):
            there, last = await held(bucket, key_of(key))
            if blocks(there, fence):
                return refused
            try:
                await bucket.update(key_of(key), content(fence, text), last=last if there >= 0 or deleted else 0)
            except KeyWrongLastSequenceError:
                continue
            return stored
        return gives_up

    return save


async def overwrite(bucket, key, fence, text):
    await bucket.put(key, text_of(fence, text))
    return True


async def look_then_put(bucket, key, fence, text):
    there, _ = await held(bucket, key)
    if there > fence:
        return False
    await bucket.put(key, text_of(fence, text))
    return True


async def put_then_put_back(bucket, key, fence, text):
    try:
        before = await bucket.get(key)
    except KeyNotFoundError:
        before = None
    await bucket.put(key, text_of(fence, text))
    if before is None or json.loads(before.value)["fence"] <= fence:
        return True
    await bucket.put(key, before.value)
    return False


async def the_last_one_wins(bucket, key, fence, text):
    try:
        await bucket.create(key, text_of(fence, text))
    except KeyWrongLastSequenceError:
        return await look_then_put(bucket, key, fence, text)
    return True


def remembers_fences():
    largest = {}

    async def save(bucket, key, fence, text):
        if largest.get(key, 0) > fence:
            return False
        largest[key] = fence
        await bucket.put(key, text_of(fence, text))
        return True

    return save


def one_at_a_time_here():
    lock = asyncio.Lock()

    async def save(bucket, key, fence, text):
        async with lock:
            return await look_then_put(bucket, key, fence, text)

    return save


async def keeps_a_list(bucket, key, fence, text):
    said = await saving()(bucket, key, fence, text)
    await bucket.put("log", text.encode())
    return said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (overwrite, "a smaller fence: True was returned; expected False"),
        (look_then_put, "another owner wrote fence 9 just before fence 5 was to be written: the key holds {'fence': 5"),
        (
            the_last_one_wins,
            "fence 3 and then fence 9 just before fence 5 was to be written: the key holds {'fence': 5",
        ),
        (one_at_a_time_here(), "another owner wrote fence 9 just before fence 5 was to be written: the key holds"),
        (remembers_fences(), "a key that was deleted, which holds no fence: False was returned; expected True"),
        (put_then_put_back, "a smaller fence: 2 entries were written; expected nothing stored"),
        (keeps_a_list, "a first entry: 2 entries were written; expected one"),
        (saving(tries=1), "wrote fence 3 just before fence 5 was to be written: the key holds {'fence': 3"),
        (saving(tries=2), "wrote fence 2 and then fence 3 and then fence 4 just before fence 5 was to be written"),
        (saving(tries=1, gives_up=True), "wrote fence 9 just before fence 5 was to be written: True was returned"),
        (saving(blocks=lambda there, fence: there >= fence), "the same fence again: False was returned; expected True"),
        (saving(blocks=lambda there, fence: str(there) > str(fence)), "fence 10 after 9: False was returned"),
        (saving(blocks=lambda there, fence: there > fence + 1), "a smaller fence: True was returned"),
        (saving(deleted=False), "a key that was deleted, which holds no fence: False was returned"),
        (saving(stored=None), "a first entry: None was returned; expected True"),
        (saving(stored=1), "a first entry: 1 was returned; expected True"),
        (saving(refused=None), "a smaller fence: None was returned; expected False"),
        (saving(content=lambda fence, text: text_of(str(fence), text)), "the key holds {'fence': '1'"),
        (saving(content=lambda fence, text: text.encode()), "a first entry: the key holds {}"),
        (saving(content=lambda fence, text: f'{{"fence": {fence}, "text": "{text}"}}'.encode()), "the key holds {}"),
        (saving(content=lambda fence, text: text_of(fence, text.encode("ascii", "replace").decode())), "'text': 'Zo?"),
        (saving(key_of=lambda key: "order"), "a first entry: the key holds {}"),
        (saving(key_of=lambda key: "other"), "a first entry: False was returned"),
    ],
    ids=[
        *("overwrites", "does not lock", "create, then put", "a lock of its own", "remembers", "puts back", "a list"),
        *("gives up", "tries twice", "gives up and says True", "only larger ones", "as text", "one less"),
        *("deleted keys", "says nothing", "says 1", "says None", "text", "no JSON", "JSON by hand", "ASCII"),
        *("another key", "one key"),
    ],
)
async def test_a_store_that_lets_a_late_writer_in_or_keeps_the_owner_out_is_refused(mesh, answer, said):
    assert said in await refused("7.3", answer)


async def creates_first(bucket, key, fence, text):
    try:
        await bucket.create(key, text_of(fence, text))
    except KeyWrongLastSequenceError:
        return await saving()(bucket, key, fence, text)
    return True


async def publishes_the_header_itself(bucket, key, fence, text):
    while True:
        there, last = await held(bucket, key)
        if there > fence:
            return False
        headers = {"Nats-Expected-Last-Subject-Sequence": str(last)}
        status = await bucket.status()
        try:
            js = bucket._js
            await js.publish(f"$KV.{status.bucket}.{key}", text_of(fence, text), headers=headers)
        except APIError as err:
            if err.err_code != 10_071:
                raise
        else:
            return True


async def reads_twice(bucket, key, fence, text):
    await held(bucket, key)
    return await saving()(bucket, key, fence, text)


@pytest.mark.parametrize("answer", [creates_first, publishes_the_header_itself, reads_twice])
async def test_a_store_that_locks_in_another_way_is_accepted(mesh, answer):
    await accepted("7.3", answer)
