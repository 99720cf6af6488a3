"""What a person writes to name servers: addresses with a user in them, and credentials files."""

import base64
import builtins
import os
import sys
from pathlib import Path
from typing import Any

import nkeys
import pytest

from mesh_lab.errors import CredentialsError, SettingsError
from mesh_lab.patterns.addresses import CredentialsFile, options_from
from mesh_lab.security.accounts import Operator


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("nats://a:1", {"servers": ["nats://a:1"]}),
        ("a", {"servers": ["nats://a:4222"]}),
        ("a:1", {"servers": ["nats://a:1"]}),
        ("u:p@a", {"servers": ["nats://a:4222"], "user": "u", "password": "p"}),
        ("secret@a", {"servers": ["nats://a:4222"], "token": "secret"}),
        ("nats://to%2Fken@a:1", {"servers": ["nats://a:1"], "token": "to/ken"}),
        ("tls://shop%2F1:p%25%3F%23%40@a:1", {"servers": ["tls://a:1"], "user": "shop/1", "password": "p%?#@"}),
        ("nats://u:p@ss@a:1", {"servers": ["nats://a:1"], "user": "u", "password": "p@ss"}),
        ("nats://u:@a:1", {"servers": ["nats://a:1"], "user": "u", "password": ""}),
        ("nats://[::1]:1", {"servers": ["nats://[::1]:1"]}),
        ("u:p@[fe80::1]", {"servers": ["nats://[fe80::1]:4222"], "user": "u", "password": "p"}),
        ("nats://u:p@a:1, nats://b:2/,", {"servers": ["nats://a:1", "nats://b:2"], "user": "u", "password": "p"}),
        ("a:1,u:p@b:2,u:p@c", {"servers": ["nats://a:1", "nats://b:2", "nats://c:4222"], "user": "u", "password": "p"}),
        ("nats://a,tls://b", {"servers": ["nats://a:4222", "tls://b:4222"]}),
        ("TLS://A", {"servers": ["tls://a:4222"]}),
    ],
)
def test_the_user_of_an_address_is_taken_out_of_it_and_counts_for_all(text: str, options: dict[str, Any]) -> None:
    assert options_from(text, setting="--url") == options


