"""Two clusters in containers, joined by gateways: what is published in one region is received in the other."""

import asyncio
import re
from collections.abc import Iterator
from functools import partial

import pytest
from containers import leftovers

from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually, retry
from mesh_lab.servers.compose import Container, Project

REGIONS = ("eu", "us")


class Regions:
    """The project of `regions.compose.yaml`, by the same command line that its first lines name."""

    def __init__(self, project: Project) -> None:
        self.engine = project.engine
        self.name = "mesh-lab-test-regions"
        project.make_variables()
        self.password = re.search(r"USER_PASSWORD=(\S+)", project.variables.read_text())[1]
        self._files = ["-f", str(project.folder / "regions.compose.yaml"), "--env-file", str(project.variables)]

    def compose(self, *arguments: str) -> str:
        return self.engine.compose(*self._files, *arguments, within=120.0, variables={})

    def containers(self) -> dict[str, Container]:
        # The same label, whichever file the project was made of.
        project = Project.__new__(Project)
        project.engine, project.name = self.engine, self.name
        return {container.service: container for container in project.containers()}


@pytest.fixture(scope="module")
def regions(project: Project) -> Iterator[Regions]:
    found = Regions(project)
    found.compose("up", "--detach")
    try:
        yield found
    finally:
        found.compose("down", "--volumes")
        assert leftovers(found.engine, found.name) == []


async def test_a_message_crosses_from_one_region_into_the_other(regions: Regions) -> None:
    containers = regions.containers()
    assert sorted(containers) == [f"{region}-{number}" for region in REGIONS for number in (1, 2, 3)]
    monitors = {name: Monitor("127.0.0.1", container.ports[8222]) for name, container in containers.items()}

    async def ready() -> bool:
        answers = await asyncio.gather(*(asyncio.to_thread(monitor.health) for monitor in monitors.values()))
        return all(answer.ok for answer in answers)

    await eventually(ready, within=60.0, every=0.2)
    for name, monitor in monitors.items():
        own, other = name[:2], next(region for region in REGIONS if region != name[:2])

        async def met(monitor: Monitor = monitor, expected: tuple[str, list[str]] = (own, [other])) -> bool:
            _, gateways = await asyncio.to_thread(monitor.read, "/gatewayz")
            return (gateways["name"], list(gateways["outbound_gateways"])) == expected

        await eventually(met, within=20.0, every=0.1)
    clients = {}
    for region in REGIONS:
        urls = [f"nats://127.0.0.1:{containers[f'{region}-{n}'].ports[4222]}" for n in (1, 2, 3)]
        clients[region] = await connect(ConnectOptions(servers=urls, user="lab", password=regions.password))
    for here, there in (REGIONS, REGIONS[::-1]):
        heard = await clients[there].subscribe(f"orders.{here}.>")
        await clients[there].flush()
        got = []

        async def crossed(here: str = here, heard=heard, got=got) -> bool:
            await clients[here].publish(f"orders.{here}.000001.placed", b"an order")
            await clients[here].flush()
            if heard.pending_msgs:
                got.append(await heard.next_msg())
            return bool(got)

        # Interest travels ahead of the first message; until it has, a message goes nowhere.
        await eventually(crossed, within=10.0, every=0.1)
        assert got[0].data == b"an order"
    for region, client in clients.items():
        own = {f"127.0.0.1:{containers[f'{region}-{n}'].ports[4222]}" for n in (1, 2, 3)}
        assert set(client._server_info["connect_urls"]) <= own, "a client is told of its own region only"
        js = client.jetstream(timeout=5.0)
        placed = {"name": f"PLACED_{region}", "subjects": [f"stored.{region}.>"], "num_replicas": 3}
        await retry(partial(js.add_stream, **placed))
        await wait_routable(client, f"PLACED_{region}")
        assert (await js.publish(f"stored.{region}.000001", b"an order")).stream == f"PLACED_{region}"
        info = await js.stream_info(f"PLACED_{region}")
        assert info.cluster.name == region, "a stream stays in the region in which it was made"
        await client.close()
