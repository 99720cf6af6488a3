"""The command line says what it cannot use, before anything is started."""

import pytest

from mesh_lab.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chaos", "--power-cut", "--seed", "5"], "--seed and --kind choose faults; --power-cut is one of its own"),
        (["chaos", "--power-cut", "--kind", "kill"], "--seed and --kind choose faults"),
        (["chaos", "--seconds", "2"], "--seconds 2, expected 3 or more: no fault fits into less"),
        (["orders", "--file", "/"], "'/', expected a file that is there"),
        (["orders", "--workers", "0"], "'0', expected a whole number from 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
