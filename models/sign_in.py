"""Signing in: a name and a password become a session, and its tokens (models/minting.py)."""

from __future__ import annotations

import secrets
import uuid
from contextlib import suppress
from typing import Any

from sqlalchemy import Row, text

from lastcall.errors import DatabaseAway
from models import passwords
from models.database import each_alone, one_statement, say, transaction
from models.database_errors import Busy
from models.device import describe_device
from models.errors import NotAllowed, WrongCredentials
from models.everyone import raise_access_ttl
from models.minting import USER_FACTS, ClientInfo, Tokens, mint
from models.refresh_token import FAMILY_BYTES, SECRET_BYTES, digest
from models.throttle import FAILURES, FAILURES_AND_NO_MORE, note_failure, refuse_when_throttled, tried
from settings import Settings

TRIES = 3
"""How often a sign-in reads the facts and checks the password, when they change while it does (argon2 is not free)."""

_FACTS_BY_NAME = text(f"""
    SELECT {USER_FACTS}, tries.failures, tries.wait_s
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
            raise_access_ttl(settings.access_ttl)
        tokens = _open_session(user, client, settings, needed_role)
        if tokens is not None:
            if passwords.needs_rehash(user.password_hash):
                _rehash(user, password)
            return tokens
    raise Busy("This user is being changed at the moment: try again.")


def _open_session(user: Row[Any], client: ClientInfo, settings: Settings, needed_role: str | None) -> Tokens | None:
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
    return mint(user, session_id, client.client_id, row.created_at, lifetimes, family + secret, settings)


def _rehash(user: Row[Any], password: str) -> None:
    """Renew a hash of older parameters. It is the same password, so nobody is signed out (schema.sql: said)."""
    new = passwords.hash_password(password)
    with suppress(DatabaseAway), transaction() as session:  # the sign-in has succeeded; the next one tries again
        say(rehash="on")
        session.execute(
            text("UPDATE users SET password_hash = :new WHERE id = :id AND password_hash = :old"),
            {"new": new, "id": user.id, "old": user.password_hash},
        )
