"""A reader opens the first notebook in JupyterLab, runs it, and does an exercise."""

import json
import re
import time
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

# Two shared cores start a kernel and three servers in a few seconds; a cell may take half a minute under load.
STARTS_MS, RUNS_MS = 60_000, 180_000
COMES_UP_MS = 5_000

pytestmark = pytest.mark.needs("browser")

EXECUTED = re.compile(r"\[\d+\]:")
WRONG_ANSWER = 'subject = "orders.eu.000010.placed"'
RIGHT_ANSWER = 'subject = list(read_orders(first=10))[-1].subject("paid")'


@pytest.fixture(scope="module")
def opened(page: Page, jupyter: str) -> Page:
    """The first notebook as `make lab` opens it, with a kernel that idles; the tests follow one reader through it."""
    page.goto(jupyter)  # the address that `make lab` prints leads to the notebook
    expect(page.locator(".jp-NotebookPanel")).to_be_visible(timeout=STARTS_MS)
    _wait_for_kernel(jupyter)
    expect(page.locator('.jp-NotebookPanel [data-status="idle"]').first).to_be_attached(timeout=STARTS_MS)
    return page


@pytest.fixture
def notebook(opened: Page) -> Page:
    """The first notebook, open in JupyterLab with a kernel that idles, and without the outputs that come with it."""
    page = opened
    _choose(page, "Edit", "Clear Outputs of All Cells")
    expect(_cell_with(page, "%load_ext mesh_lab").locator(".jp-InputArea-prompt")).to_have_text("[ ]:")
    return page


def _wait_for_kernel(jupyter: str) -> None:
    """Return when the page is connected to its kernel: told to run before, JupyterLab asks for a kernel instead."""
    base, token = jupyter.split("/lab", 1)[0], jupyter.rpartition("token=")[2]
    deadline, seen = time.monotonic() + STARTS_MS / 1_000, "nothing yet"
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/api/sessions?token={token}", timeout=10) as answer:
            seen = json.load(answer)
        if any(s["kernel"]["connections"] and s["kernel"]["execution_state"] == "idle" for s in seen):
            return
        time.sleep(0.1)  # pacing: a loop with a deadline
    raise AssertionError(f"no kernel was ready; JupyterLab's sessions: {seen}")


def _choose(page: Page, menu: str, entry: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


def _run_all(page: Page) -> None:
    _choose(page, "Run", "Run All Cells")
    first = _cell_with(page, "%load_ext mesh_lab").locator(".jp-InputArea-prompt")
    expect(first).to_have_text(EXECUTED, timeout=STARTS_MS)
    assert page.locator(".jp-Dialog").all_inner_texts() == []


def _code_cells(page: Page) -> Locator:
    return page.locator(".jp-NotebookPanel .jp-CodeCell")


def _cell_with(page: Page, text: str) -> Locator:
    return _code_cells(page).filter(has=page.locator(".cm-content", has_text=text)).first


def _answer(page: Page, code: str) -> None:
    """Write an answer into the first exercise's cell and run it and the check below it."""
    check = _cell_with(page, 'await check("0.1", subject)')
    cell = (
        page.locator(".jp-NotebookPanel .jp-Cell").filter(has=page.locator(".cm-content", has_text="subject = ")).first
    )
    cell.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    check.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def _verdict(page: Page) -> Locator:
    return _cell_with(page, 'await check("0.1", subject)').locator(".jp-OutputArea-output")


def test_the_first_notebook_opens_without_a_question_and_without_a_mark_of_changes(opened: Page) -> None:
    tab = opened.locator(".lm-DockPanel-tabBar .lm-TabBar-tab", has_text="00_start_here.ipynb")
    changed = opened.locator(".lm-DockPanel-tabBar .jp-mod-dirty")
    expect(tab).to_be_visible()
    # Both come a moment after the kernel idles, when JupyterLab learns of its language and has read its settings.
    with pytest.raises(TimeoutError, match=f"Timeout {COMES_UP_MS}ms exceeded"):
        changed.or_(opened.locator(".Toastify__toast, .jp-Dialog")).first.wait_for(timeout=COMES_UP_MS)
    _choose(opened, "Edit", "Clear Outputs of All Cells")
    expect(changed).to_have_count(1)


def test_a_reader_runs_the_first_notebook_and_does_an_exercise(notebook: Page) -> None:
    page = notebook
    _run_all(page)
    errors = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    last = _cell_with(page, "assert mesh.closed").locator(".jp-InputArea-prompt", has_text=EXECUTED)
    expect(last.or_(errors).first).to_be_attached(timeout=RUNS_MS)
    assert errors.all_inner_texts() == []

    setup = _cell_with(page, "%load_ext mesh_lab")
    setup.scroll_into_view_if_needed()
    card = setup.locator(".jp-RenderedHTMLCommon table")
    expect(card).to_be_visible()
    for server in ("n1", "n2", "n3"):
        expect(card).to_contain_text(server)

    # The mesh was closed by the last cell; the reader starts again and does the first exercise.
    setup.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    expect(setup.locator(".jp-InputArea-prompt")).to_have_text(EXECUTED, timeout=RUNS_MS)
    _answer(page, WRONG_ANSWER)
    expect(_verdict(page)).to_contain_text("not yet: ", timeout=RUNS_MS)
    _answer(page, RIGHT_ANSWER)
    expect(_verdict(page)).to_contain_text("correct: ", timeout=RUNS_MS)


def test_nobody_without_the_token_is_let_in(jupyter: str) -> None:
    base = jupyter.split("/lab", 1)[0]
    assert base.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{base}/api/contents", timeout=10)


def test_the_glossary_is_shown_rendered_and_leads_to_a_section(opened: Page) -> None:
    opened.locator(".jp-NotebookPanel").get_by_role("link", name="glossary", exact=True).click()
    link = opened.locator(".jp-MarkdownViewer").get_by_role("link", name="01 A wildcard stands for whole tokens").first
    section = opened.get_by_role("heading", name="A wildcard stands for whole tokens")
    link.click()
    expect(section).to_be_attached(timeout=STARTS_MS)
    # JupyterLab 4 opens a notebook at its beginning; one that is open is shown at the section.
    opened.get_by_role("tab", name="glossary.md").click()
    link.click()
    expect(section).to_be_in_viewport(timeout=STARTS_MS)
