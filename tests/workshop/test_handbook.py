"""The trainer's handbook speaks of the course as it is: sections, exercises, minutes, and the checks' own words."""

import json
import re
import symtable
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "notebooks" / "workshop"))
import pace

NOTEBOOKS = pace.NOTEBOOKS
HANDBOOK = pace.HANDBOOK.read_text(encoding="utf-8")
ENTRIES = re.findall(r"(?ms)^### (\d\d) (.*?)\n(.*?)(?=^### |\Z)", HANDBOOK)


def words(text: str) -> str:
    """Return a text without line ends and doubled blanks."""
    return " ".join(text.split())


def test_the_minutes_are_those_of_the_notebooks() -> None:
    assert pace.filled(HANDBOOK) == HANDBOOK, "python notebooks/workshop/pace.py writes them"


def test_an_agenda_that_names_what_a_notebook_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no section 'Nowhere'"):
        pace.filled("| 5 | 00 | to *Nowhere* | 0.1 |")
    with pytest.raises(ValueError, match="no exercise 0.9"):
        pace.filled("| 5 | 00 | *Start here* | 0.9 |")


def test_what_was_measured_is_of_sections_that_are_there() -> None:
    for number, seconds in json.loads(pace.MEASURED.read_text(encoding="utf-8")).items():
        titles = [title for title, _ in pace.sections(pace.notebook(number))]
        assert [heading for heading in seconds if heading not in titles] == [], f"rehearse.py --record {number}"


def names_of(source: str) -> tuple[set[str], set[str]]:
    """Return the names that a cell defines for later ones, and all that it uses."""
    source = source.partition("\n")[2] if source.startswith("%%") else re.sub(r"(?m)^%.*$", "", source)
    table = symtable.symtable(source, "cell", "exec")
    inner = [table]
    for each in inner:
        inner += each.get_children()
    used = {one.get_name() for each in inner for one in each.get_symbols() if one.is_global() and one.is_referenced()}
    top = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    used |= {one.get_name() for one in table.get_symbols() if one.is_referenced()}
    written = {one.get_name() for each in inner[1:] for one in each.get_symbols() if one.is_declared_global()}
    return top | written, used


@pytest.mark.parametrize("row", pace.AGENDA_ROW.findall(HANDBOOK), ids=lambda row: row[0])
def test_an_agenda_skips_no_section_that_a_later_one_of_it_needs(row: tuple[str, str, str]) -> None:
    taken, has, skipped = pace.headings(*row), set[str](), dict[str, str]()
    for heading, _, cell in pace.steps(pace.notebook(row[0])):
        if cell is None:
            continue
        defines, uses = names_of(cell.source)
        if heading in taken:
            missing = {name: skipped[name] for name in uses - has - defines if name in skipped}
            assert missing == {}, f"{heading!r} needs names of sections that the agenda leaves out"
            has |= defines
        else:
            skipped |= dict.fromkeys(defines - has, heading)


def test_every_notebook_has_its_entry() -> None:
    assert [f"{number}_" for number, _, _ in ENTRIES] == sorted(
        path.name[:3] for path in NOTEBOOKS.glob("[0-9]*.ipynb")
    )


@pytest.mark.parametrize(("number", "title", "entry"), ENTRIES, ids=[number for number, _, _ in ENTRIES])
def test_an_entry_quotes_the_checks_and_names_sections_that_are_there(number: str, title: str, entry: str) -> None:
    [path] = NOTEBOOKS.glob(f"{number}_*.ipynb")
    assert title.lower() == path.stem[3:].replace("_", " ").lower()
    told, skipped = words(entry).split("**You will see:**")[1].split("**When late, skip:**")
    # What a check says is pieced together from strings of a line each, and from what it saw.
    check = re.sub(r'"\s*\n\s*f?"', "", (NOTEBOOKS / "checks" / f"{path.stem}.py").read_text(encoding="utf-8"))
    for quoted in re.findall(r"`([a-z][^`()]* [^`()]*)`", told):
        assert quoted in check, quoted
    titles = [name for name, _ in pace.sections(path)]
    for section in re.findall(r"\*([^*]+)\*", skipped):
        assert section in titles, section
    for exercise in re.findall(rf"\b{int(number)}\.\d\b", told + skipped):
        assert any(name.startswith(f"Exercise {exercise}:") for name in titles), exercise
