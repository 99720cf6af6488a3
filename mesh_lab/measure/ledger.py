"""This machine's results, kept from notebook to notebook, beside a reference run that comes with the package.

``python -m mesh_lab.measure.ledger export`` makes this machine's results the reference run.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh_lab.errors import MeshLabError, StoreError
from mesh_lab.measure.local_store import data_dir, open_store
from mesh_lab.measure.measurement import Measurement, rounded
from mesh_lab.measure.reference import REFERENCE, Entry, read_reference, write_reference

if TYPE_CHECKING:
    import pandas as pd

MISSING = "—"
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "name": str,
    "kind": str,
    "messages": int,  # pandas hands out numbers of its own kinds, which SQLite would keep as bytes
    "elapsed_s": lambda seconds: json.dumps([float(one) for one in seconds]),
    "payload_bytes": int,
    "lost": int,
    "duplicates": int,
    "server_version": str,
    "client_version": str,
    "python_version": str,
}
"""The fields of a measurement, and how each is stored."""
TABLE = (
    "measurements (id INTEGER PRIMARY KEY, notebook TEXT NOT NULL, recorded_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP"
    + "".join(f", {name} {'INTEGER' if store is int else 'TEXT'} NOT NULL" for name, store in COLUMNS.items())
    + ")"
)


def record(notebook: str, measurement: Measurement) -> Measurement:
    """Keep a measurement and return it, so that a cell can end with the call.

    Earlier results of the same name stay; the newest is the one that counts.

    Args:
        notebook: Name of the notebook without its ending, for example ``"01_publish_and_subscribe"``.
        measurement: What was measured.

    Raises:
        ValueError: The notebook has no name.
        StoreError: The ledger cannot be read or written; the message says what to do.
    """
    if not notebook.strip():
        raise ValueError("a measurement is kept under its notebook's name, and the name is empty")
    values = [notebook, *(store(getattr(measurement, name)) for name, store in COLUMNS.items())]
    with open_store("ledger", TABLE) as database:
        places = ", ".join("?" for _ in values)
        database.execute(f"INSERT INTO measurements (notebook, {', '.join(COLUMNS)}) VALUES ({places})", values)  # noqa: S608
    return measurement


def rows(notebook: str) -> list[Measurement]:
    """Return everything that was recorded for a notebook on this machine, oldest first.

    Raises:
        StoreError: The ledger cannot be read; the message says what to do.
    """
    return [measurement for name, measurement in _read() if name == notebook]


def latest(notebook: str) -> list[Measurement]:
    """Return the newest measurement of each name and kind, in the order in which they were first taken.

    Raises:
        StoreError: The ledger cannot be read; the message says what to do.
    """
    return list({(one.name, one.kind): one for one in rows(notebook)}.values())


def compare(notebook: str) -> "pd.DataFrame":
    """Return this machine's newest results beside the reference run, as a table.

    What one of the two has and the other has not shows a dash. The rates of two machines differ; what should
    agree is which of two rows is faster, and by about how much.

    Raises:
        StoreError: The ledger or the reference run cannot be read; the message says what to do.
    """
    import pandas as pd

    here: dict[tuple[str, str], Measurement] = {(one.name, one.kind): one for one in latest(notebook)}
    there: dict[tuple[str, str], Entry] = {(one.what, one.kind): one for one in read_reference(notebook)}
    table = []
    for what, kind in [*here, *(key for key in there if key not in here)]:
        mine, reference = here.get((what, kind)), there.get((what, kind))
        times = reference.ratio(mine) if mine and reference else None
        table.append(
            {
                "what": what,
                "kind": kind,
                "here": mine.figure if mine else MISSING,
                "reference": reference.figure if reference else MISSING,
                "here / reference": MISSING if times is None else rounded(times, 2),
                "spread here": f"{int(mine.spread * 100)} %" if mine and mine.runs > 1 else MISSING,
            }
        )
    columns = ["what", "kind", "here", "reference", "here / reference", "spread here"]
    return pd.DataFrame(table, columns=columns)


def export_reference(path: Path = REFERENCE) -> Path:
    """Write the newest results of every notebook as a reference run, and return the file's path.

    Args:
        path: File to write; the default is the one that the package carries.

    Raises:
        StoreError: The ledger is empty or cannot be read, or the file cannot be written.
    """
    notebooks = {notebook: latest(notebook) for notebook, _ in _read()}
    if not notebooks:
        raise StoreError(f"the ledger in {data_dir()} is empty; run the notebooks first, then export")
    write_reference(path, notebooks)
    return path


def _read() -> list[tuple[str, Measurement]]:
    """Return every notebook's name and measurement, oldest first."""
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
            raise StoreError(
                f"the ledger in {data_dir()} holds something that is no measurement ({facts['name']!r}: {err}); "
                "move ledger.sqlite away to begin a new one"
            ) from err
    return measurements


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m mesh_lab.measure.ledger", description=main.__doc__)
    commands = parser.add_subparsers(required=True)
    export = commands.add_parser("export", help="make this machine's results the reference run")
    export.add_argument("path", nargs="?", type=Path, default=REFERENCE, help="file to write")
    chosen = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{export_reference(chosen.path)}\n")
    except MeshLabError as err:
        sys.exit(str(err))


if __name__ == "__main__":
    main()
