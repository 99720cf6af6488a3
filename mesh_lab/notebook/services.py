"""The services of a notebook, as processes: ``services.scale("worker", 5)``, ``services.kill("worker", 1)``.

A service is ready when a message published anywhere in the mesh reaches it. Its process publishes a report on the
connection over which its subscriptions went before. Servers pass on interest and messages of one account in order
over one route, so a server that delivers the report knows the subscriptions; a listener on each server waits for it.
"""

import asyncio
import contextlib
import html
import json
import secrets
import sys
import tempfile
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh_lab.errors import MeshClosedError, NotReadyError, ProcessEndedError, UnknownNameError
from mesh_lab.notebook.service_host import FINISH_S, MEMBER_VARIABLE, READY_VARIABLE
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import newest_mesh
from mesh_lab.tls import pack

State = Literal["running", "finished", "stopped", "killed", "crashed"]
MOST_REPLICAS = 64
STOP_S = FINISH_S + 4.0
"""A little more than the host's own limits together."""
READY_S, READY_S_EACH = 40.0, 0.5
"""The processes share this machine's cores: of many, each is ready later. Twenty seats of a workshop that start three
each in the same minute, on two cores, were not ready after ten seconds."""
CONNECT_S, GIVE_UP_S, POLL_S = 5, 1.0, 0.005
CRASHES_TOGETHER_S = 3.0
LOG_LINES = 10


class Replica(ChildProcess):
    """A process that runs a service's code.

    Attributes:
        number: Counted from 1.
        crash: Report of its crash, usually a traceback; empty without one.
        error: The same in a line.
        reported: Whether the crash was shown to the reader.
    """

    def __init__(self, service: "Service", number: int, mesh: Mesh) -> None:
        """Prepare replica ``number`` of a service on its mesh; nothing is started yet."""
        self.number, name = number, f"{service.name}-{number}"
        self.crash, self.error, self.reported = "", "", False
        self._service = service
        self._crash_file = service.program.with_name(f"{name}.crash")
        self._requested: State | None = None
        self._ended: State | None = "stopped"
        super().__init__(
            [sys.executable, "-m", "mesh_lab.notebook.service_host", str(service.program), str(self._crash_file)],
            name=name,
            log=service.program.with_name(f"{name}.log"),
            owner=mesh.owner,
            environment={
                "SERVICE_NAME": name,
                CONNECT_VARIABLE: json.dumps(pack(mesh.connect_options())),
                READY_VARIABLE: f"{service.ready_subject}.{number}",
                MEMBER_VARIABLE: mesh.borrowed.members if mesh.borrowed is not None else "",
            },
            stdin=True,  # its end confirms that the report of being ready has arrived
        )

    @property
    def state(self) -> State:
        """What the process does now, or how it ended."""
        if self._ended is None and (code := self.exit_code) is not None:
            self._ended = self._how_it_ended(code)
        return self._ended or "running"

    def _how_it_ended(self, code: int) -> State:
        if self._requested is not None:
            return self._requested
        if code == 0:
            return "finished"
        if self._service.mesh is None:  # it was killed with its mesh, or lost its servers before that
            return "stopped"
        if self._crash_file.exists():
            self.error, _, self.crash = self._crash_file.read_text(encoding="utf-8").partition("\n")
        else:
            self.error = f"exited with code {code}"
            printed = self.log(last=5)
            self.crash = self.error + (f"; its last log lines:\n{printed}" if printed else "")
        return "crashed"

    def start(self) -> Self:
        """Start the process; it is not ready yet when this returns."""
        self.crash, self.error, self.reported = "", "", False
        self._crash_file.unlink(missing_ok=True)
        super().start()
        self._requested = self._ended = None  # only now: a process that could not be started does not run
        return self

    def request_stop(self) -> None:
        """Ask the process to shut down gracefully (SIGTERM), and return at once."""
        if self.state == "running":
            self._requested = "stopped"
            super().request_stop()

    def kill(self) -> None:
        """Kill the process (SIGKILL) and wait until it is gone."""
        if self.state == "running":
            self._requested = self._requested or "killed"
            super().kill()


