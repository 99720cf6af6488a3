"""A mesh that is offered twice what it can do: what it accepts is done in time, and the rest is refused.

``MESH_LAB_OVERLOAD_S=20`` makes the overload as long as that; without it, it lasts 6 s, and half of that where nothing
is refused and everything has to be worked off afterwards.
"""

import asyncio
import contextlib
import os
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from nats.js.errors import APIError

from mesh_lab.measure.paced import ANSWERED, PacedRun, paced_load
from mesh_lab.notebook.services import Services
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import decode, encode
from mesh_lab.patterns.jetstream_wait import wait_routable
from mesh_lab.patterns.pull_consumer import PullConsumer, read_in_order
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import OWNER_VARIABLE
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

SECONDS = float(os.environ.get("MESH_LAB_OVERLOAD_S", "6"))
CAPACITY_PER_S = 400  # four at a time, 10 ms each
CALM = CAPACITY_PER_S // 4 * 2  # orders of 2 s at a quarter of the capacity
LONGEST_WAIT_S = 0.25
STREAM = "ACCEPTED"

# A shop's desk: it stores an order, and only then says "accepted". What differs is who may wait for it.
DESK = """
from mesh_lab.orders.order import decode
from mesh_lab.patterns.load_shedding import AdmissionController


async def main(nc):
    js = nc.jetstream(timeout=5)

    async def accept(msg):
        await asyncio.sleep(0.010)  # work: the order's own
        order = decode(msg.data)
        await js.publish(f"accepted.{order.id}", msg.data, headers={"Nats-Msg-Id": order.id})
        return b"accepted"
"""
PROTECTED = f"""
    async with AdmissionController(nc, accept, at_a_time=4, waiting=32, longest_wait={LONGEST_WAIT_S}) as admission:
        await nc.subscribe("desk.place", queue="desk", cb=admission.admit)
        await asyncio.Event().wait()
"""
UNPROTECTED = """
    sub = await nc.subscribe("desk.place", queue="desk")

    async def serve():
        async for msg in sub.messages:
            await nc.publish(msg.reply, await accept(msg))

    await asyncio.gather(*(serve() for _ in range(4)))
"""


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.stop_all()


@pytest.fixture
async def own_mesh() -> AsyncIterator[Mesh]:
    """Servers of its own: what they need of memory is watched."""
    async with await start_mesh(servers=3) as mesh:
        yield mesh


@dataclass
class Overload:
    calm: PacedRun
    run: PacedRun
    memory_mb: dict[str, list[float]]
    """Resident memory of each process, sampled during the overload."""
    stored: list[str]
    """The ids in the stream, in its order."""
    accepted: list[str]
    """The ids whose requesters got the reply "accepted"."""

    def quarter_ms(self, which: int) -> float:
        """Return the median latency of the answered messages that were due in one quarter of the overload."""
        length_ns = self.run.messages / self.run.offered_per_s * 1e9 / 4
        return statistics.median(
            (done - due) / 1e6
            for due, done, how in zip(self.run.due_ns, self.run.done_ns, self.run.outcome, strict=True)
            if how == ANSWERED and which * length_ns <= due < (which + 1) * length_ns
        )


async def overload(mesh: Mesh, services: Services, desk: str, *, seconds: float) -> Overload:
    """Offer a quarter of the capacity for a moment, then twice the capacity, and look everywhere."""
    overloading = int(2 * CAPACITY_PER_S * seconds)
    orders = list(read_orders(first=CALM + overloading))
    payloads = [encode(order) for order in orders]
    async with await mesh.connect() as client:
        js = client.jetstream(timeout=10)
        # A short memory for ids: what the servers need for it is not what is measured here.
        await js.add_stream(name=STREAM, subjects=["accepted.*"], num_replicas=3, duplicate_window=1)
        await wait_routable(client, STREAM)
        services.run("desk", DESK + desk)
        load: dict[str, Any] = {"options": mesh.connect_options(), "subject": "desk.place"}
        calm = await paced_load(**load, rate_per_s=CAPACITY_PER_S / 4, seconds=2, payloads=payloads[:CALM])
        memory: dict[str, list[float]] = {}
        watch = asyncio.create_task(_watch_memory(mesh, memory, every=seconds / 40))
        run = await paced_load(
            **load, rate_per_s=2 * CAPACITY_PER_S, seconds=seconds, payloads=payloads[CALM:], patience=4 * seconds
        )
        watch.cancel()
        stored: list[str] = []
        total = (await js.stream_info(STREAM)).state.messages
        async for batch in read_in_order(client, STREAM):
            stored += [decode(msg.data).id for msg in batch]
            if len(stored) >= total:
                break
    accepted = [order.id for order, how in zip(orders, calm.outcome + run.outcome, strict=True) if how == ANSWERED]
    return Overload(calm, run, memory, stored, accepted)


