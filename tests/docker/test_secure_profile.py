"""The profile `secure`: what each container is given, and a run of it by processes that are given the same."""

import contextlib
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from containers import ROOT, SECURE_SERVERS, SECURE_SERVICES, copy_of_docker, leftovers

from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.saga_audit import audit_saga, expected_ends
from mesh_lab.patterns.addresses import options_from
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import ChildProcess
from mesh_lab.security.keys import write_keys
from mesh_lab.security.roles import ROLES
from mesh_lab.servers.binary import find_server
from mesh_lab.servers.compose import Engine
from mesh_lab.servers.workspace import PortBlock
from mesh_lab.tls import ClientContext, TlsFiles

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = {name: COMPOSE["services"][name] for name in (*SECURE_SERVERS, *SECURE_SERVICES)}
ORDERS = 300
SEED = re.compile(r"\bS[OAU][A-Z2-7]{56}\b|PRIVATE KEY|eyJ[\w-]+\.")


def given(name: str) -> dict[str, str]:
    """Return the files that a container is given, by the name that they have in it."""
    each = [{"source": one, "target": one} if isinstance(one, str) else one for one in SERVICES[name]["secrets"]]
    return {one["target"]: one["source"] for one in each}


def test_each_container_is_given_the_files_that_it_needs_and_no_variable_holds_a_secret() -> None:
    assert {name for name, one in COMPOSE["services"].items() if one.get("profiles") == ["secure"]} == set(SERVICES)
    for name in SECURE_SERVERS:
        own = {"server.crt": f"{name}.crt", "server.key": f"{name}.key"}
        assert given(name) == {"operator.conf": "operator.conf", "authority.crt": "authority.crt", **own}
    for name in SECURE_SERVICES:
        program = SERVICES[name]["command"][0]
        role = {"deploy": "deployer"}.get(program, program)
        assert role in ROLES
        assert given(name) == {"authority.crt": "authority.crt", "creds": f"{role}.creds"}
    for one in SERVICES.values():
        assert not [value for value in one["environment"].values() if "PASSWORD" in value or "@" in value]
    assert {source for name in SERVICES for source in given(name).values()} == set(COMPOSE["secrets"])
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"${{MESH_LAB_KEYS:-./keys}}/{name}"}


async def test_its_servers_and_services_bring_every_order_to_its_end(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    write_keys(keys := tmp_path / "keys", hosts=SECURE_SERVERS)
    ports = {name: [unused_tcp_port_factory() for _ in range(3)] for name in SECURE_SERVERS}
    with contextlib.ExitStack() as ends:

        def started(process: ChildProcess) -> ChildProcess:
            return ends.enter_context(contextlib.closing(process)).start()

        def is_healthy(name: str) -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[name][1]}/healthz", timeout=2) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        for name in SECURE_SERVERS:
            _server(name, tmp_path, keys, ports)
            variables = {"SERVER_NAME": name, "ADVERTISE": f"127.0.0.1:{ports[name][0]}"}
            command = [str(find_server().path), "--config", str(tmp_path / name / "nats-server.conf")]
            started(ChildProcess(command, name=name, environment=variables))
        for name in SECURE_SERVERS:
            await eventually(lambda name=name: is_healthy(name), within=30.0, every=0.2)

        url = ",".join(f"tls://localhost:{client}" for client, *_ in ports.values())

        def service(name: str, *more: str) -> ChildProcess:
            inside = SERVICES[name]["environment"] | {"NATS_URL": url}
            variables = {k: v.replace("/run/secrets", str(tmp_path / name)) for k, v in inside.items()}
            shutil.copytree(keys, tmp_path / name, ignore=lambda _, files: set(files) - set(given(name).values()))
            (tmp_path / name / given(name)["creds"]).rename(tmp_path / name / "creds")
            command = [sys.executable, "-m", "mesh_lab.orders", *SERVICES[name]["command"], *more]
            return started(ChildProcess(command, name=name, environment=variables, stdout=True))

        for name, *more in (("secure-deploy",), ("secure", f"--first={ORDERS}")):
            if name == "secure":
                others = [service(other) for other in SECURE_SERVICES if other not in ("secure", "secure-deploy")]
            process = service(name, *more)
            process.rest(within=60)
            assert process.exit_code == 0, process.log()
        options = options_from(url, setting="url")
        options |= {
            "user_credentials": str(keys / "auditor.creds"),
            "tls": ClientContext(TlsFiles(str(keys / "authority.crt"))),
        }
        async with await connect(options, within=10) as auditor:

            async def through() -> bool:
                groups = [
                    await auditor.jetstream().consumer_info("ORDERS", name) for name in ("payment", "stock", "shipping")
                ]
                return not any(group.num_pending or group.num_ack_pending for group in groups)

            await eventually(through, within=60.0, every=0.2)
            assert await audit_saga(auditor, consumer="audit") == expected_ends(read_orders(first=ORDERS))
        assert [process.exit_code for process in others] == [None] * 4
        assert not [process.log() for process in others if "iolation" in process.log()]


def _server(name: str, house: Path, keys: Path, ports: dict[str, list[int]]) -> None:
    """Give a server its files, and the configuration with its own places in it."""
    (house / name).mkdir()
    for target, source in given(name).items():
        shutil.copy(keys / source, house / name / target)
    client, monitor, route = ports[name]
    text = (ROOT / "docker" / "secure.conf").read_text()
    text = text.replace("/tmp", str(house / name / "store")).replace("0.0.0.0:4222", f"127.0.0.1:{client}")
    text = text.replace("include ../../run/secrets/", "include ").replace("/run/secrets", str(house / name))
    text = text.replace("0.0.0.0:6222", f"127.0.0.1:{route}").replace("127.0.0.1:8222", f"127.0.0.1:{monitor}")
    for other, (*_, there) in ports.items():
        text = text.replace(f"nats://{other}:6222", f"nats://127.0.0.1:{there}")
    (house / name / "nats-server.conf").write_text(text)


def test_the_profile_runs_in_containers(engine: Engine, tmp_path: Path) -> None:
    name = "mesh-lab-secure-test"
    folder = copy_of_docker(tmp_path, name=name)
    write_keys(folder / "keys", hosts=SECURE_SERVERS)
    block = PortBlock.reserve()
    variables = {f"MESH_LAB_{kind}_PASSWORD": "unused" for kind in ("USER", "SYSTEM", "ROUTE")}
    variables |= {f"MESH_LAB_{server.upper()}_PORT": str(block.take()) for server in SECURE_SERVERS}
    variables["MESH_LAB_USER"] = f"{os.getuid()}:{os.getgid()}"

    def compose(*arguments: str) -> str:
        files = ("-f", str(folder / "compose.yaml"), "--profile", "secure")
        return engine.compose(*files, *arguments, within=400.0, variables=variables)

    def shown(container: str) -> dict[str, Any]:
        [found] = yaml.safe_load(engine.docker("inspect", container))
        return found

    try:
        compose("up", "--detach", "secure")
        publisher = compose("ps", "-a", "-q", "secure").strip()
        assert engine.docker("wait", publisher, within=200.0).strip() == "0", engine.logs(publisher, last=20)
        for container in compose("ps", "-a", "-q").split():
            seen = shown(container)
            assert not SEED.search(str(seen["Config"])), seen["Name"]
            assert "PASSWORD" not in str(seen["Config"]["Env"])
            assert seen["HostConfig"]["ReadonlyRootfs"] is True
            assert seen["State"]["Status"] == "running" or seen["State"]["ExitCode"] == 0
    finally:
        compose("down", "--volumes")
        block.release()
    assert leftovers(engine, name) == []
