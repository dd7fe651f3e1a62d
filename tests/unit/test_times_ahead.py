"""Times in the future: how far ahead a token may be, and that a token without generations may not be at all."""

from __future__ import annotations

from typing import Any

import pytest

from lastcall.cutoffs import Cutoffs
from lastcall.errors import CutoffsStale, Invalid, Malformed, TokenRejected
from lastcall.guard import Guard
from tests.unit.by_hand import FOREIGN, NOW_S, SECOND_NS, RecordingAsker, guard_for, token


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": NOW_S + 960, "iat": NOW_S + 60}, id="exp as far ahead as allowed"),
        pytest.param({"iat": NOW_S + 60, "exp": NOW_S + 360}, id="iat a minute ahead"),
        pytest.param({"nbf": NOW_S + 60}, id="nbf a minute ahead"),
        pytest.param({"nbf": NOW_S - 300}, id="nbf long ago"),
        pytest.param({**FOREIGN}, id="a foreign token of this second"),
        pytest.param({**FOREIGN, "nbf": NOW_S}, id="a foreign token that is good from this second on"),
    ],
)
def test_a_time_that_an_issuer_with_a_fast_clock_may_write_is_accepted(guard: Guard, changes: dict[str, Any]) -> None:
    assert guard.check(token(**changes)).sub == "u1"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param({"exp": NOW_S + 961, "iat": NOW_S + 61}, Malformed, id="exp beyond the longest lifetime"),
        pytest.param({"iat": NOW_S + 61, "exp": NOW_S + 361}, Invalid, id="iat more than a minute ahead"),
        pytest.param({"nbf": NOW_S + 61}, Invalid, id="nbf more than a minute ahead"),
        pytest.param({**FOREIGN, "iat": NOW_S + 1}, Invalid, id="a foreign token whose iat is ahead"),
        pytest.param({**FOREIGN, "nbf": NOW_S + 1}, Invalid, id="a foreign token whose nbf is ahead"),
    ],
)
def test_a_time_further_ahead_is_refused_and_not_remembered(
    guard: Guard, changes: dict[str, Any], error: type[TokenRejected]
) -> None:
    with pytest.raises(error) as refused:
        guard.check(token(**changes))
    assert type(refused.value) is error
    assert not guard._memo


def test_what_is_ahead_is_judged_by_the_databases_clock(guard: Guard, cutoffs: Cutoffs) -> None:
    cutoffs.wall_offset_ns += 100 * SECOND_NS
    assert guard.check(token(**FOREIGN, iat=NOW_S + 100, exp=NOW_S + 400)).sub == "u1"
    with pytest.raises(Invalid):
        guard.check(token(**FOREIGN, iat=NOW_S + 101, exp=NOW_S + 400))


def test_a_token_without_generations_is_judged_anew_when_the_clock_steps_back_behind_it(
    guard: Guard, cutoffs: Cutoffs, asker: RecordingAsker
) -> None:
    """Or a revocation of now, whose time is before that of the token, would not count for it (design.md, 2)."""
    foreign, own = token(**FOREIGN), token()
    assert guard.check(foreign).sub == guard.check(own).sub == "u1"
    cutoffs.newest_us = NOW_S * 1_000_000
    cutoffs.wall_offset_ns -= 100 * SECOND_NS
    asker.clock_s -= 100
    for raw in (foreign, token(**FOREIGN, jti="another")):
        with pytest.raises(Invalid):
            guard.check(raw)
    assert guard.check(own).sub == "u1", "generations decide, whatever the clocks do"
    cutoffs.wall_offset_ns += 100 * SECOND_NS
    assert guard.check(foreign).sub == "u1"


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_who_does_not_know_the_databases_clock_yet_judges_no_times(hours: int) -> None:
    cutoffs = Cutoffs()
    guard, _ = guard_for(cutoffs)
    cutoffs.loaded, cutoffs.lease_until_ns = False, 0
    cutoffs.wall_offset_ns += hours * 3600 * SECOND_NS
    with pytest.raises(CutoffsStale):
        guard.check(token())
    assert not guard._memo
