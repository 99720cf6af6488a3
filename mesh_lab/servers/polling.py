"""Ask the servers' monitoring again and again until it says what is waited for."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mesh_lab.errors import NotReadyError
from mesh_lab.servers.mesh import Mesh

POLL_S = 0.02


def cluster_members(mesh: Mesh) -> list[str]:
    """Return the servers that share a meta leader: all but leaf nodes, of those that can be asked."""
    return [
        name for name, server in mesh.servers.items() if server.monitor is not None and name not in mesh.layout.leaves
    ]


async def ask(questions: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return each server's answer, an empty one where none came."""
    answers = await asyncio.gather(*(asyncio.to_thread(ask) for ask in questions.values()), return_exceptions=True)
    return {name: answer if isinstance(answer, dict) else {} for name, answer in zip(questions, answers, strict=True)}


async def until(condition: Callable[[], Awaitable[bool]], *, within: float, problem: Callable[[], str]) -> None:
    """Return when a condition holds.

    Args:
        condition: Says whether it does; asked once at least.
        within: Seconds until it is too late.
        problem: Says, at the end, what was seen instead.

    Raises:
        NotReadyError: It did not; the message is what ``problem`` says.
    """
    deadline = time.monotonic() + within
    while not await condition():
        if time.monotonic() > deadline:
            raise NotReadyError(problem())
        await asyncio.sleep(POLL_S)
