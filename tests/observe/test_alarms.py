"""The alarms: a real Prometheus over a real mesh, in which things go wrong one after the other."""

import asyncio
import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mesh_lab.observe import alarms, metrics
from mesh_lab.observe.snapshots import snapshot
from mesh_lab.orders.saga import DUTIES
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.processes import ChildProcess
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

sys.path.append(str(Path(__file__).parents[1] / "docker"))
from debian_package import NoPackageError, unpack_debian_packages

OBSERVE = Path(__file__).parents[2] / "docker" / "observe"
ORDER_SERVICES = {"publisher", "worker", "read-model", *DUTIES}
NAMES = {signal.alarm for signal in alarms.SIGNALS if signal.alarm}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prometheus and promtool, out of Debian's packages."""
    try:
        return unpack_debian_packages(["prometheus", "promtool"], tmp_path_factory.mktemp("debian")) / "usr/bin"
    except NoPackageError as err:
        pytest.skip(f"no Prometheus can be had here: {err}")


def test_the_files_are_what_the_description_makes() -> None:
    assert (OBSERVE / "alarms.yml").read_text() == alarms.rules(), "python -m mesh_lab.observe.alarms docker/observe"
    assert (OBSERVE / "dashboard.json").read_text() == alarms.dashboard()
    assert len(json.loads(alarms.dashboard())["panels"]) == len(alarms.SIGNALS)


