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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from itertools import chain
from typing import Self

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import (
    BatchEndedError,
    BatchForgottenError,
    MeshLabError,
    PublishRefusedError,
    UnknownOutcomeError,
)
from mesh_lab.patterns.connection import LOOK_EVERY_S, is_no_responders, open_inbox, publish_if_connected, unsubscribe
from mesh_lab.patterns.jetstream_api import MALFORMED, NOBODY, ApiError, PublishReply, is_transient, words_after
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry, unless_closed

START, APPEND, _COMMIT_LAST, END, PING = range(5)
LARGEST_FLOW, PING_AFTER_S, START_AGAIN_S = 65_535, 0.5, 0.2
UNKNOWN_BATCH = 10208  # err_code for the next message of a batch that the server has forgotten
SPANS = 2  # so that the server has work while an acknowledgement travels


class _Reply(PublishReply, frozen=True):
    """A flow acknowledgement, a gap, an error, or the end of the whole batch, whose ``type`` is empty."""

    type: str = ""
    msgs: int = 0


class FastIngest:
    """One batch of fast ingest. Use it as an asynchronous context manager: leaving it ends the batch.

    Attributes:
        sent: Messages sent so far.
        acknowledged: Number of the last message up to which all are acknowledged.
        flow: Messages between two acknowledgements, as the server last decided; 0 before its first reply.
        stored: Messages that the server counted when the batch ended, also early; 0 before.
        stream: Name of the stream, as its last reply of the batch tells it.
        last_seq: Number in the stream of the last message of the batch.
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
        if not (1 <= flow <= LARGEST_FLOW and patience > 0):
            raise ValueError(f"flow={flow}, patience={patience}: expected flow 1 to {LARGEST_FLOW}, patience > 0")
        self.sent = self.acknowledged = self.stored = self.last_seq = self.flow = 0
        self.stream = ""
        self._client, self._patience, self._wish = client, patience, flow
        self._batch, self._prefix = secrets.token_hex(8), ""
        self._decoder = msgspec.json.Decoder(_Reply)
        self._subscription: Subscription | None = None
        self._changed = asyncio.Event()
        self._subject, self._replied_at = "", 0.0
        self._setback: ApiError | None = None  # the last reply, where it was a transient error
        self._end: _Reply | None = None
        self._refusal: _Reply | None = None  # of one message; the end of the batch follows

    async def __aenter__(self) -> Self:
        inbox, self._subscription = await open_inbox(self._client, self._on_reply, tail=".>")
        self._prefix = f"{inbox}.{self._batch}.{self._wish}.fail."
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.sent:
                await self._finish()
        finally:
            if self._subscription is not None:
                await unsubscribe(self._subscription)

    async def publish(self, subject: str, payload: bytes, *, headers: Mapping[str, str] | None = None) -> None:
        """Send one message; return when there is room for the next, before this one is acknowledged.

        Args:
            subject: A subject of a stream with ``allow_batched``; all messages of a batch go to one stream.
            payload: The message.
            headers: Its headers; the stream drops a repeated ``Nats-Msg-Id``.

        Raises:
            PublishRefusedError: The server refused the batch; or nobody took its first message for as long as
                ``patience``; or this message, which is not sent, is too large with its headers or malformed.
            BatchEndedError: The server ended the batch, as after a gap.
            BatchForgottenError: The server does not know the batch any more, as after its restart.
            UnknownOutcomeError: No acknowledgement came for as long as ``patience``; what is stored beyond
                :attr:`acknowledged` is unknown.
            nats.errors.ConnectionClosedError: The client was closed; the same is unknown.
        """
        if self._end is not None:
            raise self._failure(self._end)
        number = self.sent + 1
        reply = f"{self._prefix}{number}.{APPEND if self.sent else START}.$FI"
        # The path of every message: no call here that can be spared.
        while not await publish_if_connected(self._client, subject, payload, reply=reply, headers=headers):
            await self._until(lambda: self._client.is_connected)
        self.sent, self._subject = number, subject
        if number == 1:
            # Does the server take the batch, and how fast may it go?
            await self._until(lambda: self.flow > 0, again=lambda: self._send(subject, payload, 1, START, headers))
        elif number - self.acknowledged >= self.flow * SPANS:
            await self._until(lambda: self.sent - self.acknowledged < self.flow * SPANS)

    async def _send(
        self, subject: str, payload: bytes, number: int, operation: int, headers: Mapping[str, str] | None = None
    ) -> bool:
        reply = f"{self._prefix}{number}.{operation}.$FI"
        return await publish_if_connected(self._client, subject, payload, reply=reply, headers=headers)

    async def _finish(self) -> None:
        await self._send(self._subject, b"", self.sent + 1, END)
        await self._until(lambda: self._end is not None, ending=True)
        assert self._end is not None  # noqa: S101  # what it waited for
        if self._end.error is not None or self._end.count < self.sent:
            raise self._failure(self._end)
        self.stored, self.acknowledged, self.last_seq = self._end.count, self.sent, self._end.seq

    async def _until(
        self,
        condition: Callable[[], bool],
        *,
        ending: bool = False,
        again: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Wait for a reply that makes a condition true; request again replies that may be lost."""
        self._replied_at = next_at = time.monotonic()
        while not condition():
            if self._client.is_closed:
                raise nats.errors.ConnectionClosedError
            if self._end is not None and not ending:
                raise self._failure(self._end)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it swallows a cancellation that meets a reply.
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._changed.wait()
            now = time.monotonic()
            if now - self._replied_at > self._patience:
                raise self._silence()
            if again is not None and self._setback is not None and now >= next_at:
                # Nobody took the first message, so it may be sent again; where a reply is lost, it may not.
                self._setback, next_at = None if await again() else self._setback, now + START_AGAIN_S
            elif self.flow and now >= max(next_at, self._replied_at + PING_AFTER_S):
                # Before the first reply, the first message may not have arrived.
                operation, number = (END, self.sent + 1) if ending else (PING, self.sent)
                await self._send(self._subject, b"", number, operation)
                next_at = now + PING_AFTER_S

    def _silence(self) -> PublishRefusedError | BatchEndedError | UnknownOutcomeError:
        """Return what nothing but silence, or the server's word that nobody listens, means for the batch."""
        if self._refusal is not None:
            return self._failure(self._refusal)
        if (setback := self._setback) is not None and not self.flow:
            words = f"{self._subject}: {words_after(setback, self._patience)}; nothing is stored"
            return PublishRefusedError(words, code=setback.code, err_code=setback.err_code)
        why = f"no answer in {self._patience:g} s" if setback is None else str(setback)
        if not self._client.is_connected:
            why = f"not connected for {self._patience:g} s"
        return UnknownOutcomeError(
            f"{self._subject}: {why}; {self._progress}, the others may be stored: read the stream before sending them "
            "again",
            waited_s=self._patience,
        )

    async def _on_reply(self, msg: Msg) -> None:
        try:
            reply = _Reply(error=NOBODY) if is_no_responders(msg) else self._decoder.decode(msg.data)
        except MALFORMED:
            return  # somebody else's, who listens to the subject as well
        refused = (error := reply.error) is not None and (error is NOBODY or error.err_code > 0)
        if refused and error is not None and is_transient(error):
            self._setback = error  # the gap that it leaves ends the batch
            self._changed.set()
            return
        if reply.type == "ack" and reply.msgs > 0 and reply.seq <= self.sent + 1:  # while that one is sent
            self.acknowledged = max(self.acknowledged, reply.seq)
            self.flow = reply.msgs
        elif reply.type == "err" and refused:
            self._refusal = self._refusal or reply
        elif not reply.type and (refused or (reply.stream and reply.batch == self._batch)):
            self._end = self._end or reply
        elif reply.type != "gap":
            return
        self._replied_at, self._setback = time.monotonic(), None
        self._changed.set()

    @property
    def _progress(self) -> str:
        return f"{self.acknowledged:,} of {self.sent:,} messages are acknowledged"

    def _failure(self, end: _Reply) -> PublishRefusedError | BatchEndedError | BatchForgottenError:
        self.stored, self.last_seq, self.stream = end.count, end.seq, end.stream
        refusal = self._refusal or end
        if refusal.error is not None and refusal.error.err_code == UNKNOWN_BATCH:
            words = f"{self._subject}: {refusal.error}: the stream's server started again, or another one leads it"
            more = f"{self._progress}, any of the others may be stored: read the stream before sending them again"
            return BatchForgottenError(f"{words}; {more}")
        if refusal.error is not None:
            return PublishRefusedError(
                f"{self._subject}: {refusal.error}; {self._progress}",
                code=refusal.error.code,
                err_code=refusal.error.err_code,
            )
        return BatchEndedError(
            f"{self._subject}: the server ended the batch with {end.count:,} messages stored of {self.sent:,} sent; "
            "go on behind those in a new batch",
            stored=end.count,
            sent=self.sent,
        )


