"""Cutoffs only ever rise, and all levels count."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lastcall.claims import LARGEST, Claims
from lastcall.cutoffs import Cutoff, Cutoffs

YEAR_2100_S = 4_102_444_800
SECOND_US = 1_000_000

subjects = st.sampled_from(["a", "b", "c"])
generations = st.one_of(st.integers(0, 4), st.integers(0, LARGEST))
times_us = st.one_of(st.integers(0, 4), st.integers(0, YEAR_2100_S * SECOND_US))
cutoffs_in_any_scope = st.builds(
    Cutoff, st.sampled_from(["everyone", "user", "session"]), subjects, generations, times_us, times_us
)
rows_that_happened = st.builds(
    Cutoff,
    st.sampled_from(["everyone", "user", "session"]),
    subjects,
    generations,
    times_us,
    st.integers(1, YEAR_2100_S * SECOND_US),
)
any_claims = st.one_of(
    st.builds(Claims, subjects, subjects, generations, generations, st.integers(0, YEAR_2100_S), st.just(0)),
    st.builds(
        Claims,
        subjects,
        st.one_of(st.none(), subjects),
        st.none(),
        st.none(),
        st.one_of(st.integers(0, 4), st.integers(0, YEAR_2100_S)),
        st.just(0),
    ),
)


def cutoffs_of(*rows: Cutoff) -> Cutoffs:
    found = Cutoffs()
    for row in rows:
        found.advance(row)
    return found


def what_it_holds(cutoffs: Cutoffs) -> tuple[object, ...]:
    return cutoffs.everyone_gen, cutoffs.everyone_at_us, cutoffs._users, cutoffs._sessions


@given(st.data(), st.lists(cutoffs_in_any_scope, max_size=8))
def test_any_order_and_any_replay_of_cutoffs_leads_to_the_same(data: st.DataObject, rows: list[Cutoff]) -> None:
    replays = data.draw(st.lists(st.sampled_from(rows), max_size=8)) if rows else []
    shuffled = data.draw(st.permutations(rows + replays))
    assert what_it_holds(cutoffs_of(*shuffled)) == what_it_holds(cutoffs_of(*rows))


@given(st.lists(rows_that_happened, max_size=8), rows_that_happened)
def test_it_is_told_whether_anything_rose(rows: list[Cutoff], another: Cutoff) -> None:
    cutoffs = cutoffs_of(*rows)
    before = deepcopy(what_it_holds(cutoffs))
    assert cutoffs.advance(another) == (what_it_holds(cutoffs) != before)
    assert cutoffs.advance(another) is False


@given(st.lists(cutoffs_in_any_scope, max_size=8))
def test_all_that_is_held_of_users_and_sessions_makes_another_refuse_the_same(rows: list[Cutoff]) -> None:
    """What a database that has lost it is given back: the generations; times are new there."""
    cutoffs = cutoffs_of(*rows)
    held = list(cutoffs.all_held())
    assert (
        len(held)
        == len({(scope, subject) for scope, subject, _ in held})
        == len(cutoffs._users) + len(cutoffs._sessions)
    )
    again = cutoffs_of(*(Cutoff(scope, subject, gen, 0, 1) for scope, subject, gen in held))
    assert {user: gen for scope, user, gen in again.all_held() if scope == "user"} == {
        subject: max(row.min_gen for row in rows if (row.scope, row.subject) == ("user", subject))
        for scope, subject, _ in held
        if scope == "user"
    }
    assert again._sessions.keys() == cutoffs._sessions.keys()


def test_cutoffs_that_hold_nothing_are_cutoffs_all_the_same() -> None:
    """`cutoffs or Cutoffs()` would otherwise leave a guard with an object that nobody fills."""
    assert len(Cutoffs()) == 0
    assert bool(Cutoffs()) is True


@given(st.lists(cutoffs_in_any_scope, max_size=8), cutoffs_in_any_scope, any_claims)
def test_what_is_refused_once_stays_refused(rows: list[Cutoff], another: Cutoff, claims: Claims) -> None:
    cutoffs = cutoffs_of(*rows)
    if cutoffs.refuses(claims):
        cutoffs.advance(another)
        assert cutoffs.refuses(claims)


@given(st.lists(cutoffs_in_any_scope, max_size=8), any_claims)
def test_a_token_is_refused_just_when_one_of_the_rows_covers_it(rows: list[Cutoff], claims: Claims) -> None:
    """The rule of contract.md, section 3, written once more in the plainest way."""

    def covers(row: Cutoff) -> bool:
        if row.scope == "session":
            return row.subject == claims.sid
        if row.scope == "user" and row.subject != claims.sub:
            return False
        gen = claims.everyone_gen if row.scope == "everyone" else claims.user_gen
        if gen is not None:
            return gen < row.min_gen
        return claims.iat * SECOND_US <= row.cutoff_at_us

    # A cutoff that never happened (time 0) covers nothing that was issued in 1970, second 0.
    refused = cutoffs_of(*rows).refuses(claims) is not None
    assert refused == (any(map(covers, rows)) or (claims.user_gen is None and claims.iat == 0))


@given(subjects, generations, st.integers(0, YEAR_2100_S * SECOND_US), st.integers(0, YEAR_2100_S))
@example("a", LARGEST, YEAR_2100_S * SECOND_US, YEAR_2100_S)
@example("a", LARGEST, 0, YEAR_2100_S)
@example("a", 0, YEAR_2100_S * SECOND_US, 0)
def test_the_largest_values_do_not_run_into_one_another(user: str, gen: int, at_us: int, expires_s: int) -> None:
    cutoffs = cutoffs_of(Cutoff("user", user, gen, at_us, expires_s * SECOND_US))
    own = Claims(user, "s", gen, 0, 0, 1)
    assert cutoffs.refuses(own) is None
    assert gen == 0 or cutoffs.refuses(replace(own, user_gen=gen - 1)) == "user"
    foreign = Claims(user, None, None, None, at_us // SECOND_US, 1)
    assert cutoffs.refuses(foreign) == ("everyone" if foreign.iat == 0 else "user")
    assert cutoffs.refuses(replace(foreign, iat=foreign.iat + 1)) is None
    assert cutoffs.forget(expires_s - 1) == 0
    assert cutoffs.forget(expires_s + 16) == 1


LEVELS = ("absent", "older", "equal", "newer")


@pytest.mark.parametrize(("everyone", "user", "session"), list(itertools.product(LEVELS, LEVELS, ("absent", "ended"))))
def test_every_level_counts_for_a_token_with_generations(everyone: str, user: str, session: str) -> None:
    """Older, equal, newer: the cutoff against the token's generation 5."""
    against = {"older": 4, "equal": 5, "newer": 6}
    rows = []
    if everyone in against:
        rows.append(Cutoff("everyone", "", against[everyone], 1, 1))
    if user in against:
        rows.append(Cutoff("user", "u", against[user], 1, 1))
    if session == "ended":
        rows.append(Cutoff("session", "s", 0, 1, 1))
    refused = cutoffs_of(*rows).refuses(Claims("u", "s", 5, 5, 100, 400))
    assert (refused is None) == (everyone != "newer" and user != "newer" and session == "absent")
    if refused is not None:
        assert {"everyone": everyone == "newer", "user": user == "newer", "session": session == "ended"}[refused]


