"""The cell magic ``%%service``: a cell whose ``main(nc)`` runs as processes of their own."""

import argparse
import ast
import re
import shlex
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from mesh_lab.errors import MeshLabError, ServiceCellError
from mesh_lab.notebook.services import MOST_REPLICAS, Service, Services

USAGE = "%%service NAME [--replicas N]"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
SIGNATURE = "async def main(nc)"


class ServiceCell(NamedTuple):
    """A cell that can be run as a service; in its source the magic line is a comment, so that line numbers stay."""

    name: str
    replicas: int
    source: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ServiceCellError(message)


def parse_cell(line: str, cell: str) -> ServiceCell:
    """Return the service that the rest of a magic line and a cell describe, after every check that needs no process.

    Raises:
        ServiceCellError: The magic line is not understood, or the cell is no service.
    """
    name, replicas = _parse_line(line)
    source = f"# %%service {line}\n{cell}"
    _check_main(name, source)
    return ServiceCell(name, replicas, source)


def service_magic(services: Services) -> Callable[[str, str], Service]:
    """Return the magic's function, which keeps its services in ``services``."""

    def service(line: str, cell: str) -> Service:
        """Run the cell's ``async def main(nc)`` in processes of its own: ``%%service NAME [--replicas N]``.

        Each process is connected to the newest mesh under its own name, ``NAME-1``, ``NAME-2`` and so on, which is in
        ``os.environ["SERVICE_NAME"]``. It shares no variable with the notebook: what the cell needs, it imports; only
        ``asyncio`` and ``os`` are there already. Running the cell again replaces the processes.

        When the cell returns, every process has subscribed, and a message that any client publishes reaches it.
        """
        try:
            parsed = parse_cell(line, cell)
            return services.run(parsed.name, parsed.source, replicas=parsed.replicas)
        except MeshLabError as err:
            # The way through this package explains nothing to the reader; IPython asks the error how to show it.
            shown = [f"{type(err).__name__}: {err}"]
            vars(err)["_render_traceback_"] = lambda: shown
            raise

    return service


def _parse_line(line: str) -> tuple[str, int]:
    parser = _Parser(prog="%%service", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("NAME")
    parser.add_argument("--replicas", type=int, default=1, metavar="N")
    try:
        parsed = parser.parse_args(shlex.split(line, comments=True))
    except (ServiceCellError, ValueError) as err:
        seen, expected = f"%%service {line}".rstrip(), f"{USAGE}, for example %%service worker --replicas 3"
        raise _refusal(1, seen, expected, str(err)) from err
    if NAME.fullmatch(parsed.NAME) is None:
        raise _refusal(1, f"the name {parsed.NAME!r}", "letters, digits and dashes, 63 at most, for example worker")
    if not 1 <= parsed.replicas <= MOST_REPLICAS:
        raise _refusal(1, f"--replicas {parsed.replicas}", f"1 to {MOST_REPLICAS}")
    return parsed.NAME, parsed.replicas


def _check_main(name: str, source: str) -> None:
    try:
        # Compiled, not just parsed: a `return` or `await` outside a function is found only then.
        compile(source, f"<service {name}>", "exec", dont_inherit=True)
        tree = ast.parse(source)
    except SyntaxError as err:
        number = err.lineno or 1
        seen = source.splitlines()[number - 1].strip()
        raise _refusal(number, seen or "the end of the cell", "Python that compiles", err.msg) from err
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    mains = [function for function in functions if function.name == "main"]
    if not mains:
        others = ", ".join(function.name for function in functions)
        raise ServiceCellError(
            f"lines 2 to {max(len(source.splitlines()), 2)} define {others or 'no function'}, "
            f"expected {SIGNATURE} for service {name!r}"
        )
    main = mains[-1]
    seen = f"{'async ' if isinstance(main, ast.AsyncFunctionDef) else ''}def main({ast.unparse(main.args)})"
    if isinstance(main, ast.FunctionDef) or not _takes_one(main.args):
        raise _refusal(main.lineno, seen, SIGNATURE)


def _takes_one(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    needed = positional - len(arguments.defaults)
    needed_by_name = sum(default is None for default in arguments.kw_defaults)
    return (positional > 0 or arguments.vararg is not None) and needed <= 1 and needed_by_name == 0


def _refusal(line: int, seen: str, expected: str, why: str = "") -> ServiceCellError:
    return ServiceCellError(f"line {line}: {seen}{f' ({why})' if why else ''}, expected {expected}")
