"""A seat's side of the room: it joins by a line, and what its checks say is reported in the background.

A verdict is noted in a small database of the seat's own, and sent until the room's desk has stored it, also by a kernel
that starts later. A check waits for none of that, and none of it makes a check fail: where the room is away, the next
cell says so, once.
"""

import asyncio
import atexit
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg

from mesh_lab.errors import LoginRefusedError, MeshLabError, PublishRefusedError, StoreError
from mesh_lab.measure.local_store import data_dir, open_store
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.connection import close, connect, first_reply
from mesh_lab.patterns.wait import retry
from mesh_lab.processes import new_event_loop
from mesh_lab.security.certificates import write_private
from mesh_lab.security.tokens import Key, credentials, decode_token
from mesh_lab.tls import ClientContext, TlsFiles
from mesh_lab.workshop import protocol
from mesh_lab.workshop.protocol import Hint, Knock, Line, News, Pass, Report, State

CARD, CREDENTIALS, AUTHORITY, KEY, STORE = "room.json", "room.creds", "room.crt", "room.key", "room"
STORE_CREDENTIALS, STORE_FOLDER = "room-store.creds", "room-store"
TABLE = "reports (number TEXT PRIMARY KEY, record TEXT NOT NULL, sent INTEGER NOT NULL)"
SHOWN = "hint"
"""In place of an exercise's number, where the record is the number of the last hint that was shown."""
REPLY_WITHIN_S, CONNECT_WITHIN_S, AWAY_AFTER_S, END_WITHIN_S = 3.0, 5.0, 6.0, 2.0


class Card(msgspec.Struct, frozen=True):
    """Where this seat is: its number and name, the room's name, and the servers."""

    seat: str
    name: str
    room: str
    servers: list[str]
    leaves: list[str] = []
    """Where the seat's store joins the room as a leaf node."""


def card(home: Path | None = None) -> Card | None:
    """Return where this machine's seat is, or that of another directory; ``None`` if it has joined no room.

    Raises:
        StoreError: The directory of this machine's results cannot be used, or the card in it cannot be read.
    """
    path = (home or data_dir()) / CARD
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card) if path.exists() else None
    except (OSError, msgspec.DecodeError) as err:
        raise StoreError(f"{path} cannot be read: {err}; run mesh-lab join again") from err


async def join(text: str, *, name: str = "") -> Card:
    """Join the room of a line, or ask again, and store what lets this seat in; another room is left.

    The seat's key is made here, and its seed stays here. Files of mode 0600 hold all of it.

    Args:
        text: The line.
        name: The name that the board shows, up to 40 characters; empty for the one so far, or the seat's number.

    Raises:
        SettingsError: The text is no line.
        LoginRefusedError: The room is there and refuses the line; the message says why.
        NotReadyError: No server answers.
        nats.errors.Error: The servers are there, and the trainer's desk does not answer.
        StoreError: The directory of this machine's results cannot be used.
    """
    line, home = Line.parse(text), data_dir()
    known = home / AUTHORITY
    if not (known.exists() and known.read_text() == line.authority and (home / KEY).exists()):
        leave()  # and with it, the name there
        write_private(home / KEY, Key.new("user").seed.encode())  # kept before it is sent: no line for a lost key
        write_private(known, line.authority.encode())
    key, before = Key.of((home / KEY).read_text()), card()
    name = protocol.clean(name, protocol.NAME_CHARACTERS) or ("" if before is None else before.name)
    number = str(decode_token(line.credentials.splitlines()[1])["name"]).removeprefix("door-")
    options = ConnectOptions(servers=list(line.servers), tls=ClientContext(TlsFiles(str(known))))
    door, inbox = RawCredentials(line.credentials), f"_INBOX_door-{number}"
    client = await connect(options, name="join", user_credentials=door, inbox_prefix=inbox)
    try:
        knock = msgspec.json.encode(Knock(key.public, name))
        asking = partial(client.request, f"room.join.{number}", knock, timeout=REPLY_WITHIN_S)
        reply = msgspec.json.decode((await retry(asking, within=10.0)).data, type=Pass)
    finally:
        await close(client)
    if reply.error:
        raise LoginRefusedError(reply.error)
    found = Card(reply.seat, reply.name, reply.room, list(line.servers), reply.leaves)
    with open_store(STORE, TABLE) as database:  # what it solved so far is news to a room that it comes back to
        database.execute("UPDATE reports SET sent = 0 WHERE number != ?", (SHOWN,))
    write_private(home / CREDENTIALS, credentials(reply.token, key).encode())
    write_private(home / STORE_CREDENTIALS, credentials(reply.store, key).encode())
    write_private(home / CARD, msgspec.json.encode(found))
    return found


