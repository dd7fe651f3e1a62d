"""Hypothesis here: the same examples in each run, no time limit for one of them, nothing kept on disk. And a guard
whose clock stands still, and a listener whose clock and database are played."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from coverage import Coverage
from hypothesis import settings

from lastcall import cutoffs as cutoffs_module
from lastcall import listener as listener_module
from lastcall.cutoffs import Cutoffs
from lastcall.guard import Guard
from lastcall.listener import CutoffListener
from tests.unit.by_hand import HS256, NOW_S, SECOND_NS, Clock, RecordingAsker
from tests.unit.played_database import LOG, PlayedDatabase, RecordingClock, RecordingCutoffs

settings.register_profile("unit", deadline=None, derandomize=True, database=None)
settings.load_profile("unit")


@pytest.fixture(scope="module")
def untraced() -> Iterator[None]:
    """For explorations of models: they are no part of what coverage counts, and nothing that they keep is garbage. With
    both they take twice as long."""
    coverage = Coverage.current()
    if coverage is not None:
        coverage.stop()
    gc.disable()
    yield
    gc.enable()
    if coverage is not None:
        coverage.start()


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
def listener(log: LOG, listener_clock: RecordingClock, monkeypatch: pytest.MonkeyPatch) -> CutoffListener:
    """A listener that is connected and has read everything before, at its renewal 10."""
    monkeypatch.setattr(listener_module, "ask", PlayedDatabase.ask)
    monkeypatch.setattr(listener_module, "prepare", PlayedDatabase.prepare)
    found = CutoffListener("postgresql://nowhere", RecordingCutoffs(log), lease_s=2.0)
    found._position, found._said, found._renewals = "1:2:", {"1:2:"}, 10
    found.cutoffs.loaded = True
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(cutoffs_module, "boottime_ns", found)
    return found


@pytest.fixture
def cutoffs(clock: Clock) -> Cutoffs:
    found = Cutoffs()
    found.wall_offset_ns = NOW_S * SECOND_NS - clock.now_ns
    found.renew_lease(clock.now_ns + 2 * SECOND_NS)
    return found


@pytest.fixture
def asker() -> RecordingAsker:
    return RecordingAsker()


@pytest.fixture
def guard(clock: Clock, cutoffs: Cutoffs, asker: RecordingAsker) -> Guard:
    return Guard(HS256, cutoffs, issuer="lastcall", audience="lastcall", asker=asker, clock_ns=clock)
