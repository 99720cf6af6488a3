"""The glossary and the questions lead into the notebooks as these are now."""

import re
from collections import Counter
from pathlib import Path

import pytest
from page import anchors
from prose import LINK
from refresh import NOTEBOOKS

GLOSSARY, QUESTIONS = NOTEBOOKS / "glossary.md", NOTEBOOKS / "questions.md"
ENTRY = re.compile(r"^- (.+\n(?:  .+\n)*)", re.MULTILINE)
BOTH = pytest.mark.parametrize("path", [GLOSSARY, QUESTIONS], ids=lambda path: path.stem)


def entries(path: Path) -> list[str]:
    """Return the entries of a file, each with its links."""
    return ENTRY.findall(path.read_text(encoding="utf-8"))


def targets(entry: str) -> list[tuple[str, str]]:
    """Return the text of each link of an entry, and where it leads."""
    return [(text, target) for _, text, target in LINK.findall(entry)]


@BOTH
def test_every_entry_leads_to_sections_by_their_number_and_heading(path):
    wrong = []
    for entry in entries(path):
        wrong += [] if targets(entry) else [f"{entry.splitlines()[0]!r} has no link"]
        for text, target in targets(entry):
            name, _, anchor = target.partition("#")
            place = path.parent / name
            heading = anchors(place).get(anchor) if place.exists() else None
            if heading is None:
                wrong.append(f"{target} leads nowhere; its text is {text!r}")
            elif text != f"{name[:2]} {heading.text}":
                wrong.append(f"{target} has the text {text!r}; expected its number and its heading")
    assert not wrong, "\n".join(["", *wrong])


@BOTH
def test_every_notebook_is_reached(path):
    reached = {target.partition("#")[0] for entry in entries(path) for _, target in targets(entry)}
    assert reached == {notebook.name for notebook in NOTEBOOKS.glob("*.ipynb")}


@BOTH
def test_no_entry_stands_there_twice(path):
    counts = Counter(re.split(r"\*\*: |\n", entry)[0].casefold() for entry in entries(path))
    assert [entry for entry, count in counts.items() if count > 1] == []


def test_the_glossary_is_in_alphabetical_order_below_its_letters():
    found = re.findall(r"^## (.)$|^- \*\*(.+?)\*\*: ", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    keys = [letter.casefold() or re.sub("[^a-z0-9]+", " ", word.casefold()).strip() for letter, word in found]
    assert keys == sorted(keys)
    letters = [letter for letter, _ in found if letter]
    assert letters == sorted({word.strip("`")[0].upper() for _, word in found if word})
    assert len(found) - len(letters) == len(entries(GLOSSARY)), "an entry is not of the form '- **word**: …'"
