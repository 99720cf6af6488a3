"""What a seat may not do in the room, what refuses it, and that what it may do still works.

What NATS has no limit for: the rate at which a user publishes, and how many of an account's connections one user takes.
A seat that floods is cut short at the desk, which takes so many requests of each seat and drops the rest, and the
trainer, whom the board tells of it, resets the seat: that puts it out.
"""

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import nats
import nats.errors
import nats.js.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client, RawCredentials

from mesh_lab.measure.local_store import HOME_VARIABLE
from mesh_lab.patterns.connection import flush
from mesh_lab.patterns.wait import eventually
from mesh_lab.tls import ClientContext, TlsFiles
from mesh_lab.workshop.board import Page, draw
from mesh_lab.workshop.protocol import SEAT_BYTES, SEAT_SUBSCRIPTIONS, Line, News, Report
from mesh_lab.workshop.room import Room
from mesh_lab.workshop.seat import join

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Attacker:
    """Seat 01, with the plain client that whoever has its files can connect."""

    client: Client
    complaints: list[str]

    async def complaint(self) -> str:
        """Return what the servers complained of by now."""
        await flush(self.client)
        said, self.complaints[:] = "; ".join(self.complaints), []
        return said

    async def report(self, *reports: Report, payload: bytes | None = None) -> News:
        """Return what the desk replies to the seat's own reports."""
        data = msgspec.json.encode(reports) if payload is None else payload
        return msgspec.json.decode((await self.client.request("room.desk.01", data, timeout=10.0)).data, type=News)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room() -> AsyncIterator[Room]:
    opened = await Room.open(seats=3, exercises={"2.1": "answer it"})
    yield opened
    await opened.close()


async def _connect(room: Room, home: Path, credentials: str, inbox: str) -> Attacker:
    complaints: list[str] = []

    async def note(error: Exception) -> None:
        complaints.append(str(error))

    client = await nats.connect(
        room.mesh.urls,
        tls=ClientContext(TlsFiles(str(home / "room.crt"))),
        user_credentials=RawCredentials(credentials),
        inbox_prefix=inbox,
        allow_reconnect=False,
        error_cb=note,
    )
    return Attacker(client, complaints)


@pytest_asyncio.fixture(loop_scope="module")
async def attacker(room: Room, home: Path) -> AsyncIterator[Attacker]:
    found = await _connect(room, home, (home / "room.creds").read_text(), "_INBOX_seat-01")
    yield found
    await found.client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for number in ("02", "01"):
            home = tmp_path_factory.mktemp(f"seat-{number}")
            patch.setenv(HOME_VARIABLE, str(home))
            await join(room.lines[int(number) - 1], name=f"seat {number}")
    return home


@pytest.mark.parametrize(
    "subject",
    [
        "room.desk.02",  # another's reports
        "room.join.03",  # another's place
        "$KV.ROOM.02.2.1",  # another's progress, past the desk
        "$KV.ROOM.01.2.1",  # its own, past the desk
        "$KV.ROOM.hints.all",  # the trainer's commands
        "$KV.ROOM.opened",
        "_INBOX_seat-02.1",  # what another is told
        "$JS.API.INFO",
        "$JS.API.STREAM.PURGE.KV_ROOM",
        "$JS.API.DIRECT.GET.KV_ROOM.$KV.ROOM.02.2.1",
        "$SYS.REQ.CLAIMS.UPDATE",
    ],
)
async def test_a_seat_publishes_to_its_own_desk_alone(attacker: Attacker, subject: str) -> None:
    await attacker.client.publish(subject, b'[{"number": "2.1", "state": "solved"}]')
    assert f'permissions violation for publish to "{subject.lower()}"' in (await attacker.complaint()).lower()
    assert (await attacker.report()).error == "", "the control: its own desk"


@pytest.mark.parametrize(
    "subject",
    ["room.desk.02", "room.>", "$KV.ROOM.>", "_INBOX_seat-02.>", "_INBOX_door-03.>", "_INBOX.>", "$SYS.>", ">"],
)
async def test_a_seat_reads_its_own_inbox_alone(attacker: Attacker, subject: str) -> None:
    await attacker.client.subscribe(subject)
    assert f'permissions violation for subscription to "{subject.lower()}"' in (await attacker.complaint()).lower()


async def test_the_desk_sends_no_reply_to_where_the_seat_itself_may_not(room: Room, attacker: Attacker) -> None:
    for victim in ("$KV.ROOM.02.2.1", "$KV.ROOM.hints.all", "_INBOX_seat-02.1", "room.join.03"):
        await attacker.client.publish("room.desk.01", b"[]", reply=victim)
    await attacker.report()  # the desk takes a seat's requests in their order, so it has passed over those
    for key in ("02.2.1", "hints.all"):
        with pytest.raises(nats.js.errors.KeyNotFoundError, match="not found"):
            await room._bucket.get(key)
    assert room.seats["03"].key == ""


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"no json", "the desk cannot read this request"),
        (b'[{"number": "2.1", "state": "ruler"}]', "Invalid enum value 'ruler'"),
        (b'[{"number": "2.1", "state": "solved", "words": "%s"}]' % (b"x" * 301), "length <= 300"),
        (msgspec.json.encode([{"number": "2.1", "state": "up"}] * 51), "length <= 50"),
        (b"[" * 10_000, "the desk cannot read this request"),
    ],
)
async def test_what_is_no_report_is_refused_with_the_reason(attacker: Attacker, payload: bytes, said: str) -> None:
    assert said in (await attacker.report(payload=payload)).error


