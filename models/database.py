"""The database connection of the server: engine options, transactions, the schema."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy import ColumnElement, CompoundSelect, Executable, Select, event, exc, literal, text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.pool import QueuePool
from sqlalchemy.types import UserDefinedType

from models.database_errors import HELD_BY_OTHERS, AllInUse, database_errors
from models.patience import POOL_S, Patience, PatientConnection
from models.witness import has_news

SCHEMA = Path(__file__).parent.parent / "schema.sql"
_SCHEMA_LOCK = 7_530_001
_SCHEMA_TRIES = 6
_SCHEMA_PAUSE_S = 0.3
"""In between, those who were held up get through (seconds)."""
_EXPLAIN = "lastcall_explain"


class Base(DeclarativeBase):
    """The base of all models; the tables themselves are made by schema.sql."""


db = SQLAlchemy(model_class=Base, disable_autonaming=True)


class _UuidArray(UserDefinedType[str]):
    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        return "uuid[]"


def uuid_array(ids: Sequence[str]) -> ColumnElement[Any]:
    """uuid[], of texts that the database has written: psycopg takes 8 us to write one UUID, a search has a thousand."""
    return literal("{" + ",".join(ids) + "}", _UuidArray())


class _Pool(QueuePool):
    """Flask-SQLAlchemy's engine_from_config takes `pool_timeout` for whole seconds, and less than one for none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "timeout": POOL_S})


# The connection itself is opened by `use_database`, from the libpq URL as it stands: several hosts, options, all of it.
ENGINE_URL = "postgresql+psycopg://"
ENGINE_OPTIONS: dict[str, Any] = {
    "poolclass": _Pool,
    "pool_size": 8,
    "max_overflow": 4,
    "pool_use_lifo": True,
    "pool_recycle": 45,  # less than idle_session_timeout: what PostgreSQL has ended is never used
    "native_inet_types": False,  # an address is text for us, too, and a page of the list has a hundred of them
    # Each BEGIN says so: whoever waited for a row goes on with what it has become, and is not turned away.
    "isolation_level": "READ COMMITTED",
    "hide_parameters": True,  # they are names, addresses and hashes, and errors are logged
    "connect_args": {"application_name": "lastcall", "prepare_threshold": None},
}
# No statement, lock or forgotten transaction of the application may wait for ever; and a network that goes half-open
# again and again must not use up max_connections. Whatever the server's or the role's defaults are: times are UTC, in
# the form that psycopg reads, and a statement alone (which has no BEGIN) is isolated as a transaction is. Nothing is
# compiled (PostgreSQL manual, "Just-in-Time Compilation"), which takes longer than any statement here.
_SETTINGS = {
    "lock_timeout": "1500ms",
    "statement_timeout": "8s",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "1min",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "default_transaction_isolation": "read committed",
    "jit": "off",
}
_SET = text("""
    SELECT set_config(name, setting, TRUE)
    FROM unnest(CAST(:names AS text []), CAST(:settings AS text [])) AS given (name, setting)
""")


@dataclass(frozen=True, slots=True)
class Access:
    """How the server reaches its database."""

    patience: Patience
    pooled: bool
    """A transaction-mode pooler may be in between."""
    is_direct: Callable[[], bool]
    """It is known that none is."""


def _access() -> Access:
    return cast(Access, current_app.extensions["lastcall_database"])


def use_database(
    app: Flask, url: str, patience: Patience, *, pooled: bool, listener_is_live: Callable[[], bool]
) -> None:
    """Let the engine of `app` open its connections with `patience`. With `pooled` a transaction-mode pooler may be in
    between, where a setting belongs to the transaction (pgbouncer manual, "SQL feature map"). Without it, the listener
    has the same URL, and is live once it has proved that none is."""
    app.extensions["lastcall_database"] = Access(patience, pooled, lambda: not pooled and listener_is_live())
    settings = ", ".join(f"set_config('{name}', '{value}', {pooled})" for name, value in _SETTINGS.items())

    def connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> Any:
        connection = patience.connect(url, **options)
        if not pooled:
            row = connection.execute(f"SELECT pg_backend_pid(), {settings}").fetchone()
            connection.server_pid = row[0] if row else None
            connection.commit()
        connection.is_brief = False
        return connection

    def give(connection: Any, _record: Any, _proxy: Any) -> None:
        if connection.was_given and has_news(connection):  # nobody has asked: it is PostgreSQL's last word, or the end
            raise exc.DisconnectionError  # the pool opens another one, and takes that as it is
        connection.was_given = True

    with app.app_context():
        event.listen(db.engine, "do_connect", connect)
        event.listen(db.engine, "checkout", give)
        event.listen(db.engine, "before_cursor_execute", _explain, retval=True)
        if pooled:
            event.listen(db.engine, "begin", lambda connection: connection.exec_driver_sql(f"SELECT {settings}"))


@contextmanager
def transaction() -> Iterator[sqlalchemy.orm.scoped_session[Session]]:
    """One transaction, committed at the end, rolled back on any error. Raises DatabaseAway or one of its kinds."""
    patience = _access().patience
    patience.begin()
    with database_errors():
        try:
            yield db.session
            db.session.commit()
        except BaseException as error:
            db.session.rollback()
            if isinstance(error, exc.TimeoutError) and not patience.is_silent():
                raise AllInUse from None
            raise
        finally:
            db.session.close()


