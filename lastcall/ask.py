"""Asking the database about one token, for a worker that may not believe its own memory at the moment.

At most 4 questions at once a process, 250 ms each with the wait for a turn, and no turns while questions are not
answered: an incident of the database must not become one of the workers.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextlib import suppress
from typing import LiteralString, TypeVar

import psycopg

from lastcall.claims import Claims
from lastcall.clock import boottime_ns, result_in_time
from lastcall.cutoffs import Cutoffs, Scope
from lastcall.errors import CutoffsStale, Expired
from lastcall.hosts import connect_to_primary
from lastcall.rows import columns

T = TypeVar("T")

AT_ONCE = 4
PATIENCE_S = 0.25
_IDLE_S = 60
"""PostgreSQL ends a connection that has asked nothing for so long; it is not used again after half of that."""

# With the clock by which they are purged: a token whose cutoffs are gone must have expired by the same one.
_CUTOFFS: LiteralString = f"""
SELECT extract(epoch FROM clock_timestamp())::float8, {columns()} FROM (SELECT) AS now LEFT JOIN cutoffs AS c
    ON (c.scope, c.subject) IN (('everyone', ''), ('user', %(sub)s), ('session', %(sid)s))
"""
# Tokens without generations can outlive a cutoff: the history remembers.
_HISTORY: LiteralString = """
SELECT r.scope FROM revocations AS r
WHERE r.cutoff_at >= to_timestamp(%(iat)s)
    AND (r.scope, r.subject) IN (('everyone', ''), ('user', %(sub)s), ('session', %(sid)s))
UNION ALL
-- One row of the history stands for all whom a filter found: their sessions remember.
SELECT coalesce(s.ended_scope::text, 'session') FROM login_sessions AS s
WHERE s.user_id = as_uuid(%(sub)s) AND s.ended_at >= to_timestamp(%(iat)s)
    AND (s.ended_scope = 'user' OR s.id = as_uuid(%(sid)s))
