"""Store several messages together or not at all: atomic batches (ADR-50, nats-server 2.12).

The server keeps a batch's messages aside until one carries *commit*, and then stores them all next to each other.
A batch has 1,000 messages at most, and a server drops a batch that gets no message for ten seconds.
"""

import re
import secrets
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import AlreadyStoredError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.connection import expect_room, first_reply, names_of, publish_if_connected
from mesh_lab.patterns.jetstream_api import NOBODY, ApiError, PublishReply, is_transient, publish_reply, words_after
from mesh_lab.patterns.wait import retry

MOST_MESSAGES = 1_000
RETRY_EVERY_S = 0.15
INCOMPLETE, DUPLICATE = 10176, 10201
"""``err_code`` of a batch that the leader has only a part of, as where it is a new one; and of one stored before."""
INCOMPLETE_TRIES, SHOWN_BYTES = 3, 120
# As nats-py 2.16 has them, which looks at each message only when it sends it.
_SUBJECT, _NAME = re.compile(r"[^ \t\r\n\ud800-\udfff]+"), re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_VALUE = re.compile(r"[^\ud800-\udfff]*")


class BatchMessage(NamedTuple):
    """One message of a batch."""

    subject: str
    payload: bytes
    headers: dict[str, str] | None = None
    """Further headers; for an expected sequence that does not hold, the server refuses the whole batch.

    Those of another batch, which a stored message keeps, are left out."""


class BatchAck(msgspec.Struct, frozen=True):
    """The server's reply to a batch of ``count`` messages: all are stored, the last one as number ``seq``."""

    stream: str
    seq: int
    count: int


async def publish_together(
    client: Client, messages: Sequence[BatchMessage], *, answer_within: float = 5.0, retry_for: float = 15.0
) -> BatchAck:
    """Store messages of one stream as a whole and return the server's acknowledgement.

    What fails before the last message leaves is tried again as a new batch. After an unknown outcome, send the same
    messages again under their ``Nats-Msg-Id``: :class:`~mesh_lab.errors.AlreadyStoredError` says that the stream has
    them. The stream may be in any JetStream domain that its subjects reach: no request to an API is made.

    Args:
        client: A connected nats-py client.
        messages: 1 to 1,000, all for the same stream, which allows it (``allow_atomic``).
        answer_within: Seconds to wait for a reply.
        retry_for: Seconds for which to try again while the stream has no leader.

    Raises:
        ValueError: There are no messages or too many, or a number is out of its range.
        PublishRefusedError: The server refused the batch, or nobody took it for as long as ``retry_for``, or one of its
            messages is too large with its headers, the batch's own included, or malformed: none of it is stored.
        AlreadyStoredError: A message of the batch was stored before under its ``Nats-Msg-Id``; nothing is stored anew.
        UnknownOutcomeError: No reply came to the last message, or none of a stream: all is stored, or nothing.
        nats.errors.ConnectionClosedError: The client was closed; after the last message, the outcome is unknown.
    """
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise ValueError(f"{len(messages):,} messages in an atomic batch, expected 1 to {MOST_MESSAGES:,}")
    if not (answer_within > 0 and retry_for >= 0):
        raise ValueError(
            f"answer_within={answer_within}, retry_for={retry_for}: expected seconds above 0, and 0 or more"
        )
    tries = count(1)
    try:
        return await retry(
            lambda: _attempt(client, messages, answer_within),
            within=retry_for,
            every=RETRY_EVERY_S,
            # A leader changes once; a message that the stream refuses in the middle is missing each time.
            transient=lambda err: (
                isinstance(err, _NotStored) and (err.refusal.err_code != INCOMPLETE or next(tries) < INCOMPLETE_TRIES)
            ),
        )
    except _NotStored as err:
        refusal = err.refusal
        words = words_after(refusal, retry_for) if refusal.code else f"{refusal.description}, for {retry_for:g} s"
        if refusal.err_code == INCOMPLETE:
            words = f"{refusal}, {INCOMPLETE_TRIES} times: the stream refuses a message in the middle"
        problem = f"{messages[0].subject}: {words}; nothing of the batch is stored"
        raise PublishRefusedError(problem, code=refusal.code, err_code=refusal.err_code) from err


