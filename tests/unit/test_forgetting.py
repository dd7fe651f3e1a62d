"""Cutoffs are kept until the last token they could cover has expired, and no longer; and the lease beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastcall import cutoffs as cutoffs_module
from lastcall.claims import Claims
from lastcall.cutoffs import Cutoff, Cutoffs

SECOND_US = 1_000_000
SECOND_NS = 1_000_000_000
LATE_S = 16
"""How much later than due a cutoff may be forgotten (seconds)."""


def user(subject: str, expires_s: float, *, at_us: int = 50 * SECOND_US) -> Cutoff:
    return Cutoff("user", subject, 5, at_us, int(expires_s * SECOND_US))


def session(subject: str, expires_s: float) -> Cutoff:
    return Cutoff("session", subject, 0, 50 * SECOND_US, int(expires_s * SECOND_US))


def covered(subject: str) -> Claims:
    return Claims(subject, subject, 1, 0, 10, 20)


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 500), max_size=20),
    st.sets(st.integers(0, 600), min_size=1, max_size=8),
)
def test_nothing_is_forgotten_a_second_early_nor_long_after(expiries: dict[str, int], moments: set[int]) -> None:
    cutoffs = Cutoffs()
    for i, (subject, expires_s) in enumerate(expiries.items()):
        cutoffs.advance(user(subject, expires_s) if i % 2 else session(subject, expires_s))
    dropped = 0
    for now_s in sorted(moments):
        dropped += cutoffs.forget(now_s)
        for subject, expires_s in expiries.items():
            if now_s < expires_s:
                assert cutoffs.refuses(covered(subject))
            elif expires_s + LATE_S <= now_s:
                assert cutoffs.refuses(covered(subject)) is None
        assert len(cutoffs) == len(expiries) - dropped


@pytest.mark.parametrize("make", [user, session])
def test_a_cutoff_whose_expiry_was_raised_stays_until_the_later_one(make: object) -> None:
    assert callable(make)
    cutoffs = Cutoffs()
    cutoffs.advance(make("x", 100))
    cutoffs.advance(make("x", 300))
    cutoffs.advance(make("x", 200))
    assert cutoffs.forget(299.9) == 0
    assert cutoffs.refuses(covered("x"))
    assert cutoffs.forget(300 + LATE_S) == 1
    assert cutoffs.refuses(covered("x")) is None


@pytest.mark.parametrize("make", [user, session])
def test_a_part_of_a_second_is_kept_to_its_end(make: object) -> None:
    assert callable(make)
    cutoffs = Cutoffs()
    cutoffs.advance(make("x", 100))
    cutoffs.advance(make("x", 112.5))
    assert cutoffs.forget(112.2) == 0
    assert cutoffs.refuses(covered("x"))


def test_a_user_and_a_session_of_one_name_are_forgotten_each_in_its_time() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(user("x", 100))
    cutoffs.advance(session("x", 200))
    assert cutoffs.forget(150) == 1
    assert cutoffs.refuses(covered("x")) == "session"
    assert cutoffs.forget(250) == 1
    assert len(cutoffs) == 0


def test_everyones_cutoff_is_never_forgotten() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(Cutoff("everyone", "", 5, 50 * SECOND_US, 100 * SECOND_US))
    assert cutoffs.forget(10**9) == 0
    assert cutoffs.refuses(covered("x")) == "everyone"
    assert len(cutoffs) == 1


def test_all_that_was_held_is_free_again_when_all_is_over() -> None:
    cutoffs = Cutoffs()
    for i in range(1000):
        cutoffs.advance(user(f"u{i}", 100 + i))
        cutoffs.advance(session(f"s{i}", 100 + i))
    assert len(cutoffs) == 2000
    assert cutoffs.forget(10_000) == 2000
    assert (len(cutoffs), cutoffs._users, cutoffs._sessions, cutoffs._due) == (0, {}, {}, {})


def test_rows_that_are_read_again_and_again_take_no_memory() -> None:
    """A forgotten transaction holds the snapshot's xmin back: then each round reads the same rows once more."""
    cutoffs = Cutoffs()
    for _ in range(1000):
        cutoffs.advance(user("u", 100))
        cutoffs.advance(session("s", 100))
    assert sorted(subject for subjects in cutoffs._due.values() for subject in subjects) == ["s", "u"]


