"""Login sessions: the rows, who counts as active, and the list with its filters and keyset pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    DateTime,
    Text,
    and_,
    any_,
    case,
    cast,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import INET
from sqlalchemy.orm import Mapped, mapped_column

from models.cursor import read_cursor, write_cursor
from models.database import Base, db, transaction
from models.everyone import everyone_gen
from models.revocation import Revocation

COUNT_EXACTLY_TO = 10_000
STATES = ("active", "ended", "expired", "all")
SORTS = ("-created_at", "created_at", "-last_seen_at", "last_seen_at", "username", "-username")


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


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions: every part that is given must fit.

    `user` is a name or an id, as a person types it; `ip` is an address or a network; `whole_users` widens what was
    found to all sessions of the users found.
    """

    user: str | None = None
    q: str | None = None
    role: str | None = None
    client: str | None = None
    ip: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    state: str = "active"
    user_id: str | None = None
    session_id: str | None = None
    whole_users: bool = False

    def as_json(self) -> dict[str, Any]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in given.items()
            if value is not None and value is not False
        }


@dataclass(frozen=True, slots=True)
class SessionPage:
    items: list[SessionFacts]
    next: str | None
    total: int
    total_is_exact: bool


# His user stands behind it. `users` by name, because models.user imports this module.
_STANDS: ColumnElement[bool] = literal_column(
    "EXISTS (SELECT FROM users AS u WHERE u.id = login_sessions.user_id"
    " AND u.gen <= login_sessions.user_gen AND u.disabled_at IS NULL)"
)


def stands() -> ColumnElement[bool]:
    """Not ended: neither by its own row, nor by everyone's generation, nor by its user's."""
    return and_(LoginSession.ended_at.is_(None), LoginSession.everyone_gen == everyone_gen(), _STANDS)


def is_active(standing: ColumnElement[bool] | None = None) -> ColumnElement[bool]:
    return and_(stands() if standing is None else standing, LoginSession.expires_at > func.now())


