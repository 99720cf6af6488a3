"""A relayed TCP connection that takes time, and the lane that it shares with others.

A *lane* is one direction between two servers. All connections between the two share it, whichever side dialled,
as they would share a cable. Data waits in a queue until it is due, and more is read meanwhile: latency delays, and
does not throttle. Only a lane's rate does.
"""

import asyncio
import socket
import struct
from collections import deque
from typing import cast

ROOM_BYTES = 16 * 2**20
"""Bytes that may be on their way on one connection: more than latency times bandwidth of any lesson."""
TICK_S = 0.0005
LINGER_NOT = struct.pack("ii", 1, 0)  # close() then sends RST, as a firewall that rejects would


class Lane:
    """One direction between two servers."""

    def __init__(self, source: str, target: str, kind: str) -> None:
        self.source, self.target, self.kind = source, target, kind
        self.latency = 0.0
        self.rate: float | None = None
        self.cut: str | None = None
        self.carried = 0
        self.ends: set[End] = set()
        self._free_at = 0.0

    @property
    def room(self) -> float:
        """Bytes that one connection may have in its queue; a narrow lane has a short one, as a router has."""
        return ROOM_BYTES if self.rate is None else max(65_536, self.rate * (self.latency + 0.25))

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut data so small that a narrow lane carries it evenly: 20 ms of it at a time."""
        if self.rate is None:
            return [data]
        size = max(512, int(self.rate * 0.02))
        return [data[i : i + size] for i in range(0, len(data), size)]

    def due(self, now: float, size: int) -> float:
        """Return when data that is sent now has arrived, and count the time that it occupies the lane."""
        if self.rate is None:
            return now + self.latency
        self._free_at = max(now, self._free_at) + size / self.rate
        return self._free_at + self.latency

    def set_cut(self, mode: str | None) -> None:
        """Stop carrying, or carry again."""
        self.cut = mode
        for end in list(self.ends):
            if mode == "reset":
                end.reset()
            else:
                end.pump()


class End(asyncio.Protocol):
    """One socket of a relayed connection. What arrives here travels along the lane and leaves at the other end."""

    transport: asyncio.Transport

    def __init__(self, lane: Lane, loop: asyncio.AbstractEventLoop) -> None:
        self.lane, self.loop = lane, loop
        self.other: End | None = None
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._queued = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._writable = True
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection; nothing is read from it before it has its other end."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.lane.ends.add(self)
        self._read(self.other is not None)

    def join(self, other: "End") -> None:
        """Make two ends one connection."""
        self.other, other.other = other, self
        self.pump()
        other.pump()

    def data_received(self, data: bytes) -> None:
        """Send data on its way."""
        now = self.loop.time()
        for piece in self.lane.pieces(data):
            self._put(self.lane.due(now, len(piece)), piece)
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the other end close when all that was sent before has arrived."""
        self._lost = True
        self.lane.ends.discard(self)
        self._put(self.loop.time() + self.lane.latency, None)
        self.pump()

    def pause_writing(self) -> None:
        """Note that the receiver does not keep up."""
        self._writable = False

    def resume_writing(self) -> None:
        """Note that the receiver keeps up again."""
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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
            if self._queue and self.other._writable:
                self._timer = self.loop.call_at(self._queue[0][0], self.pump)
        self._read(self.lane.cut is None and self.other is not None and self._queued < self.lane.room)

    def _put(self, due: float, data: bytes | None) -> None:
        # Never before what was sent earlier, whatever the lane's latency is by now.
        self._queue.append((max(due, self._queue[-1][0]) if self._queue else due, data))
        self._queued += len(data or b"")

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()
