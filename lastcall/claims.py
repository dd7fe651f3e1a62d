"""Claims: what a verified access token says, parsed strictly. It knows no keys, no clock and no revocations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from lastcall.errors import Invalid, Malformed

LARGEST = 2**53 - 1
"""The largest whole number that every JSON reader keeps exactly (RFC 8259, section 6)."""
LONGEST_LIFETIME_S = 900
"""The most that `exp - iat` may be where nothing else is asked for (seconds)."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def is_uuid(text: str | None) -> TypeGuard[str]:
    """Whether it is a UUID just as PostgreSQL writes it: cutoffs are compared as text."""
    return text is not None and _UUID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of an access token (RFC 9068, section 2.2). Times are whole seconds since 1970 UTC.

    `username` is `preferred_username`. Generations are both None in a token that was minted elsewhere, whose `sid`, if
    it has one, need not be a session of ours.
    """

    sub: str
    sid: str | None
    user_gen: int | None
    everyone_gen: int | None
    iat: int
    exp: int
    roles: tuple[str, ...] = ()
    client_id: str = ""
    jti: str = ""
    auth_time: int | None = None
    username: str = ""
    nbf: int | None = None

    def has_role(self, role: str) -> bool:
        return role in self.roles


def parse(payload: Any, *, issuer: str, audience: str, longest_lifetime_s: int) -> Claims:
    """Check the types, ranges, issuer and audience of a payload whose signature was verified.

    Generations come both or not at all, and with the id of a session of ours: a token without them was minted
    elsewhere and is compared by time.
    Raises Malformed for what no issuer of ours writes, Invalid for what is meant for somebody else.
    """
    if not isinstance(payload, dict):
        raise Malformed
    iat, exp = _whole(payload, "iat"), _whole(payload, "exp")
    if not iat < exp <= iat + longest_lifetime_s:
        raise Invalid("The token's lifetime is longer than this service allows, or negative: sign in again.")
    if ("user_gen" in payload) != ("everyone_gen" in payload):
        raise Malformed
    generations = (_whole(payload, "user_gen"), _whole(payload, "everyone_gen")) if "user_gen" in payload else None
    sid = _text(payload, "sid") if generations is not None or "sid" in payload else None
    if payload.get("iss") != issuer or not _is_for(payload.get("aud"), audience):
        raise Invalid
    auth_time = _whole(payload, "auth_time") if "auth_time" in payload else None
    if auth_time is not None and auth_time > iat:
        raise Malformed
    if generations is not None and not is_uuid(sid):
        raise Malformed
    return Claims(
        sub=_text(payload, "sub"),
        sid=sid,
        user_gen=generations[0] if generations else None,
        everyone_gen=generations[1] if generations else None,
        iat=iat,
        exp=exp,
        roles=_roles(payload.get("roles", [])),
        client_id=_text(payload, "client_id") if "client_id" in payload else "",
        jti=_text(payload, "jti") if "jti" in payload else "",
        auth_time=auth_time,
        username=_text(payload, "preferred_username") if "preferred_username" in payload else "",
        nbf=_whole(payload, "nbf") if "nbf" in payload else None,
    )


def _whole(payload: dict[str, Any], name: str) -> int:
    value = payload.get(name)
    if type(value) is not int or not 0 <= value <= LARGEST:  # bool is an int: `type`, not isinstance
        raise Malformed
    return value


def _text(payload: dict[str, Any], name: str) -> str:
    value = payload.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        raise Malformed
    return value


def _roles(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(role, str) for role in value):
        raise Malformed
    return tuple(value)


def _is_for(value: Any, audience: str) -> bool:
    """`aud` is one string or a list of them (RFC 7519, section 4.1.3)."""
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value) and audience in value
    return isinstance(value, str) and value == audience
