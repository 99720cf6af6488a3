"""A process that outlives a killed kernel just long enough to clean up after it.

``kill -9`` leaves a program no chance to stop its servers. So each mesh starts this guard, which reads a pipe whose
only write end is in the mesh's process. When that process ends, however it ends, the pipe ends too, and the guard kills
what the mesh started and removes its directory. What the mesh started is known by an environment variable that its
processes, and theirs in turn, inherit: the guard never goes by name. It imports nothing that would make it start late.
"""

import shutil
import sys
import time

DISMISSED = b"dismissed"
KILL_WITHIN_S = 4.0  # what cannot be killed by then hangs in the kernel


def kill_owned(variable: str, owner: str) -> None:
    """Kill every process that an environment variable marks as the owner's; return when none is left, or after 4 s."""
    import psutil

    deadline = time.monotonic() + KILL_WITHIN_S
    clean_scans = 0
    # One more scan after the first clean one: a process that was being started during the first is seen then.
    while clean_scans < 2 and time.monotonic() < deadline:
        found = False
        for process in psutil.process_iter():
            try:
                if process.environ().get(variable) == owner and process.status() != psutil.STATUS_ZOMBIE:
                    found = True
                    process.kill()
            except (psutil.Error, OSError):  # it ended meanwhile, or belongs to somebody else
                continue
        clean_scans = 0 if found else clean_scans + 1
        time.sleep(0.05)


def main() -> None:
    """Wait for the end of standard input, then clean up unless the mesh has."""
    directory, variable, owner = sys.argv[1:]
    if sys.stdin.buffer.read().strip() == DISMISSED:
        return
    kill_owned(variable, owner)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
