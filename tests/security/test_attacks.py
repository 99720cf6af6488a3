"""Attacks on the order mesh: what each attacker has, what refuses it, and that whoever has the right to succeeds.

The table of them is `attacks.md`, which a test keeps in step; ``python tests/security/test_attacks.py`` writes it.
"""

import asyncio
import contextlib
import datetime
import hmac
import itertools
import json
import os
import re
import secrets
import ssl
import stat
import subprocess
import urllib.request
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import nats
import nats.errors
import nats.js.errors
import nkeys
import psutil
import pytest
import trustme
from locked_mesh import PLACED, LockedMesh, Party, kept
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg

from mesh_lab.errors import BadTokenError, CredentialsError, LoginRefusedError, NotReadyError, OrderFormatError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import WORKERS
from mesh_lab.orders.order import STREAM, decode, encode
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import ReadModel
from mesh_lab.patterns.connection import connect, is_no_responders, publish_if_connected
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.jetstream_wait import EXPECTS_NO_STREAM, flush_through
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import eventually
from mesh_lab.security.accounts import Account, Operator, announce
from mesh_lab.security.auth_callout import AUDIENCE, SUBJECT, Grant, Login, _request, serve_logins
from mesh_lab.security.certificates import Authority
from mesh_lab.security.roles import user_of
from mesh_lab.security.tokens import CurveKey, Key, credentials, encode_token, user_claims
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

TABLE = Path(__file__).with_name("attacks.md")
VIOLATION = "nats: 'Authorization Violation'"
Test = TypeVar("Test", bound=Callable[..., Any])


class Attack(NamedTuple):
    name: str
    holds: str
    refused_by: str


ATTACKS: list[Attack] = []


def attack(name: str, holds: str, refused_by: str) -> Callable[[Test], Test]:
    """Note an attack that a test makes."""
    ATTACKS.append(Attack(name, holds, refused_by))
    return lambda test: test


async def quiet(error: Exception) -> None:
    """Refusals are what these tests provoke."""


# Who is it?

INTRUDERS: dict[str, tuple[str, str, Callable[[LockedMesh], str | None]]] = {}


def intruder(name: str, holds: str, refused_by: str) -> Callable[[Callable[[LockedMesh], str | None]], object]:
    def note(make: Callable[[LockedMesh], str | None]) -> object:
        ATTACKS.append(Attack(name, holds, refused_by))
        INTRUDERS[name] = (holds, refused_by, make)
        return make

    return note


def _worker(locked: LockedMesh) -> str:
    return user_of(locked.keyring.account, "worker", "worker-7").credentials


def _token(text: str) -> str:
    return text.splitlines()[1]


@intruder("come in without credentials", "nothing", "the server: every connection signs in")
def _(locked: LockedMesh) -> None:
    return None


@intruder("be another operator's user", "an operator of one's own", "the chain of signatures ends at another operator")
def _(locked: LockedMesh) -> str:
    return user_of(Operator().account("ORDERS"), "worker").credentials


@intruder("be a user of an account that nobody announced", "an account that the attacker signed", "no such account")
def _(locked: LockedMesh) -> str:
    return user_of(Account("ORDERS", Key.new("operator")), "worker").credentials


@intruder("widen one's rights in the token", "a worker's credentials", "the signature: the token was changed")
def _(locked: LockedMesh) -> str:
    text = _worker(locked)
    header, body, signature = _token(text).split(".")
    claims = json.loads(urlsafe_b64decode(body + "=="))
    claims["nats"]["pub"] = {"allow": [">"]}
    forged = urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return text.replace(_token(text), f"{header}.{forged}.{signature}")


@intruder(
    "sign in with a token that was read somewhere",
    "a worker's token, not the seed",
    "the nonce: only the seed signs it",
)
def _(locked: LockedMesh) -> str:
    text = _worker(locked)
    return text.replace(text.splitlines()[5], Key.new("user").seed)


@intruder("sign in as the account itself", "the account's token and seed", "a user's token is expected")
def _(locked: LockedMesh) -> str:
    return credentials(locked.keyring.account.token(), locked.keyring.account.key)


@intruder("make another user of oneself", "a worker's credentials", "the issuer: users are signed by an account")
def _(locked: LockedMesh) -> str:
    own, more = Key(_worker(locked).splitlines()[5], ""), Key.new("user")
    own = replace(own, public=json.loads(urlsafe_b64decode(_token(_worker(locked)).split(".")[1] + "=="))["sub"])
    return credentials(encode_token("user", user_claims(None, None), subject=more.public, signer=own), more)


@intruder("use a token that nobody signed", "the public key of the account", "the algorithm: `none` is none")
def _(locked: LockedMesh) -> str:
    key = Key.new("user")
    token = encode_token("user", user_claims(None, None), subject=key.public, signer=locked.keyring.account.key)
    header = urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    return credentials(f"{header}.{token.split('.')[1]}.", key)


@intruder("come back when one's time is over", "credentials of yesterday", "the token's time")
def _(locked: LockedMesh) -> str:
    return user_of(locked.keyring.account, "worker", "worker-8", lives_for=-60).credentials


@pytest.mark.parametrize("name", INTRUDERS)
async def test_who_is_not_known_is_not_let_in(locked: LockedMesh, name: str) -> None:
    *_, make = INTRUDERS[name]
    with pytest.raises(nats.errors.Error) as refused:
        await locked.enter(make(locked))
    assert str(refused.value) == VIOLATION
    assert (await locked.enter(_worker(locked))).client.is_connected, "the control: a worker is let in"


async def _why_closed(locked: LockedMesh, party: Party) -> str:
    def reasons() -> list[str]:
        closed = locked.mesh.servers["n1"].monitor.connz("state=closed")["connections"]
        return [one["reason"] for one in closed if one["cid"] == party.number]

    return (await eventually(reasons, within=5.0))[-1]


@attack("use a stolen file after it was revoked", "a worker's credentials file", "the account's list of revocations")
@attack("stay connected after one was revoked", "a connection", "the servers, which hang up when the account changes")
async def test_a_revoked_user_is_put_out_and_stays_out(locked: LockedMesh) -> None:
    account = locked.keyring.account
    stolen, own = (user_of(account, "worker", name) for name in ("worker-5", "worker-6"))
    thief, worker = await locked.enter(stolen.credentials), await locked.enter(own.credentials)
    account.revoke(stolen)
    async with await locked.mesh.connect(system=True) as system:
        await announce(system, account, servers=1)
    await eventually(lambda: thief.client.is_closed, within=5.0)
    assert await _why_closed(locked, thief) == "Credentials Revoked"
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await locked.enter(stolen.credentials)
    assert worker.client.is_connected
    assert (await locked.enter(own.credentials)).client.is_connected


