"""The list of sessions: a page by keyset, wherever it lies, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from lastcall.clock import boottime_ns
from models.cursor import read_cursor, write_cursor
from models.database import db, expected_rows, snapshot
from models.login_session import FACTS, LoginSession, SessionFacts, facts_of, is_active
from models.session_filter import Conditions, Fit, Meaning, SessionFilter, fits, meaning_of, users_of
from models.shelves import Shelves, places_of, read_shelves, sums_of

COUNT_EXACTLY_TO = 10_000
ESTIMATE_S = 5
"""How long the planner's estimate of a list counts (seconds)."""
State = Literal["active", "ended", "expired", "all"]
Sort = Literal["-created_at", "created_at", "-last_seen_at", "last_seen_at", "username", "-username"]
STATES: tuple[State, ...] = get_args(State)
SORTS: tuple[Sort, ...] = get_args(Sort)
ROWS = LoginSession.__table__.c
Columns = ReadOnlyColumnCollection[str, Any]
_KEPT = 32
_POSITION = ("after_key", "after_id")


@dataclass(frozen=True, slots=True)
class SessionPage:
    items: list[SessionFacts]
    next: str | None
    total: int
    total_is_exact: bool


@dataclass(frozen=True, slots=True)
class _Order:
    """How a list is sorted, and whether it goes on after a position."""

    sort: str
    goes_on: bool

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def _down(self) -> bool:
        return self.sort.startswith("-")

    def by(self, columns: Columns) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        key, session_id = columns[self.column], columns["id"]
        return (key.desc(), session_id.desc()) if self._down else (key, session_id)

    def after(self, columns: Columns) -> Conditions:
        if not self.goes_on:
            return []
        here = columns[self.column], columns["id"]
        place: Any = tuple_(
            *(cast(bindparam(name, type_=of.type), of.type) for name, of in zip(_POSITION, here, strict=True))
        )
        return [tuple_(*here) < place if self._down else tuple_(*here) > place]


class _Estimate:
    """What the planner expects of a query, as it said within the last seconds: that is a matter of statistics. And
    whether it has turned out since that there are too many to gather."""

    def __init__(self, query: CompoundSelect[Any]) -> None:
        self._query, self._said, self._until_ns = query, 0, 0
        self.too_many = False

    def read(self, *, afresh: bool = False) -> int:
        """Within a transaction under way."""
        now_ns = boottime_ns()
        if afresh or now_ns > self._until_ns:
            self._said, self._until_ns = expected_rows(self._query), now_ns + ESTIMATE_S * 1_000_000_000
            self.too_many = False
        return self._said


class _Found:
    """Where the sessions of a list are, and the queries that do not depend on its order."""

    def __init__(self, state: str, shelves: Shelves, fit: Fit, exactly_to: int) -> None:
        self.conditions, self.by = fit
        self.places, self.of_rows, self.exactly_to = places_of(state, shelves), shelves.rows, exactly_to
        self._to_count, self._strays = sums_of(state, shelves)

    @cached_property
    def expected(self) -> _Estimate:
        return _Estimate(_all_in(self.places, self.conditions))

    @cached_property
    def expected_to_count(self) -> _Estimate:
        return _Estimate(_all_in(self._to_count, self.conditions))

    @cached_property
    def numbers(self) -> Select[int, int]:
        """Counted to just beyond what is counted exactly; and how many of these are too many, unless it is beyond."""
        number = _number(self._to_count, self.conditions, at_most=self.exactly_to + 1)
        counted = select(number.label("number")).cte("counted").prefix_with("MATERIALIZED").c.number
        return select(counted, case((counted <= self.exactly_to, _number(self._strays, self.conditions)), else_=0))


@lru_cache(maxsize=_KEPT)
def _found(wanted: SessionFilter, meaning: Meaning, shelves: Shelves, exactly_to: int) -> _Found:
    """Built once for all who ask the same: SQLAlchemy takes about as long to build a query as PostgreSQL to answer.
    Nothing may be added to a query that is kept: another thread may be sending it."""
    return _Found(wanted.state, shelves, fits(wanted, meaning), exactly_to)


def _look_up(wanted: SessionFilter, *, for_a_list: bool = False) -> _Found:
    """Within a transaction under way. Who else was just signed out is no part of a user's list."""
    shelves, meaning = read_shelves(for_a_list=for_a_list), meaning_of(wanted, for_a_list=for_a_list)
    return _found(wanted, meaning, shelves.of(users_of(wanted, meaning)), COUNT_EXACTLY_TO)


