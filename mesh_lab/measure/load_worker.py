"""The child process of a load generator: ``python -m mesh_lab.measure.load_worker package.module:Job``.

It reads its job from standard input (not from its arguments, which every user can read: the job holds a password) and
writes lines of JSON to standard output: ``{"ready":true}`` when it is ready, the result at the end. In between the
parent says when to go on, with an empty line. When standard input ends, so does the child.
"""

import asyncio
import os
import sys
import traceback
from pkgutil import resolve_name
from typing import Any, cast

import msgspec
import nats
import nats.errors
from nats.aio.client import Client

from mesh_lab.measure.load_jobs import Job, Parent, Result
from mesh_lab.patterns.addresses import ConnectOptions
from mesh_lab.patterns.connection import close, connect
from mesh_lab.processes import read_input_line
from mesh_lab.tls import unpack


async def _connect(job: Job[Result], gone: asyncio.Event) -> Client:
    """Return a client with the job's options; ``gone`` is set when the connection can no longer serve the job."""

    async def on_gone() -> None:
        gone.set()

    more: dict[str, Any] = {"name": f"load {job.role}", "reconnect_time_wait": 0.1, "closed_cb": on_gone}
    if not job.survives_reconnect:
        more["disconnected_cb"] = on_gone
    return await connect(cast(ConnectOptions, more | unpack(job.options)))


async def _work(job: Job[Result]) -> Result:
    parent, gone = Parent(), asyncio.Event()
    try:
        async with asyncio.timeout(job.within):
            client = await _connect(job, gone)
            running = asyncio.ensure_future(job(client, parent))
            watch = asyncio.ensure_future(gone.wait())
            await asyncio.wait({running, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                running.cancel()
                raise ConnectionError(f"the connection broke while waiting for {parent.stage}")
            watch.cancel()
            result = running.result()
    except TimeoutError as err:
        if isinstance(err, nats.errors.Error):
            raise
        raise TimeoutError(f"not done after {job.within:g} s; was waiting for {parent.stage}") from err
    version = client.connected_server_version
    await close(client)
    return msgspec.structs.replace(result, server_version=f"{version.major}.{version.minor}.{version.patch}")


def main() -> None:
    """Do the job that standard input describes."""
    job = msgspec.json.decode(read_input_line(), type=resolve_name(sys.argv[1]))
    with asyncio.Runner(loop_factory=job.new_event_loop) as runner:
        try:
            result = runner.run(_work(job))
        except BaseException:  # noqa: BLE001
            # Not gracefully: that would wait for the cancelled job, and nats-py may swallow its cancellation.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
