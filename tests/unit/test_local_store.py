"""The files that one machine keeps between notebooks stay readable from version to version."""

import sqlite3
from contextlib import closing

from mesh_lab.measure.local_store import data_dir
from mesh_lab.notebook.progress import note_solved, solved_numbers


def test_a_progress_file_that_an_older_version_made_is_read_and_continued(tmp_path, monkeypatch):
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path))
    with closing(sqlite3.connect(data_dir() / "progress.sqlite", isolation_level=None)) as database:
        database.execute("CREATE TABLE solved (number TEXT PRIMARY KEY, solved_at TEXT NOT NULL)")
        database.execute("INSERT INTO solved VALUES ('2.2', '2026-01-01T00:00:00+00:00')")
    assert solved_numbers() == {"2.2"}
    note_solved("3.1")
    note_solved("3.1")
    assert solved_numbers() == {"2.2", "3.1"}
