"""The process that runs a mesh's links: TCP relays whose latency, bandwidth and life can be changed.

:mod:`mesh_lab.servers.links` starts it and talks to it: a line of JSON in, a line of JSON out. It ends when its
standard input does, so it never outlives the program that started it.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from mesh_lab.servers.relay import End, Lane


class Link:
    """A port at which one server reaches another, and the two lanes in between."""

    def __init__(self, there: Lane, back: Lane, *, listen: int, target: int) -> None:
        self.there, self.back = there, back
        self._listen, self._target = listen, target
        self._server: asyncio.Server | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._dialling: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, if it does not yet."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, "127.0.0.1", self._listen)

    async def set_cut(self, mode: str | None) -> None:
        """Follow what happened to the lanes: a link that is reset refuses, one that is silent lets wait."""
        if mode == "reset" and self._server is not None:
            self._server.close()
            self._server = None
            for task in self._dialling:
                task.cancel()
        if mode != "reset":
            await self.open()
        if mode is None:
            self._whole.set()
        else:
            self._whole.clear()

    def _accept(self) -> End:
        near = End(self.there, asyncio.get_running_loop())
        task = asyncio.ensure_future(self._dial(near))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return near

    async def _dial(self, near: End) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._whole.wait()
            _, far = await loop.create_connection(lambda: End(self.back, loop), "127.0.0.1", self._target)
        except (OSError, asyncio.CancelledError):  # that server is dead, or the link was cut meanwhile
            near.reset()
        else:
            near.join(far)


class Links:
    """All links of a mesh, and what can be done to them."""

    def __init__(self, wanted: list[dict[str, Any]]) -> None:
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._links = [
            Link(
                self._lane(link["dialler"], link["target"], link["kind"]),
                self._lane(link["target"], link["dialler"], link["kind"]),
                listen=link["listen"],
                target=link["port"],
            )
            for link in wanted
        ]

    def _lane(self, source: str, target: str, kind: str) -> Lane:
        return self._lanes.setdefault((source, target), Lane(source, target, kind))

    async def open(self) -> None:
        """Listen on every link's port."""
        for link in self._links:
            await link.open()

    async def obey(self, order: dict[str, Any]) -> Any:
        """Do what a line of JSON says, and return the answer."""
        lanes = [self._lanes[way] for one, other in order.get("pairs", ()) for way in ((one, other), (other, one))]
        match order["do"]:
            case "slow":
                for lane in lanes:
                    lane.latency, lane.rate = order["latency"], order["rate"]
            case "cut":
                await self._cut(lanes, order["mode"])
            case "heal":
                for lane in self._lanes.values():
                    lane.latency, lane.rate = 0.0, None
                await self._cut([lane for lane in self._lanes.values() if lane.cut], None)
            case "look":
                return [
                    {
                        "source": lane.source,
                        "target": lane.target,
                        "kind": lane.kind,
                        "latency_s": lane.latency,
                        "rate_bytes_per_s": lane.rate,
                        "cut": lane.cut,
                        "connections": len(lane.ends),
                        "carried_bytes": lane.carried,
                    }
                    for lane in self._lanes.values()
                ]
        return None

    async def _cut(self, lanes: list[Lane], mode: str | None) -> None:
        # Ports first: what was refused must not find a lane that carries again, nor the other way round.
        for link in self._links:
            if link.there in lanes:
                await link.set_cut(mode)
        for lane in lanes:
            lane.set_cut(mode)


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def serve() -> None:
    """Open the links that the first line names, then do what each further line says, until there is none."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    # A thread: not every event loop can read standard input on every platform.
    def read() -> None:
        for line in iter(sys.stdin.readline, ""):
            loop.call_soon_threadsafe(lines.put_nowait, line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    links = Links(json.loads(await lines.get()))
    work: Coroutine[Any, Any, Any] = links.open()
    while True:
        try:
            _answer({"ok": await work})
        except OSError as err:
            _answer({"error": str(err)})
        work = links.obey(json.loads(await lines.get()))


def main() -> None:
    """Run until standard input ends."""
    try:
        from uvloop import run
    except ImportError:  # Windows
        asyncio.run(serve())
    else:
        run(serve())


if __name__ == "__main__":
    main()
