"""Notebooks as ``mesh-lab lab`` hands them to JupyterLab: opening one does not change it.

JupyterLab writes what the kernel says of its language, Python's version included, into each notebook that it opens. The
files here name the language alone, so that they are the same under every Python.
"""

from typing import Any

from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

STORED = {"name": "python"}
"""What a file of this repository says of its language."""


class LabContents(AsyncLargeFileManager):
    """Jupyter's own files, with the kernel's ``language_info`` in a notebook's model and its name alone in the file."""

    async def get(self, path: str, content: bool = True, *arguments: Any, **options: Any) -> Any:
        """Return a file's model; a notebook that names the language alone gets all that this kernel says of it."""
        model = await super().get(path, content, *arguments, **options)  # type: ignore[no-untyped-call]
        _replace(model, STORED, IPythonKernel.language_info)
        return model

    async def save(self, model: dict[str, Any], path: str = "") -> Any:
        """Store a model and return it without its content, as Jupyter does."""
        _replace(model, IPythonKernel.language_info, STORED)
        return await super().save(model, path)  # type: ignore[no-untyped-call]


def _replace(model: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    if model.get("type") == "notebook" and (notebook := model.get("content")):
        metadata = notebook["metadata"]
        if metadata.get("language_info") == old:
            metadata["language_info"] = dict(new)
