"""What a seat and the room's desk send each other, and what each user of the room may do.

A seat publishes to one subject, ``room.desk.<seat>``, and the server that lets its user do so is what tells the desk
who it is. It does not write the bucket itself, although a permission to publish on its keys would look just as narrow:
the acknowledgement of a message goes to whatever subject the message names for its reply (nats-server 2.15), another
seat's key included, which it would overwrite; and a header ``Nats-Rollup: all`` would purge everybody's.

A seat's store, a leaf node, is a user of another account, ``STORES``, that has no JetStream. What it sells it sends to
``intake.<seat>``, which is the room's: a service, so that the acknowledgement goes to the sender's account alone.
"""

import base64
import binascii
import json
import re
import unicodedata
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from mesh_lab.errors import SettingsError
from mesh_lab.security.roles import Role
from mesh_lab.security.tokens import user_claims

State = Literal["at it", "not yet", "solved", "up", "down"]
HAND = "hand"
"""In place of an exercise's number, where the report is about the seat's hand: ``up`` or ``down``."""
GUESS = "guess"
"""The same for what the seat expects, while the trainer asks; the words are its guess."""
NAME_CHARACTERS, WORDS_CHARACTERS, MOST_REPORTS = 40, 300, 50
SEAT_BYTES, SEAT_SUBSCRIPTIONS = 65_536, 10
BEAT_S = 2.0
"""Seconds between two requests of a seat that has nothing to report: so it is seen, and hears what is new."""
PREFIX = "room."
USER_KEY = re.compile(r"U[A-Z2-7]{55}")

RIGHTS: Mapping[str, Role] = {
    "seat": Role(("room.desk.{seat}",)),
    # Whoever has a seat's line, and has not joined yet.
    "door": Role(("room.join.{seat}",)),
    # The leaf node that is a seat's store: it sells, says how much it sold, packs what the room hands out, and asks.
    # Without wildcards: the room's interest in `done.*.*` is not told to a leaf node that may publish to `done.07.*`.
    "store": Role(("intake.{seat}", "sold.{seat}", "done.{seat}", "ask.{seat}"), ("told.*", "work.*")),
}
"""What each user may publish and subscribe to; beside that its own inbox, ``_INBOX_<kind>-<seat>.>``."""


def claims_of(kind: str, seat: str) -> dict[str, Any]:
    """Return the claims of a user of the table."""
    publish = [subject.format(seat=seat) for subject in RIGHTS[kind].publish]
    claims = user_claims(publish, [f"_INBOX_{kind}-{seat}.>", *RIGHTS[kind].subscribe])
    if kind == "store":
        return {**claims, "allowed_connection_types": ["LEAFNODE"]}
    limits = {"subs": SEAT_SUBSCRIPTIONS, "payload": SEAT_BYTES}
    return {**claims, **limits, "allowed_connection_types": ["STANDARD"]}


class Report(msgspec.Struct, frozen=True):
    """Where a seat stands with an exercise, or whether its hand is up; by the seat's own word and clock."""

    number: Annotated[str, msgspec.Meta(max_length=12)]
    state: State
    words: Annotated[str, msgspec.Meta(max_length=WORDS_CHARACTERS)] = ""
    tries: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    began: float = 0.0
    at: float = 0.0


Reports = Annotated[list[Report], msgspec.Meta(max_length=MOST_REPORTS)]
"""A seat's request: what the desk has not confirmed yet, or nothing."""


class Hint(msgspec.Struct, frozen=True):
    """Words of the trainer; of two hints, the later one has the higher number."""

    number: int
    words: str


class News(msgspec.Struct, frozen=True):
    """The desk's reply: that it has stored what was reported, or why not; and the latest hints for this seat."""

    hints: list[Hint] = []
    error: str = ""


class Knock(msgspec.Struct, frozen=True):
    """A request to join: a user's public key, whose seed stays with the seat, and a name that a person chose."""

    key: str
    name: str = ""


class Pass(msgspec.Struct, frozen=True):
    """The reply: the token with which that key signs in, or why there is none."""

    token: str = ""
    seat: str = ""
    name: str = ""
    room: str = ""
    error: str = ""
    store: str = ""
    """The token with which the same key signs in as a leaf node."""
    leaves: list[str] = []
    """Where it does."""


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many orders a second each store sells, as the room tells all of them each second on ``told.pace``."""

    pace: float
    noisy: str
    """The seat that sells as much as it can."""


class Sold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many orders a store has sold; it says so each second on ``sold.<seat>``."""

    store: Annotated[str, msgspec.Meta(max_length=20)]
    """Its name, with which the ids of its orders begin."""
    orders: Annotated[int, msgspec.Meta(ge=0, le=10**9)]


@dataclass(frozen=True, slots=True)
class Line:
    """All that a participant needs to join, as one line of text; a secret until the seat has joined."""

    servers: tuple[str, ...]
    authority: str
    """Certificate of the room's authority, PEM."""
    credentials: str = field(repr=False)
    """Of the user that may ask to join, for this one seat."""

    def text(self) -> str:
        """Return the line."""
        packed = zlib.compress(json.dumps(asdict(self), separators=(",", ":")).encode(), 9)
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "Line":
        """Return what a line holds; blanks and line ends in it, as chats and mails insert them, do not matter.

        Raises:
            SettingsError: It is no such line, or not all of it.
        """
        packed = re.sub(r"\s", "", text)
        try:
            if not packed.startswith(PREFIX):
                raise ValueError("another beginning")
            packed = packed.removeprefix(PREFIX)
            found = json.loads(zlib.decompress(base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))))
            return cls(tuple(found["servers"]), found["authority"], found["credentials"])
        except (ValueError, KeyError, TypeError, zlib.error, binascii.Error) as err:
            seen = f"{len(packed)} characters that are no seat's line, or not all of one"
            raise SettingsError(f"{seen}; expected the trainer's, which begins with {PREFIX}") from err


def clean(text: str, most: int) -> str:
    """Return a text on one line without control characters, those that turn the direction of writing included."""
    shown = "".join(
        " " if one.isspace() else one for one in text if one.isspace() or unicodedata.category(one)[0] != "C"
    )
    return " ".join(shown.split())[:most]
