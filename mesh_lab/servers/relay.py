"""The process that runs a mesh's links: TCP relays that can be slowed and cut.

:mod:`mesh_lab.servers.links` starts it and talks to it: a line of JSON in, a line of JSON out. It ends when its
standard input does. A *lane* is one direction between two servers, shared by all connections between the two. Data
waits in a queue until it is due, and more is read meanwhile: latency delays, and does not throttle.
"""

import asyncio
import json
import socket
import struct
import sys
from collections import deque
from typing import Any, cast

from mesh_lab.processes import on_input_line, run

ROOM_BYTES = 16 * 2**20  # on their way on one connection: more than latency times bandwidth of any lesson
TICK_S = 0.0005
LINGER_NOT = struct.pack("ii", 1, 0)  # close() then sends RST, as a firewall that rejects would


class RelayLane:
    """One direction between two servers."""

    def __init__(self, source: str, target: str, kind: str) -> None:
        self.source, self.target, self.kind = source, target, kind
        self.latency = 0.0
        self.cut: str | None = None
        self.carried = 0
        self.ends: set[RelayEnd] = set()

    def set_cut(self, mode: str | None) -> None:
        """Stop carrying, or carry again."""
        self.cut = mode
        for end in list(self.ends):
            (end.reset if mode == "reset" else end.pump)()


class RelayEnd(asyncio.Protocol):
    """One socket of a relayed connection: what arrives here travels along the lane and leaves at the other end."""

    transport: asyncio.Transport

    def __init__(self, lane: RelayLane, loop: asyncio.AbstractEventLoop) -> None:
        self.lane, self.loop = lane, loop
        self.other: RelayEnd | None = None
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._queued = 0
        self._reading = True
        self._writable = True
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; nothing is read from it before it has its other end."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.lane.ends.add(self)
        self._read(self.other is not None)

    def join(self, other: "RelayEnd") -> None:
        """Make two ends one connection."""
        self.other, other.other = other, self
        self.pump()
        other.pump()

    def data_received(self, data: bytes) -> None:
        self._put(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the other end close when all that was sent before has arrived."""
        self._lost = True
        self.lane.ends.discard(self)
        self._put(None)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self.other is not None:
            self.other.pump()

    def reset(self) -> None:
        """Break the connection off: whatever is on its way is lost."""
        self._queue.clear()
        self._queued = 0
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.transport.abort()

    def pump(self) -> None:
        """Pass on what is due, and read more if there is room."""
        if self.lane.cut is None and self.other is not None:
            now = self.loop.time() + TICK_S
            while self._queue and self._queue[0][0] <= now and self.other._writable:
                _, data = self._queue.popleft()
                if data is None:
                    self.other.transport.close()
                elif not self.other._lost:
                    self._queued -= len(data)
                    self.lane.carried += len(data)
                    self.other.transport.write(data)
        self._read(self.lane.cut is None and self.other is not None and self._queued < ROOM_BYTES)

    def _put(self, data: bytes | None) -> None:
        """Send data, or the end of it, on its way."""
        # Never before what was sent earlier, whatever the lane's latency is by now.
        due = max(self.loop.time() + self.lane.latency, self._queue[-1][0] if self._queue else 0.0)
        self._queue.append((due, data))
        self._queued += len(data or b"")
        self.pump()
        if self._queue:
            self.loop.call_at(due, self.pump)

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()


class RelayLink:
    """A port at which one server reaches another, and the two lanes in between."""

    def __init__(self, there: RelayLane, back: RelayLane, *, listen: int, target: int) -> None:
        self.there, self.back = there, back
        self._listen, self._target = listen, target
        self._server: asyncio.Server | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._dialling: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, if it does not yet."""
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", self._listen)

    async def set_cut(self, mode: str | None) -> None:
        """Follow what happened to the lanes: a reset link refuses connections, a silent one delays them."""
        if mode != "reset":
            await self.open()
        elif self._server is not None:
            self._server.close()
            self._server = None
            for task in self._dialling:
                task.cancel()
        (self._whole.set if mode is None else self._whole.clear)()

    def _accept(self) -> RelayEnd:
        near = RelayEnd(self.there, asyncio.get_running_loop())
        task = asyncio.ensure_future(self._dial(near))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return near

    async def _dial(self, near: RelayEnd) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._whole.wait()
            _, far = await loop.create_connection(lambda: RelayEnd(self.back, loop), "127.0.0.1", self._target)
        except (OSError, asyncio.CancelledError):  # that server is dead, or the link was cut meanwhile
            near.reset()
        else:
            near.join(far)


class Relay:
    """All links of a mesh, and what can be done to them."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], RelayLane] = {}
        self._links: list[RelayLink] = []

    def _lane(self, source: str, target: str, kind: str) -> RelayLane:
        return self._lanes.setdefault((source, target), RelayLane(source, target, kind))

    async def handle(self, request: dict[str, Any]) -> Any:
        """Do what a line of JSON asks for, and return the reply."""
        lanes = [self._lanes[way] for one, other in request.get("pairs", ()) for way in ((one, other), (other, one))]
        match request["do"]:
            case "open":
                for kind, dialler, target, listen, port in request["links"]:
                    ways = self._lane(dialler, target, kind), self._lane(target, dialler, kind)
                    self._links.append(RelayLink(*ways, listen=listen, target=port))
                    await self._links[-1].open()
            case "slow":
                for lane in lanes:
                    lane.latency = request["latency"]
            case "cut":
                await self._cut(lanes, request["mode"])
            case "heal":
                for lane in self._lanes.values():
                    lane.latency = 0.0
                await self._cut([lane for lane in self._lanes.values() if lane.cut], None)
            case "lanes":
                # The fields of `mesh_lab.servers.links.Lane`, in order.
                return [
                    (one.source, one.target, one.kind, one.latency, one.cut, len(one.ends), one.carried)
                    for one in self._lanes.values()
                ]
        return None

    async def _cut(self, lanes: list[RelayLane], mode: str | None) -> None:
        # Ports first: what was refused must not find a lane that carries again, nor the other way round.
        for link in self._links:
            if link.there in lanes:
                await link.set_cut(mode)
        for lane in lanes:
            lane.set_cut(mode)


async def serve() -> None:
    """Handle each line of standard input until it ends."""
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    on_input_line(lines.put_nowait)
    relay = Relay()
    while True:
        try:
            reply = {"ok": await relay.handle(json.loads(await lines.get()))}
        except OSError as err:
            reply = {"error": str(err)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run(serve())
