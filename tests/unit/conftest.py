"""Hypothesis here: the same examples in each run, no time limit for one of them, nothing kept on disk. And a listener
whose clock and database are played."""

from __future__ import annotations

import pytest
from hypothesis import settings

from lastcall import listener as listener_module
from lastcall.listener import CutoffListener
from tests.unit.played_database import LOG, RecordingClock, RecordingCutoffs

settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")


@pytest.fixture
def log() -> LOG:
    """The steps of a listener in their order."""
    return []


@pytest.fixture
def listener_clock(log: LOG, monkeypatch: pytest.MonkeyPatch) -> RecordingClock:
    clock = RecordingClock(log)
    monkeypatch.setattr(listener_module, "boottime_ns", clock)
    return clock


@pytest.fixture
def listener(log: LOG, listener_clock: RecordingClock) -> CutoffListener:
    """A listener that is connected and has read everything before, at its renewal 10."""
    found = CutoffListener("postgresql://nowhere", RecordingCutoffs(log), lease_s=2.0)
    found._position, found._renewals = "1:2:", 10
    return found
