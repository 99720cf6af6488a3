"""Back a stream up into a folder, and restore it from there: its messages, its consumers and how far each has got.

A folder holds what ``nats stream backup`` writes too, so that ``nats stream restore`` reads it: the server's snapshot,
as it came, and its description; beside them the checksums of both, which ``sha256sum -c`` reads, and without which
nothing is restored here. A folder that has the stream's name is whole: it gets that name when all is on the disk.

The protocol: https://docs.nats.io/reference/jetstream/api/stream/snapshot.md, and ``restore.md`` beside it.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError, NotFoundError

from mesh_lab.errors import AlreadyThereError, NotReadyError, TornBackupError, TransferEndedError
from mesh_lab.patterns.connection import LOOK_EVERY_S, is_no_responders, open_inbox, publish_if_connected, unsubscribe
from mesh_lab.patterns.consumer_info import no_stream
from mesh_lab.patterns.jetstream_api import api_request, expect_name, is_transient
from mesh_lab.patterns.wait import eventually, retry, run_shielded, unless_closed

T = TypeVar("T")
DATA, ABOUT, SUMS = "stream.tar.s2", "backup.json", "SHA256SUMS"
CHUNK_BYTES, CHUNKS_UNDER_WAY = 128 * 1024, 16
REPLY_WITHIN_S, SILENT_S, STORED_WITHIN_S, CONSUMERS_WITHIN_S, UNDONE_WITHIN_S = 10.0, 20.0, 600.0, 5.0, 15.0
MARK = "mesh_lab.restore"
"""Label of a stream that is not whole yet; the last thing that a restore does is to take it off."""
Progress = Callable[[int, int], object]
"""Called with the bytes that are transferred, and with all that there are, about."""


class SavedStream(msgspec.Struct, frozen=True):
    """What a backup says of itself: the stream's configuration and state when it was made, as the server gave them."""

    config: dict[str, Any]
    state: dict[str, Any]


async def backup_stream(client: Client, stream: str, into: Path, *, progress: Progress | None = None) -> SavedStream:
    """Save a stream with its consumers in the folder ``into / stream``, and return what was saved.

    Messages may be written meanwhile; those that come after the beginning are not in it.

    Args:
        client: A connected nats-py client.
        stream: Name of the stream.
        into: Folder, which is made if need be; nobody but the owner can read what is written there.
        progress: Called after each chunk.

    Raises:
        AlreadyThereError: The folder has something of that name already; nothing was changed.
        TransferEndedError: The transfer ended early, or a part of it was missing; no folder was left.
        nats.js.errors.NotFoundError: There is no such stream; the message lists those there are.
        nats.js.errors.APIError: The servers refused.
        nats.errors.Error: No server replied, or this client may not ask.
        OSError: The folder cannot be written.
    """
    expect_name("stream", stream)
    if (target := into / stream).exists():
        raise AlreadyThereError(f"{target} is there already, and stays as it is; choose another folder")
    if await _look_up(client, stream) is None:
        raise await no_stream(client, stream)
    unfinished = _make_unfinished(into, stream)
    try:
        with _create(unfinished / DATA) as file:
            saved = await _receive(client, stream, file, progress)
        await run_shielded(asyncio.to_thread(_finish, unfinished, saved, target))
    except TransferEndedError as err:
        raise TransferEndedError(f"backup of stream {stream!r}: {err}; nothing of it was left in {into}") from err
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return saved


async def restore_stream(
    client: Client, directory: Path, *, replicas: int | None = None, progress: Progress | None = None
) -> SavedStream:
    """Make a stream again from its backup, consumers included, and return what it is now.

    Until all of it is there, it has subjects that nobody publishes to: an order is not stored into half a stream.

    Args:
        client: A connected nats-py client.
        directory: Folder of the backup, of which all is read and compared with its checksums first.
        replicas: Copies that the stream gets; ``None``: as many as it had.
        progress: Called after each chunk.

    Raises:
        TornBackupError: A file is missing, torn or changed; no server was asked.
        AlreadyThereError: There is a stream of that name, which stays as it is.
        TransferEndedError: The transfer ended early; the message says whether a part of the stream was left.
        nats.js.errors.APIError: The servers refused: no room, subjects that another stream has; no stream was left.
        nats.errors.Error: No server replied, or this client may not ask; no stream was left.
        OSError: A file cannot be read.
    """
    saved = await asyncio.to_thread(read_backup, directory)
    stream, mark = saved.config["name"], secrets.token_hex(8)
    if (found := await _look_up(client, stream)) is not None:
        left = "was left by a restore, unless one is at work: delete it, and restore again"
        why = left if MARK in _labels(found.config) else "is there; it stays as it is, and nothing was restored"
        raise AlreadyThereError(f"stream {stream!r} {why}")
    config = saved.config | ({} if replicas is None else {"num_replicas": replicas})
    marked = config | {"metadata": _labels(config) | {MARK: mark}}
    if config.get("subjects"):
        marked["subjects"] = [f"{MARK}.{mark}"]
    try:
        request = msgspec.json.encode(SavedStream(marked, saved.state))
        reply = await _ask(client, f"STREAM.RESTORE.{stream}", request)
        with (directory / DATA).open("rb") as file:
            await _send(client, reply["deliver_subject"], file, progress)
        return await _unmark(client, config, saved.state)
    except BaseException as err:
        gone = await run_shielded(_is_gone(client, stream, mark))
        if gone and not isinstance(err, TransferEndedError):
            raise
        left = "nothing of it was left" if gone else f"see whether it is there; with the label {MARK!r}, delete it"
        raise TransferEndedError(f"restore of stream {stream!r}: {err or repr(err)}; {left}") from err


