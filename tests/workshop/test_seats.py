"""Seats by JupyterHub: what each has of its own, who gets in, what one cannot get at, and what outlives what."""

import contextlib
import http.cookiejar
import json
import os
import re
import shutil
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import psutil
import pytest
from chromium import browser_path, page  # noqa: F401 - fixtures
from hub import ROOT, Python, Seats, python_for_all
from playwright.sync_api import Locator, Page, expect

sys.path.append(str(ROOT / "notebooks" / "workshop"))
import rehearse

from mesh_lab.errors import ProcessEndedError, SettingsError
from mesh_lab.processes import ChildProcess
from mesh_lab.seats.api import HubApi, memory_bytes
from mesh_lab.seats.check import first_cell, one_seat
from mesh_lab.seats.start import Workshop, serving
from mesh_lab.security.certificates import Authority
from mesh_lab.servers.workspace import PortBlock

# Twenty, as a workshop has: MESH_LAB_TEST_SEATS=20, with time and memory printed by pytest -s.
COUNT = max(3, int(os.environ.get("MESH_LAB_TEST_SEATS", "3")))
MOST_MIB = 600
WITHIN_S = 180.0


@pytest.fixture(scope="module")
def place() -> Iterator[SimpleNamespace]:
    """A folder that every user may pass through, as pytest's own is not, and a Python that every user can run."""
    folder = Path(mkdtemp(prefix="mesh-lab-seats-"))
    folder.chmod(0o711)
    with python_for_all() as python:
        yield SimpleNamespace(folder=folder, python=python)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def seats(place: SimpleNamespace) -> Iterator[Seats]:
    """The seats of one workshop, running, which join the room of its trainer."""
    lines = place.folder / "lines"
    command = [sys.executable, "-m", "mesh_lab.cli", "workshop", "--seats", str(COUNT), "--lines", str(lines)]
    options = ["--seats", str(COUNT), "--lines", str(lines), *([] if place.python.for_all else ["--isolation", "none"])]
    with contextlib.closing(ChildProcess(command, name="mesh-lab workshop", stdout=True)) as room:
        room.start()
        said = b""
        while b"  quit " not in said:  # the last line that it says when the room is open
            said += room.receive()
        board = re.search(rb"http://\S+/", said)[0].decode()
        seats = Seats(place.folder / "room", place.python, *options)
        try:
            seats.hub, seats.board = seats.start(), board
            yield seats
        finally:
            seats.end()
        assert "Error in Spawner" not in (seats.folder / "hub" / "hub.log").read_text()
        room.request_stop()
        room.wait(within=WITHIN_S)


@pytest.fixture
def hub(seats: Seats) -> HubApi:
    return seats.hub


class Person:
    """Somebody with a browser: cookies, and what pages say."""

    def __init__(self, url: str) -> None:
        self.url, jar = url, http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar)
        )

    def get(self, path: str) -> str:
        with self._opener.open(self.url + path, timeout=WITHIN_S) as answer:
            return answer.read().decode()

    def log_in(self, name: str, code: str) -> None:
        form = self.get("/hub/login")
        token = re.search(r'name="_xsrf"\s+value="([^"]+)"', form)
        fields = {"username": name, "password": code, "_xsrf": token[1] if token else ""}
        data = urllib.parse.urlencode(fields).encode()
        self._opener.open(f"{self.url}/hub/login?next=/hub/home", data, timeout=WITHIN_S).read()

    def refused(self, path: str) -> int:
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error 4") as refusal:
            self.get(path)
        return refusal.value.code


def wait_for_board(seats: Seats, number: str, words: str) -> None:
    """Return when the board shows a seat's exercise, or its hand, with these words."""
    deadline, row = time.monotonic() + WITHIN_S, ""
    while words not in row:
        assert time.monotonic() < deadline, f"{words!r} is not in {row!r}"
        time.sleep(0.2)  # pacing: a loop with a deadline
        with urllib.request.urlopen(f"{seats.board}now", timeout=WITHIN_S) as answer:
            row = dict(rehearse.BOARD_ROW.findall(answer.read().decode()))[number]