async def ingest(
    client: Client,
    messages: Iterable[tuple[str, bytes]],
    *,
    flow: int = 1_000,
    patience: float = 15.0,
    domain: str | None = None,
) -> int:
    """Store messages in their order and without a gap, however many batches it takes, and return their number.

    When a batch ends early, as when the stream's leader dies, the next one goes on behind what the server counted. When
    a server has forgotten a batch, as after its restart, the next one goes on behind what the stream holds. For that,
    nobody else may write to the stream meanwhile, and the client must be able to read it.

    Args:
        client: A connected nats-py client.
        messages: Subject and payload of each; those not yet acknowledged are kept until they are.
        flow: As for :class:`FastIngest`.
        patience: Seconds without a reply after which to give up.
        domain: JetStream domain in which the stream can be read; ``None`` for the client's own.

    Raises:
        PublishRefusedError: The server refused a batch or a message, or nobody takes the subject.
        UnknownOutcomeError: No acknowledgement came for as long as ``patience``; or a batch was forgotten, and what the
            stream holds does not tell how much of it is stored.
        nats.errors.ConnectionClosedError: The client was closed; what was not acknowledged may be stored.
    """
    coming, kept, stored, finished = iter(messages), deque[tuple[str, bytes]](), 0, False
    place: int | None = None  # in the stream, of the last message before the batch

    def keeping() -> Iterator[tuple[str, bytes]]:
        for message in coming:
            kept.append(message)
            yield message

    while not finished:
        batch, released = FastIngest(client, flow=flow, patience=patience), 0
        try:
            async with batch:
                for subject, payload in chain(list(kept), keeping()):
                    await batch.publish(subject, payload)
                    while released < batch.acknowledged:
                        kept.popleft()
                        released += 1
                    if place is None:  # the first batch has one message, and its end tells the place
                        break
                else:
                    finished = True
            ended = batch.sent
        except BatchEndedError:
            ended, finished = batch.stored, False
        except BatchForgottenError:
            if place is None:
                raise
            behind, finished = place + released, False
            ended = released + await _count_stored(client, batch.stream, domain, behind, list(kept), patience)
        if ended < batch.acknowledged:  # as after the loss of every copy of what was acknowledged
            raise UnknownOutcomeError(
                f"the stream has {ended:,} messages of a batch of which {batch.acknowledged:,} were acknowledged"
            )
        for _ in range(ended - released):
            kept.popleft()
        stored += ended
        place = batch.last_seq or (None if place is None else place + ended)
    return stored


