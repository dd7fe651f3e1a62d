"""The list of sessions: a page by keyset, wherever it lies, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

from sqlalchemy import ColumnElement, CompoundSelect, Row, Select, cast, func, literal, select, tuple_, union_all
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from models.cursor import read_cursor, write_cursor
from models.database import db, expected_rows, snapshot
from models.login_session import FACTS, LoginSession, SessionFacts, facts_of, is_active
from models.session_filter import Conditions, SessionFilter, fits
from models.shelves import Shelves, places_of, read_shelves, sums_of

COUNT_EXACTLY_TO = 10_000
State = Literal["active", "ended", "expired", "all"]
Sort = Literal["-created_at", "created_at", "-last_seen_at", "last_seen_at", "username", "-username"]
STATES: tuple[State, ...] = get_args(State)
SORTS: tuple[Sort, ...] = get_args(Sort)
ROWS = LoginSession.__table__.c
Columns = ReadOnlyColumnCollection[str, Any]


@dataclass(frozen=True, slots=True)
class SessionPage:
    items: list[SessionFacts]
    next: str | None
    total: int
    total_is_exact: bool


class _Order:
    """How a list is sorted, and the conditions of what comes after a cursor."""

    def __init__(self, sort: str, position: list[str] | None) -> None:
        self.column, self._down, self._position = sort.removeprefix("-"), sort.startswith("-"), position

    def by(self, columns: Columns) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        key, session_id = columns[self.column], columns["id"]
        return (key.desc(), session_id.desc()) if self._down else (key, session_id)

    def after(self, columns: Columns) -> Conditions:
        if self._position is None:
            return []
        here = columns[self.column], columns["id"]
        place: Any = tuple_(*(cast(value, column.type) for value, column in zip(self._position, here, strict=True)))
        return [tuple_(*here) < place if self._down else tuple_(*here) > place]


def list_sessions(
    wanted: SessionFilter, *, sort: str = "-created_at", limit: int = 50, cursor: str | None = None
) -> SessionPage:
    """One page of the sessions that match, by keyset. Raises BadCursor."""
    context = {"list": "sessions", "sort": sort, **wanted.as_json()}
    order = _Order(sort, read_cursor(cursor, context, 2) if cursor else None)
    with snapshot():  # what is on which shelf must not change in between
        rows, total, exact = _find(wanted, order, limit + 1)
        items = facts_of(rows[:limit])
    if len(rows) <= limit:
        return SessionPage(items, None, total, exact) if cursor else SessionPage(items, None, len(items), True)
    last = getattr(items[-1], order.column)
    position = [last.isoformat() if isinstance(last, datetime) else last, items[-1].session_id]
    return SessionPage(items, write_cursor(position, context), total, exact)


def _find(wanted: SessionFilter, order: _Order, at_most: int) -> tuple[Sequence[Row[Any]], int, bool]:
    """The rows of a page; how many match, and whether that is exact."""
    shelves, (conditions, found_by) = read_shelves(for_a_list=True), fits(wanted)
    places = places_of(wanted.state, shelves)
    if not conditions or (found_by == "in order" and order.column == "created_at"):
        return _walk(places, conditions, order, at_most), *_count(wanted.state, shelves, conditions)
    expected = expected_rows(_all_in(places, conditions))
    # What the planner knows nothing of it takes for half a per cent.
    if found_by != "no index" and expected <= max(2 * COUNT_EXACTLY_TO, shelves.rows // 100):
        rows, counted = _gather(places, conditions, order, at_most)
        if counted <= COUNT_EXACTLY_TO:
            return rows, counted, True
        expected = max(expected, counted)
    return _walk(places, conditions, order, at_most), expected, False


def _walk(places: list[Conditions], conditions: Conditions, order: _Order, at_most: int) -> Sequence[Row[Any]]:
    """Each shelf gives its first ones in order, and the first of all of them are among these. For what is common."""
    firsts = (
        select(ROWS["id"], ROWS[order.column]).where(*on, *conditions, *order.after(ROWS)).order_by(*order.by(ROWS))
        for on in places
    )
    found = union_all(*(first.limit(at_most) for first in firsts)).subquery()
    return db.session.execute(_first_of(found.c, order, at_most)).all()


def _gather(
    places: list[Conditions], conditions: Conditions, order: _Order, at_most: int
) -> tuple[Sequence[Row[Any]], int]:
    """Find all, then sort them: the rows of a page, and how many match. For what is rare; in vain when it is not."""
    every = union_all(*(select(ROWS["id"], ROWS[order.column]).where(*on, *conditions) for on in places))
    found = every.limit(COUNT_EXACTLY_TO + 1).cte("found")
    number = select(func.count()).select_from(found).scalar_subquery()
    query = _first_of(found.c, order, at_most, *order.after(found.c)).add_columns(number.label("counted"))
    rows = db.session.execute(query).all()
    return rows, rows[0].counted if rows else db.session.execute(select(number)).scalar_one()


def _first_of(found: Columns, order: _Order, at_most: int, *after: ColumnElement[bool]) -> Select[Any]:
    """The facts of those that come first of what was found."""
    first = select(found["id"]).where(*after).order_by(*order.by(found)).limit(at_most)
    return FACTS.where(LoginSession.id.in_(first)).order_by(*order.by(ROWS))


def count_active(user_id: UUID) -> int:
    """A user's, however many. Within a transaction under way."""
    number = select(func.count()).select_from(LoginSession).where(LoginSession.user_id == user_id, is_active())
    return int(db.session.scalar(number) or 0)


def count_matching(wanted: SessionFilter) -> tuple[int, bool]:
    """How many match: exactly up to `COUNT_EXACTLY_TO`, beyond it the planner's estimate. Within a transaction under
    way."""
    return _count(wanted.state, read_shelves(), fits(wanted).conditions)


def _count(state: str, shelves: Shelves, conditions: Conditions) -> tuple[int, bool]:
    places, strays = sums_of(state, shelves)
    expected = expected_rows(_all_in(places, conditions))
    if expected > 2 * COUNT_EXACTLY_TO:
        return expected, False
    number = _number(places, conditions, at_most=COUNT_EXACTLY_TO + 1)
    counted, too_many = db.session.execute(select(number, _number(strays, conditions))).one()
    return (counted - too_many, True) if counted <= COUNT_EXACTLY_TO else (max(counted, expected), False)


def _number(places: list[Conditions], conditions: Conditions, *, at_most: int | None = None) -> ColumnElement[int]:
    """How many sessions there are in these places, for use within a query."""
    if not places:
        return literal(0)
    return select(func.count()).select_from(_all_in(places, conditions).limit(at_most).subquery()).scalar_subquery()


def _all_in(places: list[Conditions], conditions: Conditions) -> CompoundSelect[Any]:
    return union_all(*(select(literal(1).label("one")).where(*on, *conditions) for on in places))
