"""``%load_ext mesh_lab``: what the package adds to a notebook."""

import asyncio
import sys
from typing import TYPE_CHECKING

from mesh_lab.notebook.service_cell import service_magic
from mesh_lab.notebook.services import Services

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

services = Services()


def load(shell: "InteractiveShell") -> None:
    """Add ``%%service`` and ``services`` to a shell, and let ``asyncio.run()`` work in its cells.

    Loading it again does no harm: services that run stay the same.

    Args:
        shell: The shell of the notebook, or of a terminal.
    """
    allow_nested_loops()
    shell.magics_manager.register_function(service_magic(services), magic_kind="cell", magic_name="service")
    shell.push({"services": services}, interactive=False)  # type: ignore[no-untyped-call]
    # Before a cell: what crashed while nobody looked. After it: what the cell made crash.
    for event in ("pre_run_cell", "post_run_cell"):
        shell.events.register(event, show_news)


def allow_nested_loops() -> None:
    """Let ``asyncio.run()`` and ``run_until_complete()`` work while a loop runs; nothing where none does.

    A widget's callback, or a program's own ``asyncio.run(main())``, runs inside the kernel's loop. This is the only
    place that patches asyncio. It is nest_asyncio2, the maintained successor of nest_asyncio, which ipykernel
    itself depends on: under ipykernel 7, with nest_asyncio 1.6, cells that wait in the queue of *Run All* while
    another one is inside ``asyncio.run()`` are lost.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a terminal, or a test: asyncio.run() works as it is
        return
    import nest_asyncio2

    nest_asyncio2.apply(loop)


def show_news(_cell: object = None) -> None:
    """Print the tracebacks of services that crashed since this was last done."""
    if news := services.news():
        # Standard output: it is something the reader is meant to see, and no trouble of the cell itself.
        sys.stdout.write(f"{news}\n")
