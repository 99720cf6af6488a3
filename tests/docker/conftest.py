"""One engine for all container tests, and one project with ports and a name of its own, taken down at the end."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import engine as machine
import pytest
from containers import copy_of_docker

from mesh_lab.servers.compose import FOLDER_VARIABLE, SERVERS, Engine, Project
from mesh_lab.servers.workspace import PortBlock


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs an engine where there is none and nobody asked for it: the reason once for each file."""
    needing = [item for item in items if "engine" in getattr(item, "fixturenames", ()) and machine.is_here(item.path)]
    if needing and not machine.asked() and (reason := machine.missing()):
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with Compose 2 and the images that the files name; where it was asked for, what misses is made."""
    try:
        with machine.prepared() as found:
            yield found
    except machine.CannotError as err:
        pytest.fail(str(err), pytrace=False)


@pytest.fixture(scope="session")
def project(engine: Engine) -> Iterator[Project]:
    """The project of `docker/`, beside one that the user of this machine may have up: other name, other ports."""
    ports = PortBlock.reserve()
    values: dict[str, str] = {}
    for name in (*SERVERS, *(f"{region}_{number}" for region in ("eu", "us") for number in (1, 2, 3))):
        values |= {f"MESH_LAB_{name.upper()}_{kind}": str(ports.take()) for kind in ("PORT", "MONITOR")}
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="mesh-lab-house-") as house:
        patch.setenv(FOLDER_VARIABLE, str(copy_of_docker(Path(house), name="mesh-lab-test")))
        for name, value in values.items():
            patch.setenv(name, value)
        for name in ("MESH_LAB_URL", "MESH_LAB_BACKEND"):
            patch.delenv(name, raising=False)
        found = Project(engine)
        try:
            yield found
        finally:
            found.down()
            ports.release()
