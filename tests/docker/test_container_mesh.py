"""The mesh in containers is the same mesh: ready when it says so, joined when it is up, and it does what it is told."""

import asyncio
import contextlib
import json
import re
import stat

import nats
import nats.errors
import nats.js.errors
import pytest
from containers import assert_locked_down, command, leftovers

from mesh_lab.errors import EngineRefusedError, ServerExitedError, UnsupportedByBackendError
from mesh_lab.notebook.mesh_card import mesh_card
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.servers.compose import CLIENT_PORT, MONITOR_PORT, Project
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import newest_mesh, start_mesh


@pytest.fixture
async def mesh(project: Project):
    async with await start_mesh(servers=3, backend="docker") as started:
        yield started


def test_up_says_where_the_mesh_is_and_what_to_do_next_and_no_password(project: Project) -> None:
    done = command("up", "--docker")
    assert done.returncode == 0, done.stderr
    secrets = re.findall(r"PASSWORD=(\S+)", project.variables.read_text())
    assert len(set(secrets)) == 3
    assert stat.S_IMODE(project.variables.stat().st_mode) == 0o600
    ports = [container.ports[CLIENT_PORT] for container in project.servers().values()]
    for part in ("n1 ready, n2 ready, n3 ready", "orders --docker", "mesh-lab down", *(f":{port}" for port in ports)):
        assert part in done.stdout
    shown = done.stdout + done.stderr + command("status").stdout
    assert not [secret for secret in secrets if secret in shown]


def test_status_shows_each_server_with_its_ports(project: Project, mesh: Mesh) -> None:
    said = command("status").stdout
    for name, container in project.servers().items():
        line = next(line for line in said.splitlines() if line.startswith(f"{name}-1 "))
        assert "running" in line
        assert f"127.0.0.1:{container.ports[MONITOR_PORT]} for 8222" in line


async def test_three_containers_take_a_replicated_stream_at_once(mesh: Mesh) -> None:
    client = await mesh.connect()
    js = client.jetstream(timeout=5.0)
    info = await js.add_stream(name="TAKEN", subjects=["taken.>"], num_replicas=3)
    await wait_routable(client, "TAKEN")  # a moment later, the server that this client is at knows who leads it
    assert (await js.publish("taken.1", b"an order")).seq == 1
    assert len(info.cluster.replicas) == 2
    await js.delete_stream("TAKEN")


async def test_a_mesh_that_is_up_is_joined_and_closing_leaves_it_up(project: Project, mesh: Mesh) -> None:
    def started() -> list[str]:
        ids = [container.id for container in project.servers().values()]
        return project.engine.docker("inspect", "-f", "{{.Id}} {{.State.StartedAt}}", *ids).split()

    before = started()
    async with await start_mesh(servers=1, backend="docker") as other:
        assert newest_mesh() is other
        assert other.urls == mesh.urls
        assert other.backend == "docker"
    assert started() == before
    assert await mesh.is_healthy()


async def test_a_mesh_shows_its_servers_and_neither_ports_nor_secrets(mesh: Mesh) -> None:
    assert repr(mesh) == "Mesh(n1 ready, n2 ready, n3 ready)"
    password = mesh.connect_options()["password"]
    for text in (repr(mesh), mesh_card(mesh), repr(mesh.servers), repr(mesh.project.containers())):
        assert "n2" in text
        assert password not in text


async def test_clients_learn_addresses_that_work_from_the_host_and_no_inner_ones(mesh: Mesh) -> None:
    published = {f"127.0.0.1:{server.port}" for server in mesh.servers.values()}

    async def told() -> bool:
        client = await nats.connect(**mesh.connect_options())
        async with client:
            urls = set(client._server_info["connect_urls"])
        assert urls <= published, "an address inside the engine's network is handed out"
        return urls == published

    await eventually(told, within=10.0)
    # A client that was given one server only finds the other two by what INFO told it.
    one = {**mesh.connect_options(to="n1"), "servers": mesh.urls[:1]}
    client = await connect(one)
    assert client.connected_url.port == mesh.servers["n1"].port
    await mesh.kill("n1")
    await eventually(lambda: client.is_connected and client.connected_url.port != mesh.servers["n1"].port, within=10.0)
    assert f"127.0.0.1:{client.connected_url.port}" in published
    await mesh.restart("n1")
    assert {f"{url.hostname}:{url.port}" for url in client.discovered_servers} <= published
    await client.close()
    for address in published:
        async with await connect({**one, "servers": [f"nats://{address}"]}) as direct:
            await direct.flush()


async def test_a_client_survives_the_death_of_its_container(mesh: Mesh) -> None:
    client = await mesh.connect(to="n2")
    assert client.connected_url.port == _port(mesh, "n2")
    await mesh.kill("n2")
    assert mesh.servers["n2"].state == "killed"
    assert not await mesh.is_healthy()
    await eventually(lambda: client.is_connected and client.connected_url.port != _port(mesh, "n2"), within=10.0)
    with pytest.raises(ServerExitedError, match="'n2' is killed, expected running; restart it first"):
        await mesh.pause("n2")
    await mesh.restart("n2")
    assert await mesh.is_healthy()
    assert mesh.logs("n2", last=None).count("Server is ready") >= 2
    assert len(mesh.logs("n2", last=3).splitlines()) == 3


