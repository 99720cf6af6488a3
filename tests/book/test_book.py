"""The book shows what the notebooks say, leads nowhere else by itself, and fits on a phone."""

import base64
import importlib.util
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt
from playwright.sync_api import Page, expect

from mesh_lab.notebook.exercises import hint

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TEXTS = [
    *sorted((ROOT / "notebooks").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
]
EACH_NOTEBOOK = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
BLOCKS = ["p", "li", "td", "th", "h1", "h2", "h3", "h4", "pre"]
MOST_BYTES = 30_000_000
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1400, "height": 900}
# What reaches over the page's edge and lies in nothing that scrolls: nobody can read it.
CLIPPED = """() => {
    const scrolls = (e) => e && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement))
    const seen = [], boxes = ':is(p, li, td, th, h1, h2, h3, pre, img, svg, table, summary)'
    if (document.documentElement.scrollWidth > innerWidth) seen.push('the page scrolls sideways')
    for (const e of document.querySelectorAll('[role=main] ' + boxes)) {
        const box = e.getBoundingClientRect()
        if (box.width && (box.right > innerWidth + 1 || box.left < -1) && !scrolls(e.parentElement))
            seen.push(e.tagName + ': ' + (e.alt || e.textContent).trim().slice(0, 60))
    }
    return seen
}"""


@cache
def places(path: Path) -> set[str]:
    """Return what a link to a page may name behind its ``#``."""
    return {one["id"] for one in parsed(path).find_all(id=True)}


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def page_of(site: Path, path: Path) -> Path:
    """Return the page that a file of the repository becomes."""
    name = path.relative_to(ROOT).with_suffix(".html")
    return site / ("index.html" if path.name == "README.md" else name)


def words(text: str) -> str:
    """Return text with single blanks, and without the marks that a heading's own link has."""
    return " ".join(text.replace("\u00b6", "").split())


def blocks(markup: str | Tag) -> list[str]:
    """Return the texts of paragraphs, list items, cells, headings and code, each without those inside of it."""
    soup = BeautifulSoup(markup, "html.parser") if isinstance(markup, str) else markup
    found: dict[int, list[str]] = {}
    for text in soup.find_all(string=True):
        if (block := text.find_parent(BLOCKS)) is not None:
            found.setdefault(id(block), []).append(text)
    return [text for texts in found.values() if (text := words("".join(texts)))]


def missing(expected: list[str], shown: list[str]) -> list[str]:
    """Return the texts that are not shown in that order."""
    rest, lost = iter(shown), []
    for text in expected:
        if text not in rest:
            lost.append(text)
            break  # what follows was passed by the search
    return lost


def prose(markdown: str) -> list[str]:
    return blocks(MarkdownIt("commonmark").enable("table").render(markdown))


def article(site: Path, path: Path) -> Tag:
    found = parsed(page_of(site, path)).find(attrs={"role": "main"})
    assert isinstance(found, Tag)
    return found


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def markdown(cell: dict) -> str:
    return "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""


@EACH_NOTEBOOK
def test_a_page_has_every_sentence_and_every_cell_of_its_notebook_in_order(site: Path, path: Path) -> None:
    expected = []
    for cell in cells(path):
        source = "".join(cell["source"])
        expected += prose(source) if cell["cell_type"] == "markdown" else [words(source)]
    assert missing(expected, blocks(article(site, path))) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_page_has_every_sentence_of_its_text_in_order(site: Path, path: Path) -> None:
    assert missing(prose(path.read_text(encoding="utf-8")), blocks(article(site, path))) == []