@given(st.lists(st.tuples(st.sampled_from([user, session]), st.integers(1, 100)), min_size=1, max_size=8))
def test_a_cutoff_that_is_noted_once_is_forgotten_all_the_same(rows: list[tuple[Callable[..., Cutoff], int]]) -> None:
    cutoffs = Cutoffs()
    for make, expires_s in rows:
        cutoffs.advance(make("x", expires_s))
    held = len(cutoffs)
    assert cutoffs.forget(100 + LATE_S) == held
    assert (len(cutoffs), cutoffs._due) == (0, {})


# ----------------------------------------------------------------------------------------------------- the horizon


def test_a_token_without_generations_from_before_a_forgotten_cutoff_must_be_asked_about() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(user("u", 100, at_us=50_500_000))
    old, new = Claims("u", None, None, None, 50, 400), Claims("u", None, None, None, 51, 400)
    assert not cutoffs.must_be_asked(old)
    cutoffs.forget(200)
    assert cutoffs.must_be_asked(old)
    assert not cutoffs.must_be_asked(new)


def test_a_token_of_a_forgotten_session_must_be_asked_about() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(session("s", 100))
    cutoffs.forget(200)
    assert cutoffs.must_be_asked(Claims("u", "s", None, None, 49, 400))


def test_a_token_with_generations_is_never_asked_about() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(user("u", 100))
    cutoffs.forget(200)
    assert not cutoffs.must_be_asked(Claims("u", "s", 0, 0, 1, 400))


def test_the_horizon_only_rises() -> None:
    cutoffs = Cutoffs()
    cutoffs.advance(user("new", 100, at_us=90 * SECOND_US))
    cutoffs.advance(user("old", 200, at_us=10 * SECOND_US))
    cutoffs.forget(150)
    cutoffs.forget(250)
    assert cutoffs.horizon_us == 90 * SECOND_US


# ------------------------------------------------------------------------------------------------------- the lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [100 * SECOND_NS]
    monkeypatch.setattr(cutoffs_module, "boottime_ns", lambda: now[0])
    return now


def test_a_worker_is_starting_then_live_then_stale_then_live_again(clock: list[int]) -> None:
    cutoffs = Cutoffs()
    assert (cutoffs.state, cutoffs.lease_is_valid()) == ("starting", False)
    cutoffs.renew_lease(102 * SECOND_NS)
    assert (cutoffs.state, cutoffs.lease_is_valid()) == ("live", True)
    clock[0] = 102 * SECOND_NS - 1
    assert cutoffs.lease_is_valid()
    clock[0] = 102 * SECOND_NS
    assert (cutoffs.state, cutoffs.lease_is_valid()) == ("stale", False)
    cutoffs.renew_lease(104 * SECOND_NS)
    assert cutoffs.state == "live"


def test_a_fence_ends_the_lease_until_it_is_renewed(clock: list[int]) -> None:
    cutoffs = Cutoffs()
    cutoffs.renew_lease(200 * SECOND_NS)
    cutoffs.fence()
    assert (cutoffs.state, cutoffs.lease_is_valid()) == ("fenced", False)
    cutoffs.renew_lease(200 * SECOND_NS)
    assert cutoffs.state == "live"


def test_the_time_is_the_databases(clock: list[int]) -> None:
    cutoffs = Cutoffs()
    cutoffs.wall_offset_ns = 1_000 * SECOND_NS
    assert cutoffs.now_s() == 1_100