@attack(
    "stay connected when one's time is over", "a connection of a guest", "the servers, which hang up at that second"
)
async def test_a_guest_is_put_out_when_the_time_is_over(locked: LockedMesh) -> None:
    guest = await locked.enter(user_of(locked.keyring.account, "auditor", "guest", lives_for=4).credentials)
    own = await locked.role("auditor")
    await eventually(lambda: guest.client.is_closed, within=8.0)
    assert await _why_closed(locked, guest) == "Authentication Expired"
    assert own.client.is_connected


@attack("repeat a login that was overheard", "the line CONNECT of a worker", "the nonce: each connection has its own")
async def test_a_login_is_good_for_one_connection(locked: LockedMesh) -> None:
    text = _worker(locked)
    key = Key(text.splitlines()[5], "")

    async def sign_in(nonce: str | None) -> tuple[str, str]:
        reader, writer, info = await _open_with_tls(locked.mesh.servers["n1"].port, locked.tls)
        signed = urlsafe_b64encode(key.sign((nonce or info["nonce"]).encode())).decode().rstrip("=")
        login = {"jwt": _token(text), "sig": signed, "verbose": False}
        writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
        reply = (await asyncio.wait_for(reader.readline(), 5)).decode().strip()
        writer.close()
        return info["nonce"], reply

    nonce, reply = await sign_in(None)
    assert reply == "PONG"
    assert (await sign_in(nonce))[1] == "-ERR 'Authorization Violation'"