@contextmanager
def each_alone() -> Iterator[sqlalchemy.orm.scoped_session[Session]]:
    """The same for statements that need no transaction around them: a BEGIN and a COMMIT are two more answers to wait
    for. They stay prepared. Behind a transaction-mode pooler it is one all the same: the limits belong to it there."""
    with transaction() as session, _prepared(session, "AUTOCOMMIT"):
        yield session


@contextmanager
def snapshot() -> Iterator[None]:
    """A transaction that reads everything as it was at one moment, for a list. Its statements stay prepared."""
    with transaction() as session, _prepared(session, "REPEATABLE READ"):
        yield


@contextmanager
def prepared_transaction() -> Iterator[sqlalchemy.orm.scoped_session[Session]]:
    """A transaction whose statements stay prepared: for those that look up by a key, where one plan does."""
    with transaction() as session, _prepared(session):
        yield session


@contextmanager
def _prepared(
    session: sqlalchemy.orm.scoped_session[Session], isolation: str | None = None
) -> Iterator[PatientConnection]:
    """What is asked from here on stays prepared on the connection, which saves the time of parsing it each time, and of
    planning it where one plan does for all values (docs/decisions/0017). Nothing does where a transaction-mode pooler
    may be in between, which has other statements under the same names; nor is a statement alone there."""
    access = _access()
    as_it_is = isolation is None or (access.pooled and isolation == "AUTOCOMMIT")
    options = None if as_it_is else {"isolation_level": isolation}
    connection = cast(PatientConnection, session.connection(execution_options=options).connection.driver_connection)
    connection.prepare_threshold = 1 if access.is_direct() else None
    try:
        yield connection
    finally:
        connection.prepare_threshold = None


@contextmanager
def one_statement() -> Iterator[sqlalchemy.orm.scoped_session[Session]]:
    """A transaction of one statement that writes. Raises what `transaction` does, also where it is not known that the
    synchronous standby has it."""
    with transaction() as session, _prepared(session, "AUTOCOMMIT") as connection:
        connection.commits_alone = connection.autocommit
        try:
            yield session
        finally:
            connection.commits_alone = False


def apply_schema(url: str) -> None:
    """Apply schema.sql, idempotently; two at once take turns. Workers that are at work lock the same tables, in another
    order: whoever meets one in a deadlock, or waits for a lock for long, begins anew. Raises psycopg.Error."""
    for _ in range(_SCHEMA_TRIES - 1):
        try:
            return _apply_schema(url)
        except HELD_BY_OTHERS:
            time.sleep(_SCHEMA_PAUSE_S)
    return _apply_schema(url)


def _apply_schema(url: str) -> None:
    with psycopg.connect(url, connect_timeout=5, client_encoding="UTF8") as connection:
        if connection.info.server_version < 150000:
            raise psycopg.NotSupportedError(
                f"PostgreSQL {connection.info.server_version // 10000} is too old; 15 or later is needed"
            )
        if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
            raise psycopg.NotSupportedError(
                f"the encoding of this database is {encoding}; make one with ENCODING 'UTF8' TEMPLATE template0"
            )
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # sees what was done while it waited
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        # Less than the others wait (_SETTINGS): they need the locks that it holds already.
        connection.execute("SET LOCAL lock_timeout = '1s'")
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(SCHEMA.read_bytes())


def is_same_database(url: str, other: str) -> bool:
    """Whether both lead to the same database, whose schema is there. Also True where `other` does not answer: whoever
    uses it says so. Raises psycopg.Error."""
    if url == other:
        return True
    found = []
    for one in (url, other):
        try:
            with psycopg.connect(one, connect_timeout=5) as connection:
                connection.execute("INSERT INTO incarnation DEFAULT VALUES ON CONFLICT DO NOTHING")
                found.append(connection.execute("SELECT id, current_database() FROM incarnation").fetchone())
        except psycopg.errors.UndefinedTable:
            return False
        except psycopg.OperationalError:
            if one == url:
                raise
            return True
    return found[0] == found[1]


def expected_rows(query: Select[Any] | CompoundSelect[Any]) -> int:
    """How many rows the planner expects of a query of one column. Within a transaction under way."""
    plan = db.session.execute(query, execution_options={_EXPLAIN: True}).scalar()
    return int(plan[0]["Plan"]["Plan Rows"]) if plan else 0


def _explain(_connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, _many: bool) -> Any:
    """SQLAlchemy compiles a query once; its EXPLAIN is put before what it has compiled."""
    explains = context is not None and context.execution_options.get(_EXPLAIN)
    return "EXPLAIN (FORMAT JSON) " + statement if explains else statement, parameters


def changed(statement: Executable, values: dict[str, Any] | None = None) -> int:
    """How many rows a statement has changed. Within a transaction under way."""
    return int(db.session.execute(statement, values).rowcount)  # type: ignore[attr-defined]


def position_of_transaction() -> str:
    """The id of the transaction under way; a worker has confirmed when this is visible in its snapshot."""
    return str(db.session.scalar(text("SELECT pg_current_xact_id()::text")))


def say(**facts: str | None) -> None:
    """Tell the triggers, for this transaction, who does it and why (schema.sql: `said`)."""
    db.session.execute(_SET, settings_of(facts))


def settings_of(facts: dict[str, str | None]) -> dict[str, list[str]]:
    """The names and the values of the settings that tell the triggers these facts, as two arrays."""
    return {"names": [f"lastcall.{name}" for name in facts], "settings": [fact or "" for fact in facts.values()]}
