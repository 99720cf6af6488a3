"""Workers in an account of their own, which sees of the orders' account what each worker needs, and nothing else."""

import asyncio
from pathlib import Path

from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.event_store import WORKERS, open_event_store
from mesh_lab.orders.order import STREAM
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.worker import Worker
from mesh_lab.patterns.jetstream_api import stream_names
from mesh_lab.patterns.jetstream_wait import flush_through
from mesh_lab.patterns.wait import cancel_and_join, eventually
from mesh_lab.security.accounts import NO_JETSTREAM, Account, Operator
from mesh_lab.security.roles import takes
from mesh_lab.servers.start import start_mesh

ORDERS = 2_000
EVENTS = tuple(f"orders.*.*.{event}" for event in ("paid", "shipped", "declined"))
CALLS = (f"$JS.API.STREAM.INFO.{STREAM}", *takes(STREAM, WORKERS))
INBOX = "_INBOX_worker-1.>"


def share(orders: Account, workers: Account) -> None:
    """Let workers call what takes their orders, and let their events, and the replies to those, pass as they are.

    A call's reply goes to a subject that the server makes up, and so never to the API: a *service*. An event's reply
    subject is part of fast ingest and stays what it is: a *stream*.
    """
    for subject in CALLS:
        orders.exports.append({"name": subject, "subject": subject, "type": "service", "response_type": "Stream"})
        workers.imports.append({"name": subject, "subject": subject, "type": "service", "account": orders.public})
    for giver, taker, subjects in ((orders, workers, (INBOX,)), (workers, orders, EVENTS)):
        for subject in subjects:
            giver.exports.append({"name": subject, "subject": subject, "type": "stream"})
            taker.imports.append({"name": subject, "subject": subject, "type": "stream", "account": giver.public})


def _file(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


async def test_a_worker_in_an_account_of_its_own_works_by_fast_ingest_and_reaches_no_call_but_its_own(tmp_path) -> None:
    operator = Operator()
    orders, workers = operator.account("ORDERS"), operator.account("WORKERS", **NO_JETSTREAM)
    share(orders, workers)
    async with await start_mesh(operator=operator) as mesh:
        owner = await mesh.connect(user_credentials=_file(tmp_path / "owner", orders.user("owner").credentials))
        js = owner.jetstream(timeout=5.0)
        await open_event_store(owner)
        for name, subjects in (("SCRATCH", "scratch"), ("EFFECTS", "effects.*.*")):
            await js.add_stream(name=name, subjects=[subjects])
        user = workers.user("worker-1", publish=(*EVENTS, "rejected.orders", *CALLS), subscribe=[INBOX])
        client = await mesh.connect(
            user_credentials=_file(tmp_path / "worker", user.credentials), skip_subject_validation=True
        )
        take = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{WORKERS}"
        # The status of an empty consumer, and then an order: in one account, both would go where the request says.
        await client.publish(take, b'{"no_wait": true}', reply="$JS.API.STREAM.DELETE.SCRATCH")
        await flush_through(client)
        await place_orders(owner, read_orders(first=ORDERS))
        await client.publish(take, b'{"batch": 1}', reply="effects.refund.000001")
        await flush_through(client)
        working = Worker(client)
        task = asyncio.create_task(working.run())

        async def done() -> bool:
            group = await js.consumer_info(STREAM, WORKERS)
            return not (group.num_pending or group.num_ack_pending)

        await eventually(done, within=30.0, every=0.1)  # long after what the two requests would have done
        await cancel_and_join(task)
        assert (await js.stream_info(STREAM)).state.messages == 3 * ORDERS
        assert working._lane.stored > 0, "by fast ingest"
        assert "SCRATCH" in await stream_names(owner)
        assert (await js.stream_info("EFFECTS")).state.messages == 0
