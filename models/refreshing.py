"""Refreshing: new tokens for a session that stands, by its refresh token or after an act of its own user."""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from lastcall.errors import Revoked
from models.audit import Actor
from models.database import db, prepared_transaction, transaction
from models.errors import RefreshRejected
from models.force_logout import Receipt, revoke_session
from models.minting import ClientInfo, Tokens, facts_of, mint
from models.refresh_token import FAMILY_BYTES, SECRET_BYTES, digest, read_refresh_token, sealed
from settings import Settings

GRACE_S = 10.0
"""How long the newest predecessor of a refresh token still gets the same successor, for racing tabs (seconds)."""
# By name: a column that a later version adds must not change what a prepared statement answers.
_OF_A_SESSION = """
    id, user_id, client_id, created_at, token_expires_at, expires_at, ended_at, user_gen, everyone_gen,
    refresh_hash, previous_refresh_hash, sealed_successor, rotated_at, clock_timestamp() AS now
"""


class RefreshReused(RefreshRejected):
    """This refresh token was used before, so it may have been stolen: its session was ended. Sign in again."""

    code = "refresh_reused"

    def __init__(self, receipt: Receipt) -> None:
        super().__init__()
        self.receipt = receipt


def refresh(raw: str, client: ClientInfo, settings: Settings) -> Tokens:
    """Trade a refresh token for new tokens (RFC 9700, section 4.14.2).

    Raises Malformed, RefreshRejected, Revoked, and RefreshReused, whose session has been ended by then: confirm it.
    """
    presented = read_refresh_token(raw)
    family, secret = presented[:FAMILY_BYTES], presented[FAMILY_BYTES:]
    with prepared_transaction():
        row = _locked_session("family_hash = :key", digest(family))
        user = _standing_user(row)
        if hmac.compare_digest(digest(secret), row.refresh_hash):
            return _rotate(row, user, family, secret, client, settings)
        if (
            row.previous_refresh_hash is not None
            and row.sealed_successor is not None
            and timedelta(0) <= row.now - row.rotated_at < timedelta(seconds=GRACE_S)  # the clock may step back
            and hmac.compare_digest(digest(secret), row.previous_refresh_hash)
        ):
            successor = sealed(secret, row.sealed_successor)
            return _prolong(row, user, family + successor, client, settings, {})
    actor = Actor("lastcall", reason="A refresh token was used twice")
    raise RefreshReused(revoke_session(row.id, actor, cause="refresh_reuse"))


def renew(session_id: str, client: ClientInfo, settings: Settings) -> Tokens:
    """`renewed`, in a transaction of its own."""
    with transaction():
        return renewed(session_id, client, settings)


def renewed(session_id: str, client: ClientInfo, settings: Settings) -> Tokens:
    """New tokens for a session that outlived its own user's act (log-out-all with keep-me, a new password). Within a
    transaction under way.

    Raises RefreshRejected or Revoked when it did not.
    """
    row = _locked_session("id = :key", UUID(session_id))
    user = _standing_user(row)
    family, successor = secrets.token_bytes(FAMILY_BYTES), secrets.token_bytes(SECRET_BYTES)
    changes = {
        "family_hash": digest(family),
        "refresh_hash": digest(successor),
        "previous_refresh_hash": None,
        "sealed_successor": None,
    }
    return _prolong(row, user, family + successor, client, settings, changes)


def _locked_session(condition: str, key: object) -> Row[Any]:
    row = db.session.execute(
        text(f"SELECT {_OF_A_SESSION} FROM login_sessions WHERE {condition} FOR UPDATE"),
        {"key": key},
    ).one_or_none()
    if row is None:
        raise RefreshRejected
    return row


def _standing_user(row: Row[Any]) -> Row[Any]:
    """The facts to mint from, in a snapshot taken after the session was locked. Raises RefreshRejected or Revoked."""
    user = facts_of(str(row.user_id))
    if row.everyone_gen < user.everyone_gen:
        raise Revoked("everyone", "", session_id=str(row.id))
    if user.id is None or user.disabled or row.user_gen < user.user_gen:
        raise Revoked("user", str(row.user_id), session_id=str(row.id))
    if row.ended_at is not None:
        raise Revoked("session", str(row.id), session_id=str(row.id))
    if row.expires_at <= row.now:
        raise RefreshRejected("The session has expired: sign in again.")
    return user


def _rotate(
    row: Row[Any], user: Row[Any], family: bytes, secret: bytes, client: ClientInfo, settings: Settings
) -> Tokens:
    successor = secrets.token_bytes(SECRET_BYTES)
    changes = {
        "refresh_hash": digest(successor),
        "previous_refresh_hash": row.refresh_hash,
        "sealed_successor": sealed(secret, successor),
        "rotated_at": row.now,
    }
    return _prolong(row, user, family + successor, client, settings, changes)


def _prolong(
    row: Row[Any],
    user: Row[Any],
    refresh_token: bytes,
    client: ClientInfo,
    settings: Settings,
    changes: dict[str, Any],
) -> Tokens:
    """Write what the new tokens say into the session row, and mint them."""
    expires_at = min(
        row.created_at + timedelta(seconds=settings.session_max_age), row.now + timedelta(seconds=settings.refresh_ttl)
    )
    access_ttl = min(settings.access_ttl, user.access_ttl_s)
    token_expires_at = min(row.now + timedelta(seconds=access_ttl), expires_at)
    values = {
        **changes,
        "expires_at": expires_at,
        "token_expires_at": max(row.token_expires_at, token_expires_at),
        "roles": user.roles,
        "user_gen": user.user_gen,
        "everyone_gen": user.everyone_gen,
        "last_seen_at": row.now,
        "lapsed": False,  # the clock may have stepped back
    }
    sets = ", ".join(f"{name} = :{name}" for name in values)
    db.session.execute(
        text(f"UPDATE login_sessions SET {sets}, last_ip = coalesce(CAST(:ip AS inet), last_ip) WHERE id = :id"),
        {**values, "ip": client.ip, "id": row.id},
    )
    lifetimes = row.now, token_expires_at, expires_at
    return mint(user, row.id, row.client_id, row.created_at, lifetimes, refresh_token, settings)
