"""Make a site of the course, ``build/book/html``: ``python notebooks/book/build.py``, or another folder as argument.

Nothing is executed: the notebooks are shown with the outputs that they come with. Sphinx reads copies, laid out as the
repository is, so that links between files lead where they lead there; in the copies, solutions are marked to be folded,
each exercise has its hint, folded, too, and pictures carry their descriptions. A warning is an error.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from mesh_lab.measure.measurement import figure
from mesh_lab.measure.reference import REFERENCE, ReferenceRun
from mesh_lab.notebook.exercises import hint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What stands at the side in this order; other texts beside the notebooks, or that a page links to, become pages too.
LOOK_UP = ["notebooks/glossary.md", "notebooks/questions.md", "notebooks/measured.md", "mesh_lab/chaos/campaign.md"]
AROUND = ["notebooks/trainers.md", "notebooks/operators.md", "notebooks/windows.md", "CONTRIBUTING.md", "CHANGELOG.md"]
TITLES = {"CONTRIBUTING.md": "For maintainers"}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
MACHINE = {
    "cpus": "cores",
    "memory_gib": "memory, GiB",
    "system": "system",
    "python": "Python",
    "nats_server": "nats-server",
    "nats_py": "nats-py",
}
WORD = re.compile(r"^- \*\*(.+?)\*\*: ", re.MULTILINE)
EXERCISE = re.compile(r"^### Exercise (\d+\.\d+): ", re.MULTILINE)
PATH_IN_CODE = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:md|py|yaml))`")
IN_ITALICS = re.compile(r"(?<![\w*\[])\*([^*`]+)\*(?![\w*])")
PICTURE = re.compile(r"\*Picture: (.+?)\*(?:\n|$)", re.DOTALL)


def anchor(heading: str) -> str:
    """Return what stands behind ``#`` in a link to a heading, as JupyterLab has it."""
    return heading.replace(" ", "-")


def stage(source: Path) -> None:
    """Write the sources of the site, a tree like the repository's, into a folder that is made anew."""
    shutil.rmtree(source, ignore_errors=True)
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("*.md")}
    explained = {word.strip("`") for word in WORD.findall((ROOT / LOOK_UP[0]).read_text(encoding="utf-8"))}
    for path in notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        prepare(notebook["cells"])
        new = set(explained)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = looked_up(led("".join(cell["source"]), path, source, pages), new)
                cell["source"] = text + "".join(map(folded_hint, EXERCISE.findall(text)))
        write(source / "notebooks" / path.name, json.dumps(notebook))
    front = led((ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "README.md", source, pages)
    generated = {"notebooks/measured.md": measured(notebooks), "notebooks/trainers.md": times(notebooks)}
    done: set[str] = set()
    while waiting := (pages | {*LOOK_UP, *AROUND}) - done:
        name = min(waiting)
        own = HERE / "pages" / Path(name).name
        text = (own if own.is_file() else ROOT / name).read_text(encoding="utf-8") + generated.get(name, "")
        write(source / name, led(text, ROOT / name, source, pages))
        done.add(name)
    write(source / "index.md", front + contents(notebooks, sorted(done - {*LOOK_UP, *AROUND})))


def led(text: str, path: Path, source: Path, pages: set[str]) -> str:
    """Return a text that lies at a path with links to the README as links to the front page.

    Texts that it links to, or names by their path, are added to the pages; pictures and other files are copied. So a
    reader who has only the book finds the pieces of the package that a notebook names.
    """

    def named(name: re.Match[str]) -> str:
        for folder in (ROOT, ROOT / "mesh_lab"):
            if (file := folder / name[1]).is_file():
                file = ROOT / "notebooks" / file.name if file.parent == HERE / "pages" else file
                return f"[{name[0]}]({Path(os.path.relpath(file, path.parent)).as_posix()})"
        return name[0]

    def one(link: re.Match[str]) -> str:
        found = (path.parent / link[0]).resolve()
        if found == ROOT / "README.md":
            return link[0].replace("README.md", "index.md")
        if found.suffix == ".md":
            pages.add(found.relative_to(ROOT).as_posix())
        elif found.is_file() and found.suffix != ".ipynb":
            copied = source / found.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, copied)
        return link[0]

    return LINK.sub(one, PATH_IN_CODE.sub(named, text))


