"""Dead letters of the event store: what it holds that is no order, and how a repaired one takes its place."""

from contextlib import aclosing
from functools import partial

import msgspec
from nats.aio.client import Client
from nats.js.errors import APIError

from mesh_lab.errors import OrderFormatError
from mesh_lab.orders.order import STREAM, Order, decode, encode, event_on
from mesh_lab.patterns.jetstream_api import MALFORMED, STORED_BEFORE, publish_once
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry

WITHIN_S = 2.0


class DeadLetter(msgspec.Struct, frozen=True):
    """A message of the event store that is no event of an order, and was not replaced by one."""

    seq: int
    subject: str
    why: str
    payload: str
    order: Order | None = None
    """The order that it should have been: a person fills it in."""


class DeadLetters(msgspec.Struct, frozen=True):
    """What the service ``replay`` prints, and reads again when it is repaired."""

    letters: list[DeadLetter]
    service: str = "replay"


async def dead_letters(client: Client, *, consumer: str | None = None) -> list[DeadLetter]:
    """Return what the event store holds by now that is no event of an order, oldest first.

    Args:
        client: A connected nats-py client.
        consumer: As ``name`` of :func:`~mesh_lab.patterns.pull_consumer.read_in_order`.

    Raises:
        nats.js.errors.NotFoundError: There is no event store.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    js, found = client.jetstream(timeout=WITHIN_S), dict[str, DeadLetter]()
    last = (await retry(partial(js.stream_info, STREAM))).state.last_seq
    if not last:
        return []
    async with aclosing(read_in_order(client, STREAM, name=consumer)) as batches:
        async for batch in batches:
            for msg in batch:
                seq = msg.metadata.sequence.stream
                try:
                    event_on(msg.subject, decode(msg.data))
                except OrderFormatError as err:
                    found[msg.subject] = DeadLetter(seq, msg.subject, str(err), msg.data.decode(errors="replace"))
                else:
                    found.pop(msg.subject, None)  # it was repaired
            if seq >= last:
                break
    return list(found.values())


async def replay_letters(client: Client, repaired: bytes) -> tuple[int, int]:
    """Store repaired orders in the places of their letters and return how many are stored, and how many were before.

    A repaired order demands that its letter is still the last message of the subject: whoever replays it second, with
    the same order or another one, stores nothing.

    Args:
        client: A connected nats-py client.
        repaired: :class:`DeadLetters` as JSON, with the orders filled in; a letter without one is left as it is.

    Raises:
        OrderFormatError: That is not what it is, or an order is not that of its letter's subject; nothing is stored.
        nats.js.errors.APIError: The event store refused an order.
        nats.errors.Error: No reply came in half a minute, or the client was closed.
    """
    try:
        letters = msgspec.json.decode(repaired, type=DeadLetters).letters
    except MALFORMED as err:
        raise OrderFormatError(f"{err}; seen {repaired[:120]!r}, expected what `replay` prints, repaired") from err
    orders = [(letter, letter.order) for letter in letters if letter.order is not None]
    for letter, order in orders:
        event_on(letter.subject, order)
    before = 0
    for letter, order in orders:
        headers = {
            "Nats-Expected-Last-Subject-Sequence": str(letter.seq),
            "Nats-Msg-Id": f"{letter.subject}.{letter.seq}",
        }
        try:
            ack = await retry(partial(publish_once, client, letter.subject, encode(order), headers, WITHIN_S))
            before += ack.duplicate
        except APIError as err:
            if err.err_code != STORED_BEFORE:
                raise
            before += 1
    return len(orders) - before, before
