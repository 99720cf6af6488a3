"""The package is imported without anything that Windows lacks; what it lacks besides is said, not an AttributeError.

Nothing here runs on Windows. `make windows` checks the types as Windows has them.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Imports everything once, so that other packages have what they ask this system for; then takes away what Windows has
# not, says that this is Windows, and imports the package anew.
PROGRAM = """
import importlib, json, os, pkgutil, signal, socket, subprocess, sys
import mesh_lab

names = ["mesh_lab"]
for found in pkgutil.walk_packages(mesh_lab.__path__, "mesh_lab."):
    if not found.name.endswith("__main__"):
        names.append(found.name)
for name in names:
    importlib.import_module(name)
for name in names:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt", "uvloop"):
    sys.modules[name] = None
posix = "fork forkpty getuid geteuid getgid getegid getpgid getsid setsid killpg mkfifo statvfs chown pread uname "
posix += "posix_fallocate sysconf getloadavg sched_getaffinity O_NOFOLLOW WNOHANG"
for name in posix.split():
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in dir(signal) if name.startswith(("SIG", "ITIMER", "setitimer", "alarm", "pthread"))]:
    if name not in ("SIGTERM", "SIGINT", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN", "Signals"):
        delattr(signal, name)
del socket.AF_UNIX
signal.SIGBREAK, signal.CTRL_BREAK_EVENT, signal.CTRL_C_EVENT = 21, 1, 0
subprocess.CREATE_NEW_PROCESS_GROUP = 512
sys.platform = "win32"
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as err:
        failed[name] = repr(err)
print(json.dumps(failed))
from mesh_lab.chaos.disks import clear_leftovers, why_not
from mesh_lab.servers.backend import traits_of
print(json.dumps([why_not(), clear_leftovers(), "reload" in traits_of("local").gives]))
"""


def test_the_package_is_imported_without_what_windows_lacks_and_says_what_it_cannot_do_there() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    failed, said = map(json.loads, done.stdout.splitlines())
    assert failed == {}
    assert said == ["win32, expected Linux", 0, False]