class Service:
    """The processes that one ``%%service`` cell runs.

    Attributes:
        name: The name in the cell's first line.
        replicas: The processes, by number.
        program: File with the cell's source; the replicas' logs and crash reports stand beside it.
        ready_subject: Each replica reports that it is ready on this subject and its number.
    """

    def __init__(self, name: str, source: str, mesh: Mesh) -> None:
        """Write the service's source to a file; nothing is started yet."""
        self.name = name
        # Weak: a mesh that the notebook forgets is cleaned up, and its services with it.
        self._mesh = weakref.ref(mesh)
        self.program = Path(tempfile.mkdtemp(prefix=f"service-{name}-", dir=mesh.directory), f"{name}.py")
        self.program.write_text(source, encoding="utf-8")
        self.ready_subject = f"_LAB.ready.{secrets.token_hex(8)}"
        self.replicas: tuple[Replica, ...] = ()

    @property
    def mesh(self) -> Mesh | None:
        """Its mesh, ``None`` after that was closed."""
        mesh = self._mesh()
        return None if mesh is None or mesh.closed else mesh

    @property
    def states(self) -> dict[int, State]:
        """What each replica does, by number."""
        return {replica.number: replica.state for replica in self.replicas}

    def replica(self, number: int) -> Replica:
        """Return one replica.

        Raises:
            UnknownNameError: There is none with that number.
        """
        if number not in self.states:
            there = ", ".join(map(str, self.states)) or "none"
            raise UnknownNameError(f"no replica {number!r} of service {self.name!r}; there are {there}")
        return self.replicas[number - 1]

    def scale(self, count: int) -> None:
        """Run replicas 1 to ``count`` and stop those above; raises as :meth:`Services.scale` does."""
        if (mesh := self.mesh) is None:
            raise MeshClosedError(
                f"the mesh of service {self.name!r} was closed; start another one and run the service's cell again"
            )
        stop(self.replicas[count:])
        new = (Replica(self, number, mesh) for number in range(len(self.replicas) + 1, count + 1))
        self.replicas = (*self.replicas[:count], *new)
        missing = [replica for replica in self.replicas if replica.state != "running"]
        if not missing:
            return
        try:
            # First the processes, then the listeners, which are up long before the first process has loaded.
            for replica in missing:
                replica.start()
            _run_apart(_wait_ready(missing, mesh, self.ready_subject))
        except BaseException:
            for replica in missing:
                replica.reported = True  # by the error
            stop(missing, within=GIVE_UP_S)
            raise
        finally:
            for replica in missing:
                replica.close_input()

    def __repr__(self) -> str:
        """Return the number of processes in each state: ``worker: 2 processes running, 1 killed``."""
        counts = Counter(self.states.values())
        words = [f"{counts[state]} {state}" for state in get_args(State) if counts[state]] or ["no"]
        count, *state = words[0].split()
        words[0] = " ".join([count, "process" if count == "1" else "processes", *state])
        return f"{self.name}: {', '.join(words)}"


class Services(dict[str, Service]):
    """The services that this notebook runs, by name, in the order in which their cells ran first.

    A method returns when its work is done, usually after some tenths of a second. Until then it blocks the kernel:
    what runs in the kernel's own event loop, a subscription for example, waits too. Each raises UnknownNameError where
    no service has that name, or no replica that number.
    """

    def __missing__(self, name: str) -> Service:
        raise UnknownNameError(f"no service {name!r}; there are {', '.join(sorted(self)) or 'none'}")

    def run(self, name: str, source: str, *, replicas: int = 1) -> Service:
        """Run a service on the newest mesh, in place of an earlier one of that name, which is stopped first.

        Args:
            name: Letters, digits and dashes.
            source: Python source that defines ``async def main(nc)``.
            replicas: Number of processes, 1 to 64.

        Raises:
            ValueError: The number of replicas is out of range.
            MeshClosedError: No mesh is open.
            ProcessEndedError: A replica crashed before it was ready; none is left running.
            NotReadyError: A replica was not ready in time; none is left running.
        """
        _check_count(replicas, least=1)
        mesh = newest_mesh()
        if name in self:
            self.stop(name)
        service = self[name] = Service(name, source, mesh)
        service.scale(replicas)
        return service

    def scale(self, name: str, replicas: int) -> Service:
        """Run so many replicas, and return when they are ready and those above are stopped gracefully.

        Replicas that were killed, crashed or finished are started again.

        Raises as :meth:`run`, for its own mesh; replicas that ran before still do.
        """
        service = self[name]
        _check_count(replicas, least=0)
        service.scale(replicas)
        return service

    def kill(self, name: str, replica: int) -> Service:
        """Kill one replica with SIGKILL and return when it is gone; it stays dead until the service is scaled."""
        service = self[name]
        service.replica(replica).kill()
        return service

    def stop(self, name: str) -> Service:
        """Stop a service gracefully: its replicas handle what they have received, then they end."""
        service = self[name]
        stop(service.replicas)
        return service

    def stop_all(self) -> None:
        """Stop every service gracefully."""
        stop(self._replicas())

    def logs(self, name: str, replica: int | None = None, *, last: int | None = 20) -> str:
        """Return what replicas printed since the cell ran, standard error included.

        Without ``replica`` of all, each line under its name; of each the ``last`` lines, or with ``None`` all.
        """
        service = self[name]
        if replica is not None:
            return service.replica(replica).log(last=last)
        return "\n".join(f"{one.name} | {line}" for one in service.replicas for line in one.log(last=last).splitlines())

    def unreported_crashes(self) -> str:
        """Return the tracebacks of crashes that were not shown yet, and count them as shown; empty without any."""
        crashed = [replica for replica in self._replicas() if replica.state == "crashed" and not replica.reported]
        for replica in crashed:
            replica.reported = True
        return _crash_report(crashed)

    def _replicas(self) -> list[Replica]:
        return [replica for service in self.values() for replica in service.replicas]

    def __repr__(self) -> str:
        """List the replicas and their states, without process ids or ports."""
        replicas = self._replicas()
        width = max((len(replica.name) for replica in replicas), default=0)
        lines = [f"{one.name:{width}}  {one.state:8}  {one.error}".rstrip() for one in replicas]
        return "\n".join(lines) or "no services"

    def _repr_html_(self) -> str:
        rows = [(name, one.name, one.state, one.error) for name, service in self.items() for one in service.replicas]
        head = "".join(f"<th>{title}</th>" for title in ("service", "replica", "state", "last error"))
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>" if rows else "no services"


