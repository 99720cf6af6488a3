"""A day's plan: read from an agenda's table, and what the room should have solved by when."""

from pathlib import Path

import pytest

from mesh_lab.errors import SettingsError
from mesh_lab.notebook.exercises import titles
from mesh_lab.workshop.plan import Plan

HANDBOOK = Path(__file__).parents[2] / "notebooks" / "workshop" / "handbook.md"
AGENDA = """
| minutes | notebook | sections | exercises |
|---|---|---|---|
| 40 | 00 | to *Kill a server* | 0.2, 0.3 |
| 15 | | break | |
| 20 | 01 | *A wildcard* | 1.1 |
"""
EXERCISES = ("0.1", "0.2", "0.3", "1.1")


def test_exercises_are_due_in_even_steps_over_their_row_and_a_break_only_takes_its_time() -> None:
    plan = Plan.read(AGENDA, EXERCISES)
    assert plan.due == {"0.2": 20.0, "0.3": 40.0, "1.1": 75.0}
    assert [plan.by(minutes) for minutes in (-5.0, 19.9, 40.0, 74.0, 600.0)] == [
        [], [], ["0.2", "0.3"], ["0.2", "0.3"], ["0.2", "0.3", "1.1"]
    ]  # fmt: skip


def test_the_agendas_of_the_handbook_are_plans() -> None:
    half, one, two = HANDBOOK.read_text(encoding="utf-8").partition("## Three agendas")[2].split("\n### ")[1:4]
    assert list(Plan.read(half, titles()).due) == ["0.2", "0.3", "1.1", "2.1", "3.2"]
    assert list(Plan.read(one, titles()).due) == ["4.1", "13.1", "14.1", "14.2", "15.1"]
    assert len(Plan.read(two.partition("\n## ")[0], titles()).due) == 7


@pytest.mark.parametrize(
    ("agenda", "said"),
    [
        ("", "the agenda names no exercise; expected rows"),
        ("| 15 | | break | |", "the agenda names no exercise"),
        (AGENDA.replace("1.1", "1.7"), "the agenda names exercise '1.7'; there are 0.1, 0.2, 0.3, 1.1"),
    ],
)
def test_an_agenda_that_is_no_plan_is_refused(agenda: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Plan.read(agenda, EXERCISES)
