"""Hypothesis here: the same examples in each run, no time limit for one of them, nothing kept on disk."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")
