"""A live map of a mesh: it asks the servers every second and draws what they report, with a button for each fault."""

import asyncio
import weakref
from typing import Any

from mesh_lab.notebook.mesh_drawing import draw
from mesh_lab.observe.snapshots import ServerSnapshot, snapshot
from mesh_lab.servers.mesh import Mesh

FAULTS = ("kill", "pause", "resume", "restart")
"""Methods of a mesh that take a server's name."""
EVERY_S = 1.0  # between two snapshots, each of six requests to every server


class MeshMap:
    """A widget that shows a mesh as it is now; the last expression of a cell shows it.

    It is redrawn while the kernel is free or awaits something. A cell that blocks the kernel stops it.

    Attributes:
        snapshots: What each server reported last, by name; a server that did not answer is not in it.
    """

    def __init__(self, mesh: Mesh) -> None:
        """Show a mesh, which the map does not keep alive: it ends when that is closed or forgotten.

        Needs a running event loop, which a notebook's cells have.
        """
        import ipywidgets

        self.snapshots: dict[str, ServerSnapshot] = {}
        self._mesh = weakref.ref(mesh)
        self._states = dict.fromkeys(mesh.servers, "not asked yet")
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._drawing, self._message = ipywidgets.HTML(), ipywidgets.Label()
        self._chosen = ipywidgets.Dropdown(options=list(mesh.servers), layout={"width": "150px"})
        buttons = [self._button(fault) for fault in FAULTS if "kill" in mesh.traits.gives]
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
        self._states, self.snapshots = await asyncio.to_thread(_ask, mesh)
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
                await asyncio.sleep(EVERY_S)
        except Exception as err:
            self._message.value = f"the map stopped: {err!r}"
            raise
        self._message.value = "the mesh was closed"

    def _draw(self, mesh: Mesh, before: dict[str, ServerSnapshot]) -> None:
        drawing = draw(mesh.layout, states=self._states, snapshots=self.snapshots, before=before)
        self._drawing.value = drawing.svg("; ".join(f"{name} {state}" for name, state in self._states.items()))

    def _button(self, fault: str) -> Any:
        import ipywidgets

        def clicked(_: Any) -> None:
            # Kept, since the loop holds only a weak reference: the task could be collected half-way.
            task = asyncio.get_running_loop().create_task(self._inflict(fault, str(self._chosen.value)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        button = ipywidgets.Button(description=fault, layout={"width": "80px"})
        button.on_click(clicked)
        return button

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
        states = {} if self._mesh() is None else self._states
        return f"MeshMap({', '.join(f'{name} {state}' for name, state in states.items())})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Show the widget in JupyterLab, and the drawing where there is no kernel."""
        bundle: dict[str, Any] = dict(self._box._repr_mimebundle_(**kwargs))
        return {**bundle, "text/plain": repr(self), "image/svg+xml": self.svg}


def _ask(mesh: Mesh) -> tuple[dict[str, str], dict[str, ServerSnapshot]]:
    """Return each server's state in words, and what each reports; it blocks, on the engine of containers too."""
    states: dict[str, str] = {name: server.observe() for name, server in mesh.servers.items()}
    running = {name: mesh.servers[name].monitor for name, state in states.items() if state == "running"}
    snapshots = snapshot({name: monitor for name, monitor in running.items() if monitor is not None})
    for name, monitor in running.items():
        answered = "ready" if name in snapshots else "no answer"
        states[name] = "cannot be asked" if monitor is None else answered
    return states, snapshots
