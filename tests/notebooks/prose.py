"""What the prose of every notebook keeps to: plain Markdown, plain words, links that lead somewhere."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from page import Page, anchors, describe, without_code

PROSE_WORDS = 120
# Words that tell a reader who is stuck that they should not be, or that praise instead of saying.
UNKIND = re.compile(
    r"\b(simply|obviously|just|easy|easily|trivial|trivially|basically|of course|effortless|effortlessly"
    r"|seamless|seamlessly|magic|magically|blazing|blazingly)\b",
    re.IGNORECASE,
)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|TBD)\b")
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\u2b50\u2b55\ufe0f]")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*<?((?:[^()\s>]|\([^()\s>]*\))+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9-]*(?:\s[^>]*)?/?>|<!--")
MYST = re.compile(r"^:::|^(?:```|~~~)\s*\{|\{[a-z][a-z:-]*\}`|^\([\w-]+\)=", re.MULTILINE)
PICTURE = re.compile(r"^\*Picture: .+", re.MULTILINE)


def _words(page: Page) -> Iterator[str]:
    for cell in page.prose:
        prose = without_code(cell.source)
        count = sum(any(letter.isalnum() for letter in word) for word in cell.source.split())
        if count > PROSE_WORDS:
            yield f"{describe(page, cell)} has {count} words; expected {PROSE_WORDS} at most"
        for found in UNKIND.finditer(prose):
            yield f"{describe(page, cell)} says {found[0]!r}"
        if "!" in LINK.sub("", prose):
            yield f"{describe(page, cell)} has an exclamation mark"
        if found := UNFINISHED.search(cell.source):
            yield f"{describe(page, cell)} says {found[0]!r}"


def _markup(page: Page) -> Iterator[str]:
    for cell in page.prose:
        if found := HTML_TAG.search(without_code(cell.source)):
            yield f"{describe(page, cell)} has raw HTML: {found[0]!r}"
        if found := MYST.search(cell.source):
            yield f"{describe(page, cell)} has a MyST directive, which GitHub shows as it is: {found[0]!r}"
    for cell in page.cells:
        if found := EMOJI.search(cell.source + str(cell.get("outputs", ""))):
            yield f"{describe(page, cell)} has an emoji: {found[0]!r}"


def _links(page: Page) -> Iterator[str]:
    for cell in page.prose:
        for image, text, target in LINK.findall(without_code(cell.source)):
            if image and not text.strip():
                yield f"{describe(page, cell)} has an image without alt text: {target}"
            if not _resolves(target, page.path.parent):
                yield f"{describe(page, cell)} links to {target}, which is not there"


def _resolves(target: str, directory: Path) -> bool:
    if re.match(r"[a-z]+:|#", target):
        return not target.startswith("file:")
    name, _, anchor = target.partition("#")
    place = directory / name
    return place.exists() and (not anchor or place.suffix != ".ipynb" or anchor in anchors(place))


def _pictures(page: Page) -> Iterator[str]:
    for position, cell in enumerate(page.cells):
        shown = [output.data for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        if not shown:
            continue
        beside = [page.cells[position - 1], *page.cells[position + 1 : position + 2]]
        if not any(one.cell_type == "markdown" and PICTURE.search(one.source) for one in beside):
            yield f"{describe(page, cell)} shows a picture; expected a line '*Picture: …*' in the prose beside it"
        # The text of matplotlib's own figures is noise that refresh.py drops, and nbval would miss it.
        if "nbval-ignore-output" not in page.tags(cell) and any("text/plain" not in data for data in shown):
            yield f"{describe(page, cell)} shows a picture without a text; draw it with mesh_lab.notebook.charts"


def _navigation(page: Page) -> Iterator[str]:
    last = page.cells[-1]
    links = {text.strip(): target for _, text, target in LINK.findall(last.source)}
    if last.cell_type != "markdown" or len(last.source.splitlines()) != 1 or not links:
        yield "the last cell is not the navigation: one line with links to previous, contents, next"
        return
    if "contents" not in map(str.lower, links):
        yield "the navigation has no link 'contents'"
    for step, word in ((-1, "previous"), (1, "next")):
        for neighbour in page.path.parent.glob(f"{page.number + step:02}_*.ipynb"):
            if neighbour.name not in links.values():
                yield f"the navigation lacks the {word} notebook, {neighbour.name}"


PROSE_CHECKS: tuple[Callable[[Page], Iterator[str]], ...] = (_words, _markup, _links, _pictures, _navigation)
