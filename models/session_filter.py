"""Which sessions are meant: the filters of the list, as conditions on rows whose columns are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, any_, cast, false, literal, or_, select
from sqlalchemy.dialects.postgresql import INET

from models.database import uuid_array
from models.login_session import LoginSession, is_active
from models.search import NOBODY, NOTHING, Meant, Named, escaped, meant_by, named
from models.times import write_time

Conditions = list[ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions: every part that is given must fit.

    `user` is a name or an id, as a person types it; `q` is a part of a name or a client, or how an address begins; `ip`
    is an address or a network; `whole_users` widens what was found to all sessions of the users found; of those just
    the ones from before `issued_before` are meant.
    """

    user: str | None = None
    q: str | None = None
    role: str | None = None
    client: str | None = None
    ip: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    issued_before: datetime | None = None
    state: str = "active"
    user_id: str | None = None
    session_id: str | None = None
    whole_users: bool = False

    def as_json(self) -> dict[str, Any]:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: write_time(value) if isinstance(value, datetime) else value
            for name, value in given.items()
            if value is not None and value is not False
        }


def matches(wanted: SessionFilter) -> Conditions:
    """The conditions of the active sessions that fit. Within a transaction under way."""
    if wanted.whole_users:
        finding = replace(wanted, whole_users=False, issued_before=None)
        found = select(LoginSession.user_id).where(*matches(finding))
        return [*matches(SessionFilter(issued_before=wanted.issued_before)), LoginSession.user_id.in_(found)]
    return [is_active(), *fits(wanted).conditions]


@dataclass(frozen=True, slots=True)
class Meaning:
    """Whom a filter names, as the database tells; nobody where it names none."""

    user: Named = NOBODY
    searched: Meant = NOTHING


def meaning_of(wanted: SessionFilter, *, for_a_list: bool = False) -> Meaning:
    """Within a transaction under way."""
    return Meaning(
        _or_by_id(wanted.user, named(wanted.user)) if wanted.user is not None else NOBODY,
        meant_by(wanted.q, for_a_list=for_a_list) if wanted.q else NOTHING,
    )


class Fit(NamedTuple):
    """The conditions of a filter, whatever the state; and what finds the rows: an index `in order` of their sign-in,
    `an index`, or `no index`."""

    conditions: Conditions
    found_by: str


def fits(wanted: SessionFilter, meaning: Meaning | None = None) -> Fit:
    """Without `meaning` it is asked for, within a transaction under way."""
    meaning = meaning_of(wanted) if meaning is None else meaning
    conditions: Conditions = []
    found_by = "in order" if wanted.q is wanted.role is wanted.ip is None else "an index"
    if wanted.user_id is not None:
        conditions.append(LoginSession.user_id == UUID(wanted.user_id))
    if wanted.session_id is not None:
        conditions.append(LoginSession.id == UUID(wanted.session_id))
    if wanted.user is not None:
        conditions.append(_is_named(meaning.user, escaped(wanted.user)))
    if wanted.q:
        conditions.append(_is_meant_by(wanted.q, meaning.searched))
        if meaning.searched.users is None or meaning.searched.clients is None:
            found_by = "no index"
    if wanted.role is not None:
        conditions.append(LoginSession.roles.contains([wanted.role]))
    if wanted.client is not None:
        conditions.append(LoginSession.client_id == wanted.client)
    if wanted.ip is not None:
        network = cast(wanted.ip, INET)
        conditions.append(
            or_(LoginSession.ip.op("<<=")(network), and_(_HAS_MOVED, LoginSession.last_ip.op("<<=")(network)))
        )
    if wanted.since is not None:
        conditions.append(LoginSession.created_at >= wanted.since)
    for end in (wanted.until, wanted.issued_before):
        if end is not None:
            conditions.append(LoginSession.created_at < end)
    return Fit(conditions, found_by)


def users_of(wanted: SessionFilter, meaning: Meaning) -> frozenset[str] | None:
    """The ids of the users whose sessions a filter finds, where it names one; None: anybody's."""
    if wanted.user_id is not None:
        return frozenset({str(UUID(wanted.user_id))})
    if wanted.user is not None:
        return frozenset({*meaning.user.now, *meaning.user.before})
    return None


# As the index login_sessions_by_last_ip says it.
_HAS_MOVED = LoginSession.last_ip.is_distinct_from(LoginSession.ip)


def _or_by_id(name_or_id: str, users: Named) -> Named:
    with suppress(ValueError):
        return replace(users, now=(*users.now, str(UUID(name_or_id))))
    return users


def _is_meant_by(searched: str, meant: Meant) -> ColumnElement[bool]:
    pattern = f"%{escaped(searched)}%"
    ways = [LoginSession.username.ilike(pattern) if meant.users is None else _is_named(meant.users, pattern)]
    if meant.clients is None:
        ways.append(LoginSession.client_id.ilike(pattern))
    elif meant.clients:
        ways.append(LoginSession.client_id == any_(literal(list(meant.clients))))
    for first, last in meant.addresses:
        ways.append(LoginSession.ip.between(cast(first, INET), cast(last, INET)))
        ways.append(and_(_HAS_MOVED, LoginSession.last_ip.between(cast(first, INET), cast(last, INET))))
    return or_(*ways)


def _is_named(users: Named, pattern: str) -> ColumnElement[bool]:
    """Who is called so now, with all his sessions; who was, with those of that time."""
    ways = [is_one_of(users.now)] if users.now else []
    if users.before:
        ways.append(and_(is_one_of(users.before), LoginSession.username.ilike(pattern)))
    return or_(*ways) if ways else false()


def is_one_of(users: Sequence[str]) -> ColumnElement[bool]:
    """One by `=`, which leaves the order of his index to the list."""
    if len(users) == 1:
        return LoginSession.user_id == UUID(users[0])
    return LoginSession.user_id == any_(uuid_array(users))
