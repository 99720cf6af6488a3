"""What a consumer is set to, asked of the servers before its messages are: what does not fit is told at once.

A request for messages of a consumer that is not there, or of a push consumer, gets no message and often no reply at
all, as one for a consumer that is idle does.
"""

import logging
from collections.abc import Awaitable
from functools import partial
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.js.errors import APIError, NotFoundError

from mesh_lab.errors import UnsuitableConsumerError
from mesh_lab.patterns.jetstream_api import api_request, expect_name, is_transient
from mesh_lab.patterns.wait import retry

REPLY_WITHIN_S = 1.0
LISTED_WITHIN_S = 1.0  # a consumer's own leader may confirm it before the meta leader lists it
STREAM_NOT_FOUND = 10059
SHOWN_NAMES = 10
_log = logging.getLogger(__name__)


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


async def ask_consumer(
    client: Client, stream: str, consumer: str, *, domain: str | None = None
) -> ConsumerSettings | None:
    """Return a pull consumer's settings, or ``None`` when no server replies or this client may not ask.

    Raises:
        nats.js.errors.NotFoundError: There is no such consumer, or no such stream; the message lists those there are.
        UnsuitableConsumerError: It is a push consumer, or one with priority groups, which requests would have to name.
        ValueError: A name is not legal in NATS.
    """
    expect_name("stream", stream)
    expect_name("consumer", consumer)
    ask = partial(api_request, client, domain=domain, within=REPLY_WITHIN_S)
    try:
        info = await retry(
            partial(ask, f"CONSUMER.INFO.{stream}.{consumer}"),
            within=LISTED_WITHIN_S,
            transient=lambda err: isinstance(err, NotFoundError),
        )
    except NotFoundError as err:
        if err.err_code == STREAM_NOT_FOUND:
            raise await no_stream(client, stream, domain=domain) from err
        there = await _listed("consumers", ask(f"CONSUMER.NAMES.{stream}"))
        said = f"consumer not found: {consumer!r} of stream {stream!r}, which has {there}"
        raise NotFoundError(code=404, err_code=err.err_code, description=said) from err
    except Exception as err:
        if not is_transient(err):
            raise
        return None
    config, name = msgspec.convert(info["config"], ConsumerSettings), f"consumer {consumer!r} of stream {stream!r}"
    if config.deliver_subject:
        group = f" for queue group {config.deliver_group!r}" if config.deliver_group else ""
        raise UnsuitableConsumerError(
            f"{name} pushes to {config.deliver_subject!r}{group}, expected a pull consumer: one without deliver_subject"
        )
    if config.priority_groups:
        raise UnsuitableConsumerError(
            f"{name} has priority groups {config.priority_groups}, which requests would have to name, expected none"
        )
    if info.get("paused"):
        _log.warning("%s: paused for %.0f s more, by its settings", name, info.get("pause_remaining", 0) / 1e9)
    return config


async def no_stream(client: Client, stream: str, *, domain: str | None = None) -> NotFoundError:
    """Return the error for a stream that is not there, with the names of those there are."""
    there = await _listed("streams", api_request(client, "STREAM.NAMES", domain=domain, within=REPLY_WITHIN_S))
    where = f" in domain {domain!r}" if domain else ""
    said = f"stream not found: {stream!r}; there are {there}{where}"
    return NotFoundError(code=404, err_code=STREAM_NOT_FOUND, description=said)


def matches(subject: str, pattern: str) -> bool:
    """Return whether a subject without wildcards is one of a pattern's."""
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        tokens, wanted = tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else [], wanted[:-1]
    return len(tokens) == len(wanted) and all(w in ("*", t) for t, w in zip(tokens, wanted, strict=True))


async def _listed(what: str, asked: Awaitable[dict[str, Any]]) -> str:
    """Return the names in a reply of JetStream's API, for an error."""
    try:
        names = sorted((await asked).get(what) or ())
    except Exception as err:
        if not isinstance(err, APIError) and not is_transient(err):
            raise
        names = []  # the error that is being told says enough
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + " …" * (len(names) > SHOWN_NAMES) or f"no {what}"
