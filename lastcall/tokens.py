"""Signing keys and access tokens: `KeyRing`, `issue()`, `verify()`. It knows nothing of revocations.

Each key is bound to one algorithm (RFC 8725, section 3.1), and the token type is checked (section 3.11).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509 import load_der_x509_certificate
from jwt.algorithms import Algorithm

from lastcall.claims import Claims, parse
from lastcall.errors import Invalid, Malformed
from lastcall.strict import read_base64url, read_json, write_base64url

LARGEST_TOKEN = 8192
"""Longer tokens are refused before anything in them is looked at (bytes)."""

ALGORITHMS = ("RS256", "EdDSA", "ES256", "HS256")
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_PATH_BEGINS, _PATH_ENDS = ("/", "./", "../", "~"), (".json", ".pem", ".key", ".jwk", ".jwks")
_ALGORITHM_OF = {"RSA": "RS256", "EC P-256": "ES256", "OKP Ed25519": "EdDSA", "oct": "HS256"}
_THUMBPRINT_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}


@dataclass(frozen=True, slots=True)
class Key:
    """One key and the one algorithm it is used with. `signing` is None where only the public part is known."""

    kid: str
    alg: str
    verifying: Any = field(repr=False)
    signing: Any = field(repr=False)
    public_jwk: dict[str, Any] | None = field(repr=False)
    algorithm: Algorithm = field(repr=False)


class KeyRing:
    """The keys by `kid`. The first one signs; the others still verify, so that a rotation overlaps.

    Raises ValueError for no key at all, and for two of the same `kid`.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)
        self._by_kid = {key.kid: key for key in self.keys}
        self._by_header: dict[str, Key] = {}
        if not self.keys:
            raise ValueError("no key")
        if len(self._by_kid) != len(self.keys):
            raise ValueError("two keys have the same kid")

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read a JWK, a JWK set, PEM blocks, or HS256 secrets separated by white space; or the name of a file of them,
        which begins with `/`, `./`, `../` or `~`.

        Raises ValueError, whose message never holds key material.
        """
        text = _without_mark(text)
        if text.startswith(_PATH_BEGINS) and len(text) < 4096:
            try:  # a path that was mistyped must not become a secret that can be guessed
                text = _without_mark(Path(text).expanduser().read_text(encoding="utf-8"))
            except (OSError, RuntimeError, ValueError):
                raise ValueError("a file that cannot be read") from None
        if text.startswith(("{", "[")):
            try:
                found = read_json(text)
            except ValueError:
                raise ValueError("not valid JSON") from None
            jwks = found.get("keys", [found]) if isinstance(found, dict) else found
            if not isinstance(jwks, list):
                raise ValueError("not a JWK set")
            keys = [_key_from_jwk(jwk) for jwk in jwks]
        elif text.startswith("-----BEGIN"):
            # A certificate may stand beside the key, and `openssl ecparam -genkey` puts the curve's name before it.
            blocks = re.findall(r"-----BEGIN [A-Z ]*KEY-----.*?-----END [A-Z ]*KEY-----", text, re.DOTALL)
            keys = [_key_from_pem(block) for block in blocks]
        else:
            words = text.split()
            if any(map(_is_another_key, ["".join(words), *words])):
                raise ValueError(
                    "a key taken out of its PEM, or encoded, is no secret; give the PEM or JWK as it stands"
                )
            keys = [_key_from_secret(word) for word in words]
        return cls(keys)

    @property
    def signing_key(self) -> Key:
        """The first key. Raises ValueError when only its public part is known."""
        if self.keys[0].signing is None:
            raise ValueError("the first key has no private part, so it cannot sign")
        return self.keys[0]

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """The public keys as a JWK set (RFC 7517, section 5). A shared secret is never in it."""
        return {"keys": [key.public_jwk for key in self.keys if key.public_jwk is not None]}

    def key_for(self, header: str) -> Key:
        """The key that a token's first part names, after a strict look at that part. Raises Malformed or Invalid."""
        key = self._by_header.get(header)
        if key is None:
            key = self._read_header(header)
            if len(self._by_header) < 64:
                self._by_header[header] = key
        return key

    def _read_header(self, header: str) -> Key:
        try:
            fields = read_json(read_base64url(header))
        except ValueError:
            raise Malformed from None
        if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
            raise Malformed
        # No jwk, jku, x5u, crit, b64, zip: nothing is fetched or skipped.
        if not fields.keys() <= {"typ", "alg", "kid"}:
            raise Invalid
        if fields.get("typ", "").lower() not in ("at+jwt", "application/at+jwt"):
            raise Invalid
        key = self._by_kid.get(fields.get("kid", ""))
        if key is None or fields.get("alg") != key.alg:
            raise Invalid
        return key


def issue(payload: dict[str, Any], keys: KeyRing) -> str:
    """Sign an access token (RFC 9068, section 2.1) with the first key. Raises ValueError when that can't sign."""
    key = keys.signing_key
    headers = {"typ": "at+jwt", "kid": key.kid}
    return jwt.encode(payload, key.signing, algorithm=key.alg, headers=headers)


def verify(raw: str, keys: KeyRing, *, issuer: str, audience: str, longest_lifetime_s: int) -> Claims:
    """Check form, type, algorithm, key, signature and claims of a token; not its expiry, not its revocation.

    Raises Malformed or Invalid.
    """
    if len(raw) > LARGEST_TOKEN or _SHAPE.fullmatch(raw) is None:
        raise Malformed
    signed, _, signature = raw.rpartition(".")
    header, _, payload = signed.partition(".")
    key = keys.key_for(header)
    try:
        if not key.algorithm.verify(signed.encode("ascii"), key.verifying, read_base64url(signature)):
            raise Invalid
        content = read_json(read_base64url(payload))
    except ValueError:
        raise Malformed from None
    return parse(content, issuer=issuer, audience=audience, longest_lifetime_s=longest_lifetime_s)


