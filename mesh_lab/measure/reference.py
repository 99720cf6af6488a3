"""The reference run: results of a known machine, which come with the package."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from mesh_lab.errors import StoreError
from mesh_lab.measure.measurement import Kind, Measurement, rounded

REFERENCE = Path(__file__).with_name("reference.json")


class Machine(msgspec.Struct, frozen=True):
    """What the reference run ran on; never the machine's name."""

    cpus: int
    memory_gib: float
    system: str
    python: str
    nats_server: str
    nats_py: str


def this_machine(*, python: str, nats_server: str, nats_py: str) -> Machine:
    """Return what results were measured on: this machine, with the versions that were measured."""
    import psutil

    return Machine(
        cpus=os.cpu_count() or 1,
        memory_gib=_significant(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.machine()}",
        python=python,
        nats_server=nats_server,
        nats_py=nats_py,
    )


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result of the reference run, with three significant digits."""

    what: str
    kind: Kind
    messages: int
    payload_bytes: int
    runs: int
    spread: float
    lost: int
    duplicates: int
    rate_per_s: float = 0.0
    """Of every kind but ``ready``."""
    elapsed_s: float = 0.0
    """Of ``ready`` alone."""

    @property
    def figure(self) -> str:
        """The number with its unit, as :attr:`Measurement.figure` shows it."""
        return f"{rounded(self.elapsed_s)} s" if self.kind == "ready" else f"{rounded(self.rate_per_s)}/s"

    def ratio(self, measurement: Measurement) -> float | None:
        """Return how many times this number the measured one is; ``None`` where this one is 0."""
        if self.kind == "ready":
            return measurement.median_s / self.elapsed_s if self.elapsed_s else None
        return measurement.rate_per_s / self.rate_per_s if self.rate_per_s else None


class ReferenceRun(msgspec.Struct, frozen=True):
    """The whole file."""

    machine: Machine
    notebooks: dict[str, list[Entry]]


def read_reference(notebook: str) -> list[Entry]:
    """Return the reference run's entries for a notebook; none if there is no reference run.

    Raises:
        StoreError: The file is there and cannot be read.
    """
    try:
        run = msgspec.json.decode(REFERENCE.read_bytes(), type=ReferenceRun)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as err:
        raise StoreError(f"the reference run {REFERENCE} cannot be read: {err}; reinstall mesh-lab") from err
    return run.notebooks.get(notebook, [])


def write_reference(path: Path, notebooks: Mapping[str, Sequence[Measurement]]) -> None:
    """Write a reference run; the same results give the same bytes, in whatever order they were taken.

    Args:
        path: File to write.
        notebooks: The measurements of each notebook, by its name.

    Raises:
        StoreError: The file cannot be written.
    """
    every = [one for measurements in notebooks.values() for one in measurements]
    run = ReferenceRun(
        machine=this_machine(
            python=_versions(one.python_version for one in every),
            nats_server=_versions(one.server_version for one in every),
            nats_py=_versions(one.client_version for one in every),
        ),
        notebooks={
            notebook: sorted(map(_entry, notebooks[notebook]), key=lambda entry: (entry.what, entry.kind))
            for notebook in sorted(notebooks)
        },
    )
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    except OSError as err:
        raise StoreError(f"cannot write the reference run to {path}: {err.strerror or err}") from err


def _entry(measurement: Measurement) -> Entry:
    timed = measurement.kind == "ready"
    return Entry(
        what=measurement.name,
        kind=measurement.kind,
        messages=measurement.messages,
        payload_bytes=measurement.payload_bytes,
        runs=measurement.runs,
        spread=_significant(measurement.spread),
        lost=measurement.lost,
        duplicates=measurement.duplicates,
        rate_per_s=0.0 if timed else _significant(measurement.rate_per_s),
        elapsed_s=_significant(measurement.median_s) if timed else 0.0,
    )


def _significant(value: float) -> float:
    """Return the number with three significant digits."""
    return float(f"{value:.3g}")


def _versions(found: Iterable[str]) -> str:
    """Return the different versions that were measured, as a rule a single one."""
    return ", ".join(sorted(set(found) - {""})) or "unknown"
