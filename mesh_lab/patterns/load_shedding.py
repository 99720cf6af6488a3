"""Admission control: accept what can be done in time, and refuse the rest at once.

A request is refused that comes faster than agreed (``429``), that finds ``waiting`` others before it (``503``), whose
requester has given up when its turn comes (``504``), or that has waited ``longest_wait`` by then (``503``). Everything
else is worked on to its end, even when the service stops meanwhile. So an accepted request is answered within
``longest_wait`` and the time that its work takes, whatever is offered.

Refusals are those of NATS services (ADR-32), an empty message with two headers, and ``Retry-After``, in seconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.connection import is_send_failure
from mesh_lab.patterns.token_bucket import TokenBucket
from mesh_lab.patterns.wait import cancel_and_join

ERROR_CODE, ERROR, RETRY_AFTER = "Nats-Service-Error-Code", "Nats-Service-Error", "Retry-After"
DEADLINE = "Deadline"
"""Header of a request: until when the requester waits, in Unix seconds; the clocks of both sides have to agree."""
LONGEST_REASON = 500  # characters of a refusal's text, which travels in a header
Work = Callable[[Msg], Awaitable[bytes]]


class AdmissionController:
    """Works on a bounded number of requests, with a bounded wait before, and refuses the others at once.

    Leaving it refuses what still comes, and waits until everything that was accepted is answered::

        async with AdmissionController(nc, work, at_a_time=4, waiting=16, longest_wait=0.1) as admission:
            await nc.subscribe("orders.place", queue="shop", cb=admission.admit)
            await asyncio.Event().wait()  # until the process is stopped

    Attributes:
        answered: Requests worked on and answered.
        refused: Requests refused.
        unsent_replies: Replies that could not be sent, because the connection was down.
    """

    def __init__(
        self,
        client: Client,
        work: Work,
        *,
        at_a_time: int,
        waiting: int,
        longest_wait: float,
        agreed: TokenBucket | None = None,
    ) -> None:
        """Prepare; nothing is accepted yet.

        Args:
            client: A connected nats-py client.
            work: Does what a request asks for and returns the reply. What it raises goes to the requester as ``500``.
            at_a_time: Requests worked on at a time; more than the bottleneck can serve makes each of them slower.
            waiting: Requests that may wait for their turn, 1 or more. A burst of that size passes unrefused.
            longest_wait: Seconds after which a waiting request is refused; below the requesters' own timeout.
            agreed: The rate that was agreed; ``None`` for none.

        Raises:
            ValueError: A number is out of its range.
        """
        if at_a_time < 1 or waiting < 1 or not longest_wait > 0:
            given = f"at_a_time={at_a_time}, waiting={waiting}, longest_wait={longest_wait}"
            raise ValueError(f"{given}: expected 1 or more, 1 or more, and above 0 s")
        self.answered = self.refused = self.unsent_replies = 0
        self._client, self._work, self._agreed = client, work, agreed
        self._at_a_time, self._waiting, self._longest_wait = at_a_time, waiting, longest_wait
        self._in_hand = 0  # waiting or worked on
        self._turns: asyncio.Queue[tuple[Msg, float]] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._take_turns()) for _ in range(self._at_a_time)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        try:
            await self._turns.join()
        finally:
            await cancel_and_join(*self._workers)

    async def admit(self, msg: Msg) -> None:
        """Accept a request, or refuse it; return at once in either case.

        Raises:
            RuntimeError: The controller is not running, so nothing would work on it.
        """
        if self._stopping:
            await self._refuse(msg, 503, "the service is stopping", self._longest_wait)
            return
        if not self._workers:
            raise RuntimeError(
                f"{msg.subject}: a request and nobody to work on it; admit inside `async with AdmissionController(…)`"
            )
        if self._agreed is not None and (again := self._agreed.take()):
            await self._refuse(msg, 429, "faster than agreed", again)
            return
        if self._in_hand >= self._at_a_time + self._waiting:
            await self._refuse(msg, 503, f"{self._waiting} requests are waiting", self._longest_wait)
            return
        self._in_hand += 1
        self._turns.put_nowait((msg, time.monotonic()))

    async def _take_turns(self) -> None:
        while True:
            msg, since = await self._turns.get()
            try:
                await self._turn(msg, time.monotonic() - since)
            except nats.errors.Error:
                self.unsent_replies += 1
            finally:
                self._in_hand -= 1
                self._turns.task_done()

    async def _turn(self, msg: Msg, waited_s: float) -> None:
        deadline = (msg.headers or {}).get(DEADLINE)
        try:
            late = deadline is not None and time.time() > float(deadline)
        except ValueError:
            await self._refuse(msg, 400, f"{DEADLINE}: {deadline!r}, expected Unix seconds such as 1764000000.25")
            return
        if late:
            await self._refuse(msg, 504, "the requester has given up")
        elif waited_s > self._longest_wait:
            await self._refuse(msg, 503, f"waited {waited_s:.3f} s for its turn", self._longest_wait)
        else:
            try:
                sent = await self._reply(msg, await self._work(msg))
            except asyncio.CancelledError as err:
                if (this := asyncio.current_task()) is not None and this.cancelling():
                    raise
                await self._refuse(msg, 500, repr(err))  # the work cancelled itself; nobody cancels this worker
            except Exception as err:  # noqa: BLE001 - one request's error goes to its requester, and ends no worker
                await self._refuse(msg, 500, repr(err))
            else:
                self.answered += sent

    async def _refuse(self, msg: Msg, code: int, why: str, again_s: float | None = None) -> None:
        self.refused += 1
        headers = {ERROR_CODE: str(code), ERROR: ascii(why)[1:-1][:LONGEST_REASON]}
        if again_s is not None:
            headers[RETRY_AFTER] = f"{again_s:.3f}"
        await self._reply(msg, b"", headers)

    async def _reply(self, msg: Msg, payload: bytes, headers: dict[str, str] | None = None) -> bool:
        try:
            if msg.reply:
                await self._client.publish(msg.reply, payload, headers=headers)
        except (nats.errors.OutboundBufferLimitError, RuntimeError) as err:
            if not is_send_failure(err):
                raise
            self.unsent_replies += 1  # the requester's timeout ends it, and the next turn may fare better
            return False
        return True
