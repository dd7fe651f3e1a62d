"""The guard keeps the orders that tests/unit/model.py and small_models.py prove, look by look."""

from __future__ import annotations

from typing import Any

import pytest

from lastcall import cutoffs as cutoffs_module
from lastcall.claims import Claims
from lastcall.cutoffs import Cutoff, Cutoffs, Scope
from lastcall.guard import Guard
from tests.unit import model, small_models
from tests.unit.by_hand import HS256, NOW_S, guard_for, token

SECOND_NS = 1_000_000_000
LOOKS = {"lease_until_ns": "lease?", "refuses": "cutoffs?", "horizon_us": "horizon?", "must_be_asked": "horizon?"}


class WatchedCutoffs(Cutoffs):
    """Writes down what the guard looks at, in the model's words."""

    log: list[str]

    def __getattribute__(self, name: str) -> Any:
        if name in LOOKS:
            self.log.append(LOOKS[name])
        return super().__getattribute__(name)


def watched_check(monkeypatch: pytest.MonkeyPatch, raw: str, **attributes: Any) -> list[str]:
    """The looks of the second check of a token, so that the verification is not among them."""
    log: list[str] = []

    def clock() -> int:
        log.append("now")
        return 100 * SECOND_NS

    monkeypatch.setattr(cutoffs_module, "boottime_ns", lambda: 100 * SECOND_NS)
    cutoffs = WatchedCutoffs()
    cutoffs.log = log
    cutoffs.renew_lease(110 * SECOND_NS)
    cutoffs.wall_offset_ns = 0
    for name, value in attributes.items():
        setattr(cutoffs, name, value)
    guard = Guard(HS256, cutoffs, issuer="lastcall", audience="lastcall", clock_ns=clock)
    guard.check(raw)
    log.clear()
    guard.check(raw)
    return log


def test_the_guard_looks_in_the_order_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = watched_check(monkeypatch, token(iat=90, auth_time=90, exp=300))
    assert [look for look in looks if look != "horizon?"] == list(model.REQUEST)


def test_the_guard_looks_at_the_horizon_after_the_cutoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = token(iat=90, auth_time=90, exp=300, user_gen=..., everyone_gen=...)
    looks = watched_check(monkeypatch, raw, horizon_us=1)
    assert list(dict.fromkeys(look for look in looks if look in small_models.LOOK_UP)) == list(small_models.LOOK_UP)


def test_a_cutoff_that_is_forgotten_during_the_check_does_not_let_its_token_through() -> None:
    class ForgettingCutoffs(Cutoffs):
        def refuses(self, claims: Claims) -> Scope | None:
            self.forget(self.now_s())
            return super().refuses(claims)

    cutoffs = ForgettingCutoffs()
    cutoffs.advance(Cutoff("user", "u1", 2, (NOW_S - 100) * 1_000_000, (NOW_S - 50) * 1_000_000))
    guard, asked = guard_for(cutoffs)
    guard.check(token(iat=NOW_S - 200, exp=NOW_S + 200, user_gen=..., everyone_gen=...))
    assert asked, "neither refused from memory nor put to the database"


def test_forgetting_raises_the_horizon_before_it_drops() -> None:
    class Users(dict[str, int]):
        def __delitem__(self, subject: str) -> None:
            assert cutoffs.horizon_us == 100_000_000, "a token in between would find neither the cutoff nor the horizon"
            super().__delitem__(subject)

    cutoffs = Cutoffs()
    cutoffs._users = Users()
    cutoffs.advance(Cutoff("user", "u1", 2, 100_000_000, 200_000_000))
    assert cutoffs.forget(1000) == 1
    assert small_models.FORGET == ("raise horizon", "drop")
