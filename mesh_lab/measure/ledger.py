"""This machine's results, kept from notebook to notebook, beside a reference run that comes with the package.

``python -m mesh_lab.measure.ledger`` makes this machine's results the reference run. A ledger that cannot be read or
written is a :class:`~mesh_lab.errors.StoreError`, whose message says what to do.
"""

import json
import sys
from collections import defaultdict
from dataclasses import fields
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh_lab.errors import StoreError
from mesh_lab.measure.local_store import data_dir, open_store
from mesh_lab.measure.measurement import Kind, Measurement, figure, rounded
from mesh_lab.measure.reference import REFERENCE, read_reference, write_reference

if TYPE_CHECKING:
    import pandas as pd

MISSING = "—"
COLUMNS = [field.name for field in fields(Measurement)]
TABLE = (
    "measurements (id INTEGER PRIMARY KEY, notebook TEXT NOT NULL, recorded_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP"
    + "".join(f", {name} NOT NULL" for name in COLUMNS)
    + ")"
)


def record(notebook: str, measurement: Measurement) -> Measurement:
    """Record a measurement beside earlier ones and return it, so that a cell can end with the call.

    Args:
        notebook: Name of the notebook without its ending, for example ``"01_publish_and_subscribe"``.
        measurement: What was measured.

    Raises:
        ValueError: The notebook has no name.
    """
    if not notebook.strip():
        raise ValueError("a measurement is kept under its notebook's name, and the name is empty")
    values = [notebook, *(_stored(getattr(measurement, name)) for name in COLUMNS)]
    with open_store("ledger", TABLE) as database:
        places = ", ".join("?" for _ in values)
        database.execute(f"INSERT INTO measurements (notebook, {', '.join(COLUMNS)}) VALUES ({places})", values)  # noqa: S608
    return measurement


def rows() -> list[tuple[str, Measurement]]:
    """Return everything that was recorded on this machine, oldest first: notebook and measurement."""
    columns = ", ".join(COLUMNS)
    with open_store("ledger", TABLE) as database:
        found = database.execute(f"SELECT notebook, {columns} FROM measurements ORDER BY id").fetchall()  # noqa: S608
    measurements = []
    for notebook, *values in found:
        facts = dict(zip(COLUMNS, values, strict=True))
        try:
            facts["elapsed_s"] = tuple(json.loads(facts["elapsed_s"]))
            measurements.append((notebook, Measurement(**facts)))
        except (ValueError, TypeError) as err:
            what = f"holds something that is no measurement ({facts['name']!r}: {err})"
            advice = "move ledger.sqlite away to begin a new one"
            raise StoreError(f"the ledger in {data_dir()} {what}; {advice}") from err
    return measurements


def latest() -> dict[str, dict[tuple[str, Kind], Measurement]]:
    """Return each notebook's newest measurements by name and kind, in the order in which they were first taken."""
    newest: defaultdict[str, dict[tuple[str, Kind], Measurement]] = defaultdict(dict)
    for notebook, one in rows():
        newest[notebook][one.name, one.kind] = one
    return newest


def compare(notebook: str) -> "pd.DataFrame":
    """Return this machine's newest results beside the reference run, as a table.

    A dash stands for a missing result. Rates differ between machines; which of two rows is faster should not.
    """
    import pandas as pd

    here = latest().get(notebook, {})
    there = {(one.what, one.kind): one for one in read_reference(notebook)}
    table = []
    for what, kind in here | there:
        mine, reference = here.get((what, kind)), there.get((what, kind))
        figures = [mine.figure if mine else MISSING, figure(reference.value, kind) if reference else MISSING]
        ratio = rounded(mine.value / reference.value, 2) if mine and reference and reference.value else MISSING
        spread = f"{int(mine.spread * 100)} %" if mine and mine.runs > 1 else MISSING
        table.append([what, kind, *figures, ratio, spread])
    return pd.DataFrame(table, columns=["what", "kind", "here", "reference", "here / reference", "spread here"])


def export_reference(path: Path = REFERENCE) -> Path:
    """Write the newest results of every notebook as a reference run, the package's own, and return the file's path.

    Raises:
        StoreError: The ledger is empty, or the file cannot be written.
    """
    notebooks = {notebook: list(measurements.values()) for notebook, measurements in latest().items()}
    if not notebooks:
        raise StoreError(f"the ledger in {data_dir()} is empty; run the notebooks first, then export")
    write_reference(path, notebooks)
    return path


def _stored(value: Any) -> str | int:
    """Return a field as text or a plain int: SQLite would store the integers of pandas, of other types, as bytes."""
    if isinstance(value, tuple):
        return json.dumps([float(one) for one in value])
    return int(value) if isinstance(value, Integral) else str(value)


if __name__ == "__main__":
    sys.stdout.write(f"{export_reference()}\n")