def matches(wanted: SessionFilter, standing: ColumnElement[bool] | None = None) -> list[ColumnElement[bool]]:
    """The conditions of a filter. Text in `q` is literal: %, _ and \\ stand for themselves.

    `standing` takes the place of `stands()`, for an estimate.
    """
    standing = stands() if standing is None else standing
    if wanted.whole_users:
        found = select(LoginSession.user_id).where(*matches(replace(wanted, whole_users=False), standing))
        return [is_active(standing), LoginSession.user_id.in_(found)]
    conditions: list[ColumnElement[bool]] = []
    if wanted.user_id is not None:
        conditions.append(LoginSession.user_id == UUID(wanted.user_id))
    if wanted.session_id is not None:
        conditions.append(LoginSession.id == UUID(wanted.session_id))
    if wanted.state == "active":
        conditions.append(is_active(standing))
    elif wanted.state == "ended":
        conditions.append(not_(standing))
    elif wanted.state == "expired":
        conditions += [standing, LoginSession.expires_at <= func.now()]
    if wanted.user is not None:
        conditions.append(_is_user(wanted.user))
    if wanted.q:
        conditions.append(
            or_(
                LoginSession.username.icontains(wanted.q, autoescape=True),
                LoginSession.client_id.icontains(wanted.q, autoescape=True),
                func.host(LoginSession.ip).icontains(wanted.q, autoescape=True),
                func.host(LoginSession.last_ip).icontains(wanted.q, autoescape=True),
            )
        )
    if wanted.role is not None:
        conditions.append(literal(wanted.role) == any_(LoginSession.roles))
    if wanted.client is not None:
        conditions.append(LoginSession.client_id == wanted.client)
    if wanted.ip is not None:
        network = cast(wanted.ip, INET)
        conditions.append(or_(LoginSession.ip.op("<<=")(network), LoginSession.last_ip.op("<<=")(network)))
    if wanted.since is not None:
        conditions.append(LoginSession.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(LoginSession.created_at < wanted.until)
    return conditions


def list_sessions(
    wanted: SessionFilter, *, sort: str = "-created_at", limit: int = 50, cursor: str | None = None
) -> SessionPage:
    """One page of the sessions that match, by keyset. Raises BadCursor."""
    column = getattr(LoginSession, sort.removeprefix("-"))
    order = (column.desc(), LoginSession.id.desc()) if sort.startswith("-") else (column, LoginSession.id)
    context = {"list": "sessions", "sort": sort, **wanted.as_json()}
    query = select(LoginSession, _state()).where(*matches(wanted)).order_by(*order).limit(limit + 1)
    if cursor:
        value, session_id = read_cursor(cursor, context, 2)
        place: Any = tuple_(cast(literal(value), column.type), cast(literal(session_id), LoginSession.id.type))
        here = tuple_(column, LoginSession.id)
        query = query.where(here < place if sort.startswith("-") else here > place)
    with transaction() as session:
        rows = session.execute(query).all()
        causes = _everyones_ends([row for row, state in rows if state == "ended" and row.ended_at is None])
        items = [_facts(row, state, causes) for row, state in rows[:limit]]
        total, exact = count_matching(wanted)
    if len(rows) <= limit:
        return SessionPage(items, None, total, exact)
    last = getattr(items[-1], sort.removeprefix("-"))
    position = [last.isoformat() if isinstance(last, datetime) else last, items[-1].session_id]
    return SessionPage(items, write_cursor(position, context), total, exact)


def get_session(session_id: UUID) -> SessionFacts | None:
    with transaction() as session:
        row = session.execute(select(LoginSession, _state()).where(LoginSession.id == session_id)).first()
        return _facts(row[0], row[1], _everyones_ends([row[0]])) if row else None


def count_active(user_id: UUID) -> int:
    """Within a transaction under way."""
    return (
        db.session.scalar(
            select(func.count()).select_from(LoginSession).where(LoginSession.user_id == user_id, is_active())
        )
        or 0
    )


def count_matching(wanted: SessionFilter, *, exactly_to: int = COUNT_EXACTLY_TO) -> tuple[int, bool]:
    """How many match: exactly up to `exactly_to`, beyond it the planner's estimate. Within a transaction under way."""
    matching = select(literal(1)).select_from(LoginSession).where(*matches(wanted))
    counted = db.session.scalar(select(func.count()).select_from(matching.limit(exactly_to + 1).subquery())) or 0
    if counted <= exactly_to:
        return counted, True
    # What ends a session shows in its row, or in everyone's generation, or in both: the planner would multiply the
    # two, and it takes a third for the comparison with the user's. Each alone is too many, so the smaller one is near.
    gen = db.session.scalar(select(everyone_gen()))
    signs = (LoginSession.ended_at.is_(None), LoginSession.everyone_gen == gen)
    estimates = [_estimate(matches(wanted, standing)) for standing in signs]
    return max(counted, max(estimates) if wanted.state == "ended" else min(estimates)), False


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


def _is_user(name_or_id: str) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = func.lower(LoginSession.username) == func.lower(name_or_id)
    try:
        return or_(condition, LoginSession.user_id == UUID(name_or_id))
    except ValueError:
        return condition


def _state() -> ColumnElement[str]:
    return case((not_(stands()), "ended"), (LoginSession.expires_at <= func.now(), "expired"), else_="active")


def _estimate(conditions: Sequence[ColumnElement[bool]]) -> int:
    matching = select(literal(1)).select_from(LoginSession).where(*conditions)
    compiled = matching.compile(db.engine, compile_kwargs={"render_postcompile": True})
    plan = db.session.connection().exec_driver_sql("EXPLAIN (FORMAT JSON) " + str(compiled), compiled.params).scalar()
    return int(plan[0]["Plan"]["Plan Rows"]) if plan else 0


def _everyones_ends(rows: Sequence[LoginSession]) -> list[Revocation]:
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


def _facts(row: LoginSession, state: str, causes: Sequence[Revocation]) -> SessionFacts:
    ended_at, ended_by, end_reason = row.ended_at, row.ended_by, row.end_reason
    if state == "ended" and ended_at is None:
        cause = next((cause for cause in causes if (cause.min_gen or 0) > row.everyone_gen), None)
        if cause is not None:
            ended_at, ended_by, end_reason = cause.created_at, cause.actor_name, cause.reason or cause.cause
    return SessionFacts(
        session_id=str(row.id),
        user_id=str(row.user_id),
        username=row.username,
        roles=list(row.roles),
        client_id=row.client_id,
        ip=str(row.ip) if row.ip is not None else None,
        last_ip=str(row.last_ip) if row.last_ip is not None else None,
        user_agent=row.user_agent,
        device=row.device,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        token_expires_at=row.token_expires_at,
        expires_at=row.expires_at,
        state=state,
        ended_at=ended_at,
        ended_by=ended_by,
        end_reason=end_reason,
    )