def leave() -> None:
    """Forget the room, and what was reported to it; the exercises that were solved stay solved."""
    for name in (CARD, CREDENTIALS, STORE_CREDENTIALS, AUTHORITY, KEY, f"{STORE}.sqlite"):
        (data_dir() / name).unlink(missing_ok=True)
    shutil.rmtree(data_dir() / STORE_FOLDER, ignore_errors=True)


class Reporter:
    """Sends a seat's reports from a thread with an event loop of its own, which no cell can block."""

    def __init__(self, card: Card) -> None:
        """Begin; it ends with the process, or when the seat is another one."""
        self.card = card
        self._home = data_dir()
        self._loop, self._wake, self._over = new_event_loop(), asyncio.Event(), False
        self._unsent, self._hints, self._shown = True, list[Hint](), 0
        self._trouble, self._failing_since, self._told = "", 0.0, False
        self._thread = threading.Thread(target=self._run, name="room", daemon=True)
        self._thread.start()
        atexit.register(self.end)

    def note(self, number: str, state: State, words: str = "") -> None:
        """Report a verdict, or a hand; returns at once and never raises."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(
                self._keep, number, state, protocol.clean(words, protocol.WORDS_CHARACTERS), time.time()
            )

    def news(self) -> list[str]:
        """Return what the participant has to be told: that the room is away, or hints that no kernel has shown."""
        said = []
        if self._trouble and not self._told and time.monotonic() - self._failing_since > AWAY_AFTER_S:
            self._told = True
            said.append(self._trouble)
        if new := [hint for hint in self._hints if hint.number > self._shown]:
            self._shown, before = new[-1].number, self._shown
            with suppress(StoreError):  # then it is shown by each kernel, which is better than by none
                before = max(before, self._claim(self._shown))
            said += [f"From the trainer: {hint.words}" for hint in new if hint.number > before]
        return said

    def end(self) -> None:
        """Stop, after what it does at this moment; what is not sent yet is sent by the next kernel."""
        self._over = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(END_WITHIN_S)
        atexit.unregister(self.end)

    @property
    def alive(self) -> bool:
        """Whether it still reports."""
        return self._thread.is_alive() and not self._over

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._follow())
        finally:
            self._loop.close()

    async def _follow(self) -> None:
        client: Client | None = None
        try:
            while not self._over and (self._home / CARD).exists():
                try:
                    if client is None or client.is_closed:  # nats-py gives up where its user was revoked
                        client = await self._connect()
                    await self._exchange(client)
                    self._trouble, self._told = "", False
                except (nats.errors.Error, MeshLabError, OSError) as err:  # whatever it is, it is tried again
                    self._fail(err)
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), protocol.BEAT_S)
        finally:
            if client is not None:
                await close(client)

    async def _connect(self) -> Client:
        tls, own = ClientContext(TlsFiles(str(self._home / AUTHORITY))), str(self._home / CREDENTIALS)
        options = ConnectOptions(servers=self.card.servers, user_credentials=own, tls=tls)
        return await connect(options, within=CONNECT_WITHIN_S, name=f"seat {self.card.seat}")

    async def _exchange(self, client: Client) -> None:
        """Send what the desk has not confirmed, or nothing, and take in what it replies."""
        rows: list[tuple[str, str]] = []
        if self._unsent:
            with open_store(STORE, TABLE) as database:
                waiting = "SELECT number, record FROM reports WHERE sent = 0 AND number != ? LIMIT ?"
                rows = database.execute(waiting, (SHOWN, protocol.MOST_REPORTS)).fetchall()
        self._unsent = False
        try:
            said = [msgspec.json.decode(record, type=Report) for _, record in rows]
            subject, data = f"room.desk.{self.card.seat}", msgspec.json.encode(said)
            reply = await first_reply(client, subject, data, accept=_news, within=REPLY_WITHIN_S)
            if reply.error:
                raise PublishRefusedError(reply.error)
            if rows:
                with open_store(STORE, TABLE) as database:
                    # One that was noted meanwhile is sent again, as the last of all: two kernels may cross.
                    mark = "UPDATE reports SET sent = (record = ?) WHERE number = ?"
                    database.executemany(mark, [(record, number) for number, record in rows])
        finally:
            self._unsent |= bool(rows)
        self._hints = reply.hints

    def _fail(self, error: Exception) -> None:
        if not self._trouble:
            self._failing_since = time.monotonic()
        kept = "what you solve is kept here and sent later"
        if isinstance(error, StoreError):
            self._trouble = f"The room is not told of your answers: {error}"
        elif isinstance(error, LoginRefusedError):
            self._trouble = f"The room lets this seat in no more; {kept}. Ask for a new line, and run mesh-lab join."
        elif isinstance(error, PublishRefusedError):
            self._trouble = f"The room does not take this seat's answers: {error}; {kept}."
        else:
            self._trouble = f"The room does not answer; {kept}."

    def _keep(self, number: str, state: State, words: str, now: float) -> None:
        """Store a report; what is solved stays solved, and a check of nothing says nothing new."""
        try:
            with open_store(STORE, TABLE) as database:
                row = database.execute("SELECT record FROM reports WHERE number = ?", (number,)).fetchone()
                old = None if row is None else msgspec.json.decode(row[0], type=Report)
                if (
                    number not in (protocol.HAND, protocol.GUESS)
                    and old is not None
                    and (old.state == "solved" or state == "at it")
                ):
                    return
                tries = (0 if old is None else old.tries) + (state in ("not yet", "solved"))
                report = Report(number, state, words, tries, now if old is None else old.began, now)
                new = (number, msgspec.json.encode(report).decode())
                database.execute("INSERT OR REPLACE INTO reports (number, record, sent) VALUES (?, ?, 0)", new)
        except StoreError as err:
            self._fail(err)
            return
        self._unsent = True
        self._wake.set()

    def _claim(self, number: int) -> int:
        """Note that hints up to a number are shown, and return up to which they were before."""
        with open_store(STORE, TABLE) as database:
            row = database.execute("SELECT record FROM reports WHERE number = ?", (SHOWN,)).fetchone()
            before = 0 if row is None else int(row[0])
            new = (SHOWN, str(max(before, number)))
            database.execute("INSERT OR REPLACE INTO reports (number, record, sent) VALUES (?, ?, 1)", new)
        return before


_reporter: Reporter | None = None


def reporter() -> Reporter | None:
    """Return what reports for this process, begun with the first call; ``None`` where no room was joined."""
    global _reporter
    try:
        here = card()
    except StoreError:  # whatever stores something says so
        here = None
    if _reporter is not None and (here != _reporter.card or not _reporter.alive):
        _reporter.end()
        _reporter = None
    if _reporter is None and here is not None:
        _reporter = Reporter(here)
    return _reporter


def _news(msg: Msg) -> News | None:
    try:
        return msgspec.json.decode(msg.data, type=News)
    except msgspec.DecodeError as err:
        return News(error=f"a reply that is not the desk's: {err}")
