"""Who is let into a mesh with TLS, and what a reload changes."""

import asyncio
import os
import ssl

import nats
import nats.errors
import nkeys
import pytest

from mesh_lab.errors import BadConfigError, UnsupportedByBackendError
from mesh_lab.measure.load import deliver_load
from mesh_lab.notebook.mesh_card import mesh_card
from mesh_lab.notebook.services import Services
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.patterns.wait import eventually
from mesh_lab.security.certificates import Authority
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


async def quiet(error: Exception) -> None:
    """Refusals are what these tests provoke."""


@pytest.mark.parametrize("client_auth", ["password", "certificate"])
async def test_a_mesh_with_tls_works_as_one_without(client_auth: str) -> None:
    async with await start_mesh(servers=3, tls=Authority(), client_auth=client_auth) as mesh:
        client = await mesh.connect()
        info = await client.jetstream().add_stream(name="ORDERS", subjects=["orders.>"], num_replicas=3)
        assert len(info.cluster.replicas) == 2
        assert (await mesh.connect(system=True)).is_connected
        run = await deliver_load(mesh.connect_options(), subject="load.tls", messages=2_000)
        assert run.lost == 0
        assert "crt" not in repr(mesh) + mesh_card(mesh)


async def test_regions_and_leaf_nodes_talk_tls_too() -> None:
    async with await start_mesh(regions={"eu": 1, "us": 1}, leaves=["shop"], tls=Authority()) as mesh:
        berlin, texas = await mesh.connect(to="shop"), await mesh.connect(region="us")
        sub = await texas.subscribe("orders.eu")
        await flush_through(texas)

        async def heard() -> bool:
            await berlin.publish("orders.eu", b"an order")
            return sub.pending_msgs > 0

        await eventually(heard, within=10.0, every=0.2)


async def test_without_the_authority_nobody_connects_and_nobody_is_connected_to() -> None:
    async with await start_mesh(tls=Authority("ours")) as mesh, await start_mesh(tls=Authority("theirs")) as other:
        who = mesh.connect_options()
        for options in (
            {**who, "servers": other.urls},
            {"servers": mesh.urls, "user": who["user"], "password": who["password"]},
        ):
            with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
                await nats.connect(**options, allow_reconnect=False, error_cb=quiet)


async def test_a_client_known_by_its_certificate_has_to_show_one_that_names_a_user(tmp_path) -> None:
    authority = Authority()
    staff = '{ user: "billing@mesh.example" }'
    async with await start_mesh(tls=authority, client_auth="certificate", users_config=staff) as mesh:
        client = await nats.connect(mesh.urls, tls=authority.context(tmp_path, "billing@mesh.example"))
        assert client.is_connected
        await client.close()
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            context = authority.context(tmp_path, "visitor@mesh.example")
            await nats.connect(mesh.urls, tls=context, allow_reconnect=False, error_cb=quiet)
        with pytest.raises((OSError, nats.errors.Error)) as refused:
            await nats.connect(mesh.urls, tls=authority.context(tmp_path), allow_reconnect=False, error_cb=quiet)
        assert "Authorization" not in str(refused.value), "TLS refuses it before NATS is asked"


async def test_a_service_connects_by_tls(tmp_path) -> None:
    async with await start_mesh(tls=Authority()) as mesh:
        client, services = await mesh.connect(), Services()
        asked = await client.subscribe("hello")
        await flush_through(client)
        services.run("greeter", "async def main(nc):\n    await nc.publish('hello', b'from a service')\n", replicas=1)
        try:
            assert (await asked.next_msg(timeout=10)).data == b"from a service"
        finally:
            services.stop("greeter")


async def test_certificates_without_tls_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"client_auth='certificate' asked for, expected 'password', or 'certificate' with"
    ):
        await start_mesh(client_auth="certificate")
    with pytest.raises(ValueError, match="client_auth='face' asked for"):
        await start_mesh(client_auth="face", tls=Authority())


