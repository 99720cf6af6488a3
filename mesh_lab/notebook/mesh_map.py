"""A live map of a mesh: it asks the servers every second and draws what they report; what one clicks, one can break."""

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import combinations
from math import degrees
from typing import Any

from mesh_lab.errors import ProcessEndedError
from mesh_lab.notebook.mesh_drawing import PADDING, draw, spots
from mesh_lab.observe.snapshots import ServerSnapshot, in_words, snapshot
from mesh_lab.servers.layout import Layout, Pair
from mesh_lab.servers.mesh import Mesh

SERVER_FAULTS = ("kill", "pause", "resume", "restart")
"""Methods of a mesh that take a server's name."""
LINK_FAULTS = ("cut", "slow")
"""Methods of a mesh with links that take two places; ``heal`` takes none."""
SLOW_S = 0.1  # each way
EVERY_S = 1.0  # between two snapshots, each of six requests to every server
STATE_EVERY_S = 0.2  # between two looks at the servers' processes, which cost next to nothing

# A place to click is a button without a face. It lies where the drawing shows its server or link, in hundredths of the
# drawing's width, since a page may be narrower. Tab leads past it: what it chooses, the list chooses for the keyboard.
STYLE = """<style>
.mesh-map-stage { position: relative; container-type: inline-size; overflow: visible; }
.mesh-map-stage .widget-html, .mesh-map-stage .widget-html-content { margin: 0; width: 100%; height: auto; }
.mesh-map-stage svg { display: block; width: 100%; }
.mesh-map-stage .mesh-map-spot { position: absolute; min-width: 0; margin: 0; padding: 0; border-radius: 5px;
  background: transparent; box-shadow: none; translate: -50% -50%; }
.mesh-map-stage .mesh-map-spot:hover { background: rgba(0, 114, 178, 0.18); }
.mesh-map-stage .mesh-map-chosen { outline: 2.5px solid var(--jp-brand-color1, #0072B2); outline-offset: 3px; }
.mesh-map-controls :focus-visible { outline: 2.5px solid var(--jp-brand-color1, #0072B2); outline-offset: 1px; }
"""