async def _count_stored(
    client: Client, stream: str, domain: str | None, place: int, unsure: list[tuple[str, bytes]], within: float
) -> int:
    """Return how many messages of a forgotten batch, the first so many of those unsure, stand behind a place.

    A late message of such a batch is refused, so what the stream holds now is what it will hold.
    """
    js, found = client.jetstream(timeout=2.0, domain=domain), list[tuple[str, bytes]]()
    try:
        last = (await unless_closed(client, retry(lambda: js.stream_info(stream), within=within))).state.last_seq
        reading = read_in_order(client, stream, start=place + 1, domain=domain)
        async with asyncio.timeout(within), aclosing(reading) as batches:
            while place + len(found) < last <= place + len(unsure):
                found += [(msg.subject, msg.data) for msg in await anext(batches)]
    except (nats.js.errors.Error, MeshLabError, TimeoutError) as err:
        raise UnknownOutcomeError(f"a batch was forgotten, and stream {stream!r} cannot be read: {err!r}") from err
    if place + len(found) != last or found != unsure[: len(found)]:
        raise UnknownOutcomeError(
            f"a batch was forgotten, and stream {stream!r} has {last - place:,} messages behind number {place:,}, "
            f"expected only the first of {len(unsure):,} unsure ones: others write to it, or some were removed"
        )
    return len(found)
