"""What the container tests need of a machine: a Docker engine, Compose 2, and the images that the files name.

Where the tests were asked for (`make test-docker`), what is missing is made: as root on Debian, `docker.io` is
installed, an engine of our own started, and Compose 2 fetched; images that no registry gives are made of what
the machine has. Everywhere else, what is missing is the reason for a skip.

As a program it tries whether this machine has an engine or can start one: it ends with 0, or says in one line why not.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from debian_package import NoPackageError, unpack_debian_packages

from mesh_lab.errors import NoEngineError
from mesh_lab.servers.compose import Engine

ASKED_VARIABLE = "MESH_LAB_TEST_DOCKER"
NATS_IMAGE = "nats:2.15.1-alpine"
PYTHON_IMAGE = "python:3.13.9-slim-bookworm"
START_LIMIT_S = 60.0
FORWARDS = Path("/proc/sys/net/ipv4/ip_forward")


class CannotError(Exception):
    """Why the container tests cannot run here, in one line."""


def asked() -> bool:
    """Return whether somebody asked for the container tests, so that a missing tool is an error."""
    return os.environ.get(ASKED_VARIABLE) == "1"


def is_here(path: Path) -> bool:
    """Return whether a test is one of this folder's."""
    return path.parent == Path(__file__).parent


def missing() -> str | None:
    """Return in one line what this machine lacks for the container tests as it stands, or ``None``."""
    try:
        engine = Engine.find()
    except NoEngineError as err:
        return f"{str(err).partition(';')[0]}; `make test-docker` starts what is missing, where it can"
    absent = [image for image in (NATS_IMAGE, PYTHON_IMAGE) if not engine.has_image(image)]
    return f"image {' and '.join(absent)} not on this machine; `make test-docker` fetches it" if absent else None


@contextlib.contextmanager
def prepared() -> Iterator[Engine]:
    """Yield an engine with Compose 2 and the images, and remove afterwards what was made for it.

    Raises:
        CannotError: Something is missing and was not asked for, or cannot be made here.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-lab-docker-")))
        if asked():
            stack.enter_context(_some_engine(scratch))
            if not _has_compose():
                stack.enter_context(_own_compose(scratch))
        elif reason := missing():
            raise CannotError(reason)
        engine = Engine.find()
        stack.enter_context(_images(engine, scratch))
        yield engine


def _answers() -> bool:
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    return shutil.which("docker") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _has_compose() -> bool:
    try:
        Engine.find()
    except NoEngineError:
        return False
    return True


@contextlib.contextmanager
def _some_engine(scratch: Path) -> Iterator[None]:
    """Use the engine that answers, or one of our own."""
    if _answers():
        yield
        return
    _install_engine()
    with _own_engine(scratch):
        yield


def _install_engine() -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise CannotError("no Docker engine answers, and only root on Linux may start one")
    # In Debian 12 the command comes with the engine, later it is a package of its own.
    for program, package in (("dockerd", "docker.io"), ("docker", "docker-cli")):
        if shutil.which(program) is None:
            if shutil.which("apt-get") is None:
                raise CannotError(f"no Docker engine answers, and neither {program} nor apt-get is here")
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
                done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
                if done.returncode != 0:
                    last = done.stderr.strip().splitlines()[-1:]
                    raise CannotError(f"no Docker engine answers, and apt-get does not get {package}: {''.join(last)}")


@contextlib.contextmanager
def _own_engine(scratch: Path) -> Iterator[None]:
    """Run an engine with a socket, a store and images of its own, and end it."""
    home = scratch / "engine"
    home.mkdir()
    address = f"unix://{home / 'docker.sock'}"
    places = [f"--data-root={home / 'data'}", f"--exec-root={home / 'exec'}", f"--pidfile={home / 'pid'}"]
    log = home / "log"
    with log.open("wb") as output, _variables(DOCKER_HOST=address), _network_as_found():
        daemon = subprocess.Popen(["dockerd", "-H", address, *places], stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_LIMIT_S
            while not _answers():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise CannotError(f"dockerd does not start here: {''.join(last)}")
                time.sleep(0.2)  # pacing: a loop with a deadline
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(30.0)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def _network_as_found() -> Iterator[None]:
    """Take back what an engine does to the network: its bridges, its chains, FORWARD's policy, forwarding."""
    before = _network()
    try:
        yield
    finally:
        after = _network()
        for link in set(after.links) - set(before.links):
            _quietly("ip", "link", "delete", link)
        for command, tables in after.rules.items():
            _quietly(f"{command}-restore", "--noflush", given=undoing(before.rules.get(command, ""), tables))
        if before.forwards != after.forwards:
            FORWARDS.write_text(before.forwards)
        if (left := _network()) != before:
            sys.stderr.write(f"The engine of the tests left on this machine's network: {left.beside(before)}\n")


