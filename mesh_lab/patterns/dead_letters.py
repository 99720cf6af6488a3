"""Dead letters: what cannot be handled is kept, with the reason, before it is taken off its consumer."""

import re

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import RetentionPolicy
from nats.js.errors import APIError

from mesh_lab.errors import PublishRefusedError
from mesh_lab.patterns.wait import retry

BURY_WITHIN_S = 20.0  # longer than an election
REASON, SUBJECT, SEQUENCE, DELIVERIES = "Dead-Reason", "Dead-Subject", "Dead-Sequence", "Dead-Deliveries"
MSG_ID, SIZE = "Dead-Msg-Id", "Dead-Size"
REASON_CHARACTERS = 500
TOO_LARGE = 10054  # err_code of "message size exceeds maximum allowed"
_SENDABLE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # what nats-py takes as the name of a header


async def bury(msg: Msg, client: Client, dead: str, reason: str) -> None:
    """Keep a message as a dead letter, and only then take it off its consumer.

    Buried twice, it is one letter, if that happens within the ``duplicate_window`` of the letters' stream.

    Args:
        msg: A message of a pull consumer.
        client: A connected nats-py client.
        dead: Subject for dead letters; a stream must listen to it. Where payload and headers do not fit into a message
            beside the reason, the letter says ``Dead-Size`` instead, and ``Dead-Sequence`` finds the rest.
        reason: Why; its first 500 characters are kept.

    Raises:
        nats.js.errors.NoStreamResponseError: Nobody keeps the dead letters; the message was not taken off.
        TimeoutError: Who keeps them did not answer in time, likewise.
        PublishRefusedError: The letter is too large with its payload, which the message's stream would not keep either.
    """
    about, headers = msg.metadata, msg.headers or {}
    # The server acts on headers of its own (Nats-Expected-…, Nats-TTL, …), which were meant for another stream.
    theirs = {
        name: value
        for name, value in headers.items()
        if not name.lower().startswith("nats-") and _SENDABLE.fullmatch(name)
    }
    ours = {
        REASON: " ".join(reason[:REASON_CHARACTERS].split()),
        SUBJECT: msg.subject,
        SEQUENCE: str(about.sequence.stream),
        DELIVERIES: str(about.num_delivered),
        MSG_ID: headers.get("Nats-Msg-Id", ""),
        "Nats-Msg-Id": letter_id(msg),
    }
    if not await _kept(client, dead, msg.data, {**theirs, **ours}):
        await _keep_without_payload(msg, client, dead, {**ours, SIZE: str(len(msg.data))})
    try:
        await client.request(msg.reply, b"+TERM", timeout=2.0)
    except (TimeoutError, NoRespondersError):
        return  # it comes again, and is buried again


def letter_id(msg: Msg) -> str:
    """Return the ``Nats-Msg-Id`` of a message's dead letter: the same each time, and no other message's.

    The time is part of it, since a stream that is deleted and made again numbers from 1 again.
    """
    about = msg.metadata
    return f"{about.stream}.{about.consumer}.{about.sequence.stream}.{about.timestamp.timestamp():.6f}"


async def _kept(client: Client, dead: str, payload: bytes, headers: dict[str, str]) -> bool:
    """Store a letter; return ``False`` if it is too large for the server or for the stream."""
    headers = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in headers.items()}
    # nats-py compares the payload alone, and the server, which counts the headers, would hang up.
    lines = sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers.items())
    if len(payload) + lines + len("NATS/1.0\r\n\r\n") > client.max_payload:
        return False
    js = client.jetstream(timeout=2.0)
    try:
        await retry(lambda: js.publish(dead, payload, headers=headers), within=BURY_WITHIN_S)
    except APIError as err:
        if err.err_code != TOO_LARGE:
            raise
        return False
    return True


async def _keep_without_payload(msg: Msg, client: Client, dead: str, headers: dict[str, str]) -> None:
    about = msg.metadata
    config = (await retry(lambda: client.jetstream(timeout=2.0).stream_info(about.stream))).config
    if config.retention not in (None, RetentionPolicy.LIMITS):  # once it is taken off, it is gone
        raise PublishRefusedError(
            f"message {about.sequence.stream} of {about.stream}, {len(msg.data):,} bytes, is too large for a letter on "
            f"{dead!r}, expected some 2,000 bytes of room: lower max_msg_size of {about.stream}"
        )
    if not await _kept(client, dead, b"", headers):
        raise PublishRefusedError(f"{dead!r} takes no letter of 2,000 bytes; raise max_msg_size of its stream")
