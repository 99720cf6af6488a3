"""The exercises of notebook 01: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import json
import re

import pytest
from exercise_cells import ExerciseCells

from mesh_lab.notebook.exercises import check
from mesh_lab.orders import encode

CELLS = ExerciseCells("01_publish_and_subscribe", encode=encode)


async def refused(number: str, answer: object, *, because: str) -> None:
    verdict = repr(await check(number, answer))
    assert verdict.startswith("not yet: ")
    assert re.search(because, verdict), verdict


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct_however_often_it_runs(mesh, number):
    first, second = [await CELLS.run(CELLS.source(number, "solution")) for _ in range(2)]
    assert first == second
    assert first[0].startswith("correct: ")


# 1.1

GRANTED = {
    "support": "orders.*.000042.*",
    "tax": "orders.eu.*.*",
    "logistics": "orders.*.*.shipped",
    "archive": None,
}


async def test_other_words_for_the_same_wishes_are_correct(mesh):
    same = {"support": "orders.*.000042.>", "tax": "orders.eu.>", "logistics": "orders.*.*.shipped", "archive": None}
    assert (await check("1.1", same)).state == "correct"


@pytest.mark.parametrize(
    ("wish", "pattern", "because"),
    [
        ("support", ..., "nothing for support; expected a subject"),
        ("support", None, "None for support; expected a subject: there is one"),
        ("support", 42, "42 for support; expected a subject as text"),
        ("support", "orders.eu.000042.*", r"did not get orders\.us\.000042\.shipped"),
        ("support", "*.*.000042.*", r"also got returns\.eu\.000042\.shipped"),
        ("tax", "orders.>", r"tax, with 'orders\.>', also got orders\.us\.000042\.shipped"),
        ("tax", "orders.eu.*", r"did not get orders\.eu\.000042\.placed"),
        ("logistics", "orders.>.shipped", "nats-py refuses 'orders.>.shipped' for logistics"),
        ("logistics", ">", r"also got orders\.eu\.000042\.placed"),
        ("archive", "orders.*.0000*.*", "nats-py refuses .* for archive; .* whole token.*None if no subject"),
        ("archive", "orders.*.0000.*", r"archive, .* did not get orders\.eu\.000042\.placed"),
        ("archive", "orders.>", r"archive, .* also got orders\.eu\.010042\.paid; expected ids that begin with 0000"),
    ],
)
async def test_a_subject_that_does_not_grant_the_wish_is_refused(mesh, wish, pattern, because):
    await refused("1.1", {**GRANTED, wish: pattern}, because=because)


# 1.2


def framed(subject: str, head: str, payload: bytes, *, head_length: int, length: int) -> bytes:
    return f"HPUB {subject} {head_length} {length}\r\n{head}".encode() + payload + b"\r\n"


def head_of(headers: dict[str, str]) -> str:
    return "\r\n".join(["NATS/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""])


def returns_text(subject, payload, headers):
    head = head_of(headers)
    return f"HPUB {subject} {len(head)} {len(head) + len(payload)}\r\n{head}{payload.decode()}\r\n"


def counts_characters(subject, payload, headers):
    head = head_of(headers)
    return framed(subject, head, payload, head_length=len(head), length=len(head) + len(payload))


def forgets_the_blank_line(subject, payload, headers):
    head = head_of(headers).encode()
    return framed(subject, head.decode(), payload, head_length=len(head) - 2, length=len(head) + len(payload))


def counts_the_payload_alone(subject, payload, headers):
    head = head_of(headers).encode()
    return framed(subject, head.decode(), payload, head_length=len(head), length=len(payload))


def counts_the_line_end(subject, payload, headers):
    head = head_of(headers).encode()
    return framed(subject, head.decode(), payload, head_length=len(head), length=len(head) + len(payload) + 2)


def forgets_the_line_end(subject, payload, headers):
    head = head_of(headers).encode()
    return framed(subject, head.decode(), payload, head_length=len(head), length=len(head) + len(payload))[:-2]


def forgets_the_headers(subject, payload, headers):
    return f"PUB {subject} {len(payload)}\r\n".encode() + payload + b"\r\n"


def adds_far_too_much(subject, payload, headers):
    head = head_of(headers).encode()
    return framed(subject, head.decode(), payload, head_length=len(head), length=len(head) + len(payload) + 500)


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        (returns_text, "str was returned; expected bytes"),
        (counts_characters, "letters beyond ASCII: the server "),
        (forgets_the_blank_line, r"a plain message: the payload b'\\r\\n\{\"cds\":1\}' arrived"),
        (counts_the_payload_alone, "a plain message: the server (said -ERR|hung up)"),
        (counts_the_line_end, "a plain message: the server (said -ERR|hung up)"),
        (forgets_the_line_end, "a plain message: the server (said -ERR|hung up)"),
        (forgets_the_headers, r"a plain message: the headers \{\} arrived; expected \{'Source': 'checkout'\}"),
        (adds_far_too_much, "a length is larger than what follows"),
        (lambda subject, payload, headers: b"", "a plain message: 0 messages arrived; expected one"),
    ],
)
async def test_a_wrong_frame_is_refused(mesh, answer, because):
    await refused("1.2", answer, because=because)


# 1.3


async def numbered(nc, orders):
    for number, order in enumerate(orders, start=1):
        headers = {"Number": str(number), "Total": str(len(orders))}
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


async def with_a_last_word(nc, orders):
    for number, order in enumerate(orders, start=1):
        await nc.publish(order.subject("placed"), encode(order), headers={"Number": str(number)})
    await nc.publish("orders.check.end", str(len(orders)).encode())


async def plain(nc, orders):
    for order in orders:
        await nc.publish(order.subject("placed"), encode(order))


async def twice(nc, orders):
    await numbered(nc, orders)
    await numbered(nc, orders[:1])


async def in_the_payload(nc, orders):
    for number, order in enumerate(orders, start=1):
        await nc.publish(order.subject("placed"), b"%d " % number + encode(order))


async def under_another_subject(nc, orders):
    for order in orders:
        await nc.publish(f"numbered.{order.id}", encode(order))


def numbers(messages):
    return {int(msg.headers["Number"]) for msg in messages if msg.headers}


def missing(messages):
    return sorted(set(range(1, int(messages[0].headers["Total"]) + 1)) - numbers(messages))


def missing_by_id(messages):
    ids = {int(json.loads(msg.data)["id"]) for msg in messages}
    return sorted(set(range(1, int(messages[0].headers["Total"]) + 1)) - ids)


def missing_before_the_last_word(messages):
    return sorted(set(range(1, int(messages[-1].data) + 1)) - numbers(messages))


def gaps(messages):
    return sorted(set(range(1, max(numbers(messages)) + 1)) - numbers(messages))


def gaps_between(messages):
    came = numbers(messages)
    return sorted(set(range(min(came), max(came) + 1)) - came)


async def test_a_last_word_is_as_good_as_a_total(mesh):
    assert (await check("1.3", (with_a_last_word, missing_before_the_last_word))).state == "correct"


@pytest.mark.parametrize(
    ("answer", "because"),
    [
        ((numbered, missing_by_id), "missing.. returned 1, 2, 3"),
        ((numbered, gaps), "with 10, 11, 12 of 12 orders lost, missing.. returned none; expected 10, 11, 12"),
        ((numbered, gaps_between), "with 1, 2 of 12 orders lost, missing.. returned none"),
        ((numbered, lambda messages: []), "with 5 of 12 orders lost, missing.. returned none; expected 5"),
        ((numbered, lambda messages: len(missing(messages))), "missing.. returned 0; expected a list"),
        ((numbered, lambda messages: sorted(set(range(1, 13)) - numbers(messages))), "with 3, 7 of 7 orders lost"),
        ((plain, missing), r"it raised TypeError: .* \(line \d+ of its cell\)"),
        ((twice, missing), r"orders\.check\.000031\.placed came 2 times; expected each order once"),
        ((in_the_payload, missing), r"the payload of orders\.check\.000031\.placed was changed"),
        ((under_another_subject, missing), "0 of 12 orders arrived under their own subjects; expected 12"),
        (numbered, r"a function; expected the two functions, \(publish_numbered, missing\)"),
    ],
)
async def test_a_loss_that_goes_unnoticed_is_refused(mesh, answer, because):
    await refused("1.3", answer, because=because)
