"""Stands before the real one in what the tests start: nats-py takes it for absent, and is imported in half the time.

Who else imports it, such as JupyterHub, is given the real one.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

importer = sys._getframe(1)
while "importlib" in importer.f_code.co_filename and importer.f_back is not None:
    importer = importer.f_back
if importer.f_globals.get("__name__", "").startswith("nats."):
    raise ImportError("left out while tests run, see conftest.py")
spec = PathFinder.find_spec(__name__, [path for path in sys.path if Path(path) != Path(__file__).parent])
if spec is None or spec.loader is None:
    raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
sys.modules[__name__] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[__name__])
