"""Store several messages together or not at all: atomic batches (ADR-50, nats-server 2.12).

The server keeps a batch's messages aside until one carries *commit*, and then stores them all next to each other.
A batch has 1,000 messages at most, and a server drops a batch that gets no message for ten seconds.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.jetstream_api import PublishReply, is_transient
from mesh_lab.patterns.wait import retry

MOST_MESSAGES = 1_000
RETRY_EVERY_S = 0.15


class BatchMessage(NamedTuple):
    """One message of a batch."""

    subject: str
    payload: bytes
    headers: dict[str, str] | None = None
    """Further headers; for an expected sequence that does not hold, the server refuses the whole batch."""


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
    messages again under their ``Nats-Msg-Id``: ``err_code`` 10201 says that the stream has them.

    Args:
        client: A connected nats-py client.
        messages: 1 to 1,000, all for the same stream, which allows it (``allow_atomic``).
        answer_within: Seconds to wait for a reply.
        retry_for: Seconds for which to try again while the stream has no leader.

    Raises:
        ValueError: There are no messages or too many.
        PublishRefusedError: The server refused the batch: none of it is stored.
        UnknownOutcomeError: No reply came to the last message, or none of a stream: all is stored, or nothing.
    """
    if not 1 <= len(messages) <= MOST_MESSAGES:
        raise ValueError(f"{len(messages):,} messages in an atomic batch, expected 1 to {MOST_MESSAGES:,}")
    try:
        return await retry(
            lambda: _attempt(client, messages, answer_within),
            within=retry_for,
            every=RETRY_EVERY_S,
            transient=lambda err: isinstance(err, _NotStored),
        )
    except _NotStored as err:
        problem = f"{messages[0].subject}: {err}, for {retry_for:g} s; nothing of the batch is stored"
        raise PublishRefusedError(problem) from err


class _NotStored(Exception):
    """Nothing of the batch is stored, and a later try may succeed."""


async def _attempt(client: Client, messages: Sequence[BatchMessage], answer_within: float) -> BatchAck:
    batch, last = secrets.token_hex(11), len(messages)
    for number, message in enumerate(messages, start=1):
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number), **(message.headers or {})}
        if number == last:
            headers["Nats-Batch-Commit"] = "1"
        elif number > 1:
            await client.publish(message.subject, message.payload, headers=headers)
            continue
        # The first one is a request, so that a stream without this ability costs one message and not a thousand.
        try:
            msg = await client.request(message.subject, message.payload, timeout=answer_within, headers=headers)
        except nats.errors.NoRespondersError as err:
            raise _NotStored("nobody takes the subject: no stream listens to it, or it has no leader") from err
        except nats.errors.TimeoutError as err:
            if number < last:
                raise _NotStored(f"no answer in {answer_within:g} s") from err
            raise UnknownOutcomeError(
                f"{message.subject}: no answer to the end of the batch in {answer_within:g} s; all of it is stored or "
                "nothing: read the stream, or send it again if its messages carry a Nats-Msg-Id",
                waited_s=answer_within,
            ) from err
        answer = msgspec.json.decode(msg.data, type=PublishReply) if msg.data else PublishReply()
        if (error := answer.error) is not None:
            if is_transient(error):
                raise _NotStored(f"{error.description} (err_code {error.err_code})")
            refusal = f"{message.subject}: {error}; nothing of the batch is stored"
            raise PublishRefusedError(refusal, code=error.code, err_code=error.err_code)
        if number < last and msg.data:
            raise UnknownOutcomeError(
                f"{message.subject}: the first message of a batch was answered {msg.data[:120]!r}, expected an empty "
                "answer: the stream knows no batches (nats-server 2.12 does), and may have stored this message alone"
            )
    if not answer.stream or answer.count != last:
        raise UnknownOutcomeError(
            f"{messages[-1].subject}: the end of a batch of {last} was answered {msg.data[:120]!r}, expected its "
            "acknowledgement: somebody else answers on the subject"
        )
    return BatchAck(answer.stream, answer.seq, answer.count)
