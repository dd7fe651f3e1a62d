"""One's own password: the proof that it is still who signed in, and a new one, which ends all his other sessions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, text

from lastcall.claims import Claims
from models import passwords, refreshing
from models.audit import Actor
from models.database import position_of_transaction, say, transaction
from models.errors import NotFound, WrongCredentials
from models.minting import ClientInfo, Tokens, facts_of
from models.throttle import count_failures, note_failure, refuse_when_throttled
from settings import Settings


def prove_password(claims: Claims, password: str, client: ClientInfo) -> Row[Any]:
    """Make sure that it is still the person who signed in. Returns his facts. Raises WrongCredentials, Throttled."""
    with transaction():
        user = facts_of(claims.sub)
        refuse_when_throttled(count_failures(user.username or claims.sub, client.ip))
    if not passwords.verify_password(user.password_hash, password):
        note_failure(user.username or claims.sub, client.ip)
        raise WrongCredentials("The current password is wrong.")
    with transaction():
        refuse_when_throttled(count_failures(user.username, client.ip, let_none_in_between=True))
    return user


def change_password(
    claims: Claims, current: str, new: str, client: ClientInfo, settings: Settings
) -> tuple[Tokens, str]:
    """Give oneself a new password: every other session ends, this one goes on under new tokens.

    Returns the tokens, and the position that workers must have reached. Raises WrongCredentials, Throttled; Revoked
    when the session has ended meanwhile; NotFound for a session that is none of this user's. Nothing has changed then.
    """
    user = prove_password(claims, current, client)
    password_hash = passwords.hash_password(new)
    with transaction() as session:
        say(**Actor(user.username, claims.sub, claims.sid, client.ip).facts(), keep_session=claims.sid)
        gen = session.scalar(
            text(
                "UPDATE users SET password_hash = :new WHERE id = :id AND password_hash = :old AND disabled_at IS NULL"
                " RETURNING gen"
            ),
            {"new": password_hash, "id": user.id, "old": user.password_hash},
        )
        if gen is None:
            raise WrongCredentials("The password was changed by somebody else just now: try again.")
        own = text("SELECT FROM login_sessions WHERE id = CAST(:id AS uuid) AND user_id = :user_id")
        if session.execute(own, {"id": claims.sid, "user_id": user.id}).one_or_none() is None:
            raise NotFound("Nothing was changed. Your token belongs to no session of this server.")
        # Only a session that stood until this very change goes on; one that was revoked meanwhile does not.
        session.execute(
            text(
                "UPDATE login_sessions SET user_gen = :gen"
                " WHERE id = CAST(:id AS uuid) AND ended_at IS NULL AND user_gen = :gen - 1"
            ),
            {"gen": gen, "id": claims.sid},
        )
        return refreshing.renewed(claims.sid or "", client, settings), position_of_transaction()
