"""The command ``mesh-lab chaos``."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table

from mesh_lab.chaos.power_cut import power_cut
from mesh_lab.chaos.run import ChaosRun, chaos_run
from mesh_lab.chaos.schedule import Kind
from mesh_lab.servers.start import start_mesh

INTERVALS: dict[str, str | None] = {"default (2 minutes)": None, "1s": "1s", "always": "always"}


def run_chaos(*, seed: int, seconds: float, kinds: Sequence[Kind] = ()) -> int:
    """Print what became of the orders of a :func:`~mesh_lab.chaos.run.chaos_run` on servers of its own; return 0.

    Raises:
        InvariantBrokenError: An order was lost, doubled or reversed.
        NotReadyError: The servers did not recover in time, or the run proves nothing.
    """
    _report(f"seed {seed}")

    async def run() -> ChaosRun:
        async with await start_mesh(servers=3, backend="local", links=True) as mesh:
            return await chaos_run(mesh, seed=seed, seconds=seconds, kinds=kinds or None, on_fault=_report)

    done = asyncio.run(run())
    _print({f"seed {seed}, {len(done.faults)} faults": done}, gaps=True)
    done.check()
    return 0


def run_power_cuts(*, seconds: float) -> int:
    """Print what a :func:`~mesh_lab.chaos.power_cut.power_cut` lost at each ``sync_interval``; return 0.

    Raises:
        NoPowerCutError: This machine does not allow it; the message says what is missing.
        InvariantBrokenError: An order was lost although every one was synced before it was acknowledged.
        NotReadyError: The servers did not recover in time, or the run proves nothing.
    """
    done: dict[str, ChaosRun] = {}
    with _ending_as_by_ctrl_c():
        for label, interval in INTERVALS.items():
            _report(f"sync_interval {label}")
            done[label] = asyncio.run(power_cut(sync_interval=interval, seconds=seconds))
    _print(done, gaps=False)
    done["always"].check()
    return 0


@contextlib.contextmanager
def _ending_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, with clean-up: mounts outlive a process."""

    def end(*_: object) -> None:
        # A shell script starts background processes with SIGINT ignored, and would so ignore this one too.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    endings = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {ending: signal.signal(ending, end) for ending in endings}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def _report(line: str) -> None:
    sys.stderr.write(line + "\n")


def _print(runs: Mapping[str, ChaosRun], *, gaps: bool) -> None:
    rows: dict[str, Callable[[ChaosRun], str]] = {
        "sent": lambda run: f"{run.audit.attempted:,}",
        "acknowledged": lambda run: f"{run.audit.acknowledged:,}",
        "stored": lambda run: f"{run.audit.stored:,}",
        "lost": lambda run: f"{len(run.audit.lost):,}",
        "doubled": lambda run: f"{len(run.audit.doubled):,}",
        "out of order": lambda run: f"{len(run.audit.reversed):,}",
        "unknown, and stored": lambda run: f"{run.audit.recovered:,}",
    }
    if gaps:
        rows["longest gap"] = lambda run: f"{run.longest_gap_s:.1f} s"
        rows["served"] = lambda run: f"{run.history.availability:.0%} of {run.history.length_s:.0f} s"
    table = Table("orders", *(Column(label, justify="right") for label in runs), box=None)
    for name, cell in rows.items():
        table.add_row(name, *(cell(run) for run in runs.values()))
    Console().print(table)