class _Network(NamedTuple):
    """What an engine changes."""

    links: list[str]
    rules: dict[str, str]
    forwards: str

    def beside(self, before: Self) -> str:
        lines = {line for tables in before.rules.values() for line in tables.splitlines()}
        more = [line for tables in self.rules.values() for line in tables.splitlines() if line not in lines]
        return (
            ", ".join([*(link for link in self.links if link not in before.links), *more]) or "fewer rules than before"
        )


def _network() -> _Network:
    rules = {}
    for command in ("iptables", "ip6tables"):
        if shutil.which(f"{command}-save"):
            saved = subprocess.run([f"{command}-save"], capture_output=True, text=True).stdout
            # Neither comments, which hold the time, nor counters, nor tables without a rule, which stay when used once.
            rules[command] = _without_empty(re.sub(r"#.*\n| \[\d+:\d+\]", "", saved))
    links = sorted(name for _, name in socket.if_nameindex())
    return _Network(links, rules, FORWARDS.read_text() if FORWARDS.is_file() else "")


def _without_empty(saved: str) -> str:
    tables = re.findall(r"\*\w+\n.*?COMMIT\n", saved, re.DOTALL)
    return "".join(table for table in tables if re.search(r"^-A|^:\S+ (?!ACCEPT)", table, re.MULTILINE))


def undoing(before: str, after: str) -> str:
    """Return what `iptables-restore --noflush` needs to make of the second rules the first; policies were ACCEPT."""
    script = []
    known = {table.split("\n", 1)[0]: table.splitlines() for table in re.findall(r"\*.*?COMMIT\n", before, re.DOTALL)}
    for table in re.findall(r"\*.*?COMMIT\n", after, re.DOTALL):
        name, *lines = table.splitlines()
        there = known.get(name, [])
        new = [line for line in lines if line not in there]
        chains = [line[1:].split()[0] for line in new if line.startswith(":") and line.endswith(" -")]
        old = {line.split()[0]: line for line in there if line.startswith(":")}
        policies = [old.get(line.split()[0], f"{line.split()[0]} ACCEPT") for line in new if line[0] == ":" != line[-1]]
        policies = [
            f"{line} [0:0]" for line in policies if not line.endswith(" -") and line[1:].split()[0] not in chains
        ]
        rules = [f"-D{line[2:]}" for line in reversed(new) if line.startswith("-A")]
        script += [name, *policies, *rules, *(f"-F {c}" for c in chains), *(f"-X {c}" for c in chains), "COMMIT"]
    return "\n".join([*script, ""])


def _quietly(*command: str, given: str = "") -> None:
    with contextlib.suppress(FileNotFoundError):  # what is left then is said
        subprocess.run(command, input=given, capture_output=True, text=True)


@contextlib.contextmanager
def _own_compose(scratch: Path) -> Iterator[None]:
    """Put Debian's Compose 2 where the `docker` command looks for it, for the time of the tests."""
    try:
        (scratch / "compose").mkdir()
        unpacked = unpack_debian_packages(["docker-compose"], scratch / "compose")
    except NoPackageError as err:
        raise CannotError(f"there is no Compose 2, and it cannot be fetched: {err}") from err
    plugins = scratch / "config" / "cli-plugins"
    plugins.mkdir(parents=True)
    shutil.copy2(next(unpacked.rglob("cli-plugins/docker-compose")), plugins)
    with _variables(DOCKER_CONFIG=str(plugins.parent)):
        yield


@contextlib.contextmanager
def _images(engine: Engine, scratch: Path) -> Iterator[None]:
    """See that the engine has the two images that everything else is made of: fetched, or made here."""
    import images

    made = []
    try:
        for tag, make in ((NATS_IMAGE, images.make_nats), (PYTHON_IMAGE, images.make_python)):
            if engine.has_image(tag):
                continue
            if subprocess.run(["docker", "pull", "--quiet", tag], capture_output=True).returncode != 0:
                make(tag, scratch)
                made.append(tag)
        yield
    finally:
        # A stand-in must not be taken for the real one later.
        if made:
            services = engine.docker("image", "ls", "-q", "mesh-lab-services").split()
            subprocess.run(["docker", "image", "rm", "--force", *services, *made], capture_output=True)


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> str | None:
    """Return in one line why this machine has no engine and can start none, or ``None``."""
    try:
        with tempfile.TemporaryDirectory(prefix="mesh-lab-docker-") as scratch, _some_engine(Path(scratch)):
            return None
    except CannotError as err:
        return str(err)


if __name__ == "__main__":
    sys.exit(main())