@pytest.mark.parametrize(("everyone", "user", "session"), list(itertools.product(LEVELS, LEVELS, ("absent", "ended"))))
def test_every_level_counts_for_a_token_without_generations(everyone: str, user: str, session: str) -> None:
    """Older, equal, newer: the cutoff against the token's second 100."""
    against_us = {"older": 99_999_999, "equal": 100_000_000, "newer": 100_000_001}
    rows = []
    if everyone in against_us:
        rows.append(Cutoff("everyone", "", 10**9, against_us[everyone], 1))
    if user in against_us:
        rows.append(Cutoff("user", "u", 10**9, against_us[user], 1))
    if session == "ended":
        rows.append(Cutoff("session", "s", 0, 1, 1))
    refused = cutoffs_of(*rows).refuses(Claims("u", "s", None, None, 100, 400))
    covered = everyone in ("equal", "newer") or user in ("equal", "newer") or session == "ended"
    assert (refused is not None) == covered


@pytest.mark.parametrize("scope", ["everyone", "user"])
@pytest.mark.parametrize("cutoff_at_us", [100_000_000, 100_000_001, 100_999_999])
def test_a_token_from_the_same_second_is_refused(scope: str, cutoff_at_us: int) -> None:
    cutoffs = cutoffs_of(Cutoff(scope, "u" if scope == "user" else "", 1, cutoff_at_us, 10**9))  # type: ignore[arg-type]
    token = Claims("u", None, None, None, 100, 400)
    assert cutoffs.refuses(token) == scope
    assert cutoffs.refuses(replace(token, iat=101)) is None


def test_another_users_and_another_sessions_cutoff_covers_nobody_else() -> None:
    cutoffs = cutoffs_of(Cutoff("user", "u", 9, 9 * 10**9, 1), Cutoff("session", "s", 0, 9 * 10**9, 1))
    assert cutoffs.refuses(Claims("s", "u", 0, 0, 1, 2)) is None
    assert cutoffs.refuses(Claims("other", None, None, None, 1, 2)) is None
