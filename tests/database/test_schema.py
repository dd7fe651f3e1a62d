"""schema.sql itself: applied again and again, its constraints, its stamps, and who waits for whom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from models import database
from models.database import SCHEMA, apply_schema, transaction
from models.database_errors import Busy, schema_errors
from tests.actors import Actor
from tests.conftest import MakeUser
from tests.database.conftest import add_session, add_user, all_at_once, one, wait_until
from tools.postgres import EmbeddedPostgres

OBJECTS = """
SELECT 'column', c.table_name, c.column_name, c.data_type || coalesce(c.column_default, '')
FROM information_schema.columns AS c WHERE c.table_schema = 'public'
UNION ALL SELECT 'index', i.tablename, i.indexname, i.indexdef FROM pg_indexes AS i WHERE i.schemaname = 'public'
UNION ALL SELECT 'trigger', t.tgrelid::regclass::text, t.tgname, t.tgenabled::text || pg_get_triggerdef(t.oid)
FROM pg_trigger AS t WHERE NOT t.tgisinternal
UNION ALL SELECT 'constraint', n.conrelid::regclass::text, n.conname, pg_get_constraintdef(n.oid)
FROM pg_constraint AS n WHERE n.connamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""
WORKER = "INSERT INTO workers (id, service, host, pid, lease_s) VALUES (gen_random_uuid(), 's', 'h', 1, %s)"


def objects(psql: psycopg.Connection) -> list[tuple[Any, ...]]:
    return psql.execute(OBJECTS).fetchall()


def rows(psql: psycopg.Connection) -> list[Any]:
    tables = ("users", "user_roles", "login_sessions", "cutoffs", "everyone", "revocations")
    return [psql.execute(f"SELECT t::text FROM {table} AS t").fetchall() for table in tables]


def test_applying_the_schema_again_changes_nothing(psql: psycopg.Connection, database_url: str) -> None:
    user_id = add_user(psql, "alice", "viewer")
    add_session(psql, user_id)
    psql.execute("UPDATE users SET gen = 3")
    psql.execute("UPDATE everyone SET gen = 5")
    before = objects(psql), rows(psql)
    apply_schema(database_url)
    apply_schema(database_url)
    assert (objects(psql), rows(psql)) == before


def test_whoever_applies_it_meets_a_worker_in_a_deadlock_and_begins_anew(
    psql: psycopg.Connection, database_url: str
) -> None:
    before = objects(psql)
    with psycopg.connect(database_url) as worker, ThreadPoolExecutor(1) as threads:
        worker.execute("SET deadlock_timeout = '30s'")  # the other one finds it, and is given up
        worker.execute("LOCK TABLE sign_in_attempts IN ROW EXCLUSIVE MODE")
        applied = threads.submit(apply_schema, database_url)
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'sign_in_attempts'::regclass AND NOT granted)"
        wait_until(lambda: one(psql, waits), "the schema waits for the worker")
        worker.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        worker.commit()
        applied.result(30)
    assert objects(psql) == before


def test_while_the_schema_waits_for_a_forgotten_transaction_others_get_through(
    psql: psycopg.Connection, database_url: str, root: Actor, alice: Actor, make_user: MakeUser
) -> None:
    bob = make_user("bob")
    with ThreadPoolExecutor(1) as threads:
        with psql.transaction(force_rollback=True):
            psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
            applied = threads.submit(apply_schema, database_url)
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted)"
            wait_until(lambda: one(psql, waits), "the schema waits")
            assert root.delete(f"/admin/sessions/{bob.user_id}").status_code == 200
            assert not applied.done()
        assert applied.exception(30) is None


