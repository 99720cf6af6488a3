"""Publish to JetStream with many acknowledgements outstanding, and know what became of each message.

``js.publish`` costs a round trip for each message, and the futures of ``js.publish_async`` have no time limit. Here,
every message is *stored*, *refused* (and would be again), or *unknown*: without a reply in time, it may be stored.

A message without a reply is sent again under the same ``Nats-Msg-Id``, which is safe for as long as the stream's
``duplicate_window`` (two minutes by default). It lands behind what was sent after it: a publisher that has to keep the
order of a key waits for each of the key's acknowledgements before the key's next message.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.connection import publish_if_connected
from mesh_lab.patterns.jetstream_api import Ack, ApiError, PublishReply, is_transient
from mesh_lab.patterns.wait import cancel_and_join

SWEEP_S = 0.05
SHOWN_BYTES = 120
Failure = PublishRefusedError | UnknownOutcomeError
# An empty reply: no leader takes the stream's subject at this moment, or no stream ever did.
_NO_LEADER = PublishReply(error=ApiError(503))


@dataclass(slots=True)
class _Outstanding:
    subject: str
    payload: bytes
    headers: dict[str, str]
    on_stored: Callable[[Ack], None] | None
    on_failed: Callable[[Failure], None] | None
    give_up_at: float
    resend_at: float
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
        if window < 1 or ack_timeout <= 0 or retry_for < ack_timeout:
            given = f"window={window}, ack_timeout={ack_timeout}, retry_for={retry_for}"
            raise ValueError(f"{given}: expected window >= 1 and 0 < ack_timeout <= retry_for")
        self.stored = self.duplicates = 0
        self._client, self._window = client, window
        self._ack_timeout, self._retry_for = ack_timeout, retry_for
        self._inbox = client.new_inbox()
        self._decoder = msgspec.json.Decoder(PublishReply)
        self._outstanding: dict[str, _Outstanding] = {}
        self._failures: list[Failure] = []
        self._number, self._changed = 0, asyncio.Event()
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._client.subscribe(
            f"{self._inbox}.*", cb=self._on_reply, pending_msgs_limit=0, pending_bytes_limit=0
        )
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
            if self._subscription is not None and not self._client.is_closed:
                await self._subscription.unsubscribe()

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
            headers: Further headers.
            on_stored: Called with the acknowledgement when the message is stored.
            on_failed: Called with the error otherwise; without it, the next ``publish`` or ``flush`` raises the error.

        Raises:
            PublishRefusedError: This message is too large, or an earlier one was refused.
            UnknownOutcomeError: An earlier message got no reply within the retry budget.
        """
        while len(self._outstanding) >= self._window:
            await self._change()
        if self._failures:
            raise self._failures[0]
        self._number += 1
        now = time.monotonic()
        message = _Outstanding(
            subject=subject,
            payload=payload,
            headers={"Nats-Msg-Id": msg_id, **(headers or {})},
            on_stored=on_stored,
            on_failed=on_failed,
            give_up_at=now + self._retry_for,
            resend_at=now + self._ack_timeout,
        )
        reply = f"{self._inbox}.{self._number}"
        self._outstanding[reply] = message
        try:
            # If the connection takes nothing now, the sweeper sends it when it does.
            await publish_if_connected(self._client, subject, payload, reply=reply, headers=message.headers)
        except BaseException:
            self._outstanding.pop(reply, None)  # the caller learns it now: it must not be sent again later
            raise

    async def flush(self) -> None:
        """Wait until the outcome of every message published so far is known.

        Raises:
            PublishRefusedError: A message was refused.
            UnknownOutcomeError: A message got no reply within the retry budget.
        """
        while self._outstanding:
            await self._change()
        self._check_sweeper()
        if self._failures:
            raise self._failures[0]

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
        try:
            reply = self._decoder.decode(msg.data) if msg.data else _NO_LEADER
        except (msgspec.DecodeError, UnicodeDecodeError):
            reply = PublishReply()
        if (error := reply.error) is not None:
            if is_transient(error):
                message.resend_at = time.monotonic() + random.uniform(0.05, 0.25)
            else:
                refusal = PublishRefusedError(f"{message.name}: {error}", code=error.code, err_code=error.err_code)
                self._end(msg.subject, refusal)
        elif reply.stream and reply.seq > 0:
            self.stored += 1
            self.duplicates += reply.duplicate
            self._end(msg.subject, reply)
        else:  # another subscriber's, and the stream's own may still come
            message.other_reply = msg.data[:SHOWN_BYTES]

    def _end(self, reply: str, end: Ack | Failure) -> None:
        """Settle a message with its outcome, and call back."""
        message = self._outstanding.pop(reply)
        self._changed.set()  # before the callbacks, which may raise
        if isinstance(end, Ack):
            if message.on_stored is not None:
                message.on_stored(end)
        elif message.on_failed is not None:
            message.on_failed(end)
        else:
            self._failures.append(end)

    async def _sweep(self) -> None:
        """Send again what is due, and give up on what has timed out."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            due = [item for item in self._outstanding.items() if item[1].resend_at <= now]
            for reply, message in due:
                if reply not in self._outstanding:
                    continue  # its reply came while another one was sent
                if message.give_up_at <= now:
                    other = f", but {message.other_reply!r}, which is no stream's" if message.other_reply else ""
                    problem = (
                        f"{message.name}: no answer in {self._retry_for} s{other}; "
                        "it may be stored: read the stream before sending it under another id"
                    )
                    self._end(reply, UnknownOutcomeError(problem, waited_s=self._retry_for))
                elif self._client.is_connected:
                    message.resend_at = now + self._ack_timeout
                    try:
                        await publish_if_connected(
                            self._client, message.subject, message.payload, reply=reply, headers=message.headers
                        )
                    except PublishRefusedError as err:  # too large: published while the client reconnected
                        self._end(reply, err)
