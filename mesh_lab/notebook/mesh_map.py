"""A live map of a mesh: it asks the servers every second and draws what they report, with a button for each fault."""

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any

from mesh_lab.notebook.mesh_drawing import draw
from mesh_lab.observe.snapshots import ServerSnapshot, snapshot
from mesh_lab.servers.mesh import Mesh

FAULTS = ("kill", "pause", "resume", "restart")
"""Methods of a mesh that take a server's name."""


class MeshMap:
    """A widget that shows a mesh as it is now; the last expression of a cell shows it.

    It is drawn anew while the kernel is free or awaits something. A cell that blocks the kernel stops it.

    Attributes:
        snapshots: What each server reported last, by name; a server that did not answer is not in it.
    """

    def __init__(self, mesh: Mesh, *, every: float = 1.0) -> None:
        """Show a mesh. Needs a running event loop, which a notebook's cells have.

        Args:
            mesh: What to show; the map does not keep it alive, and ends when it is closed or forgotten.
            every: Seconds between two snapshots. Each asks every server six questions.

        Raises:
            ValueError: ``every`` is below 0.1 s: the servers would be kept busy by being watched.
        """
        import ipywidgets

        if every < 0.1:
            raise ValueError(f"every={every} s, expected 0.1 or more: being watched must cost the servers little")
        self.snapshots: dict[str, ServerSnapshot] = {}
        self._mesh = weakref.ref(mesh)
        self._every = every
        self._processes: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._drawing, self._message = ipywidgets.HTML(), ipywidgets.Label()
        self._chosen = ipywidgets.Dropdown(options=list(mesh.servers), layout={"width": "150px"})
        buttons = [self._button(fault) for fault in FAULTS if mesh.traits.stoppable]
        controls = ipywidgets.HBox([self._chosen, *buttons, self._message] if buttons else [self._message])
        self._box = ipywidgets.VBox([self._drawing, controls])
        self._draw(mesh, {})
        self._following = asyncio.get_running_loop().create_task(self._follow())

    @property
    def svg(self) -> str:
        """The drawing as it is now."""
        return str(self._drawing.value)

    async def refresh(self) -> None:
        """Ask all servers now, and draw what they report."""
        if (mesh := self._mesh()) is None:
            return
        before = self.snapshots
        self._processes, self.snapshots = await asyncio.to_thread(_ask, mesh)
        self._draw(mesh, before)

    async def close(self) -> None:
        """Stop asking; the last drawing stays. Closing twice does nothing."""
        self._following.cancel()
        await asyncio.gather(self._following, *self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            while (mesh := self._mesh()) is not None and not mesh.closed:
                del mesh
                await self.refresh()
                await asyncio.sleep(self._every)
        except Exception as err:
            self._message.value = f"the map stopped: {err!r}"
            raise
        self._message.value = "the mesh was closed"

    def _draw(self, mesh: Mesh, before: dict[str, ServerSnapshot]) -> None:
        states = self._states(mesh)
        drawing = draw(mesh.layout, states=states, snapshots=self.snapshots, before=before)
        self._drawing.value = drawing.svg("; ".join(f"{name} {state}" for name, state in states.items()))

    def _states(self, mesh: Mesh) -> dict[str, str]:
        """Return each server's process's state, or, where it runs, whether it answered."""

        def state(name: str) -> str:
            if (process := self._processes.get(name, "not asked yet")) != "running":
                return process
            if mesh.servers[name].monitor is None:
                return "cannot be asked"
            return "ready" if name in self.snapshots else "no answer"

        return {name: state(name) for name in mesh.servers}

    def _button(self, fault: str) -> Any:
        import ipywidgets

        button = ipywidgets.Button(description=fault, layout={"width": "80px"})
        button.on_click(lambda _: self._start(self._inflict(fault, str(self._chosen.value))))
        return button

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # Kept, since the loop alone would let it be collected half-way.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _inflict(self, fault: str, server: str) -> None:
        async with self._one_at_a_time:
            if (mesh := self._mesh()) is None:
                return
            self._message.value = f"{fault} {server} …"
            try:
                await getattr(mesh, fault)(server)
            except Exception as err:  # noqa: BLE001 - whatever it is, the person at the button must see it
                self._message.value = str(err) or repr(err)
                return
            self._message.value = f"{fault} {server}: done"
            await self.refresh()

    def __repr__(self) -> str:
        """Name the servers and their states."""
        states = {} if (mesh := self._mesh()) is None else self._states(mesh)
        return f"MeshMap({', '.join(f'{name} {state}' for name, state in states.items())})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Show the widget in JupyterLab, and the drawing where there is no kernel."""
        bundle: dict[str, Any] = dict(self._box._repr_mimebundle_(**kwargs))
        return {**bundle, "text/plain": repr(self), "image/svg+xml": self.svg}


def _ask(mesh: Mesh) -> tuple[dict[str, str], dict[str, ServerSnapshot]]:
    """Return each server's process's state, and what each reports; it blocks, on the engine of containers too."""
    processes: dict[str, str] = {name: server.observe() for name, server in mesh.servers.items()}
    monitors = {
        name: server.monitor
        for name, server in mesh.servers.items()
        if server.monitor is not None and processes[name] == "running"
    }
    return processes, snapshot(monitors)