def asked(hub: HubApi, seat: str, code: str) -> dict:
    """Return what code at a seat printed as JSON in its last line."""
    return json.loads(hub.run(seat, code, within=WITHIN_S).strip().splitlines()[-1])


def test_each_seat_runs_the_first_cell_on_servers_of_its_own(seats: Seats, hub: HubApi) -> None:
    shows = first_cell() + "\nimport json, os\nprint(json.dumps([mesh.urls, os.getcwd()]))"
    names = [f"seat-{number:02}" for number in range(1, COUNT + 1)]
    with ThreadPoolExecutor(COUNT) as pool:
        found = list(pool.map(lambda seat: asked(hub, seat, shows), names))
    took = time.monotonic() - seats.began
    urls = [url for each, _ in found for url in each]
    assert len(urls) == len(set(urls)) == 3 * COUNT
    assert [Path(home).name for _, home in found] == names
    used = {seat: memory_bytes(hub.pid_of(seat)) / 2**20 for seat in names}
    most, all_of_it = max(used.values()), memory_bytes(hub.process.pid) / 2**20
    told = (
        f"{COUNT} seats: {took:.0f} s from the command to the last first cell; up to {most:.0f} MiB a seat with three "
    )
    sys.stdout.write(f"{told}servers, {all_of_it:,.0f} MiB in all\n")
    assert most < MOST_MIB


def test_each_seat_has_joined_the_trainers_room_by_its_own_line(hub: HubApi) -> None:
    asks = "import json; from mesh_lab.workshop.seat import card; print(json.dumps(card().seat))"
    assert [asked(hub, seat, asks) for seat in ("seat-01", "seat-02")] == ["01", "02"]


def test_a_seat_is_taken_with_its_own_code_alone(seats: Seats) -> None:
    for name, code in [
        ("seat-01", "guessed"),
        ("seat-01", seats.codes["seat-02"]),
        ("seat-01", ""),
        ("nobody", ""),
        ("trainer", seats.codes["seat-01"]),
    ]:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            Person(seats.url).log_in(name, code)
    person = Person(seats.url)
    person.log_in("seat-01", seats.codes["seat-01"])
    person.get("/user/seat-01/lab")  # the server asks the hub who this is
    assert '"00_start_here.ipynb"' in person.get("/user/seat-01/api/contents/notebooks")


def test_a_seat_that_is_logged_in_is_refused_what_is_anothers_or_the_trainers(seats: Seats) -> None:
    person = Person(seats.url)
    person.log_in("seat-01", seats.codes["seat-01"])
    assert person.refused("/user/seat-02/lab") == 403  # the hub tells the server who this is
    assert person.refused("/user/seat-02/api/contents/notebooks") in (403, 404)
    assert person.refused("/user/seat-02/api/kernels") in (403, 404)
    assert person.refused("/hub/api/users") == 403
    assert person.refused("/hub/api/users/seat-02") == 404
    assert person.refused("/hub/admin") == 403
    assert person.refused("/hub/spawn/seat-02") in (403, 404)


ATTACK = """
import glob, json, os, psutil, resource, signal
def tried(attack):
    try:
        return repr(attack())[:80]
    except BaseException as err:
        return type(err).__name__
home, pid = HOME, PID
server = psutil.Process(pid)
children = [p.pid for p in psutil.process_iter(["ppid"]) if p.info["ppid"] == pid]
kernel = children[0]
results = {
    "list the home": tried(lambda: os.listdir(home)),
    "read a notebook": tried(lambda: open(home + "/notebooks/00_start_here.ipynb").read()),
    "write a notebook": tried(lambda: open(home + "/notebooks/new.ipynb", "w")),
    "read the progress": tried(lambda: open(home + "/.mesh-lab/progress.sqlite", "rb").read()),
    "the server's variables, with its token": tried(lambda: open(f"/proc/{pid}/environ").read()),
    "the kernel's variables": tried(lambda: open(f"/proc/{kernel}/environ").read()),
    "the kernel's memory": tried(lambda: open(f"/proc/{kernel}/mem", "rb")),
    "the server's open files": tried(lambda: os.listdir(f"/proc/{pid}/fd")),
    "end the server": tried(lambda: os.kill(pid, signal.SIGTERM)),
    "end the kernel": tried(lambda: os.kill(kernel, signal.SIGKILL)),
    "the codes": tried(lambda: open(HUB + "/codes.txt").read()),
    "the settings, with the trainer's token": tried(lambda: open(HUB + "/settings.json").read()),
    "the seats' names": tried(lambda: os.listdir(os.path.dirname(HUB))),
    "be root": tried(lambda: os.setuid(0)),
    "be the other": tried(lambda: os.setuid(os.stat(home).st_uid)),
    "more memory": tried(lambda: resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))),
    "more processes": tried(lambda: resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))),
}
for place in glob.glob("/tmp/seat-*"):
    if os.stat(place).st_uid != os.getuid():
        results["list " + place] = tried(lambda: os.listdir(place))
print(json.dumps(results))
"""


