"""Where processor time goes: what each kind of child process used, servers and load generators alike."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

from mesh_lab.measure.go_twin import PROGRAM as GO_PROGRAM
from mesh_lab.measure.load import WORKER
from mesh_lab.patterns.wait import cancel_and_join

SAMPLE_EVERY_S = 0.05  # a look takes some milliseconds itself
SERVICES = "mesh_lab.orders"  # the module that `python -m` runs


@contextlib.asynccontextmanager
async def processor_seconds() -> AsyncIterator[dict[str, float]]:
    """Count the processor seconds that this process's children use while the block runs.

    Servers count together, as ``"servers"``; a load generator as its job, such as ``"Windowed"``; services, also those
    in Go, as what they are, such as ``"worker"``. Of a process that ends meanwhile, its last twentieth of a second may
    be missed.
    """
    import psutil

    seen: dict[psutil.Process, float] = {}
    counted = defaultdict[str, float](float)

    def look(*, first: bool = False) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended
                if name := _name(process.name(), process.cmdline()):
                    used = sum(process.cpu_times()[:2])
                    counted[name] += 0.0 if first else used - seen.get(process, 0.0)
                    seen[process] = used

    async def keep_looking() -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            look()

    look(first=True)
    looking = asyncio.create_task(keep_looking())
    try:
        yield counted
    finally:
        await cancel_and_join(looking)
        look()


def _name(program: str, line: list[str]) -> str:
    """Return what a process counts as; nothing for others."""
    if program.startswith("nats-server"):
        return "servers"
    if WORKER in line:
        return line[-1].rpartition(":")[2]
    if SERVICES in line:
        return line[line.index(SERVICES) + 1]
    return line[-1] if program == GO_PROGRAM and line else ""
