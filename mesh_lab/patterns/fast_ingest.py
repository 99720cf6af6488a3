"""Stream messages into JetStream with one acknowledgement for many: fast ingest (ADR-50, nats-server 2.14).

Each message is stored as it arrives, and the server acknowledges every so many of a *batch*, more often when it has
much to do: the publisher, which lets only two such spans be outstanding, slows down. A message that got lost on its way
ends the batch (gap mode ``fail``): what is stored is a prefix of what was sent, without a gap.

The protocol is in the reply subjects: ``<inbox>.<batch>.<flow>.<gap mode>.<number>.<operation>.$FI``.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Self

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import BatchEndedError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.connection import publish_if_connected, too_large
from mesh_lab.patterns.jetstream_api import PublishReply

START, APPEND, _COMMIT_LAST, END, PING = range(5)
LARGEST_FLOW, PING_AFTER_S = 65_535, 0.5
SPANS = 2  # so that the server has work while an acknowledgement travels


class _Reply(PublishReply, frozen=True):
    """A flow acknowledgement, a gap, or the acknowledgement of the whole batch, whose ``type`` is empty."""

    type: str = ""
    msgs: int = 0


class FastIngest:
    """One batch of fast ingest. Use it as an asynchronous context manager: leaving it ends the batch.

    Attributes:
        sent: Messages sent so far.
        acknowledged: Number of the last message up to which all are acknowledged.
        flow: Messages between two acknowledgements, as the server last decided; 0 before its first reply.
        stored: Messages that the server counted when the batch ended, also early; 0 before.
    """

    def __init__(self, client: Client, *, flow: int = 1_000, patience: float = 15.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            client: A connected nats-py client.
            flow: Most messages between two acknowledgements; the server may choose fewer.
            patience: Seconds without a reply after which the batch is given up.

        Raises:
            ValueError: A number is out of its range.
        """
        if not 1 <= flow <= LARGEST_FLOW or patience <= 0:
            raise ValueError(f"flow={flow}, patience={patience}: expected flow 1 to {LARGEST_FLOW}, patience > 0")
        self.sent = self.acknowledged = self.stored = self.flow = 0
        self._client, self._patience = client, patience
        self._inbox = f"{client.new_inbox()}.{secrets.token_hex(8)}"
        self._prefix = f"{self._inbox}.{flow}.fail."
        self._decoder = msgspec.json.Decoder(_Reply)
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._subject, self._replied_at, self._no_responders = "", 0.0, False
        self._end: _Reply | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._client.subscribe(
            f"{self._inbox}.>", cb=self._on_reply, pending_msgs_limit=0, pending_bytes_limit=0
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.sent:
                await self._finish()
        finally:
            if self._subscription is not None and not self._client.is_closed:
                with contextlib.suppress(nats.errors.Error):
                    await self._subscription.unsubscribe()

    async def publish(self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None) -> None:
        """Send one message; return when there is room for the next, before this one is acknowledged.

        Args:
            subject: A subject of a stream with ``allow_batched``; all messages of a batch go to one stream.
            payload: The message.
            headers: Its headers; the stream drops a repeated ``Nats-Msg-Id``.

        Raises:
            PublishRefusedError: The server refused the batch, or the message is too large.
            BatchEndedError: The server ended the batch, as after a gap.
            UnknownOutcomeError: No acknowledgement came for as long as ``patience``; what is stored beyond
                :attr:`acknowledged` is unknown.
        """
        if self._end is not None:
            raise self._failure(self._end)
        if not self._client.is_connected:
            await self._until(lambda: self._client.is_connected)
        number, operation = self.sent + 1, APPEND if self.sent else START
        reply = f"{self._prefix}{number}.{operation}.$FI"
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except nats.errors.MaxPayloadError as err:
            raise too_large(self._client, subject, payload) from err
        self.sent, self._subject = number, subject
        if number == 1:
            await self._until(lambda: self.flow > 0)  # does the server take the batch, and how fast may it go?
        elif number - self.acknowledged >= self.flow * SPANS:
            await self._until(lambda: self.sent - self.acknowledged < self.flow * SPANS)

    async def _finish(self) -> None:
        await self._client.publish(self._subject, reply=f"{self._prefix}{self.sent + 1}.{END}.$FI")
        await self._until(lambda: self._end is not None, ending=True)
        assert self._end is not None  # noqa: S101  # what it waited for
        if self._end.error is not None or self._end.count < self.sent:
            raise self._failure(self._end)
        self.stored, self.acknowledged = self._end.count, self.sent

    async def _until(self, condition: Callable[[], bool], *, ending: bool = False) -> None:
        """Wait for a reply that makes a condition true; request again replies that may be lost."""
        self._replied_at = time.monotonic()
        while not condition():
            if self._end is not None and not ending:
                raise self._failure(self._end)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets a reply.
                async with asyncio.timeout(PING_AFTER_S):
                    await self._changed.wait()
                continue
            if time.monotonic() - self._replied_at > self._patience:
                why = "nobody takes the subject" if self._no_responders else f"no answer in {self._patience:g} s"
                raise UnknownOutcomeError(
                    f"{self._subject}: {why}; {self.acknowledged:,} of {self.sent:,} messages are acknowledged, "
                    "the others may be stored: read the stream before sending them again",
                    waited_s=self._patience,
                )
            if self.flow:  # before the first reply, the first message may not have arrived
                operation, number = (END, self.sent + 1) if ending else (PING, self.sent)
                reply = f"{self._prefix}{number}.{operation}.$FI"
                await publish_if_connected(self._client, self._subject, reply=reply)

    async def _on_reply(self, msg: Msg) -> None:
        if not msg.data:  # 503: no leader takes the subject at this moment, or no stream ever did
            self._no_responders = True
            return
        self._replied_at, self._no_responders = time.monotonic(), False
        reply = self._decoder.decode(msg.data)
        if reply.type == "ack":
            self.acknowledged = max(self.acknowledged, reply.seq)
            self.flow = max(1, reply.msgs)
        elif reply.type != "gap" and self._end is None:
            self._end = reply
        self._changed.set()

    def _failure(self, end: _Reply) -> PublishRefusedError | BatchEndedError:
        self.stored = end.count
        if end.error is not None:
            return PublishRefusedError(
                f"{self._subject}: {end.error}; {self.acknowledged:,} of {self.sent:,} messages are acknowledged",
                code=end.error.code,
                err_code=end.error.err_code,
            )
        return BatchEndedError(
            f"{self._subject}: the server ended the batch with {end.count:,} messages stored of {self.sent:,} sent; "
            "go on behind those in a new batch",
            stored=end.count,
            sent=self.sent,
        )


async def ingest(client: Client, messages: Iterable[tuple[str, bytes]], *, patience: float = 15.0) -> int:
    """Store messages in their order and without a gap, however many batches it takes, and return their number.

    When a batch ends early, as when the stream's leader dies, the next one goes on behind what the server counted.

    Args:
        client: A connected nats-py client.
        messages: Subject and payload of each; those not yet acknowledged are kept until they are.
        patience: Seconds without a reply after which to give up.

    Raises:
        PublishRefusedError: The server refused a batch.
        UnknownOutcomeError: No acknowledgement came for as long as ``patience``.
    """
    coming, kept, stored = iter(messages), deque[tuple[str, bytes]](), 0

    def keeping() -> Iterator[tuple[str, bytes]]:
        for message in coming:
            kept.append(message)
            yield message

    while True:
        batch = FastIngest(client, patience=patience)
        released = 0
        try:
            async with batch:
                for subject, payload in chain(list(kept), keeping()):
                    await batch.publish(subject, payload)
                    while released < batch.acknowledged:
                        kept.popleft()
                        released += 1
        except BatchEndedError:
            if batch.stored < released:  # as after the loss of every copy of what was acknowledged
                raise UnknownOutcomeError(
                    f"the server counts {batch.stored:,} messages of a batch of which it had acknowledged {released:,}"
                ) from None
            for _ in range(batch.stored - released):
                kept.popleft()
            stored += batch.stored
        else:
            return stored + batch.sent
