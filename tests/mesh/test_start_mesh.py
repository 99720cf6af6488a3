"""A mesh is ready when it says so, does what it is told, and says clearly what it cannot do."""

import asyncio
import gc
import os
import re
import signal
import socket
import stat
import statistics
import subprocess
import sys
import time
import warnings

import nats
import nats.errors
import psutil
import pytest
from programs import killed_at_the_end

from mesh_lab.errors import (
    CredentialsError,
    MeshClosedError,
    NotReadyError,
    ServerExitedError,
    StoreError,
    UnknownNameError,
    UnsupportedByBackendError,
)
from mesh_lab.notebook.mesh_card import mesh_card
from mesh_lab.observe.monitor import Monitor
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import OWNER_VARIABLE
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.readiness import Deadline, placeable, routed, wait_for
from mesh_lab.servers.start import newest_mesh, start_mesh
from mesh_lab.servers.workspace import PortBlock


async def test_three_servers_take_a_replicated_stream_at_once() -> None:
    for _ in range(5):
        async with await start_mesh(servers=3) as mesh:
            client = await mesh.connect()
            js = client.jetstream(timeout=10.0)
            info = await js.add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
            await wait_routable(client, "ORDERS")
            ack = await js.publish("orders.1", b"an order")
            assert (ack.seq, len(info.cluster.replicas)) == (1, 2)


async def test_every_server_knows_where_the_others_wait_for_the_api_s_answers() -> None:
    # Without that, who asks the first question through a server may never hear the answer that a third one gives.
    async with await start_mesh(servers=3) as mesh:
        for name, server in mesh.servers.items():
            known = {
                route["remote_name"]
                for route in server.monitor.routez("subs=1")["routes"]
                if any(subject.startswith("_R_.") for subject in route.get("subscriptions_list") or ())
            }
            assert known == set(mesh.servers) - {name}


async def test_servers_are_ready_when_they_have_all_their_routes() -> None:
    # A cluster elects a leader over one of them, and an account whose route is missing is not heard of next door.
    for _ in range(5):
        async with await start_mesh(servers=3) as mesh:
            assert set(_routes(mesh).values()) == {4}  # three for the accounts, one for the system account


async def test_a_server_that_is_back_is_waited_for_until_it_has_all_its_routes(monkeypatch) -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n3")
        assert await routed(mesh.view) == ""  # those that run have theirs
        await eventually(lambda: _routes(mesh)["n1", "n3"] == 0, within=5.0)
        with monkeypatch.context() as patch:  # one that is started is routed before one can look
            patch.setattr(type(mesh.servers["n3"]), "state", property(lambda server: "running"))
            missing = await routed(mesh.view)
            assert re.fullmatch(r"server 'n\d' has 0 routes to 'n\d' of a pool of \w+, 0 others", missing)
        mesh.servers["n3"].start()
        await wait_for(mesh.view, [routed], Deadline(20.0))
        assert set(_routes(mesh).values()) == {4}
        await mesh.kill("n3")
        assert await mesh.restart("n3")
        await wait_for(mesh.view, [routed], Deadline(20.0))
        assert set(_routes(mesh).values()) == {4}


@pytest.mark.alone
async def test_three_servers_are_ready_before_an_election_by_timeout_would_begin() -> None:
    # Servers elect a leader within 0.8 s of their first start if they have found each other by then, which is what
    # start_mesh sees to; otherwise they wait for 4 to 9 s (minElectionTimeout in nats-server's server/raft.go).
    async def started() -> float:
        begun = time.perf_counter()
        async with await start_mesh(servers=3):
            return time.perf_counter() - begun

    assert statistics.median([await started() for _ in range(3)]) < 4.0


async def test_a_mesh_shows_its_servers_and_neither_ports_nor_secrets() -> None:
    async with await start_mesh(servers=3) as mesh:
        password = mesh.connect_options()["password"]
        for text in (repr(mesh), mesh_card(mesh), repr(mesh.servers)):
            assert "n2" in text
            assert password not in text
            assert not any(str(server.port) in text for server in mesh.servers.values())
        assert repr(mesh) == "Mesh(n1 ready, n2 ready, n3 ready)"
    assert repr(mesh) == "Mesh(closed)"


