"""Sightings of sessions: at most one a minute each, handed over once."""

from __future__ import annotations

from datetime import UTC

import pytest

from models import seen as seen_module
from models.seen import QUIET_NS, Seen

S1, S2 = "00000000-0000-4000-8000-0000000000a1", "00000000-0000-4000-8000-0000000000a2"


def nowhere() -> None:
    """The address of a request that has none."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [QUIET_NS]
    monkeypatch.setattr(seen_module, "boottime_ns", lambda: now[0])
    return now


def ids(seen: Seen) -> list[str]:
    return [session_id for session_id, _, _ in seen.take()]


def test_a_sighting_has_the_session_the_address_and_an_aware_time(clock: list[int]) -> None:
    seen = Seen()
    seen.note(S1, lambda: "192.0.2.1")
    [(session_id, ip, at)] = seen.take()
    assert (session_id, ip, at.tzinfo) == (S1, "192.0.2.1", UTC)


def test_a_session_is_written_once_a_minute_at_most(clock: list[int]) -> None:
    seen = Seen()
    for _ in range(1000):
        seen.note(S1, nowhere)
    assert ids(seen) == [S1]
    clock[0] += QUIET_NS - 1
    seen.note(S1, nowhere)
    assert ids(seen) == []
    clock[0] += 1
    seen.note(S1, nowhere)
    assert ids(seen) == [S1]


def test_each_session_has_a_minute_of_its_own(clock: list[int]) -> None:
    seen = Seen()
    seen.note(S1, nowhere)
    seen.note(S2, nowhere)
    assert ids(seen) == [S1, S2]


def test_what_was_taken_is_not_handed_over_again(clock: list[int]) -> None:
    seen = Seen()
    seen.note(S1, nowhere)
    seen.take()
    assert seen.take() == []


def see(seen: Seen, numbers: range) -> int:
    """How many of these sessions are to be written."""
    for number in numbers:
        seen.note(f"00000000-0000-4000-8000-{number:012}", nowhere)
    return len(seen.take())


def test_however_many_there_are_each_is_written_once_a_minute_at_most(clock: list[int]) -> None:
    seen = Seen()
    assert see(seen, range(120_000)) == 120_000
    clock[0] += QUIET_NS - 1
    assert see(seen, range(120_000)) == 0
    clock[0] += 1
    assert see(seen, range(120_000)) == 120_000


def test_the_memory_is_bounded_by_whom_the_last_minute_saw(clock: list[int]) -> None:
    seen = Seen()
    for minute in range(5):
        assert see(seen, range(minute * 60_000, (minute + 1) * 60_000)) == 60_000
        assert len(seen._quiet_until_ns) <= 120_000
        clock[0] += QUIET_NS


@pytest.mark.parametrize("sid", ["", "s1", S1.upper(), f"{{{S1}}}", f"{S1}\n", f"{S1}\x00"])
def test_what_is_no_id_of_a_session_is_not_noted(clock: list[int], sid: str) -> None:
    """One of them in the statement would spoil it for all others."""
    seen = Seen()
    seen.note(sid, nowhere)
    seen.note(S2, nowhere)
    assert ids(seen) == [S2]