async def _watch_memory(mesh: Mesh, memory_mb: dict[str, list[float]], *, every: float) -> None:
    processes = {name: psutil.Process(server.pid) for name, server in mesh.servers.items()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get(OWNER_VARIABLE) == mesh.owner and "SERVICE_NAME" in environment:
                processes[environment["SERVICE_NAME"]] = process
    while True:
        for name, process in processes.items():
            memory_mb.setdefault(name, []).append(process.memory_info().rss / 2**20)
        await asyncio.sleep(every)  # pacing: one sample after the other


def growth(samples: list[float]) -> float:
    """Return how many times the median of the second quarter that of the last one is.

    The first quarter is left out: a server that wakes up under load takes memory that it then keeps.
    """
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) / statistics.median(samples[quarter : 2 * quarter])


@pytest.mark.alone
async def test_at_twice_the_capacity_what_is_accepted_is_done_in_time_and_the_rest_is_told(own_mesh, services):
    seen = await overload(own_mesh, services, PROTECTED, seconds=SECONDS)
    run = seen.run
    assert run.lost == 0
    assert run.answered + run.refused == run.messages
    assert run.refused > run.messages / 4
    # The policy's bound: the longest wait, and then the work; four times that for a machine with other work to do.
    assert run.percentile_ms(99) < 4 * (1_000 * LONGEST_WAIT_S + seen.calm.percentile_ms(99)) + run.lateness_ms(100)
    assert seen.quarter_ms(3) < 3 * seen.quarter_ms(0)
    assert Counter(seen.stored) == Counter(seen.accepted)
    for name, samples in seen.memory_mb.items():
        assert growth(samples) < (1.2 if name == "desk-1" else 1.6), f"{name}: {samples}"


@pytest.mark.alone
async def test_without_protection_the_same_overload_waits_longer_and_longer(own_mesh, services):
    seen = await overload(own_mesh, services, UNPROTECTED, seconds=SECONDS / 2)
    assert (seen.run.answered, seen.run.refused, seen.run.lost) == (seen.run.messages, 0, 0)
    assert seen.quarter_ms(3) > 3 * seen.quarter_ms(0)
    assert seen.run.percentile_ms(99) > 20 * seen.calm.percentile_ms(50)
    assert Counter(seen.stored) == Counter(seen.accepted)


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"max_msgs": 300}, "maximum messages exceeded"), ({"max_bytes": 60_000}, "maximum bytes exceeded")],
    ids=["max_msgs", "max_bytes"],
)
async def test_a_full_stream_refuses_and_keeps_everything_that_it_acknowledged(mesh, client, limit, said):
    js = client.jetstream(timeout=10)
    name = f"FULL-{next(iter(limit))}"
    await js.add_stream(name=name, subjects=[f"{name}.*"], discard="new", retention="workqueue", **limit)
    await wait_routable(client, name)
    payloads = [encode(order) for order in read_orders(first=600)]
    load = {"subject": f"{name}.{{n}}", "until": "ack", "payloads": payloads, "patience": 10}
    run = await paced_load(mesh.connect_options(), rate_per_s=400, seconds=1.5, **load)
    assert run.lost == 0
    assert run.refused > 0
    assert run.answered + run.refused == run.messages
    acknowledged = [n for n, how in enumerate(run.outcome) if how == ANSWERED]
    with pytest.raises(APIError, match=said) as refusal:
        await js.publish(f"{name}.0", payloads[0])
    assert (refusal.value.code, refusal.value.err_code) == (503, 10077)

    # A worker takes one, and there is room for one.
    taker = await js.pull_subscribe(f"{name}.*", durable="taker", stream=name)
    await wait_routable(client, name, "taker")
    kept = []
    while len(kept) < len(acknowledged) + 1:
        for msg in await taker.fetch(100 if kept else 1, timeout=5):
            await msg.ack_sync(timeout=10)
            kept.append(int(msg.subject.rpartition(".")[2]))
            if len(kept) == 1:
                await js.publish(f"{name}.{len(payloads)}", payloads[0][:50])
    assert kept == [*acknowledged, len(payloads)]


@pytest.mark.parametrize(("limit", "most"), [(8, 8), (1_000, 400)])
async def test_max_ack_pending_bounds_what_all_workers_together_have_in_hand(client, limit, most):
    js = client.jetstream(timeout=10)
    name = f"HANDS-{limit}"
    await js.add_stream(name=name, subjects=[f"{name}.*"])
    await wait_routable(client, name)
    for n in range(500):
        await client.publish(f"{name}.{n}")
    await js.add_consumer(name, durable_name="workers", ack_policy="explicit", max_ack_pending=limit)
    await wait_routable(client, name, "workers")
    in_hand, seen, done = 0, [0], []

    async def work() -> None:
        nonlocal in_hand
        async with PullConsumer(client, name, "workers", prefetch=100) as consumer:
            async for batch in consumer.batches():
                in_hand += len(batch)
                seen.append(in_hand)
                for msg in batch:
                    await asyncio.sleep(0.002)  # work
                    done.append(msg.subject)
                    in_hand -= 1
                    await msg.ack()

    workers = [asyncio.create_task(work()) for _ in range(4)]
    await eventually(lambda: len(done) == 500, within=30)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    assert len(set(done)) == 500
    assert most / 2 <= max(seen) <= most