async def test_what_a_mesh_shows_is_what_was_last_seen_and_nobody_is_asked_for_it(monkeypatch) -> None:
    async with await start_mesh(servers=3) as mesh:
        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "read", lambda *_: pytest.fail("a server is asked"))
            assert repr(mesh) == "Mesh(n1 ready, n2 ready, n3 ready)"
            await mesh.kill("n2")
            await mesh.pause("n3")
            assert repr(mesh) == "Mesh(n1 ready, n2 killed, n3 paused)"
            assert mesh_card(mesh).count("ready") == 1
            await mesh.resume("n3")
            assert mesh.last_states["n3"] == "running"
        os.kill(mesh.servers["n1"].pid, signal.SIGKILL)
        await eventually(lambda: mesh.last_states["n1"] == "exited", within=5.0)
        states = await mesh.states()
        assert states == mesh.last_states
        assert (states["n1"], states["n2"]) == ("exited", "killed")
        assert states["n3"] in ("ready", "not ready"), "it was asked, and may not have missed the others yet"
        assert not await mesh.is_healthy()
    assert not await mesh.is_healthy()


async def test_a_mesh_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    async with await start_mesh(servers=3) as mesh:
        for name in mesh.servers:
            await mesh.pause(name)
        begun = time.monotonic()
        with pytest.raises(NotReadyError, match=r"^mesh not ready after 1 s: ") as info:
            await mesh.ready(within=1.0)
        # A read of a server that hangs takes three seconds, and connecting to it ten.
        assert 1.0 <= time.monotonic() - begun < 3.0
        assert info.value.waited_s == 1.0


async def test_every_failure_of_a_close_is_raised_and_the_servers_are_gone() -> None:
    class Broken:
        def __init__(self, name: str) -> None:
            self.name = name

        async def close(self) -> None:
            raise ValueError(self.name)

    one, two = Broken("one"), Broken("two")
    mesh = await start_mesh(servers=1)
    mesh._clients.add(one)
    mesh._clients.add(two)
    with pytest.raises(ExceptionGroup, match="2 things failed while the mesh was closed") as info:
        await mesh.close()
    assert {str(error) for error in info.value.exceptions} == {"one", "two"}
    assert mesh.servers["n1"].state == "killed"
    assert not mesh.directory.exists()


async def test_restart_returns_whether_streams_may_be_placed() -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n2")
        assert await mesh.restart("n3") is False, "n2 is dead"
        assert await mesh.restart("n2") is True


