"""``%load_ext mesh_lab``: what the package adds to a notebook."""

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

from mesh_lab.notebook.mesh_card import mesh_card
from mesh_lab.notebook.seat import guess, hand, show_news
from mesh_lab.notebook.service_cell import service_magic
from mesh_lab.notebook.services import Services
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import begin_lessons

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

services = Services()


def load(shell: "InteractiveShell") -> None:
    """Add ``%%service`` and names to a shell, and allow ``asyncio.run()`` there; twice is no harm."""
    allow_nested_loops()
    begin_lessons()
    shell.magics_manager.register_function(service_magic(services), magic_kind="cell", magic_name="service")
    shell.push({"services": services, "hand": hand, "guess": guess}, interactive=False)  # type: ignore[no-untyped-call]
    html = shell.display_formatter.formatters["text/html"]  # type: ignore[union-attr]
    html.for_type(Mesh, mesh_card)
    shell.events.register("pre_run_cell", show_news)
    show_news()
    # Before a cell: what crashed between cells. After it: what the cell made crash.
    for event in ("pre_run_cell", "post_run_cell"):
        shell.events.register(event, report_crashes)
    shell.events.register("post_run_cell", partial(forget_meshes, shell))


def allow_nested_loops() -> None:
    """Let ``asyncio.run()`` and ``run_until_complete()`` work while a loop runs; do nothing where none does.

    A widget's callback, or a program's own ``asyncio.run(main())``, runs inside the kernel's loop. Not nest_asyncio
    1.6: with it, under ipykernel 7, cells that *Run All* has queued while another one is inside ``asyncio.run()`` are
    lost.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a terminal, or a test: asyncio.run() works as it is
        return
    import nest_asyncio2

    nest_asyncio2.apply(loop)


def forget_meshes(shell: "InteractiveShell", _result: "ExecutionResult | None" = None) -> None:
    """Take meshes out of IPython's ``_``, ``_7`` and ``Out[7]``: a mesh without a reference to it is cleaned up."""
    for names in (vars(shell.displayhook), shell.user_ns, shell.user_ns_hidden):
        names.update({name: "" for name in ("_", "__", "___") if isinstance(names.get(name), Mesh)})
    history = shell.user_ns.get("_oh", {})
    for number in [number for number, value in history.items() if isinstance(value, Mesh)]:
        for names in (shell.user_ns, shell.user_ns_hidden):
            names.pop(f"_{number}", None)
        del history[number]


def report_crashes(_cell: object = None) -> None:
    """Print the tracebacks of services that crashed since this was last done."""
    if crashes := services.unreported_crashes():
        # Standard output: it is something the reader is meant to see, and no trouble of the cell itself.
        sys.stdout.write(f"{crashes}\n")
