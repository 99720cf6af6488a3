"""The room: its servers, its keys, and the desk that lets seats in, stores what they report and tells them hints.

The desk is the trainer's process. It alone has the account's key, which signs a token for each seat that joins, and it
alone writes the room's state, the KV bucket ``ROOM``, before it confirms anything to a seat. What it holds in memory
is that state read back: a desk that is killed and opened again from the same folder goes on where it was.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.kv import KeyValue

from mesh_lab.errors import SettingsError, StoreError, UnknownNameError
from mesh_lab.patterns.connection import flush, publish_if_connected, unsubscribe
from mesh_lab.patterns.jetstream_api import MALFORMED
from mesh_lab.patterns.wait import retry
from mesh_lab.security.accounts import NO_JETSTREAM, Account, Operator, announce
from mesh_lab.security.certificates import Authority, write_private
from mesh_lab.security.tokens import Key, credentials, encode_token
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.server import LocalServer
from mesh_lab.servers.start import LOOPBACK, forget, start_mesh
from mesh_lab.workshop import protocol
from mesh_lab.workshop.plan import Plan
from mesh_lab.workshop.protocol import Hint, Knock, Line, News, Pass, Report, Reports
from mesh_lab.workshop.together import EXPORTS, Together

FILE, EVERYWHERE = "room.json", ("0.0.0.0", "::", "*")  # noqa: S104  # they are refused
END = "-----END CERTIFICATE-----\n"
SEATS, MOST_SEATS = 20, 99
BUCKET, OPENED, BEGAN, TO_ALL = "ROOM", "opened", "began", "all"
DAYS = 7
"""For how long certificates and seats are good, whatever becomes of the room."""
LATE_AFTER_S, LOST_AFTER_S, BACK_FOR_S = 600.0, 10.0, 60.0
PENDING_REQUESTS, EACH_S = 64, 0.05
"""Requests of one seat that wait at the desk, further ones are dropped; and how long each takes at least."""
HINTS_KEPT = 5


class Charter(msgspec.Struct):
    """What a room is made of, in the file ``room.json`` of the folder where it is kept: secrets, all of them."""

    name: str
    listen: str
    operator: str
    system: str
    account: str
    authority: str
    doors: list[str] = []
    """For each seat the credentials of the user that may ask to join."""
    revoked: dict[str, int] = {}
    stores: str = ""
    """Of the account in which the seats' stores are."""


@dataclass(slots=True)
class Seat:
    """A place in the room, and what is known of it; moments are those of the monotonic clock."""

    number: str
    key: str = ""  # public, of the one that joined
    name: str = ""
    joined: float = 0.0
    reports: dict[str, Report] = field(default_factory=dict)
    hints: list[Hint] = field(default_factory=list)
    heard: float | None = None  # when it last sent a request to this desk
    back: float | None = None  # when it did so after it had been lost
    dropped: int = 0  # requests, beyond what the desk takes
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def presence(self, opened: float, now: float) -> str:
        """Return whether it is ``expected``, ``late``, ``joined``, ``here``, ``lost`` or ``back``."""
        if not self.key:
            return "late" if now - opened > LATE_AFTER_S else "expected"
        if self.heard is None:
            return "joined"
        if now - self.heard > LOST_AFTER_S:
            return "lost"
        return "here" if self.back is None or now - self.back > BACK_FOR_S else "back"

    @property
    def hand(self) -> str | None:
        """What it wrote beside its raised hand; ``None`` where the hand is down."""
        raised = self.reports.get(protocol.HAND)
        return raised.words if raised is not None and raised.state == "up" else None

    def solved(self) -> int:
        """Return how many exercises it has solved."""
        return sum(report.state == "solved" for report in self.reports.values())


