"""A statement that is prepared once a connection, and then asked in one call of libpq.

psycopg's own `execute` lets go of the interpreter several times for one answer. Beside a busy thread each return to it
costs a switch interval and more, and until then a revoked token is accepted (bench/propagation.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

TURN_S = 0.00005
"""How long a busy thread may keep the interpreter while an answer of the database is waited for (seconds)."""


@contextmanager
def quick_turns() -> Iterator[None]:
    """Beside busy threads, let this one have the interpreter back soon after each wait.

    Where turns are as quick already, this changes nothing: another listener of the process may look just now, and what
    it has set must not be taken for the usual one.
    """
    usual_s = sys.getswitchinterval()
    if usual_s <= TURN_S:
        yield
        return
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(usual_s)


def prepare(connection: psycopg.Connection, name: bytes, query: LiteralString) -> None:
    """Prepare a query, with $1, $2, … for its parameters. Raises psycopg.Error."""
    _check(connection, connection.pgconn.prepare(name, query.encode()))


def ask(connection: psycopg.Connection, name: bytes, *parameters: str) -> list[tuple[Any, ...]]:
    """All rows of the answer. Raises psycopg.Error.

    What has been notified meanwhile stays in libpq's queue: the next `execute` puts it where `notifies` finds it.
    """
    result = connection.pgconn.exec_prepared(name, [parameter.encode() for parameter in parameters])
    _check(connection, result)
    transformer = Transformer(connection)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, tuple)


def _check(connection: psycopg.Connection, result: pq.abc.PGresult) -> None:
    if connection.pgconn.status != pq.ConnStatus.OK:
        raise psycopg.OperationalError(result.get_error_message())
    if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        raise psycopg.errors.error_from_result(result)
