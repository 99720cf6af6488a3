"""The mesh that attacks share."""

from locked_mesh import _locked, locked  # noqa: F401
