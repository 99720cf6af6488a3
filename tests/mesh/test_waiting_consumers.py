"""Consumers that lose their server or their rights ask seldom, say so in one line, and are back by themselves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.partition_group import GroupMember, Partition
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.redelivery import consume_with_retries
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

BOSS = "{ user: boss, password: boss }, "
DESK = "{{ user: desk, password: desk{} }}"
MAY_NOT_ASK = ', permissions: { publish: { deny: ["$JS.API.>"] } }'
KINDS = ("pulling", "retrying", "reading", "member")


async def ignore(_err: Exception) -> None:
    """What the connection says of itself is not looked at here."""


class Crew:
    """One of each kind of consumer, with a client of its own, and what they got."""

    def __init__(self, mesh: Mesh, boss: Client) -> None:
        self.mesh, self.boss, self.js = mesh, boss, boss.jetstream(timeout=5.0)
        self.got: dict[str, set[bytes]] = {kind: set() for kind in KINDS}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        for kind in KINDS:
            client = await self.mesh.connect(user="desk", password="desk", error_cb=ignore)
            self.tasks[kind] = asyncio.create_task(getattr(self, kind)(client))

    async def pulling(self, client: Client) -> None:
        async with PullConsumer(client, "S", "pulling") as source, aclosing(source.batches()) as batches:
            async for batch in batches:
                for msg in batch:
                    self.got["pulling"].add(msg.data)
                    await msg.ack()

    async def retrying(self, client: Client) -> None:
        async def handle(msg: Msg) -> None:
            self.got["retrying"].add(msg.data)

        await consume_with_retries(client, "S", "retrying", handle, dead="dead")

    async def reading(self, client: Client) -> None:
        async with aclosing(read_in_order(client, "S")) as batches:
            async for batch in batches:
                self.got["reading"] |= {msg.data for msg in batch}

    async def member(self, client: Client) -> None:
        async def handle(msg: Msg, partition: Partition) -> None:
            self.got["member"].add(msg.data)

        member = GroupMember(client, "S", "g", name="a", subject="s.{partition}", partitions=2, lease=1.5)
        await member.run(handle)

    async def all_get(self, payload: bytes) -> None:
        await self.js.publish("s.0", payload)

        def have_it() -> bool:
            for task in self.tasks.values():
                if task.done():
                    task.result()
            return all(payload in got for got in self.got.values())

        await eventually(have_it, within=20.0)

    async def requests_per_s(self) -> float:
        (server,) = self.mesh.servers.values()
        before = server.monitor.varz()["in_msgs"]
        await asyncio.sleep(2.0)  # absence: requests that do not come
        return (server.monitor.varz()["in_msgs"] - before) / 2.0


@pytest.fixture
async def crew(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crew]:
    """A crew at work on a mesh of one server."""
    monkeypatch.setattr("mesh_lab.patterns.pull_consumer.TELL_AFTER_S", 2.0)
    async with await start_mesh(servers=1, users_config=BOSS + DESK.format("")) as mesh:
        boss = await mesh.connect(user="boss", password="boss")
        crew = Crew(mesh, boss)
        await crew.js.add_stream(name="S", subjects=["s.*"])
        await crew.js.add_stream(name="DEAD", subjects=["dead"])
        for name in ("pulling", "retrying"):
            await crew.js.add_consumer("S", durable_name=name, ack_policy="explicit", ack_wait=2)
            await wait_routable(boss, "S", name)
        await crew.start()
        await crew.all_get(b"first")
        yield crew
        await cancel_and_join(*crew.tasks.values())


async def test_consumers_that_may_not_ask_any_more_ask_seldom_and_are_back_with_their_right(crew: Crew, caplog) -> None:
    await crew.mesh.reload(users_config=BOSS + DESK.format(MAY_NOT_ASK))
    # What was requested before goes on for half a minute; this one asks twice a second.
    await eventually(lambda: "'retrying' of stream 'S': nothing for" in caplog.text, within=15.0)
    assert "permissions violation for publish" in caplog.text
    assert await crew.requests_per_s() <= 20 * len(KINDS)
    await crew.mesh.reload(users_config=BOSS + DESK.format(""))
    await crew.all_get(b"second")
    assert caplog.text.count("'retrying' of stream 'S': nothing for") == 1


async def test_consumers_without_a_server_say_so_once_and_are_back_with_it(crew: Crew, caplog) -> None:
    await crew.mesh.kill("n1")
    await eventually(lambda: "'pulling' of stream 'S': nothing for" in caplog.text, within=15.0)
    await crew.mesh.restart("n1")
    with contextlib.suppress(TimeoutError):
        await crew.js.publish("s.0", b"while they come back", timeout=5.0)
    await crew.all_get(b"second")
    for kind in ("pulling", "retrying"):
        assert caplog.text.count(f"'{kind}' of stream 'S': nothing for") == 1
    assert "no server is connected" in caplog.text
    assert "consumer 'pulling' of stream 'S': back after" in caplog.text