def list_sessions(
    wanted: SessionFilter, *, sort: str = "-created_at", limit: int = 50, cursor: str | None = None
) -> SessionPage:
    """One page of the sessions that match, by keyset. Raises BadCursor."""
    context = {"list": "sessions", "sort": sort, **wanted.as_json()}
    position = dict(zip(_POSITION, read_cursor(cursor, context, 2), strict=True)) if cursor else {}
    order = _Order(sort, goes_on=bool(position))
    with snapshot():  # what is on which shelf must not change in between
        rows, total, exact = _find(wanted, order, position, limit + 1)
        items = facts_of(rows[:limit])
    if len(rows) <= limit:
        return SessionPage(items, None, total, exact) if cursor else SessionPage(items, None, len(items), True)
    last = getattr(items[-1], order.column)
    here = [last.isoformat() if isinstance(last, datetime) else last, items[-1].session_id]
    return SessionPage(items, write_cursor(here, context), total, exact)


def _find(
    wanted: SessionFilter, order: _Order, position: dict[str, str], at_most: int
) -> tuple[Sequence[Row[Any]], int, bool]:
    """The rows of a page; how many match, and whether that is exact."""
    found = _look_up(wanted, for_a_list=True)
    if not found.conditions or (found.by == "in order" and order.column == "created_at"):
        return db.session.execute(_walk(found, order, at_most), position).all(), *_count(found)
    expected = found.expected.read()
    # What the planner knows nothing of it takes for half a per cent.
    may_be_few = expected <= max(2 * found.exactly_to, found.of_rows // 100) and not found.expected.too_many
    if found.by != "no index" and may_be_few:
        rows, counted = _gathered(found, order, position, at_most)
        if counted <= found.exactly_to:
            return rows, counted, True
        found.expected.too_many = True
    expected = max(expected, found.exactly_to + 1) if found.expected.too_many else expected
    return db.session.execute(_walk(found, order, at_most), position).all(), expected, False


@lru_cache(maxsize=_KEPT)
def _walk(found: _Found, order: _Order, at_most: int) -> Select[Any]:
    """Each shelf gives its first ones in order, and the first of all of them are among these. For what is common."""
    firsts = (
        select(ROWS["id"], ROWS[order.column])
        .where(*on, *found.conditions, *order.after(ROWS))
        .order_by(*order.by(ROWS))
        for on in found.places
    )
    every = union_all(*(first.limit(at_most) for first in firsts)).subquery()
    return _first_of(every.c, order, at_most)


def _gathered(found: _Found, order: _Order, position: dict[str, str], at_most: int) -> tuple[Sequence[Row[Any]], int]:
    """The rows of a page, and how many match."""
    query, number = _gather(found, order, at_most)
    rows = db.session.execute(query, position).all()
    return rows, rows[0].counted if rows else db.session.execute(number).scalar_one()


@lru_cache(maxsize=_KEPT)
def _gather(found: _Found, order: _Order, at_most: int) -> tuple[Select[Any], Select[Any]]:
    """Find all, then sort them: the query of a page and of how many match, and of the latter alone. For what is rare;
    in vain when it is not."""
    every = union_all(*(select(ROWS["id"], ROWS[order.column]).where(*on, *found.conditions) for on in found.places))
    gathered = every.limit(found.exactly_to + 1).cte("found")
    number = select(func.count()).select_from(gathered).scalar_subquery()
    query = _first_of(gathered.c, order, at_most, *order.after(gathered.c))
    return query.add_columns(number.label("counted")), select(number)


def _first_of(every: Columns, order: _Order, at_most: int, *after: ColumnElement[bool]) -> Select[Any]:
    """The facts of those that come first of what was found."""
    first = select(every["id"]).where(*after).order_by(*order.by(every)).limit(at_most)
    return FACTS.where(LoginSession.id.in_(first)).order_by(*order.by(ROWS))


def count_active(user_id: UUID) -> int:
    """A user's, however many. Within a transaction under way."""
    number = select(func.count()).select_from(LoginSession).where(LoginSession.user_id == user_id, is_active())
    return int(db.session.scalar(number) or 0)


def count_matching(wanted: SessionFilter) -> tuple[int, bool]:
    """How many match: exactly up to `COUNT_EXACTLY_TO`, beyond it the planner's estimate. Within a transaction under
    way."""
    return _count(_look_up(wanted), afresh=True)


def _count(found: _Found, *, afresh: bool = False) -> tuple[int, bool]:
    expected = found.expected_to_count.read(afresh=afresh)
    if expected > 2 * found.exactly_to:
        return expected, False
    counted, too_many = db.session.execute(found.numbers).one()
    return (counted - too_many, True) if counted <= found.exactly_to else (max(counted, expected), False)


def _number(places: list[Conditions], conditions: Conditions, *, at_most: int | None = None) -> ColumnElement[int]:
    """How many sessions there are in these places, for use within a query."""
    if not places:
        return literal(0)
    return select(func.count()).select_from(_all_in(places, conditions).limit(at_most).subquery()).scalar_subquery()


def _all_in(places: list[Conditions], conditions: Conditions) -> CompoundSelect[Any]:
    return union_all(*(select(literal(1).label("one")).where(*on, *conditions) for on in places))
