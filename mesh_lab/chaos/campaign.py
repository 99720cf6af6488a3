"""A campaign: many short runs of each kind of fault, each from its own seed, and what became of all their orders."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import nats.errors

from mesh_lab.chaos.report import SCHEMA, verdict_of, versions
from mesh_lab.chaos.run import chaos_run, new_servers
from mesh_lab.chaos.schedule import Kind
from mesh_lab.errors import MeshLabError

RUN_S, OUTAGE_S = 7.0, 5.0


class ShortRun(msgspec.Struct, frozen=True):
    """What one run showed; the ``verdict`` is ``failed`` where it broke off with an error, the ``reason``."""

    kind: Kind
    seed: int
    verdict: str
    reason: str = ""
    faults: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    longest_gap_s: float = 0.0


async def short_run(kind: Kind, seed: int) -> ShortRun:
    """Return what became of one run's orders."""
    try:
        async with new_servers([kind]) as (mesh, disks):
            run = await chaos_run(
                mesh, seed=seed, seconds=RUN_S, kinds=[kind], outage=OUTAGE_S, disks=disks, restart=False
            )
    except (MeshLabError, nats.errors.Error, OSError) as err:
        return ShortRun(kind, seed, "failed", f"{type(err).__name__}: {err}")
    counts = run.audit.counts
    orders = (counts["acknowledged"], counts["lost"], counts["doubled"], counts["out of order"])
    return ShortRun(kind, seed, *verdict_of(run), len(run.faults), *orders, round(run.longest_gap_s, 2))


async def campaign(
    kinds: Sequence[Kind], seeds: int, *, jobs: int, on_run: Callable[[ShortRun], object]
) -> dict[str, Any]:
    """Run each kind of fault from the seeds 1 to ``seeds``, and return what all of the runs showed, in short.

    So many ``jobs`` run side by side, each on three servers.
    """
    free, runs = asyncio.Semaphore(jobs), list[ShortRun]()

    async def one(kind: Kind, seed: int) -> None:
        async with free:
            runs.append(run := await short_run(kind, seed))
        on_run(run)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(1, seeds + 1):
            for kind in kinds:
                tasks.create_task(one(kind, seed))
    return {
        "schema": SCHEMA,
        "seeds": seeds,
        "seconds": RUN_S,
        "versions": await asyncio.to_thread(versions),
        "kinds": {kind: _in_short([run for run in runs if run.kind == kind]) for kind in kinds},
        "not_kept": sorted((run for run in runs if run.verdict != "kept"), key=lambda run: (run.kind, run.seed)),
    }


def _in_short(runs: Sequence[ShortRun]) -> dict[str, float]:
    counted = ("faults", "acknowledged", "lost", "doubled", "out_of_order")
    found: dict[str, float] = {"runs": len(runs), "kept": sum(run.verdict == "kept" for run in runs)}
    found |= {name: sum(getattr(run, name) for run in runs) for name in counted}
    return found | {"median_gap_s": round(statistics.median(run.longest_gap_s for run in runs), 2)}


def as_markdown(found: dict[str, Any]) -> str:
    """Return a campaign as a table in Markdown, and what follows from it."""
    seeds, kinds, not_kept = found["seeds"], found["kinds"], found["not_kept"]
    about = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    columns = list(next(iter(kinds.values())))
    rows = [["kind", *(name.replace("_", " ") for name in columns)], ["---"] * (len(columns) + 1)]
    rows += [[kind, *(f"{counts[name]:,}" for name in columns)] for kind, counts in kinds.items()]
    acknowledged = sum(counts["acknowledged"] for counts in kinds.values())
    # The rule of three: with 95 % confidence, what never happened in n runs happens in fewer than 3 of n.
    share = min(3 / seeds, 1.0)
    bound = f"None in {seeds} runs says, with 95 % confidence, that fewer than {share:.0%} of such runs break it."
    lines = [
        f"# Each kind of fault, {seeds} times",
        "",
        f"A run breaks three servers for {found['seconds']:g} seconds while orders are written; then each disk is",
        f"audited. Seeds 1 to {seeds}; {about}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"{acknowledged:,} orders were acknowledged; {len(not_kept)} of {seeds * len(kinds)} runs broke the promise.",
        "" if not_kept else bound,
        *(f"- {run.kind}, seed {run.seed}: {run.verdict}. {run.reason}" for run in not_kept),
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
