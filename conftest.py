"""Loads nbval, which runs notebooks as tests, without the three seconds that its imports take otherwise.

nbval reads notebooks by nbformat, which imports jsonschema, which compiles the grammar of internationalised addresses
where `rfc3987_syntax` is installed, as it is beside JupyterLab. No notebook's schema asks for such an address. Every
process of the tests would pay for it, so pyproject.toml keeps pytest from loading nbval by itself.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # an import of it fails, which is suppressed

pytest_plugins = ["nbval.plugin"]
