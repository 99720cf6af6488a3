"""The same servers under another client: the benchmark of the ``nats`` command-line tool, which is written in Go.

https://docs.nats.io/using-nats/nats-tools/nats_cli/natsbench describes it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec

from mesh_lab.errors import LoadFailedError, NoPeerError
from mesh_lab.servers.mesh import Mesh

STREAM, CONSUMER = "BENCH_PEER", "peer"
LIMIT_S = 120.0
RATE = re.compile(r"([\d,]+) msgs/sec")
# What is run, in this order: the stream that the first ones fill is the one that the last ones read.
COMMANDS: tuple[tuple[str, str, int, list[str]], ...] = (
    ("publish", "Go: js.Publish, one at a time", 8_000, ["js", "pub", "sync", "bench.peer", "--purge"]),
    ("publish", "Go: fast ingest", 200_000, ["js", "pub", "fast", "bench.peer", "--purge"]),
    ("publish", "Go: async, 4,000 in a batch", 200_000,
     ["js", "pub", "async", "bench.peer", "--purge", "--batch=4000"]),
    ("consume", "Go: Consume, an ack each", 200_000, ["js", "consume", "--acks=explicit", "--batch=5000"]),
)  # fmt: skip
CREATES = "--create"


class PeerResult(msgspec.Struct, frozen=True):
    """One run of the other client."""

    ladder: str
    """``publish`` or ``consume``."""
    name: str
    """What was done."""
    replicas: int
    """Copies of the stream."""
    storage: str
    """``file`` or ``memory``."""
    count: int
    """Messages."""
    rate_per_s: float
    """Messages a second, as the tool says."""


def find_peer() -> str:
    """Return the path of the ``nats`` tool.

    Raises:
        NoPeerError: It is not installed; the message says where it comes from.
    """
    if (path := shutil.which("nats")) is None:
        raise NoPeerError(
            "--peer needs the nats command-line tool, and there is no `nats` on the path; it comes from "
            "https://github.com/nats-io/natscli/releases, or: brew install nats-io/nats-tools/nats"
        )
    return path


def run_peer(
    path: str, mesh: Mesh, *, replicas: int, payload_bytes: int = 128, progress: Callable[[str], None] | None = None
) -> list[PeerResult]:
    """Run the other client's benchmark on a file stream and return its results; it blocks.

    Args:
        path: The ``nats`` tool.
        mesh: Servers to run it on.
        replicas: Copies of the stream.
        payload_bytes: Size of a message.
        progress: Called with the name of each run before it begins.

    Raises:
        LoadFailedError: The tool failed, or said something else than a rate.
    """
    options = mesh.connect_options()
    environment = {
        **os.environ,
        # In the environment, not among the arguments: those any user of the machine can read.
        "NATS_URL": ",".join(options["servers"]),
        "NATS_USER": options.get("user", ""),
        "NATS_PASSWORD": options.get("password", ""),
        "NATS_CREDS": options.get("user_credentials", ""),
    }
    results = []
    try:
        for ladder, name, count, words in COMMANDS:
            if progress is not None:
                progress(f"{name}, R{replicas} file")
            made = [CREATES, "--storage=file", f"--replicas={replicas}", f"--size={payload_bytes}B"]
            command = [path, "bench", *words, f"--stream={STREAM}", f"--msgs={count}", "--no-progress"]
            command += made if ladder == "publish" else [f"--consumer={CONSUMER}"]
            results.append(PeerResult(ladder, name, replicas, "file", count, _rate(command, environment)))
    finally:
        _call([path, "stream", "rm", "--force", STREAM], environment)
    return results


def _rate(command: list[str], environment: dict[str, str]) -> float:
    done = _call(command, environment)
    said = (done.stdout + done.stderr).strip()
    if done.returncode != 0 or (found := RATE.search(done.stdout)) is None:
        words = " ".join(command[1:])
        raise LoadFailedError(
            f"`nats {words}` ended with code {done.returncode} and said no rate: {said[-500:] or 'nothing'}"
        )
    return float(found[1].replace(",", ""))


def _call(command: list[str], environment: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as err:
        raise LoadFailedError(f"`nats {' '.join(command[1:])}` was not done after {LIMIT_S:g} s") from err
