"""What every pattern does with a connection: flush it, measure a message against its server, and notice its end."""

import asyncio

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.connection import flush
from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh


async def replies(client: Client) -> bool:
    async def reply(msg: Msg) -> None:
        await msg.respond(msg.data)

    echo = await client.subscribe("echo", cb=reply)
    heard = (await client.request("echo", b"1", timeout=2.0)).data == b"1"
    await echo.unsubscribe()
    return heard


@pytest.mark.parametrize("how", ["timed out", "cancelled"])
async def test_a_flush_that_was_given_up_leaves_the_client_hearing(how: str) -> None:
    async with await start_mesh(servers=1) as mesh, await mesh.connect(ping_interval=60) as client:
        await mesh.pause("n1")
        if how == "timed out":
            with pytest.raises(nats.errors.FlushTimeoutError, match="timeout"):
                await flush(client, within=0.3)
            with pytest.raises(nats.errors.FlushTimeoutError, match="timeout"):
                await flush_through(client, within=0.3)
        else:
            flushing = asyncio.create_task(flush(client))
            await asyncio.sleep(0.1)  # work: the PING leaves
            await cancel_and_join(flushing)
        await mesh.resume("n1")
        assert await replies(client)
        assert client.stats["reconnects"] == 0, "it heard again only on another connection"


async def test_a_flush_outlives_its_server_and_ends_with_its_client() -> None:
    async with await start_mesh(servers=1) as mesh, await mesh.connect() as client:
        await mesh.pause("n1")
        flushing = asyncio.create_task(flush(client, within=20.0))
        await asyncio.sleep(0.1)  # work: the PING leaves
        await mesh.kill("n1")
        await mesh.restart("n1")
        await flushing
        await mesh.kill("n1")
        await eventually(lambda: not client.is_connected, within=10.0)
        flushing = asyncio.create_task(flush(client, within=20.0))
        await asyncio.sleep(0.1)  # work: it waits for the next server
        await client.close()
        with pytest.raises(nats.errors.ConnectionClosedError, match="closed"):
            await asyncio.wait_for(flushing, 1.0)


async def test_a_stream_of_another_domain_is_waited_for_there(regions: Mesh) -> None:
    async with await regions.connect(to="eu-1") as hub, await regions.connect(to="store-berlin") as store:
        js = store.jetstream(timeout=5.0)
        await js.add_stream(name="TILLS", subjects=["tills.*"], allow_direct=True)
        await js.add_consumer("TILLS", durable_name="till", ack_policy="explicit")
        await wait_routable(hub, "TILLS", domain="store-berlin")
        await wait_routable(hub, "TILLS", "till", domain="store-berlin")
        assert (await hub.jetstream(domain="store-berlin").stream_info("TILLS")).state.last_seq == 0
        with pytest.raises(ValueError, match="expected a name without dots"):
            await wait_routable(hub, "TILLS", domain="store.berlin")
        await js.delete_stream("TILLS")
