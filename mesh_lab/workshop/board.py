"""The board: seats by exercises, drawn as HTML for a projector's page and for the trainer's notebook alike.

Names and words are the seats' own, and untrusted: each is escaped where it is drawn, and the page loads and runs
nothing but what :class:`Page` itself serves.
"""

import asyncio
import hmac
import html
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import TimeoutError as LateError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from mesh_lab.servers.start import LOOPBACK
from mesh_lab.workshop.protocol import Report
from mesh_lab.workshop.room import Room, Seat, chapter_of

DRAWN_WITHIN_S = 5.0
SIGNS = {"": "", "at it": "…", "not yet": "✗", "solved": "✓"}
"""A state is told by its sign as well as by its colour."""
DUE, NEXT, LATER = "●", "▸", "○"
PAGE = Path(__file__).with_name("board.html").read_text(encoding="utf-8")
STYLE = PAGE[PAGE.index("<style>") : PAGE.index("</style>")] + "</style>"
"""The page's own, which the drawing brings along, for the notebook."""


def draw(room: Room) -> str:
    """Return the board as it is now, as a piece of HTML."""
    now, seats = time.monotonic(), list(room.seats.values())
    there = {seat.number: seat.presence(room.since, now) for seat in seats}
    chapters = [(chapter, list(group)) for chapter, group in groupby(room.exercises, key=chapter_of)]
    joined = [seat for seat in seats if seat.key]
    counts = Counter(there.values())
    middle = f"{median(seat.solved() for seat in joined):g}" if joined else "0"
    hands = sum(seat.hand is not None for seat in seats)
    now_due = set(room.plan.by((time.time() - room.began) / 60)) if room.plan and room.began else set[str]()
    facts = [
        f"{len(joined)} of {len(seats)} joined",
        *(f"{counts[state]} {state}" for state in ("late", "lost", "back") if counts[state]),
        f"median {middle} of {len(room.exercises)} solved",
        *_beside_the_plan(room, joined, now_due),
        f"{hands or 'no'} hand{'s' * (hands > 1)} up",
        *(f"server {name} is {one.state}" for name, one in room.mesh.servers.items() if one.state != "running"),
    ]
    heads = "".join(
        f'<th class="gap"></th><th colspan="{len(tasks)}" class="c{" open" * (chapter == room.opened)}">{chapter}</th>'
        for chapter, tasks in chapters
    )
    rows = "".join(_row(seat, there[seat.number], room, chapters) for seat in seats)
    sums = "".join(
        '<td class="gap"></td>'
        + "".join(_sum(task, _solved(joined, task), len(joined), due=task in now_due) for task in tasks)
        for _, tasks in chapters
    )
    return (
        f'<div class="room">{STYLE}<b>{_text(room.name)}</b> <span class="m">{" · ".join(facts)}</span>{_joint(room)}'
        f'<table><thead><tr><th>seat</th><th></th><th>solved</th>{heads}<th class="gap"></th><th>now</th></tr>'
        f"{_plan(room, chapters, now_due)}</thead><tbody>{rows}"
        f'<tr><td class="m" colspan="3">solved by seats</td>{sums}<td></td><td></td></tr>'
        "</tbody></table></div>"
    )


def _joint(room: Room) -> str:
    """Return the trainer's question with everybody's guesses, as counts, and what the seats do together."""
    # With a word between them: a guess is often a number, too.
    most = room.guesses().most_common(8)
    guesses = " · ".join(f"<b>{count}</b> guess{'es' * (count == 1)} {_said(words)}" for words, count in most)
    asked = f"<div><b>{_text(room.asked)}</b> {guesses or 'no guess yet'}{'' if room.guessing else ' (closed)'}</div>"
    facts = room.together.facts() if room.together is not None else []
    return asked * bool(room.asked) + "".join(f'<div class="m">{_text(fact)}</div>' for fact in facts)


def _beside_the_plan(room: Room, joined: list[Seat], now_due: set[str]) -> list[str]:
    """Return how many of the agenda's exercises the median seat has solved, and how many it should have."""
    if room.plan is None:
        return []
    if not room.began:
        return ["the agenda has not begun"]
    middle = median(sum(_solved([seat], task) for task in room.plan.due) for seat in joined) if joined else 0
    ahead = middle - len(now_due)
    words = f'<span class="late">{-ahead:g} behind</span>' if ahead < 0 else f"{ahead:g} ahead" if ahead else "on time"
    return [f"agenda: median {middle:g} of {len(room.plan.due)}, {len(now_due)} due, {words}"]


