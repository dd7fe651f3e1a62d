"""The database connection of the server: engine options, transactions, and the seam where driver errors become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from sqlalchemy import exc, text
from sqlalchemy.orm import DeclarativeBase

from lastcall.errors import DatabaseAway

SCHEMA = Path(__file__).parent.parent / "schema.sql"
_SCHEMA_LOCK = 7_530_001


class Base(DeclarativeBase):
    """The base of all models; the tables themselves are made by schema.sql."""


db = SQLAlchemy(model_class=Base, disable_autonaming=True)


class Busy(DatabaseAway):
    """Somebody else holds a lock on this row, so nothing was changed: try again; look for a forgotten transaction."""

    code = "database_busy"
    retry_after_s = 2


def engine_url(url: str) -> str:
    """The libpq URL as SQLAlchemy wants it: with the driver's name."""
    return "postgresql+psycopg://" + url.partition("://")[2]


def engine_options() -> dict[str, Any]:
    """No statement, lock or forgotten transaction of the application may wait for ever (milliseconds)."""
    waits = "-c lock_timeout=1500 -c statement_timeout=8000 -c idle_in_transaction_session_timeout=10000"
    return {
        "pool_size": 8,
        "max_overflow": 4,
        "pool_timeout": 2,
        "pool_pre_ping": True,
        "connect_args": {
            "connect_timeout": 2,
            "application_name": "lastcall",
            "options": waits,
            "prepare_threshold": None,
        },
    }


@contextmanager
def transaction() -> Iterator[sqlalchemy.orm.scoped_session[Session]]:
    """One transaction, committed at the end, rolled back on any error. Raises DatabaseAway or Busy."""
    with database_errors():
        try:
            yield db.session
            db.session.commit()
        except BaseException:
            db.session.rollback()
            raise
        finally:
            db.session.close()


@contextmanager
def database_errors() -> Iterator[None]:
    """Driver errors that mean "not now" become DatabaseAway or Busy; anything else is a bug and passes."""
    try:
        yield
    except exc.TimeoutError:
        raise DatabaseAway from None
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            raise Busy from None
        if error.connection_invalidated or _means_away(error.orig):
            raise DatabaseAway from None
        raise


def _means_away(error: BaseException | None) -> bool:
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.ReadOnlySqlTransaction):
        return True
    state = getattr(error, "sqlstate", None)
    # 08 connection, 53 resources (disk full, too many connections), 57 operator intervention, 58 system error
    return isinstance(error, psycopg.OperationalError) and (state is None or state[:2] in ("08", "53", "57", "58"))


def apply_schema(url: str) -> None:
    """Apply schema.sql, idempotently; two at once take turns. Raises psycopg.Error."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        if connection.info.server_version < 150000:
            raise psycopg.NotSupportedError(
                f"PostgreSQL {connection.info.server_version // 10000} is too old; 15 or later is needed"
            )
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(SCHEMA.read_bytes())


def position_of_transaction() -> str:
    """The id of the transaction under way; a worker has confirmed when this is visible in its snapshot."""
    return str(db.session.scalar(text("SELECT pg_current_xact_id()::text")))


def say(**facts: str | None) -> None:
    """Tell the triggers, for this transaction, who does it and why (schema.sql: `said`)."""
    for name, fact in facts.items():
        db.session.execute(
            text("SELECT set_config(:name, :fact, TRUE)"), {"name": f"lastcall.{name}", "fact": fact or ""}
        )