class _NotStored(Exception):
    """Nothing of the batch is stored, and a later try may succeed."""

    def __init__(self, refusal: ApiError) -> None:
        super().__init__(refusal)
        self.refusal = refusal


async def _attempt(client: Client, messages: Sequence[BatchMessage], answer_within: float) -> BatchAck:
    batch, last, heard = secrets.token_hex(11), len(messages), ""

    def accept(msg: Msg) -> PublishReply | None:
        """Take the stream's reply, which to the first message of several is empty, and note somebody else's."""
        nonlocal heard
        reply = PublishReply() if number < last and not msg.data else publish_reply(msg)
        if reply is None:
            heard = f", but {msg.data[:SHOWN_BYTES]!r}, which is no stream's"
        return reply

    every = []
    for number, (subject, payload, more) in enumerate(messages, start=1):
        own = {
            name: value for name, value in (more or {}).items() if not name.strip().lower().startswith("nats-batch-")
        }
        headers = {**own, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        headers |= {"Nats-Batch-Commit": "1"} if number == last else {}
        named = all(_NAME.fullmatch(name.strip()) and _VALUE.fullmatch(value) for name, value in headers.items())
        if not (named and _SUBJECT.fullmatch(subject)):  # before the first one leaves
            raise PublishRefusedError(f"{subject!r}: malformed, in the subject or the headers {names_of(headers)}")
        expect_room(client, subject, payload, headers)
        every.append((subject, payload, headers))
    for number, (subject, payload, headers) in enumerate(every, start=1):
        try:
            if 1 < number < last:
                if not await publish_if_connected(client, subject, payload, headers=headers):
                    raise nats.errors.ConnectionReconnectingError
                continue
            # The first one is a request, so that a stream without this ability costs one message and not a thousand.
            reply = await first_reply(client, subject, payload, accept=accept, within=answer_within, headers=headers)
        except nats.errors.ConnectionReconnectingError as err:
            raise _NotStored(ApiError(description="the client is not connected")) from err
        except nats.errors.NoRespondersError as err:
            raise _NotStored(NOBODY) from err
        except nats.errors.TimeoutError as err:
            if number < last:
                raise _NotStored(ApiError(description=f"no answer in {answer_within:g} s{heard}")) from err
            raise UnknownOutcomeError(
                f"{subject}: no answer to the end of the batch in {answer_within:g} s{heard}; all of it is "
                "stored or nothing: read the stream, or send it again if its messages carry a Nats-Msg-Id",
                waited_s=answer_within,
            ) from err
        if (error := reply.error) is not None:
            if is_transient(error) or error.err_code == INCOMPLETE:
                raise _NotStored(error)
            if error.err_code == DUPLICATE:
                raise AlreadyStoredError(f"{subject}: {error}; nothing of the batch is stored anew")
            refusal = f"{subject}: {error}; nothing of the batch is stored"
            raise PublishRefusedError(refusal, code=error.code, err_code=error.err_code)
        if number < last and reply.stream:
            raise UnknownOutcomeError(
                f"{subject}: the first message of a batch was acknowledged as number {reply.seq} of "
                f"{reply.stream!r}, expected an empty answer: the stream knows no batches (nats-server 2.12 does), and "
                "has this message alone"
            )
    if (reply.batch, reply.count) != (batch, last):
        raise UnknownOutcomeError(
            f"{subject}: the end of a batch of {last} was acknowledged as number {reply.seq} of "
            f"{reply.stream!r} with a count of {reply.count}: read the stream"
        )
    return BatchAck(reply.stream, reply.seq, reply.count)
