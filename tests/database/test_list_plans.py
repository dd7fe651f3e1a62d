"""The lists read indices: EXPLAIN of every query of every filter, order and state of the sessions, on 60,000 of them,
and of the lists of users and revocations.

Counts are exact up to 500 here, which is to 50,000 live sessions what 10,000 is to a million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from bench import crowd
from models import force_logout, purge, session_list, shelves
from models.audit import Actor as Who
from models.database import db, transaction
from models.revocation import list_revocations
from models.session_filter import SessionFilter
from models.session_list import SORTS, STATES, list_sessions
from models.user import list_users
from settings import from_environment
from tests.conftest import FAST_ENVIRONMENT, TEMPLATE, running_app
from tests.database.conftest import one, statements
from tools.postgres import EmbeddedPostgres

LIVE, EXACTLY_TO = 50_000, 500
MOST_ROWS = 4_000
"""How many rows of `login_sessions` all queries of one page may look at: of 60,000."""

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "user": {"user": "{name}"},
    "user, by id": {"user": "{user_id}"},
    "nobody": {"user": "nobody"},
    "q, a rare name": {"q": crowd.RARE_NAME},
    "q, many names": {"q": crowd.COMMON_NAME},
    "q, a client": {"q": crowd.CLIENT},
    "q, an address": {"q": "10.1.7"},
    "q, nothing": {"q": "there is no such thing"},
    "role, common": {"role": crowd.COMMON_ROLE},
    "role, rare": {"role": crowd.RARE_ROLE},
    "role, nobody's": {"role": "nobody's"},
    "client": {"client": crowd.CLIENT},
    "client, nobody's": {"client": "nobody's"},
    "ip, an address": {"ip": "{ip}"},
    "ip, a network": {"ip": crowd.NETWORK},
    "ip, half of all": {"ip": "10.0.0.0/9"},
    "ip, nobody's": {"ip": "203.0.113.0/24"},
    "since": {"since": "{moment}"},
    "until": {"until": "{moment}"},
}


@pytest.fixture(scope="module")
def template(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A database with a crowd in it, to be copied."""
    crowd.fill(postgres.create_database("crowd", TEMPLATE), LIVE)
    yield "crowd"
    postgres.drop_database("crowd")


@contextmanager
def app_among(postgres: EmbeddedPostgres, template: str, name: str, signing_key: str, folder: Path) -> Iterator[Flask]:
    url = postgres.create_database(name, template)
    environment = {"DATABASE_URL": url, "LASTCALL_SIGNING_KEY": signing_key, "LASTCALL_DATA_DIR": str(folder)}
    with running_app(from_environment({**FAST_ENVIRONMENT, **environment})) as app:
        yield app
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def crowded(
    postgres: EmbeddedPostgres, template: str, signing_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Flask]:
    with app_among(postgres, template, "crowded", signing_key, tmp_path_factory.mktemp("crowded")) as app:
        yield app


