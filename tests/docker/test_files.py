"""The committed files in `docker/`: nothing unpinned, nothing secret, nothing that listens beyond this machine."""

import json
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import engine as machine
import pytest
import yaml
from containers import ROOT, SAGA_SERVICES, SECURE_SERVERS, SECURE_SERVICES, SERVICES, copy_of_docker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mesh_lab import __version__
from mesh_lab.orders.saga import DUTIES
from mesh_lab.servers.compose import CLIENT_PORT, MONITOR_PORT, SERVERS, Engine

DOCKER = ROOT / "docker"
FILES = [path for path in DOCKER.rglob("*") if path.is_file() and path.name != ".env" and path.parent.name != "keys"]
ALL_SERVICES = (*SERVICES, *SAGA_SERVICES, *SECURE_SERVICES)
COMPOSE_FILES = sorted(path.name for path in DOCKER.glob("*compose.yaml"))
VALUES = {f"MESH_LAB_{kind}_PASSWORD": "made-up" for kind in ("USER", "SYSTEM", "ROUTE")}


def test_every_image_is_pinned() -> None:
    compose = (DOCKER / "compose.yaml").read_text()
    assert re.findall(r"(?m)^\s*image: (\S+)", compose) == [machine.NATS_IMAGE, f"mesh-lab-services:{__version__}"]
    for name in ("services.Dockerfile", "seat.Dockerfile"):
        assert f"PYTHON_IMAGE={machine.PYTHON_IMAGE}\n" in (DOCKER / name).read_text()
    assert re.fullmatch(r"nats:\d+\.\d+\.\d+-alpine", machine.NATS_IMAGE)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", machine.PYTHON_IMAGE)
    for path in FILES:
        assert "latest" not in path.read_text(), path.name


def test_the_image_of_a_seat_is_built_under_the_name_that_seats_are_started_with() -> None:
    build = f"docker build -f docker/seat.Dockerfile -t mesh-lab-seat:{__version__} ."
    for path in (DOCKER / "seat.Dockerfile", ROOT / "notebooks" / "workshop" / "README.md"):
        assert build in path.read_text(), path.name


def test_no_committed_file_holds_a_password_and_the_generated_one_is_ignored() -> None:
    for path in FILES:
        # A variable, or nothing: never a value.
        held = re.findall(r"(?i)password[\"']?\s*[:=]\s*([^\s}]+)", path.read_text())
        assert [value for value in held if not value.startswith("$")] == [], path.name
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/.env", "docker/keys/"} <= set(ignored)
    sent = (DOCKER / "services.Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in sent
    assert "!docker/services.lock" in sent
    assert not [line for line in sent if line.startswith("!docker") and line != "!docker/services.lock"]


def needed(name: str) -> set[str]:
    """Return a distribution's name and those of all that it needs, whatever the platform, without extras."""
    found, new = set[str](), {name}
    while new:
        found |= new
        requirements = (Requirement(line) for one in new for line in metadata.requires(one) or [])
        new = {canonicalize_name(r.name) for r in requirements if "extra" not in str(r.marker)} - found
    return found


def test_the_services_install_what_pyproject_names_and_nothing_else() -> None:
    lock = (DOCKER / "services.lock").read_text()
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", lock))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["traces"]]
    wanted = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, named)}
    assert set(pins) == {name for requirement in wanted for name in needed(requirement)}
    assert all(requirement.specifier.contains(pins[name]) for name, requirement in wanted.items())
    assert lock.count("--hash=sha256:") > len(pins)
    assert not re.search(r"://|--index-url|--find-links| @ ", lock)
    lesson = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text()))
    assert pins == {name: lesson[name] for name in pins}, "containers and notebooks run the same versions"


@pytest.fixture(scope="module")
def resolved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every Compose file as Compose reads it."""
    folder = copy_of_docker(tmp_path_factory.mktemp("files"), name="mesh-lab-files")
    said = {}
    for name in COMPOSE_FILES:
        arguments = ["-f", str(folder / name), "--profile", "*", "config", "--format", "json"]
        said[name] = json.loads(engine.compose(*arguments, within=60.0, variables=VALUES))
    return said


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_finds_every_file_valid(engine: Engine, tmp_path: Path, name: str) -> None:
    folder = copy_of_docker(tmp_path, name="mesh-lab-files")
    done = engine.compose("-f", str(folder / name), "config", "--quiet", within=60.0, variables=VALUES)
    assert done.strip() == ""


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_without_its_variables_no_file_starts_anything(engine: Engine, tmp_path: Path, name: str) -> None:
    folder = copy_of_docker(tmp_path, name="mesh-lab-files")
    done = subprocess.run(
        [*engine.compose_command, "-f", folder / name, "config"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "mesh-lab up --docker makes docker/.env" in done.stderr


def test_there_are_three_servers_and_twice_three_in_regions(resolved: dict[str, dict]) -> None:
    assert sorted(resolved["compose.yaml"]["services"]) == sorted([*SERVERS, *SECURE_SERVERS, *ALL_SERVICES])
    assert len(resolved["regions.compose.yaml"]["services"]) == 6


def test_a_saga_has_its_services_in_the_workers_place(resolved: dict[str, dict]) -> None:
    services = resolved["compose.yaml"]["services"]
    saga = {name for name, service in services.items() if "saga" in service.get("profiles", ())}
    assert saga == {"publisher", "read-model", *SAGA_SERVICES}
    assert set(SAGA_SERVICES) == set(DUTIES)
    assert all(services[name]["command"] == [name, "--replicas=3"] for name in SAGA_SERVICES)


def test_every_port_is_published_on_this_machine_only_and_once(resolved: dict[str, dict]) -> None:
    published = []
    for file in resolved.values():
        for name, service in file["services"].items():
            ports = service.get("ports", [])
            assert {port["host_ip"] for port in ports} <= {"127.0.0.1"}
            expected = [] if name in ALL_SERVICES else [CLIENT_PORT, MONITOR_PORT]
            # What a locked server's monitoring tells is for its own health check alone.
            expected = [CLIENT_PORT] if name in SECURE_SERVERS else expected
            assert sorted(port["target"] for port in ports) == expected
            published += [port["published"] for port in ports]
    assert len(published) == len(set(published)) == 21


def test_every_service_is_locked_down(resolved: dict[str, dict]) -> None:
    for file in resolved.values():
        for name, service in file["services"].items():
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["restart"] == "no"
            assert int(service["mem_limit"]) <= 2**30
            if name not in ALL_SERVICES:  # the services' user is in their image
                assert service["user"] == "1000:1000"
                assert service["healthcheck"]["test"][-1].endswith("/healthz")


def test_the_anchors_are_plain_yaml() -> None:
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!override", lambda node_loader, node: node_loader.construct_sequence(node))
    for name in COMPOSE_FILES:
        assert yaml.load((DOCKER / name).read_text(), loader)["name"].startswith("mesh-lab")
