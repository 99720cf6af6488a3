"""The appendix on nats-core and nats-jetstream runs as it stands, where they are installed."""

import ast
import re
from pathlib import Path

import pytest

from mesh_lab import start_mesh

APPENDIX = Path(__file__).parents[2] / "notebooks" / "newer_packages.md"
CODE = "\n".join(re.findall(r"^```python\n(.*?)^```", APPENDIX.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


async def test_the_appendix_on_the_newer_packages_runs_as_it_stands() -> None:
    program = compile(CODE, APPENDIX.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for package, module in {"nats-core": "nats.client", "nats-jetstream": "nats.jetstream"}.items():
        pytest.importorskip(module, reason=f"the course does not install {package}, which needs Python 3.13")
    async with await start_mesh() as mesh:
        options = mesh.connect_options()
        await eval(program, {"url": mesh.urls[0], "user": options["user"], "password": options["password"]})
