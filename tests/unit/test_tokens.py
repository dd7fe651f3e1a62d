"""Good access tokens: what is in them, what is read from them, and how long they may live."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lastcall.claims import LARGEST, Claims
from lastcall.errors import Expired, Invalid, Malformed, TokenRejected
from lastcall.strict import read_base64url
from lastcall.tokens import KeyRing, generate_signing_key, issue, verify
from tests.unit.by_hand import HS256, NOW_S, SID, SIGNED_IN_S, good_header, good_payload, guard_for, sign, token

RS256 = KeyRing.parse(json.dumps(generate_signing_key("RS256")))


def read(raw: str, keys: KeyRing = HS256, **changes: Any) -> Claims:
    return verify(raw, keys, **{"issuer": "lastcall", "audience": "lastcall", "longest_lifetime_s": 900, **changes})


def test_every_claim_comes_back() -> None:
    assert read(token(roles=["admin", "user"], preferred_username="ann")) == Claims(
        sub="u1",
        sid=SID,
        user_gen=1,
        everyone_gen=1,
        iat=NOW_S,
        exp=NOW_S + 300,
        roles=("admin", "user"),
        client_id="api",
        jti="j1",
        auth_time=SIGNED_IN_S,
        username="ann",
    )
    assert read(token(nbf=NOW_S - 5)).nbf == NOW_S - 5


def test_an_issued_token_names_its_type_algorithm_and_key() -> None:
    header = issue(good_payload(), RS256).split(".")[0]
    assert json.loads(read_base64url(header)) == {"typ": "at+jwt", "alg": "RS256", "kid": RS256.keys[0].kid}


def test_an_issued_token_is_small_enough_to_be_accepted() -> None:
    raw = issue(good_payload(roles=[f"role-{i:058}" for i in range(32)]), RS256)
    assert read(raw, RS256).has_role("role-" + "0" * 57 + "7")


def test_a_token_of_8_kib_is_read_and_a_longer_one_is_not() -> None:
    """`verify` holds it too, for who uses it without a guard."""
    longest = next(raw for size in range(5600, 6200) if len(raw := token(x="x" * size)) >= 8189)
    assert len(longest) <= 8192
    assert read(longest).sub == "u1"
    with pytest.raises(Malformed):
        read(token(x="x" * 6200))


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_the_type_is_compared_without_case(typ: str) -> None:
    assert read(sign(good_payload(), good_header(typ=typ))).sub == "u1"


def test_a_token_that_was_minted_elsewhere_has_no_generations() -> None:
    claims = read(token(user_gen=..., everyone_gen=..., sid=..., roles=..., jti=..., client_id=..., auth_time=...))
    assert (claims.user_gen, claims.everyone_gen, claims.sid, claims.roles) == (None, None, None, ())


def test_the_largest_generation_is_accepted() -> None:
    assert read(token(user_gen=LARGEST, everyone_gen=LARGEST)).user_gen == 2**53 - 1


@pytest.mark.parametrize("aud", ["lastcall", ["lastcall"], ["other", "lastcall"]])
def test_one_of_several_audiences_is_enough(aud: Any) -> None:
    assert read(token(aud=aud)).sub == "u1"


def test_text_beyond_ascii_is_kept() -> None:
    assert read(token(preferred_username="Zoë \N{GRINNING FACE}")).username == "Zoë \N{GRINNING FACE}"


# ------------------------------------------------------------------------------------------------------- lifetimes


def test_a_token_may_live_as_long_as_the_cap_and_no_longer() -> None:
    assert read(token(exp=NOW_S + 900)).exp == NOW_S + 900
    with pytest.raises(Invalid):
        read(token(exp=NOW_S + 901))
    assert read(token(exp=NOW_S + 901), longest_lifetime_s=901).exp == NOW_S + 901


@pytest.mark.parametrize("exp", [NOW_S, NOW_S - 1, 0])
def test_a_token_that_ends_before_it_begins_is_refused(exp: int) -> None:
    with pytest.raises(Invalid):
        read(token(exp=exp))


def test_an_expired_token_is_told_so() -> None:
    guard, _ = guard_for()
    with pytest.raises(Expired):
        guard.check(token(iat=NOW_S - 400, exp=NOW_S - 100))


def test_a_token_from_a_clock_that_is_a_little_fast_is_accepted() -> None:
    guard, _ = guard_for()
    assert guard.check(token(iat=NOW_S + 30, exp=NOW_S + 330)).sub == "u1"


@pytest.mark.parametrize(
    ("iat", "exp"),
    [
        pytest.param(NOW_S + 10**6, NOW_S + 10**6 + 300, id="both far ahead"),
        pytest.param(LARGEST - 300, LARGEST, id="as far ahead as can be written"),
        pytest.param(NOW_S + 800, NOW_S + 1700, id="exp 1700 s ahead, the longest lifetime being 900"),
    ],
)
def test_times_further_ahead_than_the_longest_lifetime_are_refused(iat: int, exp: int) -> None:
    guard, _ = guard_for()
    with pytest.raises(TokenRejected):
        guard.check(token(iat=iat, exp=exp))


# ------------------------------------------------------------------------------------------------- whom it is for


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "elsewhere"},
        {"iss": ...},
        {"iss": ["lastcall"]},
        {"iss": "lastcall "},
        {"aud": "elsewhere"},
        {"aud": ...},
        {"aud": []},
        {"aud": ["elsewhere"]},
        {"aud": "lastcallx"},
        {"aud": {"lastcall": 1}},
        {"aud": ["lastcall", 5]},
    ],
    ids=str,
)
def test_a_token_for_somebody_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        read(token(**changes))


# ------------------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("alg", ["RS256", "EdDSA", "ES256", "HS256"])
def test_another_keys_signature_is_refused(alg: str) -> None:
    mine, other = (generate_signing_key(alg) | {"kid": "same"} for _ in range(2))
    with pytest.raises(Invalid):
        read(issue(good_payload(), KeyRing.parse(json.dumps(other))), KeyRing.parse(json.dumps(mine)))


@pytest.mark.parametrize("alg", ["RS256", "EdDSA", "ES256", "HS256"])
def test_a_signature_of_another_payload_is_refused(alg: str) -> None:
    keys = KeyRing.parse(json.dumps(generate_signing_key(alg)))
    header, _, signature = issue(good_payload(), keys).split(".")
    _, payload, _ = issue(good_payload(roles=["admin"]), keys).split(".")
    with pytest.raises(Invalid):
        read(f"{header}.{payload}.{signature}", keys)


@pytest.mark.parametrize("alg", ["RS256", "EdDSA", "ES256", "HS256"])
@pytest.mark.parametrize("signature", ["AA", "A" * 86, "A" * 342, "_" * 84])
def test_an_invented_signature_is_refused(alg: str, signature: str) -> None:
    keys = KeyRing.parse(json.dumps(generate_signing_key(alg)))
    header, payload, _ = issue(good_payload(), keys).split(".")
    with pytest.raises((Invalid, Malformed)):
        read(f"{header}.{payload}.{signature}", keys)
