"""Every bad token of the list is refused as malformed or invalid, never by another error: most are truly signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lastcall.errors import Invalid, Malformed, Missing
from lastcall.guard import Guard
from lastcall.strict import write_base64url
from lastcall.tokens import LARGEST_TOKEN, KeyRing, generate_signing_key, issue
from tests.unit.by_hand import HS256, good_header, good_payload, guard_for, part, sign, token

GOOD = token()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


def refuse(raw: str, guard: Guard | None = None) -> None:
    with pytest.raises((Malformed, Invalid)):
        (guard or guard_for()[0]).check(raw)


def test_the_token_that_all_of_these_are_made_of_is_good() -> None:
    assert guard_for()[0].check(GOOD).sub == "u1"
    assert (
        guard_for()[0].check(sign(json.dumps(good_payload()).encode(), json.dumps(good_header()).encode())).sub == "u1"
    )


@pytest.mark.parametrize("raw", [None, ""])
def test_no_token_is_missing(raw: str | None) -> None:
    with pytest.raises(Missing):
        guard_for()[0].check(raw)


# ----------------------------------------------------------------------------------------------------- the spelling


SPELLINGS = {
    "one part": HEADER,
    "two parts": f"{HEADER}.{PAYLOAD}",
    "an empty third part": f"{HEADER}.{PAYLOAD}.",
    "an empty second part": f"{HEADER}..{SIGNATURE}",
    "an empty first part": f".{PAYLOAD}.{SIGNATURE}",
    "four parts": f"{GOOD}.{SIGNATURE}",
    "five parts": f"{GOOD}.{SIGNATURE}.{SIGNATURE}",
    "dots alone": "..",
    "a space before": f" {GOOD}",
    "a space after": f"{GOOD} ",
    "a line end after": f"{GOOD}\n",
    "a tab within": f"{HEADER}.\t{PAYLOAD}.{SIGNATURE}",
    "a NUL after": f"{GOOD}\x00",
    "padding after the signature": f"{GOOD}=",
    "padding after the payload": f"{HEADER}.{PAYLOAD}{'=' * (-len(PAYLOAD) % 4 or 4)}.{SIGNATURE}",
    "base64 that is not base64url": f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}+",
    "letters beyond ASCII": f"{HEADER}.{PAYLOAD}.é{SIGNATURE[1:]}",
    "a lone surrogate": f"{HEADER}.{PAYLOAD}.\ud800{SIGNATURE[1:]}",
    "wide letters that look like base64": f"{HEADER}.{PAYLOAD}.\uff21{SIGNATURE[1:]}",
    "UTF-16": GOOD.encode("utf-16-le").decode("latin-1"),
    "a byte order mark before": "\ufeff" + GOOD,
    "Bearer before": f"Bearer {GOOD}",
    "JSON serialization": json.dumps({"protected": HEADER, "payload": PAYLOAD, "signature": SIGNATURE}),
    "one byte more than allowed": "A" * (LARGEST_TOKEN + 1),
    "a header of 1 MB": sign(good_payload(), good_header(kid="k" * 10**6)),
    "a payload of 1 MB": token(client_id="c" * 10**6),
    "a signature of 1 MB": f"{HEADER}.{PAYLOAD}.{'A' * 10**6}",
}


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in SPELLINGS.items()])
def test_another_spelling_is_malformed(raw: str) -> None:
    with pytest.raises(Malformed):
        guard_for()[0].check(raw)


def test_a_signature_has_one_spelling() -> None:
    """The last letter carries bits that belong to no byte: other letters would decode to the same signature."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twins = [
        GOOD[:-1] + letter
        for letter in letters
        if letter != GOOD[-1] and base64.urlsafe_b64decode(f"{SIGNATURE[:-1]}{letter}=") == _bytes(SIGNATURE)
    ]
    assert twins
    for raw in twins:
        refuse(raw)


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_size_is_looked_at_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, _ = guard_for()
    monkeypatch.setattr(guard, "_verify", lambda *_: pytest.fail("looked into it"))
    with pytest.raises(Malformed):
        guard.check("A" * LARGEST_TOKEN + ".A.A")


# ------------------------------------------------------------------------------------------------------ the header


