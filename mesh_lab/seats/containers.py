"""A seat as a container: files, processes, ports and memory of its own, which the engine keeps from all others."""

from dockerspawner import DockerSpawner
from traitlets import Dict

from mesh_lab import __version__
from mesh_lab.errors import EngineRefusedError, SettingsError
from mesh_lab.seats.seat import LINE_VARIABLE
from mesh_lab.servers.compose import Engine

IMAGE, NETWORK = f"mesh-lab-seat:{__version__}", "mesh-lab-seats"
BUILD = f"docker build -f docker/seat.Dockerfile -t {IMAGE} ."


class SeatContainer(DockerSpawner):  # type: ignore[misc]  # DockerSpawner has no types
    """Starts a seat's server in a container, with a volume for its home that stays."""

    lines = Dict(config=True, help="What each seat joins the room's mesh with.")

    def get_env(self) -> dict[str, str]:
        """Return a server's variables with what its seat joins with."""
        return dict(super().get_env()) | {LINE_VARIABLE: self.lines.get(self.user.name, "")}


def gateway() -> str:
    """Return the address at which seats' containers reach this machine; make their network if it is not there.

    Raises:
        NoEngineError: No engine answers.
        SettingsError: The image of a seat is not there.
    """
    engine = Engine.find()
    if not engine.has_image(IMAGE):
        raise SettingsError(f"the engine has no image {IMAGE} for a seat; in the checkout's root: {BUILD}")
    ask = ("network", "inspect", NETWORK, "--format", "{{(index .IPAM.Config 0).Gateway}}")
    try:
        return engine.docker(*ask).strip()
    except EngineRefusedError:
        # Containers of this network reach the hub and the world, and not each other.
        engine.docker("network", "create", "--opt", "com.docker.network.bridge.enable_icc=false", NETWORK)
        return engine.docker(*ask).strip()
