"""Signing in, refreshing, renewing: the one place where tokens are minted.

Every mint reads the password hash, the state, the roles and both generations in ONE statement, and puts those very
numbers into the token and the session row. No lock is needed: a revocation that commits in between raises a
generation above them (tests/database/test_races.py). The row is written only while they still hold: a sign-in that was
paused after it had read them mints nothing, or its token could outlive the cutoff that was meant for it. For the same
reason no token lives longer than everyone's row says.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from lastcall.errors import DatabaseAway, Revoked
from lastcall.strict import write_base64url
from lastcall.tokens import issue
from models import passwords
from models.audit import Actor
from models.database import db, each_alone, one_statement, prepared_transaction, say, transaction
from models.database_errors import Busy
from models.device import describe_device
from models.errors import NotAllowed, RefreshRejected, WrongCredentials
from models.everyone import note_access_ttl
from models.force_logout import Receipt, revoke_session
from models.refresh_token import FAMILY_BYTES, SECRET_BYTES, digest, read_refresh_token, sealed
from models.throttle import FAILURES, FAILURES_AND_NO_MORE, note_failure, refuse_when_throttled, tried
from settings import Settings

GRACE_S = 10.0
"""How long the newest predecessor of a refresh token still gets the same successor, for racing tabs (seconds)."""
TRIES = 3
"""How often a sign-in reads the facts and checks the password, when they change while it does (argon2 is not free)."""

_USER_FACTS = """
    u.id, u.username, u.password_hash, u.disabled_at IS NOT NULL AS disabled, u.gen AS user_gen,
    e.gen AS everyone_gen, e.access_ttl_s,
    coalesce((SELECT array_agg(r.role ORDER BY r.role) FROM user_roles AS r WHERE r.user_id = u.id), '{}') AS roles
"""
# By name: a column that a later version adds must not change what a prepared statement answers.
_OF_A_SESSION = """
    id, user_id, client_id, created_at, token_expires_at, expires_at, ended_at, user_gen, everyone_gen,
    refresh_hash, previous_refresh_hash, sealed_successor, rotated_at, clock_timestamp() AS now
"""
_FACTS_BY_ID = text(f"SELECT {_USER_FACTS} FROM everyone AS e LEFT JOIN users AS u ON u.id = CAST(:id AS uuid)")
_FACTS_BY_NAME = text(f"""
    SELECT {_USER_FACTS}, tries.failures, tries.wait_s
    FROM everyone AS e LEFT JOIN users AS u ON lower(u.username) = lower(:tried_name) CROSS JOIN ({FAILURES}) AS tries
""")
_WRITE_SESSION = text(f"""
    WITH tries AS MATERIALIZED ({FAILURES_AND_NO_MORE}), written AS (
        INSERT INTO login_sessions AS s (
            id, user_id, username, roles, client_id, ip, last_ip, user_agent, device,
            created_at, token_expires_at, expires_at,
            user_gen, everyone_gen, family_hash, refresh_hash
        )
        SELECT
            :id, u.id, :username, :roles, :client_id, CAST(:ip AS inet), CAST(:ip AS inet), :user_agent,
            :device, now.at, now.at + make_interval(secs => least(:access_ttl, e.access_ttl_s, :lifetime)),
            now.at + make_interval(secs => :lifetime), u.gen, e.gen, :family_hash, :refresh_hash
        FROM users AS u CROSS JOIN everyone AS e CROSS JOIN (SELECT clock_timestamp() AS at) AS now CROSS JOIN tries
        WHERE u.id = :user_id AND u.gen = :user_gen AND e.gen = :everyone_gen
            AND u.password_hash = :password_hash AND u.disabled_at IS NULL
            AND tries.failures < :failures_allowed AND :may_enter
        RETURNING s.created_at, s.token_expires_at, s.expires_at
    )
    SELECT tries.failures, tries.wait_s, written.created_at, written.token_expires_at, written.expires_at
    FROM tries LEFT JOIN written ON TRUE
