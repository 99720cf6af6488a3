"""Run notebooks as readers do: each cell twice, from the middle, after pauses, interrupted.

``python tests/notebooks/habits.py twice notebooks/03_*.ipynb`` prints each cell that does not hold; ``sections``,
``interrupted`` and ``paused`` are the other habits, and without names it takes all notebooks. ``make test`` tries the
first one on notebook 00; the rest, ``make habits``, is for a release, since it takes an hour.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from page import Page, parts
from refresh import ANSI, CELL_TIMEOUT_S, KERNEL_STARTUP_S, NOTEBOOKS

PAUSE_S = 12.0
# Long enough that a cell is at work, short enough that it is not done.
INTERRUPT_AFTER_S = 0.3


class Reader:
    """A kernel that a reader works with, cell by cell.

    Attributes:
        faults: What went wrong, a line for each cell and run.
    """

    def __init__(self, page: Page) -> None:
        self._page, self._number = page, 0
        self.faults: list[str] = []
        self._client = NotebookClient(
            NotebookNode(nbformat.v4.new_notebook(metadata=page.notebook.metadata)),
            timeout=CELL_TIMEOUT_S,
            startup_timeout=KERNEL_STARTUP_S,
            kernel_name="python3",
            allow_errors=True,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            resources={"metadata": {"path": str(NOTEBOOKS)}},
        )
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "Reader":
        home = self._open.enter_context(tempfile.TemporaryDirectory(prefix="mesh-lab-home-"))
        await self._open.enter_async_context(self._client.async_setup_kernel(env={**os.environ, "MESH_LAB_HOME": home}))
        return self

    async def __aexit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        await self._open.aclose()
        return isinstance(error, CellTimeoutError | DeadKernelError)  # noted; nothing more can be run

    async def run(self, cell: NotebookNode, words: str, *, interrupt_after: float | None = None) -> bool:
        """Run a cell; note a fault, and return ``False``, unless it did as the notebook says.

        Args:
            cell: One of the page's.
            words: What this run is, for the fault: "second run".
            interrupt_after: Seconds after which the kernel is interrupted; then no error is a fault.
        """
        copy, self._number = NotebookNode(cell), self._number + 1
        copy.outputs = []
        self._client.nb.cells = [copy]  # nbclient looks for the cell under the index that it is given
        running = asyncio.create_task(self._client.async_execute_cell(copy, 0))
        if interrupt_after is not None:
            await asyncio.wait([running], timeout=interrupt_after)
            if not running.done():
                await self._client.km.interrupt_kernel()
        try:
            await running
        except (CellTimeoutError, DeadKernelError) as err:
            self._note(cell, words, type(err).__name__)
            raise
        errors = [output for output in copy.outputs if output.output_type == "error"]
        expected = "raises-exception" in self._page.tags(cell)
        if interrupt_after is None and bool(errors) != expected:
            seen = f"{errors[0].ename}: {ANSI.sub('', errors[0].evalue)}" if errors else "raised nothing"
            self._note(cell, words, seen)
            return False
        return True

    def _note(self, cell: NotebookNode, words: str, seen: str) -> None:
        first = cell.source.strip().partition("\n")[0][:50]
        self.faults.append(
            f"{self._page.path.stem[:2]} [{self._page.code.index(cell)}] {first!r}, {words}: {seen[:300]}"
        )


async def twice(page: Page) -> list[str]:
    """Run every cell, and each of them again before the next one."""
    async with Reader(page) as reader:
        for cell in page.code:
            if await reader.run(cell, "first run"):
                await reader.run(cell, "second run")
    return reader.faults


async def paused(page: Page) -> list[str]:
    """Wait before every cell, as somebody does who reads."""
    async with Reader(page) as reader:
        for cell in page.code:
            await asyncio.sleep(PAUSE_S)  # pacing: the reader reads
            await reader.run(cell, f"after {PAUSE_S:g} s")
    return reader.faults


async def interrupted(page: Page) -> list[str]:
    """Interrupt every cell while it runs, and run it again."""
    async with Reader(page) as reader:
        for cell in page.code:
            await reader.run(cell, "interrupted", interrupt_after=INTERRUPT_AFTER_S)
            await reader.run(cell, "after an interrupt")
    return reader.faults


async def sections(page: Page) -> list[str]:
    """Run the set-up and then one section, in a new kernel for each."""
    setup, rest = parts(page)
    faults: list[str] = []
    for title, cells in rest:
        async with Reader(page) as reader:
            for cell in setup:
                await reader.run(cell, "set-up")
            for cell in cells:
                await reader.run(cell, f"from {title[:40]!r}")
        faults += reader.faults
    return faults


HABITS = {habit.__name__: habit for habit in (twice, sections, interrupted, paused)}


def main(arguments: list[str] | None = None) -> int:
    """Try a habit on notebooks; 1 if a cell does not tolerate it."""
    parser = argparse.ArgumentParser(prog="habits.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("habit", choices=HABITS)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    options = parser.parse_args(arguments)
    failed = False
    for path in options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb")):
        faults = asyncio.run(HABITS[options.habit](Page(nbformat.read(path, as_version=4), path)))
        failed = failed or bool(faults)
        print("\n  ".join([f"{path.name}: {len(faults)} faults", *faults]), flush=True)  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
