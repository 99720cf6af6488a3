"""``mesh-lab bench``: how fast each way of publishing, consuming and both together is on this machine."""

from mesh_lab.bench.scale import run_scale
from mesh_lab.bench.suite import CASES, StreamSetup, run_suite
