"""A service that decides who may come in: NATS's *auth callout*.

The server asks on a subject, with a token that it signed, and is answered with a token that the service signed: a user
of some account, with permissions, for a time. Where nobody answers, nobody comes in. The protocol is that of
https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-26.md.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import BadTokenError
from mesh_lab.security.tokens import Key, decode_token, encode_token

SUBJECT = "$SYS.REQ.USER.AUTH"
AUDIENCE = "nats-authorization-request"
SERVER_PREFIX = "N"


@dataclass(frozen=True, slots=True)
class Login:
    """What somebody said who wants to come in."""

    user: str
    password: str = field(repr=False)
    client: str
    """What the client calls itself."""
    host: str
    """Where it connects from."""


@dataclass(frozen=True, slots=True)
class Grant:
    """As whom somebody may come in."""

    name: str
    """The user's name, as monitoring shows it."""
    account: str
    """The account's name in the servers' configuration."""
    publish: Sequence[str] = (">",)
    subscribe: Sequence[str] = (">",)
    lives_for: float | None = None
    """Seconds until it has to come again; ``None`` for as long as it stays connected."""


Decide = Callable[[Login], Awaitable[Grant | None]]


async def serve_logins(client: Client, issuer: Key, decide: Decide) -> Subscription:
    """Answer every login with what ``decide`` says, until the subscription ends.

    Args:
        client: Connected to the account that the configuration names under ``auth_callout``, as one of its
            ``auth_users``. Nobody else should be in that account: whoever is can ask what a server would ask.
        issuer: Key of an account; its public half stands in the configuration as ``issuer``.
        decide: Returns as whom somebody may come in, or ``None``. If it raises, the answer is no. Compare passwords
            in constant time (``hmac.compare_digest``), and answer within the servers' authentication timeout, 2 s.
    """

    async def answer(msg: Msg) -> None:
        try:
            request = _request(msg.data)
        except BadTokenError:
            return  # no server said this; whoever did learns nothing
        asked, why = request["nats"], "refused"
        try:
            grant = await decide(_login(asked))
        except Exception as err:  # noqa: BLE001 (whatever it is, the door stays shut, and the server's log says why)
            grant, why = None, f"refused: the service failed with {type(err).__name__}"
        user = asked["user_nkey"]
        reply = {"jwt": _user(grant, user, issuer)} if grant is not None else {"error": why}
        to = asked["server_id"]["id"]
        await msg.respond(
            encode_token("authorization_response", reply, subject=user, signer=issuer, audience=to).encode()
        )

    return await client.subscribe(SUBJECT, queue="logins", cb=answer)


def _request(data: bytes) -> dict[str, Any]:
    """Return what a server asks; anybody in the account can publish, so it must be signed by the server it names."""
    request = decode_token(data.decode(errors="replace"))
    asked = request.get("nats")
    server = asked.get("server_id") if isinstance(asked, dict) else None
    signer = str(request["iss"])
    known = isinstance(server, dict) and signer == server.get("id") and signer.startswith(SERVER_PREFIX)
    if request.get("aud") != AUDIENCE or not known:
        raise BadTokenError("a token that is no server's question about a login")
    return request


def _login(asked: dict[str, Any]) -> Login:
    said, about = asked.get("connect_opts", {}), asked.get("client_info", {})
    return Login(said.get("user", ""), said.get("pass", ""), said.get("name", ""), about.get("host", ""))


def _user(grant: Grant, user: str, issuer: Key) -> str:
    claims = {
        "pub": {"allow": list(grant.publish)},
        "sub": {"allow": list(grant.subscribe)},
        **dict.fromkeys(("subs", "data", "payload"), -1),
    }
    expires = None if grant.lives_for is None else time.time() + grant.lives_for
    return encode_token(
        "user", claims, subject=user, signer=issuer, name=grant.name, expires=expires, audience=grant.account
    )
