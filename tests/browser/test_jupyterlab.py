"""A reader opens the first notebook in JupyterLab, runs it, and does an exercise; and does so where others host it."""

import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest
from hosted import ROOT, lab, proxy
from playwright.sync_api import Locator, Page, TimeoutError, expect
from traitlets.config.loader import PyFileConfigLoader

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


def _wait_for_kernel(jupyter: str, notebook: str = "") -> None:
    """Return when the page is connected to its kernel: told to run before, JupyterLab asks for a kernel instead."""
    base, token = jupyter.split("/lab", 1)[0], jupyter.rpartition("token=")[2]
    deadline, seen = time.monotonic() + STARTS_MS / 1_000, "nothing yet"
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{base}/api/sessions?token={token}", timeout=10) as answer:
            seen = json.load(answer)
        kernels = [session["kernel"] for session in seen if notebook in session["path"]]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
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
    # Of the notebook in front: JupyterLab opens those again that an earlier page had open.
    return page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")


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


def test_jupyterlab_starts_and_runs_a_notebook_without_a_warning_of_its_own(opened: Page, lab_folder: Path) -> None:
    # It trusts the outputs of no notebook that came from elsewhere, and gives tornado its milliseconds as seconds.
    known = ("is not trusted", "websocket_ping_timeout")
    said = re.findall(r"(?m)^\[[WE] .*", (lab_folder / "jupyter.log").read_text())
    assert [line for line in said if not any(text in line for text in known)] == []


def test_nobody_without_the_token_is_let_in(jupyter: str) -> None:
    base = jupyter.split("/lab", 1)[0]
    assert base.startswith("http://127.0.0.1:")
    for given in ("", "?token=", "?token=guessed"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{base}/api/contents{given}", timeout=10)
    with urllib.request.urlopen(f"{base}/api/contents?token={jupyter.rpartition('token=')[2]}", timeout=10) as answer:
        assert answer.status == 200


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


MAP = """\
%load_ext mesh_lab
from mesh_lab import start_mesh
from mesh_lab.notebook.mesh_map import MeshMap

mesh = await start_mesh(servers=3, links=True)
MeshMap(mesh).beside()"""


def test_the_live_map_beside_the_page_is_worked_by_keys_and_clicks_and_leaves_nothing_behind(
    page: Page, jupyter: str, lab_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sidecar", reason="sidecar, which shows the map beside the page, is not installed: make lab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(MAP)], metadata=kernel)
    nbformat.write(notebook, lab_folder / "notebooks" / "map.ipynb")
    opened = page.context.browser.new_page(viewport={"width": 1600, "height": 1000})
    opened.goto(jupyter.replace("00_start_here", "map"))
    cell = _cell_with(opened, "MeshMap")
    expect(cell).to_be_visible(timeout=STARTS_MS)
    _wait_for_kernel(jupyter, "map.ipynb")
    expect(opened.locator('.jp-NotebookPanel [data-status="idle"]').first).to_be_attached(timeout=STARTS_MS)
    others = set(_servers())
    cell.locator(".cm-content").click()
    opened.keyboard.press("Shift+Enter")
    drawing, button = opened.locator("svg.mesh-map"), partial(opened.get_by_role, "button", exact=True)
    words, place = drawing.locator("title"), partial(opened.locator(".mesh-map-stage").get_by_title, exact=True)
    expect(words).to_contain_text("n1 ready; n2 ready; n3 ready", timeout=RUNS_MS)
    expect(cell.locator("svg.mesh-map")).to_have_count(0)

    opened.locator(".mesh-map-controls select").focus()
    for key in ("ArrowDown", "Tab", "Enter"):  # the list chooses n2, and the first button kills it
        opened.keyboard.press(key)
    expect(words).to_contain_text("n2 killed", timeout=STARTS_MS)
    place("n1 – n3").click()  # noqa: RUF001
    expect(button(name="kill")).to_be_disabled()
    button(name="cut").click()
    expect(drawing.locator("text", has_text=re.compile("^cut"))).to_be_visible(timeout=STARTS_MS)

    ground = drawing.locator("rect").first  # another one at each drawing, so what is expected of it is asked again
    expect(ground).to_have_css("fill", "rgb(255, 255, 255)")
    opened.screenshot(path=tmp_path / "light.png")
    _choose_theme(opened, "JupyterLab Dark")
    expect(opened.locator('body[data-jp-theme-light="false"]')).to_be_attached(timeout=STARTS_MS)
    expect(ground).to_have_css("fill", re.compile(r"rgb\([1-5]?\d, [1-5]?\d, [1-5]?\d\)"))
    opened.screenshot(path=tmp_path / "dark.png")
    _choose_theme(opened, "JupyterLab Light")
    button(name="heal").click()
    place("n2").click()
    button(name="restart").click()
    expect(words).to_have_text("n1 ready; n2 ready; n3 ready", timeout=RUNS_MS)

    mine = set(_servers()) - others
    assert len(mine) == 3
    cell.locator(".cm-content").click()  # the menu is for what was last clicked
    opened.get_by_role("menuitem", name="Kernel", exact=True).click()
    opened.locator(".lm-Menu-itemLabel").get_by_text("Restart Kernel…", exact=True).click()
    opened.locator(".jp-Dialog button.jp-mod-accept").click()
    _, alive = psutil.wait_procs(mine, timeout=STARTS_MS / 1_000)
    assert alive == []
    opened.close()


