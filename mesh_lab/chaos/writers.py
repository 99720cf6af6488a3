"""Writers: clients that place real orders, one after the other, and record the outcome of each."""

import asyncio
import time
from collections.abc import Iterator
from itertools import count, cycle
from typing import Self

import msgspec
from nats.aio.client import Client

from mesh_lab.chaos.history import Attempt, History, Outcome
from mesh_lab.errors import PublishRefusedError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import Order, encode
from mesh_lab.patterns.connection import close
from mesh_lab.patterns.jetstream_api import Ack
from mesh_lab.patterns.windowed_publisher import Failure, WindowedPublisher
from mesh_lab.servers.mesh import Mesh

ACK_TIMEOUT_S = 1.0
RETRY_FOR_S = 30.0
ORDERS = 10_000  # of the real ones; then they come again, under new ids


class Writers:
    """Some writers at work, and the ``history`` of what became of each order; an asynchronous context manager.

    They publish with the package's own :class:`~mesh_lab.patterns.WindowedPublisher` and a window of one,
    so that a writer's orders must be stored in the order in which it sent them. The stream ``ORDERS`` must exist.
    """

    def __init__(
        self, mesh: Mesh, *, number: int = 4, to: str | None = None, prefix: str = "w", pace: float = 0.0
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            mesh: Where to write.
            number: How many writers, named ``"w1"``, ``"w2"`` and so on.
            to: Server that all connect to; ``None`` spreads them. A writer moves on when its server dies.
            prefix: Beginning of their names, and of their orders' ids.
            pace: Seconds that each pauses after an order.
        """
        self.history = History()
        self.mesh, self._to = mesh, to
        self._names = [f"{prefix}{n + 1}" for n in range(number)]
        self._clients, self._tasks = list[Client](), list[asyncio.Task[None]]()
        self._pace, self._stopping, self.began = pace, False, 0.0

    async def __aenter__(self) -> Self:
        orders = await asyncio.to_thread(lambda: list(read_orders(first=ORDERS)))
        for name, server in zip(self._names, cycle([self._to] if self._to else self.mesh.servers), strict=False):
            self._clients.append(await self.mesh.connect(name=name, to=server))
        self.began = time.monotonic()
        for n, (client, name) in enumerate(zip(self._clients, self._names, strict=True)):
            writing = self._write(client, name, _endlessly(orders[n :: len(self._names)], name))
            self._tasks.append(asyncio.create_task(writing))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop(wait=kind is None)

    @property
    def now_s(self) -> float:
        """Seconds since the writers began."""
        return time.monotonic() - self.began

    async def stop(self, *, wait: bool = True) -> History:
        """End the writers and return their history; stopping twice does nothing.

        It waits for the outcome of orders in flight; without ``wait``, they are ``unknown``.

        Raises:
            Exception: What ended a writer early.
        """
        if self._stopping:
            return self.history
        self._stopping = True
        if not wait:
            for task in self._tasks:
                task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.history.length_s = self.now_s
        if wait:  # else the mesh does it in the end
            await asyncio.gather(*map(close, self._clients))
        for end in ends:
            if isinstance(end, Exception):
                raise end
        return self.history

    async def _write(self, client: Client, writer: str, orders: Iterator[Order]) -> None:
        async with WindowedPublisher(client, window=1, ack_timeout=ACK_TIMEOUT_S, retry_for=RETRY_FOR_S) as publisher:
            for number, order in enumerate(orders):
                if self._stopping:
                    return
                began_s = self.now_s
                outcome: Outcome = "unknown"
                seq, ends = 0, asyncio.Queue[Ack | Failure]()
                try:
                    await publisher.publish(
                        order.subject("placed"),
                        encode(order),
                        msg_id=order.id,
                        on_stored=ends.put_nowait,
                        on_failed=ends.put_nowait,
                    )
                    match await ends.get():
                        case Ack(seq=seq):
                            outcome = "stored"
                        case PublishRefusedError():
                            outcome = "refused"
                finally:  # also when it is cancelled: then its outcome is unknown
                    self.history.add(Attempt(writer, number, order.id, began_s, self.now_s, outcome, seq))
                if self._pace:
                    await asyncio.sleep(self._pace)


def _endlessly(orders: list[Order], writer: str) -> Iterator[Order]:
    """Yield real orders, over and over, each under an id that no other order of the run has."""
    for round_ in count():
        for order in orders:
            yield msgspec.structs.replace(order, id=f"{writer}-{round_}-{order.id}")
