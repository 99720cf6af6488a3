"""JetStream's protocol in one place: its replies, and which of its errors are transient.

It serves patterns that speak the protocol themselves: nats-py's request for each message would be too slow.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DEFAULT_PREFIX
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

from mesh_lab.patterns.connection import first_reply, is_no_responders, is_send_failure


class ApiError(msgspec.Struct, frozen=True):
    """Why the server refused something: ``code`` is as in HTTP, ``err_code`` a number in nats-server's own list."""

    code: int = 0
    err_code: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description} (code {self.code}, err_code {self.err_code})"


class Ack(msgspec.Struct, frozen=True):
    """The server's reply to one message: it is stored (ADR-22)."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class PublishReply(Ack, frozen=True):
    """A stream's reply to a message, or to the end of a batch of ``count`` messages; an acknowledgement or an error."""

    batch: str = ""
    count: int = 0
    error: ApiError | None = None


NOBODY = ApiError(503, description="nobody takes the subject: no stream listens to it, or it has no leader")
"""The server's word, in an empty reply."""
# What msgspec raises for bytes: a TypeError is a list as the key of a map, a RecursionError lists in lists in lists.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError)
_decoder = msgspec.json.Decoder(PublishReply)


def publish_reply(msg: Msg) -> PublishReply | None:
    """Return what a stream, or the server in its place, replied to a message; ``None`` if it is somebody else's reply.

    Whoever subscribes to a stream's subject gets the reply subject of each message, and may reply as well.
    """
    if is_no_responders(msg):
        return PublishReply(error=NOBODY)
    try:
        reply = _decoder.decode(msg.data)
    except MALFORMED:
        return None
    known = reply.error.err_code > 0 if reply.error is not None else reply.stream and reply.seq > 0
    return reply if known else None


async def publish_once(client: Client, subject: str, data: bytes, headers: Mapping[str, str], within: float) -> Ack:
    """Return a stream's acknowledgement of one message, as ``js.publish`` does; the replies of others are passed over.

    Raises:
        nats.errors.Error: What ``js.publish`` raises, or :func:`first_reply`.
    """
    try:
        reply = await first_reply(client, subject, data, accept=publish_reply, within=within, headers=headers)
    except nats.errors.NoRespondersError as err:
        raise NoStreamResponseError from err
    if reply.error is not None:
        raise APIError(reply.error.code, reply.error.description, reply.error.err_code)
    return reply


# Numbers and codes are those of https://github.com/nats-io/nats-server/blob/main/server/errors.json. The code says
# most: 500 and above is the server's state, and 429 that it has too much to do. These numbers say otherwise.
TRANSIENT_ERR_CODES = frozenset({10005, 10158})
"""No server known at this moment has room (400); the message's first copy is still on its way (409)."""
PERMANENT_ERR_CODES = frozenset(
    # Configuration: no cluster, or a feature that needs one or none; what the stream does not let anybody do.
    {10006, 10010, 10036, 10052, 10053, 10057, 10063, 10074, 10110, 10111, 10117}
    # A limit, which stands until somebody makes room: of memory, of storage, or the stream is full.
    | {10028, 10047, 10077}
)
"""The server's code for these is 500 or 503 all the same."""
TOO_LARGE = frozenset({10054, 10097})
"""``err_code`` of a message, headers included, above the stream's ``max_msg_size``; and of headers above 64 KiB."""
STORED_BEFORE, UNDER_WAY = 10071, 10164
WRONG_LAST_SEQUENCE = frozenset({STORED_BEFORE, UNDER_WAY})
"""``err_code`` of a conditional write that came too late; 10164 where several were under way on a replicated stream."""

# No reply came, or the request did not leave; whether it was carried out is unknown.
_NO_REPLY = (
    TimeoutError,
    nats.errors.NoRespondersError,
    NoStreamResponseError,
    nats.errors.StaleConnectionError,
    nats.errors.ConnectionReconnectingError,
)


def words_after(error: ApiError, waited_s: float) -> str:
    """Return what to say of a transient error that still was the reply after a time of trying again."""
    if error is NOBODY:
        return f"nobody took the subject in {waited_s:g} s: no stream listens to it, or it has no leader"
    return f"still refused after {waited_s:g} s: {error}"


def api_prefix(domain: str | None) -> str:
    """Return what the subjects of JetStream's API begin with, in a domain or (``None``) in the client's own."""
    if domain is None:
        return DEFAULT_PREFIX
    expect_name("domain", domain)
    return f"$JS.{domain}.API"


def expect_name(what: str, name: str) -> None:
    """Raise ValueError for what cannot be the name of a stream, a consumer or a domain: one token of subjects."""
    if not name or any(character in ".*>/\\ \t\r\n" for character in name):
        raise ValueError(f"{what} {name!r}, expected a name without dots, blanks, slashes and wildcards")


async def api_request(
    client: Client, call: str, payload: bytes = b"", *, domain: str | None = None, within: float = 5.0
) -> dict[str, Any]:
    """Return JetStream's reply to a call for which nats-py has no method, or of whose reply it drops a part.

    Raises:
        nats.js.errors.APIError: The servers refuse it.
        nats.errors.Error: No server replied, or this client may not ask.
    """
    reply = await client.request(f"{api_prefix(domain)}.{call}", payload, timeout=within)
    found: dict[str, Any] = msgspec.json.decode(reply.data)
    if "error" in found:
        APIError.from_error(found["error"])
    return found


async def stream_names(
    client: Client, subject: str = ">", *, domain: str | None = None, within: float = 5.0
) -> list[str]:
    """Return the names of an account's first 1,024 streams, or of those that take a subject; as :func:`api_request`."""
    wanted = {} if subject == ">" else {"subject": subject}  # a mirror has no subjects
    reply = await api_request(client, "STREAM.NAMES", msgspec.json.encode(wanted), domain=domain, within=within)
    return sorted(reply.get("streams") or ())


def is_transient(err: BaseException | ApiError) -> bool:
    """Return whether the same request may succeed in a moment: while servers elect a leader, reconnect or catch up.

    The request may have been carried out all the same, so it has to be idempotent.

    Args:
        err: What nats-py raised, or the error in a server's reply.
    """
    if not isinstance(err, ApiError | APIError):
        return isinstance(err, _NO_REPLY) or is_send_failure(err)
    # Some of nats-py's errors leave their numbers out.
    number, code = getattr(err, "err_code", None) or 0, getattr(err, "code", None) or 0
    if number in PERMANENT_ERR_CODES:
        return False
    return number in TRANSIENT_ERR_CODES or code == 429 or code >= 500 or isinstance(err, ServiceUnavailableError)
