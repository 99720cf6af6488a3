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
    verdict, reason = verdict_of(run)
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "reason": reason,
        "run": {"seed": seed, "seconds": seconds, "kinds": list(kinds), **versions()},
        "orders": run.audit.counts,
        "on_disk": dict(run.on_disk),
        "broken": {way: ids[:IDS_KEPT] for way, ids in run.audit.broken.items()},
        "length_s": run.history.length_s,
        "faults": [
            {"kind": one.planned.kind, "began_s": one.began_s, "ended_s": one.ended_s}
            | {"server": one.server, "target": one.planned.target}
            for one in run.faults
        ],
        "gaps": run.history.gaps(),
    }


def write_report(report: dict[str, Any], path: Path) -> list[Path]:
    """Write a report as ``path.json`` and ``path.html``, whatever ending the path has, and return both."""
    # Within a page, no text may end the script; the page itself shows all text as text.
    encoded = msgspec.json.encode(report).decode().replace("<", "\\u003c")
    return write(report, path, ".html", PAGE.read_text().replace("{}", encoded, 1))


def write(found: dict[str, Any], path: Path, ending: str, text: str) -> list[Path]:
    """Write what was found as ``path.json`` and, beside it, a text that shows it, and return both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json, shown = path.with_suffix(".json"), path.with_suffix(ending)
    as_json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    shown.write_text(text)
    return [as_json, shown]
