"""What can go wrong with containers, tried: each error says what was seen and what to do."""

import re
import shutil
import socket
from pathlib import Path

import pytest
from containers import command, copy_of_docker, leftovers

from mesh_lab.errors import EngineRefusedError, NoEngineError, SettingsError
from mesh_lab.servers.compose import FOLDER_VARIABLE, Engine, Project
from mesh_lab.servers.start import start_mesh


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which no program is found but those that a test puts there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of docker/ for a project that never gets far."""
    return copy_of_docker(tmp_path / "house", name="mesh-lab-errors")


async def test_without_docker_the_way_out_is_named(empty_path: Path) -> None:
    with pytest.raises(NoEngineError, match="no program docker on PATH; install Docker .*needs no Docker"):
        await start_mesh(servers=3, backend="docker")
    done = command("up", "--docker")
    assert done.returncode == 1
    assert done.stderr.startswith("mesh-lab up: there is no program docker on PATH")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("docker") is None, reason="the command docker is not here")
async def test_without_an_engine_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(NoEngineError, match=r"no Docker engine answers: .*nobody\.sock.*start Docker.*group docker"):
        await start_mesh(servers=3, backend="docker")
    for arguments in (["up", "--docker"], ["down"], ["status"], ["orders", "--docker"]):
        done = command(*arguments)
        assert done.returncode == 1
        assert f"mesh-lab {arguments[0]}: no Docker engine answers" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("old", ["", "docker-compose version 1.29.2, build unknown"])
def test_an_engine_without_compose_2_is_not_enough(empty_path: Path, old: str) -> None:
    program(empty_path, "docker", '[ $1 = version ] && { echo 28.2.2; exit; }; echo "unknown command: $1" >&2; exit 1')
    if old:
        program(empty_path, "docker-compose", f"echo '{old}'")
    with pytest.raises(
        NoEngineError, match="no Compose 2: .*unknown command: compose.*install Docker's compose plugin"
    ):
        Engine.find()


@pytest.mark.parametrize("version", ["2.26.1-4", "v2.40.3", "5.0.2"])
def test_compose_is_taken_as_a_plugin_or_as_a_program(empty_path: Path, version: str) -> None:
    program(empty_path, "docker", f"[ $1 = version ] && echo 28.2.2 || echo {version}")
    assert Engine.find().compose_command == ("docker", "compose")
    program(empty_path, "docker", "[ $1 = version ] && { echo 28.2.2; exit; }; exit 1")
    program(empty_path, "docker-compose", f"echo {version}")
    assert Engine.find().compose_command == ("docker-compose",)


async def test_a_port_that_is_taken_is_named_with_its_variable_before_anything_is_made(
    project: Project, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(house))
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        monkeypatch.setenv("MESH_LAB_N2_PORT", str(port))
        with pytest.raises(
            EngineRefusedError,
            match=rf"port {port} on 127.0.0.1 is taken, and server n2 needs it; .*MESH_LAB_N2_PORT={port + 100}",
        ):
            await start_mesh(servers=3, backend="docker")
    assert leftovers(project.engine, "mesh-lab-errors") == []


async def test_a_port_that_only_the_engine_finds_taken_is_named_as_well(
    project: Project, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(house))
    # As where the engine publishes ports without a process that one could see listening.
    monkeypatch.setattr("mesh_lab.servers.compose.is_free", lambda port: True)
    found = Project(project.engine)
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        monkeypatch.setenv("MESH_LAB_N3_MONITOR", str(port))
        with pytest.raises(EngineRefusedError, match=rf"port {port} .* server n3 needs it; .*MESH_LAB_N3_MONITOR="):
            await start_mesh(servers=3, backend="docker")
    assert found.down().startswith("3 containers"), "what was made until then can be removed"
    assert leftovers(project.engine, found.name) == []


async def test_an_image_that_cannot_be_fetched_is_named_with_the_way_around(
    project: Project, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(house))
    path = house / "compose.yaml"
    # A registry where nobody listens.
    path.write_text(path.read_text().replace("image: nats:", "image: 127.0.0.1:9/nats:"))
    with pytest.raises(
        EngineRefusedError,
        match=r"image 127\.0\.0\.1:9/nats:\S+ is not on this machine and cannot be fetched: .*docker save .*load",
    ):
        await start_mesh(servers=3, backend="docker")
    assert leftovers(project.engine, "mesh-lab-errors") == []


async def test_an_old_env_file_is_named_with_what_it_lacks(
    project: Project, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(house))
    found = Project(project.engine)
    found.make_variables()
    text = found.variables.read_text()
    found.make_variables()
    assert found.variables.read_text() == text, "a file that is there is never written over"
    found.variables.write_text(re.sub(r"(?m)^MESH_LAB_ROUTE_PASSWORD=.*\n", "", text))
    with pytest.raises(
        SettingsError, match=r"\.env does not set MESH_LAB_ROUTE_PASSWORD.*mesh-lab down.*remove the file.*up --docker"
    ) as caught:
        await start_mesh(servers=3, backend="docker")
    assert not [secret for secret in re.findall(r"PASSWORD=(\S+)", text) if secret in str(caught.value)]
    assert found.down() == "0 containers, 0 networks, 0 volumes", "down works without the file"


def test_a_folder_without_the_containers_is_named(engine: Engine, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(SettingsError, match="there is no .*compose.yaml.*from a clone.*MESH_LAB_DOCKER"):
        Project(engine)


def test_a_project_of_another_is_never_touched(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("name: webshop\nservices: {}\n")
    with pytest.raises(SettingsError, match="has no line `name: mesh-lab…`"):
        Project(engine, tmp_path)


async def test_a_backend_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend 'podman' asked for, expected one of local, docker, external"):
        await start_mesh(backend="podman")
    monkeypatch.delenv("MESH_LAB_URL", raising=False)
    with pytest.raises(SettingsError, match="needs an address; set MESH_LAB_URL"):
        await start_mesh(backend="external")