def test_every_image_has_a_version_and_every_port_is_for_this_machine() -> None:
    services = yaml.safe_load((OBSERVE / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        if name in ORDER_SERVICES:  # their image stands in the other file
            continue
        assert service["image"].rpartition(":")[2].lstrip("v").replace(".", "").isdigit(), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            assert (OBSERVE.parent / volume.split(":")[0]).is_file(), volume
    targets = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    assert [target.split(":")[0] for target in targets[0]["targets"]] == [n for n in services if "exporter" in n]


@pytest.mark.needs("debian-mirror")
def test_promtool_finds_nothing_wrong(programs: Path, tmp_path: Path) -> None:
    for name in ("alarms.yml", "prometheus.yml"):
        (tmp_path / name).write_text((OBSERVE / name).read_text().replace("/etc/prometheus", str(tmp_path)))
    for kind, name in (("rules", "alarms.yml"), ("config", "prometheus.yml")):
        done = subprocess.run([programs / "promtool", "check", kind, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


class Watched:
    """A mesh of three, what it says of itself, and a Prometheus that asks twice a second."""

    def __init__(self, mesh: Mesh, prometheus: int) -> None:
        self.mesh, self._address = mesh, f"http://127.0.0.1:{prometheus}"

    def firing(self) -> dict[str, dict[str, str]]:
        """The labels of the alarms that fire, by name."""
        try:
            reply = json.load(urllib.request.urlopen(f"{self._address}/api/v1/alerts", timeout=5))
        except OSError:  # it is starting
            return {"no answer yet": {}}
        labels = [alert["labels"] for alert in reply["data"]["alerts"] if alert["state"] == "firing"]
        return {each["alertname"]: each for each in labels}

    async def hears(self, alarm: str, *, within: float = 40.0) -> dict[str, str]:
        return await eventually(lambda: self.firing().get(alarm), within=within, every=0.5)

    async def quiet(self, alarm: str, *, within: float = 60.0) -> None:
        await eventually(lambda: alarm not in self.firing(), within=within, every=0.5)


@pytest.fixture
async def watched(programs: Path, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[Watched]:
    """As in production, but for its clock: seconds where the committed files have minutes."""
    scraped, asked = unused_tcp_port_factory(), unused_tcp_port_factory()
    (tmp_path / "alarms.yml").write_text(alarms.rules(window="4s", hold="1s").replace("[1h]", "[20s]"))
    job = {"job_name": "nats", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}
    often = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
    config = {"global": often, "rule_files": [str(tmp_path / "alarms.yml")], "scrape_configs": [job]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    command = [
        programs / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/db",
    ]
    command += [f"--web.listen-address=127.0.0.1:{asked}"]
    async with await start_mesh(servers=3, links=True) as mesh:
        exporter = metrics.serve({name: server.monitor for name, server in mesh.servers.items()}, port=scraped)
        with contextlib.closing(ChildProcess([str(part) for part in command], name="prometheus")) as prometheus:
            prometheus.start()
            found = Watched(mesh, asked)
            await eventually(lambda: not found.firing(), within=30)
            yield found
        exporter.shutdown()
        exporter.server_close()


# Each incident returns what undoes it. The function below it asks what an engineer asks after the alarm, by what
# notebook 12 teaches, and returns the name that comes out.
Heal = Callable[[], Awaitable[None]]
Labels = dict[str, str]


async def lag(watched: Watched) -> Heal:
    """Orders come, and no worker takes them."""
    client = await watched.mesh.connect()
    js = client.jetstream(timeout=10)
    await js.add_stream(name="LATE", subjects=["late.>"], num_replicas=3)
    await js.add_consumer("LATE", durable_name="nobody")
    await wait_routable(client, "LATE")

    async def come() -> None:
        while True:
            await asyncio.gather(*(js.publish("late.order", b"") for _ in range(20)))
            await asyncio.sleep(0.2)  # pacing: the next customers

    coming = asyncio.create_task(come())

    async def heal() -> None:
        await cancel_and_join(coming)
        await js.delete_stream("LATE")
        await client.close()

    return heal


async def nobody_asks(watched: Watched, labels: Labels) -> object:
    """The alarm names the consumer; its requests that wait are the workers that it has."""
    async with await watched.mesh.connect() as client:
        info = await client.jetstream(timeout=10).consumer_info(labels["stream_name"], labels["consumer_name"])
    return info.name, info.num_waiting


async def poison(watched: Watched) -> Heal:
    """A worker fails at one order, each time, and does all others."""
    client = await watched.mesh.connect()
    js = client.jetstream(timeout=10)
    await js.add_stream(name="BAD", subjects=["bad.>"], num_replicas=3)
    await wait_routable(client, "BAD")
    pulled = await js.pull_subscribe("bad.>", "worker", stream="BAD")
    await wait_routable(client, "BAD", "worker")
    for number in range(5):
        await js.publish(f"bad.order.{number}", b"no order" if number == 3 else b"an order")

    async def work() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                for msg in await pulled.fetch(1, timeout=1):
                    await (msg.nak(delay=0.2) if msg.data == b"no order" else msg.ack())

    working = asyncio.create_task(work())

    async def heal() -> None:
        await cancel_and_join(working)
        await js.delete_stream("BAD")
        await client.close()

    return heal


async def oldest_not_done(watched: Watched, labels: Labels) -> object:
    """The alarm names the consumer, whose floor names the order: all below it is done."""
    async with await watched.mesh.connect() as client:
        js, stream = client.jetstream(timeout=10), labels["stream_name"]
        floor = (await js.consumer_info(stream, labels["consumer_name"])).ack_floor.stream_seq
        return (await js.get_msg(stream, floor + 1)).subject


async def slow_consumer(watched: Watched) -> Heal:
    """A client asks for all and reads nothing."""
    server, options = watched.mesh.servers["n1"], watched.mesh.connect_options()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    login = json.dumps({"user": options["user"], "pass": options["password"], "name": "report", "verbose": False})
    writer.write(f"CONNECT {login}\r\nSUB much.> 1\r\nPING\r\n".encode())
    await reader.readuntil(b"PONG\r\n")  # subscribed; from here on it reads no more than its buffer holds
    client = await watched.mesh.connect(to="n1", name="till")
    for _ in range(400):
        await client.publish("much.more", bytes(50_000))
    await client.flush()

    async def heal() -> None:
        writer.transport.abort()
        await client.close()

    return heal


async def most_pending(watched: Watched, labels: Labels) -> object:
    """The alarm names the server, whose list of clients begins with the one that has most to read."""
    [server] = [one for one in watched.mesh.servers.values() if one.name == labels["server_name"]]
    return server.monitor.connz("sort=pending")["connections"][0]["name"]


async def nobody_hears(watched: Watched) -> Heal:
    """A subject is misspelt: what is published there goes nowhere."""
    client = await watched.mesh.connect(name="till")

    async def publish() -> None:
        while True:
            for _ in range(200):
                await client.publish("ordesr.placed", b"")
            await asyncio.sleep(0.05)  # pacing

    publishing = asyncio.create_task(publish())

    async def heal() -> None:
        await cancel_and_join(publishing)
        await client.close()

    return heal


async def ends_where_it_came_in(watched: Watched, labels: Labels) -> object:
    """Who sends most is in a list; of its subject, the trace says that it has no way out of the server it came to."""
    senders = [one for server in watched.mesh.servers.values() for one in server.monitor.connz()["connections"]]
    async with await watched.mesh.connect() as client:
        reports = await client.subscribe(inbox := client.new_inbox())
        trace = {"Nats-Trace-Dest": inbox, "Nats-Trace-Only": "true"}
        await client.publish("ordesr.placed", b"", headers=trace)
        events = json.loads((await reports.next_msg(timeout=5)).data)["events"]
    return max(senders, key=lambda one: one["in_msgs"])["name"], [event["type"] for event in events]


async def server_gone(watched: Watched) -> Heal:
    """A server dies."""
    await watched.mesh.kill("n3")

    async def heal() -> None:
        await watched.mesh.restart("n3")

    return heal


async def its_label(watched: Watched, labels: Labels) -> object:
    """The alarm names the server."""
    return labels["server_name"]


async def split_route(watched: Watched) -> Heal:
    """Two servers do not see each other; the third sees both."""
    await watched.mesh.cut("n1", "n2", mode="reset")
    return watched.mesh.heal


async def who_does_not_see_whom(watched: Watched, labels: Labels) -> object:
    """The map's own snapshots: of each server, those that it has no route to."""
    seen = snapshot({name: server.monitor for name, server in watched.mesh.servers.items()})
    return {name: set(seen) - {name} - set(one.peers) for name, one in seen.items()}


@pytest.mark.needs("debian-mirror")
async def test_each_incident_raises_its_alarm_is_found_and_ends_with_it(watched: Watched) -> None:
    incidents: list[dict[str, tuple[Any, Any, object]]] = [
        {  # these do not touch one another, so they happen at once
            # In this order: after ten seconds the server hangs up on the last, the first to be asked about.
            "LagGrows": (lag, nobody_asks, ("nobody", 0)),
            "PoisonOrder": (poison, oldest_not_done, "bad.order.3"),
            "SlowConsumer": (slow_consumer, most_pending, "report"),
        },
        {
            "NobodyHears": (nobody_hears, ends_where_it_came_in, ("till", ["in"])),
            "RouteLost": (split_route, who_does_not_see_whom, {"n1": {"n2"}, "n2": {"n1"}, "n3": set()}),
        },
        {"ServerGone": (server_gone, its_label, "n3")},
    ]
    assert {alarm for together in incidents for alarm in together} == NAMES
    for together in incidents:
        assert not set(together) & set(watched.firing())
        heals = [await happens(watched) for happens, _, _ in together.values()]
        for alarm, (_, finds, culprit) in reversed(together.items()):
            assert await finds(watched, await watched.hears(alarm)) == culprit, alarm
        for heal in heals:
            await heal()
        for alarm in together:
            await watched.quiet(alarm)


async def test_a_dead_server_does_not_fail_the_scrape_and_a_bad_address_is_refused(unused_tcp_port: int) -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n2")
        monitors = {name: server.monitor for name, server in mesh.servers.items()}
        exporter = metrics.serve(monitors, port=(port := unused_tcp_port))
        try:
            said = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics", timeout=10)
            found = {family.name: family.samples for family in text_string_to_metric_families(said.read().decode())}
        finally:
            exporter.shutdown()
            exporter.server_close()
        assert {s.labels["server_id"]: s.value for s in found["nats_up"]} == {"n1": 1, "n2": 0, "n3": 1}
        assert {s.labels["server_id"] for s in found["nats_varz_in_msgs"]} == {"n1", "n3"}
    for wrong in ("", "https://host:8222", "http://host:8222/varz", "http://host:none"):
        with pytest.raises(ValueError, match="no monitoring address; expected http://127.0.0.1:8222"):
            metrics.monitor_at(wrong)