def generate_signing_key(alg: str) -> dict[str, Any]:
    """A new private JWK for one of ALGORITHMS. Raises ValueError for any other."""
    if alg == "HS256":
        return {"kty": "oct", "k": write_base64url(secrets.token_bytes(32)), "alg": alg}
    private: Any
    if alg == "RS256":
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif alg == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    elif alg == "EdDSA":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        raise ValueError(f"unknown algorithm; allowed are {', '.join(ALGORITHMS)}")
    jwk: dict[str, Any] = dict(jwt.get_algorithm_by_name(alg).to_jwk(private, as_dict=True))
    jwk.pop("key_ops", None)
    return jwk | {"alg": alg, "kid": _thumbprint(jwk)}


def _thumbprint(jwk: dict[str, Any]) -> str:
    """The `kid` of a key that was given none (RFC 7638)."""
    members = {name: jwk[name] for name in _THUMBPRINT_MEMBERS[jwk["kty"]]}
    text = json.dumps(members, separators=(",", ":"), sort_keys=True)
    return write_base64url(hashlib.sha256(text.encode()).digest())


def _key_from_jwk(jwk: Any) -> Key:
    if not isinstance(jwk, dict):
        raise ValueError("a key of the set is no JWK")
    alg = _ALGORITHM_OF.get(f"{jwk.get('kty')} {jwk.get('crv', '')}".strip())
    if alg is None or jwk.get("alg", alg) != alg:
        raise ValueError("a key's type or algorithm is not one of " + ", ".join(ALGORITHMS))
    if alg == "HS256":
        try:
            secret = read_base64url(jwk.get("k", ""))
        except (ValueError, TypeError):
            raise ValueError("the k of a JWK is not base64url") from None
        return _key_from_bytes(secret, jwk.get("kid"))
    algorithm = jwt.get_algorithm_by_name(alg)
    try:
        loaded = algorithm.from_jwk(jwk)
    except Exception:
        raise ValueError("a JWK that cannot be read") from None
    return _key_from_loaded(loaded, alg, jwk.get("kid"))


def _key_from_pem(block: str) -> Key:
    load = load_pem_public_key if "PUBLIC KEY" in block else lambda data: load_pem_private_key(data, password=None)
    try:
        loaded: Any = load(block.encode())
    except Exception:
        raise ValueError("a PEM key that cannot be read, or is encrypted") from None
    if isinstance(loaded, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        alg = "RS256"
    elif (
        isinstance(loaded, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) and loaded.curve.name == "secp256r1"
    ):
        alg = "ES256"
    elif isinstance(loaded, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        alg = "EdDSA"
    else:
        raise ValueError("a PEM key of a type that is not supported")
    return _key_from_loaded(loaded, alg, None)


def _key_from_loaded(loaded: Any, alg: str, kid: object) -> Key:
    private = loaded if hasattr(loaded, "private_bytes") else None
    public = loaded.public_key() if private is not None else loaded
    if alg == "RS256" and public.key_size < 2048:
        raise ValueError("an RSA key of less than 2048 bits")
    algorithm = jwt.get_algorithm_by_name(alg)
    jwk: dict[str, Any] = dict(algorithm.to_jwk(public, as_dict=True))
    jwk.pop("key_ops", None)
    name = _checked_kid(kid) or _thumbprint(jwk)
    return Key(name, alg, public, private, jwk | {"kid": name, "alg": alg, "use": "sig"}, algorithm)


def _without_mark(text: str) -> str:
    """Without white space around it, and without the byte order mark that some editors write."""
    return text.strip().removeprefix("\ufeff").lstrip()


def _is_another_key(text: str) -> bool:
    """Whether it begins like JSON, or is base64 of PEM, of a key as it stands in PEM, or of a certificate. A public key
    that was taken for an HS256 secret would let anybody sign (RFC 8725, section 2.1)."""
    text = text.strip("'\"")
    if text.startswith(("{", "[")):
        return True
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return False
    if data.startswith(b"-----BEGIN"):
        return True
    for load in (load_der_public_key, _load_der_private_key, load_der_x509_certificate):
        with suppress(Exception):
            load(data)
            return True
    return False


def _load_der_private_key(data: bytes) -> Any:
    return load_der_private_key(data, password=None)


def _key_from_secret(text: str) -> Key:
    if text.lower().endswith(_PATH_ENDS) or os.path.exists(text):
        raise ValueError("it looks like the name of a file, which must begin with /, ./, ../ or ~/ to be read")
    return _key_from_bytes(text.encode(), None)


def _key_from_bytes(secret: bytes, kid: object) -> Key:
    if len(secret) < 32:
        raise ValueError("an HS256 secret of less than 32 bytes")
    # Not the RFC 7638 thumbprint, which would publish a plain hash of the secret.
    name = _checked_kid(kid) or write_base64url(hmac.digest(secret, b"lastcall kid", "sha256")[:16])
    return Key(name, "HS256", secret, secret, None, jwt.get_algorithm_by_name("HS256"))


def _checked_kid(kid: object) -> str | None:
    if kid is None:
        return None
    if not isinstance(kid, str) or not 1 <= len(kid) <= 128:
        raise ValueError("a kid that is not a text of 1 to 128 characters")
    return kid
