import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from mesh_lab.errors import StoreError
from mesh_lab.measure import ledger, local_store, reference
from mesh_lab.measure.ledger import compare, export_reference, latest, record, rows
from mesh_lab.measure.local_store import data_dir, open_store
from mesh_lab.measure.measurement import Measurement

NOTEBOOK = "01_publish_and_subscribe"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty home, and no reference run."""
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference.json")
    return tmp_path / "home"


def published(rate, name="core publish", **facts):
    return Measurement(name=name, kind="published", messages=1_000, elapsed_s=(1_000 / rate,), **facts)


def test_the_home_is_made_for_its_owner_alone(place):
    assert data_dir() == place
    assert place.stat().st_mode & 0o777 == 0o700


def test_the_home_keeps_the_mode_that_it_has(place):
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    data_dir()
    assert place.stat().st_mode & 0o777 == 0o755


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MESH_LAB_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StoreError, match=r"cannot make the directory .*; name another one with .* MESH_LAB_HOME"):
        record(NOTEBOOK, published(1_000))


def test_a_home_that_cannot_be_written_is_a_clear_error(place, monkeypatch):
    place.mkdir()
    monkeypatch.setattr("mesh_lab.measure.local_store.os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(StoreError, match="cannot be written; make it writable"):
        data_dir()


def test_without_the_variable_the_home_is_where_the_platform_keeps_data(tmp_path, monkeypatch):
    monkeypatch.delenv("MESH_LAB_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("platformdirs.user_data_path", lambda name, **_: tmp_path / "data" / name)
    assert data_dir() == tmp_path / "data" / "mesh-lab"


def test_what_is_recorded_comes_back_as_it_was():
    one = published(1_000, lost=3, duplicates=2, payload_bytes=128, server_version="2.15.1")
    assert record(NOTEBOOK, one) is one
    assert rows() == [(NOTEBOOK, one)]


def test_every_result_stays_and_the_newest_counts():
    first, other, second = published(1_000), published(5, name="slow"), published(2_000)
    for measurement in (first, other, second):
        record(NOTEBOOK, measurement)
    record("02_share_work_in_queue_groups", first)
    assert [one for notebook, one in rows() if notebook == NOTEBOOK] == [first, other, second]
    assert list(latest()[NOTEBOOK].values()) == [second, other]


def test_a_result_needs_its_notebook():
    with pytest.raises(ValueError, match="kept under its notebook's name"):
        record(" ", published(1_000))


def test_numbers_of_pandas_are_kept_as_numbers():
    import numpy as np

    record(NOTEBOOK, Measurement("x", "published", np.int64(10), (np.float64(0.5),), lost=np.int64(1)))
    assert rows() == [(NOTEBOOK, Measurement("x", "published", 10, (0.5,), lost=1))]


def test_two_programs_can_record_at_once(place):
    program = (
        "from mesh_lab.measure.ledger import record\n"
        "from mesh_lab.measure.measurement import Measurement\n"
        "for _ in range(20): record('n', Measurement('x', 'published', 1, (1.0,)))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [writer.wait(20) for writer in writers] == [0, 0]
    assert len(rows()) == 40


def test_an_interrupted_record_leaves_no_trace(monkeypatch):
    record(NOTEBOOK, published(1_000))

    def interrupted():
        with open_store("ledger", ledger.TABLE) as database:
            database.execute("DELETE FROM measurements")
            raise KeyboardInterrupt("the reader pressed stop")

    with pytest.raises(KeyboardInterrupt, match="pressed stop"):
        interrupted()
    assert rows() == [(NOTEBOOK, published(1_000))]


def test_a_ledger_that_is_none_is_a_clear_error(place):
    (data_dir() / "ledger.sqlite").write_text("these are not the bytes of a database, by no means at all")
    with pytest.raises(StoreError, match="file is not a database; move it away to begin a new one"):
        rows()


def test_a_ledger_of_a_newer_version_is_a_clear_error():
    record(NOTEBOOK, published(1_000))
    with closing(sqlite3.connect(data_dir() / "ledger.sqlite")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(StoreError, match="has format 7, this version of mesh-lab reads 1: update mesh-lab"):
        record(NOTEBOOK, published(1_000))


def test_a_ledger_with_nonsense_in_it_is_a_clear_error():
    record(NOTEBOOK, published(1_000))
    with closing(sqlite3.connect(data_dir() / "ledger.sqlite", isolation_level=None)) as database:
        database.execute("UPDATE measurements SET elapsed_s = '[-1]'")
    with pytest.raises(StoreError, match=r"no measurement \('core publish': elapsed_s=-1"):
        rows()


def test_a_ledger_that_another_program_holds_is_a_clear_error(monkeypatch):
    record(NOTEBOOK, published(1_000))
    monkeypatch.setattr(local_store, "LOCK_S", 0.05)
    with closing(sqlite3.connect(data_dir() / "ledger.sqlite", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="another program has held it"):
            rows()


def test_the_table_shows_a_dash_where_there_is_no_reference():
    record(NOTEBOOK, published(1_000))
    [row] = compare(NOTEBOOK).to_dict("records")
    assert row == {
        "what": "core publish",
        "kind": "published",
        "here": "1,000/s",
        "reference": "—",
        "here / reference": "—",
        "spread here": "—",
    }


def test_an_unmeasured_notebook_has_an_empty_table_with_its_columns():
    table = compare(NOTEBOOK)
    assert table.empty
    assert list(table.columns)[:4] == ["what", "kind", "here", "reference"]


def test_the_table_sets_this_machine_beside_the_reference():
    record(NOTEBOOK, published(1_000))
    record(NOTEBOOK, published(50, name="not measured here"))
    record(NOTEBOOK, Measurement("start", "ready", 1, (0.5, 0.5, 0.52)))
    export_reference(reference.REFERENCE)
    (data_dir() / "ledger.sqlite").unlink()
    record(NOTEBOOK, Measurement("start", "ready", 1, (1.0, 1.0, 1.25)))
    record(NOTEBOOK, published(2_500))
    shown = compare(NOTEBOOK).set_index("what")
    assert list(shown.index) == ["start", "core publish", "not measured here"]
    assert list(shown.loc["start"]) == ["ready", "1.00 s", "0.500 s", "2.0", "25 %"]
    assert list(shown.loc["core publish"]) == ["published", "2,500/s", "1,000/s", "2.5", "—"]
    assert list(shown.loc["not measured here"]) == ["published", "—", "50.0/s", "—", "—"]


def test_a_reference_of_which_nothing_arrived_has_no_ratio():
    record(NOTEBOOK, published(1_000, lost=1_000))
    export_reference(reference.REFERENCE)
    [row] = compare(NOTEBOOK).to_dict("records")
    assert (row["here"], row["reference"], row["here / reference"]) == ("0/s", "0/s", "—")


def test_a_broken_reference_is_a_clear_error():
    for broken in ("{", '{"notebooks": []}', "[]"):
        reference.REFERENCE.write_text(broken)
        with pytest.raises(StoreError, match=r"the reference run .* cannot be read: .*; reinstall mesh-lab"):
            compare(NOTEBOOK)


def test_the_reference_is_sorted_and_rounded_and_names_no_machine(tmp_path):
    import platform

    record("02_b", published(123_456, server_version="2.15.1"))
    record("01_a", published(1_000, name="z"))
    record("01_a", published(3.33333, name="a"))
    path = export_reference(tmp_path / "out.json")
    content = json.loads(path.read_text())
    assert list(content["notebooks"]) == ["01_a", "02_b"]
    assert [(one["what"], one["rate_per_s"]) for one in content["notebooks"]["01_a"]] == [("a", 3.33), ("z", 1_000)]
    assert content["notebooks"]["02_b"][0]["rate_per_s"] == 123_000
    assert set(content["machine"]) == {"cpus", "memory_gib", "system", "python", "nats_server", "nats_py"}
    assert content["machine"]["nats_server"] == "2.15.1"
    assert platform.node() not in json.dumps(content["machine"]).split('"')


def test_the_same_results_in_another_order_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        record(NOTEBOOK, published(1_000, name=name))
    first = export_reference(tmp_path / "first.json").read_bytes()
    (data_dir() / "ledger.sqlite").unlink()
    for name in ("b", "a"):
        record(NOTEBOOK, published(1_000, name=name))
    assert export_reference(tmp_path / "second.json").read_bytes() == first


def test_nothing_measured_is_nothing_to_export(tmp_path):
    with pytest.raises(StoreError, match="is empty; run the notebooks first"):
        export_reference(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_reference_that_cannot_be_written_is_a_clear_error(tmp_path):
    record(NOTEBOOK, published(1_000))
    with pytest.raises(StoreError, match="cannot write the reference run to"):
        export_reference(tmp_path / "missing" / "out.json")
