"""The exercises of notebook 06: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import json

import pytest
from exercise_cells import ExerciseCells, refused
from nats.js.api import SubjectTransform
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

CELLS = ExerciseCells("06_shard_by_subject", json=json, SubjectTransform=SubjectTransform)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def fnv(key, *, first="xor", codes=lambda key: key.encode(), bits=32):
    number = 2_166_136_261
    for code in codes(key):
        number = (number ^ code) * 16_777_619 if first == "xor" else (number * 16_777_619) ^ code
        number %= 2**bits
    return number


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda key, partitions: fnv(key, first="times") % partitions, "was returned; expected"),
        (lambda key, partitions: fnv(key, codes=lambda key: map(ord, key)) % partitions, "for 'Zürich'"),
        (lambda key, partitions: fnv(key, bits=64) % partitions, "was returned; expected"),
        (lambda key, partitions: fnv(key), "of 1 partitions"),
        (lambda key, partitions: str(fnv(key) % partitions), "'0' was returned; expected 0"),
        (lambda key, partitions: fnv(key) % partitions + 1, "1 was returned; expected 0"),
        (lambda key, partitions: hash(key) % partitions, "was returned; expected"),
    ],
    ids=["FNV-1", "characters", "64 bits", "no modulo", "text", "from one", "Python's own hash"],
)
async def test_another_hash_is_refused(mesh, answer, said):
    assert said in await refused("6.1", answer)


def returns_to(dest, *, source="returns.*.*.*", name="RETURNS"):
    async def make(js):
        transform = SubjectTransform(src=source, dest=dest) if dest else None
        await js.add_stream(name=name, subjects=[source], subject_transform=transform)

    return make


REST = "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}"


@pytest.mark.parametrize(
    ("dest", "said"),
    [
        (f"returns.{{{{partition(6,1)}}}}.{REST}", "are in partitions"),
        (f"returns.{{{{partition(6,3)}}}}.{REST}", "are in partitions"),
        (f"returns.{{{{partition(6,1,2)}}}}.{REST}", "are in partitions"),
        (f"returns.{{{{partition(3,2)}}}}.{REST}", "not as 6 would do it"),
        (f"returns.0.{REST}", "spread over 1 partition, not as 6"),
        (f"{{{{partition(6,2)}}}}.returns.{REST}", "is stored as"),
        ("returns.{{partition(6,2)}}.{{wildcard(2)}}.{{wildcard(1)}}.{{wildcard(3)}}", "is stored as"),
        ("returns.{{partition(6,2)}}.{{wildcard(2)}}.{{wildcard(3)}}", "is stored as"),
        (None, "a return is stored as returns."),
    ],
    ids=["region", "order", "both", "three", "one", "in front", "another order", "no region", "no transform"],
)
async def test_returns_that_are_spread_otherwise_are_refused(mesh, dest, said):
    assert said in await refused("6.2", returns_to(dest))


async def test_a_stream_for_returns_that_is_not_there_or_hears_nothing_is_refused(mesh):
    async def forget(js):
        await js.account_info()

    assert "no stream RETURNS" in await refused("6.2", forget)
    wrong = returns_to(
        "return.{{partition(6,2)}}.{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}", source="return.*.*.*"
    )
    assert "nothing that was published" in await refused("6.2", wrong)


def text_of(fence, text):
    return json.dumps({"fence": fence, "text": text}).encode()


async def overwrite(bucket, key, fence, text):
    await bucket.put(key, text_of(fence, text))
    return True


async def look_then_put(bucket, key, fence, text):
    try:
        if json.loads((await bucket.get(key)).value)["fence"] > fence:
            return False
    except KeyNotFoundError:
        pass
    await bucket.put(key, text_of(fence, text))
    return True


async def look_then_give_up(bucket, key, fence, text):
    try:
        entry = await bucket.get(key)
        last = entry.revision
        if json.loads(entry.value)["fence"] > fence:
            return False
    except KeyNotFoundError:
        last = 0
    try:
        await bucket.update(key, text_of(fence, text), last=last)
    except KeyWrongLastSequenceError:
        return False
    return True


async def insist(bucket, key, fence, text):
    while True:
        try:
            entry = await bucket.get(key)
            last, there = entry.revision, json.loads(entry.value)["fence"]
        except KeyNotFoundError:
            last, there = 0, 0
        if there >= fence and there:
            return False
        try:
            await bucket.update(key, text_of(fence, text), last=last)
        except KeyWrongLastSequenceError:
            continue
        return True


async def silent(bucket, key, fence, text):
    await look_then_put(bucket, key, fence, text)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (overwrite, "a smaller fence: True was returned; expected False"),
        (look_then_put, "and the key holds fence 5; expected 9"),
        (look_then_give_up, "wrote between the read and the write of fence 5, and the key holds fence 3"),
        (insist, "the same fence again: False was returned; expected True"),
        (silent, "a first entry: None was returned; expected True"),
    ],
    ids=["overwrites", "does not lock", "gives up", "only larger ones", "says nothing"],
)
async def test_a_store_that_lets_a_late_writer_in_or_keeps_the_owner_out_is_refused(mesh, answer, said):
    assert said in await refused("6.3", answer)
