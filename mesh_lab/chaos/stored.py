"""What is stored: as a client reads it, and as it lies on each server's disk.

A server that has lost something may not know it, so the second way asks no server: it reads the files.
"""

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nats.js.errors
from nats.aio.client import Client

from mesh_lab.errors import StoreError
from mesh_lab.patterns.pull_consumer import read_in_order
from mesh_lab.patterns.wait import retry

# One record of a block file, little-endian: length (its highest bit: has headers), sequence, time, length of the
# subject; then the subject, the length of the headers if there are any, the headers, the payload, and a checksum
# (nats-server 2.15, server/filestore.go, writeMsgRecordLocked).
_RECORD = struct.Struct("<IQqH")
_HEADER_LENGTH = struct.Struct("<I")
_HAS_HEADERS = 1 << 31
_ERASED = 0b11 << 62  # flags in the sequence: erased, or a tombstone
_CHECKSUM_BYTES = 8
_ID = b"\r\nNats-Msg-Id:"
LONGEST_RECORD_BYTES = 64 * 1024 * 1024  # what max_payload may be set to, and a stream's default cannot reach
READ_WITHIN_S, MORE_WITHIN_S = 60.0, 3.0


class Stored(NamedTuple):
    """A stored message's number in the stream, and its ``Nats-Msg-Id``, ``""`` without one."""

    seq: int
    id: str


async def read_stream(client: Client, stream: str) -> list[Stored]:
    """Return all that a client can read of a stream; nothing, if there is no such stream any more.

    Raises:
        TimeoutError: The stream has no leader, or lost it while it was read.
    """
    try:
        state = (await retry(lambda: client.jetstream(timeout=3.0).stream_info(stream))).state
    except nats.js.errors.NotFoundError:
        return []
    if not state.messages:
        return []
    found, more, now = list[Stored](), True, asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(READ_WITHIN_S) as limit:
            async for batch in read_in_order(client, stream):
                found += [
                    Stored(msg.metadata.sequence.stream, (msg.headers or {}).get("Nats-Msg-Id", "")) for msg in batch
                ]
                if found[-1].seq >= state.last_seq:
                    break
                # Any replica may be the one that is read, and one that is behind says too early that there is no more.
                more = batch[-1].metadata.num_pending > 0
                limit.reschedule(now() + (READ_WITHIN_S if more else MORE_WITHIN_S))
    except TimeoutError:
        if more:
            raise
    return found


def read_replica(store: Path, stream: str, *, torn: bool = False) -> list[Stored]:
    """Return what a server that does not run holds of a stream, from its files; nothing, if it holds no such stream.

    Args:
        store: The server's directory, ``mesh.directory / "n1"``.
        stream: Name of a stream that is neither compressed nor encrypted.
        torn: Whether any file may break off, as after a power cut; otherwise only the last one, at a write.

    Raises:
        StoreError: A file is not as nats-server 2.15 writes it.
    """
    blocks = sorted(store.rglob(f"streams/{stream}/msgs/*.blk"), key=lambda path: int(path.stem))
    return [stored for path in blocks for stored in _read_block(path, last=path == blocks[-1], torn=torn)]


def truncate_replica(store: Path, stream: str, *, keep: int) -> None:
    """Take a stream's last messages off the disk of a server that does not run, as a power cut does, but for ``keep``.

    All of the stream lies in one file, as it does up to some megabytes.
    """
    [path] = store.rglob(f"streams/{stream}/msgs/*.blk")
    block, end = path.read_bytes(), 0
    for _ in range(keep):
        end += _RECORD.unpack_from(block, end)[0] & ~_HAS_HEADERS
    path.write_bytes(block[:end])
    path.with_name("index.db").unlink(missing_ok=True)  # it would say how long the file was


def _read_block(path: Path, *, last: bool, torn: bool) -> Iterator[Stored]:
    block, at = path.read_bytes(), 0
    if block.startswith(b"cmp"):
        raise StoreError(f"{path.name} is compressed, expected records; make the stream without compression")
    while at + _RECORD.size <= len(block):
        length, seq, _, subject_bytes = _RECORD.unpack_from(block, at)
        has_headers, length = length & _HAS_HEADERS, length & ~_HAS_HEADERS
        if torn and not _RECORD.size + _CHECKSUM_BYTES <= length <= len(block) - at:
            return  # the file had grown, and what was written into it was lost
        if length < _RECORD.size + _CHECKSUM_BYTES:
            expected = f"at least {_RECORD.size + _CHECKSUM_BYTES}; an encrypted stream cannot be read like this"
            raise StoreError(f"{path.name}, byte {at}: a record of {length} bytes, expected {expected}")
        if at + length > len(block):
            if last and length <= LONGEST_RECORD_BYTES:
                return  # the end was torn off while it was written
            raise StoreError(f"{path.name}, byte {at}: a record of {length:,} bytes goes beyond the file's end")
        headers = b""
        if has_headers:
            start = at + _RECORD.size + subject_bytes
            (size,) = _HEADER_LENGTH.unpack_from(block, start)
            headers = block[start + _HEADER_LENGTH.size : start + _HEADER_LENGTH.size + size]
        if not seq & _ERASED:
            _, found, rest = headers.partition(_ID)
            yield Stored(seq, rest.split(b"\r\n", 1)[0].strip().decode() if found else "")
        at += length
