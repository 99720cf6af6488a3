"""Checks of notebook 01, ``publish_and_subscribe``."""

import asyncio
import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, SupportsIndex

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubjectError

from mesh_lab import Mesh
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.orders import Order, encode, read_orders
from mesh_lab.patterns import flush_through

SERVER_ANSWERS_WITHIN_S = 1.0  # a complete frame is answered in milliseconds, an incomplete one never


# 1.1

ON_THE_MESH = (
    "orders.eu.000042.placed",
    "orders.us.000042.shipped",
    "orders.eu.000041.shipped",
    "orders.eu.010042.paid",
    "orders.us.010042.shipped",
    "orders.us.000007.placed",
    "orders.us.000007.paid",
    "orders.eu-north.000142.placed",
    "orders.eu.100042.shipped-again",
    "returns.eu.000042.shipped",
)
WISHES: dict[str, Callable[[str, str, str, str], bool]] = {
    "support": lambda kind, region, order, event: kind == "orders" and order == "000042",
    "tax": lambda kind, region, order, event: kind == "orders" and region == "eu",
    "logistics": lambda kind, region, order, event: kind == "orders" and event == "shipped",
    "archive": lambda kind, region, order, event: kind == "orders" and order.startswith("0000"),
}
IMPOSSIBLE = "archive"


@exercise(
    "1.1",
    title="ask for what you need",
    answer="dict",
    expects="a subject for each wish, and None for the one that no subject can grant",
    hint="Write the four tokens of an order's subject side by side, and put * where a colleague does not care. A star "
    "takes the place of a whole token. nats-py refuses one that shares its token with letters or digits.",
)
async def asks_for_what_it_needs(trial: Trial, answer: Any) -> str:
    """Subscribe with each pattern, publish, and compare what arrived with what was wished for."""
    nc = await trial.client()
    for name in WISHES:
        await _grants(trial, nc, name, answer.get(name, ...))
    return (
        "what somebody will filter by needs a token of its own; whoever wants the first 99 orders has to take more "
        "and throw some away, or the publisher puts the range into the subject"
    )


async def _grants(trial: Trial, nc: Client, name: str, pattern: Any) -> None:
    if pattern is ...:
        raise NotYet(f"nothing for {name}", "a subject, or None if no subject can say it")
    if pattern is None:
        if name != IMPOSSIBLE:
            raise NotYet(f"None for {name}", "a subject: there is one for this wish")
        return
    if not isinstance(pattern, str):
        raise NotYet(f"{pattern!r} for {name}", "a subject as text")
    try:
        sub = await nc.subscribe(pattern)
    except BadSubjectError as err:
        rule = (
            "tokens with dots between them, no blanks, a wildcard that stands for a whole token, and > only at the end"
        )
        raise NotYet(f"nats-py refuses {pattern!r} for {name}", f"{rule}; None if no subject can say it") from err
    for subject in ON_THE_MESH:
        await nc.publish(subject)
    got = [msg.subject for msg in await trial.arrived(nc, sub)]
    await sub.unsubscribe()
    wanted = [subject for subject in ON_THE_MESH if WISHES[name](*subject.split("."))]
    if missed := [subject for subject in wanted if subject not in got]:
        raise NotYet(f"{name}, with {pattern!r}, did not get {missed[0]}", _what(name))
    if extra := [subject for subject in got if subject not in wanted]:
        raise NotYet(f"{name}, with {pattern!r}, also got {extra[0]}", _what(name))


def _what(name: str) -> str:
    if name == IMPOSSIBLE:
        return "ids that begin with 0000, all of them and no others; None if no subject can say that"
    return "what was wished for, all of it and nothing else"


# 1.2


@dataclass(frozen=True)
class _Frame:
    """One message to frame, and what is peculiar about it."""

    case: str
    payload: bytes
    headers: dict[str, str]
    subject: str = "orders.check.000001.placed"


