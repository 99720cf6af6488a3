"""Certificates are made for whom they name, keys stay private, and contexts travel to other processes."""

import json
import os
import ssl
import stat
import time
from pathlib import Path

import pytest

from mesh_lab.errors import StoreError
from mesh_lab.security.certificates import Authority
from mesh_lab.tls import ClientContext, TlsFiles, pack, server_block, unpack


def test_a_key_is_its_owner_s_alone_and_the_authority_s_is_in_no_file(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path, "billing@mesh.example")
    assert stat.S_IMODE(Path(files.key).stat().st_mode) == 0o600
    keys = [path.name for path in tmp_path.iterdir() if "PRIVATE KEY" in path.read_text()]
    assert keys == [Path(files.key).name]


def test_a_certificate_says_whom_it_is_for_and_ends_in_a_day(tmp_path: Path) -> None:
    files = Authority().issue(tmp_path, "n1", "127.0.0.1", "billing@mesh.example")
    said = ssl._ssl._test_decode_cert(files.certificate)
    assert said["subjectAltName"] == (("DNS", "n1"), ("IP Address", "127.0.0.1"), ("email", "billing@mesh.example"))
    assert 0 < ssl.cert_time_to_seconds(said["notAfter"]) - time.time() <= 86_400


def test_nobody_cannot_be_certified(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name to certify; expected a host name"):
        Authority().issue(tmp_path)


def test_a_context_trusts_one_authority_and_checks_the_name(tmp_path: Path) -> None:
    context = Authority("one").context(tmp_path)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert len(context.get_ca_certs()) == 1


def test_a_context_travels_as_paths(tmp_path: Path) -> None:
    context = Authority().context(tmp_path, "billing@mesh.example")
    options = {"servers": ["nats://127.0.0.1:4222"], "tls": context}
    arrived = unpack(json.loads(json.dumps(pack(options))))
    assert isinstance(arrived["tls"], ClientContext)
    assert arrived["tls"].files == context.files
    assert unpack(pack({"user": "lab"})) == {"user": "lab"}


def test_files_that_are_gone_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unpack({"tls": {"authority": str(tmp_path / "gone.crt"), "certificate": None, "key": None}})


def test_a_servers_block_names_its_files_also_on_windows() -> None:
    block = server_block(TlsFiles(r"C:\lab\ca.crt", r"C:\lab\n1.crt", r"C:\lab\n1.key"), verify="verify")
    assert r'key_file: "C:\\lab\\n1.key"' in block
    assert "verify: true" in block
    assert "verify" not in server_block(TlsFiles("a", "b", "c"))


def test_a_key_is_its_owner_s_also_where_an_open_file_stood(tmp_path) -> None:
    (tmp_path / "shop.key").write_text("old")
    (tmp_path / "shop.key").chmod(0o644)
    files = Authority().issue(tmp_path, "shop")
    assert stat.S_IMODE(os.stat(files.key).st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.crt", "shop.crt", "shop.key"]


def test_a_directory_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(StoreError, match="cannot write authority.crt in .*/none: No such file or directory; name a"):
        Authority().issue(tmp_path / "none", "shop")
