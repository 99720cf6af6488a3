"""A live map of a mesh: it asks the servers every second and draws what they say, with a button for each fault."""

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any

from mesh_lab.notebook.map_drawing import draw
from mesh_lab.observe.snapshots import ServerSnapshot, snapshot
from mesh_lab.servers.mesh import Mesh

FAULTS = ("kill", "pause", "resume", "restart")
"""Methods of a mesh that take a server's name."""


class MeshMap:
    """A widget that shows a mesh as it is now; the last expression of a cell shows it.

    It draws itself anew while the kernel is free or awaits something. A cell that blocks the kernel stops it.

    Attributes:
        looks: What each server said last, by name; a server that did not answer is not in it.
    """

    def __init__(self, mesh: Mesh, *, every: float = 1.0) -> None:
        """Begin to look. Needs a running event loop, which a notebook's cells have.

        Args:
            mesh: What to look at; the map does not keep it, and ends when it is closed or forgotten.
            every: Seconds between two looks. Each look asks every server six questions.

        Raises:
            ValueError: ``every`` is below 0.1 s: the servers would be kept busy by being watched.
        """
        import ipywidgets

        if every < 0.1:
            raise ValueError(f"every={every} s, expected 0.1 or more: being watched must cost the servers little")
        self.looks: dict[str, ServerSnapshot] = {}
        self._seen = weakref.ref(mesh)
        self._every = every
        self._doing: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._drawing = ipywidgets.HTML()
        self._said = ipywidgets.Label()
        self._chosen = ipywidgets.Dropdown(options=list(mesh.servers), layout={"width": "150px"})
        buttons = [self._button(fault) for fault in FAULTS if mesh.backend != "external"]
        controls = ipywidgets.HBox([self._chosen, *buttons, self._said] if buttons else [self._said])
        self._box = ipywidgets.VBox([self._drawing, controls])
        self._processes: dict[str, str] = {}
        self._drawing.value = draw(mesh.layout, self._states(mesh), {})
        self._following = asyncio.get_running_loop().create_task(self._follow())

    @property
    def svg(self) -> str:
        """The drawing as it is now."""
        return str(self._drawing.value)

    async def look(self) -> None:
        """Ask all servers now, and draw what they say."""
        if (mesh := self._seen()) is None:
            return
        before = self.looks
        self._processes, self.looks = await asyncio.to_thread(_look, mesh)
        self._drawing.value = draw(mesh.layout, self._states(mesh), self.looks, before)

    async def close(self) -> None:
        """End the looking; the last drawing stays. Closing twice does nothing."""
        self._following.cancel()
        await asyncio.gather(self._following, *self._doing, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            while (mesh := self._seen()) is not None and not mesh.closed:
                del mesh
                await self.look()
                await asyncio.sleep(self._every)
        except Exception as err:
            self._said.value = f"the map stopped: {err!r}"
            raise
        self._said.value = "the mesh was closed"

    def _states(self, mesh: Mesh) -> dict[str, str]:
        """Say of each server what it is: its process's state, or whether it answered."""
        return {name: self._state(mesh, name) for name in mesh.servers}

    def _state(self, mesh: Mesh, name: str) -> str:
        if name not in self._processes:
            return "not asked yet"
        if self._processes[name] != "running":
            return self._processes[name]
        if mesh.servers[name].monitor is None:
            return "cannot be asked"
        return "ready" if name in self.looks else "no answer"

    def _button(self, fault: str) -> Any:
        import ipywidgets

        button = ipywidgets.Button(description=fault, layout={"width": "80px"})
        button.on_click(lambda _: self._start(self._inflict(fault, str(self._chosen.value))))
        return button

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        # Kept, since the loop alone would let it be collected half-way.
        task = asyncio.get_running_loop().create_task(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _inflict(self, fault: str, server: str) -> None:
        async with self._one_at_a_time:
            if (mesh := self._seen()) is None:
                return
            self._said.value = f"{fault} {server} …"
            try:
                await getattr(mesh, fault)(server)
            except Exception as err:  # noqa: BLE001 - whatever it is, who pressed the button must see it
                self._said.value = str(err) or repr(err)
                return
            self._said.value = f"{fault} {server}: done"
            await self.look()

    def __repr__(self) -> str:
        """Name the servers and their states."""
        states = {} if (mesh := self._seen()) is None else self._states(mesh)
        return f"MeshMap({', '.join(f'{name} {state}' for name, state in states.items())})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Show the widget in JupyterLab, and the drawing where there is no kernel."""
        bundle: dict[str, Any] = dict(self._box._repr_mimebundle_(**kwargs))
        return {**bundle, "text/plain": repr(self), "image/svg+xml": self.svg}


def _look(mesh: Mesh) -> tuple[dict[str, str], dict[str, ServerSnapshot]]:
    """Return the state of each server's process, and what each server says; it blocks, on the engine of containers."""
    processes: dict[str, str] = {name: server.state for name, server in mesh.servers.items()}
    monitors = {
        name: server.monitor
        for name, server in mesh.servers.items()
        if server.monitor is not None and processes[name] == "running"
    }
    return processes, snapshot(monitors)
