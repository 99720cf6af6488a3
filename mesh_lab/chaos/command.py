"""The command ``mesh-lab chaos``."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from mesh_lab.chaos.campaign import ShortRun, as_markdown, campaign
from mesh_lab.chaos.disks import READY_WITHIN_S, clear_leftovers, why_not
from mesh_lab.chaos.report import report_of, versions, write, write_report
from mesh_lab.chaos.run import ChaosRun, chaos_run, new_servers, power_cut
from mesh_lab.chaos.schedule import FAULTS, KINDS, InjectedFault, Kind
from mesh_lab.chaos.writers import Writers

INTERVALS: dict[str, str | None] = {"default (2 minutes)": None, "1s": "1s", "always": "always"}
WAITING = """sync_interval {label}: not back within {within:g} s: {seen}
Where it is "stream catching up" on all of them, they wait for each other for ever, which is a fault of nats-server
(this is {nats_server}): each knows from a snapshot, which was synced, of messages that no disk has, which were not, and
waits for a leader that sends them; and a server that waits stands for no election. Notebook 14 shows the way back."""


def run_chaos(
    *, seed: int, seconds: float, outage: float, kinds: Sequence[Kind] = (), report: Path | None = None
) -> int:
    """Print what became of the orders of a :func:`~mesh_lab.chaos.run.chaos_run` on servers of its own; return 0.

    Without ``kinds``, it draws from all that this machine allows, save power cuts. A ``report`` is written at its path.

    Raises:
        NoPowerCutError: This machine does not allow a fault that was asked for; the message says what is missing.
        InvariantBrokenError: An order was lost, doubled or reversed.
        NotReadyError: The servers did not recover in time, or the run proves nothing.
    """
    chosen = list(kinds or [kind for kind in FAULTS if kind in KINDS or (kind == "full disk" and why_not() is None)])
    _say(f"seed {seed}; faults: {', '.join(chosen)}")
    shown = _Display()

    async def run() -> ChaosRun:
        async with new_servers(chosen) as (mesh, disks):
            return await chaos_run(
                mesh,
                seed=seed,
                seconds=seconds,
                kinds=chosen,
                outage=outage,
                disks=disks,
                on_start=shown.start,
                on_fault=shown.note,
                restart=False,
            )

    with _prepared(), shown.live():
        done = asyncio.run(run())
    _print({f"seed {seed}, {len(done.faults)} faults": done})
    if report is not None:
        written = write_report(report_of(done, seed=seed, seconds=seconds, kinds=chosen), report)
        _say(f"written: {', '.join(map(str, written))}")
    done.check()
    return 0


def run_campaign(*, seeds: int, jobs: int, kinds: Sequence[Kind] = (), report: Path | None = None) -> int:
    """Print what a :func:`~mesh_lab.chaos.campaign.campaign` showed; return 0 if every run kept the promise, else 1."""
    missing, done = why_not(), list[ShortRun]()
    chosen = list(kinds or (FAULTS if missing is None else KINDS))
    if missing is not None and not kinds:
        _say(f"without {', '.join(sorted(set(FAULTS) - set(KINDS)))}: {missing}")

    def on_run(run: ShortRun) -> None:
        done.append(run)
        counts = f"{run.faults} faults, {run.acknowledged:,} acknowledged, longest gap {run.longest_gap_s:.1f} s"
        line = (
            f"{len(done)} of {seeds * len(chosen)}: {run.kind}, seed {run.seed}: {run.verdict}; {counts} {run.reason}"
        )
        _say(line.rstrip())

    with _prepared():
        found = asyncio.run(campaign(chosen, seeds, jobs=jobs, on_run=on_run))
    sys.stdout.write(table := as_markdown(found))
    if report is not None:
        _say(f"written: {', '.join(map(str, write(found, report, '.md', table)))}")
    return 1 if found["not_kept"] else 0


def run_power_cuts(*, seconds: float) -> int:
    """Print what a :func:`~mesh_lab.chaos.run.power_cut` lost at each ``sync_interval``; return 0.

    Servers that do not recover are an outcome, told below the table.

    Raises:
        NoPowerCutError: This machine does not allow it; the message says what is missing.
        InvariantBrokenError: An order was lost although every one was synced before it was acknowledged.
        NotReadyError: The servers did not recover although every order was synced, or the run proves nothing.
    """
    done: dict[str, ChaosRun] = {}
    with _prepared():
        for label, interval in INTERVALS.items():
            _say(f"sync_interval {label}")
            done[label] = asyncio.run(power_cut(sync_interval=interval, seconds=seconds))
    _print(done)
    for label, run in done.items():
        if run.not_back:
            number = versions()["nats-server"]
            _say(WAITING.format(label=label, within=READY_WITHIN_S, seen=run.not_back, nats_server=number))
    done["always"].check()
    return 0


class _Display:
    """What a run is doing: a line for each fault, and on a terminal, below them, how it stands."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._writers: Writers | None = None
        self._faults: list[InjectedFault] = []

    def start(self, writers: Writers) -> None:
        self._writers = writers

    def note(self, fault: InjectedFault) -> None:
        self._faults.append(fault)
        self._console.print(str(fault), highlight=False)

    def live(self) -> Live:
        return Live(get_renderable=self._now, console=self._console, refresh_per_second=4, transient=True)

    def _now(self) -> Table | str:
        if self._writers is None:
            return "servers start"
        servers = self._writers.mesh.servers.items()
        rows = {
            "elapsed": f"{self._writers.now_s:.0f} s",
            "faults so far": str(len(self._faults)),
            "acknowledged": f"{self._writers.history.number_acknowledged:,}",
            "last fault": str(self._faults[-1]) if self._faults else "none yet",
            "down": ", ".join(f"{name} {one.state}" for name, one in servers if one.state != "running") or "nothing",
        }
        grid = Table.grid(padding=(0, 2))
        for row in rows.items():
            grid.add_row(*row)
        return grid


@contextlib.contextmanager
def _prepared() -> Iterator[None]:
    """Clear what killed runs left, and let SIGTERM and SIGHUP clean up as Ctrl-C does: mounts outlive a process."""
    if cleared := clear_leftovers():
        _say(f"removed {cleared} disks that a killed run had left")

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


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _print(runs: Mapping[str, ChaosRun]) -> None:
    columns = {label: _figures(run) for label, run in runs.items()}
    table = Table("orders", *(Column(label, justify="right") for label in columns), box=None)
    for name in next(iter(columns.values())):
        table.add_row(name, *(figures[name] for figures in columns.values()))
    Console().print(table)


def _figures(run: ChaosRun) -> dict[str, str]:
    figures = {name: f"{count:,}" for name, count in run.audit.counts.items()}
    figures["longest gap"] = f"{run.longest_gap_s:.1f} s"
    figures["served"] = f"{run.history.availability:.0%} of {run.history.length_s:.0f} s"
    figures["back within a minute"] = "no" if run.not_back else "yes"
    return figures | {f"on the disk of {server}": f"{count:,}" for server, count in run.on_disk.items()}