def stop(replicas: Sequence[Replica], *, within: float = STOP_S) -> None:
    """Stop replicas side by side and gracefully, and kill those that are not gone after ``within`` seconds."""
    deadline = time.monotonic() + within
    for replica in replicas:
        replica.request_stop()
    for replica in replicas:
        replica.wait(within=max(deadline - time.monotonic(), 0.0))
        replica.close_input()


def _check_count(count: int, *, least: int) -> None:
    if not least <= count <= MOST_REPLICAS:
        raise ValueError(f"{count!r} replicas asked for, expected {least} to {MOST_REPLICAS}")


def _crash_report(crashed: Sequence[Replica]) -> str:
    """Return the crash reports; one that several replicas have in common stands once, under all their names."""
    names: dict[str, list[str]] = defaultdict(list)
    for replica in crashed:
        names[replica.crash.rstrip()].append(replica.name)
    return "\n".join(
        f"{' and '.join(filter(None, (', '.join(same[:-1]), same[-1])))} crashed:\n{report}"
        for report, same in names.items()
    )


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop of its own, in a thread of its own; an interrupt of this thread cancels it.

    So a magic stays a plain function: it neither needs the kernel's loop, nor disturbs it.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="services") as pool:
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        loop = runner.get_loop()
        task = loop.create_task(work)
        try:
            pool.submit(loop.run_until_complete, task).result()
        except BaseException:
            loop.call_soon_threadsafe(task.cancel)
            raise
        finally:
            pool.submit(runner.close)  # leaving the pool waits for it


async def _wait_ready(replicas: Sequence[Replica], mesh: Mesh, subject: str) -> None:
    numbered = {str(replica.number): replica for replica in replicas}
    servers = {name for name, server in mesh.servers.items() if server.observe() == "running"}
    if not servers:
        raise NotReadyError(f"no server of the mesh runs, expected one at least: {mesh!r}")
    missing = {replica.name: set(servers) for replica in replicas}

    async def note(server: str, msg: Msg) -> None:
        replica = numbered[msg.subject.rpartition(".")[2]]
        missing[replica.name].discard(server)
        if not missing[replica.name]:
            replica.close_input()

    def ready(replica: Replica) -> bool:
        return not missing[replica.name] or replica.state == "finished"

    def crashed() -> list[Replica]:
        return [replica for replica in replicas if replica.state == "crashed"]

    within = READY_S + READY_S_EACH * len(replicas)
    async with contextlib.AsyncExitStack() as clients:
        for server in servers:
            client = await _connect_to(server, mesh)
            clients.push_async_callback(client.close)
            await client.subscribe(f"{subject}.*", cb=partial(note, server))
        with contextlib.suppress(NotReadyError):  # the errors below say more
            await eventually(lambda: crashed() or all(map(ready, replicas)), within=within, every=POLL_S)
        if crashed():
            # They run the same code: give the others the time to end the same way, and report all of them.
            with contextlib.suppress(NotReadyError):
                await eventually(
                    lambda: all(ready(r) or r.state == "crashed" for r in replicas), within=CRASHES_TOGETHER_S
                )
            first, *_ = all_crashed = crashed()
            report = _crash_report(all_crashed)
            raise ProcessEndedError(report, name=first.name, exit_code=first.exit_code, log=first.crash)
    for late in (replica for replica in replicas if not ready(replica)):
        silent = missing[late.name] == servers
        unreached = f"its report did not reach {', '.join(sorted(missing[late.name]))}"
        why = "its main(nc) did not come to wait" if silent else unreached
        printed = late.log(last=LOG_LINES) or "(none)"
        raise NotReadyError(f"{late.name} not ready after {within} s: {why}; its last log lines:\n{printed}")


async def _connect_to(server: str, mesh: Mesh) -> Client:
    """Return a client of this one server, which never moves on to another."""
    options = mesh.connect_options(to=server)
    options["servers"] = options["servers"][:1]
    try:
        return await connect(options, name="services", allow_reconnect=False, connect_timeout=CONNECT_S)
    except (OSError, nats.errors.Error) as err:
        raise NotReadyError(f"server {server!r} let no listener in within {CONNECT_S} s: {err!r}") from err