@contextmanager
def within(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    monkeypatch.setattr(session_list, "COUNT_EXACTLY_TO", EXACTLY_TO)
    url = app.extensions["lastcall_server"].settings.database_url
    with app.app_context(), psycopg.connect(url, autocommit=True) as psql:
        yield psql


@pytest.fixture
def crowd_psql(crowded: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection]:
    with within(crowded, monkeypatch) as psql:
        yield psql


@pytest.fixture
def ending_psql(
    postgres: EmbeddedPostgres, template: str, signing_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """For who ends sessions: a crowd of his own."""
    with (
        app_among(postgres, template, "crowd_that_ends", signing_key, tmp_path) as app,
        within(app, monkeypatch) as psql,
    ):
        yield psql


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def looks_at_few(
    psql: psycopg.Connection, wanted: SessionFilter, *, entries: int = 2 * EXACTLY_TO, **options: Any
) -> session_list.SessionPage:
    """Read a page, and every plan of its queries. `entries`: how many of an index a bitmap may have at most."""
    with statements(db.engine) as sent:
        page = list_sessions(wanted, **options)
    looked_at = 0
    for node, rows, told in planned(psql, sent, "login_sessions"):
        if node.get("Relation Name") == "login_sessions":
            assert node["Node Type"] != "Seq Scan", told
            looked_at += rows
        assert "Sort" not in node["Node Type"] or rows <= EXACTLY_TO + 1, told
        if node.get("Relation Name") == "unmarked_ends":
            assert node["Actual Loops"] <= 201, told
        if node["Node Type"] == "Bitmap Index Scan" and node["Index Name"].startswith("login_sessions"):
            assert rows <= entries, told
    assert looked_at <= MOST_ROWS, f"{looked_at:g} rows were looked at: {[statement for statement, _ in sent]}"
    return page


def planned(
    psql: psycopg.Connection, sent: list[tuple[str, Any]], table: str
) -> Iterator[tuple[dict[str, Any], float, str]]:
    """Each node of the plan of each statement on this table, how many rows it looked at, and what to tell of it."""
    for statement, parameters in sent:
        if table not in statement or statement.startswith("EXPLAIN"):
            continue
        plan = one(psql, "EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters)[0]["Plan"]
        for node in nodes(plan):
            rows = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
            yield node, rows, f"{node['Node Type']} of {rows:g} rows in {statement}\n{parameters}\n{plan}"


def wanted_by(psql: psycopg.Connection, given: dict[str, Any]) -> SessionFilter:
    row = psql.execute(
        "SELECT username, user_id::text, host(ip), created_at FROM login_sessions WHERE shelf = 0"
        " ORDER BY created_at OFFSET 25000 LIMIT 1"
    ).fetchone()
    assert row is not None
    known = dict(zip(("{name}", "{user_id}", "{ip}", "{moment}"), row, strict=True))
    return SessionFilter(**{name: known.get(value, value) for name, value in given.items()})


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_found_by_an_index_on_each_page(crowd_psql: psycopg.Connection, name: str) -> None:
    wanted = wanted_by(crowd_psql, FILTERS[name])
    first = looks_at_few(crowd_psql, wanted)
    if first.next:
        second = looks_at_few(crowd_psql, wanted, cursor=first.next)
        assert not {item.session_id for item in first.items} & {item.session_id for item in second.items}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("sort", ["username", "-last_seen_at"])
def test_a_filter_is_found_by_an_index_in_any_order(crowd_psql: psycopg.Connection, name: str, sort: str) -> None:
    looks_at_few(crowd_psql, wanted_by(crowd_psql, FILTERS[name]), sort=sort)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("state", [state for state in STATES if state != "active"])
def test_a_filter_is_found_by_an_index_in_any_state(crowd_psql: psycopg.Connection, name: str, state: str) -> None:
    # Of a rare role the planner knows nothing, so here it may look through the index of a small shelf, too.
    looks_at_few(crowd_psql, replace(wanted_by(crowd_psql, FILTERS[name]), state=state), entries=LIVE // 8)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("state", STATES)
def test_each_state_is_read_in_each_order_wherever_the_page_lies(
    crowd_psql: psycopg.Connection, state: str, sort: str
) -> None:
    cursor = None
    for _ in range(15):  # far in
        cursor = list_sessions(SessionFilter(state=state), sort=sort, limit=200, cursor=cursor).next
    looks_at_few(crowd_psql, SessionFilter(state=state), sort=sort)
    looks_at_few(crowd_psql, SessionFilter(state=state), sort=sort, cursor=cursor)


def test_totals_are_exact_up_to_the_limit_and_near_beyond_it(crowd_psql: psycopg.Connection) -> None:
    rare, all_of = SessionFilter(q=crowd.RARE_NAME), SessionFilter()
    count = "SELECT count(*) FROM login_sessions WHERE shelf = 0"
    with transaction():
        few, many = session_list.count_matching(rare), session_list.count_matching(all_of)
    assert few == (one(crowd_psql, count + " AND username LIKE %s", (f"%{crowd.RARE_NAME}%",)), True)
    assert not many[1] and many[0] == pytest.approx(one(crowd_psql, count), rel=0.1)


def test_a_preview_of_very_many_is_near_and_one_of_few_is_exact(crowd_psql: psycopg.Connection) -> None:
    count = "SELECT count(*), count(DISTINCT user_id) FROM login_sessions WHERE shelf = 0"
    of_all = force_logout.preview(SessionFilter(), None)
    sessions, users = crowd_psql.execute(count).fetchone() or (0, 0)
    assert not of_all.exact and (of_all.sessions, of_all.users) == pytest.approx((sessions, users), rel=0.25)
    of_few = force_logout.preview(SessionFilter(role=crowd.RARE_ROLE), None)
    assert of_few.exact
    assert (of_few.sessions, of_few.users) == crowd_psql.execute(
        count + f" AND '{crowd.RARE_ROLE}' = ANY(roles)"
    ).fetchone()


@pytest.mark.parametrize("act", ["user", "everyone"])
def test_what_has_just_ended_and_is_not_marked_yet_costs_no_more(ending_psql: psycopg.Connection, act: str) -> None:
    root = Who("root", reason="enough")
    user_id = str(one(ending_psql, "SELECT user_id FROM login_sessions WHERE shelf >= 0 LIMIT 1"))
    if act == "user":
        crowd.add_sessions(ending_psql, [user_id], 450)
        ended = force_logout.revoke_user(UUID(user_id), root).sessions_ended
        assert (
            one(ending_psql, "SELECT count(*) FROM login_sessions WHERE shelf >= 0 AND user_id = %s", (user_id,)) > 300
        )
        assert looks_at_few(ending_psql, SessionFilter(user_id=user_id)).total == 0
        page = looks_at_few(ending_psql, SessionFilter(user_id=user_id, state="ended"))
        assert page.total >= ended >= 450
    else:
        force_logout.revoke_everyone(root)
        assert looks_at_few(ending_psql, SessionFilter()).total == 0
        page = looks_at_few(ending_psql, SessionFilter(state="ended"))
        assert page.total > 0.9 * LIVE
    assert ("ended", "root", "enough") in {(item.state, item.ended_by, item.end_reason) for item in page.items}
    for wanted in (SessionFilter(), SessionFilter(state="ended"), SessionFilter(state="all")):
        looks_at_few(ending_psql, wanted)
        looks_at_few(ending_psql, replace(wanted, client=crowd.CLIENT), sort="username")


def plans_of(sent: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Do the same once more, in one transaction."""
    with transaction() as session:
        connection = session.connection()
        explain = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
        return [connection.exec_driver_sql(explain + what, given).scalar_one()[0]["Plan"] for what, given in sent]


def pages_of(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def pages_read(sent: list[tuple[str, Any]]) -> int:
    """Do the same once more. Returns how many pages it reads to find the rows that it writes."""
    writes = [node for plan in plans_of(sent) for node in nodes(plan) if node["Node Type"] == "ModifyTable"]
    assert writes
    return sum(pages_of(part) for node in writes for part in node["Plans"])


@pytest.mark.parametrize("what", ["a user's ends", "everyone's ends", "the expired", "the purge"])
def test_each_batch_of_the_cleaning_begins_where_the_last_one_ended(
    ending_psql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    at_once = 100
    monkeypatch.setattr(purge, "BATCH", at_once)
    some = "SELECT DISTINCT user_id::text FROM login_sessions WHERE shelf >= 0 LIMIT 5"
    user_ids = [row[0] for row in ending_psql.execute(some)]
    crowd.add_sessions(ending_psql, user_ids, 3_000, begun_days=45 if what == "the purge" else 0)
    # As if few had very many: then the planner thinks of a bitmap, or of the whole table.
    ending_psql.execute("ALTER TABLE login_sessions ALTER COLUMN user_id SET (n_distinct = 3000)")
    ending_psql.execute("VACUUM ANALYZE login_sessions")
    clean: Callable[[], int] = purge.PURGES["login_sessions"]
    if what == "a user's ends":
        force_logout.revoke_user(UUID(user_ids[0]), Who("root"))
        clean = partial(shelves.mark_users_ends, at_once)
    elif what == "everyone's ends":
        force_logout.revoke_everyone(Who("root"))
        clean = partial(shelves.mark_everyones_ends, at_once)
    elif what == "the expired":
        ending_psql.execute("UPDATE login_sessions SET expires_at = now() WHERE created_at < now() - interval '6 days'")
        clean = partial(shelves.take_the_expired_away, at_once)
    with statements(db.engine) as sent, transaction():
        assert clean() == at_once
    pages = [pages_read(sent) for _ in range(25)]
    assert max(pages) < pages[0] + at_once, pages


def test_the_shelves_are_found_without_a_look_at_what_was_just_purged(ending_psql: psycopg.Connection) -> None:
    with statements(db.engine) as sent, transaction():
        shelves.read_shelves(for_a_list=True)
    before = sum(map(pages_of, plans_of(sent)))
    ending_psql.execute(
        "DELETE FROM login_sessions WHERE id IN ("
        " SELECT s.id FROM (SELECT DISTINCT shelf FROM login_sessions) AS places CROSS JOIN LATERAL ("
        " SELECT id FROM login_sessions WHERE shelf = places.shelf ORDER BY expires_at LIMIT 3000) AS s)"
    )
    assert sum(map(pages_of, plans_of(sent))) < before + 100


def test_a_force_logout_looks_at_no_session_that_has_ended(ending_psql: psycopg.Connection) -> None:
    user_id = str(one(ending_psql, "SELECT user_id FROM login_sessions WHERE shelf >= 0 LIMIT 1"))
    crowd.add_sessions(ending_psql, [user_id], 3_000)
    ending_psql.execute("UPDATE login_sessions SET ended_at = now() WHERE user_id = %s", (user_id,))
    crowd.add_sessions(ending_psql, [user_id], 30)
    looked_at = text("SELECT idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'login_sessions'")
    with transaction() as session:
        before = session.scalars(looked_at).one()
        session.execute(text("UPDATE users SET gen = gen + 1 WHERE id = :id"), {"id": user_id})
        assert session.scalars(looked_at).one() - before < 300


def test_what_just_ended_is_not_counted_where_it_is_too_many(ending_psql: psycopg.Connection) -> None:
    user_id = str(one(ending_psql, "SELECT user_id FROM login_sessions WHERE shelf >= 0 LIMIT 1"))
    crowd.add_sessions(ending_psql, [user_id], 3 * EXACTLY_TO)
    force_logout.revoke_user(UUID(user_id), Who("root"))
    with statements(db.engine) as sent:
        list_sessions(SessionFilter(user_id=user_id))
    counts = [(what, given) for what, given in sent if "count(*)" in what]
    found = planned(ending_psql, counts, "login_sessions")
    rows = [rows for node, rows, _ in found if node.get("Relation Name") == "login_sessions"]
    assert rows and sum(rows) <= EXACTLY_TO + 1, rows


@pytest.mark.parametrize(
    "wanted",
    [{}, {"q": crowd.RARE_NAME}, {"q": crowd.COMMON_NAME}, {"role": crowd.RARE_ROLE}, {"role": crowd.COMMON_ROLE}],
    ids=str,
)
def test_a_page_of_users_is_found_by_indices_wherever_it_lies(
    crowd_psql: psycopg.Connection, wanted: dict[str, str]
) -> None:
    cursor = None
    for _ in range(3):
        with statements(db.engine) as sent:
            found, cursor = list_users(**wanted, cursor=cursor)
        assert found
        nodes_found = list(planned(crowd_psql, sent, "users"))
        assert nodes_found
        for node, rows, told in nodes_found:
            assert rows <= (MOST_ROWS if node.get("Relation Name") else EXACTLY_TO), told
            assert node["Node Type"] != "Seq Scan", told
        if cursor is None:
            break


def test_a_page_of_the_history_is_found_by_an_index_wherever_it_lies(ending_psql: psycopg.Connection) -> None:
    ending_psql.execute(
        "INSERT INTO revocations"
        " (id, scope, subject, actor_name, cause, cutoff_at, sessions_ended, expires_at, created_at)"
        " SELECT gen_random_uuid(), 'user', gen_random_uuid(), 'root', 'force_logout', at, 1, at, at"
        " FROM (SELECT now() - n * interval '1 min' AS at FROM generate_series(1, 20000) AS n) AS made"
    )
    ending_psql.execute("ANALYZE revocations")
    cursor = None
    for _ in range(3):
        with statements(db.engine) as sent:
            found, cursor = list_revocations(limit=200, cursor=cursor)
        assert len(found) == 200
        for node, rows, told in planned(ending_psql, sent, "revocations"):
            assert rows <= 201 and "Sort" not in node["Node Type"], told
