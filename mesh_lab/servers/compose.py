"""The Docker engine, and the Compose project in ``docker/`` on it: its passwords, its containers, up and down.

Docker's own command line is used, as a reader would. All of it blocks, and raises EngineRefusedError, with the
command's last words, when a command fails.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from mesh_lab.errors import EngineRefusedError, NoEngineError, ProcessEndedError, SettingsError
from mesh_lab.processes import output_of
from mesh_lab.servers.workspace import is_free

FOLDER_VARIABLE = "MESH_LAB_DOCKER"
SERVERS = ("n1", "n2", "n3")
CLIENT_PORT, MONITOR_PORT = 4222, 8222
_LABEL = "com.docker.compose"
_PASSWORDS = ("MESH_LAB_USER_PASSWORD", "MESH_LAB_SYSTEM_PASSWORD", "MESH_LAB_ROUTE_PASSWORD")
# The first is Docker's own word, where another container has the port; the second the operating system's.
_PORT_TAKEN = re.compile(r"127\.0\.0\.1:(\d+).*(?:port is already allocated|address already in use)")
LOCAL_NEEDS_NONE = "start_mesh() without backend='docker' needs no Docker"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers, and the Compose 2 that belongs to it."""

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
        try:
            _run("docker", "version", "--format", "{{.Server.Version}}")
        except EngineRefusedError as err:
            raise NoEngineError(
                f"no Docker engine answers: {err.log}; start Docker, and on Linux let your user reach it "
                f"(group docker; {LOCAL_NEEDS_NONE})"
            ) from err
        seen = []
        for command in (("docker", "compose"), ("docker-compose",)):
            if shutil.which(command[0]) is None:
                continue
            try:
                printed = _run(*command, "version", "--short").strip()
                version = re.match(r"v?(\d+)\.", printed)
            except EngineRefusedError as err:
                printed, version = err.log, None
            if version is not None and int(version[1]) >= 2:
                return cls(command)
            seen.append(f"`{' '.join(command)} version` printed {printed!r}")
        raise NoEngineError(
            f"Docker has no Compose 2: {'; '.join(seen)}; install Docker's compose plugin, version 2 or newer "
            f"({LOCAL_NEEDS_NONE})"
        )

    def docker(self, *arguments: str, within: float = 60.0) -> str:
        """Return what a ``docker`` command prints; it is given up after ``within`` seconds."""
        return _run("docker", *arguments, within=within)

    def compose(self, *arguments: str, within: float, variables: Mapping[str, str]) -> str:
        """Return what a Compose command prints; ``variables`` win over its file of variables."""
        return _run(*self.compose_command, *arguments, within=within, variables=variables)

    def logs(self, container: str, *, last: int | None = None) -> str:
        """Return what a container's program wrote to stdout and stderr, or so many lines from its end."""
        tail = "all" if last is None else str(max(last, 0))
        return _run("docker", "logs", "--tail", tail, container, within=60.0, stderr=True).rstrip("\n")

    def has_image(self, image: str) -> bool:
        """Return whether the engine has an image already."""
        with contextlib.suppress(EngineRefusedError):
            return bool(_run("docker", "image", "inspect", image))
        return False


def _run(*command: str, within: float = 30.0, variables: Mapping[str, str] | None = None, stderr: bool = False) -> str:
    """Return what a command prints; when it fails, the error's ``log`` is the last line that it printed."""
    try:
        return output_of(command, within=within, environment=variables, stderr=stderr)
    except OSError as err:
        code, last = None, str(err)
        if isinstance(err, ProcessEndedError):
            code = err.exit_code
            last = f"it did not end within {within:g} s" if code is None else "it printed nothing"
            last = err.log.rsplit("\n", 1)[-1].strip() or last
        # Without the paths that come with every Compose call.
        text = re.sub(r" (?:-f|--env-file|-p) \S+", "", " ".join(command))
        short = text if len(text) <= 100 else f"{text[:100]}…"
        raise EngineRefusedError(f"`{short}` failed: {last}", name=command[0], exit_code=code, log=last) from err


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the project, as the engine describes it."""

    id: str
    name: str
    """Its name without the project's, for example ``"worker-1"``, where ``service`` is ``"worker"``."""
    service: str
    status: str
    """``created``, ``running``, ``paused``, ``exited`` or ``dead``."""
    health: str
    """``healthy``, ``unhealthy``, ``starting``, or ``""`` where it has no health check."""
    ports: dict[int, int]
    """Port on 127.0.0.1 by port inside."""
    environment: dict[str, str] = field(repr=False)
    """Its variables, the passwords among them."""


