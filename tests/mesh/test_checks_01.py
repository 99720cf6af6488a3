"""The exercises of notebook 01: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
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
        ("tax", "*.eu.>", r"tax, with '\*\.eu\.>', also got returns\.eu\.000042\.shipped"),
        ("tax", "orders.EU.>", r"did not get orders\.eu\.000042\.placed"),
        ("tax", "orders.eu*.>", "nats-py refuses 'orders.eu.*.>' for tax"),
        ("support", "orders.*.000042.shipped", r"did not get orders\.eu\.000042\.placed"),
        ("support", "orders.*.42.*", r"did not get orders\.eu\.000042\.placed"),
        ("support", ["orders.eu.000042.*", "orders.us.000042.*"], r"expected a subject as text"),
        ("logistics", "orders.eu.*.shipped", r"did not get orders\.us\.000042\.shipped"),
        ("logistics", "*.*.*.shipped", r"also got returns\.eu\.000042\.shipped"),
        ("logistics", "orders.*.*.shipped ", "nats-py refuses 'orders.*.*.shipped ' for logistics; .* no blanks"),
        ("archive", "", "nats-py refuses '' for archive"),
        ("archive", "orders.*.000042.*", r"archive, .* did not get orders\.eu\.000041\.shipped"),
        ("archive", "orders.*.0000*.*", "nats-py refuses .* for archive; .* whole token.*None if no subject"),
        ("archive", "orders.*.0000.*", r"archive, .* did not get orders\.eu\.000042\.placed"),
        ("archive", "orders.>", r"archive, .* also got orders\.eu\.010042\.paid; expected ids that begin with 0000"),
    ],
)
async def test_a_subject_that_does_not_grant_the_wish_is_refused(mesh, wish, pattern, because):
    await refused("1.1", {**GRANTED, wish: pattern}, because=because)


async def test_a_wish_that_is_left_out_is_refused(mesh):
    await refused("1.1", {"support": "orders.*.000042.*"}, because="nothing for tax; expected a subject, or None")


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


def of(
    encode_value=str.encode, *, subject=None, payload=bytes, names=str, order=list, after=b"", verb="HPUB", reply=""
):
    """Return a frame function that is right but for what is named here."""
    own = subject

    def frame(subject, body, headers):
        lines = [f"{names(name)}: ".encode() + encode_value(value) for name, value in order(headers.items())]
        head, body = b"\r\n".join([b"NATS/1.0", *lines, b"", b""]), payload(body)
        line = f"{verb} {own or subject} {reply}{len(head)} {len(head) + len(body)}\r\n"
        return line.encode() + head + body + b"\r\n" + after

    return frame


def forgets_headers_where_there_are_none(subject, payload, headers):
    return (of() if headers else forgets_the_headers)(subject, payload, headers)


def keeps_headers(subject, payload, headers, kept={}):  # noqa: B006 - that is its mistake
    kept.update(headers)
    return of()(subject, payload, kept)


def formats_it(subject, payload, headers):
    text = payload.decode(errors="surrogateescape")
    body = f"HPUB {subject} {{}} {{}}\r\nNATS/1.0\r\n\r\n{text}\r\n"
    return body.format(12, 12 + len(payload)).encode(errors="surrogateescape")


def with_bare_line_ends(subject, payload, headers):
    head = head_of(headers).replace("\r", "").encode()
    return f"HPUB {subject} {len(head)} {len(head) + len(payload)}\r\n".encode() + head + payload + b"\r\n"


def sends_text(subject, payload, headers):
    return of(payload=lambda body: body.decode(errors="replace").encode())(subject, payload, headers)


def cuts_at_64_kib(subject, payload, headers):
    return of(payload=lambda body: body[:65_536])(subject, payload, headers)


def another_way(subject, payload, headers):
    head = bytearray(b"NATS/1.0\r\n")
    for name in headers:
        head += bytes(f"{name}:{headers[name]}\r\n", "utf-8")  # the blank after the colon is a custom
    head += b"\r\n"
    return bytearray(b" ".join([b"hpub", subject.encode(), b"%d" % len(head), b"%d" % (len(head) + len(payload))])) + (
        b"\r\n" + head + payload + b"\r\n"
    )


def joined_at_the_end(subject, payload, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"".join(
        [b"HPUB ", subject.encode(), f" {len(head)} {len(head + payload)}\r\n".encode(), head, payload, b"\r\n"]
    )


@pytest.mark.parametrize("answer", [another_way, joined_at_the_end])
async def test_a_frame_in_other_words_is_correct(mesh, answer):
    verdict = await check("1.2", answer)
    assert verdict.state == "correct", verdict


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
        (of(subject="orders.check.000001.placed"), "another subject: the subject 'orders.check.000001.placed' arrived"),
        (of(lambda value: value.encode("latin-1", "replace")), "letters beyond ASCII: the headers"),
        (of(lambda value: value.encode("ascii", "ignore")), "letters beyond ASCII: the headers"),
        (sends_text, "a payload that is no UTF-8: the payload"),
        (of(payload=bytes.strip), "a payload with (line ends|blanks around it): the payload"),
        (formats_it, "a plain message: it raised|it raised KeyError"),
        (cuts_at_64_kib, "a payload of 200,000 bytes: the payload"),
        (of(names=str.title), "headers in this spelling and order: the headers"),
        (of(names=str.lower), "a plain message: the headers {'source': 'checkout'} arrived"),
        (of(after=b"\r\n"), r"a plain message: (b'\\r\\n' follows the payload's line end|the server)"),
        (of(after=b"PING\r\n"), "a plain message: b'PING.*' follows the payload's line end; expected nothing"),
        (of(after=b"PUB orders.check.2 0\r\n\r\n"), "a plain message: 2 messages arrived; expected one"),
        (of(reply="inbox.1 "), "a plain message: the reply subject 'inbox.1' arrived; expected ''"),
        (with_bare_line_ends, "a plain message: (the|it raised)"),
        (of(order=lambda items: [*items, *items]), r"a plain message: the headers"),
        (of(order=lambda items: [*items, ("Date", "today")]), "a plain message: the headers"),
        (forgets_headers_where_there_are_none, "no header: the frame begins with 'PUB'; expected HPUB"),
        (keeps_headers, "headers in this spelling and order: the headers|letters beyond ASCII|no header: the headers"),
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


def by_the_largest_text(messages):
    last = int(max(msg.headers["Number"] for msg in messages))
    return sorted(set(range(1, last + 1)) - numbers(messages))


async def numbered_for_itself(nc, orders, published=[]):  # noqa: B006 - that is its mistake
    published[:] = [order.subject("placed") for order in orders]
    numbered_for_itself.published = published
    for order in orders:
        await nc.publish(order.subject("placed"), encode(order))


def missing_of_what_was_published(messages):
    came = {msg.subject for msg in messages}
    return [n for n, subject in enumerate(numbered_for_itself.published, start=1) if subject not in came]


async def with_the_first_id(nc, orders):
    for order in orders:
        headers = {"First": min(one.id for one in orders), "Total": str(len(orders))}
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


def missing_by_first_id(messages):
    came = {int(json.loads(msg.data)["id"]) - int(messages[0].headers["First"]) + 1 for msg in messages}
    return sorted(set(range(1, int(messages[0].headers["Total"]) + 1)) - came)


async def in_one_byte(nc, orders):
    for number, order in enumerate(orders, start=1):
        headers = {"Number": str(number % 256), "Total": str(len(orders))}
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


async def with_the_total_first(nc, orders):
    for number, order in enumerate(orders, start=1):
        headers = {"Number": str(number)} | ({"Total": str(len(orders))} if number == 1 else {})
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


async def with_the_last_marked(nc, orders):
    for number, order in enumerate(orders, start=1):
        headers = {"Number": str(number), "Last": str(number == len(orders))}
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


async def without_the_last(nc, orders):
    await numbered(nc, orders[:-1])


async def in_the_background(nc, orders):
    numbered.kept = asyncio.create_task(later(nc, orders))


async def later(nc, orders):
    await asyncio.sleep(60)  # work
    await numbered(nc, orders)


async def with_every_subject(nc, orders):
    """Each message carries the subjects of all, one after another."""
    subjects = ",".join(order.subject("placed") for order in orders)
    for order in orders:
        await nc.publish(order.subject("placed"), encode(order), headers={"All": subjects})


def missing_subjects(messages):
    came = {msg.subject for msg in messages}
    return [n for n, subject in enumerate(messages[0].headers["All"].split(","), start=1) if subject not in came]


async def with_what_is_left(nc, orders):
    for left, order in enumerate(reversed(orders)):
        headers = {"Left": str(left), "Position": str(len(orders) - left)}
        await nc.publish(order.subject("placed"), encode(order), headers=headers)


def missing_with_what_is_left(messages):
    one = messages[0].headers
    came = {int(msg.headers["Position"]) for msg in messages}
    return [n for n in range(int(one["Position"]) + int(one["Left"]), 0, -1) if n not in came]


@pytest.mark.parametrize(
    "answer", [(with_every_subject, missing_subjects), (with_what_is_left, missing_with_what_is_left)]
)
async def test_other_ways_to_notice_are_correct(mesh, answer):
    verdict = await check("1.3", answer)
    assert verdict.state == "correct", verdict


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
        ((twice, missing), r"orders\.check\.\d+\.placed came 2 times; expected each order once"),
        ((in_the_payload, missing), r"the payload of orders\.check\.\d+\.placed was changed"),
        ((under_another_subject, missing), "0 of 12 orders arrived under their own subjects; expected 12"),
        (
            (numbered, lambda messages: missing(messages) * 2),
            "with 5 of 12 orders lost, missing.. returned 5, 5; expected 5",
        ),
        (
            (numbered, lambda messages: [str(n) for n in missing(messages)]),
            r"missing.. returned \['5'\]; expected a list",
        ),
        ((numbered, lambda messages: {*missing(messages)}), r"missing.. returned set.*; expected a list of positions"),
        ((numbered, lambda messages: [n - 1 for n in missing(messages)]), "missing.. returned 4; expected 5"),
        (
            (numbered, lambda messages: missing(messages)[:1]),
            "with 1, 2 of 12 orders lost, missing.. returned 1; expected",
        ),
        ((numbered, by_the_largest_text), "of 12 orders lost, missing.. returned"),
        ((numbered_for_itself, missing_of_what_was_published), "of 12 orders lost, missing.. returned .*; expected"),
        ((with_the_first_id, missing_by_first_id), "of 12 orders lost, missing.. returned"),
        ((in_one_byte, missing), "of 300 orders lost, missing.. returned"),
        ((with_the_total_first, missing), "it raised KeyError"),
        ((with_the_last_marked, gaps), "with 10, 11, 12 of 12 orders lost, missing.. returned none"),
        ((without_the_last, missing), "11 of 12 orders arrived under their own subjects; expected 12"),
        ((in_the_background, missing), "0 of 12 orders arrived under their own subjects; expected 12"),
        (numbered, r"a function; expected the two functions, \(publish_numbered, missing\)"),
    ],
)
async def test_a_loss_that_goes_unnoticed_is_refused(mesh, answer, because):
    await refused("1.3", answer, because=because)
