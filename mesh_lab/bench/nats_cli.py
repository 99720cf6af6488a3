"""The ``nats`` tool's benchmark, in Go, on the same servers: https://docs.nats.io/using-nats/nats-tools/nats_cli."""

import contextlib
import re
import shutil
from collections.abc import Callable

import msgspec

from mesh_lab.bench.suite import PAYLOAD_BYTES
from mesh_lab.errors import NoNatsCliError, ProcessEndedError
from mesh_lab.processes import output_of
from mesh_lab.servers.mesh import Mesh

STREAM, CONSUMER = "BENCH_PEER", "peer"
LIMIT_S = 120.0
RATE = re.compile(r"([\d,]+) msgs/sec")
# Ladder, name, messages, arguments; the publishing commands fill the stream that the last one reads.
COMMANDS = (
    ("publish", "Go: js.Publish, one at a time", 8_000, "js pub sync bench.peer --purge"),
    ("publish", "Go: fast ingest", 200_000, "js pub fast bench.peer --purge"),
    ("publish", "Go: async, 4,000 in a batch", 200_000, "js pub async bench.peer --purge --batch=4000"),
    ("consume", "Go: Consume, an ack each", 200_000, f"js consume --acks=explicit --batch=5000 --consumer={CONSUMER}"),
)


class NatsCliResult(msgspec.Struct, frozen=True):
    """One run of the ``nats`` tool, with the rate that it printed."""

    ladder: str
    name: str
    replicas: int
    storage: str
    count: int
    rate_per_s: float


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
    path: str, mesh: Mesh, *, replicas: int, progress: Callable[[str], None] = lambda _: None
) -> list[NatsCliResult]:
    """Run the tool's benchmark on a file stream of ``replicas`` copies and return its results; it blocks.

    Raises:
        ProcessEndedError: The tool failed, or printed no rate.
    """
    options = mesh.connect_options()
    # In the environment, not among the arguments, which any user of the machine can read.
    environment = {f"NATS_{name.upper()}": str(options.get(name, "")) for name in ("user", "password")}
    environment["NATS_URL"] = ",".join(options["servers"])
    create = ["--create", "--storage=file", f"--replicas={replicas}", f"--size={PAYLOAD_BYTES}B"]
    results = []
    try:
        for ladder, name, count, words in COMMANDS:
            progress(f"{name}, R{replicas} file")
            command = [path, "bench", *words.split(), f"--stream={STREAM}", f"--msgs={count}", "--no-progress"]
            command += create if ladder == "publish" else []
            printed = output_of(command, within=LIMIT_S, environment=environment)
            if (found := RATE.search(printed)) is None:
                message = f"`{' '.join(command[1:])}` printed no rate: {printed.strip()[-500:]}"
                raise ProcessEndedError(message, name=path)
            results.append(NatsCliResult(ladder, name, replicas, "file", count, float(found[1].replace(",", ""))))
    finally:
        with contextlib.suppress(ProcessEndedError):  # there may be none
            output_of([path, "stream", "rm", "--force", STREAM], within=LIMIT_S, environment=environment)
    return results
