"""One service of a notebook: the processes that run one ``%%service`` cell."""

import tempfile
import weakref
from collections import Counter
from pathlib import Path

from mesh_lab.errors import MeshClosedError, UnknownServiceError
from mesh_lab.notebook.launch import launch, stop
from mesh_lab.notebook.replica import Replica, State
from mesh_lab.servers.mesh import Mesh

STATES: tuple[State, ...] = ("running", "finished", "stopped", "killed", "crashed")


class Service:
    """The processes that one ``%%service`` cell runs.

    Attributes:
        name: As the cell says it.
    """

    def __init__(self, name: str, source: str, mesh: Mesh) -> None:
        """Prepare; nothing is started yet.

        Args:
            name: Name of the service.
            source: The cell, its magic line included as a comment, so that line numbers are the reader's.
            mesh: Mesh that the service belongs to and ends with.
        """
        self.name = name
        # Weak: a mesh that the notebook forgets is cleaned up, and its services with it.
        self._mesh = weakref.ref(mesh)
        self._directory = Path(tempfile.mkdtemp(prefix=f"service-{name}-", dir=mesh.directory))
        self._program = self._directory / f"{name}.py"
        self._program.write_text(source, encoding="utf-8")
        self._replicas: dict[int, Replica] = {}

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas by number."""
        return tuple(self._replicas[number] for number in sorted(self._replicas))

    @property
    def states(self) -> dict[int, State]:
        """What each replica does, by number."""
        return {replica.number: replica.state for replica in self.replicas}

    def replica(self, number: int) -> Replica:
        """Return one replica.

        Raises:
            UnknownServiceError: There is none with that number.
        """
        if number not in self._replicas:
            there = ", ".join(str(replica.number) for replica in self.replicas) or "none"
            raise UnknownServiceError(f"no replica {number!r} of service {self.name!r}; there are {there}")
        return self._replicas[number]

    def scale(self, count: int) -> None:
        """Make replicas 1 to ``count`` run and stop those above.

        Raises:
            MeshClosedError: The mesh was closed.
            ServiceCrashedError: A new replica crashed before it was ready.
            NotReadyError: A new replica was not ready in time.
        """
        mesh = self._mesh()
        if mesh is None or mesh.closed:
            raise MeshClosedError(
                f"the mesh of service {self.name!r} was closed; start another one and run the service's cell again"
            )
        stop([replica for replica in self.replicas if replica.number > count])
        self._replicas = {number: r for number, r in self._replicas.items() if number <= count}
        for number in range(1, count + 1):
            if number not in self._replicas:
                self._replicas[number] = Replica(
                    self.name, number, directory=self._directory, wanted=self._mesh_is_open
                )
        missing = [replica for replica in self.replicas if replica.state != "running"]
        if not missing:
            return
        try:
            launch(missing, self._program, mesh)
        except BaseException:
            for replica in missing:
                replica.shown = True  # the error says it already
            raise

    def stop(self) -> None:
        """Stop every replica in good order."""
        stop(self.replicas)

    def _mesh_is_open(self) -> bool:
        mesh = self._mesh()
        return mesh is not None and not mesh.closed

    def __repr__(self) -> str:
        """Say how many processes do what, without process ids: ``worker: 2 processes running, 1 killed``."""
        counts = Counter(self.states.values())
        parts = [(counts[state], state) for state in STATES if counts[state]]
        if not parts:
            return f"{self.name}: no processes"
        (first, state), *rest = parts
        noun = "process" if first == 1 else "processes"
        return f"{self.name}: " + ", ".join([f"{first} {noun} {state}", *(f"{n} {other}" for n, other in rest)])
