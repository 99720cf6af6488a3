"""What a consumer is set to, asked of the servers before its messages are: what does not fit is told at once.

A request for messages of a consumer that is not there, or of a push consumer, gets no message and often no reply at
all, as one for a consumer that is idle does.
"""

from collections.abc import Callable
from functools import partial

import msgspec
from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from mesh_lab.errors import UnsuitableConsumerError
from mesh_lab.patterns.jetstream_api import ApiError, api_prefix, is_transient
from mesh_lab.patterns.wait import retry

REPLY_WITHIN_S, RETRY_EVERY_S = 1.0, 0.2
LISTED_WITHIN_S = 1.0  # a consumer's own leader may confirm it before the meta leader lists it
SHOWN_NAMES = 10


class ConsumerSettings(msgspec.Struct, frozen=True):
    """Of a consumer's configuration, what decides whether and how its messages can be asked for; times in ns."""

    ack_policy: str = "none"
    ack_wait: int = 0
    backoff: list[int] = []
    max_deliver: int = -1
    deliver_subject: str = ""
    deliver_group: str = ""
    filter_subject: str = ""
    filter_subjects: list[str] = []
    max_batch: int = 0
    max_expires: int = 0
    priority_groups: list[str] = []

    @property
    def filters(self) -> list[str]:
        """Subjects that it delivers; empty for all of its stream's."""
        return self.filter_subjects or ([self.filter_subject] if self.filter_subject else [])

    @property
    def shortest_wait_s(self) -> float:
        """Seconds after which the server delivers a message again that nobody acknowledged or holds."""
        return min([self.ack_wait, *self.backoff]) / 1e9


class _Reply(msgspec.Struct, frozen=True):
    error: ApiError | None = None
    config: ConsumerSettings | None = None
    paused: bool = False
    pause_remaining: int = 0
    streams: list[str] | None = None
    consumers: list[str] | None = None


async def ask_consumer(
    client: Client, stream: str, consumer: str, *, domain: str | None = None, on_pause: Callable[[float], object]
) -> ConsumerSettings | None:
    """Return a pull consumer's settings, or ``None`` when no server replies or this client may not ask.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        consumer: Name of the consumer.
        domain: JetStream domain of the stream; ``None`` for the client's own.
        on_pause: Called with the seconds that are left of a pause, for a consumer that is paused.

    Raises:
        nats.js.errors.NotFoundError: There is no such consumer, or no such stream; the message lists those there are.
        UnsuitableConsumerError: It is a push consumer, or one with priority groups, which requests would have to name.
        ValueError: A name is not legal in NATS.
    """
    for what, name in (("stream", stream), ("consumer", consumer)):
        if not name or any(character in ".*>/\\ \t\r\n" for character in name):
            raise ValueError(f"{what} {name!r}, expected a name without dots, blanks, slashes and wildcards")
    ask = partial(_ask, client, f"{api_prefix(domain)}.CONSUMER.INFO.{stream}.{consumer}")
    try:
        info = await retry(
            ask, within=LISTED_WITHIN_S, every=RETRY_EVERY_S, transient=lambda err: isinstance(err, NotFoundError)
        )
    except NotFoundError as err:
        there = await _names(client, f"{api_prefix(domain)}.CONSUMER.NAMES.{stream}")
        if there is None:
            raise await no_stream(client, stream, domain=domain) from err
        said = f"consumer not found: {consumer!r} of stream {stream!r}, which has {_listed(there, 'consumers')}"
        raise NotFoundError(code=404, err_code=err.err_code, description=said) from err
    except Exception as err:
        if not is_transient(err):
            raise
        return None
    config, name = info.config or ConsumerSettings(), f"consumer {consumer!r} of stream {stream!r}"
    if config.deliver_subject:
        group = f" for queue group {config.deliver_group!r}" if config.deliver_group else ""
        raise UnsuitableConsumerError(
            f"{name} pushes to {config.deliver_subject!r}{group}, expected a pull consumer: one without deliver_subject"
        )
    if config.priority_groups:
        raise UnsuitableConsumerError(
            f"{name} has priority groups {config.priority_groups}, which requests would have to name, expected none"
        )
    if info.paused:
        on_pause(info.pause_remaining / 1e9)
    return config


async def no_stream(client: Client, stream: str, *, domain: str | None = None) -> NotFoundError:
    """Return the error for a stream that is not there, with the names of those there are."""
    there = await _names(client, f"{api_prefix(domain)}.STREAM.NAMES") or []
    where = f" in domain {domain!r}" if domain else ""
    said = f"stream not found: {stream!r}; there are {_listed(there, 'streams')}{where}"
    return NotFoundError(code=404, err_code=10059, description=said)


async def streams_that_take(client: Client, subject: str, *, domain: str | None = None) -> list[str] | None:
    """Return the names of the streams that store a subject; ``None`` when no server replies or nobody may ask."""
    return await _names(client, f"{api_prefix(domain)}.STREAM.NAMES", msgspec.json.encode({"subject": subject}))


def matches(subject: str, pattern: str) -> bool:
    """Return whether a subject without wildcards is one of a pattern's."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        tokens, wanted = tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else [], wanted[:-1]
    return len(tokens) == len(wanted) and all(w in ("*", t) for t, w in zip(tokens, wanted, strict=True))


async def _names(client: Client, subject: str, request: bytes = b"") -> list[str] | None:
    try:
        reply = await _ask(client, subject, request)
    except Exception as err:
        if not isinstance(err, NotFoundError) and not is_transient(err):
            raise
        return None
    return reply.streams or reply.consumers or []


def _listed(names: list[str], what: str) -> str:
    return ", ".join(map(repr, sorted(names)[:SHOWN_NAMES])) + " …" * (len(names) > SHOWN_NAMES) or f"no {what}"


async def _ask(client: Client, subject: str, request: bytes = b"") -> _Reply:
    reply = msgspec.json.decode((await client.request(subject, request, timeout=REPLY_WITHIN_S)).data, type=_Reply)
    if reply.error is not None:
        APIError.from_error(msgspec.structs.asdict(reply.error))
    return reply
