"""Start replicas, and return when a message published anywhere in the mesh reaches them.

A replica publishes its report of being ready on the connection over which its subscriptions went before. Servers
pass on interest and messages of one account in order over one route, so a server that delivers the report knows
the subscriptions. One listener on each server therefore tells when all of them know.
"""

import asyncio
import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import NotReadyError, ServiceCrashedError
from mesh_lab.notebook.replica import STOP_PATIENCE_S, Replica
from mesh_lab.notebook.service_host import READY_VARIABLE
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import CONNECT_VARIABLE
from mesh_lab.servers.mesh import Mesh
from mesh_lab.tls import pack

T = TypeVar("T")
READY_SUBJECT = "_LAB.ready"
READY_S, READY_S_EACH = 10.0, 0.5
CONNECT_S = 5
GIVE_UP_S = 1.0
LOOK_EVERY_S = 0.005
CRASHES_TOGETHER_S = 3.0
LOG_LINES = 10


def launch(replicas: Sequence[Replica], program: Path, mesh: Mesh) -> None:
    """Start replicas and return when they are ready; after an error, none of them runs.

    Args:
        replicas: Replicas that do not run.
        program: File with the service's source.
        mesh: Mesh whose servers they connect to.

    Raises:
        MeshClosedError: The mesh was closed.
        ServiceCrashedError: A replica crashed before it was ready; the message carries its traceback.
        NotReadyError: A replica did not come to wait in time; the message carries its last log lines.
    """
    options = mesh.connect_options()
    token = secrets.token_hex(8)
    try:
        # First the processes, then the listeners: those are up long before the first process has loaded.
        for replica in replicas:
            environment = {
                CONNECT_VARIABLE: json.dumps(pack(options)),
                READY_VARIABLE: f"{READY_SUBJECT}.{token}.{replica.number}",
            }
            replica.start(program, owner=mesh.owner, environment=environment)
        run_apart(_until_ready(replicas, mesh, token))
    except BaseException:
        stop(replicas, within=GIVE_UP_S)
        raise
    finally:
        for replica in replicas:
            replica.release()


def stop(replicas: Sequence[Replica], *, within: float = STOP_PATIENCE_S) -> None:
    """Stop replicas side by side in good order, and return when all are gone.

    Args:
        replicas: Replicas; those that do not run stay what they are.
        within: Seconds after which those that are not gone are killed.
    """
    deadline = time.monotonic() + within
    for replica in replicas:
        replica.ask_to_stop()
    for replica in replicas:
        replica.wait_stopped(within=max(deadline - time.monotonic(), 0.0))


def crash_report(crashed: Sequence[Replica]) -> str:
    """Return what crashed replicas said, the same words once."""
    told: dict[str, list[str]] = {}
    for replica in crashed:
        told.setdefault(replica.crash.rstrip(), []).append(replica.name)
    return "\n".join(f"{_listed(names)} crashed:\n{text}" for text, names in told.items())


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, in a thread of its own, and return its result.

    So a magic stays a plain function: it neither needs the kernel's loop, nor disturbs it.

    Args:
        work: Coroutine to run; an interrupt of this thread cancels it.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="service-launch", daemon=True)
    thread.start()

    async def run() -> T:
        return await work

    async def settle() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            await asyncio.wait(rest, timeout=2.0)

    result = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        return result.result()
    finally:
        result.cancel()
        asyncio.run_coroutine_threadsafe(settle(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _until_ready(replicas: Sequence[Replica], mesh: Mesh, token: str) -> None:
    numbered = {str(replica.number): replica for replica in replicas}
    heard: dict[str, set[str]] = {replica.name: set() for replica in replicas}
    servers = {name for name, server in mesh.servers.items() if server.state == "running"}
    if not servers:
        raise NotReadyError(f"no server of the mesh runs, expected one at least: {mesh!r}")

    def ready(replica: Replica) -> bool:
        return heard[replica.name] == servers or replica.state == "finished"

    def crashed() -> list[Replica]:
        return [replica for replica in replicas if replica.state == "crashed"]

    def hear(server: str) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        async def note(msg: Msg) -> None:
            replica = numbered[msg.subject.rpartition(".")[2]]
            heard[replica.name].add(server)
            if heard[replica.name] == servers:
                replica.release()

        return note

    # The processes share this machine's cores: of many, each is ready later.
    within = READY_S + READY_S_EACH * len(replicas)
    async with contextlib.AsyncExitStack() as clients:
        for server in servers:
            client = await _connect_to(server, mesh)
            clients.push_async_callback(client.close)
            await client.subscribe(f"{READY_SUBJECT}.{token}.*", cb=hear(server))
        with contextlib.suppress(NotReadyError):  # what was missing is told better below
            await eventually(lambda: crashed() or all(map(ready, replicas)), within=within, every=LOOK_EVERY_S)
        if crashed():
            # They run the same code: give the others the time to end the same way, and tell all of it.
            with contextlib.suppress(NotReadyError):
                await eventually(
                    lambda: all(ready(r) or r.state == "crashed" for r in replicas), within=CRASHES_TOGETHER_S
                )
            raise ServiceCrashedError(crash_report(crashed()))
    for late in (replica for replica in replicas if not ready(replica)):
        deaf = ", ".join(sorted(servers - heard[late.name]))
        why = f"its report did not reach {deaf}" if heard[late.name] else "its main(nc) did not come to wait"
        said = late.log(last=LOG_LINES) or "(none)"
        raise NotReadyError(f"{late.name} not ready after {within} s: {why}; its last log lines:\n{said}")


async def _connect_to(server: str, mesh: Mesh) -> Client:
    """Return a client of this one server, which never moves on to another."""
    options = mesh.connect_options(to=server)
    options["servers"] = options["servers"][:1]
    try:
        return await connect(options, name="services", allow_reconnect=False, connect_timeout=CONNECT_S)
    except (OSError, nats.errors.Error) as err:
        raise NotReadyError(f"server {server!r} let no listener in within {CONNECT_S} s: {err!r}") from err


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
