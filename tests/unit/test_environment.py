"""What the two ways of making the environment install is the same, and every line says why it is there."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mesh_lab.cli import main

ROOT = Path(__file__).parents[2]
# pip builds the package in isolation under conda, so what builds it is needed in the pinned environment only.
BUILD_ONLY = {"hatchling", "editables"}


def _project() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["lab"]]
    return {r.name: r for r in named if r.name not in BUILD_ONLY}


def _conda() -> dict[str, Requirement]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    texts = [item for item in listed if isinstance(item, str)]
    texts += [item for nested in listed if isinstance(nested, dict) for item in nested["pip"] if item != "-e ."]
    named = [Requirement(text) for text in texts]
    return {r.name: r for r in named if r.name not in {"python", "pip"}}


def test_conda_installs_what_pyproject_names_in_the_same_versions() -> None:
    project, conda = _project(), _conda()
    assert sorted(conda) == sorted(project)
    assert {n: str(r.specifier) for n, r in conda.items()} == {n: str(r.specifier) for n, r in project.items()}


@pytest.mark.parametrize("name", ["environment.yml", "pyproject.toml"])
def test_every_dependency_says_why_it_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    lines = [line for line in text.splitlines() if re.match(r'\s+(- |")[a-z-]+[\[><=\w.,]*[><=]', line)]
    assert len(lines) >= 13
    assert [line for line in lines if "#" not in line] == []


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-workshop.lock", "requirements-dev.lock"])
def test_a_lock_pins_versions_and_hashes_and_carries_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    pins = re.findall(r"(?m)^([A-Za-z0-9._-]+)==", text)
    assert len(pins) > 100
    assert text.count("--hash=sha256:") >= len(pins)
    assert not re.search(r"://|--index-url|--find-links| @ ", text)


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-workshop.lock", "requirements-dev.lock"])
def test_a_lock_satisfies_pyproject(name: str) -> None:
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / name).read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["lab"]
    further = {"requirements-workshop.lock": ["workshop"], "requirements-dev.lock": ["workshop", "dev", "book"]}.get(
        name, ()
    )
    wanted += [text for extra in further for text in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_development_container_makes_the_same_environment_with_the_python_of_the_services() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    services = re.search(
        r"(?m)^ARG PYTHON_IMAGE=(python:[\d.]+)-", (ROOT / "docker" / "services.Dockerfile").read_text()
    )
    assert services is not None
    assert container["image"] == f"{services[1]}-bookworm"
    assert container["containerEnv"]["JUPYTER_CONFIG_PATH"] == "${containerWorkspaceFolder}/.devcontainer"
    assert (ROOT / ".devcontainer" / "jupyter_server_config.py").is_file()
    make = container["postCreateCommand"]
    targets = (ROOT / "Makefile").read_text().replace("$(VENV)", ".lab")
    assert re.search(rf"(?m)^{re.escape(make.removeprefix('make '))}:", targets)
    program, *arguments = container["postAttachCommand"].split()
    assert program == ".lab/bin/mesh-lab"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
@pytest.mark.parametrize(
    ("python", "stamp", "kept"),
    [(True, "here", True), (True, "/elsewhere/.lab", False), (False, "here", False), (True, "", False)],
    ids=["as it was made", "moved", "made outside of the container", "moved, by an older Makefile"],
)
def test_an_environment_that_cannot_run_here_is_made_anew(tmp_path: Path, python: bool, stamp: str, kept: bool) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    programs = tmp_path / ".lab" / ("Scripts" if sys.platform == "win32" else "bin")
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable if python else "/no/such/python")
    (tmp_path / ".lab" / "lab.stamp").write_text(str((tmp_path / ".lab").resolve()) if stamp == "here" else stamp)
    done = subprocess.run(["make", "help"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert ("it is made anew" not in done.stdout) is kept
    assert (tmp_path / ".lab").exists() is kept