class MeshMap:
    """A widget that shows a mesh as it is now; the last expression of a cell shows it.

    One clicks a server or a link, or chooses it in the list, and presses the button of what shall happen to it. The map
    is redrawn while the kernel is free or awaits something. A cell that blocks the kernel stops it.

    Attributes:
        snapshots: What each server reported last, by name; a server that did not answer is not in it.
        chosen: The list of servers and links, of which one is chosen.
        buttons: By the name of the mesh's method that each calls.
    """

    def __init__(self, mesh: Mesh, *, tally: Callable[[], Mapping[str, int]] | None = None) -> None:
        """Show a mesh, which the map does not keep alive: it ends when that is closed or forgotten.

        Needs a running event loop, which a notebook's cells have.

        Args:
            mesh: What to show.
            tally: Returns the numbers that stand below the drawing, such as ``{"placed": 12, "processed": 11}``.
        """
        import ipywidgets

        self.snapshots: dict[str, ServerSnapshot] = {}
        self._mesh, self._tally = weakref.ref(mesh), tally
        self._states, self._faults = dict.fromkeys(mesh.servers, "not asked yet"), dict[frozenset[str], str]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._drawing, self._message = ipywidgets.HTML(), ipywidgets.Label()
        self._panel: Any = None
        places, faults = list[tuple[str, ...]](), list[str]()
        if "kill" in mesh.traits.gives:
            places, faults = [(name,) for name in mesh.servers], list(SERVER_FAULTS)
        if mesh.links is not None:
            places, faults = [*places, *_linked(mesh.layout)], [*faults, *LINK_FAULTS, "heal"]
        self.buttons = {fault: self._button(fault) for fault in faults}
        self.chosen = ipywidgets.Dropdown(
            options=[(_label(place), place) for place in places], layout={"width": "150px"}, tooltip="server or link"
        )
        self._spots: dict[tuple[str, ...], Any] = {}
        stage = ipywidgets.Box(layout={"width": "760px", "max_width": "100%"})
        self._own = f"mesh-map-{self._drawing.model_id}"  # a page may show several maps
        for name in ("mesh-map-stage", self._own):
            stage.add_class(name)
        controls = ipywidgets.HBox([self.chosen, *self.buttons.values()] if self.buttons else [])
        controls.layout.flex_flow = "row wrap"
        controls.add_class("mesh-map-controls")
        self._box = ipywidgets.VBox([stage, controls, self._message])
        width = self._draw(mesh, {})
        stage.children = [self._drawing, *self._place_spots(mesh.layout, places, width)]
        self.chosen.observe(self._mark, "value")
        self._mark()
        self._loop = asyncio.get_running_loop()
        self._following = self._loop.create_task(self._follow())

    @property
    def svg(self) -> str:
        """The drawing as it is now."""
        return str(self._drawing.value)

    def beside(self) -> None:
        """Show the map in a panel of JupyterLab beside the page until the mesh is closed; elsewhere, below the cell."""
        from IPython.display import display

        # A Jupyter server gives each notebook's kernel this variable; what only runs notebooks, and VS Code, do not.
        if "JPY_SESSION_NAME" not in os.environ or find_spec("sidecar") is None:
            display(self)  # type: ignore[no-untyped-call]
            return
        from sidecar import Sidecar

        self._panel = Sidecar(title="the mesh", anchor="split-right")
        self._panel.append_display_data(self)

    async def refresh(self) -> None:
        """Ask all servers now, and draw what they report."""
        if (mesh := self._mesh()) is None:
            return
        before = self.snapshots
        self._states, self.snapshots, self._faults = await asyncio.to_thread(_ask, mesh)
        self._draw(mesh, before)

    async def close(self) -> None:
        """Stop asking; the last drawing stays. Closing twice does nothing."""
        self._following.cancel()
        await asyncio.gather(self._following, *self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            while (mesh := self._mesh()) is not None and not mesh.closed:
                del mesh
                seen = self._processes()
                await self.refresh()
                await self._period(seen)
        except Exception as err:
            self._message.value = f"the map stopped: {err!r}"
            raise
        self._message.value = "the mesh was closed"
        for button in self.buttons.values():
            button.disabled = True
        if self._panel is not None:
            self._panel.close()

    async def _period(self, seen: list[str]) -> None:
        """Return after a period, or as soon as a server's process is not what was seen of it."""
        step = min(EVERY_S, STATE_EVERY_S)
        for _ in range(round(EVERY_S / step)):
            if self._processes() != seen:
                return
            await asyncio.sleep(step)

    def _processes(self) -> list[str]:
        mesh = self._mesh()
        return [] if mesh is None or mesh.closed else [server.state for server in mesh.servers.values()]

    def _draw(self, mesh: Mesh, before: dict[str, ServerSnapshot]) -> float:
        """Draw anew, and return how wide the drawing is."""
        below = in_words(self.snapshots, before)
        if self._tally is not None and (numbers := self._tally()):
            below.insert(0, ", ".join(f"{what} {count:,}" for what, count in numbers.items()))
        drawing = draw(
            mesh.layout, states=self._states, snapshots=self.snapshots, before=before, faults=self._faults, below=below
        )
        words = [f"{name} {state}" for name, state in self._states.items()]
        words += [f"{' to '.join(sorted(pair))} {fault}" for pair, fault in self._faults.items()]
        self._drawing.value = drawing.svg("; ".join(words))
        return drawing.size[0]

    def _place_spots(self, layout: Layout, places: list[tuple[str, ...]], width: float) -> list[Any]:
        """Return a button for each place that the drawing shows, and the style that lays them there."""
        import ipywidgets

        rules, share = [STYLE], 100 / (width + 2 * PADDING)
        # Servers last, and so above the links that end at them.
        for number, (place, spot) in enumerate(spots(layout).items()):
            if place not in places:
                continue
            button = self._spots[place] = ipywidgets.Button(tooltip=_label(place), tabbable=False)
            button.add_class("mesh-map-spot")
            button.add_class(f"mesh-map-spot-{number}")
            button.on_click(lambda _, place=place: setattr(self.chosen, "value", place))
            (x, y), across, down = spot.middle, spot.width * share, spot.height * share
            where = f"left: {(x + PADDING) * share:.2f}cqw; top: {(y + PADDING) * share:.2f}cqw;"
            size = f"width: {across:.2f}cqw; height: {down:.2f}cqw; rotate: {degrees(spot.turned_rad):.1f}deg"
            rules.append(f".{self._own} .mesh-map-spot-{number} {{ {where} {size} }}")
        style = ipywidgets.HTML("\n".join([*rules, "</style>"]), layout={"display": "none"})
        return [*self._spots.values(), style]

    def _mark(self, _: object = None) -> None:
        """Show on the drawing what is chosen, and let its buttons alone be pressed."""
        for place, spot in self._spots.items():
            (spot.add_class if place == self.chosen.value else spot.remove_class)("mesh-map-chosen")
        is_server = len(self.chosen.value or ()) == 1
        for fault, button in self.buttons.items():
            button.disabled = fault in (LINK_FAULTS if is_server else SERVER_FAULTS)

    def _button(self, fault: str) -> Any:
        import ipywidgets

        def begin(place: tuple[str, ...]) -> None:
            # Kept, since the loop holds only a weak reference: the task could be collected half-way.
            task = self._loop.create_task(self._inflict(fault, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        def clicked(_: Any) -> None:
            # JupyterLab has clicks handled while a cell runs, in another thread; a mesh belongs to the loop of cells.
            self._loop.call_soon_threadsafe(begin, self.chosen.value)

        button = ipywidgets.Button(description=fault, layout={"width": "auto"})
        button.on_click(clicked)
        return button

    async def _inflict(self, fault: str, place: tuple[str, ...]) -> None:
        where, how = (() if fault == "heal" else place), ({"latency": SLOW_S} if fault == "slow" else {})
        words = f"{fault} {_label(where) if where else 'all links'}"
        async with self._one_at_a_time:
            if (mesh := self._mesh()) is None:
                return
            self._message.value = f"{words} …"
            try:
                await getattr(mesh, fault)(*where, **how)
            except Exception as err:  # noqa: BLE001 - whatever it is, the person at the button must see it
                self._message.value = str(err) or repr(err)
                return
            self._message.value = f"{words}: done"
            await self.refresh()

    def __repr__(self) -> str:
        states = {} if self._mesh() is None else self._states
        return f"MeshMap({', '.join(f'{name} {state}' for name, state in states.items())})"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Show the widget in JupyterLab, and the drawing where there is no kernel."""
        bundle: dict[str, Any] = dict(self._box._repr_mimebundle_(**kwargs))
        return {**bundle, "text/plain": repr(self), "image/svg+xml": self.svg}


def _label(place: tuple[str, ...]) -> str:
    return " – ".join(place)  # noqa: RUF001 - an en dash, as between two places


def _linked(layout: Layout) -> list[Pair]:
    """Return what can be cut, each once: pairs of servers, or of regions and leaf nodes where there are regions."""
    if layout.cluster is not None:
        return sorted({(min(join.dialler, join.target), max(join.dialler, join.target)) for join in layout.joins()})
    inside = [(region, region) for region, names in layout.regions.items() if len(names) > 1]
    return [*combinations(layout.regions, 2), *inside, *layout.leaves.items()]


def _ask(mesh: Mesh) -> tuple[dict[str, str], dict[str, ServerSnapshot], dict[frozenset[str], str]]:
    """Return each server's state in words, what each reports, and each link's fault; it blocks, on containers too."""
    states: dict[str, str] = {name: server.observe() for name, server in mesh.servers.items()}
    running = {name: mesh.servers[name].monitor for name, state in states.items() if state == "running"}
    snapshots = snapshot({name: monitor for name, monitor in running.items() if monitor is not None})
    for name, monitor in running.items():
        answered = "ready" if name in snapshots else "no answer"
        states[name] = "cannot be asked" if monitor is None else answered
    try:
        lanes = mesh.links.lanes() if mesh.links is not None else []
    except ProcessEndedError:
        if not mesh.closed:  # meanwhile
            raise
        lanes = []
    faults = {
        frozenset((lane.source, lane.target)): "cut" if lane.cut else f"+{1_000 * lane.latency_s:g} ms"
        for lane in lanes
        if lane.cut or lane.latency_s
    }
    return states, snapshots, faults