class Room:
    """An open room, with its ``seats`` by number, ``"01"`` and on; :meth:`open` opens one."""

    def __init__(self, charter: Charter, account: Account, stores: Account, mesh: Mesh, keep: Path | None) -> None:
        self.name, self.exercises, self.mesh = charter.name, dict[str, str](), mesh
        self.seats = {number: Seat(number) for number in map(_number, range(1, len(charter.doors) + 1))}
        self.opened, self.since = "", time.monotonic()
        self.plan: Plan | None = None
        self.began = 0.0  # the plan, by the clock on the wall; 0: not yet
        self._charter, self._account, self._stores, self._keep = charter, account, stores, keep
        self.asked, self.guessing = "", False
        self.together: Together | None = None
        self._desks: dict[str, Subscription] = {}
        self._to_all: list[Hint] = []
        self._client: Client
        self._bucket: KeyValue

    @classmethod
    async def open(
        cls,
        *,
        seats: int | None = None,
        exercises: Mapping[str, str],
        plan: Plan | None = None,
        name: str = "the room",
        listen: str | None = None,
        keep: Path | None = None,
    ) -> Self:
        """Start the room's three servers and its desk, and return it when seats may join.

        Args:
            seats: Number of seats, up to 99; a room that was kept may grow, and never shrinks. ``None``: as many
                as were kept, or 20.
            exercises: Titles of the exercises by number.
            plan: What the board compares the room with.
            name: A name for people.
            listen: Address of this machine at which participants' machines reach it; ``None``: this machine alone, or
                what it was when the room was kept.
            keep: Folder in which the room outlives this process, its secrets included; ``None``: nothing is kept.

        Raises:
            SettingsError: The seats are too many, the address is none of one network, or the folder is not a room's.
            StoreError: The folder cannot be used.
            MeshLabError: What :func:`~mesh_lab.servers.start.start_mesh` raises.
        """
        charter = _charter(keep, protocol.clean(name, protocol.NAME_CHARACTERS), seats, listen)
        operator = Operator(charter.name, Key.of(charter.operator))
        operator.system.key = Key.of(charter.system)
        room = {"conn": 10 * len(charter.doors) + 40, "subs": 2_000, "payload": 65_536, "streams": 20, "consumer": 200}
        account = Account("ROOM", operator.key, Key.of(charter.account), limits=room, revoked=charter.revoked)
        account.exports, operator.lab = EXPORTS, account
        # No JetStream there: what the servers' API answers could otherwise be sent to where the sender may not.
        few = {"conn": 10 * len(charter.doors) + 40, "subs": 2_000, "payload": 65_536, **NO_JETSTREAM}
        few["leaf"] = few["conn"]
        stores = Account("STORES", operator.key, Key.of(charter.stores), limits=few, revoked=dict(charter.revoked))
        stores.imports = [{**export, "account": account.public} for export in EXPORTS]
        operator.accounts.append(stores)
        _save(charter, keep)
        authority = Authority(charter.name, days=DAYS, pem=charter.authority)
        where: dict[str, Any] = {"listen": charter.listen, "leaf_nodes": True, "keep": keep, "within": 60.0}
        mesh = await start_mesh(servers=3, backend="local", operator=operator, tls=authority, **where)
        forget(mesh)  # no exercise is tried on it
        opened = cls(charter, account, stores, mesh, keep)
        opened.exercises.update(exercises)
        opened.plan = plan
        try:
            await opened._begin()
        except BaseException:
            await mesh.close()
            raise
        return opened

    @property
    def lines(self) -> list[str]:
        """For each seat the line with which it joins."""
        servers = tuple(f"tls://{urlsplit(url).netloc}" for url in self.mesh.urls)
        authority = self._charter.authority.partition(END)[0] + END  # without its key
        return [Line(servers, authority, door).text() for door in self._charter.doors]

    @property
    def leaves(self) -> list[str]:
        """Where stores join."""
        servers = [server for server in self.mesh.servers.values() if isinstance(server, LocalServer)]
        return [f"tls://{server.host}:{server.ports.leafnodes}" for server in servers]

    async def hint(self, words: str, seat: str | None = None) -> None:
        """Send a hint to one seat, or to all; it is shown with the next cell that runs there.

        Raises:
            UnknownNameError: There is no such seat.
            nats.errors.Error: The hint could not be stored; nobody is shown it.
        """
        hints = self._to_all if seat is None else self._seat(seat).hints
        number = max(time.time_ns() // 1_000_000, *(one.number + 1 for one in hints), 0)
        new = [*hints, Hint(number, protocol.clean(words, protocol.WORDS_CHARACTERS))][-HINTS_KEPT:]
        await self._put(f"hints.{seat or TO_ALL}", new)
        hints[:] = new

    async def open_chapter(self, number: str) -> None:
        """Open a chapter for all: the board marks it, and each seat is told. Raises as :meth:`hint`.

        Raises:
            UnknownNameError: No exercise belongs to a chapter of that number.
        """
        chapters = sorted({chapter_of(exercise) for exercise in self.exercises})
        if (number := number.zfill(2)) not in chapters:
            raise UnknownNameError(f"no chapter {number!r}; there are {', '.join(chapters)}")
        await self._put(OPENED, number)
        self.opened = number
        await self.hint(f"Chapter {number} is open.")

    async def begin(self, at: float) -> None:
        """Let the plan begin at a moment, in seconds since 1970. Raises as :meth:`hint`."""
        await self._put(BEGAN, at)
        self.began = at

    async def lower(self, seat: str) -> None:
        """Take a raised hand as seen.

        Raises as :meth:`hint`.

        Raises:
            UnknownNameError: That seat has no hand up.
        """
        found = self._seat(seat)
        if found.hand is None:
            up = ", ".join(number for number, one in self.seats.items() if one.hand is not None) or "none"
            raise UnknownNameError(f"seat {seat} has no hand up; with one up: {up}")
        async with found.busy:
            await self._store(found, Report(protocol.HAND, "down"))

    async def reset(self, seat: str) -> str:
        """Clear a seat, disconnect whoever has it for good, and return the new line with which it is joined again.

        Raises as :meth:`hint`.
        """
        found, at = self._seat(seat), list(self.seats).index(seat)
        for key in (found.key, _public(self._charter.doors[at])):
            if key:
                self._charter.revoked[key] = self._stores.revoked[key] = int(time.time()) + 1
        self._charter.doors[at] = _door(self._account.key, seat)
        _save(self._charter, self._keep)
        await self._announce()
        await flush(self._client)  # what the old one still sent is here by now, and goes with the subscription
        await self._serve(found)
        async with found.busy:
            for key in ("who", *found.reports):
                await self._delete(f"{seat}.{key}")
            await self._delete(f"hints.{seat}")
            self.seats[seat] = Seat(seat)
        return self.lines[at]

    async def ask(self, words: str) -> None:
        """Ask everybody for a guess; the board shows how many guess what. Raises as :meth:`hint`.

        Guesses are taken until :attr:`guessing` is false again, as from the next fault on.
        """
        for seat in self.seats.values():
            async with seat.busy:
                if seat.reports.pop(protocol.GUESS, None) is not None:
                    await self._delete(f"{seat.number}.{protocol.GUESS}")
        self.asked, self.guessing = protocol.clean(words, protocol.WORDS_CHARACTERS), True
        await self.hint(f'{self.asked} Guess first: guess("…")')

    async def begin_together(self) -> Together:
        """Return what the seats do together; the first call makes its streams. Raises as :meth:`Together.open`."""
        if self.together is None:
            together = Together(self.mesh, self._client, self._stores, self._announce)
            await together.open()
            self.together = together
        return self.together

    def guesses(self) -> Counter[str]:
        """Return how many seats guess what."""
        found = [
            seat.reports[protocol.GUESS].words.casefold()
            for seat in self.seats.values()
            if protocol.GUESS in seat.reports
        ]
        return Counter(found)

    async def revive(self, server: str) -> None:
        """Start a server again, and return when it is ready; raises as ``Mesh.restart``."""
        await self.mesh.restart(server)
        await self._announce()  # whom the others refuse, this one may have on its disk as let in

    def taken(self, seat: str) -> Seat:
        """Return a seat that somebody has; UnknownNameError if nobody has, or there is none of that number."""
        if not (found := self._seat(seat)).key:
            raise UnknownNameError(f"nobody has taken seat {seat} yet; expected one that has joined")
        return found

    async def cut(self, seat: str, *, mend: bool = False) -> None:
        """Cut the link of a seat's store, or mend it.

        Raises:
            UnknownNameError: There is no such seat, or nobody has taken it.
            MeshLabError: Not every server could be told.
        """
        together, found = await self.begin_together(), self.taken(seat)
        await (together.mend if mend else together.cut_link)(seat, found.key)

    async def close(self) -> None:
        """Let everybody go and end the servers; what was kept stays."""
        if self.together is not None:
            await self.together.close()
        await self.mesh.close()

    async def _announce(self) -> None:
        """Let every server that runs know who is let in."""
        running = sum(server.state == "running" for server in self.mesh.servers.values())
        async with await self.mesh.connect(system=True, name="desk") as system:
            await announce(system, self._account, self._stores, servers=running)

    async def _begin(self) -> None:
        self._client = await self.mesh.connect(name="desk", error_cb=self._note)
        js = self._client.jetstream(timeout=3.0)
        make = partial(js.create_key_value, bucket=BUCKET, history=1, replicas=3, max_value_size=8_192, direct=True)
        self._bucket = await retry(make)
        await retry(self._recall)
        await self._client.subscribe("room.join.*", cb=self._knocked, pending_msgs_limit=4 * PENDING_REQUESTS)
        for seat in self.seats.values():
            await self._serve(seat)
        await flush(self._client)  # the servers know of them, before the first line is given out

    async def _recall(self) -> None:
        """Read the room's state back from the bucket."""
        watcher = await self._bucket.watchall(ignore_deletes=True)
        try:
            while (entry := await watcher.updates()) is not None:  # type: ignore[no-untyped-call]
                where, _, key = entry.key.partition(".")
                value = entry.value or b""
                if where == OPENED:
                    self.opened = msgspec.json.decode(value, type=str)
                elif where == BEGAN:
                    self.began = msgspec.json.decode(value, type=float)
                elif where == "hints":
                    hints = self._to_all if key == TO_ALL else self.seats[key].hints
                    hints[:] = msgspec.json.decode(value, type=list[Hint])
                elif key == "who":
                    seat, (seat.key, seat.name, seat.joined) = self.seats[where], msgspec.json.decode(value)
                else:
                    self.seats[where].reports[key] = msgspec.json.decode(value, type=Report)
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]

    async def _serve(self, seat: Seat) -> None:
        """Take a seat's requests from now on, each in its turn; those that wait are dropped."""
        if (old := self._desks.get(seat.number)) is not None:
            await unsubscribe(old)
        self._desks[seat.number] = await self._client.subscribe(
            f"room.desk.{seat.number}", cb=self._asked, pending_msgs_limit=PENDING_REQUESTS
        )

    async def _note(self, error: Exception) -> None:
        """Count what was dropped of a seat that sends more than the desk takes; the rest heals by itself."""
        if isinstance(error, nats.errors.SlowConsumerError):
            seat = self.seats.get(error.subject.rpartition(".")[2])
            if seat is not None and error.subject.startswith("room.desk."):
                seat.dropped += 1

    async def _knocked(self, msg: Msg) -> None:
        number = msg.subject.rpartition(".")[2]
        if number in self.seats:
            await self._answer(msg, f"_INBOX_door-{number}.", partial(self._let_in, number), Pass)

    async def _asked(self, msg: Msg) -> None:
        number = msg.subject.rpartition(".")[2]
        await self._answer(msg, f"_INBOX_seat-{number}.", partial(self._take, number), News)
        await asyncio.sleep(EACH_S)

    async def _answer(
        self, msg: Msg, inbox: str, act: Callable[[bytes], Awaitable[Any]], kind: type[Pass] | type[News]
    ) -> None:
        # A reply is sent with the desk's rights: to any other subject it would be a forgery in the sender's hands.
        if not msg.reply.startswith(inbox):
            return
        try:
            reply = await act(msg.data)
        except (*MALFORMED, msgspec.ValidationError) as err:
            reply = kind(error=f"the desk cannot read this request: {err}; use the same version of mesh-lab")
        except (nats.errors.Error, OSError) as err:  # it may be stored or not: the seat sends it again
            reply = kind(error=f"the room could not store this: {err!r}; it is sent again")
        await publish_if_connected(self._client, msg.reply, msgspec.json.encode(reply))

    async def _let_in(self, number: str, data: bytes) -> Pass:
        asked = msgspec.json.decode(data, type=Knock)
        if not protocol.USER_KEY.fullmatch(asked.key):
            return Pass(error=f"{asked.key[:60]!r} is no user's public key; use mesh-lab join")
        async with self.seats[number].busy:
            seat = self.seats[number]
            if seat.key and seat.key != asked.key:
                when = time.strftime("%H:%M", time.localtime(seat.joined))
                taken = f"seat {number} was taken at {when} with another key, by {seat.name!r}"
                return Pass(error=f"{taken}; if that was not you, ask the trainer to reset it and for a new line")
            name = protocol.clean(asked.name, protocol.NAME_CHARACTERS) or seat.name or f"seat {number}"
            if (seat.key, seat.name) != (asked.key, name):
                joined = seat.joined or time.time()
                await self._put(f"{number}.who", (asked.key, name, joined))  # before the token is out
                seat.key, seat.name, seat.joined = asked.key, name, joined
        tokens = [
            _token("seat", number, asked.key, self._account.key),
            _token("store", number, asked.key, self._stores.key),
        ]
        return Pass(tokens[0], number, seat.name, self.name, store=tokens[1], leaves=self.leaves)

    async def _take(self, number: str, data: bytes) -> News:
        said: list[Report] = msgspec.json.decode(data, type=Reports)
        now = time.monotonic()
        async with self.seats[number].busy:
            seat = self.seats[number]
            if not seat.key:  # it was reset meanwhile
                return News(error="this seat was reset; ask the trainer for a new line")
            if seat.heard is not None and now - seat.heard > LOST_AFTER_S:
                seat.back = now
            seat.heard = now
            # An exercise that this desk does not know is another version's, and of no interest to the board.
            beside = {protocol.HAND, protocol.GUESS} if self.guessing else {protocol.HAND}
            known = [one for one in said if one.number in self.exercises or one.number in beside]
            await asyncio.gather(*(self._store(seat, report) for report in known))
            return News(sorted([*self._to_all, *seat.hints], key=lambda one: one.number)[-HINTS_KEPT:])

    async def _store(self, seat: Seat, report: Report) -> None:
        report = msgspec.structs.replace(report, words=protocol.clean(report.words, protocol.WORDS_CHARACTERS))
        if seat.reports.get(report.number) != report:
            await self._put(f"{seat.number}.{report.number}", report)
            seat.reports[report.number] = report

    async def _put(self, key: str, value: object) -> None:
        await retry(partial(self._bucket.put, key, msgspec.json.encode(value)), within=5.0)

    async def _delete(self, key: str) -> None:
        await retry(partial(self._bucket.delete, key), within=5.0)

    def _seat(self, number: str) -> Seat:
        if number not in self.seats:
            raise UnknownNameError(f"no seat {number!r}; there are {', '.join(self.seats)}")
        return self.seats[number]


