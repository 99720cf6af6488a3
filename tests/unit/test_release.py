"""What a release says of itself is the same everywhere."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.version import Version

import mesh_lab

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_same_wherever_it_stands() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == mesh_lab.__version__
    assert project["license"] == citation["license"]
    assert citation["authors"]


def test_the_changelog_begins_with_what_is_unreleased_and_goes_back_in_the_order_of_versions() -> None:
    headings = re.findall(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert headings[0] == "Unreleased"
    released = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", heading) for heading in headings[1:]]
    assert None not in released, headings
    found = [(Version(heading[1]), heading[2]) for heading in released if heading]
    assert found == sorted(found, reverse=True)
    assert all(version <= Version(mesh_lab.__version__) for version, _ in found)


def test_an_issue_asks_for_what_the_doctor_says() -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "problem.yml").read_text(encoding="utf-8"))
    asked = [field["attributes"]["description"] for field in form["body"] if field["validations"]["required"]]
    assert any("`mesh-lab doctor`" in text for text in asked)
    assert any("`mesh-lab --version`" in text for text in asked)
