"""When servers are ready in truth, and not by the word of a log line."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import nats.errors
import nats.js.errors

from mesh_lab.errors import NotReadyError
from mesh_lab.servers.backend import MeshServer
from mesh_lab.servers.mesh import Mesh

POLL_S = 0.02


async def wait_until_healthy(servers: Sequence[MeshServer], *, within: float) -> None:
    """Return when every server answers ``/healthz`` with 200, JetStream included.

    Args:
        servers: Servers that were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: One was not; the message says what each last answered.
        ServerExitedError: One ended; the message carries its last log lines.
    """
    monitored = [(server, server.monitor) for server in servers if server.monitor is not None]
    seen = {server.name: "nothing yet" for server, _ in monitored}

    async def healthy() -> bool:
        # In threads: of a container, this asks the engine.
        await asyncio.gather(*(asyncio.to_thread(server.check_alive) for server, _ in monitored))
        answers = await asyncio.gather(*(asyncio.to_thread(monitor.health) for _, monitor in monitored))
        seen.update({server.name: answer.seen for (server, _), answer in zip(monitored, answers, strict=True)})
        return all(answer.ok for answer in answers)

    await _until(
        healthy,
        within=within,
        problem=lambda: "; ".join(
            f"server {name!r} not ready after {within} s (last /healthz: {answer}); see mesh.logs({name!r})"
            for name, answer in seen.items()
            if answer != "200 ok"
        ),
    )


async def wait_until_ready(mesh: Mesh, *, within: float) -> None:
    """Return when the mesh can take a stream with a replica on every server.

    ``/healthz`` on all servers is not enough: right after it, the meta leader may not yet count every peer,
    and a stream of three replicas is refused. So the meta leader must name every peer as current, and a
    JetStream call must have been answered.

    Args:
        mesh: Mesh whose servers were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: It was not; the message says what was missing.
        ServerExitedError: A server ended.
    """
    started = time.monotonic()
    servers = list(mesh.servers.values())
    await wait_until_healthy(servers, within=within)
    seen = "no meta leader"

    async def whole() -> bool:
        nonlocal seen
        answers = await asyncio.gather(
            *(asyncio.to_thread(s.monitor.jsz) for s in servers if s.monitor is not None),
            return_exceptions=True,
        )
        # Only the leader knows how far its peers are: on the others, `current` is always false for the rest.
        views = {s.name: a["meta_cluster"] for s, a in zip(servers, answers, strict=True) if isinstance(a, dict)}
        led = next((view for name, view in views.items() if view.get("leader") == name), None)
        if led is None:
            seen = "no meta leader"
            return False
        current = sum(1 for r in led.get("replicas", []) if r["current"] and not r.get("offline"))
        seen = f"the meta leader counts {current} current peers"
        return current == len(servers) - 1

    async def answers() -> bool:
        nonlocal seen
        try:
            await client.jetstream(timeout=0.5).account_info()
        except (TimeoutError, nats.errors.Error) as err:
            seen = f"JetStream's API: {err!r}"
            return False
        return True

    def problem() -> str:
        return f"mesh not ready after {within} s ({seen}); see mesh.logs({servers[0].name!r})"

    if len(servers) > 1:
        await _until(whole, within=within - (time.monotonic() - started), problem=problem)
    client = await mesh.connect(name="readiness")
    try:
        await _until(answers, within=within - (time.monotonic() - started), problem=problem)
    finally:
        await client.close()


async def _until(condition: Callable[[], Awaitable[bool]], *, within: float, problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + within
    while not await condition():
        if time.monotonic() > deadline:
            raise NotReadyError(problem())
        await asyncio.sleep(POLL_S)