async def test_a_paused_container_answers_again_when_it_is_resumed(mesh: Mesh) -> None:
    await mesh.pause("n3")
    assert mesh.servers["n3"].state == "paused"
    assert not mesh.servers["n3"].monitor.health().ok
    await mesh.resume("n3")
    await eventually(mesh.is_healthy, within=15.0)
    await mesh.pause("n3")
    await mesh.kill("n3")
    assert mesh.servers["n3"].state == "killed"
    await mesh.restart("n3")


async def test_joining_starts_what_somebody_killed_or_paused(project: Project, mesh: Mesh) -> None:
    servers = project.servers()
    project.engine.docker("kill", servers["n1"].id)
    project.engine.docker("pause", servers["n2"].id)
    assert (await mesh.states())["n1"] == "exited"
    async with await start_mesh(servers=3, backend="docker") as other:
        assert await other.is_healthy()


async def test_a_stream_outlives_all_its_servers(mesh: Mesh) -> None:
    client = await mesh.connect()
    js = client.jetstream(timeout=5.0)
    await js.add_stream(name="KEPT", subjects=["kept.>"], num_replicas=3)
    await wait_routable(client, "KEPT")
    await js.publish("kept.1", b"an order")
    await client.close()  # nats-py 2.16 leaves sockets open where it redials a server that hangs up on it
    for name in mesh.servers:
        await mesh.kill(name)
    await asyncio.gather(*(asyncio.to_thread(server.start) for server in mesh.servers.values()))
    async with await start_mesh(servers=3, backend="docker") as other:
        client = await other.connect()
        js = client.jetstream(timeout=1.0)

        async def kept() -> bytes | None:
            with contextlib.suppress(TimeoutError, nats.js.errors.APIError):  # the stream elects its leader
                return (await js.get_msg("KEPT", 1)).data

        assert await eventually(kept, within=20.0) == b"an order"
        await client.jetstream(timeout=10.0).delete_stream("KEPT")


async def test_nobody_without_the_password_is_let_in(mesh: Mesh) -> None:
    with pytest.raises(nats.errors.Error, match=re.compile("authorization", re.I)):
        await nats.connect(mesh.urls[0], user="lab", password="guess", allow_reconnect=False, error_cb=_ignore)
    _collect_quietly()


def test_servers_are_not_root_write_to_their_store_only_and_listen_on_this_machine_only(project: Project) -> None:
    for container in project.servers().values():
        seen = json.loads(project.engine.docker("inspect", container.id))[0]
        assert_locked_down(seen)
        bindings = [bound for ports in seen["HostConfig"]["PortBindings"].values() for bound in ports]
        assert {bound["HostIp"] for bound in bindings} == {"127.0.0.1"}
        writable = [mount["Destination"] for mount in seen["Mounts"] if mount["RW"]]
        assert writable == ["/tmp"]
        with pytest.raises(EngineRefusedError, match="Read-only file system"):
            project.engine.docker("exec", container.id, "sh", "-c", "echo > /etc/written")


async def test_the_health_check_means_ready(project: Project, mesh: Mesh) -> None:
    def health(name: str) -> str:
        return project.servers()[name].health

    await eventually(lambda: all(health(name) == "healthy" for name in mesh.servers), within=20.0, every=0.5)
    # One of three started, but without a majority it is not ready, and its health check says so.
    for name in ("n1", "n2"):
        await mesh.kill(name)
    await asyncio.to_thread(mesh.servers["n3"].stop)
    await asyncio.to_thread(mesh.servers["n3"].start)
    await eventually(lambda: "JetStream" in mesh.logs("n3"), within=10.0, every=0.5)
    assert health("n3") in ("starting", "unhealthy")
    assert not mesh.servers["n3"].monitor.health().ok


async def test_containers_are_three_and_configured_in_their_own_file(project: Project) -> None:
    with pytest.raises(UnsupportedByBackendError, match="5 servers asked for, but the containers are three"):
        await start_mesh(servers=5, backend="docker")
    with pytest.raises(
        UnsupportedByBackendError,
        match="further settings asked for.* by docker/nats-server.conf; use backend='local'",
    ):
        await start_mesh(servers=3, backend="docker", extra_config="debug: true")


async def test_the_environment_chooses_the_backend(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_LAB_BACKEND", "docker")
    async with await start_mesh(servers=3) as mesh:
        assert mesh.backend == "docker"
        assert await mesh.is_healthy()


async def test_down_leaves_nothing_of_ours_and_everything_of_others(project: Project) -> None:
    other = ["--label", "com.docker.compose.project=mesh-lab-of-another"]
    volume = project.engine.docker("volume", "create", *other).strip()
    try:
        mesh = await start_mesh(servers=3, backend="docker")
        await mesh.pause("n2")
        await mesh.close()
        assert project.down() == "3 containers, 1 network, 3 volumes"
        assert leftovers(project.engine, project.name) == []
        assert volume in project.engine.docker("volume", "ls", "-q").split()
        assert project.variables.exists()
        with pytest.raises(ServerExitedError, match="cannot be seen .*start the mesh anew"):
            mesh.servers["n1"].check_alive()
    finally:
        project.engine.docker("volume", "rm", volume)
    assert command("status").stdout.startswith("nothing is up; start it with: mesh-lab up --docker")
    assert command("down").stdout.startswith("removed 0 containers, 0 networks, 0 volumes")


def _port(mesh: Mesh, name: str) -> int:
    return mesh.servers[name].port


def _collect_quietly() -> None:
    """Collect what warns when it is collected: nats-py 2.16 leaves the socket of a refused connection open."""
    import gc
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def _ignore(_error: Exception) -> None:
    return
