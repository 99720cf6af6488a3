"""The reference run: results of a known machine, which come with the package."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from mesh_lab.errors import StoreError
from mesh_lab.measure.measurement import Kind, Measurement

REFERENCE = Path(__file__).with_name("reference.json")


class Machine(msgspec.Struct, frozen=True):
    """What the reference run ran on; never the machine's name."""

    cpus: int
    memory_gib: float
    system: str
    python: str
    nats_server: str
    nats_py: str


def this_machine(measurements: Iterable[Measurement]) -> Machine:
    """Return what results were measured on: this machine, with the different versions, as a rule a single one."""
    import psutil

    memory_gib = _significant(psutil.virtual_memory().total / 2**30)
    system = f"{platform.system()} {platform.machine()}"
    found = [(one.python_version, one.server_version, one.client_version) for one in measurements]
    versions = (", ".join(sorted(set(column) - {""})) or "unknown" for column in zip(*found, strict=True))
    return Machine(os.cpu_count() or 1, memory_gib, system, *versions)


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
    rate_per_s: float = 0.0  # of every kind but ``ready``
    elapsed_s: float = 0.0  # of ``ready`` alone

    @property
    def value(self) -> float:
        """The number that people quote, as :attr:`Measurement.value`."""
        return self.elapsed_s if self.kind == "ready" else self.rate_per_s


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

    Raises:
        StoreError: The file cannot be written.
    """
    machine = this_machine(one for measurements in notebooks.values() for one in measurements)
    entries = {
        notebook: sorted(map(_entry, measurements), key=lambda entry: (entry.what, entry.kind))
        for notebook, measurements in sorted(notebooks.items())
    }
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(ReferenceRun(machine, entries)), indent=2) + b"\n")
    except OSError as err:
        raise StoreError(f"cannot write the reference run to {path}: {err.strerror or err}") from err


def _entry(measurement: Measurement) -> Entry:
    return Entry(
        measurement.name,
        measurement.kind,
        measurement.messages,
        measurement.payload_bytes,
        measurement.runs,
        _significant(measurement.spread),
        measurement.lost,
        measurement.duplicates,
        **{"elapsed_s" if measurement.kind == "ready" else "rate_per_s": _significant(measurement.value)},
    )


def _significant(value: float) -> float:
    """Return the number with three significant digits."""
    return float(f"{value:.3g}")
