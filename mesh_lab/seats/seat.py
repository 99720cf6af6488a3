"""What runs first at a seat, as the seat's own user: limits, the course, the room's mesh; then the seat's JupyterLab.

The hub must not do this for it: whoever writes into a folder of somebody else's follows the links that lie there.
"""

import os
import subprocess
import sys
from pathlib import Path

from mesh_lab.course import carried, lay_out
from mesh_lab.doctor import before
from mesh_lab.errors import StoreError

LINE_VARIABLE = "MESH_LAB_SEAT_LINE"
BYTES_VARIABLE, PROCESSES_VARIABLE = "MESH_LAB_SEAT_PROCESS_BYTES", "MESH_LAB_SEAT_PROCESSES"
JOIN_WITHIN_S = 20.0
ROOT = Path(__file__).parents[2]
LEFT_OUT = {"book", "workshop", "__pycache__", ".ipynb_checkpoints"}

# A third of a server's start is a grammar of addresses, which jsonschema compiles where it finds one and no schema here
# asks for: it is told that there is none.
SERVER = "import sys; sys.modules['rfc3987_syntax'] = None; from jupyterhub.singleuser import main; main()"


def course() -> dict[str, bytes]:
    """Return the files of a seat's course by their place in its home: from the checkout, or as the package has them."""
    if (ROOT / "notebooks").is_dir():
        files = [path for path in (ROOT / "notebooks").rglob("*") if path.is_file()] + [ROOT / "README.md"]
        found = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in files}
    else:
        found = carried()
    return {name: text for name, text in found.items() if not LEFT_OUT.intersection(name.split("/"))}


def main() -> None:
    """Prepare the seat in the home directory, and become its server."""
    line = os.environ.pop(LINE_VARIABLE, "")
    most_bytes, most_processes = (int(os.environ.pop(name, "0")) for name in (BYTES_VARIABLE, PROCESSES_VARIABLE))
    if sys.platform != "win32":
        import resource

        # Private memory that one process may write, and the processes, threads among them, of the seat's user: hard
        # limits, which the seat cannot raise.
        if most_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
        if most_processes:
            resource.setrlimit(resource.RLIMIT_NPROC, (most_processes, most_processes))
    try:
        laid = lay_out(Path.home(), course())
        sys.stderr.write(
            f"The course: {len(laid.written)} files written, {len(laid.kept)} kept as they were changed.\n"
        )
    except StoreError as err:  # whoever wrote what cannot be read has to get in to mend it
        sys.stderr.write(f"The course was not renewed: {err}\n")
    if line:
        join = [sys.executable, "-m", "mesh_lab.cli", "join"]
        try:
            subprocess.run(join, input=line.encode(), timeout=JOIN_WITHIN_S, check=True)
        except (OSError, subprocess.SubprocessError) as err:  # the course works without the room
            sys.stderr.write(f"This seat did not join the room: {err}; in a terminal of it: mesh-lab join LINE\n")
    sys.stderr.flush()
    for path in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH"):  # as `mesh-lab lab` has them
        os.environ[path] = before(os.environ.get(path))
    # The hub ends this process by its id, so the server takes its place.
    os.execv(sys.executable, [sys.executable, "-c", SERVER, *sys.argv[1:]])  # noqa: S606


if __name__ == "__main__":
    main()