HEADERS: dict[str, Any] = {
    **{
        f"alg {alg!r}": good_header(alg=alg) for alg in ("none", "None", "NONE", "", "hs256", "HS512", "RS256", "ES256")
    },
    **{f"alg {alg!r}": good_header(alg=alg) for alg in (None, [], ["HS256"], {}, 5, True, ...)},
    **{f"typ {typ!r}": good_header(typ=typ) for typ in ("JWT", "rt+jwt", "id+jwt", "at+jwt ", "", None, 5, [], ...)},
    **{f"kid {kid!r}": good_header(kid=kid) for kid in ("unknown", "", "../../dev/null", "' OR 1=1", "a\u0000b")},
    **{f"kid {kid!r}": good_header(kid=kid) for kid in (None, 5, [], {}, [HS256.keys[0].kid], ...)},
    "a long kid": good_header(kid="k" * 5000),
    "an embedded key": good_header(jwk=generate_signing_key("HS256")),
    "jku": good_header(jku="https://example.org/jwks.json"),
    "x5u": good_header(x5u="https://example.org/x5.pem"),
    "x5c": good_header(x5c=["MIIB"]),
    "crit": good_header(crit=["exp"]),
    "an empty crit": good_header(crit=[]),
    "b64 false": good_header(b64=False, crit=["b64"]),
    "zip": good_header(zip="DEF"),
    "cty": good_header(cty="JWT"),
    "an unknown member": good_header(x="y"),
    "an empty object": {},
    "a list": ["at+jwt"],
    "a string": "at+jwt",
    "a number": 5,
    "null": None,
    "not JSON": b"{typ: at+jwt}",
    "an empty text": b" ",
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(good_header()).encode(),
    "UTF-16": json.dumps(good_header()).encode("utf-16"),
    "UTF-32": json.dumps(good_header()).encode("utf-32"),
    "bytes that are no UTF-8": json.dumps(good_header()).encode()[:-1] + b', "x": "\xff"}',
    "a NUL after it": json.dumps(good_header()).encode() + b"\x00",
    "a second object after it": json.dumps(good_header()).encode() * 2,
    "deep nesting": b"[" * 5000,
    "a name twice": json.dumps(good_header()).encode()[:-1] + b', "alg": "HS256"}',
    "a lone surrogate": json.dumps(good_header()).encode()[:-1] + b', "kid": "\\ud800"}',
}


@pytest.mark.parametrize("header", [pytest.param(header, id=name) for name, header in HEADERS.items()])
def test_a_bad_header_is_refused_though_its_signature_is_right(header: Any) -> None:
    refuse(sign(good_payload(), header if isinstance(header, bytes) else json.dumps(header).encode()))


@pytest.mark.parametrize("alg", ["none", "None", "nOnE"])
def test_a_token_without_a_signature_is_refused(alg: str) -> None:
    refuse(f"{part(good_header(alg=alg))}.{part(good_payload())}.")
    refuse(f"{part(good_header(alg=alg))}.{part(good_payload())}.{SIGNATURE}")


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("claimed", ["HS256", None])
def test_a_public_key_is_no_shared_secret(alg: str, encoding: Encoding, claimed: str | None) -> None:
    keys = KeyRing.parse(json.dumps(generate_signing_key(alg)))
    public = keys.keys[0].verifying.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    header = good_header(alg=claimed or alg, kid=keys.keys[0].kid)
    guard, _ = guard_for(keys=keys)
    assert guard.check(issue(good_payload(), keys)).sub == "u1"
    refuse(sign(good_payload(), header, secret=public), guard)
    refuse(sign(good_payload(), header, secret=json.dumps(keys.jwks()["keys"][0]).encode()), guard)


def test_one_rings_two_algorithms_do_not_mix() -> None:
    """The kid of the shared secret with the other key's algorithm, and the other way round."""
    rsa, secret = generate_signing_key("RS256"), generate_signing_key("HS256")
    keys = KeyRing.parse(json.dumps([rsa, secret]))
    shared = _bytes(secret["k"])
    guard, _ = guard_for(keys=keys)
    good = good_header(kid=keys.keys[1].kid)
    assert guard.check(sign(good_payload(), good, secret=shared)).sub == "u1"
    refuse(sign(good_payload(), good_header(kid=keys.keys[0].kid), secret=shared), guard)
    refuse(sign(good_payload(), good_header(kid=keys.keys[1].kid, alg="RS256"), secret=shared), guard)


def test_a_header_that_was_accepted_once_does_not_vouch_for_another_signature() -> None:
    guard, _ = guard_for()
    guard.check(GOOD)
    forged = f"{HEADER}.{part(good_payload(roles=['admin']))}"
    refuse(f"{forged}.{SIGNATURE}", guard)
    other = write_base64url(hmac.new(b"another secret", forged.encode(), hashlib.sha256).digest())
    refuse(f"{forged}.{other}", guard)


def test_a_token_that_is_remembered_does_not_vouch_for_its_parts_under_another_signature() -> None:
    guard, _ = guard_for()
    guard.check(GOOD)
    refuse(f"{HEADER}.{PAYLOAD}.{write_base64url(bytes(32))}", guard)
