"""The seam where driver errors become ours: what the database can't do now, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import exc

from lastcall.connection import lacking
from lastcall.errors import DatabaseAway, LastcallError

log = logging.getLogger("lastcall")

HELD_BY_OTHERS = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


class Busy(DatabaseAway):
    """Somebody else holds a lock on this row, so nothing was changed: try again. If that goes on, look for a forgotten
    transaction in the database."""

    code = "database_busy"
    retry_after_s = 2


class AllInUse(DatabaseAway):
    """All connections of this worker to the database are in use by other requests, so nothing was changed: try again.
    If that goes on, look for slow statements in pg_stat_activity, or run more workers."""

    code = "connections_in_use"
    retry_after_s = 2


class TooSlow(DatabaseAway):
    """The database did not finish this in time, so nothing was changed: ask for less at once (a filter that finds
    fewer sessions), or try again when it has less to do."""

    code = "database_slow"
    retry_after_s = 2


class DatabaseFull(DatabaseAway):
    """The database has no space left on its disk, so nothing was changed: make room there, then try again."""

    code = "database_full"
    retry_after_s = 5


class DatabaseOutdated(DatabaseAway):
    """The database lacks something that this version of the server needs, so nothing was changed: bring it up to date
    with `flask --app app init-db`, then try again."""

    code = "database_outdated"
    retry_after_s = 5


class NotConfirmed(DatabaseAway):
    """It is written, but the database can't be asked at the moment who has it in force: look at the history, which
    shows it, or ask for it again."""

    code = "not_confirmed"


@contextmanager
def database_errors() -> Iterator[None]:
    """Driver errors that mean "not now" become DatabaseAway or one of its kinds; anything else is a bug and passes."""
    try:
        yield
    except exc.TimeoutError:
        raise DatabaseAway from None
    except exc.DBAPIError as error:
        if isinstance(error.orig, HELD_BY_OTHERS):
            raise Busy from None
        if isinstance(error.orig, psycopg.errors.QueryCanceled):
            raise TooSlow from None
        if isinstance(error.orig, psycopg.errors.DiskFull):
            raise DatabaseFull from None
        if lacks := lacking(error.orig):
            log.error("lastcall: %s", lacks)
            raise DatabaseOutdated from None
        if error.connection_invalidated or _means_away(error.orig):
            raise DatabaseAway from None
        raise


@contextmanager
def schema_errors() -> Iterator[None]:
    """What keeps schema.sql from being applied becomes a LastcallError, whose one line says why."""
    try:
        yield
    except psycopg.Error as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, HELD_BY_OTHERS):
            raise Busy(
                f"the database could not be prepared, because somebody else holds a lock ({reason}): look for a"
                " forgotten transaction in pg_stat_activity, end it, and try again"
            ) from None
        if isinstance(error, psycopg.OperationalError):
            raise DatabaseAway(
                f"DATABASE_URL: the database cannot be reached ({reason}); is it running, is the URL right?"
            ) from None
        raise LastcallError(f"the database could not be prepared: {reason}") from None


def _means_away(error: BaseException | None) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True
    if isinstance(error, psycopg.errors.FeatureNotSupported) and "during recovery" in str(error):
        return True  # a replica
    state = getattr(error, "sqlstate", None)
    # 08 connection, 53 resources (disk full, too many connections), 54 limits, 57 operator intervention, 58 system
    return isinstance(error, psycopg.OperationalError) and (
        state is None or state[:2] in ("08", "53", "54", "57", "58")
    )