def chapter_of(exercise: str) -> str:
    """Return the number of the chapter that an exercise belongs to: ``"02"`` of ``"2.3"``."""
    return exercise.partition(".")[0].zfill(2)


def _number(seat: int) -> str:
    return f"{seat:02}"


def _charter(keep: Path | None, name: str, seats: int | None, listen: str | None) -> Charter:
    """Return the charter of the room in a folder, or a new one; nothing is written but the folder."""
    if not 1 <= (seats or SEATS) <= MOST_SEATS:
        raise SettingsError(f"{seats} seats asked for, expected 1 to {MOST_SEATS}")
    if listen in EVERYWHERE:
        raise SettingsError(f"to listen on {listen!r} opens every network; expected the one address of this machine")
    file = None if keep is None else keep / FILE
    try:
        if file is not None and file.exists():
            charter = msgspec.json.decode(file.read_bytes(), type=Charter)
            if listen not in (None, charter.listen):
                raise SettingsError(f"the room in {keep} is at {charter.listen}; expected that, or another folder")
        else:
            if keep is not None:
                keep.mkdir(mode=0o700, parents=True, exist_ok=True)
                if any(keep.iterdir()):
                    raise SettingsError(f"{keep} holds other things than a room; expected a new folder, or a room's")
                keep.chmod(0o700)  # where it was there, and open to others
            operator, system, account = Key.new("operator"), Key.new("account"), Key.new("account")
            authority = Authority(name, days=DAYS).pem
            charter = Charter(name, listen or LOOPBACK, operator.seed, system.seed, account.seed, authority)
    except (OSError, msgspec.DecodeError) as err:
        raise StoreError(f"cannot keep the room in {keep}: {err}; name another folder") from err
    charter.stores = charter.stores or Key.new("account").seed
    for seat in range(len(charter.doors) + 1, (seats or len(charter.doors) or SEATS) + 1):
        charter.doors.append(_door(Key.of(charter.account), _number(seat)))
    return charter


def _save(charter: Charter, keep: Path | None) -> None:
    if keep is not None:
        write_private(keep / FILE, msgspec.json.encode(charter))


def _door(account: Key, number: str) -> str:
    """Return the credentials of a new user that may ask to join as one seat."""
    key = Key.new("user")
    return credentials(_token("door", number, key.public, account), key)


def _token(kind: str, number: str, key: str, account: Key) -> str:
    """Return the token of a user of the table of rights."""
    name, lives_for = f"{kind}-{number}", DAYS * 86_400.0
    claims = protocol.claims_of(kind, number)
    return encode_token("user", claims, subject=key, signer=account, name=name, lives_for=lives_for)


def _public(credentials: str) -> str:
    """Return the public key of a user, from the seed in the text of its credentials file."""
    return Key.of(credentials.splitlines()[5]).public