def test_a_seat_cannot_get_at_files_processes_or_secrets_of_another(seats: Seats, hub: HubApi) -> None:
    if not seats.uid:
        pytest.skip("each seat has a user of its own only where root runs a Python that every user can run")
    hub.run("seat-01", "open('mine.txt', 'w').write('an answer')", within=WITHIN_S)
    values = {"HOME": str(seats.folder / "seat-01"), "PID": hub.pid_of("seat-01"), "HUB": str(seats.folder / "hub")}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + ATTACK
    found = asked(hub, "seat-02", code)
    assert len(found) > 17, "the other seat's place for sockets was not found"
    expected = {"more memory": "ValueError", "more processes": "ValueError"}
    assert {what: seen for what, seen in found.items() if seen != expected.get(what, "PermissionError")} == {}
    # What the attacks were after is there.
    assert "an answer" in hub.run("seat-01", "print(open('mine.txt').read())", within=WITHIN_S)


def test_a_seats_server_lets_nobody_in_who_comes_past_the_hub(seats: Seats, hub: HubApi) -> None:
    code = """
import json, psutil, urllib.request, urllib.error
def asked(token):
    request = urllib.request.Request("http://127.0.0.1:PORT/user/seat-01/api/contents")
    request.add_header("Authorization", f"token {token}")
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as err:
        return err.code
import os
print(json.dumps([asked(""), asked(os.environ["JUPYTERHUB_API_TOKEN"])]))
"""
    sockets = psutil.Process(hub.pid_of("seat-01")).net_connections("tcp")
    port = next(socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN)
    assert asked(hub, "seat-02", code.replace("PORT", str(port))) == [403, 403]


def test_a_process_that_takes_too_much_memory_ends_alone(hub: HubApi) -> None:
    took = "try:\n    big = bytearray(3 * 2**30)\nexcept MemoryError:\n    print('refused')"
    assert hub.run("seat-01", took, within=WITHIN_S) == "refused\n"


SOLVES = """
import os; os.chdir(os.path.expanduser("~/notebooks"))
from mesh_lab.notebook.exercises import check
from mesh_lab.orders import read_orders
subject = list(read_orders(first=10))[-1].subject("paid")
print(await check("0.1", subject))
"""
PROGRESS = "import os; os.chdir(os.path.expanduser('~/notebooks'))\nfrom mesh_lab.notebook.exercises import progress\n"


def test_participants_at_work_are_on_the_board_and_no_check_of_theirs_fails(seats: Seats, hub: HubApi) -> None:
    headings = ["Run the next cell, and three servers start", "How the exercises work"]
    parts = {"00": [*headings, "Exercise 0.2: only what Europe buys"]}
    names = [f"seat-{number:02}" for number in range(1, COUNT + 1)]
    found = rehearse.rehearse(hub, seats.board, names, parts, faster=400)
    sys.stdout.writelines(f"{line}\n" for line in found.lines(faster=400))
    assert found.record.failures == []
    states = {(one.seat, one.state) for one in found.record.verdicts}
    assert {(f"{number:02}", state) for number in range(1, COUNT + 1) for state in ("at it", "solved")} <= states
    assert ("01", "not yet") in states, "somebody answered wrongly first"
    assert len(found.delays_s) == len(found.record.verdicts)
    assert set(found.record.memory) == set(names)


