"""Jupyter in a codespace, where a forwarded port has a name of its own; anywhere else, this changes nothing.

GitHub asks who you are before it hands anything on, and Jupyter for its token after that. On the way, each of the
headers Host and Origin is kept, or becomes ``localhost``. Jupyter would refuse a host that it does not know,
and two that differ.
"""

import os
import re

if name := os.environ.get("CODESPACE_NAME"):
    c = get_config()  # type: ignore[name-defined] # noqa: F821 - Jupyter puts it there
    domain = os.environ.get("GITHUB_CODESPACES_PORT_FORWARDING_DOMAIN", "app.github.dev")
    # Jupyter takes 8888, or one of the next 50 where that is taken.
    c.ServerApp.local_hostnames = ["localhost", *(f"{name}-{port}.{domain}" for port in range(8888, 8939))]
    own = rf"localhost(:8[89]\d\d)?|{re.escape(name)}-8[89]\d\d\.{re.escape(domain)}"
    c.ServerApp.allow_origin_pat = rf"https?://({own})"
