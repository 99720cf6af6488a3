"""One member of a partitioned group as a process: ``python group_member.py``, configured by JSON on its input.

It works on each event of an order for a moment, and stores that it did so, with its fence, before the event is done.
"""

# ruff: noqa: E402  (the handler comes before the imports)
import signal
import sys

# Before the imports that take their time: until it has joined, a member that gets SIGTERM has nothing to hand over.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import asyncio
import json
import random
import uuid

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.partition_group import GroupMember, Partition


async def main(options: dict, told: dict) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client: Client = await connect(options, name=told["name"])
    js = client.jetstream(timeout=2.0)

    async def handle(msg: Msg, partition: Partition) -> None:
        await asyncio.sleep(random.uniform(0.5, 1.5) * told["work_s"])  # work
        report = {
            "partition": partition.number,
            "fence": partition.fence,
            "seq": msg.metadata.sequence.stream,
            "member": told["name"],
            "mine": partition.mine,
            "order": msg.subject.split(".")[-2],
            "event": msg.subject.split(".")[-1],
        }
        # One id for all tries of one call: a report whose acknowledgement was lost is stored once, and a message that
        # is handled twice is reported twice.
        once = {"Nats-Msg-Id": uuid.uuid4().hex}
        while True:
            try:
                await js.publish(told["reports"], json.dumps(report).encode(), headers=once)
                return
            except (TimeoutError, nats.errors.Error, nats.js.errors.APIError):
                await asyncio.sleep(0.05)  # pacing: the next try, until it is stored

    member = GroupMember(
        client,
        told["stream"],
        "shop",
        name=told["name"],
        subject=told["subject"],
        partitions=told["partitions"],
        lease=told["lease_s"],
    )
    await member.run(handle, stop=stop)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.stdin.readline())))
