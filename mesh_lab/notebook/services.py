"""The services of a notebook: ``services.scale("worker", 5)``, ``services.kill("worker", 1)``."""

import html
from collections.abc import Iterator, Mapping

from mesh_lab.errors import UnknownServiceError
from mesh_lab.notebook.launch import crash_report, stop
from mesh_lab.notebook.replica import State
from mesh_lab.notebook.service import Service
from mesh_lab.servers.start import newest_mesh

MOST_REPLICAS = 64


class Services(Mapping[str, Service]):
    """The services that this notebook runs, by name.

    Its methods return when what they say is true. They block the kernel for that time, some tenths of a second
    as a rule: what runs in the kernel's own event loop, a subscription say, waits too.
    """

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}

    def __getitem__(self, name: str) -> Service:
        """Return a service by name.

        Raises:
            UnknownServiceError: There is none with that name; the message lists those there are.
        """
        if name not in self._services:
            there = ", ".join(sorted(self._services)) or "none"
            raise UnknownServiceError(f"no service {name!r}; there are {there}")
        return self._services[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which the cells ran first."""
        return iter(self._services)

    def __len__(self) -> int:
        """Count the services."""
        return len(self._services)

    def __contains__(self, name: object) -> bool:
        """Say whether a service has that name."""
        return name in self._services

    def run(self, name: str, source: str, *, replicas: int = 1) -> Service:
        """Run a service on the newest mesh, in place of an earlier one of that name, which is stopped first.

        Args:
            name: Letters, digits and dashes.
            source: Python source that defines ``async def main(nc)``.
            replicas: Number of processes, 1 to 64.

        Raises:
            ValueError: The number of replicas is out of range.
            NoMeshError: No mesh is open.
            ServiceCrashedError: A replica crashed before it was ready; none is left running.
            NotReadyError: A replica was not ready in time; none is left running.
        """
        _check_count(replicas, least=1)
        mesh = newest_mesh()
        if name in self._services:
            self._services[name].stop()
        service = self._services[name] = Service(name, source, mesh)
        service.scale(replicas)
        return service

    def scale(self, name: str, replicas: int) -> Service:
        """Make so many replicas run, and return when they are ready and those above are gone.

        Replicas that were killed, crashed or finished come back. Those above the number are stopped in good order, the
        highest numbers first.

        Args:
            name: Name of the service.
            replicas: 0 to 64.

        Raises:
            UnknownServiceError: No service has that name.
            ValueError: The number is out of range.
            MeshClosedError: The service's mesh was closed.
            ServiceCrashedError: A new replica crashed before it was ready; those that ran before still do.
            NotReadyError: A new replica was not ready in time; those that ran before still do.
        """
        service = self[name]
        _check_count(replicas, least=0)
        service.scale(replicas)
        return service

    def kill(self, name: str, replica: int) -> Service:
        """Kill one replica with SIGKILL and return when it is gone; it stays dead until the service is scaled.

        Args:
            name: Name of the service.
            replica: Number of the replica, from 1.

        Raises:
            UnknownServiceError: No service has that name, or no replica that number.
        """
        service = self[name]
        service.replica(replica).kill()
        return service

    def stop(self, name: str) -> Service:
        """Stop a service in good order: its replicas handle what they have received, then they end.

        Args:
            name: Name of the service.

        Raises:
            UnknownServiceError: No service has that name.
        """
        service = self[name]
        service.stop()
        return service

    def stop_all(self) -> None:
        """Stop every service in good order."""
        stop([replica for service in self._services.values() for replica in service.replicas])

    def logs(self, name: str, replica: int | None = None, *, last: int | None = 20) -> str:
        """Return what replicas printed since the cell ran, standard error included.

        Args:
            name: Name of the service.
            replica: Number of one replica; ``None`` for all, each line under the name of its replica.
            last: Number of lines of each replica; ``None`` for all.

        Raises:
            UnknownServiceError: No service has that name, or no replica that number.
        """
        service = self[name]
        if replica is not None:
            return service.replica(replica).log(last=last)
        return "\n".join(f"{one.name} | {line}" for one in service.replicas for line in one.log(last=last).splitlines())

    def news(self) -> str:
        """Return the tracebacks of crashes that were not shown yet, and count them as shown; empty without any."""
        crashed = [
            replica
            for service in self._services.values()
            for replica in service.replicas
            if replica.state == "crashed" and not replica.shown
        ]
        for replica in crashed:
            replica.shown = True
        return crash_report(crashed)

    def _rows(self) -> list[tuple[str, str, State, str]]:
        return [
            (service.name, replica.name, replica.state, replica.error)
            for service in self._services.values()
            for replica in service.replicas
        ]

    def __repr__(self) -> str:
        """List the replicas and their states, without process ids or ports."""
        rows = self._rows()
        if not rows:
            return "no services"
        width = max(len(replica) for _, replica, _, _ in rows)
        return "\n".join(f"{replica:{width}}  {state:8}  {error}".rstrip() for _, replica, state, error in rows)

    def _repr_html_(self) -> str:
        """Draw a table for notebooks."""
        if not self._rows():
            return "no services"
        head = "".join(f"<th>{title}</th>" for title in ("service", "replica", "state", "last error"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _check_count(count: int, *, least: int) -> None:
    if not least <= count <= MOST_REPLICAS:
        raise ValueError(f"{count!r} replicas asked for, expected {least} to {MOST_REPLICAS}")
