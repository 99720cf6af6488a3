"""Watch servers: their monitoring endpoints, and snapshots of all of a mesh's servers at one moment."""

from mesh_lab.observe.monitor import Health, Monitor
from mesh_lab.observe.snapshots import ServerSnapshot, rate_per_s, snapshot