def test_whoever_applies_it_and_waits_in_vain_is_told_to_look_for_a_forgotten_transaction(
    psql: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_SCHEMA_TRIES", 2)
    with psql.transaction(force_rollback=True):
        psql.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        with pytest.raises(Busy, match="look for a forgotten transaction"), schema_errors():
            apply_schema(database_url)


def test_a_database_from_before_the_shelves_gets_them(psql: psycopg.Connection, database_url: str) -> None:
    after = objects(psql)
    add_session(psql, add_user(psql, "alice"), ended_at=one(psql, "SELECT now()"))
    psql.execute("ALTER TABLE login_sessions DROP COLUMN shelf, DROP COLUMN lapsed")
    psql.execute("DROP TABLE unmarked_ends, former_names")
    psql.execute("CREATE INDEX login_sessions_newest ON login_sessions (created_at DESC, id DESC)")
    apply_schema(database_url)
    assert objects(psql) == after
    assert one(psql, "SELECT shelf FROM login_sessions") == -1


def test_a_database_from_before_leases_were_bounded_gets_the_bound(psql: psycopg.Connection, database_url: str) -> None:
    after = objects(psql)
    psql.execute("ALTER TABLE workers DROP CONSTRAINT workers_lease_s_check")
    for lease_s in ("Infinity", "NaN", "2", None):
        psql.execute(WORKER, (lease_s,))
    apply_schema(database_url)
    assert objects(psql) == after
    assert psql.execute("SELECT lease_s FROM workers ORDER BY 1").fetchall() == [(2.0,), (None,)]


@pytest.mark.parametrize("lease_s", ["Infinity", "NaN", "-1", "3601"])
def test_no_service_can_write_a_lease_that_no_one_can_count_with(psql: psycopg.Connection, lease_s: str) -> None:
    psql.execute("SET ROLE lastcall_service")
    with pytest.raises(psycopg.errors.CheckViolation):
        psql.execute(WORKER, (lease_s,))


def test_a_database_whose_encoding_is_not_utf_8_is_refused(
    postgres: EmbeddedPostgres, psql: psycopg.Connection
) -> None:
    psql.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(psycopg.NotSupportedError, match="the encoding of this database is LATIN1; make one with "):
            apply_schema(postgres.url("latin"))
    finally:
        postgres.drop_database("latin")


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_four_can_apply_the_schema_to_an_empty_database_at_once(
    postgres: EmbeddedPostgres, psql: psycopg.Connection, database_url: str, isolation: str
) -> None:
    url = postgres.create_database("empty")
    try:
        psql.execute(f"ALTER DATABASE empty SET default_transaction_isolation = '{isolation}'")
        assert all_at_once(*[lambda: apply_schema(url)] * 4) == [None] * 4
        with psycopg.connect(url) as there, psycopg.connect(database_url) as here:
            assert objects(there) == objects(here)
            assert one(there, "SELECT count(*) FROM everyone") == 1
    finally:
        postgres.drop_database("empty")


def test_the_schema_stands_in_the_promised_order() -> None:
    text = SCHEMA.read_text(encoding="utf-8")
    places = [text.index(f"- {part}\n") for part in ("enums", "tables", "indices", "functions", "triggers")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO users (username, password_hash) VALUES ('', 'x')",
        "INSERT INTO users (username, password_hash) VALUES (repeat('x', 101), 'x')",
        "INSERT INTO users (username, password_hash) VALUES ('ALICE', 'x')",
        "INSERT INTO users (username, password_hash, gen) VALUES ('bob', 'x', -1)",
        "INSERT INTO users (username, password_hash, gen) VALUES ('bob', 'x', 9007199254740992)",
        "UPDATE users SET id = gen_random_uuid()",
        "INSERT INTO user_roles VALUES (gen_random_uuid(), 'viewer')",
        "INSERT INTO user_roles SELECT id, '' FROM users",
        "INSERT INTO user_roles SELECT id, repeat('x', 65) FROM users",
        "INSERT INTO user_roles SELECT id, 'viewer' FROM users",
        "INSERT INTO everyone (one) VALUES (TRUE)",
        "INSERT INTO everyone (one) VALUES (FALSE)",
        "INSERT INTO cutoffs (scope, subject, expires_at) VALUES ('nobody', '', now())",
        "INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ('user', '1', -1, now())",
        "INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ('user', '1', 9007199254740992, now())",
        "INSERT INTO revocations (scope, actor_name, cause, cutoff_at, sessions_ended, expires_at, reason)"
        " VALUES ('user', 'x', 'x', now(), 0, now(), repeat('x', 501))",
        "INSERT INTO revocations (scope, actor_name, cause, cutoff_at, sessions_ended, expires_at)"
        " VALUES ('nobody', 'x', 'x', now(), 0, now())",
    ],
)
def test_a_constraint_refuses(psql: psycopg.Connection, statement: str) -> None:
    add_user(psql, "alice", "viewer")
    with pytest.raises((psycopg.IntegrityError, psycopg.DataError)):
        psql.execute(statement)


@pytest.mark.parametrize("column", ["min_gen", "cutoff_at", "expires_at"])
def test_no_writer_can_lower_a_cutoff(psql: psycopg.Connection, column: str) -> None:
    psql.execute("INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ('user', 'x', 7, now() + '1 h')")
    before = one(psql, f"SELECT {column} FROM cutoffs")
    lower = "3" if column == "min_gen" else f"{column} - interval '1 minute'"
    psql.execute(f"UPDATE cutoffs SET {column} = {lower}")
    assert one(psql, f"SELECT {column} FROM cutoffs") == before


