"""The course that an installed package carries, as a folder that a reader may change."""

import json
from hashlib import sha256
from importlib.metadata import metadata
from pathlib import Path
from typing import NamedTuple

from mesh_lab.errors import StoreError

CARRIED = Path(__file__).with_name("carried")
RECORD = ".mesh-lab.json"


class Laid(NamedTuple):
    """The files of a folder that were written, and those that were left alone because they are the reader's by now."""

    written: list[str]
    kept: list[str]


def carried() -> dict[str, bytes]:
    """Return the files of the course by their place in its folder.

    Raises:
        StoreError: The package was not installed from a wheel, and has none.
    """
    files = {path.relative_to(CARRIED).as_posix(): path.read_bytes() for path in CARRIED.rglob("*") if path.is_file()}
    if not files:
        raise StoreError(f"there are no notebooks in {CARRIED}; run it in the folder that you cloned")
    return files | {"README.md": str(metadata("mesh-lab").json["description"]).encode()}  # its notebooks link to it


def lay_out(folder: Path, files: dict[str, bytes]) -> Laid:
    """Write files into a folder, and renew those there that are as an earlier version wrote them.

    A file that was changed since is never touched; one that is gone is written again. What an earlier version wrote,
    this one does not have, and nobody changed, is removed.

    Raises:
        StoreError: The folder cannot be written, or its record of what was written cannot be read.
    """
    record, laid, now = folder / RECORD, Laid([], []), {}
    try:
        known: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        for name in sorted(files.keys() | known.keys()):
            path, new = folder / name, files.get(name)
            old = path.read_bytes() if path.exists() else None
            if old is not None and old != new and sha256(old).hexdigest() != known.get(name):
                laid.kept.append(name)
            elif new is None:
                path.unlink(missing_ok=True)
            else:
                now[name] = sha256(new).hexdigest()
                if old != new:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(new)
                    laid.written.append(name)
        record.write_text(json.dumps(now), encoding="utf-8")
    except (OSError, ValueError) as err:
        raise StoreError(f"cannot write the course into {folder}: {err}; run mesh-lab lab in another folder") from err
    return laid
