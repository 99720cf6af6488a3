"""What `mesh-lab bench` prints is whole on a terminal of 80 characters, however long a rung's name is."""

import pytest

from mesh_lab.bench.command import SETUPS, BenchReport, BenchResult, print_report
from mesh_lab.bench.suite import CASES, GO
from mesh_lab.measure.reference import Machine


@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_rung_and_no_figure_is_cut_off(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    cases = [(case, setup) for case in (*CASES, *GO) for setup in SETUPS]
    results = [
        BenchResult(case.ladder, case.name, "processed", "orders", setup.replicas, setup.storage, 69_659, 0, 100,
                    [0.1, 0.2], 1_234_567.8, 1.29, 12.34)
        for case, setup in cases
    ]  # fmt: skip
    print_report(BenchReport(1, Machine(2, 8.0, "Linux x86_64", "3.11.7", "2.15.1", "2.16.0"), results, "go1.26.0"))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for case, setup in cases:
        row = next(line for line in printed.splitlines() if line.strip().startswith(case.name) and str(setup) in line)
        assert all(figure in row for figure in ("1,230,000", "129%", "12.34")), row
    assert max(len(line) for line in printed.splitlines()) <= int(columns)
