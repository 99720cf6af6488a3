"""A certificate authority for one mesh, made by `trustme <https://trustme.readthedocs.io>`_.

For a lab: its key lives in this process's memory and is gone with it. In production it lives in a vault (HashiCorp
Vault, AWS Private CA, step-ca), and certificates live for hours or days.
"""

import datetime
import os
import secrets
from pathlib import Path

import trustme

from mesh_lab.errors import StoreError
from mesh_lab.tls import ClientContext, TlsFiles


class Authority:
    """Signs certificates for servers and for clients; both sides trust it alone."""

    def __init__(self, name: str = "order mesh", *, days: int = 1, pem: str | None = None) -> None:
        """Make one, or go on with one whose :attr:`pem` was kept.

        Args:
            name: Name of the organisation.
            days: For how long a certificate is good that it issues, where nothing else is said.
            pem: Its certificate and key; ``None`` for new ones.
        """
        kept = None if pem is None else pem.encode()
        self._ca = trustme.CA(organization_name=name) if kept is None else trustme.CA.from_pem(kept, kept)
        self._days = days

    @property
    def pem(self) -> str:
        """Its certificate and its key, which signs for everybody who has it."""
        return (self._ca.cert_pem.bytes() + self._ca.private_key_pem.bytes()).decode()

    def issue(self, directory: Path, *names: str, days: int | None = None) -> TlsFiles:
        """Issue a certificate, and return where it, its key and the authority's own certificate lie.

        Args:
            directory: Where to write them; the key is readable by its owner only.
            names: Host names, IP addresses or e-mail addresses that it certifies. The first one names the files.
            days: For how long; ``None``: as the authority has it.

        Raises:
            ValueError: There is no name, or one is neither of these.
            StoreError: The directory cannot be written.
        """
        if not names:
            raise ValueError("no name to certify; expected a host name, an IP address or an e-mail address")
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=self._days if days is None else days)
        leaf = self._ca.issue_cert(*names, not_after=ends)
        authority, stem = self.write(directory), names[0].replace("/", "_")
        certificate, key = directory / f"{stem}.crt", directory / f"{stem}.key"
        write_private(certificate, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        write_private(key, leaf.private_key_pem.bytes())
        return TlsFiles(str(authority), str(certificate), str(key))

    def write(self, directory: Path) -> Path:
        """Write the authority's certificate, and return its path; a directory is for the files of one authority."""
        path = directory / "authority.crt"
        write_private(path, self._ca.cert_pem.bytes())
        return path

    def context(self, directory: Path, *names: str) -> ClientContext:
        """Return the context of a client that trusts this authority.

        Args:
            directory: Where its files go, as :meth:`issue` writes them.
            names: Names that its certificate certifies; none, and it shows no certificate.
        """
        return ClientContext(self.issue(directory, *names) if names else TlsFiles(str(self.write(directory))))


def write_private(path: Path, text: bytes) -> None:
    """Write a file that only its owner may read, whatever the permissions of the one that it replaces.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        with open(new, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        new.replace(path)  # at once: a server may be reading the old one
    except OSError as err:
        failed = f"cannot write {path.name} in {path.parent}: {err.strerror or err}"
        raise StoreError(f"{failed}; name a directory that can be written") from err
