"""What this machine keeps between notebooks, in SQLite files of one directory: results, and solved exercises."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mesh_lab.errors import StoreError

HOME_VARIABLE = "MESH_LAB_HOME"
FORMAT = 1
LOCK_S = 10.0


def data_dir() -> Path:
    """Return the directory that ``MESH_LAB_HOME`` names, or else where the platform keeps a user's data.

    It is made for its owner alone (mode 0700) if it is not there yet; one that exists keeps its mode.

    Raises:
        StoreError: It cannot be made or written.
    """
    if named := os.environ.get(HOME_VARIABLE):
        place = Path(named).expanduser().absolute()
    else:
        from platformdirs import user_data_path

        place = user_data_path("mesh-lab", appauthor=False)
    directory = f"the directory {place} for this machine's results"
    advice = f"name another one with the variable {HOME_VARIABLE}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StoreError(f"cannot make {directory}: {err.strerror or err}; {advice}") from err
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"{directory} cannot be written; make it writable, or {advice}")
    return place


@contextmanager
def open_store(name: str, table: str) -> Iterator[sqlite3.Connection]:
    """Open one of the files for a single transaction, which an exception rolls back; make the file if it is missing.

    ``name`` is the file's, and ``table`` the name and columns of its only table, as ``CREATE TABLE`` takes them.

    Raises:
        StoreError: The file cannot be used, or another program holds it; the message says what to do.
    """
    path = data_dir() / f"{name}.sqlite"
    advice = f"move it away to begin a new one, or set {HOME_VARIABLE} to another directory"
    try:
        # SQLite's own journal, not WAL: WAL needs shared memory, which a home directory on a network lacks.
        with closing(sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # two kernels that both find no table must not both make it
            found = database.execute("PRAGMA user_version").fetchone()[0]
            if found > FORMAT:
                reads = f"has format {found}, this version of mesh-lab reads {FORMAT}"
                raise StoreError(f"this machine's {name} in {path} {reads}: update mesh-lab; or {advice}")
            if found < FORMAT:
                # An older version made the progress file with its table and without the number.
                database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
                database.execute(f"PRAGMA user_version = {FORMAT}")
            yield database
            database.execute("COMMIT")  # closing without it rolls everything back
    except sqlite3.Error as err:
        if getattr(err, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            advice = f"another program has held it for {LOCK_S:g} s; close that one and run the cell again"
        raise StoreError(f"this machine's {name} in {path} cannot be used: {err}; {advice}") from err
