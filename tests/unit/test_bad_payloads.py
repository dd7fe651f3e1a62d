"""Payloads that no issuer of ours writes: refused, though truly signed. PyJWT alone accepts many of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lastcall.errors import Invalid, Malformed
from tests.unit.by_hand import NOW_S, SID, good_payload, guard_for, sign, token

TIMES_AND_GENERATIONS = ("iat", "exp", "user_gen", "everyone_gen", "auth_time", "nbf")
NO_WHOLE_NUMBERS = {
    "text": '"1"',
    "text of the right time": f'"{NOW_S}"',
    "true": "true",
    "false": "false",
    "null": "null",
    "list": "[1]",
    "object": "{}",
    "NaN": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "1e400": "1e400",
    "a float": f"{NOW_S}.0",
    "an exponent": "1e9",
    "negative": "-1",
    "minus a lot": "-9007199254740993",
    "2^53": "9007199254740992",
    "2^64": str(2**64),
    "10^30": "1" + "0" * 30,
    "5000 digits": "9" * 5000,
    "leading zero": f"0{NOW_S}",
    "hexadecimal": "0x10",
    "nothing": "",
}
NO_IDS = {
    "empty": '""',
    "null": "null",
    "number": "5",
    "true": "true",
    "list": '["u1"]',
    "object": '{"u1": 1}',
    "too long": json.dumps("x" * 256),
    "NUL": '"u1\\u0000"',
    "a raw NUL": '"u1\x00"',
    "lone surrogate": '"\\udc00"',
    "half a pair": '"\\ud83dx"',
}


def with_raw(name: str, value: str) -> bytes:
    """The good payload, with one member's JSON put in as it is."""
    payload = good_payload(**{name: "HERE"})
    return json.dumps(payload).replace('"HERE"', value).encode("utf-8", "surrogatepass")


def refuse(payload: Any) -> None:
    with pytest.raises((Malformed, Invalid)):
        guard_for()[0].check(sign(payload))


def test_a_payload_put_together_by_hand_can_be_good() -> None:
    assert guard_for()[0].check(sign(with_raw("exp", str(NOW_S + 300)))).exp == NOW_S + 300


@pytest.mark.parametrize("name", TIMES_AND_GENERATIONS)
@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in NO_WHOLE_NUMBERS.items()])
def test_a_time_or_generation_that_is_no_whole_number_is_refused(name: str, value: str) -> None:
    refuse(with_raw(name, value))


@pytest.mark.parametrize("name", ["sub", "sid", "jti", "client_id", "preferred_username"])
@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in NO_IDS.items()])
def test_an_id_that_is_no_short_text_is_refused(name: str, value: str) -> None:
    refuse(with_raw(name, value))


NO_UUIDS = {
    "a name": "s1",
    "capital letters": SID.upper(),
    "no hyphens": SID.replace("-", ""),
    "braces": f"{{{SID}}}",
    "a urn": f"urn:uuid:{SID}",
    "a space after": f"{SID} ",
    "a line end after": f"{SID}\n",
    "a letter too many": f"{SID}0",
    "a letter too few": SID[:-1],
    "no hexadecimal digit": f"{SID[:-1]}g",
    "a digit beyond ASCII": f"{SID[:-1]}\N{ARABIC-INDIC DIGIT ONE}",
}


@pytest.mark.parametrize("sid", [pytest.param(sid, id=name) for name, sid in NO_UUIDS.items()])
def test_a_token_with_generations_needs_the_id_of_a_session_as_postgresql_writes_it(sid: str) -> None:
    """Cutoffs are compared as text: in another spelling the end of the session would not be found."""
    with pytest.raises(Malformed):
        guard_for()[0].check(token(sid=sid))
    assert guard_for()[0].check(token(sid=sid, user_gen=..., everyone_gen=...)).sid == sid, "minted elsewhere"


def test_a_sign_in_after_the_token_was_issued_is_refused() -> None:
    assert guard_for()[0].check(token(auth_time=NOW_S)).auth_time == NOW_S
    with pytest.raises(Malformed):
        guard_for()[0].check(token(auth_time=NOW_S + 1))


@pytest.mark.parametrize("name", ["iat", "exp", "sub", "iss", "aud", "user_gen", "everyone_gen", "sid"])
def test_a_claim_that_is_needed_and_missing_is_refused(name: str) -> None:
    refuse(good_payload(**{name: ...}))


@pytest.mark.parametrize("roles", ["admin", None, 5, True, {"admin": 1}, [5], [None], [["admin"]], ["admin", True]])
def test_roles_that_are_no_list_of_texts_are_refused(roles: Any) -> None:
    refuse(good_payload(roles=roles))


@pytest.mark.parametrize("name", list(good_payload()))
def test_a_claim_that_stands_twice_is_refused(name: str) -> None:
    text = json.dumps(good_payload())
    refuse(text[:-1].encode() + f', "{name}": {json.dumps(good_payload()[name])}}}'.encode())


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(
            json.dumps(good_payload()).encode()[:-1] + b', "x": {"a": 1, "a": 2}}', id="a name twice deep within"
        ),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b', "x": NaN}', id="NaN in an unknown claim"),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b', "x": "\\u0000"}', id="NUL in an unknown claim"),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b', "\\ud800": 1}', id="a lone surrogate as a name"),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b', "x": "\xed\xa0\x80"}', id="an encoded surrogate"),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b', "x": "\xc0\xaf"}', id="an overlong letter"),
        pytest.param(json.dumps(good_payload()).encode()[:-1] + b",}", id="a comma too many"),
        pytest.param(json.dumps(good_payload()).encode() + b"{}", id="an object after it"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(good_payload()).encode(), id="a byte order mark"),
        pytest.param(json.dumps(good_payload()).encode("utf-16"), id="UTF-16"),
        pytest.param(json.dumps(good_payload()).encode("utf-16-le"), id="UTF-16 without a mark"),
        pytest.param(json.dumps(good_payload()).encode("utf-32"), id="UTF-32"),
        pytest.param(b'{"a":' * 1100 + b"1" + b"}" * 1100, id="deep nesting of objects"),
        pytest.param(b"[" * 3000 + b"]" * 3000, id="deep nesting of lists"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'"sub"', id="a text"),
        pytest.param(b"5", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b" ", id="a space"),
        pytest.param(b"\x00", id="a NUL"),
        pytest.param(b"<jwt/>", id="not JSON"),
    ],
)
def test_a_payload_that_is_no_plain_json_object_is_refused(payload: bytes) -> None:
    refuse(payload)


@pytest.mark.parametrize("sub", ["u1", "ünïcode", "x" * 255, "00000000-0000-0000-0000-000000000000"])
def test_a_subject_of_an_allowed_length_is_accepted(sub: str) -> None:
    assert guard_for()[0].check(token(sub=sub)).sub == sub


@pytest.mark.parametrize(
    "changes",
    [
        {"iat": NOW_S + 300, "exp": NOW_S},
        {"iat": NOW_S, "exp": NOW_S},
        {"exp": NOW_S + 10**9},
        {"iat": 0, "exp": NOW_S + 300},
    ],
    ids=str,
)
def test_a_lifetime_that_is_negative_or_too_long_is_refused(changes: dict[str, Any]) -> None:
    refuse(good_payload(**changes))
