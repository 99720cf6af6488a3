"""The kinds of faults that a chaos run can inject."""

from typing import Literal, get_args

Kind = Literal["kill", "stop", "pause", "cut", "reset", "kill all"]
"""``kill``: SIGKILL. ``stop``: SIGTERM. ``pause``: SIGSTOP. ``cut``: nothing gets through between one
server and the others. ``reset``: its connections to the others break and are refused. ``kill all``: SIGKILL to all."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LINKED: frozenset[Kind] = frozenset({"cut", "reset"})
"""Kinds that need a mesh with links."""
