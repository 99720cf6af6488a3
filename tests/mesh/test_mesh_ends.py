"""A mesh ends whole, whatever it was interrupted by, and servers that died in odd ways come back."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
from programs import killed_at_the_end

from mesh_lab.errors import ServerExitedError, UnsupportedByBackendError
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import OWNER_VARIABLE
from mesh_lab.servers.binary import find_server
from mesh_lab.servers.start import start_mesh
from mesh_lab.servers.workspace import CLEAN_UP_WITHIN_S, PortBlock

PROGRAM = """
import asyncio, os, time
from mesh_lab import start_mesh

async def main():
    mesh = await start_mesh(servers=1)
    {then}
    print(mesh.directory, mesh.owner, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def servers_of(owner: str) -> list[int]:
    """Return the nats-servers that carry a mesh's mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get(OWNER_VARIABLE) == owner and "nats-server" in process.name()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


async def started(then: str, **environment: str) -> tuple[subprocess.Popen[str], str, str]:
    """Start a program with a mesh of its own, and return it with the mesh's directory and mark."""
    child = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", PROGRAM.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    directory, owner = (await asyncio.to_thread(child.stdout.readline)).split()
    return child, directory, owner


async def test_a_mesh_whose_end_is_interrupted_ends_all_the_same() -> None:
    mesh = await start_mesh(servers=1)
    await mesh.connect()
    closing = asyncio.create_task(mesh.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert mesh.servers["n1"].pid is None
    assert not mesh.directory.exists()


async def test_a_mesh_that_a_process_of_another_one_started_is_cleaned_up_with_it() -> None:
    async with await start_mesh(servers=1) as outer:
        child, directory, owner = await started("pass", **{OWNER_VARIABLE: outer.owner})
        assert len(servers_of(owner)) == 1
    with killed_at_the_end(child):
        assert await asyncio.to_thread(child.wait, CLEAN_UP_WITHIN_S) != 0  # killed, as a process of the outer mesh
    await eventually(lambda: not servers_of(owner) and not os.path.exists(directory), within=CLEAN_UP_WITHIN_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
async def test_a_forked_child_does_not_keep_a_dead_program_s_servers_alive() -> None:
    child, directory, owner = await started("os.fork() or (time.sleep(60), os._exit(0))")  # hangs
    with killed_at_the_end(child):
        (forked,) = (
            p for p in psutil.Process(child.pid).children() if p.cmdline() == psutil.Process(child.pid).cmdline()
        )
        child.kill()
    try:
        await eventually(lambda: not servers_of(owner) and not os.path.exists(directory), within=CLEAN_UP_WITHIN_S)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            forked.kill()


async def test_a_server_that_died_while_it_was_paused_can_be_restarted() -> None:
    async with await start_mesh(servers=1) as mesh:
        await mesh.pause("n1")
        os.kill(mesh.servers["n1"].pid, signal.SIGKILL)
        await eventually(lambda: mesh.servers["n1"].state == "exited", within=5.0)
        await mesh.restart("n1")
        assert mesh.servers["n1"].state == "running"


async def test_a_server_that_dies_while_it_is_looked_at_is_quoted_all_the_same(monkeypatch) -> None:
    def refused(self, kind: str) -> None:  # as Linux does with what a dead process had open, to all but root
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "net_connections", refused)
    with pytest.raises(ServerExitedError, match=r"exited with code 1; its last log lines:\n.*no_such_setting"):
        await start_mesh(servers=3, extra_config="no_such_setting: 1")


async def test_a_reload_with_a_dead_server_changes_nothing() -> None:
    async with await start_mesh(servers=3) as mesh:
        await mesh.kill("n2")
        before = [server.config_file.read_text() for server in mesh.servers.values()]
        with pytest.raises(ServerExitedError, match="server 'n2' is killed, expected all to run"):
            await mesh.reload(users_config="{ user: x, password: y }")
        assert [server.config_file.read_text() for server in mesh.servers.values()] == before


async def test_settings_for_an_external_mesh_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("MESH_LAB_URL", "nats://127.0.0.1:9")
    with pytest.raises(
        UnsupportedByBackendError,
        match="further settings asked for, but the servers of backend 'external' are set up by whoever runs them",
    ):
        await start_mesh(users_config="{ user: x, password: y }", backend="external")


async def test_an_external_mesh_lets_in_by_a_token(monkeypatch, tmp_path) -> None:
    ports = PortBlock.reserve()
    port = ports.take()
    binary = (await asyncio.to_thread(find_server)).path
    settings = tmp_path / "token.conf"
    settings.write_text(
        f'listen: 127.0.0.1:{port}\nauthorization {{ token: "se/cret" }}\njetstream {{ store_dir: "{tmp_path}" }}'
    )
    server = await asyncio.to_thread(subprocess.Popen, [binary, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("MESH_LAB_URL", f"nats://se%2Fcret@127.0.0.1:{port}")

        async def joined() -> bool:
            try:
                async with await start_mesh() as mesh, await mesh.connect() as client:
                    return client.is_connected and mesh.urls == [f"nats://127.0.0.1:{port}"]
            except Exception:  # noqa: BLE001 (it listens in a moment)
                return False

        assert await eventually(joined, within=20.0)
    finally:
        server.kill()
        await asyncio.to_thread(server.wait)
        ports.release()
