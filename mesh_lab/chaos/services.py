"""A worker and a publisher that die when they are told to, at one exact step, and a database that tells what they did.

Both are processes, and die by SIGKILL: the worker between an order's effect, a row in its database, and its
acknowledgement; the publisher at each step of its outbox, a table in which it notes an order with what it sells, in one
transaction, sends it, and crosses it out. Started again, they go on as a real one does, and in the end every order has
one effect, and every order that was noted is stored once.
"""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from nats.aio.client import Client

from mesh_lab.chaos.history import Attempt
from mesh_lab.chaos.schedule import OUTBOX_STEPS
from mesh_lab.errors import ProcessEndedError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import WORKERS
from mesh_lab.orders.order import STREAM, encode
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.pull_consumer import PullConsumer
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess, on_input_line, run
from mesh_lab.servers.mesh import Mesh
from mesh_lab.tls import pack, unpack

Name = Literal["worker", "publisher"]
PACE_S = 0.01  # between two orders of the publisher
DIES_WITHIN_S = DONE_WITHIN_S = RETRY_FOR_S = 60.0  # longer than elections, while which neither gets anywhere
ACK_WAIT_S = 1.5  # after which an order of a dead worker goes to the next one
NUMBER_OF_ORDERS = 5_000
if sys.platform == "win32":  # where os.kill ends a process with the signal's number as its exit code
    DEATH, DEAD = signal.SIGTERM, int(signal.SIGTERM)
else:
    DEATH, DEAD = signal.SIGKILL, -signal.SIGKILL
_TABLES = """
pragma journal_mode = wal; pragma synchronous = off;
create table if not exists handled (id text primary key, deliveries int);
create table if not exists effects (id text);
create table if not exists sales (number integer primary key, id text unique);
create table if not exists outbox (number integer primary key, payload blob);
create table if not exists sent (number integer primary key, began real, ended real, seq int);
"""


class DyingService:
    """A worker or a publisher, as its mesh's child: it ends with the mesh at the latest."""

    def __init__(self, name: Name, mesh: Mesh) -> None:
        self.name = name
        self._database = mesh.directory / f"{name}.db"
        command = [sys.executable, "-m", "mesh_lab.chaos.services", name, str(self._database)]
        environment = {CONNECT_VARIABLE: json.dumps(pack(mesh.connect_options()))}
        self._process = ChildProcess(command, name=name, owner=mesh.owner, environment=environment, stdin=True)

    async def start(self) -> None:
        """Start it, the first time or again."""
        self._process.close()  # the pipe of the one before
        await asyncio.to_thread(self._process.start)

    async def die(self, step: str) -> None:
        """Tell it to die at a step, and return when it has.

        Raises:
            ProcessEndedError: It ended otherwise, or did not come to that step in a minute.
        """
        self._process.send(step.encode())
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: self._process.exit_code is not None, within=DIES_WITHIN_S)
        if (code := self._process.exit_code) != DEAD:
            ended = "did not end" if code is None else f"ended with exit code {code}"
            raise ProcessEndedError(
                f"the {self.name} {ended}, expected it to die after {step!r}\n{self._process.log()}"
            )

    async def finish(self, wanted: Collection[str] = ()) -> None:
        """Return when a worker has made the effects of the orders ``wanted``, or a publisher has sent all and ended.

        Raises:
            NotReadyError: It was not done within a minute.
        """
        if self.name == "publisher":
            self._process.send(b"stop")
            await eventually(lambda: self._process.exit_code is not None, within=DONE_WITHIN_S)
        else:
            await eventually(lambda: not set(wanted) - set(self.effects()), within=DONE_WITHIN_S, every=0.2)

    def effects(self) -> Counter[str]:
        """Return how many effects each order has."""
        return Counter(id_ for (id_,) in self._rows("select id from effects"))

    @property
    def redelivered(self) -> int:
        """How many orders came to the worker more than once."""
        return len(self._rows("select id from handled where deliveries > 1"))

    def attempts(self, *, began: float) -> Iterable[Attempt]:
        """Yield what became of each order that the publisher noted; times since ``began`` on the monotonic clock."""
        outcome = "coalesce(began, ?), coalesce(ended, ?), coalesce(seq, 0)"
        query = f"select number, id, {outcome} from sales left join sent using (number) order by number"  # noqa: S608
        for number, id_, sent, ended, seq in self._rows(query, began, began):
            yield Attempt(self.name, number, id_, sent - began, ended - began, "stored" if seq else "unknown", seq)

    def close(self) -> None:
        """Kill it if it still runs."""
        self._process.close()

    def _rows(self, query: str, *given: float) -> list[tuple[Any, ...]]:
        with contextlib.closing(_open(self._database)) as database:
            return database.execute(query, given).fetchall()


