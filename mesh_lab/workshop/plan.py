"""The day's plan: how far the room should be by now, from an agenda's minutes and the moment at which it began."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from mesh_lab.errors import SettingsError

ROW = re.compile(r"^\|\s*(\d+)\s*\|[^|]*\|[^|]*\|\s*([^|\n]*?)\s*\|\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Plan:
    """For each exercise of a day the minutes, after its beginning, by which the room should have solved it."""

    due: Mapping[str, float]

    @classmethod
    def read(cls, agenda: str, exercises: Collection[str]) -> Self:
        """Return the plan of an agenda, which is a table as the trainer's handbook has them.

        A row has minutes, a notebook, its sections, and exercises with commas between them, which are due in even
        steps over the row's minutes. Talk and breaks are rows without exercises: ``| 15 | | break | |``.

        Raises:
            SettingsError: No row names an exercise, or one names an exercise that is not there.
        """
        due, begins = dict[str, float](), 0.0
        for minutes, named in ROW.findall(agenda):
            practised = [one.strip() for one in named.split(",") if one.strip()]
            if unknown := [one for one in practised if one not in exercises]:
                raise SettingsError(f"the agenda names exercise {unknown[0]!r}; there are {', '.join(exercises)}")
            for count, one in enumerate(practised, start=1):
                due[one] = begins + float(minutes) * count / len(practised)
            begins += float(minutes)
        if not due:
            raise SettingsError("the agenda names no exercise; expected rows | 45 | 00 | sections | 0.2, 0.3 |")
        return cls(due)

    def by(self, minutes: float) -> list[str]:
        """Return the exercises that the room should have solved after so many minutes."""
        return [one for one, due in self.due.items() if due <= minutes]
