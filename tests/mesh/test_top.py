"""``mesh-lab top`` finds the local meshes, and shows what each server reports, or that it does not."""

import re
import socket

from mesh_lab.cli import main
from mesh_lab.patterns.jetstream_wait import wait_routable


async def test_a_local_mesh_is_found_and_each_server_and_stream_is_shown(mesh, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    till = await mesh.connect(name="till[0]", to="n1")
    await till.jetstream(timeout=10.0).add_stream(name="TOP", subjects=["top"], num_replicas=3)
    await wait_routable(till, "TOP")
    await till.jetstream(timeout=10.0).publish("top", b"")
    assert main(["top", "--once"]) == 0
    shown = capsys.readouterr().out
    ours = shown[shown.index(mesh.directory.name) :]
    rows = {line.split()[0]: line for line in reversed(ours.splitlines()) if line.strip()}
    assert all("ready" in rows[name] for name in ("n1", "n2", "n3"))
    assert "till[0]" in rows["n1"]
    addresses = [f"{server.monitor.host}:{server.monitor.port}" for server in mesh.servers.values()]
    assert main(["top", "--once", *addresses]) == 0
    asked = capsys.readouterr().out
    leader = re.search(r"TOP: 1 stored, led by (n\d)", ours)[1]
    assert f"led by {leader}" in asked
    assert [line.split()[-1] for line in asked.splitlines() if addresses[int(leader[1]) - 1] in line] == ["TOP"]
    await till.jetstream(timeout=10.0).delete_stream("TOP")
    await till.close()


def test_a_server_that_does_not_answer_is_shown_as_such_and_an_address_that_is_none_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["top", "--once", f"127.0.0.1:{port}"]) == 0
    assert "no answer" in capsys.readouterr().out
    assert main(["top", "--once", "somewhere"]) == 1
    assert "'somewhere', expected HOST:PORT" in capsys.readouterr().err