class Project:
    """The containers, network and volumes that one ``compose.yaml`` names, and no others.

    Attributes:
        engine: Where they run.
        folder: Where ``compose.yaml`` is.
        variables: The file with passwords and ports; private, and never committed.
        name: The project's name, which the engine writes on all that belongs to it.
    """

    def __init__(self, engine: Engine, folder: Path | None = None) -> None:
        self.engine = engine
        named = folder or os.environ.get(FOLDER_VARIABLE) or Path(__file__).parents[2] / "docker"
        self.folder = Path(named).expanduser().absolute()
        path, self.variables = self.folder / "compose.yaml", self.folder / ".env"
        if not path.is_file():
            raise SettingsError(
                f"there is no {path}: the containers are described in the repository's folder docker/; "
                f"install the package from a clone, or name that folder with the variable {FOLDER_VARIABLE}"
            )
        found = re.search(r"(?m)^name: (mesh-lab[a-z0-9-]*)$", path.read_text(encoding="utf-8"))
        if found is None:
            # Whatever has that name is removed by `down`: better no name than another project's.
            raise SettingsError(
                f"{path} has no line `name: mesh-lab…`, expected one: it says which containers are ours"
            )
        self.name = found[1]

    def compose(self, *arguments: str, within: float = 120.0, variables: Mapping[str, str] | None = None) -> str:
        """Return what a Compose command on this project prints; SettingsError if the file of variables lacks one.

        Those in ``variables`` win over the file.
        """
        fixed = ("-f", str(self.folder / "compose.yaml"), "--env-file", str(self.variables), "-p", self.name)
        try:
            return self.engine.compose(*fixed, *arguments, within=within, variables=variables or {})
        except EngineRefusedError as err:
            if missing := re.search(r"required variable (\w+) is missing", str(err)):
                raise SettingsError(
                    f"{self.variables} does not set {missing[1]}, which compose.yaml needs: the file is of an older "
                    "version; run `mesh-lab down`, remove the file (note the ports that you set in it), and run "
                    "`mesh-lab up --docker`, which makes a new one"
                ) from err
            raise

    def containers(self) -> list[Container]:
        """Return the project's containers, those that do not run among them."""
        ids = self._ids("ps", "-a", "--no-trunc")
        if not ids:
            return []
        described = json.loads(self.engine.docker("inspect", *ids))
        return sorted(map(_container, described), key=lambda container: container.service)

    def servers(self) -> dict[str, Container]:
        """Return the containers of the three servers, by name, as far as they are there."""
        return {c.service: c for c in self.containers() if c.service in SERVERS}

    def up(self) -> None:
        """Start those servers that do not run; they are not ready yet when this returns. What runs is left as it is.

        Raises:
            EngineRefusedError: A port is taken, the image cannot be had, or the engine failed otherwise.
        """
        self.make_variables()
        there = self.servers()
        if len(there) == len(SERVERS) and all(c.status == "running" for c in there.values()):
            return
        settings: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))["services"]
        if paused := [c.id for c in there.values() if c.status == "paused"]:
            self.engine.docker("unpause", *paused)
        self._require_image(settings[SERVERS[0]]["image"])
        needed = {int(port["published"]): (n, port["target"]) for n in SERVERS for port in settings[n]["ports"]}
        for port, (name, inside) in needed.items():
            holds_it = name in there and there[name].status in ("running", "paused")
            if not holds_it and not is_free(port):
                raise self._port_taken(port, name, inside)
        try:
            self.compose("up", "--detach", "--no-recreate", *SERVERS)
        except EngineRefusedError as err:
            taken = _PORT_TAKEN.search(str(err))
            if taken is not None and int(taken[1]) in needed:
                raise self._port_taken(int(taken[1]), *needed[int(taken[1])]) from err
            raise

    def down(self) -> str:
        """Remove what has the project's label, and return how much in words; images and :attr:`variables` stay."""
        removed = []
        for kind, listing, removal in (
            ("container", ("ps", "-a"), ("rm", "--force")),
            ("network", ("network", "ls"), ("network", "rm")),
            ("volume", ("volume", "ls"), ("volume", "rm")),
        ):
            if ids := self._ids(*listing):
                self.engine.docker(*removal, *ids)
            removed.append(f"{len(ids)} {kind}{'' if len(ids) == 1 else 's'}")
        return ", ".join(removed)

    def make_variables(self) -> None:
        """Write the file of variables with new passwords, for its owner alone, unless it is there."""
        # A letter first: the server reads a variable by its own grammar, where digits would start a number.
        lines = [f"{name}=p{secrets.token_hex(24)}" for name in _PASSWORDS]
        ports = [f"#MESH_LAB_{n.upper()}_{kind}=" for n in SERVERS for kind in ("PORT", "MONITOR")]
        lines.insert(0, "# Made by `mesh-lab up --docker`. Private: it is never committed.")
        lines += ["", "# Ports on 127.0.0.1, where those in compose.yaml are taken:", *ports, ""]
        try:
            with os.fdopen(os.open(self.variables, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write("\n".join(lines))
        except FileExistsError:
            return
        except OSError as err:
            raise SettingsError(
                f"cannot write {self.variables}: {err.strerror or err}; make {self.folder} writable, or copy it "
                f"elsewhere and name that place with the variable {FOLDER_VARIABLE}"
            ) from err

    def _ids(self, *listing: str) -> list[str]:
        return self.engine.docker(*listing, "-q", "--filter", f"label={_LABEL}.project={self.name}").split()

    def _require_image(self, image: str) -> None:
        if self.engine.has_image(image):
            return
        try:
            self.engine.docker("pull", "--quiet", image, within=900.0)
        except EngineRefusedError as err:
            raise EngineRefusedError(
                f"image {image} is not on this machine and cannot be fetched: {err}; let the engine reach its registry "
                f"(proxy, network), or bring the image from a machine that has it: docker save {image} | docker load"
            ) from err

    def _port_taken(self, port: int, server: str, inside: int) -> EngineRefusedError:
        variable = f"MESH_LAB_{server.upper()}_{'PORT' if inside == CLIENT_PORT else 'MONITOR'}"
        return EngineRefusedError(
            f"port {port} on 127.0.0.1 is taken, and server {server} needs it; end the program that has it, or choose "
            f"another port in {self.variables}, for example {variable}={port + 100}"
        )


def _container(described: dict[str, Any]) -> Container:
    state, config = described["State"], described["Config"]
    bindings = described["HostConfig"]["PortBindings"] or {}
    return Container(
        id=described["Id"],
        name=described["Name"].removeprefix("/").removeprefix(f"{config['Labels'][f'{_LABEL}.project']}-"),
        service=config["Labels"][f"{_LABEL}.service"],
        status=state["Status"],
        health=state.get("Health", {}).get("Status", ""),
        ports={int(inside.partition("/")[0]): int(bound[0]["HostPort"]) for inside, bound in bindings.items()},
        environment=dict(entry.partition("=")[::2] for entry in config["Env"] or []),
    )
