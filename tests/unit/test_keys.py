"""`KeyRing`: what it reads, what it refuses, what it never shows."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from lastcall.errors import Invalid
from lastcall.tokens import ALGORITHMS, KeyRing, generate_signing_key, issue, verify
from tests.unit.by_hand import SECRET, good_payload

PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
RSA_2048 = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P_256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
JWKS: dict[str, dict[str, Any]] = {alg: generate_signing_key(alg) for alg in ALGORITHMS}


def pem(key: Any, *, password: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode())


def public_pem(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def check(raw: str, keys: KeyRing) -> str:
    return verify(raw, keys, issuer="lastcall", audience="lastcall", longest_lifetime_s=900).sub


def works(keys: KeyRing) -> bool:
    return check(issue(good_payload(), keys), keys) == "u1"


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_a_jwk_of_each_algorithm_signs_and_verifies(alg: str) -> None:
    keys = KeyRing.parse(json.dumps(JWKS[alg]))
    assert keys.signing_key.alg == alg
    assert works(keys)


@pytest.mark.parametrize(("key", "alg"), [(RSA_2048, "RS256"), (P_256, "ES256"), (ED25519, "EdDSA")])
def test_a_pem_key_signs_and_verifies(key: Any, alg: str) -> None:
    keys = KeyRing.parse(pem(key))
    assert keys.signing_key.alg == alg
    assert works(keys)


def test_an_old_style_rsa_pem_is_read() -> None:
    text = RSA_2048.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    assert works(KeyRing.parse(text))


def test_a_public_pem_verifies_and_cannot_sign() -> None:
    issuer, verifier = KeyRing.parse(pem(RSA_2048)), KeyRing.parse(public_pem(RSA_2048))
    assert check(issue(good_payload(), issuer), verifier) == "u1"
    with pytest.raises(ValueError, match="no private part"):
        issue(good_payload(), verifier)


def test_a_public_jwk_set_verifies_what_its_private_keys_sign() -> None:
    issuer = KeyRing.parse(json.dumps(JWKS["EdDSA"]))
    verifier = KeyRing.parse(json.dumps(issuer.jwks()))
    assert check(issue(good_payload(), issuer), verifier) == "u1"


@pytest.mark.parametrize("text", [json.dumps(JWKS["ES256"]), pem(P_256)], ids=["a JWK", "PEM"])
def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path, text: str) -> None:
    """Some editors write one: what follows it must not become an HS256 secret."""
    file = tmp_path / "keys"
    file.write_text(f"\ufeff{text}", encoding="utf-8")
    for given in (f"\ufeff{text}", f" \ufeff\n{text}", str(file)):
        assert KeyRing.parse(given).signing_key.alg == "ES256"


def test_a_secret_is_the_same_behind_a_byte_order_mark() -> None:
    assert KeyRing.parse(f"\ufeff{SECRET}").signing_key.kid == KeyRing.parse(SECRET).signing_key.kid


PARAMETERS = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
"""What `openssl ecparam -name prime256v1 -genkey` writes before the key."""


def certificate_of(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lastcall.example")])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    draft = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1))
    return draft.sign(key, hashes.SHA256())


def test_blocks_of_a_pem_that_are_no_keys_are_skipped() -> None:
    old_style = P_256.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()
    certificate = certificate_of(P_256).public_bytes(Encoding.PEM).decode()
    for text in (PARAMETERS + old_style, pem(P_256) + certificate, certificate + PARAMETERS + public_pem(P_256)):
        assert [key.alg for key in KeyRing.parse(text).keys] == ["ES256"]
    for text in (PARAMETERS, certificate):
        with pytest.raises(ValueError, match="no key"):
            KeyRing.parse(text)


def base64_in(text: str) -> str:
    """What stands between the first and the last line of a PEM."""
    return "\n".join(text.strip().splitlines()[1:-1])


PUBLIC_JWK = json.dumps(KeyRing.parse(json.dumps(JWKS["RS256"])).jwks()["keys"][0], separators=(",", ":"))
NO_SECRETS: dict[str, str] = {
    "a public key in lines": base64_in(public_pem(RSA_2048)),
    "a public key in one line": base64_in(public_pem(RSA_2048)).replace("\n", ""),
    "a public key in base64url": base64_in(public_pem(P_256))
    .replace("\n", "")
    .translate(str.maketrans("+/", "-_", "=")),
    "a short public key": base64_in(public_pem(ED25519)),
    "a public key in quotes": f'"{base64_in(public_pem(ED25519))}"',
    "a private key": base64_in(pem(P_256)),
    "a certificate": base64_in(certificate_of(P_256).public_bytes(Encoding.PEM).decode()),
    "base64 of PEM": base64.b64encode(public_pem(RSA_2048).encode()).decode(),
    "a JWK in quotes": f"'{PUBLIC_JWK}'",
    "a JWK as JSON in JSON": json.dumps(PUBLIC_JWK),
    "a JWK behind a secret": f"{SECRET} {PUBLIC_JWK}",
    "a public key behind a secret": f"{SECRET} {base64_in(public_pem(ED25519))}",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in NO_SECRETS.items()])
def test_a_public_key_is_never_taken_for_a_secret(text: str) -> None:
    """Everybody has it, and could sign with it."""
    with pytest.raises(ValueError, match="is no secret; give the PEM or JWK as it stands"):
        KeyRing.parse(text)


@pytest.mark.parametrize("length", [32, 33, 48, 64])
def test_random_bytes_in_base64_or_hex_are_a_secret(length: int) -> None:
    for _ in range(200):
        data = b"s" + secrets.token_bytes(length - 1)  # a text that begins with / names a file
        for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode(), data.hex()):
            assert KeyRing.parse(text).signing_key.alg == "HS256"


def test_a_key_ring_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": list(JWKS.values())}))
    assert len(KeyRing.parse(f" {file}\n").keys) == 4


@pytest.mark.parametrize("name", ["keys.json", "./keys.json", "../here/keys.json", "~/keys.json"])
def test_the_name_of_a_file_may_be_relative_or_below_ones_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "keys.json").write_text(json.dumps(JWKS["ES256"]))
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    if name == "keys.json":
        with pytest.raises(ValueError, match=r"must begin with /, \./, \.\./ or ~/ to be read"):
            KeyRing.parse(name)
    else:
        assert KeyRing.parse(name).signing_key.alg == "ES256"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/lastcall/keys/signing_key_of_2026.pem",
        "../secrets/of-the-service/lastcall/keys.json",
        "~/secrets/of-the-service/lastcall/keys.json",
        "~nobody-of-this-name/secrets/lastcall/keys",
        "keys/of-the-service/lastcall/signing.pem",
        "keys/of-the-service/lastcall/SIGNING.KEY",
        SECRET + " keys/of-the-service/lastcall/signing.jwk",
        "/no\0file",
    ],
)
def test_a_file_that_is_not_there_is_no_secret(name: str) -> None:
    """A mistyped path must not become an HS256 secret that anybody can guess."""
    with pytest.raises(ValueError, match="file"):
        KeyRing.parse(name)


def test_a_file_that_is_there_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a-file-of-32-characters-and-more-without-an-end"
    (tmp_path / name).write_text(SECRET)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="looks like the name of a file"):
        KeyRing.parse(name)
    assert works(KeyRing.parse(f"./{name}"))


# -------------------------------------------------------------------------------------------------------- rotation


ROTATIONS = {
    "jwk set": (json.dumps({"keys": [JWKS["RS256"]]}), json.dumps({"keys": [JWKS["ES256"], JWKS["RS256"]]})),
    "list of jwks": (json.dumps([JWKS["HS256"]]), json.dumps([JWKS["EdDSA"], JWKS["HS256"]])),
    "pem blocks": (pem(RSA_2048), pem(P_256) + "\n" + pem(RSA_2048)),
    "secrets": (SECRET, SECRET.swapcase() + " \n" + SECRET),
}


@pytest.mark.parametrize(("before", "after"), [pytest.param(*texts, id=name) for name, texts in ROTATIONS.items()])
def test_after_a_rotation_the_first_key_signs_and_the_old_one_still_verifies(before: str, after: str) -> None:
    old, both = KeyRing.parse(before), KeyRing.parse(after)
    assert check(issue(good_payload(), old), both) == "u1"
    new = issue(good_payload(), both)
    assert check(new, both) == "u1"
    with pytest.raises(Invalid):
        check(new, old)


@pytest.mark.parametrize(
    "text",
    [json.dumps(JWKS["ES256"]), json.dumps(JWKS["HS256"]), pem(ED25519), SECRET],
    ids=["a JWK of ES256", "a JWK of HS256", "PEM", "a secret"],
)
def test_a_key_keeps_its_kid_from_start_to_start(text: str) -> None:
    assert KeyRing.parse(text).keys[0].kid == KeyRing.parse(text).keys[0].kid != ""


def test_a_kid_that_was_given_is_kept() -> None:
    keys = KeyRing.parse(json.dumps(JWKS["ES256"] | {"kid": "2026-11"}))
    assert keys.keys[0].kid == "2026-11"
    assert keys.jwks()["keys"][0]["kid"] == "2026-11"


# --------------------------------------------------------------------------------------------------- what is shown


def test_the_public_set_has_no_private_member_and_no_shared_secret() -> None:
    keys = KeyRing.parse(json.dumps({"keys": list(JWKS.values())}))
    shown = keys.jwks()["keys"]
    assert [jwk["alg"] for jwk in shown] == ["RS256", "EdDSA", "ES256"]
    assert not PRIVATE & set().union(*shown)
    written = json.dumps(shown) + repr(keys.keys)
    for jwk in JWKS.values():
        for name in PRIVATE & jwk.keys():
            assert jwk[name] not in written


BAD_KEYS: dict[str, str] = {
    "nothing": "",
    "white space": " \n ",
    "a secret of 31 bytes": "Kx7" * 10 + "K",
    "a second secret that is short": SECRET + " Kx7Kx7Kx7",
    "an empty set": '{"keys": []}',
    "no JSON": '{"kty": "oct", "k": "Kx7Kx7Kx7',
    "JSON that names a member twice": '{"kty": "oct", "k": "Kx7Kx7Kx7", "k": "Kx7Kx7Kx7"}',
    "keys that are no list": '{"keys": "Kx7Kx7Kx7"}',
    "a list of no keys": '["Kx7Kx7Kx7"]',
    "deep nesting": "[" * 100_000,
    "no kty": '{"k": "Kx7Kx7Kx7"}',
    "a kty that is a list": '{"kty": ["oct"], "k": "Kx7Kx7Kx7"}',
    "a kty that is an object": '{"kty": {}, "crv": [], "k": "Kx7Kx7Kx7"}',
    "an unknown curve": '{"kty": "EC", "crv": "secp256k1", "x": "Kx7Kx7Kx7", "y": "AQ", "d": "Kx7Kx7Kx7"}',
    "an alg that does not fit": json.dumps(JWKS["RS256"] | {"alg": "HS256"}),
    "alg none": json.dumps(JWKS["HS256"] | {"alg": "none"}),
    "a k that is no text": '{"kty": "oct", "k": 5}',
    "a k with padding": '{"kty": "oct", "k": "' + "Kx7Kx7Kx" * 6 + '="}',
    "a k of 8 bytes": '{"kty": "oct", "k": "Kx7Kx7Kx7"}',
    "an RSA JWK of one byte": '{"kty": "RSA", "n": "AQ", "e": "AQAB", "d": "Kx7Kx7Kx7"}',
    "an RSA JWK cut short": json.dumps(JWKS["RS256"] | {"p": "Kx7Kx7Kx7"}),
    "a P-256 point that is not on the curve": json.dumps(JWKS["ES256"] | {"x": "Kx7Kx7Kx7"}),
    "the same kid twice": json.dumps([JWKS["ES256"] | {"kid": "a"}, JWKS["EdDSA"] | {"kid": "a"}]),
    "an empty kid": json.dumps(JWKS["ES256"] | {"kid": ""}),
    "a kid that is a number": json.dumps(JWKS["ES256"] | {"kid": 5}),
    "a kid of 129 characters": json.dumps(JWKS["ES256"] | {"kid": "a" * 129}),
    "a PEM of RSA with 1024 bits": pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),  # noqa: S505
    "a PEM of P-384": pem(ec.generate_private_key(ec.SECP384R1())),
    "a PEM of Ed448": pem(ed448.Ed448PrivateKey.generate()),
    "a PEM with a password": pem(P_256, password=b"Kx7Kx7Kx7"),
    "a PEM without its end": pem(P_256)[:80],
    "a PEM with noise in it": "-----BEGIN PRIVATE KEY-----\nKx7Kx7Kx7!\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in BAD_KEYS.items()])
def test_a_bad_key_is_refused_in_one_line_that_does_not_repeat_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        KeyRing.parse(text)
    message = str(refused.value)
    assert message and "\n" not in message
    assert "Kx7" not in message
    assert not any(line in message for line in text.splitlines() if len(line) > 8)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None, "a trace would show what was read"


@pytest.mark.parametrize("alg", ["none", "HS512", "rs256", ""])
def test_no_key_is_made_for_another_algorithm(alg: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        generate_signing_key(alg)


def test_two_keys_made_in_a_row_differ() -> None:
    for alg in ALGORITHMS:
        assert generate_signing_key(alg) != generate_signing_key(alg)