def test_a_kernel_that_dies_takes_no_answer_and_no_progress_with_it(seats: Seats, hub: HubApi) -> None:
    first = "/user/seat-01/api/contents/notebooks/00_start_here.ipynb"
    notebook = hub.call("GET", first)
    cell = next(cell for cell in notebook["content"]["cells"] if "exercise" in cell["metadata"].get("tags", ()))
    cell["source"] = "subject = 'an answer'"
    hub.call("PUT", first, notebook)  # as JupyterLab saves by itself every two minutes, and at Ctrl-S
    assert "correct" in hub.run("seat-01", first_cell() + SOLVES, within=WITHIN_S)
    wait_for_board(seats, "01", "0.1 name the event: solved")
    server = psutil.Process(hub.pid_of("seat-01"))
    [died] = server.children()
    died.kill()
    deadline = time.monotonic() + WITHIN_S
    while not [child for child in server.children() if child != died]:
        assert time.monotonic() < deadline, "the server started no kernel in the other's place"
        time.sleep(0.1)  # pacing: a loop with a deadline
    assert "an answer" in json.dumps(hub.call("GET", first))
    shown = hub.run("seat-01", PROGRESS + "print(repr(progress()), 'mesh' in dir())", within=WITHIN_S)
    assert re.search(r"00 start here +\d of 4", shown)
    assert not re.search(r"\b0\.1\b", shown), "it is open again"
    assert shown.strip().endswith("False"), "it is the kernel that was killed"


# All cells stay in the page, those out of view as well, so that a test can ask for any of them.
ALL_CELLS = """
from pathlib import Path
place = Path.home() / ".jupyter/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text('{"windowingMode": "none"}')
"""


def _wait_for_kernel(hub: HubApi, seat: str) -> None:
    """Return when the page is connected to its kernel: told to run before, JupyterLab asks for a kernel instead."""
    deadline, seen = time.monotonic() + WITHIN_S, "nothing yet"
    while time.monotonic() < deadline:
        seen = hub.call("GET", f"/user/{seat}/api/sessions")
        if any(s["kernel"]["connections"] and s["kernel"]["execution_state"] == "idle" for s in seen):
            return
        time.sleep(0.2)  # pacing: a loop with a deadline
    raise AssertionError(f"no kernel was ready; the sessions of {seat}: {seen}")


def _cell(person: Page, words: str | re.Pattern[str]) -> Locator:
    cells = person.locator(".jp-NotebookPanel .jp-CodeCell")
    return cells.filter(has=person.locator(".cm-content", has_text=words)).first


def _run(person: Page, cell: Locator, code: str = "") -> None:
    """Run a cell, with other words in it if there are some."""
    cell.locator(".cm-content").click()
    if code:
        person.keyboard.press("ControlOrMeta+a")
        person.keyboard.insert_text(code)
    person.keyboard.press("Shift+Enter")


