"""What a %%service cell says is understood, or refused in words, before any process starts."""

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell

from mesh_lab.errors import MeshClosedError, ServiceCellError, UnknownNameError
from mesh_lab.notebook.service_cell import parse_cell, service_magic
from mesh_lab.notebook.services import Services
from mesh_lab.servers import start

CELL = "async def main(nc):\n    await nc.flush()\n"


def test_a_name_alone_asks_for_one_process() -> None:
    cell = parse_cell("worker", CELL)
    assert (cell.name, cell.replicas) == ("worker", 1)


@pytest.mark.parametrize("line", ["worker --replicas 3", "--replicas 3 worker", "worker --replicas=3  # three of them"])
def test_the_number_of_replicas_may_stand_where_it_likes(line: str) -> None:
    cell = parse_cell(line, CELL)
    assert (cell.name, cell.replicas) == ("worker", 3)


def test_line_numbers_count_the_magic_line() -> None:
    lines = parse_cell("worker --replicas 3", CELL).source.splitlines()
    assert lines[0] == "# %%service worker --replicas 3"
    assert lines[1] == "async def main(nc):"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"line 1: %%service \(.*required: NAME\), expected %%service NAME \[--replicas N\], for example"),
        ("worker --replicas", r"line 1: %%service worker --replicas \(.*expected one argument\), expected %%service"),
        ("worker --replicas many", r"line 1: .*invalid int value: 'many'\), expected %%service NAME"),
        ("worker --count 3", r"line 1: .*unrecognized arguments: --count 3\), expected %%service NAME"),
        ("worker --rep 3", r"line 1: .*unrecognized arguments: --rep 3\), expected %%service NAME"),
        ("worker 'open", r"line 1: .*No closing quotation\), expected %%service NAME"),
        ("my_worker", r"line 1: the name 'my_worker', expected letters, digits and dashes"),
        ("../worker", r"line 1: the name '\.\./worker', expected letters, digits and dashes"),
        ("a.b", r"line 1: the name 'a\.b', expected letters, digits and dashes"),
        ("w" * 64, r"line 1: the name 'w+', expected letters, digits and dashes, 63 at most"),
        ("worker --replicas 0", r"line 1: --replicas 0, expected 1 to 64"),
        ("worker --replicas -1", r"line 1: .*--replicas -1"),
        ("worker --replicas 65", r"line 1: --replicas 65, expected 1 to 64"),
    ],
)
def test_a_magic_line_that_is_not_understood_is_refused(line: str, message: str) -> None:
    with pytest.raises(ServiceCellError, match=f"^{message}"):
        parse_cell(line, CELL)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", r"lines 2 to 2 define no function, expected async def main\(nc\) for service 'worker'"),
        ("def handle(msg):\n    pass\n", r"lines 2 to 3 define handle, expected async def main\(nc\)"),
        ("import os\ndef main(nc):\n    pass\n", r"line 3: def main\(nc\), expected async def main\(nc\)"),
        ("async def main():\n    pass\n", r"line 2: async def main\(\), expected async def main\(nc\)"),
        ("async def main(nc, js):\n    pass\n", r"line 2: async def main\(nc, js\), expected async def main\(nc\)"),
        ("async def main(*, nc):\n    pass\n", r"line 2: async def main\(\*, nc\), expected async def main\(nc\)"),
        ("async def main(nc):\n    for x in\n", r"line 3: for x in \(.*\), expected Python that compiles"),
        ("\n\nawait main()\n", r"line 4: await main\(\) \('await' outside function\), expected Python that compiles"),
        ("return\n", r"line 2: return \('return' outside function\), expected Python that compiles"),
        ("!ls\n", r"line 2: !ls \(.*\), expected Python that compiles"),
        ("class A:\n    async def main(nc):\n        pass\n", r"lines 2 to 4 define no function"),
    ],
)
def test_a_cell_that_is_no_service_is_refused(cell: str, message: str) -> None:
    with pytest.raises(ServiceCellError, match=f"^{message}"):
        parse_cell("worker", cell)


@pytest.mark.parametrize("arguments", ["client", "nc, *, pause=0.1", "nc, window=3", "nc, /", "*args"])
def test_main_may_call_its_connection_as_it_likes(arguments: str) -> None:
    assert parse_cell("worker", f"async def main({arguments}):\n    pass\n").name == "worker"


def test_a_refused_cell_is_shown_without_the_way_through_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    services, shell = Services(), InteractiveShell()
    shell.magics_manager.register_function(service_magic(services), magic_kind="cell", magic_name="service")
    result = shell.run_cell("%%service my_worker\nasync def main(nc):\n    pass\n")
    shell.history_manager.end_session()
    assert isinstance(result.error_in_exec, ServiceCellError)
    assert re.fullmatch(r"ServiceCellError: line 1: the name 'my_worker', expected .*\n", capsys.readouterr().out)
    assert len(services) == 0


def test_without_a_mesh_a_service_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_started", {})  # whatever other tests left open
    with pytest.raises(MeshClosedError, match=r"no mesh is open; start one first: mesh = await start_mesh"):
        service_magic(Services())("worker", CELL)


def test_an_unknown_service_is_told_with_those_there_are() -> None:
    services = Services()
    for call in (
        services.stop,
        services.logs,
        lambda name: services.scale(name, 2),
        lambda name: services.kill(name, 1),
    ):
        with pytest.raises(UnknownNameError, match=r"no service 'worker'; there are none"):
            call("worker")


def test_without_services_the_table_says_so() -> None:
    assert repr(Services()) == Services()._repr_html_() == "no services"