async def _open_with_tls(
    port: int, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, Any]]:
    """Return a connection to a server's port as a program of one's own opens it, and the server's greeting."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    info = json.loads((await asyncio.wait_for(reader.readline(), 5)).removeprefix(b"INFO "))
    await writer.start_tls(context, server_hostname="127.0.0.1")
    return reader, writer, info


# What may it do?


@dataclass(frozen=True)
class Forbidden:
    """What a service tries that is not in its row of the table of roles."""

    name: str
    role: str
    subject: str
    rightful: str = "owner"
    payload: bytes = b""
    subscribe: bool = False


WIDE = json.dumps({"name": STREAM, "subjects": ["orders.>"], "storage": "file", "num_replicas": 1}).encode()
MINE = {"ack_policy": "none", "deliver_policy": "all", "name": "mine", "deliver_subject": "_INBOX_worker.x"}
GROUP = {"durable_name": WORKERS, "ack_policy": "explicit", "deliver_policy": "all", "max_ack_pending": 1}
FORBIDDEN = [
    Forbidden("place an order of its own", "worker", "orders.eu.x1.placed", "publisher"),
    Forbidden("say that an order is paid", "publisher", "orders.eu.000001.paid", "worker"),
    Forbidden("say that an order is shipped", "read-model", "orders.eu.000001.shipped", "worker"),
    Forbidden("place an order beside the audit", "auditor", "orders.eu.x2.placed", "publisher"),
    Forbidden("place an order while it deploys", "deployer", "orders.eu.x3.placed", "publisher"),
    Forbidden("ship what it was to be paid for", "payment", "orders.eu.000001.shipped", "shipping"),
    Forbidden("cancel an order beside the saga", "publisher", "orders.eu.000001.cancelled", "stock"),
    Forbidden("give money back", "shipping", "effects.refund.000001", "payment"),
    Forbidden("say what is in stock", "payment", "effects.reserve.000001", "stock"),
    Forbidden("take payment's orders", "stock", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.payment", "payment"),
    Forbidden("acknowledge payment's orders", "shipping", "$JS.ACK.ORDERS.payment.1.1.1.1.1", "payment"),
    Forbidden("place an order past the till", "store", "orders.eu.x4.placed", "publisher"),
    Forbidden("listen to what other stores sell", "store", "till.>", subscribe=True),
    Forbidden("read the event store", "ledger", "$JS.API.CONSUMER.CREATE.ORDERS", "deployer"),
    Forbidden("place an order beside the books", "ledger", "orders.eu.x5.placed", "publisher"),
    Forbidden("listen to all orders", "worker", "orders.>", subscribe=True),
    Forbidden("listen to everything", "worker", ">", subscribe=True),
    Forbidden("read all services' replies", "worker", "_INBOX.>", subscribe=True),
    Forbidden("read another worker's replies", "worker", "_INBOX_worker-2.>", "worker-2", subscribe=True),
    Forbidden("reply in the read model's place", "worker", "read_model.summary", "read-model", subscribe=True),
    Forbidden("listen to what becomes of others' calls", "worker", "$JS.EVENT.>", subscribe=True),
    Forbidden("make a stream", "worker", "$JS.API.STREAM.CREATE.LOOT", "deployer", b'{"name":"LOOT"}'),
    Forbidden("change the stream", "worker", "$JS.API.STREAM.UPDATE.ORDERS", "deployer", WIDE),
    Forbidden("delete the stream", "worker", "$JS.API.STREAM.DELETE.ORDERS"),
    Forbidden("delete the stream", "deployer", "$JS.API.STREAM.DELETE.ORDERS"),
    Forbidden("empty the stream", "worker", "$JS.API.STREAM.PURGE.ORDERS"),
    Forbidden("remove one event", "worker", "$JS.API.STREAM.MSG.DELETE.ORDERS", payload=b'{"seq":1}'),
    Forbidden("read any one event", "worker", "$JS.API.STREAM.MSG.GET.ORDERS", payload=b'{"seq":1}'),
    Forbidden("read any one event", "deployer", "$JS.API.STREAM.MSG.GET.ORDERS", payload=b'{"seq":1}'),
    Forbidden("copy the whole stream", "worker", "$JS.API.STREAM.SNAPSHOT.ORDERS"),
    Forbidden("move the stream's leader", "worker", "$JS.API.STREAM.LEADER.STEPDOWN.ORDERS"),
    Forbidden("list the streams", "worker", "$JS.API.STREAM.NAMES", "deployer"),
    Forbidden(
        "make a consumer", "worker", "$JS.API.CONSUMER.CREATE.ORDERS.mine", "deployer", json.dumps(MINE).encode()
    ),
    Forbidden(
        "change its group",
        "worker",
        f"$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.{WORKERS}",
        "deployer",
        json.dumps({"stream_name": STREAM, "config": GROUP}).encode(),
    ),
    Forbidden("delete its group", "worker", f"$JS.API.CONSUMER.DELETE.ORDERS.{WORKERS}"),
    Forbidden("pause its group", "worker", f"$JS.API.CONSUMER.PAUSE.ORDERS.{WORKERS}"),
    Forbidden(
        "change the workers' group",
        "read-model",
        f"$JS.API.CONSUMER.CREATE.ORDERS.{WORKERS}.orders.*.*.placed",
        "deployer",
    ),
    Forbidden("take another consumer's orders", "worker", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.read-model", "read-model"),
    Forbidden("take the workers' orders", "read-model", f"$JS.API.CONSUMER.MSG.NEXT.ORDERS.{WORKERS}", "worker"),
    Forbidden("read a bucket that is another's", "worker", "$JS.API.DIRECT.GET.KV_PRICES.$KV.PRICES.cd"),
    Forbidden("watch a bucket that is another's", "worker", "$KV.PRICES.>", subscribe=True),
    Forbidden("write to a bucket that is another's", "worker", "$KV.PRICES.cd", payload=b"0.01"),
    Forbidden("ask for the connections of all", "worker", "$SYS.REQ.SERVER.PING.CONNZ", "system"),
    Forbidden("send the servers another account", "worker", "$SYS.REQ.CLAIMS.UPDATE", "system"),
]
for one in FORBIDDEN:
    way = "subscribe" if one.subscribe else "publish"
    ATTACKS.append(
        Attack(one.name, f"a user's credentials, role `{one.role}`", f"its role: no right to {way} to `{one.subject}`")
    )


@pytest.mark.parametrize("tried", FORBIDDEN, ids=lambda one: f"{one.role}: {one.name}")
async def test_a_service_may_do_what_its_role_says_and_nothing_else(locked: LockedMesh, tried: Forbidden) -> None:
    attacker = await locked.role(tried.role)
    rightful = await _rightful(locked, tried.rightful)

    def act(party: Party, payload: bytes) -> Any:
        if tried.subscribe:
            return party.client.subscribe(tried.subject)
        reply = f"{party.client.new_inbox()}"
        return party.client.publish(tried.subject, payload, reply=reply, headers=EXPECTS_NO_STREAM)

    way = "subscription to" if tried.subscribe else "publish to"
    refusal = f'nats: permissions violation for {way} "{tried.subject}"'
    assert (await attacker.complaint(act(attacker, tried.payload))).lower() == refusal.lower()
    assert await rightful.complaint(act(rightful, b"{")) == ""  # understood by no call: it changes nothing


async def _rightful(locked: LockedMesh, who: str) -> Party:
    if who == "owner":
        return await locked.owner()
    if who == "system":
        return await locked.enter(locked.operator.system.user("admin").credentials)
    return await locked.role(who.partition("-")[0] if who.startswith("worker") else who, who)


async def _ask(party: Party, subject: str, payload: bytes = b"") -> Msg:
    """Return the first message that comes to one's inbox; nats-py's ``request`` knows a delivered one by no subject."""
    inbox = party.client.new_inbox()
    replies = await party.client.subscribe(inbox)
    await party.client.publish(subject, payload, reply=inbox, headers=EXPECTS_NO_STREAM)
    return await replies.next_msg(timeout=1.0)


async def _take(worker: Party) -> Msg:
    """Return an order that a worker has taken and not acknowledged."""
    return await _ask(worker, f"$JS.API.CONSUMER.MSG.NEXT.ORDERS.{WORKERS}", b'{"batch":1}')


async def _in_hand(locked: LockedMesh) -> int:
    auditor = await locked.role("auditor")
    return (await auditor.client.jetstream().consumer_info(STREAM, WORKERS)).num_ack_pending


@attack("acknowledge an order that others took", "role `publisher`, and the reply subject", "its role: no right to it")
@attack("have the stream acknowledge it", "role `publisher`", "the server: no client names such a reply subject")
async def test_nobody_but_its_group_acknowledges_an_order(locked: LockedMesh) -> None:
    worker, publisher = await locked.role("worker"), await locked.role("publisher")
    msg, taken = await _take(worker), await _in_hand(locked)
    complaint = await publisher.complaint(publisher.client.publish(msg.reply, b"+ACK"))
    assert complaint.startswith('nats: permissions violation for publish to "$js.ack.orders.workers.')
    ghost = publisher.client.publish("orders.eu.ghost.placed", b"", reply=msg.reply, headers=EXPECTS_NO_STREAM)
    assert (await publisher.complaint(ghost)).startswith("nats: permissions violation for publish with reply of")
    assert await _in_hand(locked) == taken
    await worker.client.request(msg.reply, b"+ACK", timeout=5)
    assert await _in_hand(locked) == taken - 1


@attack("have a stream's acknowledgement call the API", "role `publisher`", "the API: it is no request of the call's")
@pytest.mark.parametrize(
    "call", ["STREAM.DELETE.KV_PRICES", "STREAM.PURGE.KV_PRICES", f"CONSUMER.DELETE.ORDERS.{WORKERS}"]
)
async def test_an_acknowledgement_is_no_call_of_the_api(locked: LockedMesh, call: str) -> None:
    publisher, owner = await locked.role("publisher"), await locked.owner()
    heard = await owner.client.subscribe("$JS.EVENT.ADVISORY.API")
    await flush_through(owner.client)
    order = next(read_orders())
    payload, subject = encode(order), order.subject("placed")
    headers = {"Nats-Msg-Id": order.msg_id("placed")}  # stored already: nothing is added
    await publisher.client.publish(subject, payload, reply=f"$JS.API.{call}", headers=headers)
    said = json.loads(json.loads((await heard.next_msg(timeout=5)).data)["response"])["error"]["err_code"]
    assert said in (10025, 10038)  # no such field; a payload where none is expected
    js = owner.client.jetstream()
    assert (await js.stream_info("KV_PRICES")).state.messages == 1
    assert (await js.consumer_info(STREAM, WORKERS)).name == WORKERS
    await js.add_stream(name="SCRATCH", subjects=["scratch"])
    assert await js.purge_stream("SCRATCH")
    assert await js.delete_stream("SCRATCH")


@attack("store an event by naming its subject for a reply", "role `publisher`", "the readers: it is no order")
async def test_an_acknowledgement_is_no_event(locked: LockedMesh) -> None:
    publisher, owner, model = await locked.role("publisher"), await locked.owner(), ReadModel()
    order, js = next(read_orders()), owner.client.jetstream()
    headers = {"Nats-Msg-Id": order.msg_id("placed")}
    reply = "orders.eu.000001.shipped"
    await publisher.client.publish(order.subject("placed"), encode(order), reply=reply, headers=headers)
    stored = await eventually(lambda: _last(js, reply), within=5.0)
    with pytest.raises(OrderFormatError, match="not an order: .*stream"):
        decode(stored.data)
    worker = await locked.role("worker")
    await worker.client.jetstream().publish(reply, encode(order), headers={"Nats-Msg-Id": order.msg_id("shipped")})
    async with aclosing(read_in_order(owner.client, STREAM)) as batches:
        async for batch in batches:
            model.apply(batch)
            if model.summary().events.get("shipped"):
                break
    assert (model.summary().rejected, model.summary().events["shipped"]) == (1, 1)


async def _last(js: JetStreamContext, subject: str) -> RawStreamMsg | None:
    try:
        return await js.get_last_msg(STREAM, subject)
    except nats.js.errors.NotFoundError:
        return None


READER = {"name": "read-model", "ack_policy": "none", "deliver_policy": "all", "mem_storage": True, "num_replicas": 1}


@attack("change the group under one's own name", "role `read-model`", "the API: subject and request name two consumers")
@attack("push events back into the stream", "role `read-model`", "the API: the subject to deliver to makes a circle")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"durable_name": WORKERS}, "consumer name in subject does not match durable name in request"),
        ({"deliver_subject": "orders.eu.again.placed"}, "consumer deliver subject forms a cycle"),
    ],
)
async def test_a_reader_s_own_consumer_is_its_own(locked: LockedMesh, more: dict[str, str], said: str) -> None:
    reader = await locked.role("read-model")

    async def make(config: dict[str, Any]) -> dict[str, Any]:
        request = json.dumps({"stream_name": STREAM, "config": config}).encode()
        call = "$JS.API.CONSUMER.CREATE.ORDERS.read-model"
        return json.loads((await reader.client.request(call, request, timeout=5)).data)

    assert (await make({**READER, **more}))["error"]["description"] == said
    assert (await make(READER))["name"] == "read-model"


IDS = {
    "a wildcard": "*",
    "the wildcard of the rest": ">",
    "a dot": "a.b",
    "a blank": "a b",
    "a line end": "a\r\nPUB orders.eu.b.paid 0\r\n",
    "a NUL": "a\0b",
    "nothing": "",
    "33 characters": "a" * 33,
    "letters that are no ASCII": "ä",
}
for what in IDS:
    ATTACKS.append(
        Attack(f"smuggle a subject into an order's id: {what}", "an order form", "publisher and readers: no id")
    )


@pytest.mark.parametrize("what", IDS)
async def test_an_order_s_id_is_one_token_of_a_subject(locked: LockedMesh, what: str) -> None:
    publisher, owner = await locked.role("publisher"), await locked.owner()
    order = next(read_orders())
    evil = msgspec.structs.replace(order, id=IDS[what])
    before = (await owner.client.jetstream().stream_info(STREAM)).state.messages
    with pytest.raises(OrderFormatError, match=r"not an order: .* - at `\$.id`"):
        decode(encode(evil))
    with pytest.raises(OrderFormatError, match="not an order"):
        await place_orders(publisher.client, [evil])
    assert (await owner.client.jetstream().stream_info(STREAM)).state.messages == before
    assert await place_orders(publisher.client, [order]) == 1


@attack("smuggle a command into a header", "an order form", "nats-py: line ends in a header become blanks")
async def test_a_header_has_no_line_ends(locked: LockedMesh) -> None:
    publisher, owner = await locked.role("publisher"), await locked.owner()
    heard = await owner.client.subscribe("orders.eu.x.placed")
    await flush_through(owner.client)
    evil = EXPECTS_NO_STREAM | {"a": "b\r\nNats-Msg-Id: 1\r\n\r\nPUB c 0\r\n"}
    for headers in (evil, EXPECTS_NO_STREAM):
        assert await publish_if_connected(publisher.client, "orders.eu.x.placed", headers=headers)
        assert set((await heard.next_msg(timeout=5)).headers) == set(headers)


# What is another account's


@attack("hear another account's orders", "every right in an account of one's own", "the account: subjects end there")
@attack("read another account's replies", "every right in an account of one's own", "the account: inboxes, too")
async def test_another_account_hears_nothing(locked: LockedMesh) -> None:
    rival, owner = await locked.owner(locked.rival), await locked.owner()
    heard = [await party.client.subscribe(">") for party in (rival, owner)]
    for party in (rival, owner):
        await flush_through(party.client)
    auditor = await locked.role("auditor")
    await auditor.client.jetstream().stream_info(STREAM)
    publisher = await locked.role("publisher")
    await publisher.client.publish("orders.eu.x.placed", b"", headers=EXPECTS_NO_STREAM)
    await flush_through(publisher.client)
    subjects = []
    while "orders.eu.x.placed" not in subjects:
        subjects.append((await heard[1].next_msg(timeout=5)).subject)
    assert any(subject.startswith("_INBOX_auditor.") for subject in subjects)
    await flush_through(rival.client)
    assert heard[0].pending_msgs == 0


FOREIGN = {
    "place orders in another account's stream": ("orders.eu.r1.placed", "publisher"),
    "look at another account's stream": ("$JS.API.CONSUMER.INFO.ORDERS.workers", "auditor"),
    "take another account's orders": ("$JS.API.CONSUMER.MSG.NEXT.ORDERS.workers", "worker"),
    "read another account's bucket": ("$JS.API.DIRECT.GET.KV_PRICES.$KV.PRICES.cd", "owner"),
    "ask another account's read model": ("read_model.summary", "auditor"),
    "ask the servers who they are": ("$SYS.REQ.SERVER.PING", "system"),
    "give one's own account more room": ("$SYS.REQ.CLAIMS.UPDATE", "system"),
}
for name in FOREIGN:
    ATTACKS.append(Attack(name, "every right in an account of one's own", "the account: nobody there listens"))


@pytest.mark.parametrize("name", FOREIGN)
async def test_what_another_account_has_is_not_there(locked: LockedMesh, name: str) -> None:
    subject, rightful = FOREIGN[name]
    rival, other = await locked.owner(locked.rival), await _rightful(locked, rightful)
    if subject == "read_model.summary":
        model = await locked.role("read-model")

        async def reply_to(msg: Msg) -> None:
            await msg.respond(b"as of now")

        await model.client.subscribe(subject, cb=reply_to)
        await flush_through(model.client)
    payload = locked.rival.token().encode() if "CLAIMS" in subject else b""
    reply = await _ask(rival, subject, payload)
    if "CONSUMER.INFO" in subject:
        assert json.loads(reply.data)["error"]["description"] == "stream not found"
    else:
        assert is_no_responders(reply)
    assert not is_no_responders(found := await _ask(other, subject, payload))
    assert b"stream not found" not in found.data


@attack("see other accounts' connections", "every right in an account of one's own", "the servers: each sees its own")
async def test_an_account_sees_its_own_connections(locked: LockedMesh) -> None:
    rival, admin, _ = await locked.owner(locked.rival), await _rightful(locked, "system"), await locked.role("worker")

    async def seen(party: Party) -> set[str]:
        reply = await _ask(party, "$SYS.REQ.SERVER.PING.CONNZ", b'{"auth": true}')
        return {one["account"] for one in json.loads(reply.data)["data"]["connections"]}

    assert await seen(rival) == {locked.rival.public}
    assert {locked.rival.public, locked.keyring.account.public} < await seen(admin)


@attack("acknowledge another account's orders", "every right in an account, and the reply subject", "the account")
async def test_another_account_acknowledges_nothing(locked: LockedMesh) -> None:
    worker, rival = await locked.role("worker"), await locked.owner(locked.rival)
    msg, taken = await _take(worker), await _in_hand(locked)
    assert await rival.complaint(rival.client.publish(msg.reply, b"+ACK")) == "", "it may: in its own account"
    assert await _in_hand(locked) == taken
    await worker.client.request(msg.reply, b"+ACK", timeout=5)
    assert await _in_hand(locked) == taken - 1


@attack(
    "have a foreign account admitted",
    "an operator of one's own, a system user's help",
    "the servers: not signed by theirs",
)
async def test_an_account_that_the_operator_did_not_sign_is_refused(locked: LockedMesh) -> None:
    mine, theirs = Operator().account("MINE"), locked.operator.account("THEIRS")
    async with await locked.mesh.connect(system=True) as system:
        await announce(system, mine, theirs, servers=1)  # the servers keep what they are sent, and look when it is used
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await locked.owner(mine)
    assert (await locked.owner(theirs)).client.is_connected


# How much?

HUNG_UP = ("maximum payload exceeded", "maximum control line exceeded", "maximum subscriptions exceeded")
TOO_MUCH: dict[str, tuple[str, Callable[[LockedMesh, Party, int], Any], int]] = {}


def flood(name: str, said: str, most: int) -> Callable[[Callable[[LockedMesh, Party, int], Any]], object]:
    def note(act: Callable[[LockedMesh, Party, int], Any]) -> object:
        ATTACKS.append(Attack(name, "every right in an account of one's own", f"its limits: {said}"))
        TOO_MUCH[name] = (said, act, most)
        return act

    return note


@flood("send a message that is too large", "maximum payload exceeded", 1_000)
async def _(locked: LockedMesh, rival: Party, size: int) -> None:
    await rival.client.publish("x", bytes(size))


@flood("send headers that are too large", "maximum payload exceeded", 900)
async def _(locked: LockedMesh, rival: Party, size: int) -> None:
    await rival.client.publish("x", b"", headers={"a": "b" * size})


@flood("send a subject without end", "maximum control line exceeded", 3_000)
async def _(locked: LockedMesh, rival: Party, size: int) -> None:
    await rival.client.publish("x" * (size if size == 3_000 else 5_000), b"")


@flood("open connections without end", "maximum account active connections exceeded", 8)
async def _(locked: LockedMesh, rival: Party, count: int) -> None:
    for _ in range(count):
        await locked.owner(locked.rival)


@flood("subscribe without end", "maximum subscriptions exceeded", 19)
async def _(locked: LockedMesh, rival: Party, count: int) -> None:
    for number in range(count):
        await rival.client.subscribe(f"x.{number}")


@flood("make streams without end", "maximum number of streams reached", 2)
async def _(locked: LockedMesh, rival: Party, count: int) -> None:
    for number in range(count):
        await rival.client.jetstream().add_stream(name=f"S{number}", subjects=[f"s.{number}"])


@flood("make consumers without end", "maximum consumers limit reached", 3)
async def _(locked: LockedMesh, rival: Party, count: int) -> None:
    await rival.client.jetstream().add_stream(name="S", subjects=["s"])
    for number in range(count):
        await rival.client.jetstream().add_consumer("S", durable_name=f"c{number}")


@flood("fill the disk", "resource limits exceeded for account", 30)
async def _(locked: LockedMesh, rival: Party, count: int) -> None:
    await rival.client.jetstream().add_stream(name="S", subjects=["s"])
    for _ in range(count):
        await rival.client.jetstream().publish("s", bytes(900))


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_an_account_has_what_its_limits_give_it(locked: LockedMesh, name: str) -> None:
    said, act, most = TOO_MUCH[name]
    for amount, heard in ((most, ""), (2 * most, said)):
        rival, error, logged = await locked.owner(locked.rival), "", len(locked.mesh.logs("n1", last=None))
        try:
            await act(locked, rival, amount)
            await flush_through(rival.client)
        except nats.errors.Error as err:
            error = getattr(err, "description", None) or str(err)
        found = " ".join([error, *rival.complaints, str(rival.client.last_error or "")]).strip()
        if said in HUNG_UP and heard:  # nats-py may read the end before the reason; the server's log has it
            assert rival.client.is_closed
            found = locked.mesh.logs("n1", last=None)[logged:]
        assert (heard in found.lower()) if heard else not found, found
        await locked.leave()
        async with await locked.mesh.connect(user_credentials=locked.file_of(locked.rival)) as cleaner:
            for stream in await stream_names(cleaner):
                await cleaner.jetstream().delete_stream(stream)


# The wire


@dataclass
class Poser:
    """A program that listens where a server should be, and what it was told."""

    port: int = 0
    heard: bytes = b""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"


@asynccontextmanager
async def posing(certificate: trustme.LeafCert | None, *, talks_on: bool = True) -> AsyncIterator[Poser]:
    """Pose as a server: with a certificate, or in plain text with TLS stripped from INFO."""
    poser = Poser()
    info = {"server_id": "N", "version": "2.15.1", "auth_required": True, "nonce": "n", "headers": True}
    info |= {"max_payload": 1_000, "proto": 1} | ({"tls_required": True} if certificate else {})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(f"INFO {json.dumps(info)}\r\n".encode())
            if certificate is not None:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                certificate.configure_cert(context)
                await writer.start_tls(context)
            while talks_on and (line := await reader.readline()):
                poser.heard += line
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    poser.port = server.sockets[0].getsockname()[1]
    async with server:
        yield poser


YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
POSERS: dict[str, tuple[str, str, Callable[[Authority], trustme.LeafCert]]] = {
    "pose as a server with a certificate of another authority": (
        "an authority of one's own",
        "unable to get local issuer certificate",
        lambda ours: trustme.CA().issue_cert("127.0.0.1"),
    ),
    "pose as a server with the certificate of another host": (
        "a certificate of ours for another name",
        "IP address mismatch",
        lambda ours: ours._ca.issue_cert("evil.example"),
    ),
    "pose as a server with a certificate that has expired": (
        "an old certificate of ours, and its key",
        "certificate has expired",
        lambda ours: ours._ca.issue_cert("127.0.0.1", not_after=YESTERDAY),
    ),
}
for name, (holds, _, _) in POSERS.items():
    ATTACKS.append(Attack(name, holds, "the client: the certificate does not stand for this server"))


@pytest.mark.parametrize("name", POSERS)
async def test_a_client_tells_a_poser_nothing(tmp_path: Path, name: str) -> None:
    _, said, issue = POSERS[name]
    ours = Authority()
    login = {"user": "anna", "password": "a long password", "tls": ours.context(tmp_path)}
    async with posing(issue(ours)) as poser:
        with pytest.raises(LoginRefusedError, match=said):
            await connect({**login, "servers": [poser.url]}, within=5.0)
        assert b"CONNECT" not in poser.heard
    async with posing(ours._ca.issue_cert("127.0.0.1")) as server:
        await (await connect({**login, "servers": [server.url]}, within=5.0)).close()
        assert b"a long password" in server.heard


LOGINS = {
    "a password": {"user": "anna", "password": "a long password"},
    "a token": {"token": "a long token"},
    "a credentials file": {},
    "a certificate alone": {},
}
for what in LOGINS:
    ATTACKS.append(
        Attack(
            f"strip TLS from INFO, to read {what}", "the wire between", "the client: it asked for TLS, and gets none"
        )
    )


@pytest.mark.parametrize("what", LOGINS)
async def test_a_client_that_is_to_talk_tls_tells_nothing_in_plain_text(
    locked: LockedMesh, tmp_path: Path, what: str
) -> None:
    login: dict[str, Any] = {**LOGINS[what], "tls": locked.tls}
    if what == "a credentials file":
        login["user_credentials"] = locked.keyring.file("worker")
    async with posing(None) as poser:
        with pytest.raises(LoginRefusedError, match="the server offers no TLS, and it was asked for"):
            await connect({**login, "servers": [poser.url]}, within=5.0)
        told = json.loads(poser.heard.splitlines()[0].removeprefix(b"CONNECT ")) if poser.heard else {}
        assert {"user", "pass", "auth_token", "jwt", "sig", "nkey"}.isdisjoint(told)
    if what == "a credentials file":
        await (await connect({**login, "servers": locked.mesh.urls}, within=5.0)).close()
    else:
        async with posing(None) as server:
            await (await connect({**LOGINS[what], "servers": [server.url]}, within=5.0)).close()


@attack("talk plain text to a server", "a worker's credentials", "the server: TLS is required")
@attack("agree on an older TLS", "a worker's credentials", "the server: 1.3 at least")
async def test_a_server_talks_tls_1_3_alone(locked: LockedMesh) -> None:
    port = locked.mesh.servers["n1"].port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    info = json.loads((await reader.readline()).removeprefix(b"INFO "))
    assert info["tls_required"]
    writer.write(b"CONNECT {}\r\nPING\r\n")
    assert b"PONG" not in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    old = ssl.create_default_context(cafile=locked.tls.files.authority)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="protocol version|alert"):
        await _open_with_tls(port, old)
    _, writer, _ = await _open_with_tls(port, locked.tls)
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.close()


# Certificates for users

AUTHORITY = Authority()
WORKS = """
{ user: "worker@mesh.example", permissions: { publish: ["orders.*.*.paid"], subscribe: "_INBOX_worker.>" } }
{ user: "publisher@mesh.example", permissions: { publish: ["orders.*.*.placed"], subscribe: "_INBOX_publisher.>" } }
"""
certified = kept(lambda: start_mesh(tls=AUTHORITY, client_auth="certificate", users_config=WORKS))
CERTIFICATES: dict[str, tuple[str, str, Callable[[], trustme.LeafCert | None]]] = {
    "come in without a certificate": ("the authority's certificate", "didn't provide a certificate", lambda: None),
    "come in with a certificate of another authority": (
        "an authority of one's own",
        "certificate signed by unknown authority",
        lambda: trustme.CA().issue_cert("worker@mesh.example"),
    ),
    "come in with a certificate that has expired": (
        "an old certificate of ours, and its key",
        "certificate has expired or is not yet valid",
        lambda: AUTHORITY._ca.issue_cert("worker@mesh.example", not_after=YESTERDAY),
    ),
    "come in with the certificate of a visitor": (
        "a certificate of ours that names no user",
        "Authorization Violation",
        lambda: AUTHORITY._ca.issue_cert("visitor@mesh.example"),
    ),
    "come in with the certificate of a server": (
        "a server's certificate, and its key",
        "Authorization Violation",
        lambda: AUTHORITY._ca.issue_cert("127.0.0.1", "localhost"),
    ),
}
for name, (holds, said, _) in CERTIFICATES.items():
    by = "the server: no user has that name" if said.startswith("Auth") else "TLS, before NATS is asked"
    ATTACKS.append(Attack(name, holds, by))


async def _enter_certified(mesh: Mesh, certificate: trustme.LeafCert | None, **options: Any) -> nats.NATS:
    context = ssl.create_default_context(cafile=mesh.directory / "authority.crt")
    if certificate is not None:
        certificate.configure_cert(context)
    return await nats.connect(mesh.urls, tls=context, allow_reconnect=False, **{"error_cb": quiet, **options})


@pytest.mark.parametrize("name", CERTIFICATES)
async def test_a_certificate_names_its_user(certified: Mesh, name: str) -> None:
    _, said, make = CERTIFICATES[name]
    log = len(certified.logs("n1", last=None))
    with pytest.raises((OSError, nats.errors.Error)) as refused:
        await _enter_certified(certified, make())

    def found() -> str:  # TLS tells the client first, and the server says why afterwards
        return f"{refused.value!r} {certified.logs('n1', last=None)[log:]}"

    with contextlib.suppress(NotReadyError):
        await eventually(lambda: re.search(said, found(), re.IGNORECASE), within=5.0)
    assert re.search(said, found(), re.IGNORECASE), found()
    client = await _enter_certified(certified, AUTHORITY._ca.issue_cert("worker@mesh.example"))
    assert client.is_connected
    await client.close()


@attack(
    "do another role's work by one's certificate", "a worker's certificate and key", "the rights of the user it names"
)
async def test_a_certificate_has_its_user_s_rights(certified: Mesh) -> None:
    for role, complaint in (
        ("worker", 'nats: permissions violation for publish to "orders.eu.x.placed"'),
        ("publisher", ""),
    ):
        complaints: list[str] = []

        async def note(error: Exception, complaints: list[str] = complaints) -> None:
            complaints.append(str(error).lower())

        certificate = AUTHORITY._ca.issue_cert(f"{role}@mesh.example")
        client = await _enter_certified(certified, certificate, error_cb=note)
        await client.publish("orders.eu.x.placed", b"")
        await flush_through(client)
        assert "".join(complaints) == complaint
        await client.close()


# Servers that are none of ours

FAMILY = Authority()
regions = kept(lambda: start_mesh(regions={"eu": 1, "us": 1}, leaves=["store"], tls=FAMILY))
LISTEN_S = 10.0
REFUSALS = {
    "the password, and a certificate of its own authority": "TLSV1_ALERT_UNKNOWN_CA",
    "a certificate of ours, and no password": "^-ERR 'Authorization Violation'",
}
DOORS = {"route": "cluster", "gateway": "gateway", "leaf node": "leafnodes"}
HOLDS = {
    "the password, and a certificate of its own authority": (
        "TLS: our servers sign each other's certificates",
        False,
        True,
    ),
    "a certificate of ours, and no password": ("the password of the servers", True, False),
}
for kind, (what, (by, _, _)) in itertools.product(DOORS, HOLDS.items()):
    ATTACKS.append(Attack(f"join as a {kind}", what, by))


@pytest.mark.parametrize("kind", DOORS)
@pytest.mark.parametrize("what", HOLDS)
async def test_a_server_that_is_none_of_ours_does_not_join(regions: Mesh, kind: str, what: str) -> None:
    _, certified, knows = HOLDS[what]
    server = regions.servers["eu-1"]
    port, right = getattr(server.ports, DOORS[kind]), server.config.passwords["route"]

    async def join(certified: bool, knows: bool) -> str:
        context = ssl.create_default_context(cafile=regions.directory / "authority.crt")
        (FAMILY._ca if certified else trustme.CA()).issue_cert("127.0.0.1").configure_cert(context)
        said = b""
        try:
            if kind == "leaf node":
                reader, writer, _ = await _open_with_tls(port, context)
            else:  # they begin with TLS
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                await asyncio.wait_for(reader.readline(), 5)
            login = {"user": "route", "pass": right if knows else "guessed", "name": "n9", "server_id": "N9"}
            login |= {"cluster": "eu"} if kind == "route" else {"gateway": "ap"} if kind == "gateway" else {}
            writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LISTEN_S):
                    while not said and (more := await reader.read(65_536)):
                        said += more
            writer.close()
        except OSError as err:
            return repr(err)
        return said.decode()

    assert re.search(REFUSALS[what], await join(certified, knows))
    assert re.match("PONG|INFO", await join(True, True))


# A service that decides who comes in

ISSUER, PORTER, XKEY = Key.new("account"), secrets.token_urlsafe(16), CurveKey.new()


def _gated(xkey: str = "") -> Any:
    callout = f"issuer: {ISSUER.public}, account: AUTH, auth_users: [porter, spy, lab, sys]{xkey}"
    users = ", ".join(f'{{ user: {name}, password: "{PORTER}" }}' for name in ("porter", "spy"))
    return start_mesh(
        accounts_config=f"AUTH {{ users: [ {users} ] }}, SHOP {{ }}",
        extra_config=f"authorization {{ timeout: 1, auth_callout {{ {callout} }} }}",
    )


gated = kept(_gated)
sealed = kept(lambda: _gated(f", xkey: {XKEY.public}"))


async def _decide(login: Login) -> Grant | None:
    if login.user == "slow":
        await asyncio.sleep(3.0)  # hangs: a directory, for longer than servers wait
    if login.user == "broken":
        raise LookupError("the directory is away")
    return Grant(login.user, "SHOP") if hmac.compare_digest(login.password, "right") else None


async def _knock(mesh: Mesh, user: str = "anna", password: str = "right") -> bool:
    """Return whether a user is let in, whether the servers say no or give up."""
    options = {"allow_reconnect": False, "error_cb": quiet, "connect_timeout": 5}
    try:
        client = await nats.connect(mesh.urls, user=user, password=password, **options)
        inside = client.is_connected
        await client.close()
    except (OSError, nats.errors.Error):
        return False
    return inside


@asynccontextmanager
async def _porter(mesh: Mesh) -> AsyncIterator[nats.NATS]:
    login = {"user": "porter", "password": PORTER, "allow_reconnect": False}
    async with await nats.connect(mesh.urls, error_cb=quiet, **login) as client:
        yield client


@attack(
    "come in while the service that decides is away", "a user's name and password", "the servers: no reply, no entry"
)
@attack("come in while it hangs", "a user's name and password", "the servers: no reply in time, no entry")
@attack("come in while its directory is away", "a user's name and password", "the service: a failure is a no")
@attack("come in with a wrong password", "a user's name", "the service")
async def test_who_decides_has_to_say_yes_in_time(gated: Mesh) -> None:
    assert not await _knock(gated)
    async with _porter(gated) as porter:
        await serve_logins(porter, ISSUER, _decide)
        await flush_through(porter)
        log = len(gated.logs("n1", last=None))
        found = await asyncio.gather(*(_knock(gated, user) for user in ("slow", "broken", "anna")))
        assert (found, await _knock(gated, "anna", "wrong")) == ([False, False, True], False)
        assert "refused: the service failed with LookupError" in gated.logs("n1", last=None)[log:]


async def _lie(mesh: Mesh, signer: Key, *, subject: str | None = None, audience: str | None = None) -> bool:
    """Return whether a user is let in whom somebody else vouches for, or for another login or server."""

    async def reply(msg: Msg) -> None:
        claims = json.loads(urlsafe_b64decode(msg.data.split(b".")[1] + b"=="))["nats"]
        user, server = claims["user_nkey"], claims["server_id"]["id"]
        may = encode_token("user", user_claims(None, None), subject=subject or user, signer=signer, audience="SHOP")
        about = {"subject": subject or user, "audience": audience or server, "signer": signer}
        await msg.respond(encode_token("authorization_response", {"jwt": may}, **about).encode())

    async with _porter(mesh) as porter:
        await porter.subscribe(SUBJECT, cb=reply)
        await flush_through(porter)
        return await _knock(mesh)


@attack(
    "vouch for oneself in the service's place", "a user of its account, another key", "the servers: one issuer alone"
)
@attack(
    "repeat a reply of the service for another login", "a reply that was overheard", "the servers: it names one login"
)
@attack(
    "repeat a reply of the service at another server", "a reply that was overheard", "the servers: it names one server"
)
async def test_the_servers_believe_the_issuer_about_the_login_at_hand(gated: Mesh) -> None:
    assert await _lie(gated, ISSUER), "the control: who holds the issuer's key decides"
    log = len(gated.logs("n1", last=None))
    assert not await _lie(gated, Key.new("account"))
    assert not await _lie(gated, ISSUER, subject=Key.new("user").public)
    other = nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_SERVER)))
    assert not await _lie(gated, ISSUER, audience=other.public_key.decode())
    said = gated.logs("n1", last=None)[log:]
    reasons = (
        "callout signing key is unknown",
        "response is not for expected user",
        "response is not for server",
    )
    assert [reason for reason in reasons if reason not in said] == [], said


@attack("ask the service in a server's place", "a user of its account", "the servers: no client publishes there")
@attack("forge a server's question", "a user of its account", "the service: a server signs its questions")
async def test_the_service_replies_to_servers_alone(gated: Mesh) -> None:
    victim, forger, complaints = Key.new("user"), Key.new("account"), list[str]()

    async def note(error: Exception) -> None:
        complaints.append(str(error).lower())

    asked = {"server_id": {"id": forger.public}, "user_nkey": victim.public, "connect_opts": {"user": "a"}}
    forged = encode_token("authorization_request", asked, subject=victim.public, signer=forger, audience=AUDIENCE)
    login = {"user": "spy", "password": PORTER, "allow_reconnect": False}
    async with await nats.connect(gated.urls, error_cb=note, **login) as spy, _porter(gated) as porter:
        await spy.publish(SUBJECT, forged.encode(), reply="x")
        await flush_through(spy)
        assert complaints == ['nats: permissions violation for publish to "$sys.req.user.auth"']
        with pytest.raises(BadTokenError, match="a token that is no server's question about a login"):
            _request(forged.encode())
        await serve_logins(porter, ISSUER, _decide)
        await flush_through(porter)
        assert await _knock(gated)


@attack(
    "read passwords on their way to the service", "a user of its account", "the encryption: the service has the key"
)
@attack("reply to an encrypted question", "a user of its account", "the servers: an encrypted reply is expected")
async def test_a_question_that_is_encrypted_is_for_the_service_alone(sealed: Mesh) -> None:
    async with await nats.connect(
        sealed.urls, user="spy", password=PORTER, allow_reconnect=False, error_cb=quiet
    ) as spy:
        heard = await spy.subscribe(SUBJECT)
        await flush_through(spy)
        async with _porter(sealed) as porter:
            await serve_logins(porter, ISSUER, _decide, xkey=XKEY)
            await flush_through(porter)
            assert await _knock(sealed)
        question = (await heard.next_msg(timeout=5)).data
        assert question.startswith(b"xkv1")
        assert b"right" not in question
        with pytest.raises(BadTokenError, match="is not for key X"):
            CurveKey.new().open(question, XKEY.public)

        async def guess(msg: Msg) -> None:
            login = encode_token("authorization_response", {"jwt": ""}, subject=Key.new("user").public, signer=ISSUER)
            await msg.respond(login.encode())

        await spy.subscribe(SUBJECT, cb=guess)
        await flush_through(spy)
        assert not await _knock(sealed)


# The machine


@attack("read secrets at the monitoring port", "an account on the machine", "the port: it tells none")
@attack("reach the monitoring port from elsewhere", "another machine", "the address: 127.0.0.1 alone")
@attack("change something at the monitoring port", "an account on the machine", "the port: it only tells")
async def test_the_monitoring_port_tells_no_secret_and_takes_no_order(locked: LockedMesh) -> None:
    worker, server = await locked.role("worker"), locked.mesh.servers["n1"]
    place = f"http://127.0.0.1:{server.monitor.port}"

    def read(path: str, **options: Any) -> str:
        with urllib.request.urlopen(urllib.request.Request(place + path, **options), timeout=5) as reply:
            return reply.read().decode()

    pages = [
        await asyncio.to_thread(read, path) for path in ("/varz", "/connz?auth=1&subs=1", "/jsz?config=1&accounts=1")
    ]
    assert locked.keyring.account.public in pages[1]
    secret = re.compile("S[UAON][A-Z2-7]{56}|PRIVATE KEY|" + re.escape(server.config.passwords["route"]))
    assert not [page for page in pages if secret.search(page)]
    assert secret.search(Path(locked.keyring.file("worker")).read_text()), "the control: the owner of the file reads it"
    await asyncio.to_thread(read, "/connz", method="DELETE")
    assert worker.client.is_connected
    listening = {s.laddr.ip for s in psutil.Process(server.pid).net_connections() if s.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@attack("read another user's files", "an account on the machine", "the modes: 0700 for the directory, 0600 for files")
@attack("use a credentials file that all can read", "an account on the machine", "the client: it refuses such a file")
@pytest.mark.skipif(os.name != "posix", reason="elsewhere, who may read a file does not stand in its mode")
async def test_another_user_of_the_machine_reads_nothing(locked: LockedMesh, tmp_path: Path) -> None:
    directory = locked.mesh.directory
    path = Path(locked.keyring.file("worker"))
    assert stat.S_IMODE(directory.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    private = [path, *directory.glob("*.key"), *directory.glob("*.creds"), *directory.glob("*.conf")]
    assert len(private) >= 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    if os.geteuid() == 0:  # the only one who can be somebody else here
        for user, code in ((65_534, 1), (0, 0)):
            assert subprocess.run(["/bin/cat", str(path)], user=user, capture_output=True).returncode == code
    copy = tmp_path / "copy.creds"
    copy.write_text(path.read_text())
    copy.chmod(0o644)
    with pytest.raises(CredentialsError, match=r"every user of this machine can read it \(mode 0644\)"):
        await connect({"servers": locked.mesh.urls, "tls": locked.tls, "user_credentials": str(copy)}, within=5.0)
    copy.chmod(0o600)
    options: Any = {"servers": locked.mesh.urls, "tls": locked.tls, "user_credentials": str(copy)}
    await (await connect(options, within=5.0)).close()


# It needs JupyterLab, so `tests/browser/test_jupyterlab.py` makes it, where that runs.
ATTACKS.append(
    Attack("open JupyterLab without its token", "an account on the machine", "JupyterLab: it asks for its token")
)


# All of them


async def test_nothing_was_changed_by_any_of_them(locked: LockedMesh) -> None:
    owner = await locked.owner()
    js = owner.client.jetstream()
    info = await js.stream_info(STREAM)
    assert (info.config.subjects, info.config.deny_delete, info.config.deny_purge) == (["orders.*.*.*"], True, True)
    assert info.state.messages == PLACED + 2  # what the attack on the readers stored, and its control
    assert (await js.consumer_info(STREAM, WORKERS)).config.max_ack_pending == 20_000
    assert (await (await js.key_value("PRICES")).get("cd")).value == b"11.77"
    assert await stream_names(owner.client) == ["KV_PRICES", STREAM]


def table() -> str:
    """Return the attacks as a table in Markdown."""
    rows = "".join(
        f"| {number} | {one.name} | {one.holds} | {one.refused_by} |\n" for number, one in enumerate(ATTACKS, 1)
    )
    return (
        "# Attacks on the order mesh\n\n"
        "Each is made by `test_attacks.py` (the last by `../browser/`), beside whoever has the right to,\n"
        "who succeeds.\n\n"
        f"| | the attacker tries to | and has | refused by |\n|---|---|---|---|\n{rows}"
        "\nOne is not refused, by nats-server 2.15: who takes messages can name a call of JetStream's API for the\n"
        "reply, and so delete a stream of the account; `tests/upstream/test_nats_server.py` shows it, and that\n"
        "another account's is out of reach. So workers in an account of their own are shut out of it, and work on\n"
        "by fast ingest: `test_accounts.py`.\n"
    )


def test_the_table_of_attacks_is_in_step() -> None:
    assert len({(one.name, one.holds) for one in ATTACKS}) == len(ATTACKS) >= 40
    assert TABLE.read_text() == table(), "python tests/security/test_attacks.py writes it anew"


if __name__ == "__main__":
    TABLE.write_text(table())
