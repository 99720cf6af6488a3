"""TLS for one side of a connection: its files, and for Python's ssl the context made of them.

The standard library only, so that a service in a container can import it.
"""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# asyncio's warning at the end of each connection that nats-py turned into one with TLS: true and harmless.
EOF_WARNING = "returning true from eof_received"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files; only its owner can read the one with the key."""

    authority: str
    """Certificate of the authority to trust."""
    certificate: str | None = None
    """This side's own certificate; ``None`` for a client that shows none."""
    key: str | None = None


class ClientContext(ssl.SSLContext):
    """A client's context that keeps its ``files``, so that it can be made again in another process.

    It trusts the one authority alone, asks for TLS 1.3, and checks the server's name.
    """

    files: TlsFiles

    def __new__(cls, files: TlsFiles) -> "ClientContext":
        """Return a context made of files; raises ``OSError`` where one cannot be read or is no PEM file."""
        logging.getLogger("asyncio").addFilter(_is_no_eof_warning)
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context.files = files
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cafile=files.authority)
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
        return context


def _is_no_eof_warning(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(EOF_WARNING)


def pack(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``nats.connect`` with paths in place of a :class:`ClientContext`, to travel as JSON."""
    context = options.get("tls")
    return {**options, "tls": asdict(context.files)} if isinstance(context, ClientContext) else dict(options)


def unpack(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`pack` was given; as for the context, a file that is gone is an ``OSError``."""
    files = options.get("tls")
    return {**options, "tls": ClientContext(TlsFiles(**files))} if isinstance(files, Mapping) else dict(options)


def quoted(text: str) -> str:
    """Return a string literal in nats-server's syntax, to which a Windows path's backslashes are escapes."""
    return '"' + text.replace("\\", "\\\\") + '"'


def server_block(files: TlsFiles, *, verify: str | None = None) -> str:
    """Return a ``tls`` block in nats-server's syntax.

    Args:
        files: The server's certificate, key and authority.
        verify: ``"verify"``: a client must show a certificate of the same authority; ``"verify_and_map"``: and it
            names the user. ``None``: a client need not show one.
    """
    paths = {"cert_file": files.certificate, "key_file": files.key, "ca_file": files.authority}
    entries = [f"{name}: {quoted(str(path))}" for name, path in paths.items()]
    # Not the server's defaults: those take TLS 1.2, and refuse a handshake that a busy laptop does not do in 2 s.
    entries += ['min_version: "1.3"', "timeout: 5", *([f"{verify}: true"] if verify else [])]
    return f"tls {{ {', '.join(entries)} }}"
