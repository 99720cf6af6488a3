"""The table of roles: it names what the services use, and makes users who can do their work and nothing else."""

import json
import os
import stat
from base64 import urlsafe_b64decode
from pathlib import Path

import nats.js.errors
import pytest

from mesh_lab.errors import StoreError, UnknownNameError
from mesh_lab.orders.__main__ import SERVICES
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import WORKERS, open_event_store
from mesh_lab.orders.job.report import open_account
from mesh_lab.orders.job.run import run_orders
from mesh_lab.orders.ledger import GROUP, LEDGER
from mesh_lab.orders.order import EVENTS, STREAM, totals_of
from mesh_lab.orders.read_model import SUBJECT
from mesh_lab.orders.saga import SAGA
from mesh_lab.orders.saga_audit import expected_ends
from mesh_lab.orders.worker import REJECTED
from mesh_lab.patterns.group_bucket import bucket_of
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.security.accounts import Operator
from mesh_lab.security.certificates import Authority
from mesh_lab.security.keys import write_keys
from mesh_lab.security.roles import ROLES, Keyring, takes, user_of
from mesh_lab.servers.start import start_mesh

BULK = {"bulk-publisher", "bulk-reader"}  # they make their own streams, and are in no secured deployment

READERS = {"read-model", "auditor", "replay"}  # each makes the one consumer that has its name


def rights(credentials: str) -> dict:
    body = credentials.splitlines()[1].split(".")[1]
    return json.loads(urlsafe_b64decode(body + "=="))["nats"]


def test_every_service_has_a_role_and_no_service_may_make_streams_or_change_another_s_consumer() -> None:
    assert {"deployer" if service == "deploy" else service for service in SERVICES} - BULK <= set(ROLES)
    for service in set(ROLES) - {"deployer", "ledger"}:
        may = ROLES[service].publish
        assert not [subject for subject in may if subject.startswith("$JS.API.") and {"*", ">"} & set(subject)], service
        calls = {subject.split(".")[3] for subject in may if subject.startswith("$JS.API.CONSUMER.")}
        assert calls <= {"INFO", "MSG", *({"CREATE", "DELETE"} if service in READERS else ())}
        assert {subject.split(".")[3] for subject in may if subject.startswith("$JS.API.STREAM.")} <= {"INFO"}
        assert not [subject for subject in ROLES[service].subscribe if ">" in subject or "*" in subject]


def test_the_ledger_s_members_make_readers_of_their_own_streams_and_of_no_other() -> None:
    own = {LEDGER, f"KV_{bucket_of(LEDGER, GROUP)}"}
    calls = [subject.split(".")[2:] for subject in ROLES["ledger"].publish if subject.startswith("$JS.API.")]
    assert {(kind, call) for kind, call, *_ in calls if kind == "STREAM"} == {
        ("STREAM", call) for call in ("INFO", "MSG", "PURGE")
    }
    assert {next(token for token in rest if token in own) for _, _, *rest in calls} == own
    assert [subject for subject in ROLES["ledger"].publish if not subject.startswith("$JS.API.")] == [
        f"$KV.{bucket_of(LEDGER, GROUP)}.>"
    ]


def test_the_table_names_the_subjects_that_the_services_use() -> None:
    assert set(takes(STREAM, WORKERS)) < set(ROLES["worker"].publish)
    for group in SAGA.groups:
        assert set(takes(STREAM, group)) < set(ROLES[group].publish)
    assert REJECTED in ROLES["worker"].publish
    assert ROLES["read-model"].subscribe == (SUBJECT,)
    events = {
        subject.rpartition(".")[2] for role in ROLES.values() for subject in role.publish if "orders.*" in subject
    }
    assert events <= {*EVENTS, "*"}


def test_a_user_has_the_rights_of_its_role_and_an_inbox_of_its_own() -> None:
    account = Operator().account("ORDERS")
    claims = rights(user_of(account, "worker", "worker-2").credentials)
    assert claims["pub"]["allow"] == list(ROLES["worker"].publish)
    assert claims["sub"]["allow"] == ["_INBOX_worker-2.>"]
    assert "resp" not in claims
    assert rights(user_of(account, "read-model").credentials)["resp"]["max"] == 1