async def test_tls_for_containers_is_refused() -> None:
    with pytest.raises(
        UnsupportedByBackendError,
        match="tls asked for, but the servers of backend 'docker' are set up by docker/nats-server.conf",
    ):
        await start_mesh(servers=3, tls=Authority(), backend="docker")


def user(seed: bytes, permissions: str = 'publish: ">", subscribe: ">"') -> str:
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    return f"{{ nkey: {public}, permissions: {{ {permissions} }} }}"


async def enters(mesh: Mesh, seed: bytes) -> bool:
    try:
        client = await nats.connect(mesh.urls, nkeys_seed_str=seed.decode(), allow_reconnect=False, error_cb=quiet)
    except nats.errors.Error:
        return False
    await client.close()
    return True


async def test_users_change_while_the_servers_run() -> None:
    one, other = (nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) for _ in range(2))
    async with await start_mesh(servers=3) as mesh:
        pids = [server.pid for server in mesh.servers.values()]
        assert not await enters(mesh, one)
        await mesh.reload(users_config=user(one))
        assert (await enters(mesh, one), await enters(mesh, other)) == (True, False)
        await mesh.reload(users_config=user(other))
        assert (await enters(mesh, one), await enters(mesh, other)) == (False, True)
        await mesh.reload(users_config="")
        assert (await enters(mesh, one), await enters(mesh, other)) == (False, False)
        assert (await mesh.connect()).is_connected
        assert [server.pid for server in mesh.servers.values()] == pids


async def test_every_server_goes_by_the_new_users_when_reload_returns() -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    async with await start_mesh(servers=3) as mesh:
        for there in (True, False) * 5:
            await mesh.reload(users_config=user(seed) if there else "")
            for url in mesh.urls:
                who = {"nkeys_seed_str": seed.decode(), "allow_reconnect": False, "error_cb": quiet}
                try:
                    await (await nats.connect(url, **who)).close()
                    let_in = True
                except nats.errors.Error:
                    let_in = False
                assert let_in == there


@pytest.mark.parametrize(
    ("text", "said"),
    [("{ nkey: nonsense }", "Not a valid public nkey for a user"), ("{ user: ", "n1.conf|Parse error")],
)
async def test_users_that_a_server_does_not_understand_change_nothing(text, said) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    async with await start_mesh(servers=3, users_config=user(seed)) as mesh:
        before = [server.config_file.read_text() for server in mesh.servers.values()]
        with pytest.raises(BadConfigError, match=f"nats-server refuses the configuration of 'n1'.*({said})") as refused:
            await mesh.reload(users_config=text)
        assert str(mesh.directory) not in str(refused.value)
        assert [server.config_file.read_text() for server in mesh.servers.values()] == before
        assert await enters(mesh, seed)


async def test_a_second_flush_comes_after_the_server_s_complaint() -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    async with await start_mesh(users_config=user(seed, 'publish: { deny: ">" }')) as mesh:
        for _ in range(50):
            complaints = []

            async def note(error: Exception, complaints: list = complaints) -> None:
                complaints.append(error)

            client = await nats.connect(mesh.urls, nkeys_seed_str=seed.decode(), error_cb=note)
            await client.publish("orders.eu", b"")
            await flush_through(client)
            assert len(complaints) == 1
            await asyncio.wait_for(client.close(), 5)


async def test_who_may_hear_one_level_may_hear_all_below() -> None:
    # Notebook 10 warns of it. If a later nats-server refuses the subscription, the warning goes.
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    async with await start_mesh(users_config=user(seed, 'subscribe: "work.*"')) as mesh:
        client, other = await nats.connect(mesh.urls, nkeys_seed_str=seed.decode()), await mesh.connect()
        deep = await client.subscribe("work.>")
        await flush_through(client)
        await other.publish("work.ada.exam", b"")
        await eventually(lambda: deep.pending_msgs == 1, within=5.0)
        await client.close()
