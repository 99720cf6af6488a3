"""The engine that the container tests start leaves the machine's network as it found it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import engine as machine
import pytest

HERE = Path(__file__).parent
# In a network of its own, where no rules are: what other engines left on this machine is not in the way.
PROGRAM = """
import pathlib, subprocess, tempfile
import engine
subprocess.run(["iptables", "-A", "INPUT", "-s", "10.9.8.7", "-j", "DROP"], check=True)
before = engine._network()
with tempfile.TemporaryDirectory() as scratch, engine._own_engine(pathlib.Path(scratch)):
    meanwhile = engine._network()
assert meanwhile != before, meanwhile
assert "DOCKER" in meanwhile.rules["iptables"], meanwhile
assert engine._network() == before, engine._network()
"""

RULES = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n-A INPUT -s 10.9.8.7/32 -j DROP\nCOMMIT\n"
MORE = """*filter
:INPUT ACCEPT
:FORWARD DROP
:DOCKER -
-A INPUT -s 10.9.8.7/32 -j DROP
-A FORWARD -j DOCKER
-A DOCKER -j RETURN
COMMIT
"""


def test_what_was_added_is_taken_back_and_nothing_else() -> None:
    undone = machine.undoing(RULES, MORE).splitlines()
    rules = ["-D DOCKER -j RETURN", "-D FORWARD -j DOCKER"]
    assert undone == ["*filter", ":FORWARD ACCEPT [0:0]", *rules, "-F DOCKER", "-X DOCKER", "COMMIT"]
    assert machine.undoing(MORE, MORE).splitlines() == ["*filter", "COMMIT"]


@pytest.mark.skipif(not machine.asked(), reason="`make test-docker` starts an engine of its own where it can")
def test_an_engine_of_the_tests_leaves_the_network_as_it_found_it() -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "unshare", "iptables"))):
        pytest.skip("no root, or no engine to start")
    command = ["unshare", "--net", sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
