"""What JetStream answers when it refuses, shared by the ways of publishing."""

import msgspec
from nats.js.errors import APIError, ServiceUnavailableError

# The server is busy, more came for the stream than it can buffer, or the first copy of the message is still on its way
# through the cluster: asked again, it answers otherwise.
# https://github.com/nats-io/nats-server/blob/main/server/errors.json
TRANSIENT_ERR_CODES = frozenset({10008, 10023, 10158, 10167})
NO_PEERS = 10005
"""No server of those that are known at this moment has room; the server's code for it is 400 all the same."""
INVALID_SUBJECT = 10052
"""It will be as invalid the next time; the server's code for it is 500 all the same."""


def is_transient(err: APIError) -> bool:
    """Say whether the same request to JetStream's API may be answered otherwise in a moment."""
    if isinstance(err, ServiceUnavailableError) or err.err_code in {NO_PEERS, *TRANSIENT_ERR_CODES}:
        return True
    return err.code is not None and err.code >= 500 and err.err_code != INVALID_SUBJECT


class ApiError(msgspec.Struct, frozen=True):
    """Why the server refused a message or a batch."""

    code: int = 0
    """As in HTTP: 400 is the caller's mistake, 503 the server's state."""
    err_code: int = 0
    """Number in nats-server's own list."""
    description: str = ""
    """The same in words."""

    def __str__(self) -> str:
        """Write it as it stands in messages."""
        return f"{self.description} (code {self.code}, err_code {self.err_code})"


class Ack(msgspec.Struct, frozen=True):
    """The server's answer to one message: it is stored (ADR-22)."""

    stream: str
    seq: int
    duplicate: bool = False


class PublishReply(msgspec.Struct, frozen=True):
    """What a stream answers to a message, or to the end of a batch (ADR-22, ADR-50)."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    count: int = 0
    """Messages in the batch."""
    error: ApiError | None = None
