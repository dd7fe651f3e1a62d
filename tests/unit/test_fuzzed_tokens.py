"""Whatever is sent as a token: it is accepted, or a TokenRejected is raised, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from lastcall.errors import TokenRejected
from lastcall.tokens import KeyRing, generate_signing_key, issue
from tests.unit.by_hand import good_header, good_payload, guard_for, sign, token

ALL = KeyRing.parse(json.dumps([generate_signing_key(alg) for alg in ("RS256", "EdDSA", "ES256", "HS256")]))
GOOD = {key.alg: issue(good_payload(), KeyRing([key])) for key in ALL.keys}

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
edits = st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from("!Aa0-_.=+/ \x00é")), min_size=1, max_size=4)


def outcome(raw: str, keys: KeyRing | None = None) -> str:
    guard, _ = guard_for(keys=keys) if keys else guard_for()
    try:
        return guard.check(raw).sub
    except TokenRejected as error:
        return error.code


@given(st.one_of(st.text(), st.text("Aa0-_.="), st.binary().map(lambda data: data.decode("latin-1"))))
@example("\ud800")
@example("A.A.A")
def test_any_text_is_refused_and_breaks_nothing(raw: str) -> None:
    assert outcome(raw) in ("token_missing", "token_malformed", "token_invalid")


@given(st.sampled_from(sorted(GOOD)), edits)
def test_a_good_token_with_any_letter_changed_is_refused(alg: str, changes: list[tuple[int, str]]) -> None:
    letters = list(GOOD[alg])
    for place, letter in changes:
        letters[place % len(letters)] = letter
    raw = "".join(letters)
    assert outcome(raw, ALL) == "u1" if raw == GOOD[alg] else outcome(raw, ALL) in ("token_malformed", "token_invalid")


@given(st.sampled_from(sorted(GOOD)), st.integers(0, 2**16))
def test_a_good_token_cut_short_is_refused(alg: str, length: int) -> None:
    raw = GOOD[alg][: length % len(GOOD[alg])]
    assert outcome(raw, ALL) in ("token_missing", "token_malformed", "token_invalid")


@given(st.sampled_from(sorted(good_payload())), json_values)
def test_any_value_in_a_signed_claim_breaks_nothing(name: str, value: Any) -> None:
    assert isinstance(outcome(sign(good_payload(**{name: value}))), str)


@given(st.sampled_from(["typ", "alg", "kid", "crit", "x"]), json_values)
def test_any_other_value_in_a_signed_header_is_refused(name: str, value: Any) -> None:
    raw = sign(good_payload(), good_header(**{name: value}))
    assert outcome(raw) in ("token_malformed", "token_invalid")


@given(st.one_of(json_values, st.binary(max_size=200)))
def test_any_signed_payload_breaks_nothing(payload: Any) -> None:
    assert outcome(sign(payload)) in ("token_malformed", "token_invalid")


def test_the_good_tokens_of_the_fuzzing_are_good() -> None:
    assert all(outcome(raw, ALL) == "u1" for raw in GOOD.values())
    assert outcome(token()) == "u1"
