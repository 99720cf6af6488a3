"""A listener that speaks NATS's protocol by a script, to bring its bytes into the order that shows a fault.

A real server answers when it likes; these faults need a PONG that comes late, or a server that stops in mid-sentence.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

INFO = {"server_id": "N", "version": "2.15.1", "headers": True, "max_payload": 1_000, "proto": 1}


@dataclass
class Wire:
    """What the clients of one listener did, and what it does with them.

    Attributes:
        pongs: Answer each PING, as a server does; switched off, they are owed until :meth:`send`.
        hang_up_at: Verb at whose first appearance the listener hangs up, after ``last_words``.
    """

    url: str = ""
    pongs: bool = True
    hang_up_at: str | None = None
    last_words: str = ""
    verbs: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    connections: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def send(self, line: str) -> None:
        """Send a line, or several, to the newest client."""
        self._writers[-1].write(f"{line}\r\n".encode())

    def stop_reading(self) -> None:
        """Leave the newest client's bytes where they are, as a server does that hangs."""
        self.pongs = False
        self._writers[-1].transport.pause_reading()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        self.connections += 1
        self._writers.append(writer)
        self.send(f"INFO {json.dumps(INFO)}")
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                verb = line.split()[0].decode() if line.strip() else ""
                self.verbs.append(verb)
                self.lines.append(line.decode().strip())
                if verb in ("PUB", "HPUB"):
                    await reader.readexactly(int(line.split()[-1]) + 2)
                if verb == self.hang_up_at:
                    writer.write(self.last_words.encode())
                    break
                if verb == "PING" and self.pongs:
                    self.send("PONG")
        writer.close()


@contextlib.asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    """Listen on a free port of this machine, and hang up on everybody at the end."""
    found = Wire()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        for writer in found._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # lets the connections' tasks hear of it
