"""An operator, its accounts and their users: a chain of signatures in place of passwords that the servers know.

The operator signs accounts, an account signs its users, and a server is given the operator's public key alone. Nothing
is stored here. In production the operator's seed lies offline, and one of its *signing keys* does the daily work.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import BadTokenError, NotReadyError
from mesh_lab.security.tokens import UNLIMITED, Key, credentials, encode_token, user_claims
from mesh_lab.tls import quoted

NO_JETSTREAM = {"mem_storage": 0, "disk_storage": 0, "streams": 0, "consumer": 0}
COUNTED = ("subs", "data", "payload", "imports", "exports", "conn", "leaf", *NO_JETSTREAM)
# The server reads a missing limit as 0, which admits no connection: so each is set.
LIMITS: dict[str, Any] = {**dict.fromkeys(COUNTED, UNLIMITED), "wildcards": True}
REPLY_WITHIN_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class User:
    """A client's identity, with the credentials to connect."""

    name: str
    public: str
    credentials: str = field(repr=False)
    """Text of a ``.creds`` file: token and seed."""


@dataclass(slots=True)
class Account:
    """A tenant: a world of subjects, streams and users of its own."""

    name: str
    operator: Key
    key: Key = field(default_factory=lambda: Key.new("account"))
    limits: dict[str, Any] = field(default_factory=dict)
    """What it may use; what is not named is unlimited."""
    exports: list[dict[str, Any]] = field(default_factory=list)
    imports: list[dict[str, Any]] = field(default_factory=list)
    revoked: dict[str, int] = field(default_factory=dict)
    """Users' public keys, and the second up to which their tokens are void."""
    edge: dict[str, Any] = field(default_factory=dict)
    """Rights of the user as which a leaf node joins, as for :meth:`user`; empty: all."""

    @property
    def public(self) -> str:
        """The account's public key, which is its name among servers."""
        return self.key.public

    def token(self) -> str:
        """Return the account's token as of now, signed by the operator; servers that are sent it apply it at once."""
        limits = {**LIMITS, **self.limits}
        claims = {"limits": limits, "exports": self.exports, "imports": self.imports, "revocations": self.revoked}
        return encode_token("account", claims, subject=self.public, signer=self.operator, name=self.name)

    def user(
        self,
        name: str,
        *,
        publish: Iterable[str] | None = None,
        subscribe: Iterable[str] | None = None,
        replies: bool = False,
        lives_for: float | None = None,
    ) -> User:
        """Return a new user, signed by the account; no server has to be sent anything.

        Args:
            name: A name for people.
            publish: Subjects that it may publish to; ``None`` for all of the account's.
            subscribe: Subjects that it may subscribe to; ``None`` for all.
            replies: Whether it may also reply, once and within a minute, to each request that it receives.
            lives_for: Seconds until it is disconnected and refused; ``None`` for ever.
        """
        key, claims = Key.new("user"), user_claims(publish, subscribe)
        if replies:
            claims["resp"] = {"max": 1, "ttl": REPLY_WITHIN_NS}
        token = encode_token("user", claims, subject=key.public, signer=self.key, name=name, lives_for=lives_for)
        return User(name, key.public, credentials(token, key))

    def revoke(self, user: User) -> None:
        """Revoke every token that the user has by now; :meth:`token` carries the revocation from here on."""
        self.revoked[user.public] = int(time.time()) + 1


@dataclass(slots=True)
class Operator:
    """The identity that runs the servers and decides which accounts there are."""

    name: str = "order mesh"
    key: Key = field(default_factory=lambda: Key.new("operator"))
    lab: "Account | None" = None
    """The account in which lessons work, where it has to be a certain one; ``None``: each mesh has a new one."""
    system: Account = field(init=False)
    """The system account, whose users see every server and connection, and send accounts to the servers."""
    accounts: list[Account] = field(init=False, default_factory=list)
    """All others that it made, which servers that start from now on know."""

    def __post_init__(self) -> None:
        self.system = Account("SYS", self.key, limits=dict(NO_JETSTREAM))

    def account(self, name: str, **limits: Any) -> Account:
        """Return a new account, with limits as nats-io/jwt names them: ``conn`` (connections), ``payload`` (bytes), ….

        Raises:
            ValueError: There is no such limit.
        """
        if unknown := sorted(set(limits) - set(LIMITS)):
            raise ValueError(f"no limit is called {', '.join(unknown)}; there are {', '.join(LIMITS)}")
        self.accounts.append(account := Account(name, self.key, limits=limits))
        return account

    def token(self) -> str:
        """Return the operator's own token, which is all that a server has to be given."""
        claims = {"system_account": self.system.public}
        return encode_token("operator", claims, subject=self.key.public, signer=self.key, name=self.name)

    def server_block(self, account: Account, *, directory: str) -> str:
        """Return the part of a server's configuration that names its operator, in nats-server's syntax.

        From the start it has an account, the operator's others and the system account; those that it is sent later it
        keeps in a directory.
        """
        preload = "\n".join(f'  {a.public}: "{a.token()}"' for a in (account, *self.accounts, self.system))
        return (
            f'operator: "{self.token()}"\nsystem_account: {self.system.public}\n'
            f'resolver {{ type: full, dir: {quoted(directory)}, allow_delete: true, interval: "2m", limit: 1000 }}\n'
            f"resolver_preload {{\n{preload}\n}}"
        )


async def announce(system: Client, *accounts: Account, servers: int) -> None:
    """Send accounts as they are now to all servers, and return when each of those goes by them.

    Args:
        system: Connected to the system account.
        accounts: New ones, or with other limits, exports, imports or revocations than before.
        servers: Number of servers that have to confirm.

    Raises:
        BadTokenError: A server refuses an account; the message has its words.
        NotReadyError: Not every server replied within 10 s.
    """
    for account in accounts:
        inbox = system.new_inbox()
        replies = await system.subscribe(inbox, max_msgs=servers)
        await system.publish("$SYS.REQ.CLAIMS.UPDATE", account.token().encode(), reply=inbox)
        for confirmed in range(servers):
            try:
                reply = json.loads((await replies.next_msg(timeout=10.0)).data)
            except nats.errors.TimeoutError as err:
                words = f"{confirmed} of {servers} servers took account {account.name!r} within 10 s, expected all"
                raise NotReadyError(words) from err
            if refused := reply.get("error"):
                raise BadTokenError(f"a server refuses account {account.name!r}: {refused.get('description')}")
