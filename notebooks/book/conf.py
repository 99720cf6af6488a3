"""Sphinx's settings for the book; ``build.py`` makes the sources and calls Sphinx."""

import os
import sys
import tomllib
from pathlib import Path

# To import it takes seconds, for a grammar of addresses that no notebook's schema asks for; as conftest.py has it.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Where the course can be opened without an installation: "owner/name" on GitHub. Without it, no page offers to.
REPOSITORY, BRANCH = os.environ.get("BOOK_REPOSITORY", ""), os.environ.get("BOOK_BRANCH", "main")

project = "Event mesh lab"
release = version = PROJECT["version"]
html_title = project
extensions = ["myst_nb", "sphinx_copybutton"]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # they would come from elsewhere; the stored outputs are tables, texts and pictures
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = []  # a dollar is money or a subject here
myst_heading_anchors = 4
myst_heading_slug_func = "build.anchor"

smartquotes = False  # the text is the notebooks', to the letter
pygments_dark_style = "github-dark"
highlight_language = "none"  # a block that names no language is for a shell, or shows what one said

html_theme = "furo"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["book.css"]
html_use_index = html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False
html_context = {"repository": REPOSITORY, "branch": BRANCH}
copybutton_selector = "div.highlight:not(.cell_output *) pre"
linkcheck_anchors = False  # many pages make theirs in the browser
linkcheck_workers, linkcheck_retries, linkcheck_timeout = 5, 2, 20
