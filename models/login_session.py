"""Login sessions: the rows, what state each is in, and what is said of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Computed,
    DateTime,
    Row,
    Select,
    Text,
    and_,
    any_,
    case,
    cast,
    func,
    literal_column,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET
from sqlalchemy.orm import Mapped, mapped_column

from models.database import Base, db, transaction, uuid_array
from models.everyone import everyone_gen
from models.revocation import Revocation


class LoginSession(Base):
    __tablename__ = "login_sessions"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    user_id: Mapped[UUID]
    username: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    client_id: Mapped[str]
    ip: Mapped[str | None] = mapped_column(INET)
    last_ip: Mapped[str | None] = mapped_column(INET)
    user_agent: Mapped[str]
    device: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    last_seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    token_expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    user_gen: Mapped[int]
    everyone_gen: Mapped[int]
    family_hash: Mapped[bytes]
    refresh_hash: Mapped[bytes]
    previous_refresh_hash: Mapped[bytes | None]
    sealed_successor: Mapped[bytes | None]
    rotated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_scope: Mapped[str | None]
    ended_by: Mapped[str | None]
    end_reason: Mapped[str | None]
    lapsed: Mapped[bool] = mapped_column(Boolean, server_default=text("FALSE"))
    shelf: Mapped[int] = mapped_column(Computed(""))


class UnmarkedEnd(Base):
    """A user's sessions of a lower generation have ended; their rows may not all say so yet (schema.sql)."""

    __tablename__ = "unmarked_ends"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    gen: Mapped[int] = mapped_column(primary_key=True)
    ended_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ended_by: Mapped[str]
    end_reason: Mapped[str]


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as clients see it."""

    session_id: str
    user_id: str
    username: str
    roles: list[str]
    client_id: str
    ip: str | None
    last_ip: str | None
    user_agent: str
    device: str
    created_at: datetime
    last_seen_at: datetime
    token_expires_at: datetime
    expires_at: datetime
    state: str
    ended_at: datetime | None
    ended_by: str | None
    end_reason: str | None


# The user's generation has risen above it, and no row says so yet.
IS_BEHIND: ColumnElement[bool] = literal_column(
    "EXISTS (SELECT FROM unmarked_ends AS e"
    " WHERE e.user_id = login_sessions.user_id AND e.gen > login_sessions.user_gen)"
)


def is_active() -> ColumnElement[bool]:
    """Neither expired, nor ended: by its own row, by everyone's generation, or by its user's."""
    return and_(LoginSession.shelf == everyone_gen(), LoginSession.expires_at > func.now(), not_(IS_BEHIND))


def state() -> ColumnElement[str]:
    ended = or_(LoginSession.ended_at.is_not(None), LoginSession.everyone_gen < everyone_gen(), IS_BEHIND)
    expired = or_(LoginSession.lapsed, LoginSession.expires_at <= func.now())
    return case((ended, "ended"), (expired, "expired"), else_="active")


_HOW: dict[str, ColumnElement[str]] = {
    "session_id": cast(LoginSession.id, Text),
    "user_id": cast(LoginSession.user_id, Text),
    "state": state(),
}
_FACTS = [field.name for field in fields(SessionFacts)]
FACTS: Select[Any] = select(
    *(_HOW[name].label(name) if name in _HOW else LoginSession.__table__.c[name] for name in _FACTS),
    LoginSession.user_gen,
    LoginSession.everyone_gen,
)
"""What `facts_of` needs of each session: no more, no entities and no UUIDs, for a page may have two hundred of them."""


def get_session(session_id: UUID) -> SessionFacts | None:
    with transaction() as session:
        rows = session.execute(FACTS.where(LoginSession.id == session_id)).all()
        return facts_of(rows)[0] if rows else None


def note_seen(seen: Sequence[tuple[str, str | None, datetime]]) -> None:
    """Write when, and from where, sessions were last seen: one statement for all of them."""
    with transaction() as session:
        session.execute(
            text(
                "UPDATE login_sessions AS s SET last_seen_at = v.at, last_ip = coalesce(v.ip::inet, s.last_ip)"
                " FROM unnest(CAST(:ids AS uuid []), CAST(:ips AS text []), CAST(:times AS timestamptz []))"
                " AS v (id, ip, at) WHERE s.id = v.id AND s.last_seen_at < v.at"
            ),
            {"ids": [sid for sid, _, _ in seen], "ips": [ip for _, ip, _ in seen], "times": [at for _, _, at in seen]},
        )


def facts_of(rows: Sequence[Row[Any]]) -> list[SessionFacts]:
    """What is said of the sessions that `FACTS` has found. Within a transaction under way."""
    unmarked = [row for row in rows if row.state == "ended" and row.ended_at is None]
    everyones, users = _everyones_ends(unmarked), _users_ends(unmarked)
    return [_facts(row, everyones, users) for row in rows]


def _everyones_ends(rows: Sequence[Row[Any]]) -> list[Revocation]:
    """The log-outs of everyone that ended rows which nobody has marked yet, oldest first."""
    oldest = min((row.everyone_gen for row in rows), default=None)
    if oldest is None:
        return []
    query = (
        select(Revocation)
        .where(Revocation.scope == "everyone", Revocation.min_gen > oldest)
        .order_by(Revocation.min_gen)
        .limit(200)
    )
    return list(db.session.scalars(query))


def _users_ends(rows: Sequence[Row[Any]]) -> list[UnmarkedEnd]:
    """The same of users' own, oldest first."""
    if not rows:
        return []
    ids = uuid_array(list({row.user_id for row in rows}))
    return list(
        db.session.scalars(select(UnmarkedEnd).where(UnmarkedEnd.user_id == any_(ids)).order_by(UnmarkedEnd.gen))
    )


def _facts(row: Row[Any], everyones: Sequence[Revocation], users: Sequence[UnmarkedEnd]) -> SessionFacts:
    facts = SessionFacts(*row[: len(_FACTS)])
    if facts.state != "ended" or facts.ended_at is not None:
        return facts
    end = next((end for end in users if str(end.user_id) == facts.user_id and end.gen > row.user_gen), None)
    if end is not None:
        return replace(facts, ended_at=end.ended_at, ended_by=end.ended_by, end_reason=end.end_reason)
    cause = next((cause for cause in everyones if (cause.min_gen or 0) > row.everyone_gen), None)
    if cause is not None:
        reason = cause.reason or cause.cause
        return replace(facts, ended_at=cause.created_at, ended_by=cause.actor_name, end_reason=reason)
    return facts