def read_backup(directory: Path) -> SavedStream:
    """Return what a backup holds, having compared all of it with its checksums.

    Raises:
        TornBackupError: A file is missing, torn or changed.
        OSError: A file cannot be read.
    """
    try:
        sums = dict(line.split("  ")[::-1] for line in (directory / SUMS).read_text("ascii").splitlines())
        for name in (ABOUT, DATA):
            with (directory / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sums.get(name):
                    raise TornBackupError(f"{directory / name} is not as it was saved: its checksum is another one")
        return msgspec.json.decode((directory / ABOUT).read_bytes(), type=SavedStream)
    except FileNotFoundError as err:
        raise TornBackupError(f"{err.filename} is missing; expected a folder that `mesh-lab backup` wrote") from err
    except TornBackupError:
        raise
    except (ValueError, msgspec.DecodeError) as err:
        raise TornBackupError(f"{directory}: {SUMS} or {ABOUT} cannot be read ({err})") from err


async def _receive(client: Client, stream: str, file: BinaryIO, progress: Progress | None) -> SavedStream:
    """Write a snapshot into a file, and return the description that came with it."""
    async with _inbox(client) as (inbox, next_message):
        chunk_bytes = min(CHUNK_BYTES, client.max_payload)
        request = {"deliver_subject": inbox, "chunk_size": chunk_bytes, "window_size": chunk_bytes * CHUNKS_UNDER_WAY}
        reply = await _ask(client, f"STREAM.SNAPSHOT.{stream}", msgspec.json.encode(request))
        saved, chunks = msgspec.convert(reply, SavedStream), 0
        while (msg := await next_message(SILENT_S)).data:
            chunks += 1
            if msg.reply and msg.reply.rpartition(".")[2] != str(chunks):  # ….<size>.<number>; the last one has none
                raise TransferEndedError(f"chunk {chunks} of the snapshot did not arrive")
            await asyncio.to_thread(file.write, msg.data)
            if msg.reply:  # flow control: so many chunks are under way at most
                await publish_if_connected(client, msg.reply)
            if progress is not None:
                progress(file.tell(), max(file.tell(), int(saved.state["bytes"])))
    if (status := (msg.headers or {}).get("Status", "204")) != "204":
        raise TransferEndedError(f"the server ended the snapshot: {status} {(msg.headers or {}).get('Description')}")
    return saved


async def _send(client: Client, subject: str, file: BinaryIO, progress: Progress | None) -> None:
    """Send a snapshot to where the server takes it, and return when the server has stored all of it."""
    under_way, ended, size = 0, False, os.fstat(file.fileno()).st_size
    async with _inbox(client) as (inbox, next_message):
        try:
            while True:
                chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, client.max_payload))
                await publish_if_connected(client, subject, chunk, reply=inbox)
                under_way += 1
                # Flow control, and after the empty chunk, which is the end, everything.
                while under_way >= CHUNKS_UNDER_WAY or (under_way and not chunk):
                    msg = await next_message(SILENT_S if chunk else STORED_WITHIN_S)
                    under_way -= 1
                    if is_no_responders(msg):
                        raise TransferEndedError("the server gave the restore up")
                    if msg.data and "error" in (reply := msgspec.json.decode(msg.data)):
                        APIError.from_error(reply["error"])
                if not chunk:
                    ended = True
                    return
                if progress is not None:
                    progress(file.tell(), size)
        finally:
            if not ended and client.is_connected:  # a chunk that asks for no reply makes the server give up at once
                await publish_if_connected(client, subject)


