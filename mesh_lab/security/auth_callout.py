"""A service that decides which clients may connect: NATS's *auth callout*.

The server sends a token that it signed, and the service replies with one that it signed: a user of some account, with
permissions, for a time. Where no service replies, no client is admitted (ADR-26). With an ``xkey``, both are encrypted.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import BadTokenError
from mesh_lab.security.tokens import CurveKey, Key, decode_token, encode_token, user_claims

SUBJECT = "$SYS.REQ.USER.AUTH"
AUDIENCE = "nats-authorization-request"
XKEY_HEADER = "Nats-Server-Xkey"
ENCRYPTED = "it is encrypted; pass the pair of keys whose public half the servers have as `xkey`"


@dataclass(frozen=True, slots=True)
class Login:
    """A client that wants to connect, as it describes itself; empty what it does not say."""

    user: str
    password: str = field(repr=False)
    client: str
    """Name of the connection."""
    host: str
    token: str = field(default="", repr=False)
    jwt: str = field(default="", repr=False)
    nkey: str = ""
    """A public key. The server has verified neither this nor ``jwt``: ``signature`` is over its ``nonce``."""
    signature: str = field(default="", repr=False)
    nonce: str = ""
    certificates: Sequence[str] = ()
    """In PEM, the client's own first; those that the server verified, if it verifies them, else those it was shown."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The user that a client is admitted as."""

    name: str
    account: str
    """The account's name in the servers' configuration."""
    publish: Sequence[str] = (">",)
    subscribe: Sequence[str] = (">",)
    lives_for: float | None = None
    """Seconds until it has to log in again; ``None`` for as long as it stays connected."""


async def serve_logins(
    client: Client,
    issuer: Key,
    decide: Callable[[Login], Awaitable[Grant | None]],
    *,
    xkey: CurveKey | None = None,
    log: Callable[[str], object] = sys.stderr.write,
) -> Subscription:
    """Reply to every login as ``decide`` decides, and return the subscription; its end ends the service.

    Args:
        client: Connected to the account that the configuration names under ``auth_callout``, as one of its
            ``auth_users``. No other client should be in that account: it could send what a server would send.
        issuer: Key of an account; its public half stands in the configuration as ``issuer``.
        decide: Returns the user that a client is admitted as, or ``None``; if it raises, the client is refused. Compare
            passwords in constant time (``hmac.compare_digest``), and reply within the servers' timeout, 2 s.
        xkey: Pair of keys whose public half stands in the configuration as ``xkey``; ``None`` where none does.
        log: Called with a line the first time that a question is passed over, with the reason.
    """
    passed_over, replying = set[bool](), set["asyncio.Task[None]"]()

    async def reply_to(msg: Msg) -> None:
        sealed_by = (msg.headers or {}).get(XKEY_HEADER, "")
        try:
            if (xkey is None) == bool(sealed_by):
                raise BadTokenError(ENCRYPTED if xkey is None else f"it is not encrypted; set `xkey: {xkey.public}`")
            request = _request(msg.data if xkey is None else xkey.open(msg.data, sealed_by))
        except BadTokenError as err:  # its sender learns nothing
            if bool(sealed_by) not in passed_over:
                passed_over.add(bool(sealed_by))
                log(f"a question about a login is passed over: {err}\n")
            return
        claims, reply = request["nats"], {"error": "refused"}
        try:
            if (grant := await decide(_login(claims))) is not None:
                reply = {"jwt": _user(grant, claims["user_nkey"], issuer)}
        except Exception as err:  # noqa: BLE001 (whatever it is, the client is refused, and the server's log has why)
            reply = {"error": f"refused: the service failed with {type(err).__name__}"}
        user, to = claims["user_nkey"], claims["server_id"]["id"]
        token = encode_token("authorization_response", reply, subject=user, signer=issuer, audience=to)
        await msg.respond(xkey.seal(token.encode(), sealed_by) if xkey is not None else token.encode())

    async def begin(msg: Msg) -> None:  # a login whose decision takes long keeps no other waiting
        task = asyncio.create_task(reply_to(msg))
        replying.add(task)
        task.add_done_callback(replying.discard)

    return await client.subscribe(SUBJECT, queue="logins", cb=begin)


def _request(data: bytes) -> dict[str, Any]:
    """Return a server's request; any client of the account can publish, so the server it names must have signed it."""
    request = decode_token(data.decode(errors="replace"))
    claims = request.get("nats")
    server = claims.get("server_id") if isinstance(claims, dict) else None
    signer = str(request["iss"])
    known = isinstance(server, dict) and signer == server.get("id") and signer.startswith("N")
    if request.get("aud") != AUDIENCE or not known:
        raise BadTokenError("a token that is no server's question about a login")
    return request


def _login(claims: dict[str, Any]) -> Login:
    options, about, tls = (claims.get(part) or {} for part in ("connect_opts", "client_info", "client_tls"))
    chain = (tls.get("verified_chains") or [tls.get("certs") or ()])[0]
    names = {"token": "auth_token", "jwt": "jwt", "nkey": "nkey", "signature": "sig"}
    more = {name: options.get(key, "") for name, key in names.items()}
    more |= {"nonce": about.get("nonce", ""), "certificates": tuple(chain)}
    return Login(
        options.get("user", ""), options.get("pass", ""), options.get("name", ""), about.get("host", ""), **more
    )


def _user(grant: Grant, user: str, issuer: Key) -> str:
    about = {"subject": user, "name": grant.name, "audience": grant.account}
    claims = user_claims(grant.publish, grant.subscribe)
    return encode_token("user", claims, signer=issuer, lives_for=grant.lives_for, **about)