async def test_nobody_without_the_password_is_let_in_and_nothing_listens_beyond_this_machine() -> None:
    async with await start_mesh(servers=3) as mesh:
        with pytest.raises(nats.errors.Error, match=re.compile("authorization", re.I)):
            await nats.connect(mesh.urls[0], allow_reconnect=False, error_cb=_ignore)
        with pytest.raises(nats.errors.Error, match=re.compile("authorization", re.I)):
            await nats.connect(mesh.urls[0], user="lab", password="guess", allow_reconnect=False, error_cb=_ignore)
        _collect_quietly()
        listening = [
            c
            for server in mesh.servers.values()
            for c in psutil.Process(server.pid).net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 9, "client, monitoring and cluster port of each server"
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


async def test_a_stranger_cannot_join_the_cluster() -> None:
    async with await start_mesh(servers=3) as mesh:
        with socket.create_connection(("127.0.0.1", mesh.servers["n1"].ports.cluster)) as route:
            route.settimeout(5.0)
            route.recv(4096)  # INFO
            route.sendall(b'CONNECT {"user":"route","pass":"guess","verbose":false,"name":"stranger"}\r\nPING\r\n')
            assert b"Authorization Violation" in route.recv(4096)


async def test_the_store_is_private_and_gone_when_the_mesh_is_closed() -> None:
    mesh = await start_mesh(servers=1)
    pid = mesh.servers["n1"].pid
    assert stat.S_IMODE(mesh.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((mesh.directory / "n1.conf").stat().st_mode) == 0o600
    await mesh.close()
    await mesh.close()
    assert not mesh.directory.exists()
    assert not psutil.pid_exists(pid)
    with pytest.raises(MeshClosedError, match="start another one"):
        await mesh.connect()


async def test_a_client_survives_the_death_of_its_server() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect(to="n2")
        assert client.connected_url.port == mesh.servers["n2"].port
        await mesh.kill("n2")
        assert not await mesh.is_healthy()
        dead = mesh.servers["n2"].port
        await eventually(lambda: client.is_connected and client.connected_url.port != dead, within=5.0)
        await mesh.restart("n2")
        await eventually(mesh.is_healthy, within=20.0)


async def test_a_server_that_was_not_heard_of_is_no_place_for_a_stream() -> None:
    async with await start_mesh(servers=3) as mesh:
        client = await mesh.connect()
        assert await placeable(mesh.view) == ""
        assert await client.jetstream().streams_info() == []
        for server in mesh.servers.values():
            await asyncio.to_thread(server.stop)
        for name in ("n1", "n2"):  # they know from their disks that there is a third, and nothing of it
            await asyncio.to_thread(mesh.servers[name].start)

        async def refused() -> bool:
            return re.match("no place for streams: .*miscellaneous issue", await placeable(mesh.view)) is not None

        await eventually(refused, within=20.0)


async def test_a_paused_server_answers_again_when_it_is_resumed() -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.pause("n3")
        assert mesh.servers["n3"].state == "paused"
        assert not mesh.servers["n3"].monitor.health().ok
        await mesh.resume("n3")
        await eventually(mesh.is_healthy, within=15.0)


async def test_logs_are_kept_across_a_restart() -> None:
    async with await start_mesh(servers=1) as mesh:
        await mesh.kill("n1")
        await mesh.restart("n1")
        assert mesh.logs("n1", last=None).count("Server is ready") == 2
        assert len(mesh.logs("n1", last=3).splitlines()) == 3


async def test_an_unknown_server_is_named_beside_the_known_ones() -> None:
    async with await start_mesh(servers=1) as mesh:
        for attempt in (mesh.kill, mesh.pause, mesh.resume, mesh.restart):
            with pytest.raises(UnknownNameError, match="no server 'n9' in this mesh; there are n1"):
                await attempt("n9")
        with pytest.raises(UnknownNameError, match="n9"):
            mesh.logs("n9")


@pytest.mark.parametrize("servers", [0, 2, 4, -1, 9, "3"])
async def test_a_number_of_servers_that_cannot_agree_is_refused(servers: object) -> None:
    with pytest.raises(ValueError, match="expected 1, 3, 5 or 7"):
        await start_mesh(servers=servers)


async def test_the_account_of_the_lessons_can_be_told_more() -> None:
    mapping = 'mappings { "carts.*": "carts.{{partition(3,1)}}.{{wildcard(1)}}" }'
    async with await start_mesh(servers=1, account_config=mapping) as mesh, await mesh.connect() as client:
        heard = await client.subscribe("carts.*.*")
        await client.publish("carts.42", b"a CD")
        assert re.fullmatch(r"carts\.[012]\.42", (await heard.next_msg(timeout=5.0)).subject)


async def test_a_server_that_exits_at_its_start_is_quoted() -> None:
    before = _owned_servers()  # the mesh that tests share, if one of them has started it
    with pytest.raises(ServerExitedError, match=r"'n1' exited with code 1.*\n.*no_such_setting") as info:
        await start_mesh(servers=1, extra_config="no_such_setting: true")
    assert (info.value.name, info.value.exit_code) == ("n1", 1)
    assert "no_such_setting" in info.value.log
    assert _owned_servers() == before


async def test_a_directory_that_cannot_be_used_is_named_with_the_way_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match=r"cannot make a directory.*No such file.*TMPDIR"):
        await start_mesh(servers=1)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="Not a directory"):
        await start_mesh(servers=1)


@pytest.mark.needs("full-disk")
@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="mounting a small disk needs root")
async def test_a_full_disk_is_named_with_its_numbers(tmp_path, monkeypatch) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small disk")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        with pytest.raises(StoreError, match=r"1 MiB free in .*, expected at least 256 MiB"):
            await start_mesh(servers=1)
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


async def test_a_port_that_somebody_took_is_avoided(monkeypatch) -> None:
    first_block = PortBlock.reserve()
    with socket.socket() as squatter:
        port = first_block.take()
        first_block.release()
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a dead server's connections linger
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        # The block's lock is free again, so the mesh may get it; its own probe finds the squatter.
        async with await start_mesh(servers=3) as mesh:
            assert all(server.port != port for server in mesh.servers.values())


