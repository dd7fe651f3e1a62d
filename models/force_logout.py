"""Force logout: one transaction that raises the generation or ends the session (the triggers write the cutoff), writes
the history, and commits. Then `confirm` waits until it is in force (models/confirmation.py)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, and_, any_, false, func, literal_column, not_, or_, select, text, update

from lastcall.claims import is_uuid
from lastcall.clock import boottime_ns
from lastcall.errors import DatabaseAway, Revoked
from lastcall.listener import CHANNEL
from models.audit import Actor
from models.confirmation import Confirmation, confirm
from models.database import (
    changed,
    db,
    expected_rows,
    one_statement,
    say,
    settings_of,
    transaction,
    uuid_array,
)
from models.database_errors import TooSlow
from models.errors import NotFound, PartlyDone
from models.login_session import IS_BEHIND, LoginSession, is_active
from models.revocation import Revocation
from models.session_filter import SessionFilter, fits, is_one_of, matches
from models.session_list import count_active, count_matching
from models.user import ADMIN, User
from models.worker import WorkerWatch

LOCK_ORDER = (LoginSession.user_id, LoginSession.id)
AT_ONCE, LESS_AT_ONCE = 12_000, 1_500
"""So many sessions, or users, at most end in one transaction; and so many where that has taken too long."""

_FORCE_LOGOUT = text("""
    SELECT subject_name, sessions_ended, cutoff_at, transaction_id::text
    FROM force_logout(:user_id, CAST(:names AS text []), CAST(:settings AS text []))
""")
# No row of his, whose trigger would do it; but a token that was minted elsewhere may be newer than his last cutoff.
_CUT_OFF_THE_GONE = text("""
    INSERT INTO cutoffs AS old (scope, subject, min_gen, expires_at)
    SELECT
        'user', :user_id, 1 + greatest(
            (SELECT max(min_gen) FROM revocations WHERE scope = 'user' AND subject = :user_id), max(s.user_gen), 0
        ), cutoff_expiry(max(s.token_expires_at))
    FROM login_sessions AS s WHERE s.user_id = CAST(:user_id AS uuid)
    ON CONFLICT (scope, subject) DO UPDATE SET
        min_gen = greatest(old.min_gen + 1, excluded.min_gen), cutoff_at = clock_timestamp(),
        expires_at = excluded.expires_at
    RETURNING min_gen
""")
_WRITE_HISTORY = text("""
    INSERT INTO revocations (
        id, scope, subject, subject_name, filter, reason, actor_id, actor_name, actor_session, actor_ip, cause, min_gen,
        cutoff_at, sessions_ended, expires_at
    )
    SELECT
        :id, :scope, :subject, :subject_name, CAST(:filter AS jsonb), :reason, :actor_id, :actor_name, :actor_session,
        CAST(:actor_ip AS inet), :cause, CAST(:min_gen AS bigint),
        coalesce(CAST(:until AS timestamptz), max(c.cutoff_at), clock_timestamp()), :ended,
        coalesce(max(c.expires_at), cutoff_expiry(NULL))
    FROM cutoffs AS c
    WHERE (:any OR c.scope::text = :scope AND c.subject = :subject) AND c.xid = pg_current_xact_id()
    RETURNING cutoff_at, pg_current_xact_id()::text
""")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a revocation did. `position` is the transaction that workers must have seen."""

    revocation_id: str
    scope: str
    subject: str
    subject_name: str
    reason: str | None
    cutoff: datetime
    sessions_ended: int
    already_ended: bool
    position: str
    started_ns: int
    """When the transaction began to commit, or began, where it is one statement: on `boottime_ns()`. "In 6 ms" counts
    from then."""
    workers: Confirmation | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a revocation would do."""

    sessions: int
    users: int
    admins: int
    includes_you: bool
    exact: bool = True


def revoke_user(user_id: UUID, actor: Actor, *, cause: str = "force_logout") -> Receipt:
    """Sign a user out everywhere. Raises NotFound for a user that never was."""
    revocation_id = uuid.uuid4()
    said = settings_of({**actor.facts(), "history_id": str(revocation_id), "cause": cause})
    with one_statement() as session:
        started_ns = boottime_ns()
        done = session.execute(_FORCE_LOGOUT, {"user_id": user_id, **said}).one_or_none()
    if done is not None:
        return _receipt(revocation_id, actor, started_ns, "user", str(user_id), *done)
    with transaction() as session:
        name, ended, begun = _name_of_the_gone(user_id), count_active(user_id), _begin(actor, cause)
        gen = session.scalar(_CUT_OFF_THE_GONE, {"user_id": str(user_id)})
        return _finish(begun, actor, cause, "user", str(user_id), name, gen, ended)


def revoke_session(
    session_id: UUID, actor: Actor, *, user_id: UUID | None = None, cause: str = "session_ended"
) -> Receipt:
    """End one session. Raises NotFound where there is none, or where it is not this user's."""
    with transaction() as session:
        revocation_id = _begin(actor, cause)
        query = select(LoginSession).where(LoginSession.id == session_id).with_for_update()
        row = session.scalar(query if user_id is None else query.where(LoginSession.user_id == user_id))
        if row is None:
            raise NotFound("There is no such session: it may have been deleted long after its end.")
        was_active = bool(session.scalar(select(is_active()).where(LoginSession.id == session_id)))
        if row.ended_at is None:
            _end_rows(actor, cause, LoginSession.id == session_id)
        else:
            session.execute(
                text(
                    "SELECT raise_cutoff('session', id::text, 0, token_expires_at + cutoff_leeway())"
                    " FROM login_sessions WHERE id = :id"
                ),
                {"id": session_id},
            )
        return _finish(revocation_id, actor, cause, "session", str(session_id), row.username, None, int(was_active))


