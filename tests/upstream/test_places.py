"""Each place that a work-around is said to have is there."""

import pytest
import test_nats_py  # noqa: F401  # registers its work-arounds
from test_nats_server import RACES
from workarounds import WORKAROUNDS, stands

EVERY = [*WORKAROUNDS, *RACES]


def test_client_and_server_have_their_work_arounds_here() -> None:
    assert len(EVERY) > 14


@pytest.mark.parametrize("place", sorted({place for one in EVERY for place in one.places}))
def test_a_work_around_stands_where_it_is_said_to(place: str) -> None:
    assert stands(place), f"{place} is gone: say where the work-around is now, or delete its test"


@pytest.mark.parametrize(
    "place", ["mesh_lab/patterns/wait.py:no_such_name", "mesh_lab/servers:no such words", "README.md:no such words"]
)
def test_a_place_that_is_not_there_is_found_out(place: str) -> None:
    assert not stands(place)
