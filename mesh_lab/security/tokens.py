"""Keys and signed claims, as NATS's decentralised authentication has them.

A *claim* is JSON about a key: what an account may use, what a user may publish. A *token* is the claim with a
signature: a JSON Web Token (RFC 7519) of algorithm ``ed25519-nkey``, laid out as https://github.com/nats-io/jwt does.
"""

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import nkeys
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import VerifyKey

from mesh_lab.errors import BadTokenError

Role = Literal["operator", "account", "user"]
PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
UNLIMITED = -1
_SEED, _CURVE, _SEALED = 18 << 3, 23 << 3, b"xkv1"  # as nats-io/nkeys writes them; Python's nkeys 0.2 has no curve keys


@dataclass(frozen=True, slots=True)
class Key:
    """A pair of keys; the seed is never shown in a repr."""

    seed: str = field(repr=False)
    """Begins with ``S``; its holder can sign."""
    public: str
    """Begins with ``O``, ``A`` or ``U``; it is no secret."""

    @classmethod
    def new(cls, role: Role) -> "Key":
        """Return a new pair for an operator, an account or a user.

        Raises:
            ValueError: The role is none of these.
        """
        if role not in PREFIXES:
            raise ValueError(f"a key for {role!r}; expected one of {', '.join(PREFIXES)}")
        return cls.of(nkeys.encode_seed(os.urandom(32), PREFIXES[role]).decode())

    @classmethod
    def of(cls, seed: str) -> "Key":
        """Return the pair to which a seed belongs."""
        return cls(seed, nkeys.from_seed(bytearray(seed.encode())).public_key.decode())

    def sign(self, data: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return bytes(nkeys.from_seed(bytearray(self.seed.encode())).sign(data))


@dataclass(frozen=True, slots=True)
class CurveKey:
    """A pair of keys for encryption between two sides, ``xkey`` in a server's configuration."""

    seed: str = field(repr=False)
    public: str

    @classmethod
    def new(cls) -> "CurveKey":
        """Return a new pair."""
        key = PrivateKey.generate()
        seed = bytes([_SEED | _CURVE >> 5, (_CURVE & 31) << 3]) + bytes(key)
        return cls(_encode_key(seed), _encode_key(bytes([_CURVE]) + bytes(key.public_key)))

    def seal(self, data: bytes, other: str) -> bytes:
        """Return data encrypted for the holder of another public key."""
        return _SEALED + bytes(self._box(other).encrypt(data))

    def open(self, data: bytes, other: str) -> bytes:
        """Return data that another key's holder sealed for this one; raise BadTokenError if it is not such data."""
        try:
            return self._box(other).decrypt(data.removeprefix(_SEALED))
        except (CryptoError, ValueError, TypeError) as err:
            raise BadTokenError(f"what key {other[:8]}… sealed is not for key {self.public[:8]}…: {err!r}") from err

    def _box(self, other: str) -> Box:
        raw = base64.b32decode(self.seed + "=" * (-len(self.seed) % 8))[2:-2]
        return Box(PrivateKey(raw), PublicKey(_raw(other)))


def _encode_key(raw: bytes) -> str:
    return base64.b32encode(raw + nkeys.crc16_checksum(raw)).decode().rstrip("=")


def encode_token(
    role: str,
    claims: Mapping[str, Any],
    *,
    subject: str,
    signer: Key,
    name: str = "",
    lives_for: float | None = None,
    audience: str | None = None,
) -> str:
    """Return a signed token.

    Args:
        role: What it is about: ``"operator"``, ``"account"``, ``"user"`` or another type of nats-io/jwt.
        claims: Its content, the part under ``nats``.
        subject: Public key that it is about.
        signer: Key of the issuer.
        name: A name for people.
        lives_for: Seconds until it expires; ``None`` for never.
        audience: The account or service that it is for; ``None`` for all.
    """
    now = time.time()
    body: dict[str, Any] = {"iat": int(now), "iss": signer.public, "name": name, "sub": subject}
    if lives_for is not None:
        body["exp"] = int(now + lives_for)
    if audience is not None:
        body["aud"] = audience
    body["nats"] = {**claims, "type": role, "version": 2}
    # The token's id is the hash of its content, as nats-io/jwt makes it.
    digest = hashlib.new("sha512_256", _json(body)).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_text(_json(HEADER))}.{_text(_json(body))}"
    return f"{signed}.{_text(signer.sign(signed.encode()))}"


def user_claims(publish: Iterable[str] | None, subscribe: Iterable[str] | None) -> dict[str, Any]:
    """Return a user's claims: the subjects that it may publish and subscribe to, ``None`` for all; no other limit."""
    claims: dict[str, Any] = dict.fromkeys(("subs", "data", "payload"), UNLIMITED)
    for what, allowed in (("pub", publish), ("sub", subscribe)):
        claims[what] = {} if allowed is None else {"allow": list(allowed)}
    return claims


def decode_token(token: str) -> dict[str, Any]:
    """Return the content of a token that its issuer signed; whether that issuer had the right to, the caller decides.

    Raises:
        BadTokenError: It is no token, or was changed after it was signed.
    """
    try:
        header, body, signature = token.split(".")
        claims: dict[str, Any] = json.loads(_bytes(body))
        if json.loads(_bytes(header)) != HEADER:
            raise BadTokenError(f"a token with the header {_bytes(header)!r}; expected {HEADER}")
        VerifyKey(_raw(claims["iss"])).verify(f"{header}.{body}".encode(), _bytes(signature))
    except BadTokenError:
        raise
    except BadSignatureError as err:
        raise BadTokenError("the signature does not fit: the token was changed, or signed by another key") from err
    except (ValueError, KeyError, TypeError) as err:  # also where the content is no object
        raise BadTokenError(f"{token[:20]!r}… is no token: {err!r}") from err
    return claims


def credentials(token: str, key: Key) -> str:
    """Return a user's token and seed as the text of a ``.creds`` file, which is all that a client needs to connect."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
    )


def _raw(public: str) -> bytes:
    """Return a public key's bytes from its text: base32 of a prefix, the key, and two bytes of checksum."""
    return base64.b32decode(public + "=" * (-len(public) % 8))[1:-2]


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