async def test_a_report_of_an_exercise_that_is_not_there_is_not_stored(room: Room, attacker: Attacker) -> None:
    assert (await attacker.report(Report("9.9", "solved"), Report("who", "solved"))).error == ""
    assert room.seats["01"].reports == {}
    assert room.seats["01"].name == "seat 01"


async def test_whoever_has_a_line_alone_may_ask_for_its_seat_and_nothing_else(room: Room, home: Path) -> None:
    door = await _connect(room, home, Line.parse(room.lines[2]).credentials, "_INBOX_door-03")
    for subject in ("room.desk.03", "room.join.02", "$KV.ROOM.03.2.1", "$JS.API.INFO"):
        await door.client.publish(subject, b"{}")
        assert "permissions violation for publish" in (await door.complaint()).lower(), subject
    await door.client.subscribe("room.>")
    assert "permissions violation for subscription" in (await door.complaint()).lower()
    reply = (await door.client.request("room.join.03", b'{"key": "SU' + b"A" * 54 + b'"}', timeout=5.0)).data
    assert b"is no user's public key" in reply
    await door.client.close()


async def test_without_tls_or_credentials_nobody_is_let_in(room: Room, home: Path) -> None:
    tls = ClientContext(TlsFiles(str(home / "room.crt")))

    async def quiet(error: Exception) -> None:
        """The refusal is what this is about."""

    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await nats.connect(room.mesh.urls, tls=tls, allow_reconnect=False, error_cb=quiet)
    reader, writer = await asyncio.open_connection("127.0.0.1", room.mesh.servers["n1"].port)
    assert b'"tls_required":true' in await reader.readline()
    writer.write(b'CONNECT {"verbose": false}\r\nPING\r\n')
    with contextlib.suppress(ConnectionError):  # it hangs up, or says before that it wants TLS
        assert b"PONG" not in await asyncio.wait_for(reader.read(1_000), 10.0)
    writer.close()


@pytest.mark.parametrize("limit", ["maximum payload exceeded", "maximum subscriptions exceeded"])
async def test_the_servers_hang_up_on_a_seat_that_is_over_its_limits(
    room: Room, attacker: Attacker, limit: str
) -> None:
    with contextlib.suppress(nats.errors.Error, ConnectionError):  # it may be closed before the last of them
        if "payload" in limit:
            await attacker.client.publish("room.desk.01", bytes(SEAT_BYTES + 1))
        for _ in range(SEAT_SUBSCRIPTIONS + 1 if "subscriptions" in limit else 0):
            await attacker.client.subscribe("_INBOX_seat-01.more")
    await eventually(lambda: attacker.client.is_closed, within=10.0)
    await eventually(lambda: limit in _logs(room).lower(), within=5.0)


def _logs(room: Room) -> str:
    return "".join(room.mesh.logs(name, last=None) for name in room.mesh.servers)


async def test_a_flood_of_one_seat_keeps_no_other_waiting_and_is_on_the_board(
    room: Room, attacker: Attacker, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    await join(room.lines[2], name="quiet")
    other = await _connect(room, tmp_path, (tmp_path / "room.creds").read_text(), "_INBOX_seat-03")
    loud = msgspec.json.encode([Report("2.1", "not yet", "x" * 300)])
    for _ in range(20):
        for _ in range(200):
            await attacker.client.publish("room.desk.01", loud, reply="_INBOX_seat-01.none")
        await flush(attacker.client)
    quiet = msgspec.json.encode([Report("2.1", "solved")])
    await other.client.request("room.desk.03", quiet, timeout=10.0)
    assert room.seats["03"].reports["2.1"].state == "solved"
    assert room.seats["01"].dropped > 1_000
    assert "sends too much" in draw(room)
    assert (await room._bucket.status()).values <= 10, "a key for each seat and exercise, not for each message"
    await room.reset("01")
    await eventually(lambda: attacker.client.is_closed, within=10.0)
    await other.client.close()


async def test_the_page_takes_no_commands(room: Room) -> None:
    page = Page(room)
    try:
        assert urlsplit(page.address).hostname == "127.0.0.1"
        for method in ("POST", "PUT", "DELETE"):
            request = urllib.request.Request(page.address, method=method, data=b"reset 01")
            with pytest.raises(urllib.error.HTTPError, match="501"):
                await asyncio.to_thread(urllib.request.urlopen, request, timeout=10)
    finally:
        page.close()