async def test_a_port_that_is_taken_between_the_probe_and_the_start_is_avoided(monkeypatch) -> None:
    probed = PortBlock.take
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = iter([squatter.getsockname()[1]])
        monkeypatch.setattr(PortBlock, "take", lambda block: next(taken, None) or probed(block))
        async with await start_mesh(servers=1) as mesh:
            assert mesh.servers["n1"].port != squatter.getsockname()[1]
            assert next(taken, None) is None
            assert mesh.logs("n1", last=None).count("Server is ready") == 1


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM"])
async def test_killing_the_program_leaves_no_server_and_no_store(signal_name: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from mesh_lab import start_mesh\n"
        "async def main():\n"
        "    mesh = await start_mesh(servers=3)\n"
        "    print(mesh.directory, mesh.owner, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    with killed_at_the_end(child):
        line = await asyncio.to_thread(child.stdout.readline)
        directory, owner = line.split()
        assert len(_owned_servers(owner)) == 3
        child.send_signal(getattr(signal, signal_name))
        await asyncio.to_thread(child.wait, 10.0)
    await eventually(lambda: not _owned_servers(owner) and not os.path.exists(directory), within=5.0)


async def test_a_forgotten_mesh_is_cleaned_up() -> None:
    mesh = await start_mesh(servers=1)
    directory, owner = mesh.directory, mesh.owner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of the children that nobody waited for
        del mesh
        gc.collect()
    await eventually(lambda: not _owned_servers(owner) and not directory.exists(), within=5.0)


async def test_an_external_mesh_is_used_and_not_touched(monkeypatch) -> None:
    async with await start_mesh(servers=1) as local:
        options = local.connect_options()
        address = options["servers"][0].replace("://", f"://{options['user']}:{options['password']}@")
        monkeypatch.setenv("MESH_LAB_URL", address)
        async with await start_mesh() as mesh:
            assert newest_mesh() is mesh
            assert mesh.backend == "external"
            (server,) = mesh.servers.values()
            assert (server.host, server.port) == ("127.0.0.1", local.servers["n1"].port)  # for who speaks by hand
            assert options["password"] not in repr(mesh) + mesh_card(mesh)
            client = await mesh.connect()
            assert (await client.jetstream().account_info()).streams == 0
            assert await mesh.is_healthy()
            assert repr(mesh) == "Mesh(n1 ready)"
            with pytest.raises(UnsupportedByBackendError, match="did not start it.*unset MESH_LAB_URL"):
                await mesh.kill(next(iter(mesh.servers)))
        assert await local.is_healthy()


async def test_an_external_mesh_is_not_ready_when_it_does_not_answer(monkeypatch) -> None:
    async with await start_mesh() as local:
        options = local.connect_options()
        address = options["servers"][0].replace("://", f"://{options['user']}:{options['password']}@")
        monkeypatch.setenv("MESH_LAB_URL", address)
        async with await start_mesh() as mesh:
            await mesh.ready(within=5.0)
            await local.kill("n1")
            assert not await mesh.is_healthy()
            assert repr(mesh) == "Mesh(n1 not ready)"
            with pytest.raises(NotReadyError, match="no server let us in|not ready after"):
                await mesh.ready(within=1.0)


async def test_an_external_mesh_that_is_not_there_is_named(monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_URL", "nats://user:secret@127.0.0.1:9")
    with pytest.raises(NotReadyError, match=r"names 127.0.0.1:9: no server let us in") as caught:
        await start_mesh()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MESH_LAB_CREDS", "/no/such.creds")
    with pytest.raises(CredentialsError, match="MESH_LAB_CREDS: /no/such.creds: no file is there"):
        await start_mesh()


def _collect_quietly() -> None:
    """Collect what warns when it is collected.

    nats-py 2.16 leaves the socket of a refused connection open.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def _ignore(_error: Exception) -> None:
    return


def _owned_servers(owner: str | None = None) -> list[psutil.Process]:
    """Return the server processes that a mesh started: of one owner, or of this test run's own children."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(OWNER_VARIABLE)
            ours = mark == owner if owner else mark and process.ppid() == os.getpid()
            if ours and "nats-server" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _routes(mesh: Mesh) -> dict[tuple[str, str], int]:
    """Return how many routes each server that runs has to each other one, by its own monitoring."""
    there = {name: server.monitor.routez()["routes"] for name, server in mesh.servers.items() if server.pid}
    return {
        (name, peer): [route["remote_name"] for route in found].count(peer)
        for name, found in there.items()
        for peer in mesh.servers
        if peer != name
    }