FRAMES = (
    _Frame("a plain message", b'{"cds":1}', {"Source": "checkout"}),
    _Frame("another subject", b'{"cds":2}', {"Source": "till"}, "returns.check.9"),
    _Frame("letters beyond ASCII", "Motörhead".encode(), {"Source": "checkout", "Customer": "Łukasz Żak"}),
    _Frame("a subject with letters beyond ASCII", b"{}", {"Source": "checkout"}, "orders.check.köln.placed"),
    _Frame("a payload that is no UTF-8", bytes(range(256)), {"Source": "checkout"}),
    _Frame("a payload with line ends", b"1\r\nPUB orders.check.000002.placed 0\r\n\r\n", {"Source": "checkout"}),
    _Frame("a payload with blanks around it", b" \t{} \n", {"Source": "checkout"}),
    _Frame("a payload with braces and percent signs", b"%s {0} %d {}", {"Source": "%s {}"}),
    _Frame("an empty payload", b"", {"Source": "checkout"}),
    _Frame("a payload of 200,000 bytes", b"CD" * 100_000, {"Source": "checkout"}),
    _Frame("headers in this spelling and order", b"{}", {"x-SHOP-id": "9", "Accept": "a: b, c", "Number": "10"}),
    _Frame("no header", b"{}", {}),
)


@exercise(
    "1.2",
    title="frame a message",
    answer="function",
    expects="the bytes of one HPUB",
    hint="Build the headers first, as bytes: NATS/1.0, a line for each header, an empty line, each ended by \\r\\n. "
    "The first length is the length of that, the second adds the payload's. Then look at the end: what follows a "
    "payload on the wire is not counted.",
)
async def frames_a_message(trial: Trial, answer: Any) -> str:
    """Send what the answer returns over a bare socket, and look at what a subscriber gets."""
    nc = await trial.client()
    sub = trial.own(await nc.subscribe("*.check.>"))
    await flush_through(nc)
    for each in FRAMES:
        case = trial.case = each.case
        frame = answer(each.subject, each.payload, dict(each.headers))
        trial.kind(frame, (bytes, bytearray), "bytes")
        if complaint := await _complaint(trial.mesh, nc, bytes(frame)):
            raise NotYet(f"{case}: {complaint}", "a frame that the server takes")
        # The subscriber is on the same server: what that server has read has arrived by now.
        got = await trial.arrived(nc, sub)
        if len(got) != 1:
            raise NotYet(f"{case}: {len(got)} messages arrived", "one")
        for what, seen, expected in (
            ("subject", got[0].subject, each.subject),
            ("headers", got[0].headers or {}, each.headers),
            ("payload", got[0].data, each.payload),
            ("reply subject", got[0].reply, ""),
        ):
            if seen != expected:
                raise NotYet(f"{case}: the {what} {reprlib.repr(seen)} arrived", reprlib.repr(expected))
        _expect_one_hpub(each, bytes(frame))
    return "both lengths count bytes, and that is why a payload may hold anything, line ends included"


def _expect_one_hpub(each: _Frame, frame: bytes) -> None:
    """Raise NotYet unless a frame that arrived as it should is one HPUB, with nothing before and after it."""
    line, _, rest = frame.partition(b"\r\n")
    verb, *_, head_length, length = line.split() if len(line.split()) > 2 else (line, b"0", b"0")
    if verb.upper() != b"HPUB":
        raise NotYet(f"{each.case}: the frame begins with {reprlib.repr(verb.decode(errors='replace'))}", "HPUB")
    if after := rest[int(length) + len(b"\r\n") :]:
        seen = f"{each.case}: {reprlib.repr(after)} follows the payload's line end"
        raise NotYet(seen, "nothing: the next frame begins there")
    lines = rest[: int(head_length)].split(b"\r\n")
    if len(lines) != len(each.headers) + 3 or any(b"\n" in one for one in lines):
        seen = f"{each.case}: the headers are {reprlib.repr(rest[: int(head_length)])}"
        raise NotYet(seen, "NATS/1.0, a line for each header, and an empty line, each ended by \\r\\n")


