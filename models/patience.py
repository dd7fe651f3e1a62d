"""Patience: how long the application waits for a database that says nothing.

PostgreSQL's own timeouts bound what a living server does. Behind a cut network, or a server that was stopped, no
timeout of its can run out, and neither keepalives nor `tcp_user_timeout` bound a read. Here another thread hangs up.

Where the database answers others, one connection alone may have been forgotten by what is in between. Then a witness
asks the server whether it is at work for that connection, or waits for a statement that we sent long ago.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus

from lastcall.ask import hang_up
from lastcall.clock import STOOD_STILL_S, boottime_ns
from lastcall.errors import DatabaseAway
from lastcall.hosts import connect_to_primary
from models.witness import Wait, Witness

WAIT_S = 0.4
"""A statement that has waited for so long is given up once the database is silent (seconds)."""
POOL_S, CONNECT_S, AT_LEAST_S = 0.7, 0.75, 0.25
"""How long a transaction waits for a place in the pool, and how long a new connection may take: together 0.95 s, but
never less than the last (seconds). libpq's connect_timeout knows whole seconds, 2 at least."""
COMMIT_S = 1.5
"""A commit that has waited for so long is given up once the listener's own are not answered either: the synchronous
standby is away, while whoever only reads is answered (seconds)."""
TRY_EVERY_S = 0.25
_LOOK_EVERY_S = 0.05
_ASK_EVERY_S = 0.1
_NOT_TRIED = "commits are not answered at the moment, so this one was not tried"


class PatientConnection(psycopg.Connection[Any]):
    """A connection whose every wait is noted, so that another thread can end it."""

    patience: Patience | None = None
    server_pid: int | None = None
    """The server process behind it; None where a pooler may change it."""
    is_brief = True
    """Whether its statements are short ones: nobody waits for them, whatever else the database answers."""
    commits_alone = False
    """Whether its next statement is a whole transaction that writes."""
    committing = False
    was_given = False
    """Whether the pool has given it to somebody before."""
    _warned = False
    _asks = True

    def commit(self) -> None:
        """Raises psycopg.OperationalError where it is not known that the standby has it, too."""
        if self._would_hang() and self._has_written():
            self.rollback()
            raise psycopg.OperationalError(_NOT_TRIED)
        with self._committing():
            super().commit()

    def _would_hang(self) -> bool:
        """The server process of a commit that hangs stays until the standby is back: they must not pile up."""
        return self.patience is not None and self.patience.commits_hang()

    @contextmanager
    def _committing(self) -> Iterator[None]:
        self.committing, self._warned = True, False
        try:
            yield
        finally:
            self.committing = False
        if self._warned:  # somebody has cancelled the wait for the standby: it is written on the primary alone
            raise psycopg.OperationalError("the commit came with a warning")

    def _has_written(self) -> bool:
        if self.info.transaction_status != TransactionStatus.INTRANS:
            return False
        row = self.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        return bool(row and row[0])

    # A setting of the connection's own, or the end of no transaction, is no question: it must not count as answered.

    def set_autocommit(self, value: bool) -> None:
        with self._asking_nothing():
            super().set_autocommit(value)

    def set_isolation_level(self, value: psycopg.IsolationLevel | None) -> None:
        with self._asking_nothing():
            super().set_isolation_level(value)

    def rollback(self) -> None:
        if self.info.transaction_status != TransactionStatus.IDLE:
            super().rollback()

    @contextmanager
    def _asking_nothing(self) -> Iterator[None]:
        self._asks = False
        try:
            yield
        finally:
            self._asks = True

    def note_warning(self, diagnostic: Diagnostic) -> None:
        self._warned = self._warned or diagnostic.severity_nonlocalized == "WARNING"

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        if not self.commits_alone:
            return self._wait(*args, **kwargs)
        if self._would_hang():
            raise psycopg.OperationalError(_NOT_TRIED)
        with self._committing():
            return self._wait(*args, **kwargs)

    def _wait(self, *args: Any, **kwargs: Any) -> Any:
        patience = self.patience
        if patience is None or not self._asks:
            return super().wait(*args, **kwargs)
        key = id(self)
        patience.waits[key] = self, boottime_ns()
        try:
            answer = super().wait(*args, **kwargs)
            patience.answered_ns = boottime_ns()
            return answer
        finally:
            patience.waits.pop(key, None)