@contextlib.asynccontextmanager
async def services_of(mesh: Mesh, names: Iterable[Name]) -> AsyncIterator[dict[Name, DyingService]]:
    """Yield services of a mesh at work, and kill them at the end."""
    with contextlib.ExitStack() as closing:
        services = {name: closing.enter_context(contextlib.closing(DyingService(name, mesh))) for name in names}
        for service in services.values():
            await service.start()
        yield services


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    database.executescript(_TABLES)
    return database


class _Fate:
    """When a child dies: after the ``step`` that it was last told, or in good order when told to stop."""

    def __init__(self) -> None:
        self.stop, self.step = asyncio.Event(), ""

    def tell(self, line: bytes) -> None:
        if line == b"stop":
            self.stop.set()
        self.step = line.decode()

    def after(self, step: str) -> None:
        if step == self.step:
            os.kill(os.getpid(), DEATH)


async def _work(client: Client, database: sqlite3.Connection, fate: _Fate) -> None:
    """Make the effect of each order once, however often it comes."""
    async with PullConsumer(client, STREAM, WORKERS, prefetch=50) as consumer:
        async for batch in consumer.batches():
            for msg in batch:
                id_ = (msg.headers or {})["Nats-Msg-Id"]
                # The key and the effect in one transaction: a second delivery finds the key.
                database.execute("begin immediate")
                note = "insert into handled values (?, 1) on conflict do update set deliveries = deliveries + 1"
                if database.execute(f"{note} returning deliveries", [id_]).fetchone() == (1,):
                    database.execute("insert into effects values (?)", [id_])
                database.execute("commit")
                fate.after("effect")
                await msg.ack()


async def _sell(client: Client, database: sqlite3.Connection, fate: _Fate) -> None:
    """Sell orders until stopped, and publish them through an outbox, which is empty in the end."""
    before_commit, noted, published, acknowledged, crossed_out = OUTBOX_STEPS
    js = client.jetstream(timeout=1.0)
    orders = await asyncio.to_thread(lambda: list(read_orders(first=NUMBER_OF_ORDERS)))
    while True:
        for number, payload in database.execute("select number, payload from outbox order by number").fetchall():
            subject, began = orders[number % len(orders)].subject("placed"), time.monotonic()
            headers = {"Nats-Msg-Id": f"till-{number}"}
            if fate.step == published:  # sent, and nothing heard of it
                await client.publish(subject, payload, headers=headers)
                await client.flush()
                fate.after(published)
            ack = await retry(partial(js.publish, subject, payload, headers=headers), within=RETRY_FOR_S)
            fate.after(acknowledged)
            database.execute("begin immediate")
            database.execute("insert into sent values (?, ?, ?, ?)", [number, began, time.monotonic(), ack.seq])
            database.execute("delete from outbox where number = ?", [number])
            database.execute("commit")
            fate.after(crossed_out)
        if fate.stop.is_set():
            return
        (number,) = database.execute("select count(*) + 1 from sales").fetchone()
        database.execute("begin immediate")
        database.execute("insert into sales values (?, ?)", [number, f"till-{number}"])
        database.execute("insert into outbox values (?, ?)", [number, encode(orders[number % len(orders)])])
        fate.after(before_commit)
        database.execute("commit")
        fate.after(noted)
        await asyncio.sleep(PACE_S)


async def _main(name: str, path: Path) -> None:
    fate = _Fate()
    options = cast(ConnectOptions, unpack(json.loads(os.environ.pop(CONNECT_VARIABLE))))
    client = await connect({**options, "name": name})
    on_input_line(fate.tell)
    with contextlib.closing(_open(path)) as database:
        await (_work if name == "worker" else _sell)(client, database, fate)


if __name__ == "__main__":
    run(_main(sys.argv[1], Path(sys.argv[2])))
