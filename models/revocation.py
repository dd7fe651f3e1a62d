"""The history of revocations: who ended what, when and why. Rows are only ever added."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, cast, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import INET, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from lastcall.claims import is_uuid
from models.cursor import read_cursor, write_cursor
from models.database import Base, transaction


class Revocation(Base):
    __tablename__ = "revocations"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("clock_timestamp()"))
    scope: Mapped[str]
    subject: Mapped[str]
    subject_name: Mapped[str]
    filter: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    reason: Mapped[str | None]
    actor_id: Mapped[str | None]
    actor_name: Mapped[str]
    actor_session: Mapped[str | None]
    actor_ip: Mapped[str | None] = mapped_column(INET)
    cause: Mapped[str]
    min_gen: Mapped[int | None]
    cutoff_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    sessions_ended: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


def list_revocations(*, limit: int = 50, cursor: str | None = None) -> tuple[list[Revocation], str | None]:
    """The history, newest first, a page at a time. Raises BadCursor."""
    context = {"list": "revocations"}
    query = select(Revocation).order_by(Revocation.created_at.desc(), Revocation.id.desc()).limit(limit + 1)
    if cursor:
        created_at, revocation_id = read_cursor(cursor, context, 2)
        place: Any = tuple_(
            cast(literal(created_at), Revocation.created_at.type), cast(literal(revocation_id), Revocation.id.type)
        )
        query = query.where(tuple_(Revocation.created_at, Revocation.id) < place)
    with transaction() as session:
        rows = list(session.scalars(query))
        session.expunge_all()
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], write_cursor([last.created_at.isoformat(), str(last.id)], context)


def public_reason(scope: str, subject: str, session_id: str | None = None) -> str | None:
    """The reason that was given for a revocation, for the person it was about.

    His session knows best why it ended, also by a filter; but `end_reason` may be a mere cause, which is none of his
    business, so it must be the reason of a revocation of that moment. Else it is the newest revocation of the subject,
    of those that can have hit this session.
    """
    query = text("""
        WITH own AS (
            SELECT
                s.created_at, coalesce(s.ended_at, e.ended_at) AS ended_at,
                coalesce(s.end_reason, e.end_reason) AS end_reason
            FROM login_sessions AS s LEFT JOIN unmarked_ends AS e ON e.user_id = s.user_id AND e.gen > s.user_gen
            WHERE s.id = CAST(:session_id AS uuid) ORDER BY e.gen LIMIT 1
        )
        SELECT coalesce(
            (SELECT r.reason FROM own INNER JOIN revocations AS r ON r.reason = own.end_reason
             AND r.created_at BETWEEN own.ended_at AND own.ended_at + interval '1 minute' LIMIT 1),
            (SELECT r.reason FROM revocations AS r WHERE r.scope = :scope AND r.subject = :subject
             AND r.created_at >= coalesce((SELECT created_at FROM own), '-infinity')
             ORDER BY r.created_at DESC LIMIT 1)
        )
    """)
    known = session_id if is_uuid(session_id) else None
    with transaction() as session:
        reason: str | None = session.scalar(query, {"scope": scope, "subject": subject, "session_id": known})
    return reason