@pytest.mark.parametrize("table", ["users", "everyone"])
def test_no_writer_can_lower_a_generation(psql: psycopg.Connection, table: str) -> None:
    add_user(psql, "alice")
    psql.execute(f"UPDATE {table} SET gen = 7")
    psql.execute(f"UPDATE {table} SET gen = 3")
    assert one(psql, f"SELECT gen FROM {table}") == 7


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO cutoffs (scope, subject, xid, expires_at) VALUES ('session', 'new', '3', now() + '1 h')",
        "UPDATE cutoffs SET min_gen = 2, xid = '3'",
        "INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ('session', 'old', 1, now())"
        " ON CONFLICT (scope, subject) DO UPDATE SET min_gen = 1",
    ],
)
def test_every_write_of_a_cutoff_is_stamped_and_announced(psql: psycopg.Connection, statement: str) -> None:
    psql.execute(
        "INSERT INTO cutoffs (scope, subject, min_gen, expires_at) VALUES ('session', 'old', 1, now() + '1 h')"
    )
    psql.execute("LISTEN lastcall_cutoffs")
    with psql.transaction():
        psql.execute(statement)
        mine = one(psql, "SELECT pg_current_xact_id()::text")
    assert one(psql, "SELECT max(xid)::text FROM cutoffs") == mine
    assert [note.channel for note in psql.notifies(timeout=5, stop_after=1)] == ["lastcall_cutoffs"]


def test_a_rolled_back_cutoff_is_not_announced(psql: psycopg.Connection) -> None:
    psql.execute("LISTEN lastcall_cutoffs")
    with psql.transaction(force_rollback=True):
        psql.execute("SELECT raise_cutoff('session', 'x', 0, now() + '1 h')")
    psql.execute("SELECT pg_notify('lastcall_cutoffs', 'the end')")
    assert [note.payload for note in psql.notifies(timeout=5, stop_after=1)] == ["the end"]


def test_ten_thousand_cutoffs_in_one_transaction_announce_themselves_in_one_empty_line(
    psql: psycopg.Connection,
) -> None:
    psql.execute("LISTEN lastcall_cutoffs")
    psql.execute("SELECT raise_cutoff('session', n::text, 0, now() + '1 h') FROM generate_series(1, 10000) AS n")
    psql.execute("SELECT pg_notify('lastcall_cutoffs', 'the end')")
    assert [note.payload for note in psql.notifies(timeout=5, stop_after=2)] == ["", "the end"]


def test_a_forgotten_transaction_on_one_user_blocks_nobody_else(
    psql: psycopg.Connection, root: Actor, alice: Actor, make_user: Any
) -> None:
    bob = make_user("bob", "viewer")
    with psql.transaction(force_rollback=True):
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
        answer = root.delete(f"/admin/sessions/{bob.user_id}")
        assert (answer.status_code, answer.json["in_force"]) == (200, True)
        assert not bob.is_in()
        assert bob.again().is_in() and alice.again().is_in()
        assert root.delete("/admin/sessions?keep_current=true").status_code == 200


def test_a_forgotten_transaction_on_a_user_makes_his_own_force_logout_fail_clearly(
    psql: psycopg.Connection, root: Actor, alice: Actor, client: FlaskClient
) -> None:
    with psql.transaction(force_rollback=True):
        psql.execute("DELETE FROM user_roles WHERE user_id = %s", (alice.user_id,))
        answer = root.delete(f"/admin/sessions/{alice.user_id}")
        assert (answer.status_code, answer.json["code"]) == (503, "database_busy")
        assert int(answer.headers["Retry-After"]) >= 1
    assert alice.is_in()
    assert root.delete(f"/admin/sessions/{alice.user_id}").status_code == 200
    assert not alice.is_in()


@pytest.mark.parametrize(
    "change", ["UPDATE revocations SET reason = ''", "DELETE FROM revocations", "TRUNCATE revocations"]
)
def test_the_history_is_append_only_for_the_servers_own_processes(psql: psycopg.Connection, change: str) -> None:
    psql.execute("UPDATE everyone SET gen = gen + 1")
    psql.execute("SET ROLE lastcall_app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        psql.execute(change.encode())
    assert one(psql, "SELECT count(*) FROM revocations") == 1


def test_nothing_is_compiled_least_of_all_where_a_kind_of_plan_is_off(psql: psycopg.Connection, app: Flask) -> None:
    off = "SELECT proname, 'jit=off' = ANY(proconfig) FROM pg_proc WHERE 'enable_seqscan=off' = ANY(proconfig)"
    compiles_nothing = dict(psql.execute(off).fetchall())
    assert compiles_nothing.keys() >= {"cut_off_user", "cutoffs_at_commit"}
    assert all(compiles_nothing.values()), compiles_nothing
    with app.app_context(), transaction() as session:
        assert session.scalar(text("SHOW jit")) == "off"
