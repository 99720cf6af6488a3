"""What only notebooks use: the extension, service cells, charts, the live map, exercises.

A service's process is a module of this package, and loads none of the others: ``MeshMap`` is loaded when it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh_lab.notebook.mesh_map import MeshMap

__all__ = ["MeshMap"]


def __getattr__(name: str) -> Any:
    if name == "MeshMap":
        from mesh_lab.notebook.mesh_map import MeshMap

        return MeshMap
    raise AttributeError(f"module 'mesh_lab.notebook' has no attribute {name!r}")