def _plan(room: Room, chapters: list[tuple[str, list[str]]], now_due: set[str]) -> str:
    """Return a row that marks the agenda's exercises: those due by now, the next one, and those that follow."""
    if room.plan is None or not room.began:
        return ""
    times = {task: clock(room.began + 60 * minutes) for task, minutes in room.plan.due.items()}
    after = next((task for task in times if task not in now_due), None)
    signs = {task: DUE if task in now_due else NEXT if task == after else LATER for task in times}
    cells = "".join(
        '<td class="gap"></td>'
        + "".join(f'<td class="c" title="{times.get(task, "")}">{signs.get(task, "")}</td>' for task in tasks)
        for _, tasks in chapters
    )
    words = "all of the agenda is due" if after is None else f"next on the agenda: {_text(after)}, by {times[after]}"
    cells += f'<td class="gap"></td><td class="now m">{words}</td>'
    return f'<tr class="plan"><td class="m" colspan="3">agenda</td>{cells}</tr>'


def _sum(task: str, solved: int, seats: int, *, due: bool) -> str:
    """Return a cell with the number of seats that solved an exercise, marked where it is due and most have not."""
    late = " late" * (due and 2 * solved < seats)
    return f'<td class="c{late}" title="{_text(task)}">{solved or "0" * bool(late)}</td>'


def clock(moment: float) -> str:
    """Return hours and minutes of a moment, as the clock on the wall shows them."""
    return time.strftime("%H:%M", time.localtime(moment))


def _row(seat: Seat, there: str, room: Room, chapters: list[tuple[str, list[str]]]) -> str:
    cells = "".join(
        '<td class="gap"></td>' + "".join(_cell(task, room.exercises[task], seat.reports.get(task)) for task in tasks)
        for _, tasks in chapters
    )
    words = "" if there == "here" else f'<span class="{there}">{there}</span> '
    if seat.hand is not None:
        words += f'<span class="hand">hand up</span> {_said(seat.hand)} '
    tried = [report for number, report in seat.reports.items() if number in room.exercises]
    if latest := max(tried, key=lambda report: report.at, default=None):
        words += f'<span class="m">{_text(latest.number)} {latest.state}, {_minutes(latest)}</span> '
        words += _said(latest.words) if latest.state == "not yet" else ""
    flood = f' <span class="lost">sends too much ({seat.dropped} dropped)</span>' if seat.dropped else ""
    return (
        f'<tr><td class="m">{seat.number}</td><td class="who">{_said(seat.name)}</td><td>{seat.solved()}</td>{cells}'
        f'<td class="gap"></td><td class="now"><div>{words}{flood}</div></td></tr>'
    )


def _cell(number: str, title: str, report: Report | None) -> str:
    state = "" if report is None else report.state
    about = f"{number} {title}: {state or 'not begun'}"
    if report is not None:
        about += (
            f", {report.tries} {'try' if report.tries == 1 else 'tries'}, {_minutes(report)}"
            + f": {report.words}" * bool(report.words)
        )
    return f'<td class="e {state.partition(" ")[0]}" title="{_text(about)}">{SIGNS.get(state, "")}</td>'


def _minutes(report: Report) -> str:
    """Return how long it took, or has taken by now; the clock is the seat's, and its beginning is when it was seen."""
    end = report.at if report.state == "solved" else max(time.time(), report.at)
    return f"{max(0.0, end - report.began) / 60:.0f} min"


def _solved(seats: list[Seat], task: str) -> int:
    return sum((report := seat.reports.get(task)) is not None and report.state == "solved" for seat in seats)


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _said(text: str) -> str:
    """Return what a seat wrote, set apart from what is around it whichever way it is written."""
    return f"<bdi>{_text(text)}</bdi>"


class Page:
    """Serves the board on this machine to whoever has its address, which holds a token; nothing can be done there.

    Attributes:
        address: Where it is.
    """

    def __init__(self, room: Room) -> None:
        """Begin to serve; needs a running event loop, the room's."""
        token, loop = secrets.token_urlsafe(24), asyncio.get_running_loop()

        async def drawn() -> str:  # in the room's loop, which changes what is drawn
            return draw(room)

        def now() -> str:
            return asyncio.run_coroutine_threadsafe(drawn(), loop).result(DRAWN_WITHIN_S)

        self._server = ThreadingHTTPServer((LOOPBACK, 0), _handler(token, now, room.name))
        self._server.daemon_threads = True
        self.address = f"http://{LOOPBACK}:{self._server.server_port}/{token}/"
        Thread(target=self._server.serve_forever, name="board", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(token: str, now: Callable[[], str], name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Reply with the page, or with the board as it is now."""
            first, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
            if not hmac.compare_digest(first.encode(), token.encode()) or rest not in ("", "now"):
                self._reply(
                    404, "Not here. The whole address, token included, is where the trainer's command printed it."
                )
            elif rest == "now":
                try:
                    self._reply(200, now())
                except (LateError, RuntimeError) as err:
                    self._reply(503, f"the desk does not answer: {_text(repr(err))}")
            else:
                nonce = secrets.token_urlsafe(16)
                self._reply(200, PAGE.replace("NONCE", nonce).replace("NAME", _text(name)), nonce)

        def _reply(self, status: int, text: str, nonce: str = "none") -> None:
            body = text.encode(errors="replace")
            policy = f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
            headers = {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(body)),
                "Content-Security-Policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            }
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing: a line would hold the token."""

    return Handler
