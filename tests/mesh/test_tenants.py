"""Accounts by signed tokens, and a service that decides who may come in."""

import asyncio
import hmac
import json
import secrets
import stat

import nats
import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg
from nats.js.api import ExternalStream, StreamSource

from mesh_lab.errors import BadTokenError, UnsupportedByBackendError
from mesh_lab.measure.load import deliver_load
from mesh_lab.patterns.jetstream_api import api_prefix
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.patterns.wait import eventually
from mesh_lab.security.accounts import Account, Operator
from mesh_lab.security.auth_callout import AUDIENCE, SUBJECT, Grant, Login, _login, serve_logins
from mesh_lab.security.certificates import Authority
from mesh_lab.security.roles import edge
from mesh_lab.security.tokens import CurveKey, Key, encode_token
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


async def quiet(error: Exception) -> None:
    """Refusals are what these tests provoke."""


def _file(mesh: Mesh, account: Account) -> str:
    """Return a credentials file of who may do everything in an account."""
    path = mesh.directory / f"{account.name}.creds"
    path.touch(mode=0o600)
    path.write_text(account.user("owner").credentials)
    return str(path)


async def anna_is_refused(mesh: Mesh) -> None:
    """Expect a refusal, whether the servers say so at once or give up waiting for an answer."""
    options = {"allow_reconnect": False, "error_cb": quiet, "connect_timeout": 5}
    with pytest.raises((nats.errors.Error, OSError)):
        await (await nats.connect(mesh.urls, user="anna", password="right", **options)).flush()


async def test_a_mesh_whose_operator_vouches_for_its_accounts_works_as_any_other() -> None:
    async with await start_mesh(servers=3, operator=Operator()) as mesh:
        client = await mesh.connect()
        info = await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
        assert len(info.cluster.replicas) == 2
        assert (await deliver_load(mesh.connect_options(), subject="load.x", messages=2_000)).lost == 0
        connections = (await (await mesh.connect(system=True)).request("$SYS.REQ.SERVER.PING.CONNZ", timeout=5)).data
        assert b"connections" in connections
        for server in mesh.servers.values():
            assert "SEED" not in server.config_file.read_text()


async def test_tokens_go_with_tls_and_with_regions() -> None:
    async with await start_mesh(regions={"eu": 1, "us": 1}, operator=Operator(), tls=Authority()) as mesh:
        assert (await mesh.connect(region="us")).is_connected


@pytest.mark.parametrize("beside", [{"users_config": "{ }"}, {"accounts_config": "A { }"}, {"account_config": "x: 1"}])
async def test_what_an_operator_cannot_stand_beside_is_refused(beside) -> None:
    with pytest.raises(ValueError, match="an operator's tokens say who may come in"):
        await start_mesh(operator=Operator(), **beside)


async def test_a_leaf_node_joins_every_account_that_the_operator_has_and_each_is_a_world_of_its_own() -> None:
    operator = Operator()
    shop, bank = operator.account("SHOP"), operator.account("BANK")
    shop.edge = edge("till")
    starting = start_mesh(regions={"eu": 1}, leaves=["till"], operator=operator, tls=Authority())
    async with await starting as mesh:
        at_till, at_home, at_bank = [
            await mesh.connect(to=to, user_credentials=_file(mesh, account))
            for to, account in (("till", shop), ("eu-1", shop), ("eu-1", bank))
        ]
        await at_till.jetstream().add_stream(name="SALES", subjects=["sales.*"])
        heard = await at_home.subscribe("orders.>")
        await flush_through(at_home)
        await at_till.publish("orders.eu.1.paid", b"says the till")  # before the sale, on the same connection
        await at_till.jetstream().publish("sales.1", b"a CD")
        source = StreamSource(name="SALES", external=ExternalStream(api=api_prefix("till")))
        for client in (at_bank, at_home):
            await client.jetstream().add_stream(name="ALL-SALES", sources=[source])

        async def arrived() -> bool:
            return (await at_home.jetstream().stream_info("ALL-SALES")).state.messages == 1

        await eventually(arrived, within=10.0)
        assert heard.pending_msgs == 0, "the leaf node has the right to deliver its stream, and to nothing else"
        assert (await at_bank.jetstream().stream_info("ALL-SALES")).state.messages == 0
        with pytest.raises(nats.js.errors.NotFoundError, match="stream not found"):
            await at_bank.jetstream(domain="till").stream_info("SALES")
        assert (await at_till.jetstream().stream_info("SALES")).state.messages == 1
        modes = {stat.S_IMODE(path.stat().st_mode) for path in mesh.directory.glob("*.creds")}
        assert modes == {0o600}


