"""The list of sessions: every filter, every sort, pages that visit each row once, and a plan that uses its index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from blueprints.server import Server
from models import search, session_list
from models.database import db, transaction
from models.demo import invent_sessions
from models.errors import BadCursor
from models.login_session import note_seen
from models.session_filter import SessionFilter
from models.session_list import SORTS, list_sessions
from settings import Settings
from tests.database.conftest import add_session, add_user, one, statements

pytestmark = pytest.mark.usefixtures("context")

Sessions = dict[str, str]


@pytest.fixture
def sessions(psql: psycopg.Connection) -> Sessions:
    """Sessions by a name of their own: active ones that differ in everything, then those that are over."""
    now: datetime = one(psql, "SELECT clock_timestamp()")
    ann, bob, odd = add_user(psql, "Ann"), add_user(psql, "bob"), add_user(psql, "100%_sure\\")
    gone, out, behind = add_user(psql, "gone"), add_user(psql, "out"), add_user(psql, "behind")

    def ago(hours: float, **columns: Any) -> dict[str, Any]:
        moment = now - timedelta(hours=hours)
        return {"created_at": moment, "last_seen_at": moment, **columns}

    rows = {
        "ann, web": (ann, ago(1, client_id="web", ip="10.0.0.7", roles=["admin", "viewer"])),
        "ann, cli": (ann, ago(2, client_id="cli", ip="10.0.1.7", last_ip="203.0.113.9", roles=["admin"])),
        "bob": (bob, ago(3, client_id="web", ip="2001:db8::1", last_ip="2001:db8::1", roles=["viewer"])),
        "odd": (odd, ago(4, client_id="50%", ip=None, last_ip=None, roles=[])),
        "bob, ended": (bob, ago(5, ended_at=now, ended_by="root", end_reason="enough")),
        "bob, expired": (bob, ago(6, expires_at=now - timedelta(minutes=1))),
        "gone": (gone, ago(7)),
        "out": (out, ago(8)),
        "behind": (behind, ago(9)),
    }
    made = {name: add_session(psql, user_id, **columns) for name, (user_id, columns) in rows.items()}
    psql.execute("DELETE FROM users WHERE username = 'gone'")
    psql.execute("UPDATE users SET disabled_at = now() WHERE username = 'out'")
    psql.execute("UPDATE users SET gen = gen + 1 WHERE username = 'behind'")
    return made


def found(sessions: Sessions, wanted: SessionFilter, **options: Any) -> list[str]:
    names = {session_id: name for name, session_id in sessions.items()}
    page = list_sessions(wanted, **options)
    assert page.total == len(page.items) and page.total_is_exact
    return [names[item.session_id] for item in page.items]


ALL_ACTIVE = ["ann, web", "ann, cli", "bob", "odd"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ALL_ACTIVE),
        ({"user": "ann"}, ALL_ACTIVE[:2]),
        ({"user": "AN"}, []),
        ({"q": "ann"}, ALL_ACTIVE[:2]),
        ({"q": "B"}, ["ann, web", "bob"]),
        ({"q": "10.0."}, ALL_ACTIVE[:2]),
        ({"q": "203.0.113"}, ["ann, cli"]),
        ({"q": "2001:db8"}, ["bob"]),
        ({"q": "web"}, ["ann, web", "bob"]),
        ({"q": "%"}, ["odd"]),
        ({"q": "_"}, ["odd"]),
        ({"q": "\\"}, ["odd"]),
        ({"q": "50%"}, ["odd"]),
        ({"q": "0_0"}, []),
        ({"q": "' OR 1=1 --"}, []),
        ({"role": "admin"}, ALL_ACTIVE[:2]),
        ({"role": "viewer"}, ["ann, web", "bob"]),
        ({"role": "%"}, []),
        ({"client": "web"}, ["ann, web", "bob"]),
        ({"client": "WEB"}, []),
        ({"ip": "10.0.0.7/32"}, ["ann, web"]),
        ({"ip": "10.0.0.0/15"}, ALL_ACTIVE[:2]),
        ({"ip": "203.0.113.9"}, ["ann, cli"]),
        ({"ip": "2001:db8::/32"}, ["bob"]),
        ({"ip": "0.0.0.0/0"}, ALL_ACTIVE[:2]),
        ({"user": "ann", "client": "web", "role": "viewer"}, ["ann, web"]),
        ({"user": "bob", "client": "cli"}, []),
        ({"state": "ended"}, ["bob, ended", "gone", "out", "behind"]),
        ({"state": "expired"}, ["bob, expired"]),
        ({"state": "all"}, [*ALL_ACTIVE, "bob, ended", "bob, expired", "gone", "out", "behind"]),
        ({"state": "all", "user": "bob"}, ["bob", "bob, ended", "bob, expired"]),
    ],
)
def test_a_filter_shows_just_what_it_says(sessions: Sessions, wanted: dict[str, Any], expected: list[str]) -> None:
    assert found(sessions, SessionFilter(**wanted)) == expected


def test_a_user_is_found_by_his_id_as_well(sessions: Sessions, psql: psycopg.Connection) -> None:
    user_id = str(one(psql, "SELECT id FROM users WHERE username = 'Ann'"))
    assert found(sessions, SessionFilter(user=user_id)) == ALL_ACTIVE[:2]
    assert found(sessions, SessionFilter(user=user_id.upper())) == ALL_ACTIVE[:2]
    assert found(sessions, SessionFilter(user_id=user_id)) == ALL_ACTIVE[:2]


def test_since_is_the_first_moment_and_until_the_first_one_after(sessions: Sessions, psql: psycopg.Connection) -> None:
    moment = one(psql, "SELECT created_at FROM login_sessions WHERE id = %s", (sessions["bob"],))
    assert found(sessions, SessionFilter(since=moment)) == ALL_ACTIVE[:3]
    assert found(sessions, SessionFilter(until=moment)) == ["odd"]
    assert found(sessions, SessionFilter(since=moment, until=moment + timedelta(microseconds=1))) == ["bob"]


def test_a_log_out_of_everyone_ends_them_all_and_says_by_whom(sessions: Sessions, psql: psycopg.Connection) -> None:
    psql.execute("UPDATE everyone SET gen = gen + 1")
    assert found(sessions, SessionFilter()) == []
    ended = {item.session_id: item for item in list_sessions(SessionFilter(state="ended")).items}
    assert len(ended) == 9, "also who had expired: it counts as ended now"
    assert ended[sessions["bob"]].ended_by == "database role lastcall"
    assert ended[sessions["bob, ended"]].ended_by == "root"


def test_the_state_of_each_session_is_told(sessions: Sessions) -> None:
    states = {item.session_id: item.state for item in list_sessions(SessionFilter(state="all")).items}
    for name, session_id in sessions.items():
        over = "expired" if "expired" in name else "ended"
        assert states[session_id] == ("active" if name in ALL_ACTIVE else over), name


@pytest.fixture
def many(psql: psycopg.Connection, settings: Settings, context: None) -> set[str]:
    """300 invented sessions, of which groups of ten began, and were seen, at the same moment."""
    assert list(invent_sessions(300, settings)) == [300]
    psql.execute(
        "UPDATE login_sessions AS s SET created_at = now() - make_interval(secs => v.n / 10),"
        " last_seen_at = now() - make_interval(secs => (v.n * 7) % 31)"
        " FROM (SELECT id, row_number() OVER () AS n FROM login_sessions) AS v WHERE s.id = v.id"
    )
    return {str(row[0]) for row in psql.execute("SELECT id FROM login_sessions")}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [37, 100])
def test_the_pages_visit_each_session_once_in_order(many: set[str], sort: str, limit: int) -> None:
    visited, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = list_sessions(SessionFilter(), sort=sort, limit=limit, cursor=cursor)
        assert page.total == 300 and page.total_is_exact
        visited += page.items
        cursor, pages = page.next, pages + 1
    assert len(visited) == 300 and {item.session_id for item in visited} == many
    assert pages == -(-300 // limit)
    values = [getattr(item, sort.removeprefix("-")) for item in visited]
    assert values == sorted(values, reverse=sort.startswith("-"))


def test_a_session_that_begins_meanwhile_moves_no_page(many: set[str], psql: psycopg.Connection) -> None:
    first = list_sessions(SessionFilter(), limit=100)
    add_session(psql, str(one(psql, "SELECT id FROM users LIMIT 1")))
    second = list_sessions(SessionFilter(), limit=100, cursor=first.next)
    third = list_sessions(SessionFilter(), limit=100, cursor=second.next)
    assert {item.session_id for page in (first, second, third) for item in page.items} == many
    assert third.next is None


def test_what_was_seen_is_written_in_one_statement(psql: psycopg.Connection) -> None:
    ann = add_user(psql, "Ann")
    before = datetime(2026, 1, 1, tzinfo=UTC)
    moved, stayed, newer, other = (add_session(psql, ann, last_seen_at=before) for _ in range(4))
    later, earlier = before + timedelta(minutes=5), before - timedelta(minutes=5)
    gone = "00000000-0000-4000-8000-00000000dead"
    seen = [(moved, "203.0.113.5", later), (stayed, None, later), (newer, "203.0.113.5", earlier), (gone, None, later)]
    with statements(db.engine) as sent:
        note_seen(seen)
    assert len(sent) == 1
    found = psql.execute("SELECT id::text, host(last_ip), last_seen_at FROM login_sessions").fetchall()
    assert {id: (ip, at) for id, ip, at in found} == {
        moved: ("203.0.113.5", later),
        stayed: ("192.0.2.1", later),
        newer: ("192.0.2.1", before),
        other: ("192.0.2.1", before),
    }


def test_the_housekeeping_writes_what_was_seen(server: Server, psql: psycopg.Connection) -> None:
    session_id = add_session(psql, add_user(psql, "Ann"), last_seen_at=datetime(2026, 1, 1, tzinfo=UTC))
    server.seen.note(session_id, lambda: "203.0.113.5")
    server.housekeeper.tick()
    row = psql.execute(
        "SELECT host(last_ip), last_seen_at > now() - interval '1 minute' FROM login_sessions WHERE id = %s",
        (session_id,),
    ).fetchone()
    assert row == ("203.0.113.5", True)


@pytest.mark.usefixtures("many")
def test_a_list_of_too_many_to_gather_is_not_gathered_in_vain_again(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    psql.execute("ANALYZE login_sessions")
    monkeypatch.setattr(session_list, "COUNT_EXACTLY_TO", 100)
    wanted = SessionFilter(q="web")

    def asked() -> list[str]:
        with statements(db.engine) as sent:
            page = list_sessions(wanted, limit=10)
        assert len(page.items) == 10 and not page.total_is_exact and page.total > 100
        return [statement for statement, _ in sent if statement.lstrip().startswith("WITH found")]

    assert (len(asked()), len(asked())) == (1, 0)


def test_a_name_that_too_many_have_is_not_looked_for_again_on_the_next_page(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_USERS", 2)
    made = {add_session(psql, add_user(psql, f"annette {number}")) for number in range(3)}

    def looked_for() -> bool:
        with statements(db.engine) as sent:
            assert {item.session_id for item in list_sessions(SessionFilter(q="annette")).items} == made
        return bool(next(parameters["users"] for _, parameters in sent if parameters and "users" in parameters))

    assert (looked_for(), looked_for()) == (True, False)
    with transaction(), statements(db.engine) as sent:
        session_list.count_matching(SessionFilter(q="annette"))  # a dialog, or an act, knows nothing of before
    assert next(parameters["users"] for _, parameters in sent if parameters and "users" in parameters)
    later_ns = search.boottime_ns() + (search.COMMON_S + 1) * 1_000_000_000
    monkeypatch.setattr(search, "boottime_ns", lambda: later_ns)
    assert looked_for()


@pytest.mark.usefixtures("many")
def test_whoever_goes_through_the_pages_builds_no_query_anew() -> None:
    wanted = SessionFilter(client="web")
    second = list_sessions(
        wanted, sort="username", limit=10, cursor=list_sessions(wanted, sort="username", limit=10).next
    )
    queries = (session_list._found, session_list._walk, session_list._gather)
    built = [query.cache_info().misses for query in queries]
    third = list_sessions(wanted, sort="username", limit=10, cursor=second.next)
    assert [query.cache_info().misses for query in queries] == built
    assert second.items[-1].username <= third.items[0].username


@pytest.mark.usefixtures("many")
def test_the_planner_is_asked_again_after_some_seconds_and_when_the_table_was_analysed(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    psql.execute("ALTER TABLE login_sessions SET (autovacuum_enabled = off)")
    session_list._found.cache_clear()  # the list of another test's database

    def explained() -> int:
        with statements(db.engine) as sent:
            assert list_sessions(SessionFilter(since=datetime(2020, 1, 1, tzinfo=UTC))).total == 300
        return sum(statement.startswith("EXPLAIN") for statement, _ in sent)

    assert [explained(), explained(), explained()] == [1, 0, 0]
    later_ns = session_list.boottime_ns() + (session_list.ESTIMATE_S + 1) * 1_000_000_000
    monkeypatch.setattr(session_list, "boottime_ns", lambda: later_ns)
    assert [explained(), explained()] == [1, 0]
    psql.execute("ANALYZE login_sessions")
    assert [explained(), explained()] == [1, 0]


def test_a_cursor_is_good_for_its_own_list_only(many: set[str]) -> None:
    cursor = list_sessions(SessionFilter(), limit=10).next
    assert cursor is not None
    for wanted, sort in ((SessionFilter(client="web"), "-created_at"), (SessionFilter(), "created_at")):
        with pytest.raises(BadCursor):
            list_sessions(wanted, sort=sort, cursor=cursor)
    for forged in (cursor[:-1], "x" + cursor, cursor.replace(".", ""), "."):
        with pytest.raises(BadCursor):
            list_sessions(SessionFilter(), cursor=forged)


@pytest.mark.usefixtures("many")
def test_beyond_ten_thousand_the_total_is_an_estimate(
    psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session_list.COUNT_EXACTLY_TO == 10_000
    psql.execute("ANALYZE")
    for exactly_to in (300, 299, 100):
        monkeypatch.setattr(session_list, "COUNT_EXACTLY_TO", exactly_to)
        with transaction():
            total, exact = session_list.count_matching(SessionFilter())
        assert exact == (exactly_to == 300)
        assert total == 300 if exact else 300 <= total < 3000