""")


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


class RefreshReused(RefreshRejected):
    """This refresh token was used before, so it may have been stolen: its session was ended. Sign in again."""

    code = "refresh_reused"

    def __init__(self, receipt: Receipt) -> None:
        super().__init__()
        self.receipt = receipt


def sign_in(
    username: str, password: str, client: ClientInfo, settings: Settings, *, needed_role: str | None = None
) -> Tokens:
    """Raises WrongCredentials (the same for an unknown name), Throttled; NotAllowed without `needed_role`; Busy when
    the user changed all the while."""
    for _ in range(TRIES):
        with each_alone() as session:
            user = session.execute(_FACTS_BY_NAME, tried(username, client.ip)).one()
            refuse_when_throttled(user)
        # No connection is held while argon2 works.
        right = passwords.verify_password(user.password_hash, password)
        if not right or user.disabled:
            note_failure(username, client.ip)
            raise WrongCredentials
        if user.access_ttl_s < settings.access_ttl:  # init-db may have run on a host with shorter tokens
            with suppress(Busy), transaction():
                note_access_ttl(settings.access_ttl)
        tokens = _mint(user, client, settings, needed_role)
        if tokens is not None:
            if passwords.needs_rehash(user.password_hash):
                _rehash(user, password)
            return tokens
    raise Busy("This user is being changed at the moment: try again.")


def _mint(user: Row[Any], client: ClientInfo, settings: Settings, needed_role: str | None) -> Tokens | None:
    """Write the session's row, and sign its token. None when what the password was checked against holds no more."""
    family, secret = secrets.token_bytes(FAMILY_BYTES), secrets.token_bytes(SECRET_BYTES)
    session_id = uuid.uuid4()
    may_enter = needed_role is None or needed_role in user.roles
    with one_statement() as session:
        # Counted again: others may have failed meanwhile, and a right guess after the tenth must be told what a wrong
        # one is.
        row = session.execute(
            _WRITE_SESSION,
            {
                **tried(user.username, client.ip),
                "may_enter": may_enter,
                "id": session_id,
                "user_id": user.id,
                "username": user.username,
                "password_hash": user.password_hash,
                "roles": user.roles,
                "client_id": client.client_id,
                "ip": client.ip,
                "user_agent": client.user_agent,
                "device": describe_device(client.user_agent),
                "access_ttl": settings.access_ttl,
                "lifetime": min(settings.refresh_ttl, settings.session_max_age),
                "user_gen": user.user_gen,
                "everyone_gen": user.everyone_gen,
                "family_hash": digest(family),
                "refresh_hash": digest(secret),
            },
        ).one()
        refuse_when_throttled(row)
    if not may_enter:
        raise NotAllowed(f"This needs the role {needed_role}, which {user.username} does not have: ask an admin.")
    if row.created_at is None:
        return None
    lifetimes = row.created_at, row.token_expires_at, row.expires_at
    return _tokens(user, session_id, client.client_id, row.created_at, lifetimes, family + secret, settings)


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
            and row.now - row.rotated_at < timedelta(seconds=GRACE_S)
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


def facts_of(user_id: str) -> Row[Any]:
    """The user's hash, state, roles and generations, of one snapshot. All but everyone's are None for nobody."""
    return db.session.execute(_FACTS_BY_ID, {"id": user_id}).one()


# ---------------------------------------------------------------------------------------------- minting, step by step


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
    return _tokens(user, row.id, row.client_id, row.created_at, lifetimes, refresh_token, settings)


def _tokens(
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


def _rehash(user: Row[Any], password: str) -> None:
    """Renew a hash of older parameters. It is the same password, so nobody is signed out (schema.sql: said)."""
    new = passwords.hash_password(password)
    with suppress(DatabaseAway), transaction() as session:  # the sign-in has succeeded; the next one tries again
        say(rehash="on")
        session.execute(
            text("UPDATE users SET password_hash = :new WHERE id = :id AND password_hash = :old"),
            {"new": new, "id": user.id, "old": user.password_hash},
        )