@contextlib.asynccontextmanager
async def _inbox(client: Client) -> AsyncIterator[tuple[str, Callable[[float], Awaitable[Msg]]]]:
    """Give an inbox, and what returns its next message; it raises as soon as any may be missing."""
    arrived, connection = asyncio.Queue[Msg](), client.stats["reconnects"]

    async def next_message(within: float) -> Msg:
        deadline = time.monotonic() + within
        while True:
            if not client.is_connected or client.stats["reconnects"] != connection:
                raise TransferEndedError("the connection to the server broke")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    return await arrived.get()
            if time.monotonic() >= deadline:
                raise TransferEndedError(f"nothing came from the server for {within:g} s")

    inbox, subscription = await open_inbox(client, arrived.put)
    try:
        yield inbox, next_message
    finally:
        await unsubscribe(subscription)


async def _unmark(client: Client, config: dict[str, Any], wanted: dict[str, Any]) -> SavedStream:
    """Give a restored stream its own subjects and labels, when its consumers are there, and return what it is now."""
    stream = config["name"]

    async def has_consumers() -> bool:
        found = await _look_up(client, stream)
        return found is not None and found.state["consumer_count"] >= wanted.get("consumer_count", 0)

    # A cluster makes them after its reply. Those without a durable name may be gone: nobody has used them meanwhile.
    with contextlib.suppress(NotReadyError):
        await eventually(has_consumers, within=CONSUMERS_WITHIN_S, every=LOOK_EVERY_S)
    found = await _look_up(client, stream)
    if found is None or found.state["last_seq"] != wanted["last_seq"]:
        raise TransferEndedError(f"it is {found and found.state} now, and was saved as {wanted}")
    await _retry(partial(_ask, client, f"STREAM.UPDATE.{stream}", msgspec.json.encode(config)))
    return await _look_up(client, stream) or found


async def _is_gone(client: Client, stream: str, mark: str) -> bool:
    """Delete what a restore has left, which has its mark, and return whether there is no stream of that name."""
    with contextlib.suppress(nats.errors.Error, APIError, TransferEndedError, TimeoutError):
        async with asyncio.timeout(UNDONE_WITHIN_S):
            while (found := await _look_up(client, stream)) and _labels(found.config).get(MARK) == mark:
                with contextlib.suppress(NotFoundError):
                    await _retry(partial(_ask, client, f"STREAM.DELETE.{stream}"))
            return found is None
    return False


async def _look_up(client: Client, stream: str) -> SavedStream | None:
    """Return what a stream is now, or ``None`` if there is none of that name."""
    try:
        return msgspec.convert(await _retry(partial(_ask, client, f"STREAM.INFO.{stream}")), SavedStream)
    except NotFoundError:
        return None


async def _ask(client: Client, call: str, payload: bytes = b"") -> dict[str, Any]:
    try:
        return await unless_closed(client, api_request(client, call, payload, within=REPLY_WITHIN_S))
    except TimeoutError as err:
        why = "no server leads it at this moment, or this user may not ask"
        raise TransferEndedError(f"no reply to {call} for {REPLY_WITHIN_S:g} s: {why}") from err


async def _retry(request: Callable[[], Awaitable[T]]) -> T:
    def is_worth_it(err: Exception) -> bool:
        return isinstance(err, TransferEndedError) or is_transient(err)

    return await retry(request, within=REPLY_WITHIN_S, transient=is_worth_it)


def _labels(config: dict[str, Any]) -> dict[str, str]:
    return dict(config.get("metadata") or {})


def _make_unfinished(into: Path, stream: str) -> Path:
    """Make a folder that nobody but its owner can look into."""
    into.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f".{stream}-", dir=into))


def _create(path: Path) -> BinaryIO:
    """Open a new file that nobody but its owner can read."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _finish(unfinished: Path, saved: SavedStream, target: Path) -> None:
    """Write the description and the checksums beside the data, all of it to the disk, and give it its name."""
    texts = {ABOUT: msgspec.json.format(msgspec.json.encode(saved)) + b"\n"}
    with (unfinished / DATA).open("rb") as file:
        _expect_whole_frames(file)
        digests = {DATA: hashlib.file_digest(file, "sha256"), ABOUT: hashlib.sha256(texts[ABOUT])}
    texts[SUMS] = "".join(f"{digest.hexdigest()}  {name}\n" for name, digest in digests.items()).encode()
    for name, text in texts.items():
        with _create(unfinished / name) as file:
            file.write(text)
    for name in (DATA, *texts):
        with (unfinished / name).open("rb+") as file:
            os.fsync(file.fileno())
    unfinished.rename(target)


def _expect_whole_frames(file: BinaryIO) -> None:
    """Raise TransferEndedError for a snapshot that breaks off: its last chunk has no number that would be missed."""
    end, at = file.seek(0, os.SEEK_END), 0
    while at < end:  # frames of S2: a byte for the kind, three for the length, little-endian
        file.seek(at + 1)
        at += 4 + int.from_bytes(file.read(3), "little")
    file.seek(0)
    if at != end or not end:
        raise TransferEndedError(f"the snapshot breaks off after {end:,} bytes")