def revoke_everyone(actor: Actor, *, keep_session: str | None = None, cause: str = "log_out_all") -> Receipt:
    """Sign everyone out: one row changes, however many sessions there are. `keep_session` goes on, under new tokens
    that the caller must mint. Raises Revoked, with nothing done, where that one has ended already."""
    with transaction() as session:
        revocation_id = _begin(actor, cause)
        ended, _ = count_matching(SessionFilter())
        gen = session.scalar(text("UPDATE everyone SET gen = gen + 1 RETURNING gen"))
        if keep_session is not None:
            kept = changed(
                update(LoginSession)
                .where(LoginSession.id == UUID(keep_session), LoginSession.ended_at.is_(None))
                .where(LoginSession.everyone_gen == (gen or 0) - 1, not_(IS_BEHIND))
                .values(everyone_gen=gen)
            )
            if not kept:  # somebody else has logged out everyone, or him, in the same moment
                raise Revoked("everyone", "", session_id=keep_session)
            ended = max(0, ended - 1)
        return _finish(revocation_id, actor, cause, "everyone", "", "", gen, ended)


def revoke_matching(
    wanted: SessionFilter,
    actor: Actor,
    *,
    keep_session: str | None = None,
    cause: str = "force_logout",
    scope: str = "filter",
    subject: str = "",
    subject_name: str = "",
) -> Receipt:
    """End just the active sessions that match: one cutoff for each. See `_piece_by_piece`.

    `scope` and `subject` are what the receipt and the history say: "his sessions from before 10 o'clock" is a user's.
    Raises Revoked, with nothing done, where the session to keep has ended already: two who keep only themselves would
    both be out.
    """
    wanted = replace(wanted, state="active")
    kept = LoginSession.id == UUID(keep_session) if keep_session is not None else false()

    def end(at_once: int) -> tuple[bool, Receipt]:
        with transaction() as session:
            revocation_id = _begin(actor, cause)
            query = select(LoginSession.id).where(*matches(wanted), ~kept)
            if wanted.whole_users:  # what finds them goes last, or the next piece would not find who is left
                query = query.order_by(and_(*fits(replace(wanted, issued_before=None)).conditions))
            ids = session.scalars(query.limit(at_once + 1)).all()
            # Everyone locks in one order, so that two at once cannot deadlock.
            these = LoginSession.id == any_(uuid_array([str(session_id) for session_id in ids[:at_once]]))
            found = select(LoginSession.id).where(or_(these, kept)).order_by(*LOCK_ORDER).with_for_update().cte("found")
            ended = _end_rows(actor, cause, LoginSession.id.in_(select(found.c.id)), ~kept)
            if keep_session is not None and not session.scalar(select(is_active()).where(kept)):
                raise Revoked("session", keep_session, session_id=keep_session)
            receipt = _finish(revocation_id, actor, cause, scope, subject, subject_name, None, ended, wanted)
            return len(ids) > at_once, receipt

    return _piece_by_piece(end)


def revoke_users_matching(wanted: SessionFilter, actor: Actor, *, cause: str = "force_logout") -> Receipt:
    """Sign out everywhere each user that has an active session which matches. See `_piece_by_piece`."""
    wanted = replace(wanted, state="active")

    def cut_off(at_once: int) -> tuple[bool, Receipt]:
        with transaction() as session:
            revocation_id = _begin(actor, cause)
            users = select(LoginSession.user_id).where(*matches(wanted)).distinct().limit(at_once + 1)
            found = session.scalars(users).all()
            user_ids = [str(user_id) for user_id in found[:at_once]]
            ended = session.scalar(select(func.count()).where(is_one_of(user_ids), is_active()))
            these = User.id == any_(uuid_array(user_ids))
            session.execute(select(User.id).where(these).order_by(User.id).with_for_update(key_share=True))
            raised = changed(
                update(User).where(these).values(gen=User.gen + 1).execution_options(synchronize_session=False)
            )
            receipt = _finish(revocation_id, actor, cause, "filter", "", "", None, ended or 0, wanted)
            return len(found) > at_once and raised > 0, receipt

    return _piece_by_piece(cut_off)


