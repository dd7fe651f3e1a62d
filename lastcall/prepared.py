"""A statement that is prepared once a connection, and then asked in one call of libpq.

psycopg's own `execute` lets go of the interpreter several times for one answer. Beside a busy thread each return to it
costs a switch interval and more, and until then a revoked token is accepted (bench/propagation.py).
"""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer


def prepare(connection: psycopg.Connection, name: bytes, query: LiteralString) -> None:
    """Prepare a query, with $1, $2, … for its parameters. Raises psycopg.Error."""
    _check(connection, connection.pgconn.prepare(name, query.encode()))


def ask(connection: psycopg.Connection, name: bytes, *parameters: str) -> list[tuple[Any, ...]]:
    """All rows of the answer. Raises psycopg.Error.

    What has been notified meanwhile stays in libpq's queue: for `was_notified`, or for the next `execute`, which puts
    it where `notifies` finds it.
    """
    result = connection.pgconn.exec_prepared(name, [parameter.encode() for parameter in parameters])
    _check(connection, result)
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def was_notified(connection: psycopg.Connection) -> bool:
    """Whether a NOTIFY is in libpq's queue, which is empty afterwards. It waits for none."""
    heard = False
    while connection.pgconn.notifies() is not None:
        heard = True
    return heard


def _check(connection: psycopg.Connection, result: pq.abc.PGresult) -> None:
    if connection.pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(result.get_error_message())
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)