def test_a_role_that_the_table_does_not_have_and_a_name_that_is_none_make_no_user(tmp_path: Path) -> None:
    keyring = Keyring(Operator().account("ORDERS"), tmp_path / "credentials")
    with pytest.raises(UnknownNameError, match=r"no role 'boss'; the table in .*roles.py has publisher, worker, "):
        keyring.file("boss")
    for name in ("", "a.b", "*", ">", "../x", "a b", "a\n", "x" * 65):
        with pytest.raises(ValueError, match="expected letters, digits, - and _: it is a token of a subject"):
            keyring.file("worker", name)
    assert (keyring.users, list((tmp_path / "credentials").iterdir())) == ({}, [])


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, who may read a file does not stand in its mode")
def test_credentials_lie_in_files_that_only_their_owner_can_read(tmp_path: Path) -> None:
    place = tmp_path / "credentials"
    keyring = Keyring(Operator().account("ORDERS"), place)
    path = Path(keyring.file("worker", "worker-1"))
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyring.file("worker", "worker-1") == str(path), "a user is made once"
    assert path.read_text() == keyring.users["worker-1"].credentials
    assert "SEED" not in repr(keyring.users)
    with pytest.raises(StoreError, match="cannot make .*credentials for credentials: .*; expected a new place"):
        Keyring(keyring.account, place)


@pytest.mark.parametrize("saga", [False, True])
async def test_the_main_job_is_exact_with_every_door_locked_and_nobody_is_refused_anything(saga: bool) -> None:
    operator = Operator()
    async with await start_mesh(servers=3, operator=operator, tls=Authority()) as mesh:
        keyring = await open_account(mesh, operator)
        run = await run_orders(mesh, first=3_000, saga=saga, file_of=keyring.file)
        logs = "".join(mesh.logs(server, last=None) for server in mesh.servers)
    if saga:
        assert run.ends == expected_ends(read_orders(first=3_000))
    else:
        assert run.totals == totals_of(read_orders(first=3_000))
    roles = ("payment", "stock", "shipping") if saga else ("worker",)
    workers = {f"{role}-{number}" for role in roles for number in (1, 2)}
    assert set(keyring.users) == {"deployer", "auditor", "publisher", "read-model", *workers}
    assert "iolation" not in logs
    assert not mesh.directory.exists()


async def test_an_account_without_room_takes_nothing_and_no_service_makes_what_is_missing() -> None:
    operator = Operator()
    async with await start_mesh(operator=operator, tls=Authority()) as mesh:
        keyring = await open_account(mesh, operator, disk_storage=0)
        with pytest.raises(nats.js.errors.APIError, match="insufficient storage resources available"):
            await run_orders(mesh, first=10, file_of=keyring.file)
        assert set(keyring.users) == {"deployer", "auditor"}, "no service was started"
        deployer = await mesh.connect(user_credentials=keyring.file("deployer"))
        assert await stream_names(deployer) == []
        worker = await mesh.connect(user_credentials=keyring.file("worker"))
        with pytest.raises(
            nats.js.errors.NotFoundError, match=r"stream 'ORDERS' is missing, and this user may not make"
        ):
            await open_event_store(worker)


def test_servers_are_certified_with_the_keys_or_nothing_is_made(tmp_path: Path) -> None:
    write_keys(keys := tmp_path / "keys", hosts=["s1", "s2"])
    certificates = {"authority.crt", "s1.crt", "s1.key", "s2.crt", "s2.key"}
    assert certificates < {path.name for path in keys.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    with pytest.raises(ValueError, match="no host"):
        write_keys(tmp_path / "more", hosts=["s1", "no host"])
    assert not (tmp_path / "more").exists()


def test_the_keys_of_a_deployment_are_for_their_owner_alone_and_are_never_overwritten(tmp_path: Path) -> None:
    orders = write_keys(keys := tmp_path / "keys")
    names = {path.name for path in keys.iterdir()}
    seeds = {"operator.seed", "ORDERS.seed", "SYS.seed"}
    assert names == {"operator.conf", "system.creds", *seeds, *(f"{role}.creds" for role in ROLES)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (keys, *keys.iterdir())} == {0o700, 0o600}
    assert orders.token() in (said := (keys / "operator.conf").read_text())
    assert not any((keys / seed).read_text() in said for seed in seeds)
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    with pytest.raises(StoreError, match="cannot make .*keys for credentials: File exists"):
        write_keys(keys)
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before