async def _complaint(mesh: Mesh, nc: Client, frame: bytes) -> str | None:
    """Send a frame to the server that ``nc`` is connected to, and return in words what was wrong, if anything was."""
    assert nc.connected_url is not None  # it has just answered a flush
    ear, mouth = await asyncio.open_connection(nc.connected_url.hostname, nc.connected_url.port)
    try:
        await ear.readline()  # INFO
        me = mesh.connect_options()
        hello = {"user": me.get("user"), "pass": me.get("password"), "headers": True, "verbose": False}
        mouth.write(f"CONNECT {json.dumps(hello)}\r\n".encode())
        # In one piece: a server that hangs up with something unread may take its last words with it.
        mouth.write(frame + b"PING\r\n")
        async with asyncio.timeout(SERVER_ANSWERS_WITHIN_S):
            while line := (await ear.readline()).decode():
                if line.startswith("PONG"):
                    return None
                if line.startswith("-ERR"):
                    return f"the server said {line.strip()}"
    except TimeoutError:
        return "the server takes what comes next for a part of it: a length is larger than what follows"
    except ConnectionError:
        pass
    finally:
        mouth.close()
    return "the server hung up"


# 1.3

SKIPPED = 30
# How many orders are published, and for each try the positions of those that are lost.
LOSSES: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...] = (
    (12, ((), (5,), (1, 2), (10, 11, 12), (9, 10), *(tuple(sorted({*range(1, 13)} - {n})) for n in range(1, 13)))),
    (7, ((3, 7), (1,), (6, 7))),
    (1, ((),)),
    (300, ((99, 100), (255, 256, 257), (300,), tuple(range(2, 300)))),
)


@exercise(
    "1.3",
    title="notice what is missing",
    expects="publish_numbered() publishes each order once, missing() names the positions of those that did not come",
    hint="A number in a header shows a gap between two messages. What shows that the last ones are missing? Nothing "
    "comes after them, so somebody must say beforehand, or with every message, how many there are.",
)
async def notices_what_is_missing(trial: Trial, answer: Any) -> str:
    """Publish with the reader's function, lose some orders, and ask the other function which."""
    match answer:
        case (publish_numbered, missing):
            pass
        case _:
            raise NotYet(f"a {type(answer).__name__}", "the two functions, (publish_numbered, missing)")
    nc, runs = await trial.client(), list[tuple[list[Order], list[Msg]]]()
    for count, _ in LOSSES:
        # Not the first ones, whose ids are their positions; and not by their ids, so that these tell no position.
        some = islice(read_orders(first=SKIPPED + count), SKIPPED, None)
        orders = sorted((msgspec.structs.replace(order, region="check") for order in some), key=_shuffled)
        sub = await nc.subscribe("orders.>")
        await publish_numbered(nc, list(orders))
        runs.append((orders, await trial.arrived(nc, sub)))
        await sub.unsubscribe()
        _all_published(runs[-1][1], orders)
    # Only now: a subscriber is another program, and knows what came with the messages, not who published what last.
    for (count, losses), (orders, messages) in zip(LOSSES, runs, strict=True):
        for lost in losses:
            subjects = {orders[position - 1].subject("placed") for position in lost}
            trial.case = f"with {_listed(lost)} of {count} orders lost"
            named = missing([msg for msg in messages if msg.subject not in subjects])
            if not isinstance(named, list) or not all(map(_is_position, named)):
                raise NotYet(f"missing() returned {reprlib.repr(named)}", "a list of positions")
            if sorted(named) != list(lost):
                raise NotYet(f"{trial.case}, missing() returned {_listed(named)}", _listed(lost))
    return (
        "numbers show a gap, but only a total or a last word shows what is lost at the end; a stream numbers its "
        "messages for you: notebook 03"
    )


def _all_published(messages: Sequence[Msg], orders: Sequence[Order]) -> None:
    for order in orders:
        subject = order.subject("placed")
        copies = [msg for msg in messages if msg.subject == subject]
        if len(copies) != 1:
            came = len({msg.subject for msg in messages} & {order.subject("placed") for order in orders})
            if came < len(orders):
                raise NotYet(f"{came} of {len(orders)} orders arrived under their own subjects", f"{len(orders)}")
            raise NotYet(f"{subject} came {len(copies)} times", "each order once")
        if copies[0].data != encode(order):
            raise NotYet(f"the payload of {subject} was changed", "the order as encode() writes it")


def _is_position(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _shuffled(order: Order) -> int:
    return int(order.id) * 7_919 % 1_009  # both are primes: no order keeps its place


def _listed(positions: Sequence[object]) -> str:
    shown = [*positions[:12], *(["…"] if positions[12:] else [])]
    return ", ".join(map(str, shown)) or "none"