def looked_up(text: str, new: set[str]) -> str:
    """Return a text whose new words, in italics where it explains them, lead to the glossary; they are new no more."""

    def one(italics: re.Match[str]) -> str:
        word = " ".join(italics[1].split()).casefold()
        if (
            found := next((known for known in new if known.casefold() in (word, word.removesuffix("s"))), None)
        ) is None:
            return italics[0]
        new.remove(found)
        return f"[{italics[0]}](glossary.md#{found[0].upper()})"

    return IN_ITALICS.sub(one, text)


def prepare(cells: list[dict[str, Any]]) -> None:
    """Fold the solutions, and give each picture the description that stands below it."""
    for cell, following in zip(cells, [*cells[1:], {"source": ""}], strict=True):
        if "solution" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("hide-cell")
        for output in cell.get("outputs", []):
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                title = "".join(output["data"]["text/plain"])
                described = PICTURE.match("".join(following["source"]))
                alt = f"{title}. {' '.join(described[1].split())}" if described else title
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}


def folded_hint(number: str) -> str:
    """Return the hint of an exercise, which a page cannot print when it is asked to."""
    with redirect_stdout(io.StringIO()) as said:
        hint(number)
    text = escape(said.getvalue().strip())
    return f'\n\n<details class="hint"><summary>Show a hint</summary><p>{text}</p></details>\n'


def contents(notebooks: list[Path], further: list[str]) -> str:
    """Return the lists of pages that stand at the side."""
    parts = {
        "The course": [f"{titled(path)} <notebooks/{path.stem}>" for path in notebooks],
        "Look it up": LOOK_UP,
        "Around it": [f"{TITLES[name]} <{name}>" if name in TITLES else name for name in [*AROUND, *further]],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"
        for title, pages in parts.items()
    )


def measured(notebooks: list[Path]) -> str:
    """Return the reference run: the machine that it ran on, and a table for each notebook."""
    run = msgspec.json.decode(REFERENCE.read_bytes(), type=ReferenceRun)
    text = "\n| machine | |\n|---|---|\n"
    text += "".join(f"| {name} | {getattr(run.machine, field)} |\n" for field, name in MACHINE.items())
    for path in notebooks:
        if results := run.notebooks.get(path.stem):
            text += f"\n## {titled(path)}\n\nThe notebook: [{titled(path)}]({path.name})\n\n"
            text += "| what | kind | result | payload | runs | spread |\n|---|---|---:|---:|---:|---:|\n"
            for one in results:
                spread = f"{int(one.spread * 100)} %" if one.runs > 1 else "—"
                cells = [
                    one.what,
                    one.kind,
                    figure(one.value, one.kind),
                    f"{one.payload_bytes:,} B" if one.payload_bytes else "—",
                    f"{one.runs}",
                    spread,
                ]
                text += f"| {' | '.join(cells)} |\n"
    return text


def times(notebooks: list[Path]) -> str:
    """Return what each notebook needs and how long it takes, from the table below its title."""
    text = "| notebook | you need | time |\n|---|---|---|\n"
    for path in notebooks:
        rows = dict(re.findall(r"^\| (You need|Time) \| (.+) \|$", first_cell(path), re.MULTILINE))
        text += f"| [{titled(path)}]({path.name}) | {rows['You need']} | {rows['Time']} |\n"
    return text


def titled(path: Path) -> str:
    """Return a notebook's number and title."""
    return f"{path.name[:2]} {first_cell(path).splitlines()[0].removeprefix('# ')}"


def first_cell(path: Path) -> str:
    """Return the Markdown of a notebook's title cell."""
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(folder: Path, builder: str = "html") -> int:
    """Build the site and return Sphinx's exit code; or ask for what it links to, with the builder ``linkcheck``."""
    stage(folder / "source")
    shutil.rmtree(folder / builder, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-j", "2", "-b", builder, "-c", str(HERE), "-d", str(folder / "doctrees")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    command = [sys.executable, "-m", "sphinx", *options, str(folder / "source"), str(folder / builder)]
    code = subprocess.run(command, env=environment, check=False).returncode
    if not code and builder == "html":
        sys.stdout.write(f"{folder / 'html' / 'index.html'}\n")
    return code


if __name__ == "__main__":
    places = [argument for argument in sys.argv[1:] if argument != "--links"]
    place = Path(places[0]) if places else ROOT / "build" / "book"
    sys.exit(main(place.resolve(), "linkcheck" if "--links" in sys.argv else "html"))
