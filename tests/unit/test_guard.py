"""The guard: what it remembers, by which clock it judges, and what it does without a lease."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lastcall import guard as guard_module
from lastcall.cutoffs import Cutoff, Cutoffs
from lastcall.errors import CutoffsStale, Expired, Invalid, Revoked, TokenRejected
from lastcall.guard import Guard
from tests.unit.by_hand import (
    FOREIGN,
    HS256,
    NOW_S,
    SECOND_NS,
    SID,
    Clock,
    RecordingAsker,
    good_payload,
    guard_for,
    sign,
    token,
)


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    seen: list[str] = []
    real = guard_module.verify

    def verify(raw: str, *args: Any, **options: Any) -> Any:
        seen.append(raw)
        return real(raw, *args, **options)

    monkeypatch.setattr(guard_module, "verify", verify)
    yield seen


# ------------------------------------------------------------------------------------------------------ the memory


def test_a_token_is_verified_once(guard: Guard, verifications: list[str]) -> None:
    raw = token()
    assert guard.check(raw) == guard.check(raw)
    assert verifications == [raw]


def test_a_refused_token_is_not_remembered(guard: Guard, verifications: list[str]) -> None:
    raw = sign(good_payload(), secret=b"another secret")
    for _ in range(2):
        with pytest.raises(Invalid):
            guard.check(raw)
    assert len(verifications) == 2
    assert not guard._memo


def test_an_expired_token_leaves_the_memory(guard: Guard, clock: Clock) -> None:
    raw = token()
    guard.check(raw)
    clock.advance(300)
    with pytest.raises(Expired):
        guard.check(raw)
    assert not guard._memo


def test_the_memory_is_bounded_and_the_newest_stay(
    guard: Guard, verifications: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "MEMO_SIZE", 16)
    raws = [token(jti=f"j{i}") for i in range(100)]
    for raw in raws:
        guard.check(raw)
        assert len(guard._memo) <= 16
    guard.check(raws[-1])
    assert len(verifications) == 100


def test_the_memory_holds_no_token(guard: Guard) -> None:
    raw = token()
    guard.check(raw)
    assert raw.rpartition(".")[2] not in repr(guard._memo)


def test_a_remembered_token_is_refused_as_soon_as_it_is_revoked(guard: Guard, cutoffs: Cutoffs) -> None:
    raw = token()
    guard.check(raw)
    cutoffs.advance(Cutoff("session", SID, 0, 1, 10**18))
    with pytest.raises(Revoked):
        guard.check(raw)


# ------------------------------------------------------------------------------------------------------- the clock


def test_a_token_ends_at_its_exp_by_the_databases_clock(guard: Guard, cutoffs: Cutoffs, clock: Clock) -> None:
    raw = token(exp=NOW_S + 10)
    cutoffs.renew_lease(clock.now_ns + 100 * SECOND_NS)
    clock.advance(9.999)
    assert guard.check(raw).sub == "u1"
    clock.advance(0.001)
    with pytest.raises(Expired):
        guard.check(raw)


def test_a_step_of_the_databases_clock_is_followed(guard: Guard, cutoffs: Cutoffs) -> None:
    raw = token()
    cutoffs.wall_offset_ns += 3600 * SECOND_NS
    with pytest.raises(Expired):
        guard.check(raw)
    cutoffs.wall_offset_ns -= 3600 * SECOND_NS
    assert guard.check(raw).sub == "u1"


# ------------------------------------------------------------------------------------------------------- the lease


def test_nobody_is_asked_while_the_lease_is_valid(guard: Guard, asker: RecordingAsker, clock: Clock) -> None:
    guard.check(token())
    clock.advance(1.999)
    guard.check(token())
    assert asker.asked == []


def test_the_database_is_asked_once_the_lease_is_out(guard: Guard, asker: RecordingAsker, clock: Clock) -> None:
    guard.check(token())
    clock.advance(2)
    assert guard.check(token()) == asker.asked[0]
    asker.answer = "user"
    with pytest.raises(Revoked) as refused:
        guard.check(token())
    assert (refused.value.scope, refused.value.subject) == ("user", "u1")


def test_a_stale_workers_memory_only_adds_to_what_the_database_refuses(
    guard: Guard, cutoffs: Cutoffs, asker: RecordingAsker, clock: Clock
) -> None:
    clock.advance(2)
    guard.check(token())
    assert len(asker.asked) == 1
    cutoffs.advance(Cutoff("user", "u1", 5, 1, 10**18))  # the database was restored, and does not know it
    with pytest.raises(Revoked):
        guard.check(token())
    assert len(asker.asked) == 2


def test_with_stale_refuse_nobody_is_asked(clock: Clock, cutoffs: Cutoffs) -> None:
    guard = Guard(HS256, cutoffs, issuer="lastcall", audience="lastcall", asker=None, clock_ns=clock)
    raw = token()
    guard.check(raw)
    clock.advance(2)
    with pytest.raises(CutoffsStale):
        guard.check(raw)
    cutoffs.renew_lease(clock.now_ns + SECOND_NS)
    assert guard.check(raw).sub == "u1"


def test_a_starting_worker_neither_answers_nor_asks(clock: Clock, asker: RecordingAsker) -> None:
    starting = Cutoffs()
    starting.wall_offset_ns = NOW_S * SECOND_NS - clock.now_ns
    guard = Guard(HS256, starting, issuer="lastcall", audience="lastcall", asker=asker, clock_ns=clock)
    with pytest.raises(CutoffsStale):
        guard.check(token())
    assert asker.asked == []


def test_a_fenced_worker_neither_answers_nor_asks(guard: Guard, cutoffs: Cutoffs, asker: RecordingAsker) -> None:
    guard.check(token())
    cutoffs.fence()
    with pytest.raises(CutoffsStale):
        guard.check(token())
    assert asker.asked == []


def test_what_the_asker_cannot_know_is_passed_on(guard: Guard, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> None:
        raise CutoffsStale

    monkeypatch.setattr(guard._asker, "refuses", refuses)
    clock.advance(2)
    with pytest.raises(CutoffsStale) as stale:
        guard.check(token())
    assert not isinstance(stale.value, TokenRejected), "it would be a 401, and clients would throw the token away"
    assert stale.value.retry_after_s == 1


def test_a_bad_token_is_a_401_even_without_a_lease(guard: Guard, cutoffs: Cutoffs) -> None:
    cutoffs.fence()
    with pytest.raises(Invalid):
        guard.check(sign(good_payload(), secret=b"another secret"))


# -------------------------------------------------------------------------------------------------- what is revoked


@pytest.mark.parametrize(
    ("cutoff", "subject"),
    [
        (Cutoff("everyone", "", 2, 1, 10**18), ""),
        (Cutoff("user", "u1", 2, 1, 10**18), "u1"),
        (Cutoff("session", SID, 0, 1, 10**18), SID),
    ],
    ids=["everyone", "user", "session"],
)
def test_a_refusal_names_its_scope_and_subject(guard: Guard, cutoffs: Cutoffs, cutoff: Cutoff, subject: str) -> None:
    cutoffs.advance(cutoff)
    with pytest.raises(Revoked) as refused:
        guard.check(token())
    assert (refused.value.scope, refused.value.subject, refused.value.code) == (cutoff.scope, subject, "token_revoked")


def test_a_new_generation_is_accepted_in_the_same_microsecond(guard: Guard, cutoffs: Cutoffs) -> None:
    cutoffs.advance(Cutoff("user", "u1", 2, NOW_S * 1_000_000, 10**18))
    with pytest.raises(Revoked):
        guard.check(token(user_gen=1))
    assert guard.check(token(user_gen=2)).user_gen == 2


def test_a_foreign_token_from_before_the_horizon_is_asked_about_in_spite_of_the_lease() -> None:
    cutoffs = Cutoffs()
    cutoffs.horizon_us = (NOW_S - 10) * 1_000_000
    guard, asked = guard_for(cutoffs, answer="user")
    assert guard.check(token(**FOREIGN, iat=NOW_S - 9)).sub == "u1"
    assert guard.check(token(iat=NOW_S - 10)).sub == "u1"
    assert asked == []
    with pytest.raises(Revoked):
        guard.check(token(**FOREIGN, iat=NOW_S - 10))
    assert len(asked) == 1


def test_a_foreign_token_that_a_cutoff_covers_is_refused_without_asking() -> None:
    cutoffs = Cutoffs()
    cutoffs.horizon_us = NOW_S * 1_000_000
    cutoffs.advance(Cutoff("user", "u1", 2, NOW_S * 1_000_000, 10**18))
    guard, asked = guard_for(cutoffs)
    with pytest.raises(Revoked):
        guard.check(token(**FOREIGN))
    assert asked == []


def blake2b_is_blocked(*_: Any, **__: Any) -> None:
    raise ValueError("unsupported hash type blake2b (in FIPS mode)")


@pytest.mark.parametrize("in_fips_mode", [False, True])
def test_a_token_is_remembered_by_a_hash_of_256_bits_also_in_fips_mode(
    monkeypatch: pytest.MonkeyPatch, in_fips_mode: bool
) -> None:
    if in_fips_mode:
        monkeypatch.setattr(hashlib, "blake2b", blake2b_is_blocked)
    found = guard_module.hash_function()(b"a token").digest()
    assert (
        found == (hashlib.sha256(b"a token") if in_fips_mode else hashlib.blake2b(b"a token", digest_size=32)).digest()
    )


def test_where_python_has_no_blake2_at_all_it_is_sha_256(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hashlib, "blake2b")
    assert guard_module.hash_function() is hashlib.sha256
