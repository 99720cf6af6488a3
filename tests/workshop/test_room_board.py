"""The board in a real browser, with seats in every state, and names and words that would like to be HTML."""

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from chromium import browser_path, page  # noqa: F401 - fixtures
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from mesh_lab.workshop.board import Page
from mesh_lab.workshop.plan import Plan
from mesh_lab.workshop.protocol import Report
from mesh_lab.workshop.room import Seat

pytestmark = pytest.mark.needs("browser")
EVIL = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>\"'&"


def _room() -> SimpleNamespace:
    now, seen = time.time(), time.monotonic()
    exercises = {f"{chapter}.{number}": f"task {EVIL}" for chapter in range(4) for number in (1, 2, 3)}
    seats = {f"{number:02}": Seat(f"{number:02}") for number in range(1, 21)}
    for number, seat in list(seats.items())[:-1]:
        seat.key, seat.name, seat.heard = "U", f"{number} {EVIL}", seen
        seat.reports = {
            task: Report(task, state, f"{EVIL} {state}", 2, now - 300, now - at)
            for at, (task, state) in enumerate(zip(exercises, ("not yet", "at it", "solved", "solved"), strict=False))
        }
    seats["02"].heard = seen - 60
    seats["03"].back = seen
    seats["04"].reports["hand"] = Report("hand", "up", EVIL)
    seats["05"].dropped = 7
    seats["06"].heard = None
    # Forty minutes ago; three exercises are due, of which nobody has solved the last, and the next is in five minutes.
    due = {"0.3": 20.0, "1.1": 30.0, "1.2": 40.0, "2.1": 45.0, "2.2": 90.0}
    plan = SimpleNamespace(plan=Plan(due), began=now - 40 * 60)
    facts = [f"20 stores {EVIL}"]
    joint = SimpleNamespace(
        asked=f"How many {EVIL}?", guessing=True, guesses=lambda: Counter({EVIL: 12, "0": 3}),
        together=SimpleNamespace(facts=lambda: facts),
    )  # fmt: skip
    return SimpleNamespace(
        name=f"Room {EVIL}",
        exercises=exercises,
        seats=seats,
        opened="02",
        since=seen - 3_600,
        mesh=SimpleNamespace(servers={"n1": SimpleNamespace(state="running"), "n2": SimpleNamespace(state="killed")}),
        **vars(plan),
        **vars(joint),
    )


@pytest.fixture
def address() -> Iterator[str]:
    """Of a page, whose loop runs in a thread: the browser's driver takes this one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def serve() -> Page:
        return Page(_room())

    served = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    yield served.address
    served.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_the_board_shows_every_state_and_no_name_is_html(page: Tab, address: str) -> None:  # noqa: F811
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        page.wait_for_selector("td.solved")
        assert page.evaluate("window.broken") is None
        assert page.locator("#board img, #board script").count() == 0
        assert page.locator("td.who").first.inner_text() == f"01 {EVIL}"
        for state, count in (
            ("td.solved", 38),
            ("td.not", 19),
            ("td.at", 19),
            ("span.lost", 2),
            ("span.late", 2),
            ("td.late", 1),
        ):
            assert page.locator(state).count() == count, state
        assert [page.locator(f"span.{one}").inner_text() for one in ("back", "joined", "hand")] == [
            "back", "joined", "hand up"
        ]  # fmt: skip
        facts = "19 of 20 joined · 1 late · 1 lost · 1 back · median 2 of 12 solved"
        assert f"{facts} · agenda: median 2 of 5, 3 due, 1 behind · 1 hand up · server n2 is killed" in page.inner_text(
            "body"
        )
        agenda = page.locator("tr.plan")
        assert [agenda.get_by_text(sign, exact=True).count() for sign in "●▸○"] == [3, 1, 1]
        assert re.search(r"next on the agenda: 2.1, by \d\d:\d\d", agenda.inner_text())
        assert f"12 guess {EVIL} · 3 guess 0" in page.inner_text("body")
        assert f"20 stores {EVIL}" in page.inner_text("body")
        assert page.locator("th.open").inner_text() == "02"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"
        assert dark is (scheme == "dark")
    assert said == [], "nothing was refused by the page's policy, since nothing was tried"
    state = page.locator("#state")
    page.context.set_offline(True)
    expect(state).to_have_text("The room's desk does not answer; this is how it was.", timeout=30_000)
    page.context.set_offline(False)
    expect(state).to_have_text("", timeout=30_000)