class Patience:
    """Opens the application's connections, and hangs up those that wait while the database is silent: the listener
    hears nothing, and for a moment neither a statement of the application nor a question of the guard was answered."""

    def __init__(self, listener_hears_nothing: Callable[[], bool], guard_answered_ns: Callable[[], int]) -> None:
        self._listener_hears_nothing = listener_hears_nothing
        self._guard_answered_ns = guard_answered_ns
        self.waits: dict[int, tuple[PatientConnection, int]] = {}
        self.answered_ns = 0
        self._woke_ns = 0
        self._tried_ns = 0
        self._failed_ns = 0
        self._gave_up = False
        self._stopping = threading.Event()
        self._pid = 0
        self._conninfo = ""
        self._local = threading.local()

    def is_silent(self) -> bool:
        if not self._listener_hears_nothing():
            return False
        return boottime_ns() - max(self._last_answer_ns(), self._woke_ns) > WAIT_S * 1e9

    def _last_answer_ns(self) -> int:
        return max(self.answered_ns, self._guard_answered_ns())

    def commits_hang(self) -> bool:
        """Whether commits are not answered: one was given up, and the listener has heard nothing since."""
        return self._gave_up and self._listener_hears_nothing()

    def begin(self) -> None:
        """A transaction begins in this thread: the time for its connection counts from now. Raises DatabaseAway."""
        if not self._may_try():
            raise DatabaseAway
        self._local.connected_by_ns = boottime_ns() + int((POOL_S + AT_LEAST_S) * 1e9)

    def _may_try(self) -> bool:
        """Whether it makes sense to ask the database. Once it has left a request without an answer, one in a while
        finds out; before that silence may just mean that nobody has asked."""
        if not self.is_silent() or self._failed_ns < self._last_answer_ns():
            return True
        now_ns = boottime_ns()
        if now_ns - self._tried_ns < TRY_EVERY_S * 1e9:
            return False
        self._tried_ns = now_ns
        return True

    def ensure_running(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._stopping = os.getpid(), threading.Event()
            for name, work in (("lastcall-patience", self._watch), ("lastcall-witness", self._find_forgotten)):
                threading.Thread(target=work, args=(self._stopping,), name=name, daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def connect(self, conninfo: str, **options: Any) -> PatientConnection:
        """Raises psycopg.OperationalError after CONNECT_S at most."""
        self._conninfo = conninfo
        left_s = (getattr(self._local, "connected_by_ns", 0) - boottime_ns()) / 1e9
        try:
            connection = self._open(min(CONNECT_S, max(AT_LEAST_S, left_s)), **options)
        except psycopg.OperationalError:
            self._failed_ns = boottime_ns()
            raise
        connection.add_notice_handler(connection.note_warning)
        return connection

    def _open(self, within_s: float, **options: Any) -> PatientConnection:
        connection = connect_to_primary(
            PatientConnection.connect, self._conninfo, within_s=within_s, connect_timeout=2, **options
        )
        connection.patience = self
        return connection

    def _watch(self, stopping: threading.Event) -> None:
        looked_ns = boottime_ns()
        while not stopping.wait(_LOOK_EVERY_S):
            now_ns = boottime_ns()
            if now_ns - looked_ns > STOOD_STILL_S * 1e9:
                # The clocks went on while nothing here moved, and this thread may be the first to wake: the time of
                # whoever waits begins anew.
                self._woke_ns = now_ns
            looked_ns = now_ns
            hears_nothing, silent = self._listener_hears_nothing(), self.is_silent()
            self._gave_up = self._gave_up and hears_nothing
            for connection, since_ns in list(self.waits.values()):
                waited_s = (now_ns - max(since_ns, self._woke_ns)) / 1e9
                hangs = hears_nothing and connection.committing and waited_s > COMMIT_S
                if hangs or (waited_s > WAIT_S and (silent or connection.is_brief)):
                    self._gave_up = self._gave_up or connection.committing
                    self._failed_ns = now_ns
                    self._hang_up((connection, since_ns))

    def _find_forgotten(self, stopping: threading.Event) -> None:
        witness = Witness(self._open_witness)
        while not stopping.wait(_ASK_EVERY_S):
            # Before anybody is given up: that the witness is answered tells that the database is not silent.
            since_ns = boottime_ns() - WAIT_S / 2 * 1e9
            waits = [wait for wait in list(self.waits.values()) if not wait[0].is_brief and wait[1] < since_ns]
            for wait in witness.find_forgotten(waits):
                self._hang_up(wait)
        witness.close()

    def _open_witness(self) -> PatientConnection:
        return self._open(CONNECT_S, application_name="lastcall-witness", autocommit=True)

    def _hang_up(self, wait: Wait) -> None:
        """Unless it is over: its connection may be another request's by now."""
        connection = wait[0]
        if self.waits.get(id(connection)) == wait:
            hang_up(connection)