@pytest.mark.needs("browser")
def test_three_people_take_seats_in_browsers_and_the_board_shows_what_each_of_them_does(
    seats: Seats,
    hub: HubApi,
    page: Page,  # noqa: F811
    tmp_path: Path,
) -> None:
    people: dict[str, Page] = {}
    for seat in ("seat-01", "seat-02", "seat-03"):
        hub.run(seat, ALL_CELLS, within=WITHIN_S)
        people[seat] = person = page.context.browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
        person.goto(seats.url)
        person.get_by_label("Username").fill(seat)
        person.get_by_label("Password").fill(seats.codes[seat])
        person.get_by_role("button", name="Sign in").click(no_wait_after=True)  # the next one need not wait for it
    for seat, person in people.items():
        expect(person.locator(".jp-NotebookPanel")).to_be_visible(timeout=90_000)
        _wait_for_kernel(hub, seat)
        expect(person.locator('.jp-NotebookPanel [data-status="idle"]').first).to_be_attached(timeout=60_000)
        _run(person, _cell(person, "%load_ext"))
    for person in people.values():
        first = _cell(person, "%load_ext")
        expect(first.locator(".jp-RenderedHTMLCommon table")).to_contain_text("n3", timeout=60_000)
        expect(first.locator(".jp-InputArea-prompt")).to_have_text(re.compile(r"\[\d+\]:"), timeout=60_000)
    check = "from mesh_lab.notebook.exercises import check\nawait check('0.1', {})"
    mine = re.compile("^subject = ")  # the exercise's cell, whatever was written into it
    _run(people["seat-01"], _cell(people["seat-01"], mine), check.format("'orders.us.000010.paid'"))
    _run(people["seat-02"], _cell(people["seat-02"], mine), check.format("'orders.>'"))
    _run(people["seat-03"], _cell(people["seat-03"], mine), "hand('which region is it?')")

    page.goto(seats.board)
    rows = [page.locator("tbody tr").filter(has=page.get_by_text(f"{n:02}", exact=True)) for n in (1, 2, 3)]
    expect(rows[0].locator('td.solved[title^="0.1 name the event: solved"]')).to_have_text("✓", timeout=60_000)
    expect(rows[1].locator('td.not[title^="0.1 name the event: not yet"]')).to_have_text("✗", timeout=60_000)
    expect(rows[1]).to_contain_text("'orders.>' has a wildcard")
    expect(rows[2].locator(".hand")).to_have_text("hand up", timeout=60_000)
    expect(rows[2]).to_contain_text("which region is it?")
    for seat, person in {**people, "board": page}.items():
        person.screenshot(path=tmp_path / f"{seat}.png")
    for person in people.values():
        person.context.close()


def test_codes_and_settings_are_for_the_trainer_alone_and_stay_the_same(seats: Seats) -> None:
    hub = seats.folder / "hub"
    assert hub.stat().st_mode & 0o777 == 0o700
    for name in ("codes.txt", "settings.json", "record.json"):
        assert (hub / name).stat().st_mode & 0o777 == 0o600, name
    codes = dict(line.split() for line in (hub / "codes.txt").read_text().splitlines())
    assert codes == seats.codes
    assert len(set(codes.values())) == len(codes) == COUNT + 1
    assert all(re.fullmatch(r"(\w{4}-){2}\w{4}", code) for code in codes.values())


def test_what_reads_strangers_requests_is_not_root(seats: Seats) -> None:
    proxy = psutil.Process(int((seats.folder / "hub" / "proxy.pid").read_text()))
    assert list(proxy.uids()) == [seats.uid - 1 if seats.uid else os.getuid()] * 3


def test_a_hub_that_was_killed_and_started_again_finds_every_seat_as_it_was(seats: Seats, hub: HubApi) -> None:
    hub.run("seat-01", "open('kept.txt', 'w').write('an answer')", within=WITHIN_S)
    kernels, codes = hub.call("GET", "/user/seat-01/api/kernels"), dict(seats.codes)
    at_work = closing(hub.connect("seat-03", hub.call("POST", "/user/seat-03/api/kernels", {"name": "python3"})["id"]))
    os.kill(int((seats.folder / "hub" / "hub.pid").read_text()), signal.SIGKILL)
    with pytest.raises(ProcessEndedError, match="the hub ended by itself, exit code -9"):
        while True:
            hub.process.receive()
    hub.process.close()
    with at_work as kernel:  # the page of somebody who is at work, and whose answer reaches the room without a hub
        assert "correct" in kernel.run(first_cell() + SOLVES, within=WITHIN_S).text
    wait_for_board(seats, "03", "0.1 name the event: solved")
    seats.hub = seats.start()
    assert seats.codes == codes
    again = seats.hub.call("GET", "/user/seat-01/api/kernels")
    assert [kernel["id"] for kernel in again] == [kernel["id"] for kernel in kernels]
    assert "an answer" in seats.hub.run("seat-01", "print(open('kept.txt').read())", within=WITHIN_S)


