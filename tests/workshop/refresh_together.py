"""Run the room's notebook in a clean kernel of a seat, in a room whose trainer does his part, and store its outputs.

``python tests/workshop/refresh_together.py`` takes a minute. ``tests/notebooks/refresh.py`` cannot run this one: it
needs a room, other seats, and somebody who cuts links, kills a server and lets a seat be noisy between its cells.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from test_together import NOTEBOOK, Class, Packer

from mesh_lab.measure.local_store import HOME_VARIABLE
from mesh_lab.patterns.connection import close
from mesh_lab.patterns.wait import eventually
from mesh_lab.workshop.room import Room
from mesh_lab.workshop.seat import join
from mesh_lab.workshop.store import Store

SEATS, CUT = 6, ("2", "3", "4")


async def main() -> None:
    """Run it, and write the file."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        room = await Room.open(seats=SEATS, exercises={"2.1": "answer it"})
        stack.push_async_callback(room.close)
        homes = {seat: folder / seat for seat in room.seats}
        everybody = Class(room, await room.begin_together(), homes)
        for home, line in zip(homes.values(), room.lines, strict=True):
            home.mkdir(mode=0o700)
            os.environ[HOME_VARIABLE] = str(home)
            await join(line)
        reader, *others = homes
        for seat in others:
            everybody.stores[seat] = await Store.open(homes[seat])
            stack.push_async_callback(everybody.stores[seat].close)
        os.environ[HOME_VARIABLE] = str(homes[reader])
        book = nbformat.read(NOTEBOOK, as_version=4)
        acts = trainer(everybody, stack, reader)
        notebook = NotebookClient(book, timeout=120, kernel_name="python3")
        async with notebook.async_setup_kernel():
            for place, cell in enumerate(book.cells):
                if act := acts.get(cell.id):
                    await act()
                await notebook.async_execute_cell(cell, place)
    sys.path.append(str(Path(__file__).parents[1] / "notebooks"))
    from refresh import _outputs, written

    for count, cell in enumerate([cell for cell in book.cells if cell.cell_type == "code"], 1):
        cell.metadata.pop("execution", None)
        cell.execution_count = count
        cell.outputs = list(_outputs(cell.outputs, count))
    NOTEBOOK.write_text(written(book), encoding="utf-8", newline="\n")


def trainer(everybody: Class, stack: AsyncExitStack, reader: str) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return what the trainer does before which cell."""
    together = everybody.together

    async def types(*lines: str) -> None:
        for line in lines:
            await everybody.types(line)

    async def breaks_things() -> None:
        await types("sell 5")
        await eventually(lambda: min(everybody.counted().values()) > 5, within=30.0)
        await types(*(f"cut {seat}" for seat in CUT), "kill n2", "double")
        cut = [store for seat, store in everybody.stores.items() if seat.lstrip("0") in CUT]
        await eventually(
            lambda: all(store.sold > len(together.counted[store.name]) + 100 for store in cut), within=60.0
        )

    async def mends() -> None:
        await types(*(f"mend {seat}" for seat in CUT), "back n2")
        await eventually(lambda: min(everybody.counted().values()) > 100, within=60.0)

    async def hands_out_work() -> None:
        await types("sell 0")
        for seat, store in everybody.stores.items():
            packer = Packer(await store.mesh.connect(name="packer"), seat)
            stack.push_async_callback(close, packer.client)
            await packer.work()
        await types("work 300")
        await eventually(lambda: all(together.jobs.values()), within=60.0)

    async def lets_one_be_noisy() -> None:
        await types("sell 5")
        await eventually(lambda: 0 < together._waited() < 0.1, within=30.0)  # the first ones found a clerk at rest
        await types("noise 2")
        await eventually(lambda: together._waited() > 2.0, within=60.0)
        await types("limit 20")

        async def tamed() -> bool:
            return (await together.check("noise")).startswith("correct")

        await eventually(tamed, within=30.0, every=0.2)

    return {
        "sold-here": breaks_things,
        "check-the-count": mends,
        "check-the-shares": hands_out_work,
        "check-the-noise": lets_one_be_noisy,
    }


if __name__ == "__main__":
    asyncio.run(main())