def test_websocket_addresses_keep_their_path_and_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    found = options_from("ws://u:p@a/nats?x=1,wss://b", setting="--url")
    assert found == {"servers": ["ws://a:80/nats?x=1", "wss://b:443"], "user": "u", "password": "p"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'^--url: wss:// needs the package aiohttp; pip install "nats-py\[aio'):
        options_from("wss://a", setting="--url")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' names no server; expected nats://host:4222"),
        (" , ,", "names no server"),
        ("http://a", "'http://a' is no address of a server; expected nats://host:4222 (or nats, tls, ws, wss)"),
        ("nats://u:hush@a:port", "'a:port' is no address"),
        ("nats://a:99999", "is no address"),
        ("nats://a:0", "is no address"),
        ("nats://[::1:4222", "is no address"),
        ("nats://", "is no address"),
        ("nats://u:hush/x@a:1", "'a:1' is no address of a server; expected nats://host:4222 (or nats, tls, ws, wss), "
         "special characters of a password escaped (%23 for #, %2C for a comma)"),
        ("nats://u:hush,hush@a", "'nats://u:…' is no address of a server"),
        ("nats://u:hush", "'nats://u:…' is no address"),
        ("nats://u:1#hush@a:1", "'a:1' is no address"),
        ("nats://u:hush@a,nats://v:hush@b", "the addresses name 2 different users; expected one for all servers"),
        ("nats://u:hush@a,hush@b", "the addresses name 2 different users"),
        ("nats://a,ws://b", "a client speaks WebSocket to all servers or to none"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_a_line_that_names_the_setting(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        options_from(text, setting="NATS_URL")
    assert str(caught.value).startswith("NATS_URL: ")
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def good() -> str:
    return Operator().account("SHOP").user("anna").credentials


def test_a_credentials_file_is_read_each_time_as_it_is_then(tmp_path: Path, good: str) -> None:
    path = tmp_path / "x.creds"
    path.touch(mode=0o600)
    path.write_text(good.replace("\n", "\r\n"))  # as Windows writes it
    file = CredentialsFile(path, setting="--creds")
    token = good.splitlines()[1].encode()
    assert file.token() == token
    signed = nkeys.from_seed(bytearray(good.splitlines()[5].encode())).sign(b"nonce")
    assert base64.b64decode(file.sign("nonce")) == signed
    path.write_text("")
    with pytest.raises(CredentialsError, match="x.creds: holds no user's token"):
        file.token()
    path.write_text(Operator().account("SHOP").user("bob").credentials)
    assert file.token() not in (b"", token)


def _half(text: str) -> str:
    return text.partition("-----BEGIN USER")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no file is there"),
        ("", "holds no user's token"),
        ("hello\n", "holds no user's token"),
        ("\x00\xff", "holds no user's token"),
        ("-----BEGIN NATS USER JWT-----", "holds no user's token"),
        ("half", "holds no user's seed"),
        ("seed", "its seed is damaged"),
        ("folder", "is no regular file"),
        ("pipe", "is no regular file"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_a_line_that_names_it(
    tmp_path: Path, good: str, content: str | None, said: str
) -> None:
    path = tmp_path / "x.creds"
    if content == "folder":
        path.mkdir()
    elif content == "pipe":
        if sys.platform == "win32":
            pytest.skip("named pipes are elsewhere on Windows")
        os.mkfifo(path)
    elif content is not None:
        made = {"half": _half(good), "seed": good.replace("\nSU", "\nSX")}
        path.write_text(made.get(content, content), encoding="utf-8")
        path.chmod(0o600)
    with pytest.raises(CredentialsError) as caught:
        CredentialsFile(path, setting="MESH_LAB_CREDS")
    expected = f"MESH_LAB_CREDS: {path}: {said}"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, who may read a file does not stand in its mode")
@pytest.mark.parametrize(
    ("mode", "usable"), [(0o600, True), (0o400, True), (0o440, True), (0o604, False), (0o644, False)]
)
def test_a_credentials_file_that_all_can_read_is_not_used(tmp_path: Path, good: str, mode: int, usable: bool) -> None:
    path = tmp_path / "x.creds"
    path.write_text(good)
    path.chmod(mode)
    if usable:
        assert CredentialsFile(path).token()
        return
    expected = f"--creds: .*x.creds: every user of this machine can read it .mode 0{mode:o}.; expected 0600"
    with pytest.raises(CredentialsError, match=expected):
        CredentialsFile(path, setting="--creds")


@pytest.mark.parametrize(
    ("subscribe", "inbox"),
    [
        (["_INBOX_till.>"], "_INBOX_till"),
        (["orders.>", "_INBOX_till.>"], "_INBOX_till"),
        (["_INBOX_till.>", "_INBOX_desk.>"], None),
        (["_INBOX.>"], None),
        ([], None),
        (None, None),
    ],
)
def test_a_credentials_file_tells_the_inbox_that_is_its_user_s_own(tmp_path: Path, subscribe, inbox) -> None:
    path = tmp_path / "x.creds"
    path.touch(mode=0o600)
    text = Operator().account("SHOP").user("till", subscribe=subscribe).credentials
    path.write_text(text)
    assert CredentialsFile(path).inbox() == inbox
    token = text.splitlines()[1]
    for changed in ("a.b.c", "a", token.split(".")[0], "a.e30.c"):
        path.write_text(text.replace(token, changed))
        assert CredentialsFile(path).inbox() is None


def test_a_credentials_file_that_cannot_be_read_says_why(
    tmp_path: Path, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.creds"
    path.write_text(good)

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root reads everything
    with pytest.raises(CredentialsError, match=r"x.creds: cannot be read \(Permission denied\)"):
        CredentialsFile(path)


def test_where_the_package_that_signs_is_missing_it_is_named(
    tmp_path: Path, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.creds").touch(mode=0o600)
    (tmp_path / "x.creds").write_text(good)
    really = builtins.__import__

    def without(name: str, *more: Any, **others: Any) -> Any:
        if name == "nkeys":
            raise ModuleNotFoundError("No module named 'nkeys'")
        return really(name, *more, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CredentialsError, match=r'the package nkeys is missing.*pip install "nats-py\[nkeys\]"'):
        CredentialsFile(tmp_path / "x.creds", setting="--creds")