def test_the_check_of_the_day_before_reckons_with_what_one_seat_takes(seats: Seats, hub: HubApi) -> None:
    for_few, for_many = (Workshop(seats=number, folder=seats.folder, isolation="none") for number in (2, 100_000))
    cell, memory = one_seat(hub, for_few)
    assert (cell.state, memory.state) == ("ok", "ok")
    assert "three servers" in cell.seen
    assert re.search(r"[\d.]+ GiB for 2 seats", memory.seen)
    *_, memory = one_seat(hub, for_many)
    assert memory.state == "fault"
    assert re.search(r"a bigger machine, or \d+ seats here", memory.fix)


def test_the_proxy_speaks_tls_where_it_has_a_certificate(tmp_path: Path) -> None:
    made, ports = Authority("workshop").issue(tmp_path, "127.0.0.1"), PortBlock.reserve()
    port, orders = ports.take(), ports.take()
    given = {"ip": "127.0.0.1", "port": port, "api-ip": "127.0.0.1", "api-port": orders, "error-target": "http://x"}
    given |= {"ssl-cert": made.certificate, "ssl-key": made.key}
    command = [sys.executable, "-m", "mesh_lab.seats.proxy", *(f"--{name}={value}" for name, value in given.items())]
    variables = {"CONFIGPROXY_AUTH_TOKEN": "a token", "PYTHONPATH": str(ROOT)}
    proxy = ChildProcess(command, name="the proxy", environment=variables).start()
    trust, deadline = ssl.create_default_context(cafile=made.authority), time.monotonic() + WITHIN_S
    try:
        while True:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{port}/_chp_healthz", context=trust) as answer:
                    assert json.load(answer) == {"status": "OK"}
                break
            except urllib.error.URLError:
                assert proxy.pid is not None, proxy.log()
                assert time.monotonic() < deadline, proxy.log()
                time.sleep(0.1)  # pacing: a loop with a deadline
        for token in ("", "guessed"):
            request = urllib.request.Request(f"http://127.0.0.1:{orders}/api/routes")
            request.add_header("Authorization", f"token {token}")
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(request)
    finally:
        proxy.close()
        ports.release()


@pytest.mark.skipif("MESH_LAB_TEST_SEATS" not in os.environ, reason="a second hub; MESH_LAB_TEST_SEATS=3 has it tried")
def test_the_check_of_the_day_before_tries_one_seat_over_tls(tmp_path: Path) -> None:
    made = Authority("workshop").issue(tmp_path, "127.0.0.1")
    options = ["--seats", "20", "--check", "--isolation", "none", "--certificate", made.certificate, "--key", made.key]
    seats = Seats(tmp_path / "check", Python(Path(sys.executable), {"PYTHONPATH": str(ROOT)}, False), *options)
    seats.process.start()
    found = {}
    with pytest.raises(ProcessEndedError, match="exit code 0"):
        while line := seats.process.receive().decode():
            state, _, said = line.partition("  ")
            found[said.strip().partition(": ")[0]] = (state.strip(), said.strip())
    seats.end()
    faults = {what: said for what, (state, said) in found.items() if state == "fault"}
    assert faults == {}
    assert found["hub"][1].startswith("hub: https://127.0.0.1:")
    assert "three servers" in found["one seat"][1]
    assert re.search(r"[\d.]+ GiB for 20 seats", found["memory"][1])
    assert "your files, too" in found["note well"][1]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [], "the check left something"


def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "lines"
    lines.write_text("one\n")
    here = Workshop(seats=2, folder=tmp_path / "seats", isolation="none", port=9)

    def refusal(workshop: Workshop) -> str:
        with pytest.raises(SettingsError) as refused, serving(workshop):
            pass
        return str(refused.value)

    assert "expected an address such as" in refusal(replace(here, address="localhost"))
    assert "expected one address of this machine" in refusal(replace(here, address="0.0.0.0"))
    assert "expected up to 199" in refusal(replace(here, seats=200))
    assert "--certificate and --key belong together" in refusal(replace(here, certificate=lines))
    assert "has 1 lines, expected one for each of 2 seats" in refusal(replace(here, lines=lines))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refusal(replace(here, port=port))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "seats would run as you" in refusal(replace(here, isolation=None))
    assert "needs root on Linux" in refusal(replace(here, isolation="users"))
