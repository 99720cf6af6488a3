"""Reports that are kept: a run as JSON and as one page that needs nothing from elsewhere, a campaign as a table."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from mesh_lab.chaos.run import ChaosRun
from mesh_lab.chaos.schedule import Kind
from mesh_lab.errors import InvariantBrokenError, NotReadyError
from mesh_lab.servers.binary import find_server, version_text

SCHEMA = 1
IDS_KEPT = 100
PAGE = Path(__file__).with_name("report.html")


def versions() -> dict[str, str]:
    """Return the versions of what takes part in a run."""
    found = {"nats-server": version_text(find_server().version), "nats-py": version("nats-py")}
    return {**found, "Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def verdict_of(run: ChaosRun) -> tuple[str, str]:
    """Return what a run shows: ``kept``, ``broken``, ``not back``, or ``proves nothing``, and why not ``kept``."""
    try:
        run.check()
    except InvariantBrokenError as err:
        return "broken", str(err)
    except NotReadyError as err:
        return "not back" if run.not_back else "proves nothing", str(err)
    return "kept", ""


def report_of(run: ChaosRun, *, seed: int, seconds: float, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Return all that is kept of a run; a field is never renamed without another ``schema``."""
    found, (verdict, reason) = run.audit, verdict_of(run)
    faults = [
        (fault.planned.kind, fault.began_s, fault.ended_s, fault.server, fault.planned.target) for fault in run.faults
    ]
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "reason": reason,
        "run": {"seed": seed, "seconds": seconds, "kinds": list(kinds), **versions()},
        "orders": {
            "sent": found.attempted,
            "acknowledged": found.acknowledged,
            "stored": found.stored,
            "lost": len(found.lost),
            "doubled": len(found.doubled),
            "out of order": len(found.reversed),
            "unknown, and stored": found.recovered,
        },
        "on_disk": dict(run.on_disk),
        "broken": {way: ids[:IDS_KEPT] for way, ids in found.broken.items()},
        "length_s": run.history.length_s,
        "faults": [
            dict(zip(("kind", "began_s", "ended_s", "server", "target"), fault, strict=True)) for fault in faults
        ],
        "gaps": run.history.gaps(),
    }


def write_report(report: dict[str, Any], path: Path) -> list[Path]:
    """Write a report as ``path.json`` and ``path.html``, whatever ending the path has, and return both."""
    encoded = msgspec.json.encode(report).decode()
    # Within a page, no text may end the script; the page itself shows all text as text.
    page = PAGE.read_text().replace("{}", encoded.replace("<", "\\u003c"), 1)
    return _written(path, json=msgspec.json.format(encoded, indent=2) + "\n", html=page)


def _written(path: Path, **texts: str) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_suffix(f".{ending}") for ending in texts]
    for place, text in zip(paths, texts.values(), strict=True):
        place.write_text(text)
    return paths


def write_campaign(found: dict[str, Any], table: str, path: Path) -> list[Path]:
    """Write a campaign and its table as ``path.json`` and ``path.md``, and return both."""
    return _written(path, json=msgspec.json.format(msgspec.json.encode(found).decode(), indent=2) + "\n", md=table)
