"""Accounts by signed tokens, and a service that decides who may come in."""

import asyncio
import hmac
import json
import secrets

import nats
import nats.errors
import pytest
from nats.aio.client import RawCredentials

from mesh_lab.errors import UnsupportedByBackendError
from mesh_lab.measure.load import deliver_load
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.security.accounts import Operator
from mesh_lab.security.auth_callout import AUDIENCE, SUBJECT, Grant, Login, serve_logins
from mesh_lab.security.certificates import Authority
from mesh_lab.security.tokens import Key, encode_token
from mesh_lab.servers.start import start_mesh


async def quiet(error: Exception) -> None:
    """Refusals are what these tests provoke."""


async def test_a_mesh_whose_operator_vouches_for_its_accounts_works_as_any_other() -> None:
    async with await start_mesh(servers=3, operator=Operator()) as mesh:
        client = await mesh.connect()
        info = await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
        assert len(info.cluster.replicas) == 2
        assert (await deliver_load(mesh.connect_options(), subject="load.x", messages=2_000)).lost == 0
        connections = (await (await mesh.connect(system=True)).request("$SYS.REQ.SERVER.PING.CONNZ")).data
        assert b"connections" in connections
        for server in mesh.servers.values():
            assert "SEED" not in server.config_file.read_text()


async def test_tokens_go_with_tls_and_with_regions() -> None:
    async with await start_mesh(regions={"eu": 1, "us": 1}, operator=Operator(), tls=Authority()) as mesh:
        assert (await mesh.connect(region="us")).is_connected


@pytest.mark.parametrize(
    "beside", [{"users_config": "{ }"}, {"accounts_config": "A { }"}, {"leaves": ["shop"]}, {"account_config": "x: 1"}]
)
async def test_what_an_operator_cannot_stand_beside_is_refused(beside) -> None:
    with pytest.raises(ValueError, match="an operator's tokens say who may come in"):
        await start_mesh(operator=Operator(), **beside)


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


async def gate(issuer: Key, password: str):
    return await start_mesh(
        accounts_config=f'AUTH {{ users: [ {{ user: porter, password: "{password}" }} ] }}, SHOP {{ }}',
        extra_config=f"authorization {{ auth_callout {{ issuer: {issuer.public}, account: AUTH, "
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
        told = json.loads((await client.request("$SYS.REQ.USER.INFO")).data)["data"]
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
        options = {"allow_reconnect": False, "error_cb": quiet, "connect_timeout": 5}
        with pytest.raises((nats.errors.Error, OSError)):
            client = await nats.connect(mesh.urls, user="anna", password="right", **options)
            await client.flush()


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