async def test_users_of_an_operator_are_not_reloaded() -> None:
    async with await start_mesh(operator=Operator()) as mesh:
        with pytest.raises(UnsupportedByBackendError, match="its operator's; send a token to"):
            await mesh.reload(users_config="")


async def test_another_operator_s_users_are_refused() -> None:
    async with await start_mesh(operator=Operator()) as mesh:
        stranger = Operator().account("LAB").user("lab")
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await nats.connect(
                mesh.urls, user_credentials=RawCredentials(stranger.credentials), allow_reconnect=False, error_cb=quiet
            )


# Auth callout


async def gate(issuer: Key, password: str, xkey: str = ""):
    # With a user that signs in by nkey, the servers send every client a nonce to sign.
    users = f'{{ user: porter, password: "{password}" }}, {{ nkey: {Key.new("user").public} }}'
    return await start_mesh(
        accounts_config=f"AUTH {{ users: [ {users} ] }}, SHOP {{ }}",
        extra_config=f"authorization {{ auth_callout {{ issuer: {issuer.public}, account: AUTH, {xkey} "
        "auth_users: [porter, lab, sys] } }",
    )


async def decide(login: Login) -> Grant | None:
    if login.user == "broken":
        raise LookupError("the directory is away")
    if hmac.compare_digest(login.password, "right"):
        return Grant(login.user, "SHOP", publish=["orders.>", "$SYS.REQ.USER.INFO"], subscribe=["_INBOX.>"])
    return None


async def test_a_service_decides_who_comes_in_and_as_whom() -> None:
    issuer, password, seen = Key.new("account"), secrets.token_urlsafe(16), []

    async def noting(login: Login) -> Grant | None:
        seen.append(login)
        return await decide(login)

    async with await gate(issuer, password) as mesh:
        porter = await nats.connect(mesh.urls, user="porter", password=password)
        await serve_logins(porter, issuer, noting)
        await flush_through(porter)
        client = await nats.connect(mesh.urls, user="anna", password="right", name="till", error_cb=quiet)
        told = json.loads((await client.request("$SYS.REQ.USER.INFO", timeout=5)).data)["data"]
        assert told["account"] == "SHOP"
        # A set: the server tells them in no order.
        assert set(told["permissions"]["publish"]["allow"]) == {"orders.>", "$SYS.REQ.USER.INFO"}
        assert (seen[0].user, seen[0].client, seen[0].host) == ("anna", "till", "127.0.0.1")
        assert "right" not in repr(seen[0])
        await client.close()
        for user, tried in {"anna": "wrong", "broken": "right", "porter": "right"}.items():
            with pytest.raises(nats.errors.Error, match="Authorization Violation"):
                await nats.connect(mesh.urls, user=user, password=tried, allow_reconnect=False, error_cb=quiet)
        await porter.close()


async def test_where_nobody_decides_nobody_comes_in() -> None:
    issuer, password = Key.new("account"), secrets.token_urlsafe(16)
    async with await gate(issuer, password) as mesh:
        assert (await mesh.connect()).is_connected, "the lab's own user needs no callout"
        await anna_is_refused(mesh)


async def test_a_question_that_no_server_signed_is_not_answered() -> None:
    issuer, password = Key.new("account"), secrets.token_urlsafe(16)
    forger, victim = Key.new("account"), Key.new("user")
    async with await gate(issuer, password) as mesh:
        porter = await nats.connect(mesh.urls, user="porter", password=password)
        await serve_logins(porter, issuer, decide)
        await flush_through(porter)
        asked = {
            "server_id": {"id": "NASERVER"},
            "user_nkey": victim.public,
            "connect_opts": {"user": "anna", "pass": "right"},
        }
        forged = encode_token("authorization_request", asked, subject=victim.public, signer=forger, audience=AUDIENCE)
        for question in (forged.encode(), b"nonsense", b"\xff"):
            with pytest.raises((nats.errors.TimeoutError, asyncio.TimeoutError)):
                await porter.request(SUBJECT, question, timeout=0.5)
        await porter.close()


