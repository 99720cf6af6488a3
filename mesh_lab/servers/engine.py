"""The Docker engine that this machine reaches, used through Docker's own command line."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from mesh_lab.errors import EngineRefusedError, NoEngineError

LOCAL_NEEDS_NONE = "start_mesh() without backend='docker' needs no Docker"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers, and the Compose 2 that belongs to it.

    Everything here blocks: a coroutine sends it through ``asyncio.to_thread``.
    """

    compose_command: tuple[str, ...]
    """``docker compose``, or the program ``docker-compose`` where the plugin is missing."""

    @classmethod
    def find(cls) -> Self:
        """Return the engine that the ``docker`` command reaches.

        Raises:
            NoEngineError: There is no ``docker`` command, no engine answers it, or Compose 2 is missing.
        """
        if shutil.which("docker") is None:
            raise NoEngineError(f"there is no program docker on PATH; install Docker ({LOCAL_NEEDS_NONE})")
        code, said = _run("docker", "version", "--format", "{{.Server.Version}}")
        if code != 0:
            raise NoEngineError(
                f"no Docker engine answers: {_last_line(said)}; start Docker, and on Linux let your user reach it "
                f"(group docker; {LOCAL_NEEDS_NONE})"
            )
        seen = []
        for command in (("docker", "compose"), ("docker-compose",)):
            if shutil.which(command[0]) is None:
                continue
            code, said = _run(*command, "version", "--short")
            version = re.match(r"v?(\d+)\.", said)
            if code == 0 and version is not None and int(version[1]) >= 2:
                return cls(command)
            seen.append(f"`{' '.join(command)} version` said {_last_line(said)!r}")
        raise NoEngineError(
            f"Docker has no Compose 2: {'; '.join(seen)}; install Docker's compose plugin, version 2 or newer "
            f"({LOCAL_NEEDS_NONE})"
        )

    def docker(self, *arguments: str, within: float = 60.0) -> str:
        """Return what a ``docker`` command prints.

        Args:
            arguments: The command's own arguments.
            within: Seconds until it is given up.

        Raises:
            EngineRefusedError: It failed; the message carries its last words.
        """
        return self._call(("docker", *arguments), within, {})

    def compose(self, *arguments: str, within: float, variables: Mapping[str, str]) -> str:
        """Return what a Compose command prints.

        Args:
            arguments: The command's own arguments.
            within: Seconds until it is given up.
            variables: What wins over the file of variables.

        Raises:
            EngineRefusedError: It failed; the message carries its last words.
        """
        return self._call((*self.compose_command, *arguments), within, variables)

    def logs(self, container: str, *, last: int | None = None) -> str:
        """Return what a container's program wrote to stdout and stderr.

        Args:
            container: Id or name.
            last: Number of lines from the end; ``None`` for all.

        Raises:
            EngineRefusedError: There is no such container.
        """
        tail = "all" if last is None else str(max(last, 0))
        return self._call(("docker", "logs", "--tail", tail, container), 60.0, {}, both=True).rstrip("\n")

    def has_image(self, image: str) -> bool:
        """Return whether the engine has an image already."""
        return _run("docker", "image", "inspect", image)[0] == 0

    @staticmethod
    def _call(command: tuple[str, ...], within: float, variables: Mapping[str, str], *, both: bool = False) -> str:
        code, said = _run(*command, within=within, variables=variables, both=both)
        if code != 0:
            raise EngineRefusedError(f"`{_short(command)}` failed: {_last_line(said)}")
        return said


def _run(
    *command: str, within: float = 30.0, variables: Mapping[str, str] | None = None, both: bool = False
) -> tuple[int, str]:
    """Return exit code and output; stderr counts as output of a failing command, or where ``both`` are wanted."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if both else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"it did not end within {within:g} s"
    except OSError as err:
        return -1, str(err)
    return done.returncode, done.stdout if done.returncode == 0 or both else done.stderr.strip() or done.stdout


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _short(command: tuple[str, ...]) -> str:
    """Return a command without the paths that come with every Compose call."""
    text = re.sub(r" (?:-f|--env-file|-p) \S+", "", " ".join(command))
    return text if len(text) <= 100 else f"{text[:100]}…"