def _servers() -> list[psutil.Process]:
    """Return the servers that kernels of this test's JupyterLab run."""
    return [child for child in psutil.Process().children(recursive=True) if child.name() == "nats-server"]


def _choose_theme(page: Page, theme: str) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    for entry in ("Theme", theme):  # an entry that opens a menu has no role of its own
        page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click()


def _foreign(port: int, address: str) -> str:
    """Return an address with another port, and a name that browsers take for this machine and Jupyter does not."""
    parts = urlsplit(address)
    return parts._replace(netloc=f"hub.localhost:{port}").geturl()


def _asked(address: str, path: str, **headers: str) -> http.client.HTTPResponse:
    """Return the answer of the server at an address to a request with these headers."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse()
    finally:
        connection.close()


def test_the_lab_opens_and_runs_as_binder_starts_it_behind_a_path_of_its_proxy(page: Page, tmp_path: Path) -> None:
    # As BinderHub's spawner does; its `--ip=0.0.0.0`, which no test listens on, is what allows remote access there.
    command = [str(ROOT / ".binder" / "start"), str(Path(sys.executable).with_name("jupyter-lab")), "--ip=127.0.0.1"]
    command += ["--ServerApp.allow_remote_access=True", "--no-browser", "--allow-root"]
    for name in ("NotebookApp", "ServerApp"):
        command += [f"--{name}.base_url=/user/reader/", f"--{name}.token=0123abc", f"--{name}.trust_xheaders=True"]
    with lab(command, tmp_path) as address, proxy(urlsplit(address).port or 0) as port:
        base = address.split("/lab")[0]
        for given, status in (("", 403), ("?token=guessed", 403), ("?token=0123abc", 200)):
            assert _asked(address, f"/user/reader/api/contents{given}", Host=f"hub.localhost:{port}").status == status
        opened = page.context.browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.goto(_foreign(port, f"{base}/lab/tree/notebooks/00_start_here.ipynb?token=0123abc"))
        expect(opened.locator(".jp-NotebookPanel")).to_be_visible(timeout=STARTS_MS)
        _wait_for_kernel(f"{base}/lab?token=0123abc")
        expect(opened.locator(".Toastify__toast, .jp-Dialog, .jp-mod-dirty")).to_have_count(0)
        _choose(opened, "Edit", "Clear Outputs of All Cells")
        setup = _cell_with(opened, "%load_ext mesh_lab")
        setup.locator(".cm-content").click()
        opened.keyboard.press("Shift+Enter")
        expect(setup.locator(".jp-RenderedHTMLCommon table")).to_contain_text("n3", timeout=RUNS_MS)
        opened.close()


PUBLIC = "silver-space-8888.app.github.dev"
WEBSOCKET = {"Connection": "Upgrade", "Upgrade": "websocket"}
WEBSOCKET |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a2V5"}


def test_in_a_codespace_the_lab_knows_its_public_name_and_lets_nobody_in_without_the_token(tmp_path: Path) -> None:
    codespace = {"CODESPACE_NAME": "silver-space", "GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN": "app.github.dev"}
    config = {"JUPYTER_CONFIG_PATH": str(ROOT / ".devcontainer")}
    with lab([sys.executable, "-m", "mesh_lab.cli", "lab", "--no-browser"], tmp_path, **codespace, **config) as address:
        token = address.rpartition("token=")[2]
        for host in (PUBLIC, "localhost:8888", "localhost"):
            assert _asked(address, "/api/contents", Host=host).status == 403
            # A browser shows its token once, and its cookie from then on, which counts for an origin that is known.
            given = _asked(address, f"/lab?token={token}", Host=host).headers.get_all("Set-Cookie", [])
            cookie = "; ".join(one.partition(";")[0] for one in given)
            known = dict.fromkeys((f"https://{PUBLIC}", "http://localhost:8888", "https://localhost:8888"), 101)
            strange = dict.fromkeys(("https://other-space-8888.app.github.dev", f"https://{PUBLIC}.example.org"), 403)
            for origin, status in (known | strange).items():
                seen = _asked(address, "/api/events/subscribe", Host=host, Origin=origin, Cookie=cookie, **WEBSOCKET)
                assert seen.status == status, (host, origin)
        assert _asked(address, f"/api/contents?token={token}", Host="other-space-8888.app.github.dev").status == 403


def test_on_one_s_own_machine_the_lab_answers_to_no_other_name(jupyter: str) -> None:
    token = jupyter.rpartition("token=")[2]
    assert _asked(jupyter, f"/api/contents?token={token}", Host="localhost").status == 200
    assert _asked(jupyter, f"/api/contents?token={token}", Host=PUBLIC).status == 403
    config = PyFileConfigLoader("jupyter_server_config.py", path=str(ROOT / ".devcontainer"))
    assert config.load_config() == {}