async def test_a_question_that_is_encrypted_is_read_and_its_answer_is_encrypted() -> None:
    issuer, password, xkey, seen = Key.new("account"), secrets.token_urlsafe(16), CurveKey.new(), []
    asked: list[bytes] = []

    async def noting(login: Login) -> Grant | None:
        seen.append(login)
        return await decide(login)

    async with await gate(issuer, password, f"xkey: {xkey.public},") as mesh:
        porter = await nats.connect(mesh.urls, user="porter", password=password)
        said: list[str] = []
        deaf = await serve_logins(porter, issuer, noting, log=said.append)
        for _ in range(2):
            await anna_is_refused(mesh)
        (line,) = said
        assert line.startswith("a question about a login is passed over: it is encrypted; pass the pair of keys whose")
        assert seen == []
        await deaf.unsubscribe()

        async def listen(msg: Msg) -> None:
            asked.append(msg.data)

        await porter.subscribe(SUBJECT, cb=listen)
        await serve_logins(porter, issuer, noting, xkey=xkey)
        await flush_through(porter)
        client = await nats.connect(mesh.urls, user="anna", password="right", error_cb=quiet)
        assert json.loads((await client.request("$SYS.REQ.USER.INFO", timeout=5)).data)["data"]["account"] == "SHOP"
        assert seen[0].user == "anna"
        assert asked[0].startswith(b"xkv1")
        assert b"right" not in asked[0]
        await client.close()
        await porter.close()


async def test_a_service_with_a_key_for_decryption_says_that_its_servers_have_none() -> None:
    issuer, password, said = Key.new("account"), secrets.token_urlsafe(16), list[str]()
    async with await gate(issuer, password) as mesh:
        porter = await nats.connect(mesh.urls, user="porter", password=password)
        await serve_logins(porter, issuer, decide, xkey=(key := CurveKey.new()), log=said.append)
        await flush_through(porter)
        for _ in range(2):
            await anna_is_refused(mesh)
        (line,) = said
        assert f"it is not encrypted; set `xkey: {key.public}`" in line
        await porter.close()


def test_what_one_key_seals_the_other_opens_and_no_third() -> None:
    one, other, third = CurveKey.new(), CurveKey.new(), CurveKey.new()
    assert (one.seed[:2], one.public[0], len(one.public)) == ("SX", "X", 56)
    assert one.seed not in repr(one)
    sealed = one.seal(b"secret", other.public)
    assert other.open(sealed, one.public) == b"secret"
    for reader, writer, data in (
        (third, one, sealed),
        (other, third, sealed),
        (other, one, b"xkv1"),
        (other, one, b""),
    ):
        with pytest.raises(BadTokenError, match="is not for key X"):
            reader.open(data, writer.public)


async def test_a_login_by_token_by_nkey_and_by_credentials_says_so() -> None:
    issuer, password, seen = Key.new("account"), secrets.token_urlsafe(16), list[Login]()
    user, stranger = Key.new("user"), Operator().account("SHOP").user("anna")

    async def note(login: Login) -> Grant | None:
        seen.append(login)
        return Grant("anyone", "SHOP")

    async with await gate(issuer, password) as mesh:
        porter = await nats.connect(mesh.urls, user="porter", password=password)
        await serve_logins(porter, issuer, note)
        await flush_through(porter)
        for login in (
            {"token": "abc"},
            {"nkeys_seed_str": user.seed},
            {"user_credentials": RawCredentials(stranger.credentials)},
            {},
        ):
            client = await nats.connect(mesh.urls, error_cb=quiet, **login)
            await client.close()
        await porter.close()
    by_token, by_nkey, by_jwt, nameless = seen
    assert (by_token.token, by_token.user, by_token.jwt, by_token.nkey) == ("abc", "", "", "")
    assert (by_nkey.nkey, bool(by_nkey.signature), bool(by_nkey.nonce)) == (user.public, True, True)
    # Servers without an operator pass the signature on, and not the token.
    assert (by_jwt.jwt, bool(by_jwt.signature), by_jwt.user) == ("", True, "")
    assert _login({"connect_opts": {"jwt": "a.b.c", "nkey": "U"}}).jwt == "a.b.c"
    assert (nameless.token, nameless.jwt, nameless.nkey, nameless.certificates) == ("", "", "", ())
    assert "abc" not in repr(by_token)


@pytest.mark.parametrize(
    ("tls", "certificates"),
    [
        ({"certs": ["own", "issuer"]}, ("own", "issuer")),
        ({"verified_chains": [["own", "root"]], "certs": ["other"]}, ("own", "root")),
        ({"version": "1.3"}, ()),
        (None, ()),
    ],
)
def test_a_login_over_tls_shows_the_certificates(tls: dict | None, certificates: tuple[str, ...]) -> None:
    claims = {"connect_opts": {"user": "anna"}, "client_info": {"host": "h"}, "client_tls": tls}
    assert _login(claims).certificates == certificates
