"""The same servers under another client: the benchmark of the ``nats`` command-line tool, which is written in Go.

https://docs.nats.io/using-nats/nats-tools/nats_cli/natsbench describes it.
"""

import contextlib
import re
import shutil
from collections.abc import Callable

import msgspec

from mesh_lab.errors import NoNatsCliError, ProcessEndedError
from mesh_lab.processes import output_of
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


class NatsCliResult(msgspec.Struct, frozen=True):
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


def find_nats_cli() -> str:
    """Return the path of the ``nats`` tool.

    Raises:
        NoNatsCliError: It is not installed; the message says where it comes from.
    """
    if (path := shutil.which("nats")) is None:
        raise NoNatsCliError(
            "--peer needs the nats command-line tool, and there is no `nats` on the path; it comes from "
            "https://github.com/nats-io/natscli/releases, or: brew install nats-io/nats-tools/nats"
        )
    return path


def run_nats_cli(
    path: str, mesh: Mesh, *, replicas: int, payload_bytes: int, progress: Callable[[str], None] | None = None
) -> list[NatsCliResult]:
    """Run the tool's benchmark on a file stream and return its results; it blocks.

    Args:
        path: The ``nats`` tool.
        mesh: Servers to run it on.
        replicas: Copies of the stream.
        payload_bytes: Size of a message.
        progress: Called with the name of each run before it begins.

    Raises:
        ProcessEndedError: The tool failed, or printed no rate.
    """
    options = mesh.connect_options()
    environment = {
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
            command = [path, "bench", *words, f"--stream={STREAM}", f"--msgs={count}", "--no-progress"]
            if ladder == "publish":
                command += ["--create", "--storage=file", f"--replicas={replicas}", f"--size={payload_bytes}B"]
            else:
                command += [f"--consumer={CONSUMER}"]
            printed = output_of(command, within=LIMIT_S, environment=environment)
            if (found := RATE.search(printed)) is None:
                raise ProcessEndedError(
                    f"`{' '.join(command[1:])}` printed no rate: {printed.strip()[-500:]}", name=path
                )
            results.append(NatsCliResult(ladder, name, replicas, "file", count, float(found[1].replace(",", ""))))
    finally:
        with contextlib.suppress(ProcessEndedError):  # there may be none
            output_of([path, "stream", "rm", "--force", STREAM], within=LIMIT_S, environment=environment)
    return results