def _piece_by_piece(end: Callable[[int], tuple[bool, Receipt]]) -> Receipt:
    """`end` ends so many at most, and says whether there are more: then again, each time in a transaction of its own,
    with a row in the history. So a filter may find a million, though each statement has its limit.

    Returns the last receipt, with all that have ended: who has seen its transaction has seen those before. Raises
    PartlyDone when it breaks off after the first.
    """
    at_once, ended = AT_ONCE, 0
    while True:
        try:
            there_are_more, receipt = end(at_once)
        except DatabaseAway as away:
            if isinstance(away, TooSlow) and at_once > LESS_AT_ONCE:
                at_once = LESS_AT_ONCE
                continue
            if ended:
                raise PartlyDone(ended) from None
            raise
        ended += receipt.sessions_ended
        if not there_are_more:
            return replace(receipt, sessions_ended=ended, already_ended=ended == 0)


def preview(wanted: SessionFilter, caller_session: str | None) -> Preview:
    """What ending the sessions that match would hit. Of very many sessions and their users, an estimate."""
    wanted = replace(wanted, state="active")
    is_here = LoginSession.id == UUID(caller_session) if is_uuid(caller_session) else false()
    is_admin: ColumnElement[bool] = LoginSession.roles.contains([ADMIN])
    users = func.count(LoginSession.user_id.distinct())
    with transaction() as session:
        conditions = matches(wanted)
        sessions, exact = (0, True) if wanted.whole_users else count_matching(wanted)
        if exact:
            includes_you = func.coalesce(func.bool_or(is_here), False)
            query = select(func.count(), users, users.filter(is_admin), includes_you).where(*conditions)
            return Preview(*session.execute(query).one())
        admins = session.scalar(select(users).where(*conditions, is_admin)) or 0
        mine = session.scalar(select(func.count()).where(*conditions, is_here))
        of_users = expected_rows(select(LoginSession.user_id).where(*fits(wanted).conditions).distinct())
        return Preview(sessions, max(of_users, admins), admins, bool(mine), exact=False)


def name_of(user_id: UUID) -> str:
    """The name of a user, also of one who was deleted. Raises NotFound for one that never was."""
    with transaction() as session:
        name = session.scalar(text("SELECT username FROM users WHERE id = :id"), {"id": user_id})
        return str(name) if name is not None else _name_of_the_gone(user_id)


def confirmed(receipt: Receipt, watch: WorkerWatch) -> Receipt:
    return replace(receipt, workers=confirm(receipt.position, watch, since_ns=receipt.started_ns))


def _begin(actor: Actor, cause: str) -> UUID:
    revocation_id = uuid.uuid4()
    say(**actor.facts(), revocation_id=str(revocation_id), cause=cause)
    return revocation_id


def _end_rows(actor: Actor, cause: str, *which: ColumnElement[bool]) -> int:
    return changed(
        update(LoginSession)
        .where(*which, LoginSession.ended_at.is_(None))
        .values(
            ended_at=func.clock_timestamp(),
            ended_scope=literal_column("'session'::cutoff_scope"),
            ended_by=actor.name,
            end_reason=actor.reason or cause,
        )
        .execution_options(synchronize_session=False)
    )


def _finish(
    revocation_id: UUID,
    actor: Actor,
    cause: str,
    scope: str,
    subject: str,
    name: str,
    gen: int | None,
    ended: int,
    wanted: SessionFilter | None = None,
) -> Receipt:
    """Write the history row from the cutoffs of this transaction; the receipt says what is in it."""
    if ended == 0:  # perhaps no cutoff rose, so that no trigger tells the workers to look
        db.session.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})
    # The history is also asked by the time of a token (lastcall/ask.py).
    until = wanted.issued_before if wanted is not None and scope != "filter" else None
    at, position = db.session.execute(
        _WRITE_HISTORY,
        {
            "id": revocation_id,
            "scope": scope,
            "subject": subject,
            "subject_name": name,
            "filter": json.dumps(wanted.as_json()) if wanted else None,
            "reason": actor.reason,
            "actor_id": actor.user_id,
            "actor_name": actor.name,
            "actor_session": actor.session_id,
            "actor_ip": actor.ip,
            "cause": cause,
            "min_gen": gen,
            "until": until,
            "ended": ended,
            "any": wanted is not None,
        },
    ).one()
    return _receipt(revocation_id, actor, boottime_ns(), scope, subject, name, ended, at, position)


def _receipt(
    revocation_id: UUID,
    actor: Actor,
    started_ns: int,
    scope: str,
    subject: str,
    name: str,
    ended: int,
    at: datetime,
    position: str,
) -> Receipt:
    return Receipt(str(revocation_id), scope, subject, name, actor.reason, at, ended, ended == 0, position, started_ns)


def _name_of_the_gone(user_id: UUID) -> str:
    """The name of a user that was deleted. Raises NotFound for one that never was."""
    name = db.session.scalar(select(LoginSession.username).where(LoginSession.user_id == user_id).limit(1))
    if name is None:
        name = db.session.scalar(
            select(Revocation.subject_name)
            .where(Revocation.scope == "user", Revocation.subject == str(user_id))
            .limit(1)
        )
    if name is None:
        raise NotFound("There is no such user, and there never was: look at the list of users.")
    return name