@EACH_NOTEBOOK
def test_a_page_has_every_stored_output_below_its_cell(site: Path, path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    shown = article(site, path).select("div.cell")
    assert len(shown) == len(code)
    for cell, box in zip(code, shown, strict=True):
        said = words(" ".join(part.get_text() for part in box.select("div.cell_output")))
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text") or output.get("evalue")})
            if picture := next((kind for kind in data if kind.startswith("image/")), None):
                [image] = box.select("div.cell_output img")
                stored = "".join(data[picture])
                there = (page_of(site, path).parent / image["src"]).read_bytes()
                assert there == (base64.b64decode(stored) if picture == "image/png" else stored.encode())
                assert image["alt"].startswith("".join(data["text/plain"])), image
                assert len(image["alt"]) > 40, image
            else:
                kind = "text/html" if "text/html" in data else "text/plain"
                text = "".join(data[kind])
                text = BeautifulSoup(text, "html.parser").get_text() if kind == "text/html" else text
                assert words(text) in said
        assert not re.search(r"<[\w.]+ object at 0x|\b[VH]Box\(|\bOutput\(", said)


@EACH_NOTEBOOK
def test_solutions_and_hints_are_folded_and_nothing_else_is(
    site: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solutions = ["".join(cell["source"]) for cell in cells(path) if "solution" in cell["metadata"].get("tags", [])]
    numbers = re.findall(r"^### Exercise ([\d.]+): ", "\n".join(map(markdown, cells(path))), re.MULTILINE)
    for number in numbers:
        hint(number)
    hints, folded = capsys.readouterr().out, article(site, path).select("details:not([open])")
    shown = [one.select_one("div.cell_input") for one in folded if "hint" not in one["class"]]
    assert [words(one.get_text()) for one in shown] == [words(solution) for solution in solutions]
    shown = [one.p.get_text() for one in folded if "hint" in one["class"]]
    assert len(shown) == len(numbers) > 0
    assert words(" ".join(shown)) == words(hints)


@EACH_NOTEBOOK
def test_a_page_leads_to_its_notebook_in_a_workspace(site: Path, path: Path) -> None:
    box = article(site, path).select_one("p.run-it")
    assert f"notebooks/{path.name}" in box.get_text()
    links = [link["href"] for link in box.find_all("a")]
    assert f"https://mybinder.org/v2/gh/some-owner/some-course/main?urlpath=lab/tree/notebooks/{path.name}" in links
    assert f"https://github.com/some-owner/some-course/blob/main/notebooks/{path.name}" in links
    assert "https://codespaces.new/some-owner/some-course?ref=main" in links


def test_words_lead_to_the_glossary_where_a_notebook_explains_them_and_once(site: Path) -> None:
    counts = Counter()
    for path in NOTEBOOKS:
        led = [link for link in article(site, path).find_all("a") if link["href"].startswith("glossary.html#")]
        counts[path.stem] = len(led)
        assert len({words(link.get_text()).casefold() for link in led}) == len(led), path.stem
        for link in led:
            letter = link["href"].partition("#")[2]
            entries = parsed(site / "notebooks" / "glossary.html").find(id=letter)
            named = [words(one.get_text()).casefold() for one in entries.select("li strong")]
            assert words(link.get_text()).casefold().removesuffix("s") in {name.removesuffix("s") for name in named}
    assert sum(counts.values()) > 100, counts


def test_a_file_that_a_notebook_names_by_its_path_comes_with_the_book(site: Path) -> None:
    [notebook] = [path for path in NOTEBOOKS if path.stem.startswith("15_")]
    [link] = [one for one in article(site, notebook).find_all("a") if one.get_text() == "orders/worker.py"]
    there = page_of(site, notebook).parent / link["href"]
    assert there.read_bytes() == (ROOT / "mesh_lab" / "orders" / "worker.py").read_bytes()


def test_no_link_inside_the_book_is_dead(site: Path) -> None:
    dead, seen = [], 0
    for path in site.rglob("*.html"):
        for link in parsed(path).find_all("a", href=True):
            parts = urlsplit(link["href"])
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            seen += 1
            if not target.is_file():
                dead.append(f"{path.name}: {link['href']}")
            elif parts.fragment and unquote(parts.fragment) not in places(target):
                dead.append(f"{path.name}: {link['href']}, and that page has no such place")
    assert seen > 1_000
    assert not dead, "\n".join(["", *sorted(set(dead))])


def test_the_search_for_dead_links_names_those_and_no_other(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("book_build", ROOT / "notebooks" / "book" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    text = f"# Links\n\n[there]({address}index.html), [gone]({address}gone.html)\n"
    monkeypatch.setattr(build, "stage", lambda source: build.write(source / "index.md", text))
    assert build.main(tmp_path, "linkcheck") != 0
    said = (tmp_path / "linkcheck" / "output.txt").read_text(encoding="utf-8")
    assert re.findall(r"\[broken\] (\S+?):? ", said) == [f"{address}gone.html"]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = []
    for path in site.rglob("*.html"):
        loaded += [one.get("src", "") for one in parsed(path).find_all(src=True)]
        loaded += [one["href"] for one in parsed(path).find_all("link") if one.get("rel") != ["canonical"]]
    for path in site.rglob("*.css"):
        loaded += re.findall(r"(?:url\(|@import)\s*['\"]?(\S+?)['\"]?[);]", path.read_text(encoding="utf-8"))
    assert len(loaded) > 100
    assert [one for one in loaded if re.match(r"(https?:)?//", one)] == []


def test_the_book_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < MOST_BYTES


def test_the_figures_stand_beside_the_machine_that_measured_them(site: Path) -> None:
    run = json.loads((ROOT / "mesh_lab" / "measure" / "reference.json").read_text(encoding="utf-8"))
    said = blocks(parsed(site / "notebooks" / "measured.html").find(attrs={"role": "main"}))
    assert [str(fact) for fact in run["machine"].values() if str(fact) not in said] == []
    named = [one["what"] for path in NOTEBOOKS for one in run["notebooks"].get(path.stem, [])]
    assert len(named) > 50
    assert [name for name in named if words(name) not in said] == []


@pytest.mark.needs("browser")
def test_every_page_fits_on_a_phone_and_on_a_desk_and_asks_nobody_else(site: Path, address: str, page: Page) -> None:
    wrong: list[str] = []
    page.on("request", lambda asked: asked.url.startswith((address, "data:")) or wrong.append(f"asks {asked.url}"))
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(f"says {said.text}"))
    page.on("pageerror", lambda error: wrong.append(f"fails: {error}"))
    for path in sorted(site.rglob("*.html")):
        name, before = path.relative_to(site).as_posix(), len(wrong)
        page.set_viewport_size(PHONE)
        answer = page.goto(address + name)
        assert answer is not None
        assert answer.ok, name
        for size in (PHONE, DESK):
            page.set_viewport_size(size)
            wrong += [f"at {size['width']}: {what}" for what in page.evaluate(CLIPPED)]
        pictures = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        inputs = page.locator("div.cell_input")
        buttons = page.evaluate("document.querySelectorAll('div.cell_input button.copybtn').length")
        wrong += [f"no picture at {source}" for source in pictures]
        wrong += [] if inputs.count() == buttons else [f"{inputs.count()} cells, and {buttons} buttons to copy one"]
        wrong[before:] = [f"{name} {what}" for what in wrong[before:]]
    assert not wrong, "\n".join(["", *wrong])


@pytest.mark.needs("browser")
def test_a_reader_searches_the_book_and_reads_it_in_the_dark(address: str, page: Page) -> None:
    page.set_viewport_size(DESK)
    page.goto(f"{address}search.html?q=scatter")
    found = page.locator("ul.search a[href*='02_share_work_in_queue_groups']").first
    expect(found).to_be_visible(timeout=20_000)
    found.click()
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number))"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(brightness) > 200
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(brightness) < 60
