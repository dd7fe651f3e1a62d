"""The application's connections: what PostgreSQL has ended is never used, and what stays prepared on one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC
from typing import Any

import psycopg
import pytest
from flask import Flask, current_app
from sqlalchemy import text

from app import create_app, prepare_database
from lastcall.clock import boottime_ns
from models.database import ENGINE_OPTIONS, apply_schema, db, each_alone, snapshot, transaction
from models.database_errors import AllInUse, Busy
from models.patience import POOL_S, Patience
from models.session_filter import SessionFilter
from models.session_list import list_sessions
from models.shelves import read_shelves
from models.user import create_user
from settings import Settings, SettingsError, from_environment
from tests.actors import Actor
from tests.conftest import PASSWORD, TEMPLATE, running_app
from tools.postgres import EmbeddedPostgres


@pytest.fixture
def pooled(environment: dict[str, str]) -> dict[str, str]:
    """The environment where a transaction-mode pooler may be in between."""
    return environment | {"LASTCALL_LISTEN_URL": environment["DATABASE_URL"] + "&application_name=direct"}


@pytest.mark.usefixtures("context")
def test_the_pool_gives_up_a_connection_before_postgresql_does() -> None:
    with transaction():
        ends_after_ms = db.session.scalar(
            text("SELECT setting::int FROM pg_settings WHERE name = 'idle_session_timeout'")
        )
    assert ends_after_ms > ENGINE_OPTIONS["pool_recycle"] * 1000 > 0


def become_live() -> None:
    """As the listener does, once it has proved that its connection is a direct one."""
    current_app.extensions["lastcall_server"].lastcall.cutoffs.renew_lease(boottime_ns() + 60_000_000_000)


def prepared_by(*filters: SessionFilter) -> list[tuple[str, bool, int]]:
    """What is prepared on the connection once lists have been read: the statement, whether it has parameters, and how
    often a plan was used that is not of its values."""
    for wanted in filters:
        list_sessions(wanted)
    return what_is_prepared()


def what_is_prepared() -> list[tuple[str, bool, int]]:
    with transaction():
        found = db.session.execute(
            text("SELECT statement, parameter_types <> '{}', generic_plans FROM pg_prepared_statements")
        )
        return [(statement, has_parameters, plans) for statement, has_parameters, plans in found]


@pytest.mark.usefixtures("context")
def test_the_statements_of_a_list_are_prepared_and_planned_for_their_values() -> None:
    found = prepared_by(*(SessionFilter(q=name) for name in ("ada", "grace", "hopper", "kay", "liskov") * 3))
    assert any("FROM login_sessions" in statement for statement, _, _ in found)
    assert [statement for statement, has_parameters, plans in found if has_parameters and plans] == []
    assert [plans for statement, has_parameters, plans in found if not has_parameters] == [14], "one plan for shelves"


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(("for_a_list", "planned", "helpers"), [(True, "force_custom_plan", "0"), (False, "auto", "2")])
def test_what_writes_leaves_the_plans_of_triggers_as_they_are(for_a_list: bool, planned: str, helpers: str) -> None:
    """A log-out of everyone and the housekeeping read the shelves, too."""
    with transaction():
        read_shelves(for_a_list=for_a_list)
        assert db.session.scalar(text("SHOW plan_cache_mode")) == planned
        assert db.session.scalar(text("SHOW max_parallel_workers_per_gather")) == helpers


@pytest.mark.usefixtures("context")
def test_a_statement_in_a_transaction_is_not_prepared() -> None:
    before = prepared_by(SessionFilter())
    for name in ("ada", "grace", "hopper"):
        with transaction():
            db.session.execute(text("SELECT id FROM users WHERE username = :name"), {"name": name})
    assert prepared_by() == before


def look_up(*names: str) -> None:
    for name in names:
        with each_alone() as session:
            session.execute(text("SELECT id FROM users WHERE username = :name"), {"name": name})


@pytest.mark.usefixtures("context")
def test_a_statement_alone_stays_prepared_with_its_plan() -> None:
    look_up(*["ada", "grace", "hopper"] * 4)
    [generic_plans] = [plans for statement, _, plans in what_is_prepared() if "FROM users" in statement]
    assert generic_plans > 0


def test_nothing_is_prepared_before_the_listener_has_proved_that_no_pooler_is_in_between(
    environment: dict[str, str],
) -> None:
    with create_app(from_environment(environment)).app_context():
        look_up("ada", "grace", "hopper")
        assert prepared_by(*[SessionFilter()] * 3) == []
        become_live()
        look_up("ada", "grace", "hopper")
        assert len(what_is_prepared()) == 1
        db.engine.dispose()


def test_behind_a_pooler_nothing_is_prepared(pooled: dict[str, str]) -> None:
    with create_app(from_environment(pooled)).app_context():
        become_live()
        look_up("ada", "grace", "hopper")
        assert prepared_by(*[SessionFilter()] * 3) == []
        db.engine.dispose()


@pytest.mark.usefixtures("context")
def test_a_schema_that_is_applied_again_leaves_a_list_readable(environment: dict[str, str]) -> None:
    assert prepared_by(*[SessionFilter()] * 3)
    apply_schema(environment["DATABASE_URL"])
    assert prepared_by(*[SessionFilter()] * 3)


def set_default(url: str, setting: str) -> None:
    with psycopg.connect(url, autocommit=True) as psql:
        psql.execute(f"ALTER DATABASE {psql.info.dbname} SET {setting}")


@pytest.mark.parametrize("is_pooled", [False, True])
def test_times_are_utc_whatever_the_database_says(
    environment: dict[str, str], pooled: dict[str, str], is_pooled: bool
) -> None:
    set_default(environment["DATABASE_URL"], "TimeZone = 'Asia/Kolkata'")
    with create_app(from_environment(pooled if is_pooled else environment)).app_context():
        with transaction():
            moment = db.session.scalar(text("SELECT now()"))
        db.engine.dispose()
    assert moment.tzinfo == UTC


def test_a_listener_of_another_database_stops_the_start(
    postgres: EmbeddedPostgres, environment: dict[str, str], pooled: dict[str, str]
) -> None:
    prepare_database(from_environment(pooled))
    prepare_database(from_environment(pooled | {"LASTCALL_LISTEN_URL": "postgresql://127.0.0.1:1/nobody"}))
    try:
        for template in (TEMPLATE, "template0"):
            other = {"LASTCALL_LISTEN_URL": postgres.create_database("elsewhere", template)}
            with pytest.raises(SettingsError, match=r"^LASTCALL_LISTEN_URL: leads to another database") as refused:
                prepare_database(from_environment(environment | other))
            assert "\n" not in str(refused.value)
            postgres.drop_database("elsewhere")
    finally:
        postgres.drop_database("elsewhere")


@pytest.mark.parametrize("is_pooled", [False, True])
@pytest.mark.parametrize("style", ["German", "SQL, DMY"])
def test_times_are_read_whatever_form_the_database_gives_them(
    environment: dict[str, str], pooled: dict[str, str], is_pooled: bool, style: str
) -> None:
    set_default(environment["DATABASE_URL"], f"DateStyle = '{style}'")
    with running_app(from_environment(pooled if is_pooled else environment)) as app:
        with app.app_context():
            create_user("root", PASSWORD, ["admin"])
        root = Actor.signed_in(app.test_client(), "root", PASSWORD)
        assert root.get("/admin/sessions").json["items"][0]["created_at"].endswith("Z")


@pytest.mark.parametrize("is_pooled", [False, True])
def test_transactions_are_isolated_as_they_ask_for_whatever_the_database_says(
    environment: dict[str, str], pooled: dict[str, str], is_pooled: bool
) -> None:
    set_default(environment["DATABASE_URL"], "default_transaction_isolation = 'serializable'")
    isolation = text("SHOW transaction_isolation")
    with create_app(from_environment(pooled if is_pooled else environment)).app_context():
        for _ in range(2):  # on the connection that the others have left
            with transaction():
                assert db.session.scalar(isolation) == "read committed"
            with each_alone() as session:
                assert session.scalar(isolation) == "read committed"
            with snapshot():
                assert db.session.scalar(isolation) == "repeatable read"
        db.engine.dispose()


@pytest.mark.usefixtures("context")
def test_whoever_could_not_be_put_in_a_row_with_others_may_try_again() -> None:
    raises = text("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '40001'; END $$")
    with pytest.raises(Busy), transaction():
        db.session.execute(raises)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_text_is_utf_8_whatever_encoding_clients_have_by_default(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    apply_schema(environment["DATABASE_URL"])
    with running_app(from_environment(environment)) as app:
        with app.app_context():
            create_user("Zoë 😀", PASSWORD, ["admin"])
        zoe = Actor.signed_in(app.test_client(), "Zoë 😀", PASSWORD)
        assert [item["username"] for item in zoe.get("/admin/sessions").json["items"]] == [zoe.username]


def test_what_asks_the_database_nothing_is_not_taken_for_its_answer(settings: Settings) -> None:
    """Each request makes its connection ready: a trickle of them would hide that the database is silent."""
    patience = Patience(lambda: True, lambda: 0)
    with patience.connect(settings.database_url) as connection:
        connection.execute("SELECT 1")
        connection.commit()
        answered_ns = patience.answered_ns
        assert answered_ns > 0
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.autocommit = True
        connection.rollback()
        assert patience.answered_ns == answered_ns
        connection.execute("SELECT 1")
        assert patience.answered_ns > answered_ns


@pytest.mark.usefixtures("context")
def test_a_connection_that_postgresql_has_ended_while_nobody_used_it_is_given_to_nobody(
    psql: psycopg.Connection,
) -> None:
    for again in range(2):
        with ExitStack() as held:
            for _ in range(3):
                held.enter_context(db.engine.connect()).execute(text("SELECT 1"))
        ended = psql.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'lastcall'"
        ).fetchone()
        assert ended == (3,), again
        for _ in range(3):
            with transaction() as session:
                session.execute(text("SELECT 1"))


def test_whoever_finds_the_pool_empty_waits_for_a_connection(app: Flask) -> None:
    def ask() -> Any:
        with app.app_context(), transaction() as session:
            return session.scalar(text("SELECT 1"))

    with ThreadPoolExecutor(1) as threads, ExitStack() as all_of_them:
        with app.app_context():
            for _ in range(ENGINE_OPTIONS["pool_size"] + ENGINE_OPTIONS["max_overflow"]):
                all_of_them.enter_context(db.engine.connect())
        answer = threads.submit(ask)
        with pytest.raises(TimeoutError):
            answer.result(POOL_S / 2)
        all_of_them.close()
        assert answer.result(POOL_S) == 1


def test_whoever_gets_no_connection_is_told_that_others_have_them_all(app: Flask) -> None:
    with app.app_context(), ExitStack() as all_of_them:
        for _ in range(ENGINE_OPTIONS["pool_size"] + ENGINE_OPTIONS["max_overflow"]):
            all_of_them.enter_context(db.engine.connect())
        with pytest.raises(AllInUse), transaction() as session:
            session.execute(text("SELECT 1"))


def test_a_connection_that_was_just_opened_is_given_as_it_is(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.database.has_news", lambda connection: True)
    with app.app_context():
        for _ in range(2):
            with transaction() as session:
                assert session.scalar(text("SELECT 1")) == 1
