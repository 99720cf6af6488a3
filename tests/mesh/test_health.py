"""What a service answers to probes, as its servers come and go."""

import contextlib
import json
import os
import signal
import socket
import sys
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh_lab.errors import ProcessEndedError
from mesh_lab.orders import encode, probe, read_orders
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess
from mesh_lab.servers.start import start_mesh
from mesh_lab.tls import pack


def metrics(address: str) -> dict[str, float]:
    """Return what Prometheus reads at a service, by name."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {sample.name: sample.value for family in families for sample in family.samples}


async def test_a_service_is_ready_while_it_has_its_servers_and_alive_while_it_runs(unused_tcp_port: int):
    address = f"127.0.0.1:{unused_tcp_port}"
    async with await start_mesh(servers=1) as mesh:
        environment = {CONNECT_VARIABLE: json.dumps(pack(mesh.connect_options()))}
        command = [sys.executable, "-m", "mesh_lab.orders", "worker", f"--health={address}"]
        with contextlib.closing(ChildProcess(command, name="worker", environment=environment)) as worker:
            worker.start()
            await eventually(lambda: probe(address, "/readyz") == 200, within=15)
            assert probe(address, "/livez") == 200
            assert probe(address, "/secrets") == 404
            assert {"orders_ready": 1, "orders_processed_total": 0}.items() <= metrics(address).items()
            async with await mesh.connect(name="till") as till:
                order = next(iter(read_orders(first=1)))
                await till.jetstream().publish(order.subject("placed"), encode(order))
            await eventually(lambda: metrics(address)["orders_processed_total"] == 1, within=15)
            assert metrics(address)["orders_in_msgs_total"] > 0
            with socket.create_connection(address.split(":")) as other:
                other.sendall(b"A" * 5_000 + b"\r\n")
                assert other.recv(100)[:22] in (b"", b"HTTP/1.1 404 Not Found")
            await mesh.kill("n1")
            await eventually(lambda: probe(address, "/readyz") == 503, within=10)
            assert probe(address, "/livez") == 200
            assert metrics(address)["orders_ready"] == 0
            await mesh.restart("n1")
            await eventually(lambda: probe(address, "/readyz") == 200, within=20)
            os.kill(worker.pid, signal.SIGSTOP)
            assert probe(address, "/livez") is None
            os.kill(worker.pid, signal.SIGCONT)
            await eventually(lambda: probe(address, "/livez") == 200, within=5)


@pytest.mark.parametrize("address", ["8080", "127.0.0.1:", "127.0.0.1:99999", "no such host:80", ":::"])
def test_an_address_at_which_nothing_can_listen_is_refused(address):
    command = [sys.executable, "-m", "mesh_lab.orders", "worker", f"--health={address}"]
    with contextlib.closing(ChildProcess(command, name="worker", stdout=True)) as worker:
        worker.start()
        with pytest.raises(ProcessEndedError):
            worker.receive()
        assert f"worker: --health: nothing listens at {address!r}" in worker.log(last=5)
