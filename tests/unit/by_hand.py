"""Tokens written by hand, with a signature that is right: what no honest library would make."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from lastcall.claims import Claims
from lastcall.clock import boottime_ns
from lastcall.cutoffs import Cutoffs, Scope
from lastcall.guard import Guard
from lastcall.strict import write_base64url
from lastcall.tokens import KeyRing

SECRET = "a secret of the tests, of 32 bytes or more".replace(" ", "-")
HS256 = KeyRing.parse(SECRET)
SECOND_NS = 1_000_000_000
NOW_S = 1_795_000_000
"""The time of all tokens and guards here, however late a test runs."""
SIGNED_IN_S = NOW_S - 3600
SID = "00000000-0000-4000-8000-0000000000a1"
FOREIGN: dict[str, Any] = {"user_gen": ..., "everyone_gen": ...}
"""Changes that make a token one that was minted elsewhere."""


def good_payload(**changes: Any) -> dict[str, Any]:
    """The payload of a good access token; `...` as a value leaves the claim out."""
    payload = {
        "iss": "lastcall",
        "aud": "lastcall",
        "sub": "u1",
        "sid": SID,
        "jti": "j1",
        "iat": NOW_S,
        "exp": NOW_S + 300,
        "auth_time": SIGNED_IN_S,
        "client_id": "api",
        "roles": ["user"],
        "user_gen": 1,
        "everyone_gen": 1,
        **changes,
    }
    return {name: value for name, value in payload.items() if value is not ...}


def good_header(**changes: Any) -> dict[str, Any]:
    header = {"typ": "at+jwt", "alg": "HS256", "kid": HS256.keys[0].kid, **changes}
    return {name: value for name, value in header.items() if value is not ...}


def part(content: Any) -> str:
    """One part of a token: bytes as they are, anything else as JSON."""
    return write_base64url(content if isinstance(content, bytes) else json.dumps(content).encode())


def sign(payload: Any, header: Any = None, *, secret: bytes = SECRET.encode()) -> str:
    """A token with just these parts, and a true HS256 signature over them."""
    signed = f"{part(good_header() if header is None else header)}.{part(payload)}"
    return f"{signed}.{write_base64url(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def token(**changes: Any) -> str:
    return sign(good_payload(**changes))


class RecordingAsker:
    """Answers in the database's place, and writes down what it was asked."""

    def __init__(self, answer: Scope | None = None) -> None:
        self.answer = answer
        self.clock_s = float(NOW_S)
        self.asked: list[Claims] = []

    def refuses(self, claims: Claims) -> Scope | None:
        self.asked.append(claims)
        return self.answer

    def now_s(self) -> float:
        return self.clock_s

    def close(self) -> None:
        """Nothing was opened."""


def guard_for(
    cutoffs: Cutoffs | None = None, *, answer: Scope | None = None, keys: KeyRing = HS256
) -> tuple[Guard, list[Claims]]:
    """A guard with a valid lease, for whom it is NOW_S; and the list of what its asker was asked."""
    cutoffs = Cutoffs() if cutoffs is None else cutoffs
    cutoffs.wall_offset_ns = NOW_S * 1_000_000_000 - boottime_ns()
    cutoffs.renew_lease(boottime_ns() + 600_000_000_000)
    asker = RecordingAsker(answer)
    return Guard(keys, cutoffs, issuer="lastcall", audience="lastcall", asker=asker), asker.asked


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns = 5_000 * SECOND_NS

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)
