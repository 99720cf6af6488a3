"""Run every test and every notebook, and say at the end how many passed, failed, and were skipped, and why.

``python tests/everything.py`` is what ``make test`` calls. First what mostly waits, in several processes side by side,
then what measures while it mostly waits, in two, and what measures and keeps the cores busy, alone. Each part runs,
also when one before it fails. ``python tests/everything.py --containers`` is what ``make test-docker`` calls.

What fails in a few files is tried once more, alone. What fails again is broken, and so is the run. What passes then is
*unsteady*: the last lines name it, and it is to be mended, by finding what it waits for.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Most of the time a test waits, for servers that elect or for processes that start: six keep two cores busy.
WORKERS = min(8, (os.cpu_count() or 2) * 3)
BY_FILE = ["--dist", "loadfile", "--no-loadscope-reorder", "--nbval"]
PARTS = {
    f"side by side, in {WORKERS} processes": [
        *("-m", "not alone and not in_pairs", "-n", str(WORKERS), *BY_FILE, "tests", "notebooks")
    ],
    "in pairs": ["-m", "in_pairs", "-n", "2", *BY_FILE, "tests", "notebooks"],
    "alone": ["-m", "alone", "--nbval", "tests", "notebooks"],
}
CONTAINERS = {"in containers": ["tests/docker"]}
# Files, of hundreds that share two cores with killed servers; where more of them fail, it is no chance. Not tests: one
# set-up that fails, or one cell, takes all those with it that need it.
TRIED_AGAIN = 3


@dataclass
class Tally:
    """What several runs of pytest found, added up."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    """Names of the tests that failed."""
    unsteady: list[str] = field(default_factory=list)
    """Names of those that failed, and passed when they were tried again."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How many tests did not run, by reason."""

    def add(self, report: Path) -> None:
        """Add what a report in JUnit's form says; one that is missing or cut off adds a failure."""
        try:
            cases = list(ET.parse(report).iter("testcase"))
        except (OSError, ET.ParseError) as err:
            self.failed.append(f"pytest did not come to its end: {err}")
            return
        for case in cases:
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                self.failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif skip is not None:
                self.skipped[skip.get("message") or "no reason given"] += 1
            else:
                self.passed += 1

    def __str__(self) -> str:
        unsteady = f", {len(self.unsteady)} unsteady" if self.unsteady else ""
        return f"{self.passed:,} passed{unsteady}, {len(self.failed):,} failed, {self.skipped.total():,} skipped"


def failed_in(cache: Path) -> list[str]:
    """Return the ids of the tests that failed, as pytest has kept them in its cache."""
    last = cache / "v" / "cache" / "lastfailed"
    return list(json.loads(last.read_text("utf-8"))) if last.exists() else []


def main(parts: dict[str, list[str]]) -> int:
    """Run all parts, each with its arguments for pytest, and print the sum; 1 if anything failed."""
    tally, codes, took = Tally(), {}, {}
    # Hundreds of processes start here; without its compiled form, each would compile the package anew.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="mesh-lab-tests-") as folder:
        pytest = [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={folder}"]
        for number, (name, arguments) in enumerate(parts.items()):
            report, began = Path(folder, f"{number}.xml"), time.monotonic()
            command = [*pytest, f"--junitxml={report}", *arguments]
            codes[name] = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            took[name] = time.monotonic() - began
            tally.add(report)
        again = failed_in(Path(folder))
        files = {name.partition("::")[0] for name in again}
        all_told = set(codes.values()) <= {0, 1} and len(tally.failed) == len(again)
        if all_told and 0 < len(files) <= TRIED_AGAIN:
            print("\nTried once more, alone:", *again, flush=True)  # noqa: T201 - what the command is for
            # A notebook's cell needs those before it.
            targets = dict.fromkeys(re.sub(r"\.ipynb::.*", ".ipynb", name) for name in again)
            report, second = Path(folder, "again.xml"), Tally()
            command = [*pytest, f"--junitxml={report}", "--nbval", *targets]
            subprocess.run(command, cwd=ROOT, env=environment, check=False)
            second.add(report)
            if second.passed and not second.failed and not second.skipped:
                tally.unsteady, tally.failed, codes = tally.failed, [], dict.fromkeys(codes, 0)
    print()  # noqa: T201 - what the command is for
    for name, code in codes.items():
        print(f"{name}: {took[name]:.0f} s, pytest's exit code {code}")  # noqa: T201
    for reason, count in sorted(tally.skipped.items()):
        print(f"skipped, {count}: {reason}")  # noqa: T201
    for name in tally.failed:
        print(f"failed: {name}")  # noqa: T201
    for name in tally.unsteady:
        print(f"unsteady, it failed and passed when tried again, alone: {name}")  # noqa: T201
    print(tally)  # noqa: T201
    return int(any(codes.values()) or bool(tally.failed))


if __name__ == "__main__":
    sys.exit(main(CONTAINERS if "--containers" in sys.argv[1:] else PARTS))
