"""Stands before the real one in what the tests start: jsonschema does without it."""

raise ImportError("left out while tests run, see conftest.py")
