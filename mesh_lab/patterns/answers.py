"""What JetStream answers when it refuses, shared by the ways of publishing."""

import msgspec

# The server is busy, more came for the stream than it can buffer, or the first copy of the message is still on its way
# through the cluster: asked again, it answers otherwise.
# https://github.com/nats-io/nats-server/blob/main/server/errors.json
TRANSIENT_ERR_CODES = frozenset({10008, 10023, 10158, 10167})


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
