"""Minting: the one place where tokens are made, for models/sign_in.py and models/refreshing.py.

Every mint reads the password hash, the state, the roles and both generations in ONE statement, and puts those very
numbers into the token and the session row. No lock is needed: a revocation that commits in between raises a
generation above them (tests/database/test_races.py). The row is written only while they still hold: a sign-in that was
paused after it had read them mints nothing, or its token could outlive the cutoff that was meant for it. For the same
reason no token lives longer than everyone's row says.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from lastcall.strict import write_base64url
from lastcall.tokens import issue
from models.database import db
from settings import Settings

USER_FACTS = """
    u.id, u.username, u.password_hash, u.disabled_at IS NOT NULL AS disabled, u.gen AS user_gen,
    e.gen AS everyone_gen, e.access_ttl_s,
    coalesce((SELECT array_agg(r.role ORDER BY r.role) FROM user_roles AS r WHERE r.user_id = u.id), '{}') AS roles
"""
_FACTS_BY_ID = text(f"SELECT {USER_FACTS} FROM everyone AS e LEFT JOIN users AS u ON u.id = CAST(:id AS uuid)")


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """Where a sign-in comes from."""

    client_id: str
    ip: str | None
    user_agent: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a sign-in gives. Lifetimes are seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    refresh_expires_in: int
    session_id: str
    user_id: str


def facts_of(user_id: str) -> Row[Any]:
    """The user's hash, state, roles and generations, of one snapshot. All but everyone's are None for nobody."""
    return db.session.execute(_FACTS_BY_ID, {"id": user_id}).one()


def mint(
    user: Row[Any],
    session_id: UUID,
    client_id: str,
    signed_in_at: datetime,
    lifetimes: tuple[datetime, datetime, datetime],
    refresh_token: bytes,
    settings: Settings,
) -> Tokens:
    """`lifetimes`: from when; the end of the access token; the end of the session."""
    now, token_expires_at, expires_at = lifetimes
    issued = int(now.timestamp())
    expires = max(issued + 1, int(token_expires_at.timestamp()))
    payload = {
        "iss": settings.issuer,
        "aud": settings.audience,
        "sub": str(user.id),
        "sid": str(session_id),
        "jti": secrets.token_urlsafe(12),
        "iat": issued,
        "exp": expires,
        "auth_time": min(int(signed_in_at.timestamp()), issued),  # the database's clock may have stepped back
        "client_id": client_id,
        "preferred_username": user.username,
        "roles": list(user.roles),
        "user_gen": user.user_gen,
        "everyone_gen": user.everyone_gen,
    }
    return Tokens(
        access_token=issue(payload, settings.keys),
        refresh_token=write_base64url(refresh_token),
        expires_in=expires - issued,
        refresh_expires_in=max(0, int((expires_at - now).total_seconds())),
        session_id=str(session_id),
        user_id=str(user.id),
    )
