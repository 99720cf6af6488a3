"""Publish to JetStream with many acknowledgements outstanding, and know what became of each message.

``js.publish`` costs a round trip for each message, and the futures of ``js.publish_async`` have no time limit. Here,
every message is *stored*, *refused* (and would be again), or *unknown*: without a reply in time, it may be stored.
The stream may be in any JetStream domain that the subject reaches: no request to an API is made.

A message without a reply is sent again under the same ``Nats-Msg-Id``, which is safe for as long as the stream's
``duplicate_window`` (two minutes by default). It lands behind what was sent after it: a publisher that has to keep the
order of a key waits for each of the key's acknowledgements before the key's next message.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.connection import open_inbox, publish_if_connected, unsubscribe
from mesh_lab.patterns.jetstream_api import Ack, ApiError, is_transient, publish_reply, words_after
from mesh_lab.patterns.wait import cancel_and_join

SWEEP_S = 0.05
SHOWN_BYTES = 120
Failure = PublishRefusedError | UnknownOutcomeError


@dataclass(slots=True)
class _Outstanding:
    subject: str
    payload: bytes
    headers: dict[str, str]
    on_stored: Callable[[Ack], None] | None
    on_failed: Callable[[Failure], None] | None
    give_up_at: float
    resend_at: float
    unanswered: int = 0  # copies on their way; while there is one, or was one that got no reply, it may be stored
    refusal: ApiError | None = None  # of the last copy, and transient
    other_reply: bytes = b""  # the beginning of a reply that is no stream's

    @property
    def name(self) -> str:
        return f"{self.subject} ({self.headers['Nats-Msg-Id']})"


class WindowedPublisher:
    """Publishes with a bounded number of messages outstanding.

    Use it as an asynchronous context manager: leaving it waits until the outcome of every message is known.

    Attributes:
        stored: Messages acknowledged so far.
        duplicates: Acknowledged messages that the stream had already.
    """

    def __init__(
        self, client: Client, *, window: int = 4_000, ack_timeout: float = 2.0, retry_for: float = 30.0
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            client: A connected nats-py client.
            window: Messages that may be outstanding; more than the server takes in a second only adds latency.
            ack_timeout: Seconds without a reply after which a message is sent again.
            retry_for: Seconds without a reply after which a message's outcome is unknown. An election takes up to 9 s
                after a server's death, so below 15 every fail-over ends in unknowns.

        Raises:
            ValueError: A number is out of its range.
        """
        if window < 1 or not 0 < ack_timeout <= retry_for:
            given = f"window={window}, ack_timeout={ack_timeout}, retry_for={retry_for}"
            raise ValueError(f"{given}: expected window >= 1 and 0 < ack_timeout <= retry_for")
        self.stored = self.duplicates = 0
        self._client, self._window = client, window
        self._ack_timeout, self._retry_for = ack_timeout, retry_for
        self._inbox = client.new_inbox()
        self._outstanding: dict[str, _Outstanding] = {}
        self._turned_away: deque[str] = deque()  # replies of messages that the servers had no room for
        self._failures: list[Failure | nats.errors.ConnectionClosedError] = []
        self._number, self._changed = 0, asyncio.Event()
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._inbox, self._subscription = await open_inbox(self._client, self._on_reply, tail=".*")
        self._sweeper = asyncio.create_task(self._sweep())
        self._sweeper.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            if self._sweeper is not None:
                await cancel_and_join(self._sweeper)
            if self._subscription is not None:
                await unsubscribe(self._subscription)

    @property
    def outstanding(self) -> int:
        """Messages whose outcome is not known yet."""
        return len(self._outstanding)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str,
        headers: dict[str, str] | None = None,
        on_stored: Callable[[Ack], None] | None = None,
        on_failed: Callable[[Failure], None] | None = None,
    ) -> None:
        """Send one message; return as soon as the window has room for it, before it is stored.

        Args:
            subject: A subject that a stream listens to.
            payload: The message.
            msg_id: Its ``Nats-Msg-Id``: the same for every copy of this message, never used for another.
            headers: Further headers; a ``Nats-Msg-Id`` among them, as of a message that is passed on, does not count.
            on_stored: Called with the acknowledgement when the message is stored.
            on_failed: Called with the error otherwise; without it, or where it raises, the next ``publish`` or
                ``flush`` raises the error. Neither is called for what is outstanding when the block itself raises.

        Raises:
            ValueError: The ``msg_id`` is blank, and the stream would store each copy.
            PublishRefusedError: This message is too large with its headers, or its subject or a header is malformed; or
                an earlier one was refused, or nobody took it within the retry budget.
            UnknownOutcomeError: An earlier message got no reply within the retry budget.
            nats.errors.ConnectionClosedError: The client was closed; what is outstanding may be stored.
        """
        if not msg_id.strip():
            raise ValueError(f"{subject}: msg_id={msg_id!r}, expected one by which the stream knows a copy")
        while len(self._outstanding) >= self._window:
            await self._change()
        if self._failures:
            raise self._failures[0]
        self._number += 1
        now = time.monotonic()
        message = _Outstanding(
            subject=subject,
            payload=payload,
            headers={**headers, "Nats-Msg-Id": msg_id} if headers else {"Nats-Msg-Id": msg_id},
            on_stored=on_stored,
            on_failed=on_failed,
            give_up_at=now + self._retry_for,
            resend_at=now + self._ack_timeout,
        )
        reply = f"{self._inbox}.{self._number}"
        self._outstanding[reply] = message
        try:
            await self._send(reply, message)  # if the connection takes nothing now, the sweeper sends it when it does
        except BaseException:
            self._outstanding.pop(reply, None)  # the caller learns it now: it must not be sent again later
            raise

    async def flush(self) -> None:
        """Wait until the outcome of every message published so far is known.

        Raises:
            PublishRefusedError: A message was refused, or nobody took it within the retry budget.
            UnknownOutcomeError: A message got no reply within the retry budget.
            nats.errors.ConnectionClosedError: The client was closed; what was outstanding may be stored.
        """
        while self._outstanding:
            await self._change()
        self._check_sweeper()
        if self._failures:
            raise self._failures[0]

    async def _send(self, reply: str, message: _Outstanding) -> None:
        sent = await publish_if_connected(
            self._client, message.subject, message.payload, reply=reply, headers=message.headers
        )
        message.unanswered += sent

    async def _change(self) -> None:
        """Wait until the outcome of some message is known."""
        self._check_sweeper()
        self._changed.clear()
        await self._changed.wait()

    def _check_sweeper(self) -> None:
        if self._sweeper is not None and not self._sweeper.done():
            return
        state, problem = f"{len(self._outstanding)} messages outstanding and nobody waits for their answers: ", None
        if self._sweeper is None or self._sweeper.cancelled() or (problem := self._sweeper.exception()) is None:
            raise UnknownOutcomeError(state + "publish inside `async with WindowedPublisher(…)`")
        raise UnknownOutcomeError(f"{state}{problem!r}") from problem

    async def _on_reply(self, msg: Msg) -> None:
        message = self._outstanding.get(msg.subject)
        if message is None:  # a second reply, to a copy that was sent again
            return
        if (reply := publish_reply(msg)) is None:  # another subscriber's, and the stream's own may still come
            message.other_reply = msg.data[:SHOWN_BYTES]
        elif (error := reply.error) is None:
            self.stored += 1
            self.duplicates += reply.duplicate
            self._end(msg.subject, reply)
            await self._send_turned_away(2)
        elif is_transient(error):
            message.unanswered -= 1
            message.refusal = error
            message.resend_at = time.monotonic() + random.uniform(0.05, 0.25)
            if error.code == 429 and not message.unanswered:  # too many: all at once, they would not fit again
                message.resend_at = message.give_up_at
                self._turned_away.append(msg.subject)
        elif message.unanswered > 1:
            problem = f"{message.name}: {error}; an earlier copy, which got no reply, may be stored"
            self._end(msg.subject, UnknownOutcomeError(problem, err_code=error.err_code))
        else:
            refusal = PublishRefusedError(f"{message.name}: {error}", code=error.code, err_code=error.err_code)
            self._end(msg.subject, refusal)

    async def _send_turned_away(self, most: int) -> None:
        """Send messages again for which there was no room: one at a sweep, and two for each that is stored."""
        while most and self._turned_away:
            if (message := self._outstanding.get(reply := self._turned_away.popleft())) is not None:
                await self._send_again(reply, message)
                most -= 1

    async def _send_again(self, reply: str, message: _Outstanding) -> None:
        message.resend_at = time.monotonic() + self._ack_timeout
        try:
            with contextlib.suppress(nats.errors.ConnectionClosedError):  # the next sweep sees it
                await self._send(reply, message)
        except PublishRefusedError as err:  # too large: published while the client reconnected
            self._end(reply, err)

    def _end(self, reply: str, end: Ack | Failure) -> None:
        """Settle a message with its outcome, and call back."""
        message = self._outstanding.pop(reply)
        self._changed.set()  # before the callbacks, which may raise
        if isinstance(end, Ack):
            if message.on_stored is not None:
                message.on_stored(end)
        elif message.on_failed is not None:
            try:
                message.on_failed(end)
            except BaseException:
                self._failures.append(end)  # or nobody would learn it
                raise
        else:
            self._failures.append(nats.errors.ConnectionClosedError() if self._client.is_closed else end)

    async def _sweep(self) -> None:
        """Send again what is due, give up on what has timed out, and on everything when the client is closed."""
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._send_turned_away(1)
            now, closed = time.monotonic(), self._client.is_closed
            due = [item for item in self._outstanding.items() if closed or item[1].resend_at <= now]
            for reply, message in due:
                if reply not in self._outstanding:
                    continue  # its reply came while another one was sent
                if closed or message.give_up_at <= now:
                    self._end(reply, self._given_up(message))
                elif self._client.is_connected:
                    await self._send_again(reply, message)

    def _given_up(self, message: _Outstanding) -> Failure:
        """Return what became of a message that nobody has acknowledged, with the last that was heard of it."""
        closed, refusal = self._client.is_closed, message.refusal or ApiError()
        if not message.unanswered and not closed:
            words = words_after(refusal, self._retry_for) if refusal.code else f"not sent in {self._retry_for:g} s"
            problem = f"{message.name}: {words}; it is not stored"
            return PublishRefusedError(problem, code=refusal.code, err_code=refusal.err_code)
        words = "the client was closed" if closed else f"no answer in {self._retry_for} s"
        if message.other_reply:
            words += f", but {message.other_reply!r}, which is no stream's"
        elif message.refusal:
            words += f", last heard of another copy: {refusal}"
        problem = f"{message.name}: {words}; it may be stored: read the stream before sending it under another id"
        return UnknownOutcomeError(problem, waited_s=0.0 if closed else self._retry_for)