LIMIT 1
"""


class _GivenUp(Exception):
    """Nobody waits for the answer any more."""


class _Question:
    """One that is being asked, so that whoever has waited long enough can hang up."""

    def __init__(self) -> None:
        self._given_up = threading.Event()
        self._connection: psycopg.Connection | None = None

    def goes_by(self, connection: psycopg.Connection) -> None:
        """Raises _GivenUp when it is too late; after that a statement on `connection` fails once it is."""
        self._connection = connection
        if self._given_up.is_set():
            raise _GivenUp

    def is_over(self) -> None:
        self._connection = None

    def give_up(self) -> None:
        self._given_up.set()
        if (connection := self._connection) is not None:
            hang_up(connection)


class Asker:
    """Puts `Cutoffs.refuses` to the primary, by an indexed query that begins after the request came.

    `conninfo` leads to the primary; `pooled` where that may be through a transaction-mode pooler.
    """

    def __init__(self, conninfo: str, *, pooled: bool = False) -> None:
        self._conninfo = conninfo
        self._pooled = pooled
        self.answered_ns = 0
        """When the last question was answered (CLOCK_BOOTTIME, nanoseconds)."""
        self._failed_ns = 0
        self._pid = 0
        self._starting = threading.Lock()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._threads: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._connections: list[psycopg.Connection] = []

    def close(self) -> None:
        """Close what was opened; the process is going to stop."""
        if self._threads is not None and self._pid == os.getpid():
            self._threads.shutdown(wait=False, cancel_futures=True)
            for connection in list(self._connections):
                hang_up(connection)
                connection.close()

    def refuses(self, claims: Claims) -> Scope | None:
        """The level that refuses these claims, or None. Raises Expired where they have, by the database's clock, and
        CutoffsStale when there is no answer in time."""
        scope, now_s = self._put(lambda connection: _who_refuses(connection, claims))
        if claims.exp <= now_s:
            raise Expired
        return scope

    def now_s(self) -> float:
        """The database's clock (seconds since 1970 UTC). Raises CutoffsStale when there is no answer in time."""
        return self._put(_read_clock)

    def _put(self, ask: Callable[[psycopg.Connection], T]) -> T:
        came_ns = boottime_ns()
        threads, slots = self._threads_of_this_process()
        # While nothing is answered nobody waits for a turn; and whoever has one gets half of the time at least.
        turn_s = PATIENCE_S / 2 if self._failed_ns <= self.answered_ns else 0
        if threads is None or not slots.acquire(timeout=turn_s):
            raise CutoffsStale
        waited_s = min(turn_s, (boottime_ns() - came_ns) / 1e9)
        question = _Question()
        try:
            answer: Future[T] = threads.submit(self._ask, ask, question)
        except RuntimeError:  # the process is ending
            slots.release()
            raise CutoffsStale from None
        answer.add_done_callback(lambda _: slots.release())
        try:
            found = result_in_time(answer, PATIENCE_S - waited_s)
            self.answered_ns = boottime_ns()
            return found
        except TimeoutError:
            self._failed_ns = boottime_ns()
            answer.cancel()
            question.give_up()
            raise CutoffsStale from None
        except psycopg.Error:
            self._failed_ns = boottime_ns()
            raise CutoffsStale from None

    def _threads_of_this_process(self) -> tuple[ThreadPoolExecutor | None, threading.BoundedSemaphore]:
        if self._pid != os.getpid():  # threads do not survive a fork
            with self._starting:
                if self._pid != os.getpid():
                    self._connections = []  # the parent's: to close one here would end it there
                    self._slots = threading.BoundedSemaphore(AT_ONCE)
                    self._threads = ThreadPoolExecutor(AT_ONCE, "lastcall-ask")
                    self._pid = os.getpid()
        return self._threads, self._slots

    def _ask(self, ask: Callable[[psycopg.Connection], T], question: _Question) -> T:
        local = self._local
        connection: psycopg.Connection | None = getattr(local, "connection", None)
        if connection is None or connection.closed or boottime_ns() - local.used_ns > _IDLE_S * 5e8:
            connection = self._connect()
        question.goes_by(connection)
        local.used_ns = boottime_ns()
        try:
            if not local.is_limited:
                self._limit(connection)
                local.is_limited = True
            row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            if row is None or row[0]:
                raise psycopg.OperationalError("connected to a replica")
            return ask(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            question.is_over()

    def _connect(self) -> psycopg.Connection:
        """A connection of this thread. It is kept, also when it takes longer than anybody waits."""
        old: psycopg.Connection | None = getattr(self._local, "connection", None)
        if old is not None:
            old.close()
        connection = connect_to_primary(
            psycopg.connect,
            self._conninfo,
            autocommit=True,
            connect_timeout=2,
            application_name="lastcall-ask",
            prepare_threshold=None,
        )
        self._local.connection, self._local.used_ns, self._local.is_limited = connection, boottime_ns(), self._pooled
        with self._starting:
            self._connections = [open_one for open_one in self._connections if not open_one.closed] + [connection]
        return connection

    def _limit(self, connection: psycopg.Connection) -> None:
        """A server process whose client hung up does not notice while it waits for a lock, or for a question. Behind a
        pooler the setting would stay with a connection that belongs to others as well."""
        limits = (f"{_IDLE_S}s", f"{int(PATIENCE_S * 1000)}ms")
        query = "SELECT set_config('idle_session_timeout', %s, FALSE), set_config('statement_timeout', %s, FALSE)"
        connection.execute(query, limits)


def _read_clock(connection: psycopg.Connection) -> float:
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    return float(row[0]) if row else 0.0


def _who_refuses(connection: psycopg.Connection, claims: Claims) -> tuple[Scope | None, float]:
    """And the database's clock (seconds since 1970 UTC)."""
    parameters = {"sub": claims.sub, "sid": claims.sid, "iat": claims.iat}
    found, rows = Cutoffs(), connection.execute(_CUTOFFS, parameters).fetchall()
    for _, *row in rows:
        if row[0] is not None:
            found.advance(tuple(row))
    scope = found.refuses(claims)
    if scope is None and claims.user_gen is None:
        remembered = connection.execute(_HISTORY, parameters).fetchone()
        scope = remembered[0] if remembered else None
    return scope, rows[0][0]


def hang_up(connection: psycopg.Connection) -> None:
    """Shut a connection's socket from another thread: whoever waits in it is freed at once, whatever is in between."""
    with suppress(psycopg.Error, OSError):
        twin = socket.socket(fileno=os.dup(connection.pgconn.socket))
        try:
            twin.shutdown(socket.SHUT_RDWR)
        finally:
            twin.close()
