"""A seat's store: a nats-server of the seat's own, a leaf node of the room's mesh, that sells also while it is cut off.

What is sold is kept in a stream of the store, ``TILL``, and sent on to the room until the room has stored it. Both are
asked to keep an order under its id, so that one that is sent twice is there once.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Self

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from mesh_lab.errors import NotReadyError, SettingsError
from mesh_lab.measure.local_store import data_dir
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import encode
from mesh_lab.patterns.connection import publish_if_connected, uncancelled
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.token_bucket import TokenBucket
from mesh_lab.patterns.wait import cancel_and_join, retry
from mesh_lab.patterns.windowed_publisher import WindowedPublisher
from mesh_lab.servers.config import ACCOUNT
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh
from mesh_lab.tls import quoted
from mesh_lab.workshop.protocol import Sold, Told
from mesh_lab.workshop.seat import AUTHORITY, KEY, STORE_CREDENTIALS, STORE_FOLDER, Card, card

TILL, UPLINK = "TILL", "uplink"
AHEAD, AGAIN_AFTER_S, RETRY_FOR_S, ACK_WAIT_S = 50, 0.1, 6.0, 30.0
ROWS, TURNS_PER_S, NOISY_PER_S = 1_000, 20, 500
"""Rows of the data set that a store sells over and over; its turns; orders that a noisy seat sells in a second."""
CHECK_WITHIN_S = 20.0
_opened: "dict[Path, Store]" = {}
Step = tuple[str, bytes, str]


class Store:
    """An open store; :meth:`open` opens one.

    Attributes:
        seat: Its number.
        name: Its own, with which the ids of its orders begin: nobody else's order can have one of them.
        mesh: Its one server, for plain clients and services; what they publish to ``done.<seat>`` goes to the room.
        sold: Orders that it has sold, each acknowledged by its own stream.
        pace: Orders that it sells in a second, as the room told it.
    """

    def __init__(self, seat: str, name: str, mesh: Mesh, client: Client, sold: int) -> None:
        self.seat, self.name, self.mesh, self.sold, self.pace = seat, name, mesh, sold, 0.0
        self._client, self._work = client, list[asyncio.Task[None]]()

    @classmethod
    async def open(cls, home: Path | None = None) -> Self:
        """Start the store of this machine's seat, with what it sold before, and return it; its link comes by itself.

        Args:
            home: Directory in which the seat has joined; ``None`` for this machine's.

        Raises:
            SettingsError: This machine is no seat of a room.
            MeshLabError: What :func:`~mesh_lab.servers.start.start_mesh` raises.
        """
        home = home or data_dir()
        if (here := card(home)) is None:
            raise SettingsError("this machine is no seat of a workshop; mesh-lab join makes it one")
        if (before := _opened.pop(home, None)) is not None:  # the cell ran again
            await before.close()
        (home / STORE_FOLDER).mkdir(mode=0o700, exist_ok=True)
        # Nobody shall know another's. Of two leaf nodes with one name the servers keep the later one, and of two
        # messages with one id a stream stores the first.
        name = f"{here.seat}-{blake2b((home / KEY).read_bytes(), digest_size=4).hexdigest()}"
        mesh = await start_mesh(
            regions={f"store-{name}": 1}, links=False, backend="local", keep=home / STORE_FOLDER, within=60.0,
            jetstream_config=f"domain: store-{here.seat}", extra_config=_leaf_node(here, home),
        )  # fmt: skip
        try:
            # The room's replies cross the link on this inbox alone.
            client = await mesh.connect(name="store", inbox_prefix=f"_INBOX_store-{here.seat}")
            js = client.jetstream()
            till = await retry(partial(js.add_stream, name=TILL, subjects=["till"]))
            uplink = ConsumerConfig(durable_name=UPLINK, ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_S)
            await retry(partial(js.add_consumer, TILL, uplink))
            store = cls(here.seat, name, mesh, client, till.state.last_seq)
            await client.subscribe("told.pace", cb=store._listen)
        except BaseException:
            await mesh.close()
            raise
        store._work = [asyncio.create_task(store._sell()), asyncio.create_task(store._send_on())]
        _opened[home] = store
        return store

    async def check(self, what: str) -> str:
        """Return the room's verdict on all seats together: ``correct: …``, or ``not yet: …; expected …``.

        Args:
            what: ``"count"``, ``"share"`` or ``"noise"``.

        Raises:
            NotReadyError: The room does not answer.
            Exception: What ended this store's own work, if anything did; open it again.
        """
        for task in self._work:
            if task.done() and not task.cancelled():
                task.result()
        try:
            return (await self._client.request(f"ask.{self.seat}", what.encode(), timeout=CHECK_WITHIN_S)).data.decode()
        except nats.errors.Error as err:
            words = "the room does not answer: this store's link is cut, or the trainer has not begun"
            raise NotReadyError(f"{words} ({err!r}); the store sells on, try again in a moment") from err

    async def close(self) -> None:
        """End the store; what it sold stays on its disk, and is sent on when it is opened again."""
        await cancel_and_join(*self._work)
        await self.mesh.close()

    async def _listen(self, msg: Msg) -> None:
        """Take the pace that the room tells, and reply how much is sold."""
        try:
            told = msgspec.json.decode(msg.data, type=Told)
        except msgspec.DecodeError:
            return  # not the room's, which tells it again in a second
        self.pace = NOISY_PER_S if told.noisy == self.seat else told.pace
        await publish_if_connected(self._client, f"sold.{self.seat}", msgspec.json.encode(Sold(self.name, self.sold)))

    async def _sell(self) -> None:
        """Sell at the pace, each order under an id of its own, for as long as the store is open."""
        rows, js = list(read_orders(first=ROWS)), self._client.jetstream(timeout=2.0)
        while True:
            many = max(1, round(self.pace / TURNS_PER_S)) if self.pace else 0
            numbers = range(self.sold + 1, self.sold + many + 1)
            orders = [
                msgspec.structs.replace(rows[number % ROWS], id=f"{self.name}-{number:06}", region=self.seat)
                for number in numbers
            ]
            await asyncio.gather(
                *(
                    retry(partial(js.publish, "till", encode(order), headers={"Nats-Msg-Id": order.id}))
                    for order in orders
                )
            )
            self.sold += many
            await asyncio.sleep(many / self.pace if self.pace else 1 / TURNS_PER_S)  # until the next customers come

    async def _send_on(self) -> None:
        def step(msg: Msg) -> Step:
            return f"intake.{self.seat}", msg.data, (msg.headers or {})["Nats-Msg-Id"]

        await forward(self._client, TILL, UPLINK, step)


async def forward(
    client: Client, stream: str, consumer: str, step: Callable[[Msg], Step | None], *, pace: TokenBucket | None = None
) -> None:
    """Send what a consumer brings on to another stream, until cancelled; a message is done when that has stored it.

    Args:
        client: Connected to where both streams are reached.
        stream: The one it comes from.
        consumer: Its pull consumer, with explicit acknowledgement.
        step: Returns for a message the subject, the payload and the id with which it goes on; ``None``: it does not.
        pace: How fast; ``None``: as fast as it goes.

    Raises:
        nats.js.errors.NotFoundError: There is no such consumer.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    again = b'-NAK {"delay": %d}' % (AGAIN_AFTER_S * 1e9)

    def settle(reply: str, word: bytes, _: object) -> None:
        uncancelled(publish_if_connected(client, reply, word))

    taken = PullConsumer(client, stream, consumer, prefetch=AHEAD)
    async with taken, WindowedPublisher(client, window=AHEAD, retry_for=RETRY_FOR_S) as window:
        async for batch in taken.batches():
            for msg in batch:
                if pace is not None:
                    await pace.wait()
                if (on := step(msg)) is None:
                    settle(msg.reply, b"+ACK", None)
                    continue
                subject, payload, msg_id = on
                done, failed = partial(settle, msg.reply, b"+ACK"), partial(settle, msg.reply, again)
                # Where it fails, it comes again: the room is away, or takes no more of this seat for now.
                await window.publish(subject, payload, msg_id=msg_id, on_stored=done, on_failed=failed)


def _leaf_node(card: Card, home: Path) -> str:
    """Return the settings with which a server joins the room as the seat's store."""
    urls, name = ", ".join(map(quoted, card.leaves)), quoted(str(home / STORE_CREDENTIALS))
    tls = f'tls {{ ca_file: {quoted(str(home / AUTHORITY))}, min_version: "1.3", timeout: 5 }}'
    remote = f"urls: [{urls}], account: {ACCOUNT}, credentials: {name}, {tls}"
    return f"leafnodes {{ reconnect: 1s, remotes: [{{ {remote} }}] }}"
