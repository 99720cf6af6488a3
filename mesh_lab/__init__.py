"""A workbook that builds, measures and breaks a real event mesh on NATS.

``import mesh_lab`` is cheap: what is named here is loaded when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from mesh_lab.servers.mesh import Mesh
    from mesh_lab.servers.start import start_mesh

__version__ = "0.1.0"
__all__ = ["Mesh", "__version__", "start_mesh"]

_HOMES = {"start_mesh": "mesh_lab.servers.start", "Mesh": "mesh_lab.servers.mesh"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mesh_lab' has no attribute {name!r}; there are {', '.join(__all__)}")


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """Set the notebook up: ``%load_ext mesh_lab``."""
    from mesh_lab.notebook.extension import load

    load(shell)
