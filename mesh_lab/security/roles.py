"""What each service of the order mesh may do: one table, of which every secured deployment makes its users.

A service reaches its own inbox, the subjects of its task, and of JetStream's API what it needs of streams and consumers
that stand: who deploys makes and changes them, and no service may. The rights are subjects, and say nothing of content:
two workers of a group could acknowledge each other's orders.

One hole they leave open in nats-server 2.15: a consumer's status goes to whatever subject a request for messages names
for its reply, a call of JetStream's API included, and an empty message is how a stream is deleted. So a service that
takes messages and is taken over can delete streams of its account (of no other), and a backup belongs in another one.
Workers in an account of their own close it, and keep fast ingest: ``tests/security/test_accounts.py`` shows which calls
are exported to it as services, and which events imported from it as streams.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh_lab.errors import StoreError, UnknownNameError
from mesh_lab.security.accounts import Account, User
from mesh_lab.security.certificates import write_private

ROOM = {"conn": 100, "leaf": 10, "subs": 10_000, "payload": 65_536, "streams": 20, "consumer": 200}
"""Limits of an account in which the order mesh works: room for all of it, and none for a flood."""


@dataclass(frozen=True, slots=True)
class Role:
    """Subjects that a service may publish and subscribe to, beside its own inbox."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...] = ()
    replies: bool = False
    """Whether it may reply, once, to each request that it receives."""


def takes(stream: str, consumer: str) -> tuple[str, ...]:
    """Return what to publish to for the messages of one consumer that stands, and to acknowledge them."""
    api = (f"$JS.API.CONSUMER.{call}.{stream}.{consumer}" for call in ("INFO", "MSG.NEXT"))
    return (*api, f"$JS.ACK.{stream}.{consumer}.>")


def reads(stream: str, consumer: str) -> tuple[str, ...]:
    """Return what to publish to for a stream's messages by a consumer of that one name, made again when it is lost."""
    return tuple(f"$JS.API.CONSUMER.{call}.{stream}.{consumer}" for call in ("CREATE", "DELETE", "MSG.NEXT"))


def edge(domain: str) -> dict[str, tuple[str, ...]]:
    """Return the rights of a leaf node whose streams are sources of the region's, as for :attr:`Account.edge`.

    It delivers what its streams hold when the region asks for it. No order comes to it, and it places none there.
    """
    return {"publish": ("$JS.S.>", "$JSC.R.>"), "subscribe": (f"$JS.{domain}.API.>", "$JS.FC.>")}


def _answers(group: str, events: tuple[str, ...], effects: tuple[str, ...] | None = ()) -> Role:
    """Return a service that takes events from its group and stores what follows; ``None``: it is in no saga."""
    subjects = (*(f"orders.*.*.{event}" for event in events), *(f"effects.{effect}.*" for effect in effects or ()))
    streams = (_STREAM,) if effects is None else (_STREAM, _EFFECTS)
    return Role((*subjects, "rejected.orders", *streams, *takes("ORDERS", group)))


_STREAM, _EFFECTS = (f"$JS.API.STREAM.INFO.{stream}" for stream in ("ORDERS", "EFFECTS"))
_BOOKS = ("LEDGER", "KV_LEDGER-books")
_GROUPS = tuple(f"$JS.API.CONSUMER.INFO.ORDERS.{group}" for group in ("workers", "payment", "stock", "shipping"))
_DEPLOYS = (
    *("STREAM.CREATE.*", "STREAM.UPDATE.*", "STREAM.INFO.*", "STREAM.NAMES"),
    *("CONSUMER.CREATE.>", "CONSUMER.DURABLE.CREATE.>", "CONSUMER.INFO.>"),
)
ROLES: Mapping[str, Role] = {
    "publisher": Role(("orders.*.*.placed", _STREAM)),
    "worker": _answers("workers", ("paid", "shipped", "declined"), None),
    "payment": _answers("payment", ("paid", "declined"), ("charge", "refund")),
    "stock": _answers("stock", ("reserved", "cancelled"), ("reserve", "release")),
    "shipping": _answers("shipping", ("shipped", "cancelled")),
    # A person's, who puts repaired orders in the places of what was none.
    "replay": Role(("orders.*.*.*", _STREAM, *reads("ORDERS", "replay"))),
    "read-model": Role((_STREAM, *reads("ORDERS", "read-model")), ("read_model.summary",), replies=True),
    # The members of its group make readers of their own as partitions move: these two streams are theirs alone.
    "ledger": Role(
        (
            *(f"$JS.API.STREAM.INFO.{stream}" for stream in _BOOKS),
            *(f"$JS.API.STREAM.{call}.{_BOOKS[1]}" for call in ("MSG.GET", "PURGE")),
            *(f"$JS.API.CONSUMER.CREATE.{stream}" for stream in _BOOKS),
            *(f"$JS.API.CONSUMER.{call}.{stream}.*" for call in ("DELETE", "MSG.NEXT") for stream in _BOOKS),
            "$KV.LEDGER-books.>",
        )
    ),
    # Sells at the edge, into a stream of its own leaf node.
    "store": Role(("till.*.*.placed",)),
    # Makes streams and consumers before services start; it removes nothing, and neither sends nor receives an order.
    "deployer": Role(tuple(f"$JS.API.{call}" for call in _DEPLOYS)),
    # Looks whether every order came through.
    "auditor": Role(
        (
            *(_STREAM, _EFFECTS, *_GROUPS, "read_model.summary"),
            *reads("ORDERS", "audit"),
            *reads("EFFECTS", "audit"),
        )
    ),
}


def user_of(account: Account, role: str, name: str | None = None, *, lives_for: float | None = None) -> User:
    """Return a new user of an account with the rights of a role, and with the inbox ``_INBOX_<name>`` for its own.

    Args:
        account: The account.
        role: A role of the table.
        name: The user's own, different for each process; ``None``: the role's.
        lives_for: As for :meth:`Account.user`.

    Raises:
        UnknownNameError: The table has no such role.
        ValueError: The name is no token of a subject.
    """
    name = role if name is None else name
    if (may := ROLES.get(role)) is None:
        raise UnknownNameError(f"no role {role!r}; the table in mesh_lab/security/roles.py has {', '.join(ROLES)}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError(f"a user called {name!r}, expected letters, digits, - and _: it is a token of a subject")
    own = (f"_INBOX_{name}.>", *may.subscribe)
    return account.user(name, publish=may.publish, subscribe=own, replies=may.replies, lives_for=lives_for)


class Keyring:
    """Credentials files for the processes of an order mesh, one for each, in a directory that only its owner opens."""

    def __init__(self, account: Account, directory: Path) -> None:
        """Make the directory; raise StoreError if that cannot be."""
        self.account, self.users = account, dict[str, User]()
        self._directory = directory
        try:
            directory.mkdir(mode=0o700)
        except OSError as err:
            raise StoreError(f"cannot make {directory} for credentials: {err.strerror}; expected a new place") from err

    def file(self, role: str, name: str | None = None) -> str:
        """Return the path of a process's credentials file, mode 0600, made when it is first asked for.

        Raises as :func:`user_of`, or StoreError where the file cannot be written; then no user is made.
        """
        path = self._directory / f"{name or role}.creds"
        if path.stem not in self.users:
            user = user_of(self.account, role, name)
            write_private(path, user.credentials.encode())
            self.users[path.stem] = user
        return str(path)
