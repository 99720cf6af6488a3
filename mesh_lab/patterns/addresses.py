"""Where to connect and as whom: addresses as people write them, and credentials files.

Whatever a person may set is checked here before anything is dialled, and an error names the setting. nats-py uses the
user of an address for that one server alone, not for those that it discovers, and takes an escaped password literally.
"""

import base64
import importlib.util
import json
import os
import ssl
import stat
from itertools import pairwise
from pathlib import Path
from typing import TypedDict
from urllib.parse import SplitResult, unquote, urlsplit

from mesh_lab.errors import CredentialsError, SettingsError

_PORTS = {"nats": 4222, "tls": 4222, "ws": 80, "wss": 443}
_TOKEN, _SEED = b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED"


class ConnectOptions(TypedDict, total=False):
    """Keyword arguments of ``nats.connect`` that differ between meshes."""

    servers: list[str]
    user: str
    password: str
    token: str
    user_credentials: str
    tls: ssl.SSLContext
    name: str


def options_from(addresses: str, *, setting: str) -> ConnectOptions:
    """Return the options that a person's addresses stand for: servers without credentials, and the user beside them.

    Args:
        addresses: One or several, separated by commas: ``nats://user:password@host:4222``, ``token@host``,
            ``tls://[::1]``, ``wss://host/path``. Special characters in a password are escaped (``%40`` for ``@``).
            The user of one address is the user for all.
        setting: What they were given as, for an error: ``"--url"``.

    Raises:
        SettingsError: An address cannot be used, or two name different users; no password is shown.
    """
    found = [_split(text.strip(), setting) for text in addresses.split(",") if text.strip()]
    if not found:
        raise SettingsError(f"{setting}: {addresses!r} names no server; expected nats://host:4222")
    if len({parts.scheme in ("ws", "wss") for parts in found}) > 1:
        raise SettingsError(f"{setting}: a client speaks WebSocket to all servers or to none; expected one kind")
    if found[0].scheme in ("ws", "wss") and importlib.util.find_spec("aiohttp") is None:
        raise SettingsError(
            f'{setting}: {found[0].scheme}:// needs the package aiohttp; pip install "nats-py[aiohttp]"'
        )
    options = ConnectOptions(servers=[_bare(parts) for parts in found])
    users = {(parts.username, parts.password) for parts in found if parts.username or parts.password}
    if len(users) > 1:
        raise SettingsError(f"{setting}: the addresses name {len(users)} different users; expected one for all servers")
    for user, password in users:
        if password is None:
            options["token"] = unquote(str(user))
        else:
            options["user"], options["password"] = unquote(user or ""), unquote(password)
    return options


def _split(text: str, setting: str) -> SplitResult:
    _, at, shown = text.rpartition("@")
    host, _, port = shown.rpartition(":")
    if not at and host and not port.isdigit() and not port.startswith("//"):
        shown = f"{host}:…"  # it may be a password, whose comma ended the address before the host
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        # A password that is not escaped ends the host early.
        usable &= not (parts.query or parts.fragment or parts.path.strip("/")) or parts.scheme in ("ws", "wss")
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(
            f"{setting}: {shown!r} is no address of a server; expected nats://host:4222 (or {', '.join(_PORTS)}), "
            "special characters of a password escaped (%23 for #, %2C for a comma)"
        )
    return parts


def _bare(parts: SplitResult) -> str:
    """Return an address with its port, and without credentials."""
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    path = "" if parts.scheme in ("nats", "tls") else parts._replace(scheme="", netloc="").geturl()
    return f"{parts.scheme}://{host}:{parts.port or _PORTS[parts.scheme]}{path}"


class CredentialsFile:
    """A ``.creds`` file, read each time a client connects: one that is renewed is used, one that is spoilt an error.

    nats-py 2.16 reads one too, but never returns from a file without a token (``Client._read_creds_user_jwt``).
    """

    def __init__(self, path: str | Path, *, setting: str = "user_credentials") -> None:
        """Read the file once; raise CredentialsError, which names ``setting``, if it or its signature cannot be had."""
        self._path, self._setting = Path(path), setting
        self.sign("")

    def token(self) -> bytes:
        """Return the user's token."""
        return self._read()[0]

    def inbox(self) -> str | None:
        """Return the prefix of the one inbox that the user may subscribe to, if the token names one, else ``None``."""
        body = self.token().split(b".")[1:2]
        try:
            allowed = json.loads(base64.urlsafe_b64decode(b"".join(body) + b"=="))["nats"]["sub"]["allow"]
            own = [subject.removesuffix(".>") for subject in allowed if subject.startswith("_INBOX_")]
        except (ValueError, LookupError, TypeError, AttributeError):  # no such rights; or no token, as the servers say
            return None
        return own[0] if len(own) == 1 else None

    def sign(self, nonce: str) -> bytes:
        """Return the signature of what a server sent."""
        _, seed = self._read()
        try:
            import nkeys

            return base64.b64encode(nkeys.from_seed(bytearray(seed)).sign(nonce.encode()))
        except ImportError as err:
            raise self._error(
                'the package nkeys is missing, which signs with it; pip install "nats-py[nkeys]"'
            ) from err
        except Exception as err:  # nkeys' own errors have no common class
            raise self._error(f"its seed is damaged ({err!r})") from err

    def _read(self) -> tuple[bytes, bytes]:
        try:
            regular = self._path.is_file() or not self._path.exists()
            lines = self._path.read_bytes().splitlines() if regular else []
            mode = self._path.stat().st_mode
        except FileNotFoundError as err:
            raise self._error("no file is there") from err
        except OSError as err:
            raise self._error(f"cannot be read ({err.strerror})") from err
        if not regular:
            raise self._error("is no regular file")
        token, seed = (
            next((below.strip() for line, below in pairwise(lines) if mark in line), b"") for mark in (_TOKEN, _SEED)
        )
        if not token or not seed:
            raise self._error(f"holds no user's {'seed' if token else 'token'}")
        if os.name == "posix" and mode & stat.S_IROTH:
            shown = f"every user of this machine can read it (mode {stat.S_IMODE(mode):04o})"
            raise CredentialsError(f"{self._setting}: {self._path}: {shown}; expected 0600: chmod 600 it, and renew it")
        return token, seed

    def _error(self, what: str) -> CredentialsError:
        return CredentialsError(f"{self._setting}: {self._path}: {what}; expected a .creds file, as nsc generates it")
